"""`etcdsem bench`: measure etcd, then report what limits its throughput."""
