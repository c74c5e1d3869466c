"""Commands that change a semaphore: limit, rate, pause, resume, drain, evict, close."""
