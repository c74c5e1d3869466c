"""The stored form of the limit."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from etcdsem.core.commands import KeyValue
from etcdsem.core.keys.layout import DIGITS
from etcdsem.core.keys.values import moment_of, timestamp
from etcdsem.model import Pause, Rate
from etcdsem.validation import MAX_LIMIT, seconds


class Limit(NamedTuple):
    """The stored limit. `number` is None if it cannot be read: then nothing is granted."""

    number: int | None
    revision: int
    registered: bool
    """True while it is still the limit with which the semaphore was registered."""
    text: str
    paused: bool = False
    """True while an operator has paused it: nothing is granted, and the number is kept."""
    rate: Rate | None = None
    """Not None for a rate limit; `number` is then its number of blocks."""
    note: str = ""
    """What follows `` paused``."""
    lease: int = 0
    """The etcd lease with which the name expires; 0 if it stays."""
    after_pause: bytes = b""
    """What must be written once a timed pause is over; empty if it lasts until it is resumed."""

    @property
    def room(self) -> int:
        """Number of slots that may be granted."""
        return 0 if self.paused else self.number or 0

    @property
    def plain(self) -> str:
        """The number or the rate alone, in its usual form; the text if it cannot be read."""
        if self.number is None:
            return self.text
        return str(self.number if self.rate is None else self.rate)

    @property
    def pause(self) -> Pause | None:
        """Who paused it, when and why, as far as that is recorded."""
        return _read_pause(self.note) if self.paused else None


def read_limit(kv: KeyValue) -> Limit:
    """Parse ``max_leases``. Surrounding whitespace is allowed; otherwise it must be one of:

    ``5``, ``5 paused``, ``100/1m`` (a rate), ``10000/1m/50`` (a rate, in blocks of 50), each
    optionally followed by `` paused`` and any text: who paused it, since when, until when, why.
    Only a pause that says until when, in the form of `write_paused`, ends by itself. A trailing
    space marks a limit that is still the registered one although a pause was written to it.
    """
    head, _, rest = kv.value.strip(_AROUND).partition(b" ")
    words = rest.split(None, 1)
    paused = words[:1] == [b"paused"]
    number, rate = _read_number(head) if paused or not rest else (None, None)
    registered = kv.create_revision == kv.mod_revision or kv.value.endswith(_STILL)
    note = words[1][:_NOTE].decode("utf-8", "replace") if paused and len(words) > 1 else ""
    ends = number is not None and note != "" and _read_pause(note).until is not None
    return Limit(
        number=number,
        revision=kv.mod_revision,
        registered=registered,
        text=kv.value[:60].decode("utf-8", "replace"),
        paused=paused and number is not None,
        rate=rate,
        note=note,
        lease=kv.lease,
        after_pause=head + (_STILL if registered else b"") if ends else b"",
    )


_AROUND = b" \t\r\n"
_STILL = b" "
_NOTE = 2048  # bytes: an owner and a reason of 253 characters each, and some words
_PAUSED = re.compile(
    r"by (?P<by>.+?) since (?P<since>\d{4}-\d\d-\d\dT[0-9:.]+Z)"
    r"(?: until (?P<until>\d{4}-\d\d-\d\dT[0-9:.]+Z))?(?:, (?P<reason>.*))?",
    re.DOTALL,
)


def write_paused(
    kv: KeyValue, by: str, wall: float, reason: str | None, until: float | None = None
) -> bytes:
    """The value of ``max_leases`` with this pause instead of any other: by whom, when (`wall`),
    why, and until when if it ends by itself.
    """
    note = f"paused by {by} since {timestamp(wall)}"
    note += f" until {timestamp(until)}" if until is not None else ""
    note += f", {reason}" if reason else ""
    return b"%s %s%s" % (_head(kv), note.encode(), _still(kv))


def write_resumed(kv: KeyValue) -> bytes:
    """The value of ``max_leases`` without the pause."""
    return _head(kv) + _still(kv)


def write_unchanged(kv: KeyValue) -> bytes:
    """The value of ``max_leases`` as it is, for a put that only changes its etcd lease."""
    return kv.value.rstrip(_AROUND) + _still(kv)


def write_resized(kv: KeyValue, limit: int | Rate | str) -> bytes:
    """The value of ``max_leases`` with another number or rate; a pause stays."""
    rest = kv.value.strip(_AROUND)[len(_head(kv)) :]
    return str(limit).encode() + (rest if read_limit(kv).paused else b"")


def _head(kv: KeyValue) -> bytes:
    return kv.value.strip(_AROUND).partition(b" ")[0]


def _still(kv: KeyValue) -> bytes:
    return _STILL if read_limit(kv).registered else b""


def _read_pause(note: str) -> Pause:
    match = _PAUSED.fullmatch(note)
    if match is None:
        return Pause("", None, note)  # paused by hand
    fields = match.groupdict()
    since, until = moment_of(fields, "since"), moment_of(fields, "until")
    return Pause(match["by"], since, match["reason"] or "", until)


def _read_number(text: bytes) -> tuple[int | None, Rate | None]:
    first, *others = text.split(b"/")
    if not DIGITS.fullmatch(first):
        return None, None
    number = int(first)
    if not others:
        return (number if number <= MAX_LIMIT else None), None
    try:
        period = seconds(others[0].decode("ascii"))
    except ValueError:
        return None, None
    blocks = others[1:] or [b"1"]
    if len(blocks) > 1 or not DIGITS.fullmatch(blocks[0]) or not 0 < period < math.inf:
        return None, None
    block = int(blocks[0])
    slots = number // block if block else MAX_LIMIT + 1
    if slots > MAX_LIMIT:
        return None, None
    return slots, Rate(number, period, block)
