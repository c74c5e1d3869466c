"""The conditions of transactions, and a look at the whole state."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

from etcdsem.core.commands import (
    Compare,
    Fixed,
    KeyValue,
    Operation,
    Put,
    Range,
    RangeReply,
    Txn,
    TxnReply,
)
from etcdsem.core.keys import (
    Keys,
    Limit,
    Queued,
    permit_slot,
    plain_start,
    read_limit,
    read_permit,
    read_queue,
    slot_number,
)
from etcdsem.validation import MAX_WEIGHT

MAX_DEPTH = 16
"""Maximum nesting of transactions: protobuf's Python messages stop at 100 levels, a nested
transaction takes two, and etcd subtracts each level's operations from its 128."""

QUEUE_READ = 32
"""Waiters read at a time. Their list travels with the slot from holder to holder."""

MAX_LISTED = 64
"""Waiters that a client remembers, and lists in a grant message."""

UNLIKELY_LISTED = 8
"""The same for the grant messages of a PASS that are probably not sent."""

COUNT_BY_NAME = 64
"""Up to this limit JOIN counts held slots by name; above it junk is counted too, and free slots
that this hides are found by the next look."""

HERE = b"1"


class Held(NamedTuple):
    """JOIN or FILL granted a slot; with a weight above 1 also `more`."""

    slot: int
    token: int
    more: tuple[int, ...] = ()


class Waiting(NamedTuple):
    """JOIN put us in the queue. `held` slots were taken; `limit` is the one in force then."""

    created: int
    held: int
    limit: Limit | None
    waiting: int = 0
    """How many wait, ourselves included; 0 if JOIN was not to count them."""


class TryFull(NamedTuple):
    """TRY took nothing. `limit` None: the semaphore is not registered."""

    held: int
    contended: bool
    limit: Limit | None


class PermitRecords(NamedTuple):
    """The records of permits of a rate limit, of slots that nobody holds."""

    blocked: Mapping[int, float]
    """Slots that must not be taken yet, and for how many seconds."""
    over: Mapping[int, int]
    """Slots whose record's time is over, and its revision."""


NO_RECORDS = PermitRecords(MappingProxyType({}), MappingProxyType({}))


class Look(NamedTuple):
    """What a decision needs to know, at one revision."""

    revision: int
    limit: Limit | None
    slots: tuple[KeyValue, ...]
    queue: tuple[Queued, ...]
    complete: bool
    """False if there may be waiters behind the ones in `queue`."""
    contended: bool
    waiting: int = 0
    """Number of keys in the queue, including those behind the ones in `queue`."""
    priorities: int = 0
    """The mod revision of the mark that priorities are in use; 0 if they are not. With priorities
    the queue is sorted by them, which is meaningless if it is not complete."""
    records: PermitRecords | None = None
    """None if they were not read: a semaphore has none."""

    @property
    def until(self) -> int:
        """All current waiters that joined up to this revision are in `queue`."""
        if self.complete:
            return self.revision
        return self.queue[-1].created if self.queue else 0

    @property
    def has_waiters(self) -> bool:
        """Is anybody in the queue? The mark alone may be left over."""
        return self.contended and (bool(self.queue) or not self.complete)


class HeldSlots(NamedTuple):
    """The slot to give back. `has_message`: it came with a grant message, which must be deleted
    too. `permit`: it may have a permit's record, likewise.
    """

    slot: int
    token: int
    who: bytes
    has_message: bool
    more: tuple[int, ...] = ()
    """The other slots of a lease that holds several."""
    permit: bool = False

    @property
    def slots(self) -> tuple[int, ...]:
        """All slots of the lease."""
        return (self.slot, *self.more)

    @property
    def parts(self) -> list[HeldSlots]:
        """Parts that fit into a transaction each. The grant message goes with the first."""
        if len(self.more) < MAX_WEIGHT:
            return [self]
        slots = self.slots
        pieces = [slots[at : at + MAX_WEIGHT] for at in range(0, len(slots), MAX_WEIGHT)]
        return [
            self._replace(
                slot=piece[0], more=piece[1:], has_message=self.has_message and piece is pieces[0]
            )
            for piece in pieces
        ]


def limit_is(keys: Keys, limit: Limit) -> Compare:
    """The limit is still the one that was used to choose the slots."""
    return Compare(keys.max_leases, "mod", "=", limit.revision)


def no_surplus(keys: Keys, limit: Limit) -> Compare:
    """No slot at or above the limit is held."""
    return Compare(keys.slot(limit.room), "create", "=", 0, end=keys.leases_end)


def slot_is_free(keys: Keys, slot: int) -> Compare:
    """Nobody holds the slot."""
    return Compare(keys.slot(slot), "create", "=", 0)


def slot_is_mine(keys: Keys, slot: int, token: int) -> Compare:
    """The slot is held by the grant with this token."""
    return Compare(keys.slot(slot), "mod", "=", token)


def all_are_mine(keys: Keys, mine: HeldSlots) -> tuple[Compare, ...]:
    """All slots of the lease are held by it."""
    return tuple(slot_is_mine(keys, slot, mine.token) for slot in mine.slots)


