"""`etcdsem bench`: measure etcd, then report what limits it."""
