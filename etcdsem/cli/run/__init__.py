"""`etcdsem run` and `hold`: wait for a lease, keep it, and end the work before the lease ends."""
