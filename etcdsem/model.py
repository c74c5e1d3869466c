"""Public data: who holds, who waits, what a semaphore looks like, and how settings are read.

Nothing here talks to etcd. Durations are seconds as a float inside the library; whatever a user
may write for one (`1.5`, ``"250ms"``, ``"1m30s"``, `timedelta`) goes through `seconds()`.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple, TypeAlias

from etcdsem.errors import InvalidName, InvalidSetting

Duration: TypeAlias = float | int | str | timedelta
"""What a user may write for a duration: seconds, ``"250ms"``, ``"1m30s"`` or a timedelta."""

MAX_LIMIT = 99_999  # slots are written with five digits, and one number must stay above them
MIN_LEASE_TIMEOUT = 2  # etcd's own: ceil(1.5 x election timeout), 2 s by default
MAX_LEASE_TIMEOUT = 9_000_000_000  # etcd refuses more ("too large lease TTL")
DEFAULT_LEASE_TIMEOUT = 30.0
MAX_PRIORITY = 100
MAX_WEIGHT = 32
"""Slots that one lease may hold. They are taken, or given back, in one transaction, and etcd takes
128 operations in one: a condition and a write for each slot, and others' grants beside it."""

DEFAULT_PREFIX = "/etcdsem"

_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)
_LABEL = re.compile(r"[A-Za-z0-9._/-]{1,63}", re.ASCII)
_PLAIN_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)

_UNITS: dict[str, float] = {
    "week": 604800,
    "day": 86400,
    "hour": 3600,
    "minute": 60,
    "min": 60,
    "sec": 1,
}
_UNITS |= {"second": 1, "millisecond": 1e-3, "microsecond": 1e-6, "nanosecond": 1e-9}
_IN_WORDS = re.compile(rf"(\d+(?:\.\d*)?|\.\d+)({'|'.join(_UNITS)})s?", re.ASCII)


@dataclass(frozen=True)
class Holder:
    """A lease that is held now."""

    slot: int
    owner: str
    host: str
    pid: int | None
    client: str
    lease_id: str
    """The etcd lease, in hex as ``etcdctl lease list`` prints it."""
    fencing_token: int
    acquired_at: datetime | None
    ttl: float | None = None
    """Seconds until etcd gives the slot away if nobody refreshes the lease; None if not asked."""
    labels: Mapping[str, str] = field(default_factory=dict)
    over_limit: bool = False
    """True for a slot above the limit: the limit was lowered while it was held."""
    weight: int = 1
    """How many slots its lease holds; there is one `Holder` for each of them."""
    max_hold: float | None = None
    """Seconds after which its holder ends it, counted from the grant; None: without a bound."""

    @property
    def ends_at(self) -> datetime | None:
        """When its holder ends it at the latest; None: without a bound, or not known."""
        if self.max_hold is None or self.acquired_at is None:
            return None
        try:
            return self.acquired_at + timedelta(seconds=self.max_hold)
        except OverflowError:
            return None


@dataclass(frozen=True)
class Waiter:
    """Somebody in line; the first has position 1."""

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
    """How many slots it waits for; it gets all of them at once."""
    priority: int = 0
    """Higher ones are served first; those of the same in the order in which they came."""
    eager: bool = False
    """True for one who passes those that wait for more slots than are free."""


@dataclass(frozen=True)
class Start:
    """A start that a rate limit granted: now is the time. Always true."""

    waited: float
    """Seconds from the call to the grant."""

    def __bool__(self) -> Literal[True]:
        return True


@dataclass(frozen=True)
class Later:
    """A rate limit has no start now. Always false."""

    retry_after: float
    """Seconds until one may be had: an estimate, by the times that are noted in etcd."""

    def __bool__(self) -> Literal[False]:
        return False


@dataclass(frozen=True)
class Junk:
    """A key below a semaphore's prefix that etcdsem did not write, and why it is left out."""

    key: str
    reason: str


@dataclass(frozen=True)
class Pause:
    """Nothing is granted until somebody resumes it."""

    by: str
    """Who paused it; empty if that was done by hand, with no more than the word."""
    since: datetime | None
    """Since when, by the clock of who paused it."""
    reason: str = ""


MAX_SEMAPHORES = 8
"""Semaphores that can be acquired at once. etcd takes 128 operations in a transaction, and each of
them needs four to look at it; what else is known of them travels with the answer."""


