"""For tests: etcd in memory with its own time, and a simulator that runs the core on it.

`memory()` is for the tests of programs that use etcdsem; ``python -m etcdsem.testing`` runs the
simulator, which is for those who work on etcdsem itself.
"""

from etcdsem.testing.inmemory import Memory, MemoryClient, memory

__all__ = ["Memory", "MemoryClient", "memory"]
