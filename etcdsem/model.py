"""Public data types: holders, waiters, the state of a semaphore. Nothing here talks to etcd."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal, NamedTuple, TypeAlias

Duration: TypeAlias = float | int | str | timedelta
"""A duration as a user may write it: seconds, ``"250ms"``, ``"1m30s"`` or a timedelta."""


@dataclass(frozen=True)
class Holder:
    """A currently held lease, or one of its slots."""

    slot: int
    owner: str
    host: str
    pid: int | None
    client: str
    lease_id: str
    """The etcd lease ID, in hex as printed by ``etcdctl lease list``. Empty for a permit of a rate
    limit whose lease etcd has ended early; its slot stays taken for `ttl` seconds.
    """
    fencing_token: int
    acquired_at: datetime | None
    ttl: float | None = None
    """Seconds until etcd frees the slot unless the lease is refreshed; None if not queried."""
    labels: Mapping[str, str] = field(default_factory=dict)
    over_limit: bool = False
    """True for a slot above the limit: the limit was lowered while the slot was held."""
    weight: int = 1
    """Number of slots that the lease holds; there is one `Holder` for each of them."""
    max_hold: float | None = None
    """Seconds after the grant at which the holder ends the lease; None means no bound."""

    @property
    def ends_at(self) -> datetime | None:
        """When the holder ends the lease at the latest; None if it is unbounded or unknown."""
        if self.max_hold is None or self.acquired_at is None:
            return None
        try:
            return self.acquired_at + timedelta(seconds=self.max_hold)
        except OverflowError:
            return None


@dataclass(frozen=True)
class Waiter:
    """A waiter in the queue; the first has position 1."""

    position: int
    owner: str
    host: str
    pid: int | None
    client: str
    lease_id: str
    since: datetime | None
    ttl: float | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    weight: int = 1
    """Number of slots it waits for; all of them are granted at once."""
    priority: int = 0
    """Higher priorities are served first; equal priorities in order of arrival."""
    backfill: bool = False
    """Whether it may pass waiters that need more slots than are free."""

    @property
    def eager(self) -> bool:
        """Deprecated name of `backfill`."""
        warnings.warn("Waiter.eager is now called backfill", DeprecationWarning, stacklevel=2)
        return self.backfill


@dataclass(frozen=True)
class BasePermit:
    """A permit that a rate limit granted, or several, from this moment. Always true."""

    waited: float
    """Seconds between the call and the grant."""
    cost: int = 1
    """How many permits it is; of several rate limits: how many of the first."""

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.waited, self.cost)  # a copy cannot be settled

    def __bool__(self) -> Literal[True]:
        return True


@dataclass(frozen=True)
class Denied:
    """A rate limit has no permit now, or not as many. Always false."""

    retry_after: float
    """Estimated seconds until the permits may be free, from the times recorded in etcd."""
    name: str = ""
    """The rate limit, or the window, that is free last."""

    def __bool__(self) -> Literal[False]:
        return False


@dataclass(frozen=True)
class Junk:
    """A key under a semaphore's prefix that etcdsem did not write, and why it is ignored."""

    key: str
    reason: str
    raw: bytes = field(default=b"", repr=False)
    """The key as etcd stores it; `key` has escapes where it is not UTF-8."""


@dataclass(frozen=True)
class Pause:
    """A paused semaphore: no lease is granted until it is resumed, or over."""

    by: str
    """Who paused it; empty if only the word was written to etcd by hand."""
    since: datetime | None
    """When it was paused, by the clock of the machine that paused it."""
    reason: str = ""
    until: datetime | None = None
    """When it ends by itself, by the clock of the machine that paused it; etcd ends it by its own
    clock. None for a pause that lasts until it is resumed."""

    def left(self, wall: float) -> float:
        """Seconds until it is over, at the time of day `wall`: 0 if it is, and infinite for
        a pause that lasts until it is resumed.
        """
        return math.inf if self.until is None else max(0.0, self.until.timestamp() - wall)

    def __str__(self) -> str:
        by = f" by {self.by}" if self.by else ""
        since = f" since {self.since:%Y-%m-%d %H:%M:%S} UTC" if self.since else ""
        until = f" until {self.until:%Y-%m-%d %H:%M:%S} UTC" if self.until else ""
        return f"paused{by}{since}{until}" + (f" ({self.reason})" if self.reason else "")


MAX_SEMAPHORES = 8
"""Maximum number of semaphores that can be acquired at once. etcd allows 128 operations in a
transaction, and reading each semaphore takes four of them."""


class CloseResult(NamedTuple):
    """What `Client.close_semaphore` did, and who was using the semaphore."""

    done: bool
    """True if the semaphore was removed; False if it was in use and `force` was not given."""
    known: bool
    """False if there was no such semaphore."""
    holders: tuple[str, ...]
    """The owners of the held leases, in slot order."""
    waiters: tuple[str, ...]
    """The owners of the waiters, in the order in which they would have been served."""


