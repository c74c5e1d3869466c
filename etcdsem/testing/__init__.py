"""Testing programs that use etcdsem: an in-memory etcd with a controllable clock.

`pytest_plugin` provides it as a fixture.
"""

from etcdsem.testing.inmemory import Memory, MemoryClient, memory

__all__ = ["Memory", "MemoryClient", "memory"]
