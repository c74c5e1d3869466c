"""Public data: who holds, who waits, what a semaphore looks like, and how settings are read.

Nothing here talks to etcd. Durations are seconds as a float inside the library; whatever a user
may write for one (`1.5`, ``"250ms"``, ``"1m30s"``, `timedelta`) goes through `seconds()`.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeAlias

from etcdsem.errors import InvalidName, InvalidSetting

Duration: TypeAlias = float | int | str | timedelta

MAX_LIMIT = 99_999  # slots are written with five digits, and one number must stay above them
MIN_LEASE_TIMEOUT = 2  # etcd's own: ceil(1.5 x election timeout), 2 s by default
MAX_LEASE_TIMEOUT = 9_000_000_000  # etcd refuses more ("too large lease TTL")
DEFAULT_LEASE_TIMEOUT = 30.0
DEFAULT_PREFIX = "/etcdsem"

_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)
_LABEL = re.compile(r"[A-Za-z0-9._/-]{1,63}", re.ASCII)
_PLAIN_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)


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


@dataclass(frozen=True)
class Junk:
    """A key below a semaphore's prefix that etcdsem did not write, and why it is left out."""

    key: str
    reason: str


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

    @property
    def held(self) -> int:
        """How many leases are held now, by anyone."""
        return len(self.holders)


@dataclass(frozen=True)
class Overview:
    """One line of ``etcdsem ls``."""

    name: str
    max_leases: int | None
    held: int
    waiting: int
    junk: int = 0


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


def seconds(value: Duration, *, what: str = "duration") -> float:
    """Read a duration: a number of seconds, ``"250ms"``, ``"1m30s"`` or a `timedelta`.

    Raises InvalidSetting for what cannot be read and for NaN. Signs and infinity pass: what they
    mean depends on where the duration is used.
    """
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, str):
        text = value.strip().replace(" ", "")
        if _PLAIN_NUMBER.fullmatch(text):
            return float(text)
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


def lease_timeout_seconds(value: Duration) -> int:
    """Read a lease timeout: whole seconds from 2 (etcd's smallest) to 9 000 000 000, rounded up."""
    number = seconds(value, what="lease_timeout")
    if not MIN_LEASE_TIMEOUT <= number <= MAX_LEASE_TIMEOUT:
        raise InvalidSetting(
            f"lease_timeout must be from {MIN_LEASE_TIMEOUT}s (etcd's smallest; 15s or more is "
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
        raise InvalidSetting(f"{len(result)} labels were given; 16 are the most")
    return result


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
