"""`etcdsem doctor`: probe etcd, then check what was found."""
