"""What performs the core's procedures: with threads, or in an event loop."""
