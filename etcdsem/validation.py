"""Validates settings, and converts the forms in which users write them.

Inside the library, durations are floats in seconds; every form that a user may write (`1.5`,
``"250ms"``, ``"1m30s"``, `timedelta`) is converted by `seconds()`.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from etcdsem.errors import InvalidName, InvalidSetting
from etcdsem.model import Duration, Rate, duration_text

MAX_LIMIT = 99_999  # slots are written with five digits, and one number must stay above them

MIN_LEASE_TIMEOUT = 2  # etcd's minimum: ceil(1.5 x election timeout), 2 s by default

MAX_LEASE_TIMEOUT = 9_000_000_000  # etcd's maximum ("too large lease TTL")

DEFAULT_LEASE_TIMEOUT = 30.0

MAX_PRIORITY = 100

MAX_WEIGHT = 32
"""Maximum number of slots that one lease may hold. They are taken or given back in one transaction,
and etcd allows 128 operations in one: a compare and a write for each slot, plus the grants to other
waiters."""

MAX_SLOTS = 256
"""Maximum number of slots that one start of a rate limit may take. They are given back in parts of
`MAX_WEIGHT`."""

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


def check_name(name: object) -> str:
    """Return `name` if it is a valid semaphore name, else raise InvalidName.

    The character set is restricted so that no name can reach into another semaphore's keys.
    """
    if not isinstance(name, str):
        raise InvalidName(f"a semaphore name must be a string, not {type(name).__name__}")
    if _NAME.fullmatch(name) is None:
        shown = name if len(name) <= 60 else name[:57] + "..."
        raise InvalidName(
            f"invalid semaphore name {shown!r}: use 1 to 128 of the characters A-Z a-z 0-9 . _ -"
        )
    if name in (".", ".."):
        raise InvalidName(f"invalid semaphore name {name!r}: reserved, since it looks like a path")
    return name


def check_limit(limit: Any, *, least: int = 1) -> int:
    """Return `limit` as an int if it is a valid limit from `least`, else raise InvalidSetting.

    Any integer type is accepted, NumPy's included; True, 2.0 and "2" are not.
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
    """Return `weight` as an int if it is a valid weight, else raise InvalidSetting."""
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


def check_max_waiting(number: int | None) -> int | None:
    """Return it if it is None or a whole number from 0 up, else raise InvalidSetting."""
    if number is None or (isinstance(number, int) and not isinstance(number, bool) and number >= 0):
        return number
    raise InvalidSetting(f"max_waiting must be None or a whole number from 0 up, not {number!r}")


def check_cost(cost: Any, *, least: int = 1, what: str = "cost") -> int:
    """Return `cost`, a number of permits, as an int if it is one from `least`, else raise
    InvalidSetting.
    """
    if isinstance(cost, bool) or not hasattr(cost, "__index__") or cost.__index__() < least:
        raise InvalidSetting(f"{what} must be a whole number from {least}, not {cost!r}")
    return int(cost.__index__())


def check_priority(priority: Any) -> int:
    """Return `priority` as an int if it is a valid priority, else raise InvalidSetting."""
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
    """Convert a duration to seconds: a number of seconds, ``"250ms"``, ``"1m30s"``, ``"5 minutes"``
    (as in Dask) or a `timedelta`. `what` names the setting in the error message.

    Raises InvalidSetting if it cannot be read or is NaN. Negative and infinite values pass; their
    meaning depends on where the duration is used.
    """
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, str):
        text = value.strip().replace(" ", "")
        if _PLAIN_NUMBER.fullmatch(text):
            return float(text)
        if (words := _IN_WORDS.fullmatch(text.lower())) is not None:
            return float(words[1]) * _UNITS[words[2]]
        import durationpy  # imported on demand: most programs pass numbers

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
        f"{what}: invalid duration {value!r}: give seconds (1.5), or 250ms, 30s, 1m30s, 2h"
    )


