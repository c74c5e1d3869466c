"""The queue, and the messages to waiters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from etcdsem.core.commands import KeyValue
from etcdsem.core.keys.layout import DIGITS, MAX_MESSAGE, SPECIAL, WHO, Keys
from etcdsem.core.keys.records import ORDINARY, Demand, demand_of, extras_of, load_record
from etcdsem.core.keys.values import timestamp


class Queued(NamedTuple):
    """A waiter as known to those that hand over. `created` identifies this stay in the queue."""

    who: bytes
    lease: int
    created: int
    extras: bytes

    @property
    def client(self) -> str:
        """The waiter's client ID."""
        return self.who.split(b"/")[0].decode()

    @property
    def demand(self) -> Demand:
        """What it requests."""
        return demand_of(load_record(self.extras)) if SPECIAL.search(self.extras) else ORDINARY

    @property
    def weight(self) -> int:
        """Number of slots that it waits for."""
        return self.demand.weight

    @property
    def place(self) -> tuple[int, int]:
        """The sort key for serving: by priority, then in order of arrival."""
        return -self.demand.priority, self.created


def fault_of_waiter(keys: Keys, kv: KeyValue) -> str | None:
    """Why a key is not a waiter's; None if it is valid."""
    match = WHO.fullmatch(kv.key[len(keys.waiters) :])
    if match is None:
        return "not a waiter's key: expected waiters/<client>/<lease>"
    if kv.lease == 0:
        return "has no etcd lease, so it can never be granted a slot; delete it"
    if kv.lease != int(match[2], 16):
        return "is attached to another etcd lease than the one it names; delete it"
    return None


def waits(keys: Keys, kv: KeyValue) -> bool:
    """Is this the key of a waiter that can be granted a slot?"""
    return fault_of_waiter(keys, kv) is None


def read_queue(keys: Keys, kvs: Iterable[KeyValue]) -> tuple[Queued, ...]:
    """The waiters in the order given, without invalid keys."""
    return tuple(
        Queued(kv.key[len(keys.waiters) :], kv.lease, kv.create_revision, extras_of(kv.value))
        for kv in kvs
        if fault_of_waiter(keys, kv) is None
    )


def write_list(queue: Iterable[Queued]) -> list[bytes]:
    """The lines of a grant message that list waiters."""
    return [b"\n%s %d %s" % (q.who, q.created, q.extras) for q in queue]


def write_message(slots: Sequence[int], lines: Iterable[bytes]) -> bytes:
    """A grant message: the slot or slots, and the next waiters as far as the sender knows.

    A long list is cut: it is only a hint, and each level of a PASS carries a grant message.
    """
    message = b"slot " + b",".join([b"%d" % slot for slot in slots]) + b"".join(lines)
    end = message.find(b"\n", MAX_MESSAGE) if len(message) > MAX_MESSAGE else -1
    return message if end < 0 else message[:end]


def read_message(value: bytes, known: int = 0) -> tuple[tuple[int, ...], tuple[Queued, ...]] | None:
    """The slots and the queue in a grant message, or None if it is not one that etcdsem wrote.

    The queue is not parsed if nobody in it joined after revision `known`.
    """
    head, *lines = value.split(b"\n")
    slots = head[5:].split(b",")
    if not head.startswith(b"slot ") or not all(map(DIGITS.fullmatch, slots)):
        return None
    queue: list[Queued] = []
    if known and lines:
        words = lines[-1].split(b" ", 2)
        if len(words) > 1 and words[1].isdigit() and int(words[1]) <= known:
            lines = []
    for line in lines:
        who, created, extras = (*line.split(b" ", 2), b"", b"")[:3]
        match = WHO.fullmatch(who)
        if match is None or not created.isdigit():
            return None
        queue.append(Queued(who, int(match[2], 16), int(created), extras))
    return tuple(map(int, slots)), tuple(queue)


_EVICTED = re.compile(rb"evicted (by .{1,300})", re.DOTALL)


def write_eviction(by: str, wall: float) -> bytes:
    """The grant message that tells a waiter that it was evicted: by whom, and when (`wall`)."""
    return f"evicted by {by} at {timestamp(wall)}".encode()


def read_eviction(value: bytes) -> str | None:
    """By whom and when, if the grant message reports an eviction; else None."""
    match = _EVICTED.fullmatch(value)
    return match[1].decode("utf-8", "replace") if match else None


def addressee(keys: Keys, message: bytes) -> int:
    """The lease of the waiter that the key of a grant message names; 0 if it is another key."""
    match = WHO.fullmatch(message[len(keys.grants) :])
    return int(match[2], 16) if match else 0
