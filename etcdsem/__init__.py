"""etcdsem: a counting semaphore on etcd, for any number of processes anywhere.

    from etcdsem import Semaphore

    with Semaphore(max_leases=2, name="my_database"):
        ...

Importing this loads no gRPC; that happens with the first connection.
"""

from etcdsem.errors import (
    AcquireTimeout,
    EtcdRefused,
    EtcdSemError,
    EtcdUnavailable,
    InconsistentLimit,
    InvalidName,
    InvalidSetting,
    LeaseLost,
    PermissionDenied,
    ReleasedTooOften,
    SemaphoreClosed,
)
from etcdsem.model import Holder, Junk, Overview, Status, Waiter
from etcdsem.sync import Client, Lease, Semaphore, connect

__version__ = "0.1.0"

__all__ = [
    "AcquireTimeout",
    "Client",
    "EtcdRefused",
    "EtcdSemError",
    "EtcdUnavailable",
    "Holder",
    "InconsistentLimit",
    "InvalidName",
    "InvalidSetting",
    "Junk",
    "Lease",
    "LeaseLost",
    "Overview",
    "PermissionDenied",
    "ReleasedTooOften",
    "Semaphore",
    "SemaphoreClosed",
    "Status",
    "Waiter",
    "__version__",
    "connect",
]
