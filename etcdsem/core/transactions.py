"""The protocol's transactions, and how their answers are read.

    JOIN / TRY  take a free slot, or stand in line (TRY: or not at all)
    DROP        give a slot back; nobody waits
    PASS        give it to the first of the known waiters who still waits
    CLEAR       give it back; somebody waited, but the queue is empty
    RETIRE      give back a slot above the limit; nobody gets it
    FILL        give a free slot to the first in line, for whoever should have done it
    LEAVE       leave the line; UNCONTEND when that emptied it
    EVICT       end one lease, by hand
    REGISTER, RESIZE, CLOSE

1. Each is right whenever it lands, however late: its conditions are checked then.
2. Never more than the limit: a slot changes from free to held only where the limit's revision is
   the one known, the slot is free and below the limit, and no slot above the limit is held; or
   (FILL with surplus) where the slots counted at a revision are fewer than the limit, and none
   has been created since.
3. Exact FIFO: a slot goes to a waiter only if the waiter's *create revision* is the one known.
   Mere presence would serve one who left and came back in the place of its former stay.
4. A held slot's key is never rewritten: its mod revision is the fencing token. A letter is put in
   the same transaction, so its mod revision is the same number.
5. Comparisons over a range that may be empty: etcd compares one absent key, all numbers 0.
6. Every operation that decides is a write, or a linearizable read: etcd answers a transaction
   without operations from local, perhaps stale, state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from etcdsem.core.commands import (
    Compare,
    Delete,
    KeyValue,
    Operation,
    Put,
    Range,
    RangeReply,
    Txn,
    TxnReply,
)
from etcdsem.core.keys import (
    Identity,
    Keys,
    Limit,
    Queued,
    read_limit,
    read_queue,
    record,
    slot_number,
    write_letter,
)

MAX_DEPTH = 16
"""Nested transactions at most: protobuf's Python messages stop at 100 levels, a nested
transaction takes two, and etcd subtracts each level's operations from its 128."""

QUEUE_READ = 32
"""Waiters read at a time. Their list travels with the slot from holder to holder."""

COUNT_BY_NAME = 64
"""Limits up to this are counted by the slots' names in JOIN; above it junk is counted too, and
what it hides is found by the next look."""

_HERE = b"1"


class Held(NamedTuple):
    """JOIN or FILL gave a slot."""

    slot: int
    token: int


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


# ---------------------------------------------------------------- conditions


def _limit_is(keys: Keys, limit: Limit) -> Compare:
    return Compare(keys.max_leases, "mod", "=", limit.revision)


def _no_surplus(keys: Keys, limit: Limit) -> Compare:
    return Compare(keys.slot(limit.room), "create", "=", 0, end=keys.leases_end)


def _free(keys: Keys, slot: int) -> Compare:
    return Compare(keys.slot(slot), "create", "=", 0)


def _mine(keys: Keys, slot: int, token: int) -> Compare:
    return Compare(keys.slot(slot), "mod", "=", token)


def _known(keys: Keys) -> Compare:
    return Compare(keys.max_leases, "create", ">", 0)


def _uncontended(keys: Keys) -> Compare:
    return Compare(keys.contended, "create", "=", 0)


def _waits(keys: Keys, waiter: Queued) -> Compare:
    return Compare(keys.waiter(waiter.who), "create", "=", waiter.created)


def _none_held_since(keys: Keys, revision: int) -> Compare:
    return Compare(keys.leases, "create", "<", revision + 1, end=keys.leases_end)


def _none_waits_since(keys: Keys, revision: int) -> Compare:
    return Compare(keys.waiters, "create", "<", revision + 1, end=keys.waiters_end)


# ---------------------------------------------------------------- looking


def look(keys: Keys, queue: int = QUEUE_READ) -> tuple[Range, ...]:
    """The reads behind `read_look`; `queue` 0 reads all waiters."""
    return (
        Range(keys.max_leases),
        Range(keys.leases, keys.leases_end, keys_only=True),
        Range(keys.waiters, keys.waiters_end, limit=queue, oldest_first=True),
        Range(keys.contended, keys_only=True),
    )


