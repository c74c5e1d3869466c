"""etcdsem: a counting semaphore on etcd, for any number of processes anywhere.

    from etcdsem import Semaphore

    with Semaphore(max_leases=2, name="my_database"):
        ...

Importing this loads no protobuf; that happens with the first connection.
"""

from etcdsem.errors import (
    AcquireTimeout,
    EtcdRefused,
    EtcdSemError,
    EtcdUnavailable,
    Evicted,
    InconsistentLimit,
    InvalidName,
    InvalidSetting,
    LeaseLost,
    NobodyThere,
    PermissionDenied,
    ReleasedTooOften,
    SemaphoreClosed,
    WeightExceedsLimit,
    WrongEventLoop,
    WrongKind,
)
from etcdsem.model import (
    CloseResult,
    Duration,
    Holder,
    Junk,
    Later,
    LimitInfo,
    Overview,
    Pause,
    Rate,
    Start,
    Status,
    Waiter,
)
from etcdsem.sync import (
    Client,
    Lease,
    RateLimit,
    Semaphore,
    acquire_all,
    connect,
    from_etcd3,
    hold_all,
)

__version__ = "0.1.0"

__all__ = [
    "AcquireTimeout",
    "Client",
    "CloseResult",
    "Duration",
    "EtcdRefused",
    "EtcdSemError",
    "EtcdUnavailable",
    "Evicted",
    "Holder",
    "InconsistentLimit",
    "InvalidName",
    "InvalidSetting",
    "Junk",
    "Later",
    "Lease",
    "LeaseLost",
    "LimitInfo",
    "NobodyThere",
    "Overview",
    "Pause",
    "PermissionDenied",
    "Rate",
    "RateLimit",
    "ReleasedTooOften",
    "Semaphore",
    "SemaphoreClosed",
    "Start",
    "Status",
    "Waiter",
    "WeightExceedsLimit",
    "WrongEventLoop",
    "WrongKind",
    "__version__",
    "acquire_all",
    "connect",
    "from_etcd3",
    "hold_all",
]
