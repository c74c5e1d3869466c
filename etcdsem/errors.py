"""The exceptions that etcdsem raises.

    EtcdSemError
    ├── SemaphoreClosed     (RuntimeError)     the semaphore is not known to etcd, or was closed
    ├── ReleasedTooOften    (RuntimeError, ValueError)  release() with no lease to give back
    ├── InconsistentLimit   (ValueError)       another limit is registered
    ├── WrongKind           (ValueError)       a rate limit has that name, or a semaphore
    ├── InvalidName         (ValueError)       not a name for a semaphore
    ├── InvalidSetting      (ValueError)       a limit, duration, endpoint or label that cannot be
    ├── WeightExceedsLimit  (ValueError)       more slots are wanted than the limit has
    ├── NobodyThere         (LookupError)      evict() of a slot or lease that nobody has
    ├── AcquireTimeout      (TimeoutError)     hold(timeout) found no room in time
    ├── Evicted                                an operator ended this acquire while it waited
    ├── LeaseLost                              a lease ended before its holder released it
    ├── EtcdUnavailable     (ConnectionError)  etcd can't be reached, or doesn't answer in time
    ├── EtcdRefused                            etcd answered, and refuses (out of space, ...)
    ├── WrongEventLoop      (RuntimeError)     an asyncio client is used from another event loop
    └── PermissionDenied    (PermissionError)  etcd refuses the credentials, or the key

Each is also the built-in exception that a caller would expect, so that code written for
`threading.Semaphore` or for Dask's semaphore needs no change to catch it.
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
    "ReleasedTooOften",
    "SemaphoreClosed",
    "WeightExceedsLimit",
    "WrongEventLoop",
    "WrongKind",
]


class EtcdSemError(Exception):
    """The base of all errors of this library."""


class SemaphoreClosed(EtcdSemError, RuntimeError):
    """The semaphore is not known: it was closed, or never registered."""


class ReleasedTooOften(EtcdSemError, RuntimeError, ValueError):
    """There is no lease to give back; nothing was changed in etcd.

    RuntimeError is what Dask raises, ValueError what `threading.BoundedSemaphore` raises.
    """


class InconsistentLimit(EtcdSemError, ValueError):
    """Another limit is registered for this semaphore. The message names both."""

    def __init__(self, message: str, *, given: int, registered: int) -> None:
        super().__init__(message)
        self.given = given
        self.registered = registered

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_limit, (str(self), self.given, self.registered)


def _rebuild_limit(message: str, given: int, registered: int) -> InconsistentLimit:
    return InconsistentLimit(message, given=given, registered=registered)


class WrongKind(EtcdSemError, ValueError):
    """A semaphore is wanted where there is a rate limit of that name, or the other way round."""


class InvalidName(EtcdSemError, ValueError):
    """Not a name for a semaphore: 1 to 128 of the characters ``A-Z a-z 0-9 . _ -``."""


class InvalidSetting(EtcdSemError, ValueError):
    """A setting (limit, duration, endpoint, label, file, ...) that cannot be used."""


class WeightExceedsLimit(EtcdSemError, ValueError):
    """A lease of more slots is wanted than the limit in force has, so it would never come."""


class NobodyThere(EtcdSemError, LookupError):
    """Nobody holds that slot, or holds or waits with that lease; nobody was evicted."""


class AcquireTimeout(EtcdSemError, TimeoutError):
    """No lease was free in time."""


class Evicted(EtcdSemError):
    """An operator ended this acquire while it waited (`evict`). The message says who, and when."""


class LeaseLost(EtcdSemError):
    """A lease expired, was revoked, evicted, or its semaphore was closed, while it was held."""


class EtcdUnavailable(EtcdSemError, ConnectionError):
    """etcd cannot be reached, or did not answer in time."""


class EtcdRefused(EtcdSemError):
    """etcd answered, and refuses to do it: no space left, corrupt, overloaded for too long."""


class PermissionDenied(EtcdSemError, PermissionError):
    """etcd refuses the user, the password, or the access to a key."""


class WrongEventLoop(EtcdSemError, RuntimeError):
    """An asyncio client or lease is used from another event loop than its own, or from none."""
