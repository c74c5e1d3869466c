"""Rate limits among real processes, judged by a referee."""