class Rate(NamedTuple):
    """What turns a semaphore into a rate limit: at most `starts` in any window of `period` seconds.

    Each slot stands for a block of `block` starts, so there are ``starts // block`` slots.
    """

    starts: int
    period: float
    block: int

    def __str__(self) -> str:
        blocks = f"/{self.block}" if self.block != 1 else ""
        return f"{self.starts}/{duration_text(self.period)}{blocks}"


class LimitInfo(NamedTuple):
    """The stored limit of a semaphore, or the stored rate of a rate limit."""

    max_leases: int | None
    """The limit; for a rate limit the number of blocks. None if it cannot be read."""
    rate: Rate | None
    """Not None for a rate limit."""
    pause: Pause | None
    """Not None while it is paused."""
    text: str
    """The first 60 bytes of the stored value."""


@dataclass(frozen=True)
class LimitChange:
    """A difference between the limits that should be in etcd and those that are: one line of
    ``etcdsem apply --dry-run``.
    """

    name: str
    live: str | None
    """The limit or the rate in etcd, without a pause; None if the name is not registered."""
    applied: str | None
    """What was last applied to it; None if nothing ever was."""
    wanted: str | None
    """What it should be; None: the name must go."""
    raw: bytes = field(default=b"", repr=False)
    """The limit as etcd stores it."""
    revision: int = field(default=0, repr=False)
    """The revision at which the limit was last changed; 0 if it is not registered."""
    applied_revision: int = field(default=0, repr=False)
    """The same for `applied`."""
    created: int = field(default=0, repr=False)
    """The revision at which it was registered."""
    expires: bool = False
    """Does the name leave etcd when nobody has used it for a while? Applying a limit ends that."""

    @property
    def drift(self) -> bool:
        """Has somebody changed the limit since it was applied?"""
        return self.applied is not None and self.live not in (None, self.applied)


class Pruned(NamedTuple):
    """What `Client.prune` did, or would do; the names are sorted."""

    expiring: tuple[str, ...]
    """Names that now leave etcd when nobody uses them for the given time."""
    removed: tuple[str, ...]
    """Names without a limit, of which keys had been left over."""


class LimitRefusal(NamedTuple):
    """A change that was not made, and why."""

    change: LimitChange
    reason: str


@dataclass(frozen=True)
class Status:
    """One semaphore at one etcd revision."""

    name: str
    max_leases: int | None
    """The limit in force; None if the stored value cannot be read (then nothing is granted)."""
    holders: tuple[Holder, ...]
    waiters: tuple[Waiter, ...]
    junk: tuple[Junk, ...] = ()
    revision: int = 0
    pause: Pause | None = None
    """Not None while it is paused; no lease is granted then."""
    rate: Rate | None = None
    """Not None for a rate limit. `max_leases` is then the number of blocks, and a holder is a block
    that is in use."""
    applied: str | None = None
    """The limit or the rate that `etcdsem apply` set last; None if it never did, or this client may
    not read it."""
    expires_in: float | None = None
    """Seconds until the name leaves etcd unless somebody uses it; None if it stays, or the time was
    not queried."""
    next_free: float | None = None
    """Estimated seconds until a new caller may get a permit, as far as `RateLimit.status` tells."""
    windows: tuple[Status, ...] = ()
    """Of a rate limit with several windows: each of them. All other fields are of the tight one,
    which is free last."""

    @property
    def drift(self) -> bool:
        """Has somebody changed the limit since it was applied?"""
        return _drift(self.applied, self.rate, self.max_leases)

    @property
    def held(self) -> int:
        """Number of slots that are currently held, by anyone."""
        return len(self.holders)


@dataclass(frozen=True)
class Overview:
    """One row of ``etcdsem ls``."""

    name: str
    max_leases: int | None
    held: int
    waiting: int
    junk: int = 0
    waiting_since: datetime | None = None
    """When the first waiter began to wait, by its machine's clock; None if the queue is
    empty."""
    pause: Pause | None = None
    """Not None while it is paused; no lease is granted then."""
    rate: Rate | None = None
    """Not None for a rate limit."""
    applied: str | None = None
    """The limit or the rate that `etcdsem apply` set last; None if it never did."""
    expires: bool = False
    """Does the name leave etcd when nobody has used it for a while?"""

    @property
    def drift(self) -> bool:
        """Has somebody changed the limit since it was applied?"""
        return _drift(self.applied, self.rate, self.max_leases)

    @property
    def overbooked(self) -> int:
        """How many more slots are held than the limit allows after it was lowered; usually 0."""
        return 0 if self.max_leases is None else max(0, self.held - self.max_leases)


def _drift(applied: str | None, rate: Rate | None, number: int | None) -> bool:
    return applied is not None and applied != str(number if rate is None else rate)


def duration_text(seconds: float) -> str:
    """Format seconds as a user would write them: 0.5s, 1m30s (for 90), 2h."""
    if seconds < 60 or seconds != int(seconds):
        return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"
    parts = ((int(seconds) // 3600, "h"), (int(seconds) // 60 % 60, "m"), (int(seconds) % 60, "s"))
    return "".join(f"{number}{unit}" for number, unit in parts if number)
