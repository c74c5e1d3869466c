"""The exceptions that etcdsem raises.

    EtcdSemError
    ├── SemaphoreClosed     (RuntimeError)     the semaphore is not registered, or was closed
    ├── ReleasedTooOften    (RuntimeError, ValueError)  release() without a held lease
    ├── InconsistentLimit   (ValueError)       a different limit is already registered
    ├── WrongKind           (ValueError)       the name belongs to a rate limit, or to a semaphore
    ├── InvalidName         (ValueError)       not a valid semaphore name
    ├── InvalidSetting      (ValueError)       an invalid limit, duration, endpoint or label
    ├── WeightExceedsLimit  (ValueError)       the weight exceeds the limit
    ├── NobodyThere         (LookupError)      evict() found no such holder or waiter
    ├── AcquireTimeout      (TimeoutError)     hold(timeout) was not granted a lease in time
    ├── QueueFull                              max_waiting callers wait already
    ├── Evicted                                an operator evicted this waiter from the queue
    ├── LeaseLost                              a lease ended before its holder released it
    ├── EtcdUnavailable     (ConnectionError)  etcd is unreachable or did not answer in time
    ├── EtcdRefused                            etcd answered with a refusal (out of space, ...)
    ├── WrongEventLoop      (RuntimeError)     an asyncio client was used from another event loop
    └── PermissionDenied    (PermissionError)  etcd rejected the credentials or access to a key

Each is also the built-in exception that a caller would expect, so that code written for
`threading.Semaphore` or for Dask's semaphore catches it unchanged.
"""

from __future__ import annotations

__all__ = [
    "AcquireTimeout",
    "EtcdRefused",
    "EtcdSemError",
    "EtcdUnavailable",
    "Evicted",
    "InconsistentLimit",
    "InvalidName",
    "InvalidSetting",
    "LeaseLost",
    "NobodyThere",
    "PermissionDenied",
    "QueueFull",
    "ReleasedTooOften",
    "SemaphoreClosed",
    "WeightExceedsLimit",
    "WrongEventLoop",
    "WrongKind",
]


class EtcdSemError(Exception):
    """Base class of all errors raised by this library."""


class SemaphoreClosed(EtcdSemError, RuntimeError):
    """The semaphore was closed, or was never registered."""


class ReleasedTooOften(EtcdSemError, RuntimeError, ValueError):
    """There is no held lease to release; nothing was changed in etcd.

    It is a RuntimeError as in Dask, and a ValueError as in `threading.BoundedSemaphore`.
    """


class InconsistentLimit(EtcdSemError, ValueError):
    """A different limit is registered for this semaphore. The message names both; `registered` is
    None if the stored limit cannot be read.
    """

    def __init__(self, message: str, *, given: int, registered: int | None) -> None:
        super().__init__(message)
        self.given = given
        self.registered = registered

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_limit, (str(self), self.given, self.registered)


def _rebuild_limit(message: str, given: int, registered: int | None) -> InconsistentLimit:
    return InconsistentLimit(message, given=given, registered=registered)


class WrongKind(EtcdSemError, ValueError):
    """The name belongs to a rate limit and a semaphore was requested, or the other way round."""


class InvalidName(EtcdSemError, ValueError):
    """Not a valid semaphore name: 1 to 128 of ``A-Z a-z 0-9 . _ -``, and not ``.`` or ``..``."""


class InvalidSetting(EtcdSemError, ValueError):
    """A setting (limit, duration, endpoint, label, file, ...) is invalid."""


class WeightExceedsLimit(EtcdSemError, ValueError):
    """The weight exceeds the limit in force, so the lease could never be granted."""


class NobodyThere(EtcdSemError, LookupError):
    """No holder has that slot or lease, and no waiter has that lease; nobody was evicted."""


class AcquireTimeout(EtcdSemError, TimeoutError):
    """No lease was granted in time."""


class QueueFull(EtcdSemError):
    """The caller would have had to wait, and as many as its `max_waiting` allows wait already."""


class Evicted(EtcdSemError):
    """An operator evicted this waiter from the queue. The message says who did it, and when."""


class LeaseLost(EtcdSemError):
    """A held lease expired, was revoked or evicted, or its semaphore was closed."""


class EtcdUnavailable(EtcdSemError, ConnectionError):
    """etcd is unreachable, or did not answer in time."""


class EtcdRefused(EtcdSemError):
    """etcd answered with a refusal: out of space, corrupt, or overloaded for too long."""


class PermissionDenied(EtcdSemError, PermissionError):
    """etcd rejected the user, the password, or the access to a key."""


class WrongEventLoop(EtcdSemError, RuntimeError):
    """An asyncio client or lease was used outside the event loop that it belongs to."""