class CloseResult(NamedTuple):
    """What `Client.close_semaphore` did, and who used the semaphore then."""

    done: bool
    """True when the semaphore was removed. False when it was in use and `force` was not given."""
    known: bool
    """False when there was no such semaphore."""
    holders: tuple[str, ...]
    """The owners of the leases that were held, in the order of their slots."""
    waiters: tuple[str, ...]
    """The owners of those that waited, in the order in which they would have been served."""


class Rate(NamedTuple):
    """What makes a rate limit of a semaphore: at most `starts` in any window of `period` seconds.

    Each slot stands for a block of `block` starts, so there are ``starts // block`` slots.
    """

    starts: int
    period: float
    block: int

    def __str__(self) -> str:
        blocks = f"/{self.block}" if self.block != 1 else ""
        return f"{self.starts}/{duration_text(self.period)}{blocks}"


class LimitInfo(NamedTuple):
    """The limit of a semaphore, or the rate of a rate limit, as it is stored."""

    max_leases: int | None
    """The limit; of a rate limit how many blocks of starts it has. None if it cannot be read."""
    rate: Rate | None
    """Not None for a rate limit."""
    pause: Pause | None
    """Not None while it is paused."""
    text: str
    """The first 60 bytes of what is stored."""


@dataclass(frozen=True)
class Status:
    """One semaphore at one revision of etcd."""

    name: str
    max_leases: int | None
    """The limit in force; None if the stored one cannot be read (then nothing is granted)."""
    holders: tuple[Holder, ...]
    waiters: tuple[Waiter, ...]
    junk: tuple[Junk, ...] = ()
    revision: int = 0
    pause: Pause | None = None
    """Not None while it is paused: then nothing is granted."""
    rate: Rate | None = None
    """Not None for a rate limit: then `max_leases` is its blocks of starts, and a holder is one
    that is in use."""

    @property
    def held(self) -> int:
        """How many slots are held now, by anyone."""
        return len(self.holders)


@dataclass(frozen=True)
class Overview:
    """One line of ``etcdsem ls``."""

    name: str
    max_leases: int | None
    held: int
    waiting: int
    junk: int = 0
    waiting_since: datetime | None = None
    """Since when the first in line waits, by the clock of its machine; None if nobody does."""
    pause: Pause | None = None
    """Not None while it is paused: then nothing is granted."""
    rate: Rate | None = None
    """Not None for a rate limit."""

    @property
    def overbooked(self) -> int:
        """How many more are held than the limit allows, since it was lowered; 0 is usual."""
        return 0 if self.max_leases is None else max(0, self.held - self.max_leases)


def check_name(name: object) -> str:
    """Return `name` if it can name a semaphore, else raise InvalidName.

    The characters are few so that no name can reach into the keys of another.
    """
    if not isinstance(name, str):
        raise InvalidName(f"A semaphore's name must be a string, not {type(name).__name__}.")
    if _NAME.fullmatch(name) is None:
        shown = name if len(name) <= 60 else name[:57] + "..."
        raise InvalidName(
            f"{shown!r} cannot name a semaphore: use 1 to 128 of the characters A-Z a-z 0-9 . _ -"
        )
    return name


def check_limit(limit: Any, *, least: int = 1) -> int:
    """Return `limit` as an int if it can be a limit, else raise InvalidSetting.

    Whole numbers of any integer type (NumPy's too) are taken; True, 2.0 and "2" are not.
    """
    if isinstance(limit, bool) or not hasattr(limit, "__index__"):
        raise InvalidSetting(
            f"max_leases must be a whole number from {least} to {MAX_LIMIT}, not {limit!r}"
        )
    number = limit.__index__()
    if not least <= number <= MAX_LIMIT:
        raise InvalidSetting(
            f"max_leases must be a whole number from {least} to {MAX_LIMIT}, not {number}"
        )
    return int(number)


def check_weight(weight: Any) -> int:
    """Return `weight` as an int if a lease may have it, else raise InvalidSetting."""
    if isinstance(weight, bool) or not hasattr(weight, "__index__"):
        raise InvalidSetting(
            f"weight must be a whole number from 1 to {MAX_WEIGHT}, not {weight!r}"
        )
    number = int(weight.__index__())
    if not 1 <= number <= MAX_WEIGHT:
        raise InvalidSetting(
            f"weight must be a whole number from 1 to {MAX_WEIGHT}, not {number}: one lease can "
            f"hold {MAX_WEIGHT} slots at most"
        )
    return number


