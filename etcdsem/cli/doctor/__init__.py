"""`etcdsem doctor`: probe etcd, then check the results."""