def read_look(keys: Keys, reply: TxnReply, revision: int) -> Look:
    """Read the answers to `look`."""
    limit, slots, waiters, contended = map(as_range, reply.replies)
    return Look(
        revision=revision,
        limit=read_limit(limit.kvs[0]) if limit.kvs else None,
        slots=slots.kvs,
        queue=read_queue(keys, waiters.kvs),
        complete=waiters.count <= len(waiters.kvs),
        contended=bool(contended.kvs),
    )


def as_range(reply: object) -> RangeReply:
    """The answer to a Range, as its type."""
    if not isinstance(reply, RangeReply):
        raise AssertionError(f"a range was asked for, and etcd's answer is {reply!r}")
    return reply


def _as_txn(reply: object) -> TxnReply:
    if not isinstance(reply, TxnReply):
        raise AssertionError(f"a transaction was nested, and etcd's answer is {reply!r}")
    return reply


# ---------------------------------------------------------------- JOIN, TRY


def join(
    keys: Keys,
    limit: Limit,
    slots: Sequence[int],
    lease: int,
    who: bytes,
    identity: Identity,
    wall: float,
    *,
    stand_in_line: bool,
    counted_at: int = 0,
) -> Txn:
    """JOIN, or without `stand_in_line` TRY.

    `counted_at`: the held slots were counted at this revision and are fewer than the limit. Then
    that none was created since stands in for "nobody above the limit" (junk may sort there).
    """
    if any(slot >= limit.room for slot in slots):
        raise AssertionError(f"slots {slots} were not chosen by the limit {limit}")
    tail: tuple[Operation, ...] = (Range(keys.max_leases), _count(keys, limit))
    if stand_in_line:
        waiting = record(identity.client, identity.extras, lease, "since", wall)
        tail = (
            Put(keys.waiter(who), waiting, lease),
            Put(keys.contended, _HERE),
            *tail,
        )
    else:
        tail = (*tail, Range(keys.contended, count_only=True))
    branch = tail
    if slots:
        holding = record(identity.client, identity.extras, lease, "acquired", wall)
        for slot in reversed(slots):
            put = (Put(keys.slot(slot), holding, lease),)
            branch = (Txn((_free(keys, slot),), put, branch),)
    guard = _none_held_since(keys, counted_at) if counted_at else _no_surplus(keys, limit)
    return Txn(
        compare=(_limit_is(keys, limit), guard, _uncontended(keys)),
        success=branch,
        failure=(Txn((_known(keys),), tail),),
    )


def _count(keys: Keys, limit: Limit) -> Range:
    """How many are held. Few are read by name, so that junk is not counted."""
    few = limit.room <= COUNT_BY_NAME
    return Range(
        keys.leases,
        keys.leases_end,
        limit=2 * COUNT_BY_NAME if few else 0,
        keys_only=few,
        count_only=not few,
    )


def _counted(keys: Keys, found: RangeReply) -> int:
    if len(found.kvs) < found.count:
        return found.count  # not read by name, or too many to be
    return sum(slot_number(keys, kv.key) is not None for kv in found.kvs)


def read_join(
    keys: Keys, reply: TxnReply, slots: Sequence[int], *, stand_in_line: bool
) -> Held | Waiting | Full:
    """Which of the three it was."""
    inner = reply
    if reply.succeeded:
        for slot in slots:
            inner = _as_txn(inner.replies[0])
            if inner.succeeded:
                return Held(slot, reply.revision)
    else:
        inner = _as_txn(reply.replies[0])
        if not inner.succeeded:
            return Full(0, False, None)
    found, count = map(as_range, inner.replies[2:4] if stand_in_line else inner.replies[:2])
    limit = read_limit(found.kvs[0]) if found.kvs else None
    if stand_in_line:
        return Waiting(reply.revision, _counted(keys, count), limit)
    return Full(_counted(keys, count), as_range(inner.replies[2]).count > 0, limit)