def check_priority(priority: Any) -> int:
    """Return `priority` as an int if a waiter may have it, else raise InvalidSetting."""
    if isinstance(priority, bool) or not hasattr(priority, "__index__"):
        raise InvalidSetting(
            f"priority must be a whole number from -{MAX_PRIORITY} to {MAX_PRIORITY}, "
            f"not {priority!r}"
        )
    number = int(priority.__index__())
    if abs(number) > MAX_PRIORITY:
        raise InvalidSetting(
            f"priority must be a whole number from -{MAX_PRIORITY} to {MAX_PRIORITY}, not {number}"
        )
    return number


def seconds(value: Duration, *, what: str = "duration") -> float:
    """Read a duration: a number of seconds, ``"250ms"``, ``"1m30s"``, ``"5 minutes"`` (as Dask
    has it) or a `timedelta`.

    Raises InvalidSetting for what cannot be read and for NaN. Signs and infinity pass: what they
    mean depends on where the duration is used.
    """
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, str):
        text = value.strip().replace(" ", "")
        if _PLAIN_NUMBER.fullmatch(text):
            return float(text)
        if (words := _IN_WORDS.fullmatch(text.lower())) is not None:
            return float(words[1]) * _UNITS[words[2]]
        import durationpy  # here, since most programs give numbers

        try:
            return float(durationpy.from_str(text).total_seconds())
        except (durationpy.DurationError, OverflowError, ValueError, KeyError):
            pass
    elif not isinstance(value, bool) and (
        isinstance(value, int | float) or hasattr(value, "__float__")
    ):
        try:
            number = float(value)
        except OverflowError:
            number = math.nan
        if not math.isnan(number):
            return number
    raise InvalidSetting(
        f"{what}: cannot read {value!r} as a duration; give seconds (1.5), or 250ms, 30s, 1m30s, 2h"
    )


def timeout_seconds(value: Duration | None, *, what: str = "timeout") -> float | None:
    """Read a timeout: None waits for ever, 0 tries once, less than 0 is an error."""
    if value is None:
        return None
    number = seconds(value, what=what)
    if number < 0:
        raise InvalidSetting(f"{what} must not be negative: {value!r} (0 tries once)")
    return None if math.isinf(number) else number


def max_hold_seconds(value: Duration | None, *, what: str = "max_hold") -> float | None:
    """Read for how long a lease may be held: None (or infinity) as long as its holder likes."""
    if value is None:
        return None
    number = seconds(value, what=what)
    if number <= 0:
        raise InvalidSetting(f"{what} must be longer than 0: {value!r}; None sets no bound")
    return None if math.isinf(number) else number


def warning_ahead(max_hold: float) -> float:
    """Seconds before the end of a max_hold at which a warning is due: a tenth of it, but at least
    1 s and at most 60 s, and never more than half of it.
    """
    return min(max(1.0, min(60.0, max_hold / 10)), max_hold / 2)