def timeout_seconds(value: Duration | None, *, what: str = "timeout") -> float | None:
    """Convert a timeout to seconds: None waits forever, 0 tries once, a negative value raises
    InvalidSetting.
    """
    if value is None:
        return None
    number = seconds(value, what=what)
    if number < 0:
        raise InvalidSetting(f"{what} must not be negative: {value!r} (0 tries once)")
    return None if math.isinf(number) else number


def max_hold_seconds(value: Duration | None, *, what: str = "max_hold") -> float | None:
    """Convert max_hold, the longest time a lease may be held, to seconds. None (or infinity) means
    no bound. Raises InvalidSetting if it is not positive.
    """
    if value is None:
        return None
    number = seconds(value, what=what)
    if number <= 0:
        raise InvalidSetting(f"{what} must be greater than 0: {value!r}; None sets no bound")
    return None if math.isinf(number) else number


MAX_PAUSE = 365 * 86400.0
"""Seconds that a pause which ends by itself may last."""


def pause_seconds(value: Duration) -> float:
    """Convert the duration of a pause to seconds. Raises InvalidSetting if it is not positive, or
    longer than `MAX_PAUSE`.
    """
    number = seconds(value, what="duration")
    if not 0 < number <= MAX_PAUSE:
        raise InvalidSetting(f"duration must be greater than 0 and at most 365d: {value!r}")
    return number


MAX_LINGER = 1.0
"""Seconds that a released slot may stay with its client."""


def linger_seconds(value: Duration | None, *, what: str = "linger") -> float:
    """Convert linger, the time for which a released slot stays with its client, to seconds; None
    means 0. Raises InvalidSetting if it is negative or longer than `MAX_LINGER`.
    """
    number = 0.0 if value is None else seconds(value, what=what)
    if not 0 <= number <= MAX_LINGER:
        raise InvalidSetting(f"{what} must be from 0 to 1s: {value!r}")
    return number


MIN_EXPIRES = 600.0
"""Seconds that a name without users must stay at least. Programs may be suspended for minutes, and
a leader of etcd that was stopped for longer than a lease's TTL ends the lease when it resumes."""

UNNAMED_EXPIRES = 86400
"""Seconds after which a semaphore without a given name expires by default."""


def expires_seconds(value: Duration | None, *, period: float = 0.0, what: str = "expires") -> int:
    """Convert expires, the time for which a name stays that nobody uses, to whole seconds, rounded
    up; None or infinity means for good, and is 0. Raises InvalidSetting if it is shorter than
    `MIN_EXPIRES`, or than two periods of a rate limit.
    """
    number = math.inf if value is None else seconds(value, what=what)
    if number == math.inf:
        return 0
    if not MIN_EXPIRES <= number <= MAX_LEASE_TIMEOUT:
        raise InvalidSetting(
            f"{what} must be from {duration_text(MIN_EXPIRES)} to {MAX_LEASE_TIMEOUT}s, not "
            f"{value!r}"
        )
    if number < 2 * period:
        raise InvalidSetting(
            f"{what} must be at least two periods of the rate limit, {duration_text(2 * period)}, "
            f"not {value!r}"
        )
    return math.ceil(number)


def warning_ahead(max_hold: float) -> float:
    """Seconds before the end of max_hold at which a warning is due: a tenth of max_hold, between
    1 s and 60 s, and never more than half of it.
    """
    return min(max(1.0, min(60.0, max_hold / 10)), max_hold / 2)


MOST_BLOCKS = MAX_SLOTS
"""Maximum number of blocks by default. Rates with more starts per period are divided into blocks so
that reading all of them stays cheap."""

MIN_PERIOD = 0.1


def default_block(starts: int) -> int:
    """The default number of starts per block."""
    return max(1, math.ceil(starts / MOST_BLOCKS))


