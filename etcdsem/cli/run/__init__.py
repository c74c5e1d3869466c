"""`etcdsem run` and `hold`: wait for a lease, keep it, and stop the work before the lease ends."""