# ---------------------------------------------------------------- giving back


class Mine(NamedTuple):
    """The slot that is given back. `letter`: it came with one, which goes too."""

    slot: int
    token: int
    who: bytes
    letter: bool


def _delete_mine(keys: Keys, mine: Mine) -> tuple[Operation, ...]:
    if mine.letter:
        return (Delete(keys.slot(mine.slot)), Delete(keys.letter(mine.who)))
    return (Delete(keys.slot(mine.slot)),)


def drop(keys: Keys, mine: Mine) -> Txn:
    """DROP: success means given back; else a Look."""
    return Txn(
        (_mine(keys, mine.slot, mine.token), _uncontended(keys)),
        _delete_mine(keys, mine),
        look(keys),
    )


def pass_on(
    keys: Keys, mine: Mine, limit: Limit, queue: Sequence[Queued], depth: int, wall: float
) -> Txn:
    """PASS to the first of `queue` that still waits, trying `depth` of them.

    Success with the innermost else, and failure, bring a Look: see `read_pass`.
    """
    branch: tuple[Operation, ...] = look(keys)
    forget = (Delete(keys.letter(mine.who)),) if mine.letter else ()
    for place in range(min(depth, len(queue)) - 1, -1, -1):
        waiter = queue[place]
        give = (*_give(keys, mine.slot, waiter, queue[place + 1 :], wall), *forget)
        branch = (Txn((_waits(keys, waiter),), give, branch),)
    return Txn(
        (
            _mine(keys, mine.slot, mine.token),
            _limit_is(keys, limit),
            _no_surplus(keys, limit),
        ),
        branch,
        look(keys),
    )


def _give(
    keys: Keys, slot: int, waiter: Queued, behind: Sequence[Queued], wall: float
) -> tuple[Operation, ...]:
    holding = record(waiter.client, waiter.extras, waiter.lease, "acquired", wall)
    return (
        Put(keys.slot(slot), holding, waiter.lease),
        Delete(keys.waiter(waiter.who)),
        Put(keys.letter(waiter.who), write_letter(slot, behind), waiter.lease),
    )


def read_pass(keys: Keys, reply: TxnReply, depth: int) -> Look | None:
    """None if it was passed on, else what the releaser must look at."""
    inner = reply
    if reply.succeeded:
        for _ in range(depth):
            inner = _as_txn(inner.replies[0])
            if inner.succeeded:
                return None
    return read_look(keys, inner, reply.revision)


def clear(keys: Keys, mine: Mine, revision: int) -> Txn:
    """CLEAR: nobody waited at `revision`, nor came since. Failure brings a Look."""
    return Txn(
        (_mine(keys, mine.slot, mine.token), _none_waits_since(keys, revision)),
        (*_delete_mine(keys, mine), Delete(keys.contended)),
        look(keys),
    )


def retire(keys: Keys, mine: Mine) -> Txn:
    """RETIRE: give the slot to nobody."""
    return Txn((_mine(keys, mine.slot, mine.token),), _delete_mine(keys, mine))


# ---------------------------------------------------------------- healing


def fill(
    keys: Keys,
    seen: Look,
    slot: int,
    waiter: Queued,
    behind: Sequence[Queued],
    wall: float,
    *,
    surplus: bool,
) -> Txn:
    """FILL a free slot for the first in line. Failure brings a Look."""
    if seen.limit is None:
        raise AssertionError("there is nothing to fill in a semaphore without a limit")
    guard = _none_held_since(keys, seen.revision) if surplus else _no_surplus(keys, seen.limit)
    return Txn(
        (_limit_is(keys, seen.limit), _free(keys, slot), _waits(keys, waiter), guard),
        _give(keys, slot, waiter, behind, wall),
        look(keys),
    )


def uncontend(keys: Keys, revision: int) -> Txn:
    """Take the mark away: nobody waited at `revision`, nor came since."""
    return Txn((_none_waits_since(keys, revision),), (Delete(keys.contended),))


# ---------------------------------------------------------------- waiting


