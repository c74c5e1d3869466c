"""`etcdsem exporter`: metrics of all semaphores for Prometheus."""