def duration_text(seconds: float) -> str:
    """A duration as a user may write it: 0.5s, 90s as 1m30s, 2h."""
    if seconds < 60 or seconds != int(seconds):
        return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"
    parts = ((int(seconds) // 3600, "h"), (int(seconds) // 60 % 60, "m"), (int(seconds) % 60, "s"))
    return "".join(f"{number}{unit}" for number, unit in parts if number)


MOST_BLOCKS = 256
"""Above so many starts in a period they come in blocks, so that a look at all stays small."""

MIN_PERIOD = 0.1


def default_block(starts: int) -> int:
    """Starts in a block, if nobody says otherwise."""
    return max(1, math.ceil(starts / MOST_BLOCKS))


def make_rate(limit: Any, period: Duration, block: Any = None) -> Rate:
    """A rate of these numbers if it can be one, else raise InvalidSetting."""
    for what, number in (("limit", limit), ("block", 1 if block is None else block)):
        if isinstance(number, bool) or not hasattr(number, "__index__") or number.__index__() < 1:
            raise InvalidSetting(f"a rate's {what} must be a whole number from 1, not {number!r}")
    starts, long = int(limit.__index__()), seconds(period, what="period")
    if not MIN_PERIOD <= long <= MAX_LEASE_TIMEOUT / 2:
        raise InvalidSetting(f"a rate's period must be at least {MIN_PERIOD}s, not {period!r}")
    size = default_block(starts) if block is None else int(block.__index__())
    if not 1 <= starts // size <= MAX_LIMIT:
        raise InvalidSetting(
            f"a rate of {starts} in blocks of {size} has {starts // size} blocks; it must be 1 to "
            f"{MAX_LIMIT}"
        )
    return Rate(starts, round(long, 3), size)


def read_rate(text: str) -> Rate:
    """Read ``100/1m``, or ``10000/1m/50`` (in blocks of 50). Raises InvalidSetting."""
    parts = text.strip().split("/")
    if len(parts) not in (2, 3) or not all(
        part.isascii() and part.strip().isdigit() for part in (parts[0], *parts[2:])
    ):
        raise InvalidSetting(
            f"cannot read {text!r} as a rate; give 100/1m (100 starts in any minute), or "
            "10000/1m/50 (in blocks of 50)"
        )
    return make_rate(int(parts[0]), parts[1], *map(int, parts[2:]))


def lease_timeout_seconds(value: Duration, *, what: str = "lease_timeout") -> int:
    """Read a lease timeout: whole seconds from 2 (etcd's smallest) to 9 000 000 000, rounded up."""
    number = seconds(value, what=what)
    if not MIN_LEASE_TIMEOUT <= number <= MAX_LEASE_TIMEOUT:
        raise InvalidSetting(
            f"{what} must be from {MIN_LEASE_TIMEOUT}s (etcd's smallest; 15s or more is "
            f"recommended) to {MAX_LEASE_TIMEOUT}s, not {value!r}"
        )
    return math.ceil(number)


def check_labels(labels: Mapping[str, str] | None) -> dict[str, str]:
    """Return the labels if they can be stored, else raise InvalidSetting.

    Keys are 1 to 63 of ``A-Z a-z 0-9 . _ / -``; values at most 253 printable characters, as
    in Kubernetes' metadata; 16 labels at most, since each hand-over carries them.
    """
    result: dict[str, str] = {}
    for key, value in (labels or {}).items():
        if not isinstance(key, str) or _LABEL.fullmatch(key) is None:
            raise InvalidSetting(
                f"label {key!r}: a key is 1 to 63 of the characters A-Z a-z 0-9 . _ / -"
            )
        result[key] = check_text(value, what=f"label {key!r}")
    if len(result) > 16:
        raise InvalidSetting(f"too many labels: {len(result)} (maximum 16)")
    return result


def read_labels(given: Mapping[str, str] | None) -> dict[str, str]:
    """The labels of a holder: those of ``ETCDSEM_LABELS`` (``pod=a,node=b``: where it runs, told by
    whoever started it), and the ones `given`, which win. Raises InvalidSetting.
    """
    labels: dict[str, str] = {}
    for part in (environment("ETCDSEM_LABELS") or "").split(","):
        if not part.strip():
            continue
        key, equals, value = part.strip().partition("=")
        if not equals:
            raise InvalidSetting(f"ETCDSEM_LABELS: {part.strip()!r}: write KEY=VALUE,KEY=VALUE")
        labels[key] = value
    return check_labels({**labels, **(given or {})})


def check_text(value: object, *, what: str) -> str:
    """Return a value that people will read if it is at most 253 printable characters."""
    if not isinstance(value, str) or len(value) > 253 or not value.isprintable():
        shown = repr(value)
        raise InvalidSetting(
            f"{what}: {shown if len(shown) <= 60 else shown[:57] + '...'} is not at most "
            "253 printable characters on one line"
        )
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidSetting(f"{what}: {value!r} is not valid Unicode text") from None
    return value


def check_prefix(prefix: object) -> str:
    """Return the key prefix without a slash at its end; it must start with one."""
    if (
        not isinstance(prefix, str)
        or re.fullmatch(r"(/[A-Za-z0-9._-]{1,128})+/?", prefix, re.ASCII) is None
    ):
        raise InvalidSetting(
            f"prefix {prefix!r}: give a path such as /etcdsem or /team/etcdsem "
            "(characters A-Z a-z 0-9 . _ - between single slashes)"
        )
    return prefix.rstrip("/")


def environment(name: str) -> str | None:
    """A variable of the environment without spaces around it; None if unset or empty."""
    value = os.environ.get(name, "").strip()
    return value or None


def dask_setting(name: str) -> Any:
    """What Dask's configuration says in ``distributed.scheduler.locks``; None where it says
    nothing, or where Dask is not loaded. It is never loaded for that.
    """
    get = getattr(sys.modules.get("dask.config"), "get", None)
    return None if get is None else get(f"distributed.scheduler.locks.{name}", None)