def make_rate(limit: Any, period: Duration, block: Any = None) -> Rate:
    """Return the rate of `limit` starts per `period`, else raise InvalidSetting."""
    for what, number in (("limit", limit), ("block", 1 if block is None else block)):
        if isinstance(number, bool) or not hasattr(number, "__index__") or number.__index__() < 1:
            raise InvalidSetting(f"a rate's {what} must be a whole number from 1, not {number!r}")
    starts, long = int(limit.__index__()), seconds(period, what="period")
    if not MIN_PERIOD <= long <= MAX_LEASE_TIMEOUT / 2:
        raise InvalidSetting(f"a rate's period must be at least {MIN_PERIOD}s, not {period!r}")
    size = default_block(starts) if block is None else int(block.__index__())
    if not 1 <= starts // size <= MAX_LIMIT:
        raise InvalidSetting(
            f"a rate of {starts} in blocks of {size} has {starts // size} blocks; the number of "
            f"blocks must be from 1 to {MAX_LIMIT}"
        )
    return Rate(starts, round(long, 3), size)


def read_rate(text: str) -> Rate:
    """Parse ``100/1m``, or ``10000/1m/50`` (in blocks of 50). Raises InvalidSetting."""
    parts = text.strip().split("/")
    if len(parts) not in (2, 3) or not all(
        part.isascii() and part.strip().isdigit() for part in (parts[0], *parts[2:])
    ):
        raise InvalidSetting(
            f"invalid rate {text!r}: give 100/1m (100 starts in any minute), or "
            "10000/1m/50 (in blocks of 50)"
        )
    return make_rate(int(parts[0]), parts[1], *map(int, parts[2:]))


def lease_timeout_seconds(value: Duration, *, what: str = "lease_timeout") -> int:
    """Convert a lease timeout to whole seconds, rounded up: from 2 (etcd's minimum) to
    9 000 000 000. Raises InvalidSetting.
    """
    number = seconds(value, what=what)
    if not MIN_LEASE_TIMEOUT <= number <= MAX_LEASE_TIMEOUT:
        raise InvalidSetting(
            f"{what} must be from {MIN_LEASE_TIMEOUT}s (etcd's minimum; 15s or more is "
            f"recommended) to {MAX_LEASE_TIMEOUT}s, not {value!r}"
        )
    return math.ceil(number)


def check_labels(labels: Mapping[str, str] | None) -> dict[str, str]:
    """Return the labels as a dict if they are valid, else raise InvalidSetting.

    Keys are 1 to 63 of ``A-Z a-z 0-9 . _ / -``; values have at most 253 printable characters, as in
    Kubernetes metadata. At most 16 labels are allowed because each hand-over carries them.
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
    """Return a holder's labels: those of ``ETCDSEM_LABELS`` (``pod=a,node=b``, set by whoever
    started the process) merged with `given`, which take precedence. Raises InvalidSetting.
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
    """Return `value` if it is at most 253 printable characters, else raise InvalidSetting."""
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
    """Return the key prefix without a trailing slash; it must start with a slash. Raises
    InvalidSetting.
    """
    if (
        not isinstance(prefix, str)
        or re.fullmatch(r"(/[A-Za-z0-9._-]{1,128})+/?", prefix, re.ASCII) is None
    ):
        raise InvalidSetting(
            f"invalid prefix {prefix!r}: give a path such as /etcdsem or /team/etcdsem "
            "(characters A-Z a-z 0-9 . _ - between single slashes)"
        )
    return prefix.rstrip("/")


def environment(name: str) -> str | None:
    """The value of an environment variable, stripped of whitespace; None if unset or empty."""
    value = os.environ.get(name, "").strip()
    return value or None


def dask_setting(name: str) -> Any:
    """Dask's ``distributed.scheduler.locks`` setting; None if it is not set or Dask is not loaded.
    Dask is never imported for this.
    """
    get = getattr(sys.modules.get("dask.config"), "get", None)
    return None if get is None else get(f"distributed.scheduler.locks.{name}", None)
