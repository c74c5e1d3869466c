"""With python-etcd3, which needs an environment of its own: see .ci/run."""
