"""Benchmarks: us, our peers, and the floors that bare etcd calls allow, side by side in one run."""
