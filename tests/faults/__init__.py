"""Tests of processes, clocks and members of etcd that fail."""
