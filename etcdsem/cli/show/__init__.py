"""Commands that show semaphores: ls, status, top."""
