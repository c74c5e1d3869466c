"""`etcdsem.Semaphore` in the place of `distributed.Semaphore`, on a real Dask cluster."""
