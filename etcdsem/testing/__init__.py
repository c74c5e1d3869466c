"""For tests: etcd in memory, and a simulator that runs the library's own core on it."""