def mark(keys: Keys, key: bytes, lease: int) -> Operation:
    """Put a mark. If the name expires, with `lease`, so does the mark, unless the name has got
    another lease meanwhile: then this one may be gone, and etcd would refuse the transaction.
    """
    if not lease:
        return Put(key, HERE)
    same = Compare(keys.max_leases, "lease", "=", lease)
    return Txn((same,), (Put(key, HERE, lease),), (Put(key, HERE),))


def is_known(keys: Keys) -> Compare:
    """The semaphore is registered."""
    return Compare(keys.max_leases, "create", ">", 0)


def uncontended(keys: Keys) -> Compare:
    """Nobody is in the queue, according to the mark."""
    return Compare(keys.contended, "create", "=", 0)


def still_waits(keys: Keys, waiter: Queued) -> Compare:
    """It has been waiting since that very revision."""
    return Compare(keys.waiter(waiter.who), "create", "=", waiter.created)


def waits_alone(keys: Keys, waiter: Queued) -> tuple[Compare, ...]:
    """It is in the queue, whenever it joined, with a record without extras; and nobody else is."""
    key, start = keys.waiter(waiter.who), plain_start(waiter.client, waiter.lease, "since")
    return (
        Compare(keys.waiters, "lease", "=", waiter.lease, end=keys.waiters_end),
        Compare(key, "value", ">", 0, value=start),
        Compare(key, "value", "<", 0, value=start + b":"),  # which is above all digits
    )


def priorities_are(keys: Keys, revision: int) -> Compare:
    """The priorities mark is unchanged."""
    return Compare(keys.priorities, "mod", "=", revision)


def may_be_next(keys: Keys, waiter: Queued, seen: int) -> tuple[Compare, ...]:
    """Nobody can have joined ahead of it since the queue was read at revision `seen`."""
    return (none_waits_since(keys, seen),) if waiter.demand.priority < 0 else ()


def none_held_since(keys: Keys, revision: int) -> Compare:
    """No slot was taken since that revision."""
    return Compare(keys.leases, "create", "<", revision + 1, end=keys.leases_end)


def none_recorded_since(keys: Keys, revision: int) -> Compare:
    """No permit's record was put since that revision."""
    return Compare(keys.permits, "mod", "<", revision + 1, end=keys.permits_end)


def none_waits_since(keys: Keys, revision: int) -> Compare:
    """Nobody joined the queue since that revision."""
    return Compare(keys.waiters, "create", "<", revision + 1, end=keys.waiters_end)


# ---------------------------------------------------------------- looks


def first_waiters(keys: Keys, queue: int = QUEUE_READ) -> Range:
    """The first waiters in the queue."""
    return Range(keys.waiters, keys.waiters_end, limit=queue, oldest_first=True)


@lru_cache(1024)
def look(keys: Keys, queue: int = QUEUE_READ, *, records: bool = False) -> Fixed:
    """The reads behind `read_look`; `queue` 0 reads all waiters. `records`: also the records of a
    rate limit's permits.
    """
    return Fixed(
        (
            Range(keys.max_leases),
            Range(keys.leases, keys.leases_end, keys_only=True),
            first_waiters(keys, queue),
            Range(keys.contended, keys_only=True),
            Range(keys.priorities, keys_only=True),
            *((Range(keys.permits, keys.permits_end),) if records else ()),
        )
    )


def read_look(keys: Keys, reply: TxnReply, revision: int, wall: float | None = None) -> Look:
    """Read the answers to `look`; `wall` is the clock by which records of permits are judged."""
    limit, slots, waiters, contended, mark, *permits = map(as_range, reply.replies)
    priorities = mark.kvs[0].mod_revision if mark.kvs else 0
    queue = read_queue(keys, waiters.kvs)
    if priorities:
        queue = tuple(sorted(queue, key=lambda queued: queued.place))
    return Look(
        revision=revision,
        limit=read_limit(limit.kvs[0]) if limit.kvs else None,
        slots=slots.kvs,
        queue=queue,
        complete=waiters.count <= len(waiters.kvs),
        contended=bool(contended.kvs),
        waiting=waiters.count,
        priorities=priorities,
        records=None if wall is None or not permits else _judge(keys, slots, permits[0], wall),
    )


def _judge(keys: Keys, slots: RangeReply, permits: RangeReply, wall: float) -> PermitRecords:
    held = {slot_number(keys, kv.key) for kv in slots.kvs}
    blocked: dict[int, float] = {}
    over: dict[int, int] = {}
    for kv in permits.kvs:
        slot, found = permit_slot(keys, kv.key), read_permit(kv)
        if slot is None or slot in held:
            continue
        left = found.left(wall) if found else 0.0
        if left > 0.0:
            blocked[slot] = left
        else:
            over[slot] = kv.mod_revision
    return PermitRecords(blocked, over)


def as_range(reply: object) -> RangeReply:
    """The answer to a Range, as its type."""
    if not isinstance(reply, RangeReply):
        raise AssertionError(f"expected etcd's answer to a range, not {reply!r}")
    return reply


def as_txn(reply: object) -> TxnReply:
    """The reply of a nested transaction."""
    if not isinstance(reply, TxnReply):
        raise AssertionError(f"expected etcd's answer to a nested transaction, not {reply!r}")
    return reply
