"""What a transaction may depend on, and a look at it all."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from etcdsem.core.commands import Compare, KeyValue, Range, RangeReply, TxnReply
from etcdsem.core.keys import Keys, Limit, Queued, read_limit, read_queue

MAX_DEPTH = 16
"""Nested transactions at most: protobuf's Python messages stop at 100 levels, a nested
transaction takes two, and etcd subtracts each level's operations from its 128."""

QUEUE_READ = 32
"""Waiters read at a time. Their list travels with the slot from holder to holder."""

MAX_LISTED = 64
"""Waiters whom a client remembers, and lists in a letter."""

COUNT_BY_NAME = 64
"""Limits up to this are counted by the slots' names in JOIN; above it junk is counted too, and
what it hides is found by the next look."""

HERE = b"1"


class Held(NamedTuple):
    """JOIN or FILL gave a slot; to one who wanted several, `more` too."""

    slot: int
    token: int
    more: tuple[int, ...] = ()


class Waiting(NamedTuple):
    """JOIN put us in line. `held` slots were taken; `limit` is the one in force then."""

    created: int
    held: int
    limit: Limit | None


class Full(NamedTuple):
    """TRY gave nothing. `limit` None: the semaphore is not known."""

    held: int
    contended: bool
    limit: Limit | None


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
    """How many keys the line has, those behind the ones in `queue` too."""
    priorities: int = 0
    """The mod revision of the mark that says that priorities are in use; 0: they are not. Else the
    queue is in the order of priorities, which says nothing if it is not complete."""

    @property
    def until(self) -> int:
        """All who came up to this revision, and wait, are in `queue`."""
        if self.complete:
            return self.revision
        return self.queue[-1].created if self.queue else 0

    @property
    def has_waiters(self) -> bool:
        """Does anybody stand in the queue? The mark alone may be left over."""
        return self.contended and (bool(self.queue) or not self.complete)


class Mine(NamedTuple):
    """The slot that is given back. `letter`: it came with one, which goes too."""

    slot: int
    token: int
    who: bytes
    letter: bool
    more: tuple[int, ...] = ()
    """The others of a lease that holds several."""

    @property
    def slots(self) -> tuple[int, ...]:
        """All of them."""
        return (self.slot, *self.more)


def limit_is(keys: Keys, limit: Limit) -> Compare:
    """The limit is still the one that the slots were chosen by."""
    return Compare(keys.max_leases, "mod", "=", limit.revision)


def no_surplus(keys: Keys, limit: Limit) -> Compare:
    """No slot at or above the limit is held."""
    return Compare(keys.slot(limit.room), "create", "=", 0, end=keys.leases_end)


def slot_is_free(keys: Keys, slot: int) -> Compare:
    """Nobody holds it."""
    return Compare(keys.slot(slot), "create", "=", 0)


def slot_is_mine(keys: Keys, slot: int, token: int) -> Compare:
    """It is held by the grant with this token."""
    return Compare(keys.slot(slot), "mod", "=", token)


def all_are_mine(keys: Keys, mine: Mine) -> tuple[Compare, ...]:
    """The same for all slots of a lease."""
    return tuple(slot_is_mine(keys, slot, mine.token) for slot in mine.slots)


def is_known(keys: Keys) -> Compare:
    """The semaphore is registered."""
    return Compare(keys.max_leases, "create", ">", 0)


def uncontended(keys: Keys) -> Compare:
    """Nobody is in the queue, as the mark says."""
    return Compare(keys.contended, "create", "=", 0)


def still_waits(keys: Keys, waiter: Queued) -> Compare:
    """It waits since that very revision."""
    return Compare(keys.waiter(waiter.who), "create", "=", waiter.created)


def priorities_are(keys: Keys, revision: int) -> Compare:
    """The mark of priorities is as it was seen."""
    return Compare(keys.priorities, "mod", "=", revision)


def may_be_next(keys: Keys, waiter: Queued, seen: int) -> tuple[Compare, ...]:
    """Nobody can have come before it since the line was read at a revision."""
    return (none_waits_since(keys, seen),) if waiter.wants.priority < 0 else ()


def none_held_since(keys: Keys, revision: int) -> Compare:
    """No slot was taken since that revision."""
    return Compare(keys.leases, "create", "<", revision + 1, end=keys.leases_end)


def none_waits_since(keys: Keys, revision: int) -> Compare:
    """Nobody joined the queue since that revision."""
    return Compare(keys.waiters, "create", "<", revision + 1, end=keys.waiters_end)


# ---------------------------------------------------------------- looking


def next_in_line(keys: Keys, queue: int = QUEUE_READ) -> Range:
    """The first of the queue."""
    return Range(keys.waiters, keys.waiters_end, limit=queue, oldest_first=True)


@lru_cache(1024)
def look(keys: Keys, queue: int = QUEUE_READ) -> tuple[Range, ...]:
    """The reads behind `read_look`; `queue` 0 reads all waiters."""
    return (
        Range(keys.max_leases),
        Range(keys.leases, keys.leases_end, keys_only=True),
        next_in_line(keys, queue),
        Range(keys.contended, keys_only=True),
        Range(keys.priorities, keys_only=True),
    )


def read_look(keys: Keys, reply: TxnReply, revision: int) -> Look:
    """Read the answers to `look`."""
    limit, slots, waiters, contended, mark = map(as_range, reply.replies)
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
    )


def as_range(reply: object) -> RangeReply:
    """The answer to a Range, as its type."""
    if not isinstance(reply, RangeReply):
        raise AssertionError(f"a range was asked for, and etcd's answer is {reply!r}")
    return reply


def as_txn(reply: object) -> TxnReply:
    """The reply of a nested transaction."""
    if not isinstance(reply, TxnReply):
        raise AssertionError(f"a transaction was nested, and etcd's answer is {reply!r}")
    return reply