def leave(keys: Keys, who: bytes, created: int) -> Txn:
    """LEAVE: success means gone from the line, else the letter, if there is one."""
    return Txn(
        (Compare(keys.waiter(who), "create", "=", created),),
        (
            Delete(keys.waiter(who)),
            Range(keys.waiters, keys.waiters_end, limit=1, keys_only=True),
        ),
        (Range(keys.letter(who)),),
    )


def read_leave(reply: TxnReply) -> tuple[bool, KeyValue | None, bool]:
    """(left, letter, the line is empty now)."""
    found = as_range(reply.replies[-1])
    if reply.succeeded:
        return True, None, found.count == 0
    return False, found.kvs[0] if found.kvs else None, False


def recheck(keys: Keys) -> Txn:
    """What all local waiters of a client need to know, if no watch told them."""
    return Txn(
        (),
        (
            Range(keys.my_waiters, keys.my_waiters_end, keys_only=True),
            Range(keys.my_grants, keys.my_grants_end),
            Range(keys.max_leases),
            Range(keys.leases, keys.leases_end, count_only=True),
        ),
    )


class Recheck(NamedTuple):
    """The answer to `recheck`."""

    revision: int
    waiting: frozenset[bytes]
    letters: tuple[KeyValue, ...]
    limit: Limit | None
    held: int


def read_recheck(keys: Keys, reply: TxnReply) -> Recheck:
    """Read the answers to `recheck`."""
    waiting, letters, limit, count = map(as_range, reply.replies)
    return Recheck(
        revision=reply.revision,
        waiting=frozenset(kv.key[len(keys.waiters) :] for kv in waiting.kvs),
        letters=letters.kvs,
        limit=read_limit(limit.kvs[0]) if limit.kvs else None,
        held=count.count,
    )


# ---------------------------------------------------------------- the semaphore as a whole


def register(keys: Keys, max_leases: int) -> Txn:
    """REGISTER: success means that it is new; else the registered limit."""
    return Txn(
        (Compare(keys.max_leases, "create", "=", 0),),
        (Put(keys.max_leases, b"%d" % max_leases),),
        (Range(keys.max_leases),),
    )


def resize(keys: Keys, max_leases: int) -> Txn:
    """RESIZE a semaphore that is known; brings the limit as it was."""
    return Txn(
        (_known(keys),),
        (Range(keys.max_leases), Put(keys.max_leases, b"%d" % max_leases)),
    )


def snapshot(keys: Keys) -> Txn:
    """Everything people may want to see, at one revision."""
    return Txn(
        (),
        (
            Range(keys.max_leases),
            Range(keys.leases, keys.leases[:-1] + b"0"),
            Range(keys.waiters, keys.waiters_end, oldest_first=True),
        ),
    )


def close(keys: Keys, *, force: bool) -> Txn:
    """CLOSE: delete all keys; without `force` only if nobody holds or waits.

    Both branches bring the holders' and the waiters' keys.
    """
    reads = (
        Range(keys.leases, keys.leases_end),
        Range(keys.waiters, keys.waiters_end, oldest_first=True),
    )
    unused = (
        Compare(keys.leases, "create", "=", 0, end=keys.leases_end),
        Compare(keys.waiters, "create", "=", 0, end=keys.waiters_end),
    )
    return Txn(
        (_known(keys), *(() if force else unused)),
        (*reads, Delete(keys.base, keys.base_end)),
        (*reads, Range(keys.max_leases, count_only=True)),
    )


def evict_slot(keys: Keys, slot: int, token: int, who: bytes | None) -> Txn:
    """EVICT exactly this holder: its key goes, so nobody else can lose a slot by it."""
    letter = (Delete(keys.letter(who)),) if who else ()
    return Txn((_mine(keys, slot, token),), (Delete(keys.slot(slot)), *letter))


def evict_waiter(keys: Keys, who: bytes, created: int) -> Txn:
    """EVICT exactly this waiter."""
    key = keys.waiter(who)
    return Txn((Compare(key, "create", "=", created),), (Delete(key),))
