"""etcdsem: a counting semaphore on etcd, for any number of processes anywhere.

    from etcdsem import Semaphore

    with Semaphore(max_leases=2, name="my_database"):
        ...

Importing this loads no protobuf; that happens with the first connection.
"""

from typing import TYPE_CHECKING

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
    QueueFull,
    ReleasedTooOften,
    SemaphoreClosed,
    WeightExceedsLimit,
    WrongEventLoop,
    WrongKind,
)
from etcdsem.model import (
    CloseResult,
    Denied,
    Duration,
    Holder,
    Junk,
    LimitChange,
    LimitInfo,
    LimitRefusal,
    Overview,
    Pause,
    Pruned,
    Rate,
    Status,
    Waiter,
)
from etcdsem.sync import (
    Client,
    Lease,
    Permit,
    RateLimit,
    RateLimits,
    Semaphore,
    acquire_all,
    connect,
    from_etcd3,
    hold_all,
)

if TYPE_CHECKING:
    Start = Permit
    Later = Denied
else:

    def __getattr__(name: str) -> object:
        """Return a class by its deprecated name, for one more release."""
        now = {"Start": "Permit", "Later": "Denied"}.get(name)
        if now is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import warnings

        warnings.warn(
            f"etcdsem.{name} is now called etcdsem.{now}", DeprecationWarning, stacklevel=2
        )
        return globals()[now]


__version__ = "0.1.0"

__all__ = [
    "AcquireTimeout",
    "Client",
    "CloseResult",
    "Denied",
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
    "Lease",
    "LeaseLost",
    "LimitChange",
    "LimitInfo",
    "LimitRefusal",
    "NobodyThere",
    "Overview",
    "Pause",
    "PermissionDenied",
    "Permit",
    "Pruned",
    "QueueFull",
    "Rate",
    "RateLimit",
    "RateLimits",
    "ReleasedTooOften",
    "Semaphore",
    "SemaphoreClosed",
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
