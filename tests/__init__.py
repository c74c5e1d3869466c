"""The tests. They use a real etcd; see conftest.py."""
