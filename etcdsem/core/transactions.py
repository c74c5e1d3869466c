"""The protocol's transactions, and how their answers are read.

    JOIN / TRY  take a free slot, or stand in line (TRY: or not at all)
    DROP        give a slot back; nobody waits
    PASS        give it to the first of the known waiters who still waits; or several to several
    CLEAR       give it back; somebody waited, but the queue is empty
    RETIRE      give back a slot above the limit; nobody gets it
    VACATE      give back what does not fit the first in line; a FILL follows
    ALL         take a slot of each of several semaphores, or none
    FILL        give free slots to the first in line, for whoever should have done it
    LEAVE       leave the line; UNCONTEND when that emptied it
    EVICT       end one lease, by hand
    REGISTER, RESIZE, PAUSE, RESUME, CLOSE

1. Each is right whenever it lands, however late: its conditions are checked then.
2. Never more than the limit: a slot changes from free to held only where the limit's revision is
   the one known, the slot is free and below the limit, and no slot above the limit is held; or
   (FILL with surplus) where the slots counted at a revision are fewer than the limit, and none
   has been created since.
3. Exact FIFO: a slot goes to a waiter only if the waiter's *create revision* is the one known.
   Mere presence would serve one who left and came back in the place of its former stay.
   With priorities in use, the order is by them first: then a grant holds only while nobody with a
   priority has come since the line was read (the mark `priorities` is put by each), and one to a
   priority below 0 only while nobody at all has.
   A lease of weight k is k slots that are taken, granted and given back together, in one
   transaction: they have the same token, and belong to the same etcd lease.
4. A held slot's key is never rewritten: its mod revision is the fencing token. A letter is put in
   the same transaction, so its mod revision is the same number.
5. Comparisons over a range that may be empty: etcd compares one absent key, all numbers 0.
6. Every operation that decides is a write, or a linearizable read: etcd answers a transaction
   without operations from local, perhaps stale, state.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
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
    ORDINARY,
    Identity,
    Keys,
    Limit,
    Queued,
    Wants,
    read_limit,
    read_queue,
    record,
    slot_number,
    write_letter,
    write_list,
)

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

_HERE = b"1"


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


# ---------------------------------------------------------------- conditions


def _limit_is(keys: Keys, limit: Limit) -> Compare:
    return Compare(keys.max_leases, "mod", "=", limit.revision)


def _no_surplus(keys: Keys, limit: Limit) -> Compare:
    return Compare(keys.slot(limit.room), "create", "=", 0, end=keys.leases_end)


def _free(keys: Keys, slot: int) -> Compare:
    return Compare(keys.slot(slot), "create", "=", 0)


def _mine(keys: Keys, slot: int, token: int) -> Compare:
    return Compare(keys.slot(slot), "mod", "=", token)


def _all_mine(keys: Keys, mine: Mine) -> tuple[Compare, ...]:
    return tuple(_mine(keys, slot, mine.token) for slot in mine.slots)


def _known(keys: Keys) -> Compare:
    return Compare(keys.max_leases, "create", ">", 0)


def _uncontended(keys: Keys) -> Compare:
    return Compare(keys.contended, "create", "=", 0)


def _waits(keys: Keys, waiter: Queued) -> Compare:
    return Compare(keys.waiter(waiter.who), "create", "=", waiter.created)


def _priorities_are(keys: Keys, revision: int) -> Compare:
    return Compare(keys.priorities, "mod", "=", revision)


def _may_be_next(keys: Keys, waiter: Queued, seen: int) -> tuple[Compare, ...]:
    """Nobody can have come before it since the line was read at a revision."""
    return (_none_waits_since(keys, seen),) if waiter.wants.priority < 0 else ()


def _none_held_since(keys: Keys, revision: int) -> Compare:
    return Compare(keys.leases, "create", "<", revision + 1, end=keys.leases_end)


def _none_waits_since(keys: Keys, revision: int) -> Compare:
    return Compare(keys.waiters, "create", "<", revision + 1, end=keys.waiters_end)


# ---------------------------------------------------------------- looking


def _next_in_line(keys: Keys, queue: int = QUEUE_READ) -> Range:
    return Range(keys.waiters, keys.waiters_end, limit=queue, oldest_first=True)


@lru_cache(1024)
def look(keys: Keys, queue: int = QUEUE_READ) -> tuple[Range, ...]:
    """The reads behind `read_look`; `queue` 0 reads all waiters."""
    return (
        Range(keys.max_leases),
        Range(keys.leases, keys.leases_end, keys_only=True),
        _next_in_line(keys, queue),
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
    wants: Wants = ORDINARY,
) -> Txn:
    """JOIN, or without `stand_in_line` TRY. It takes the first of `slots` that is free; with a
    weight above 1 all of them, which are so many, or none.

    `counted_at`: the held slots were counted at this revision and are fewer than the limit. Then
    that none was created since stands in for "nobody above the limit" (junk may sort there).
    """
    if any(slot >= limit.room for slot in slots):
        raise AssertionError(f"slots {slots} were not chosen by the limit {limit}")
    tail: tuple[Operation, ...] = (
        Range(keys.max_leases),
        _count(keys, limit.room <= COUNT_BY_NAME),
    )
    if stand_in_line:
        waiting = record(identity.client, identity.extras, lease, "since", wall)
        tail = (
            Put(keys.waiter(who), waiting, lease),
            Put(keys.contended, _HERE),
            *tail,
        )
        if wants.priority:
            tail = (*tail, Put(keys.priorities, _HERE))
    else:
        tail = (*tail, Range(keys.contended, count_only=True))
    branch = tail
    if wants.weight > 1 and len(slots) not in (0, wants.weight):
        raise AssertionError(f"{len(slots)} slots for a lease of weight {wants.weight}")
    if slots:
        holding = record(identity.client, identity.extras, lease, "acquired", wall)
    if slots and wants.weight > 1:
        free = tuple(_free(keys, slot) for slot in slots)
        branch = (Txn(free, tuple(Put(keys.slot(s), holding, lease) for s in slots), tail),)
    elif slots:
        for slot in reversed(slots):
            put = (Put(keys.slot(slot), holding, lease),)
            branch = (Txn((_free(keys, slot),), put, branch),)
    guard = _none_held_since(keys, counted_at) if counted_at else _no_surplus(keys, limit)
    # Deletes a key that nobody has. Before 3.4.42 and 3.5.28 etcd does not check a role's rights
    # within nested transactions (CVE-2026-33343): who may only read is refused by this one.
    rights = Delete(keys.rights)
    return Txn(
        compare=(_limit_is(keys, limit), guard, _uncontended(keys)),
        success=(*branch, rights),
        failure=(Txn((_known(keys),), tail), rights),
    )


@lru_cache(1024)
def _count(keys: Keys, few: bool) -> Range:
    """How many are held. Few are read by name, so that junk is not counted."""
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
    keys: Keys, reply: TxnReply, slots: Sequence[int], *, stand_in_line: bool, weight: int = 1
) -> Held | Waiting | Full:
    """Which of the three it was."""
    inner = reply
    if reply.succeeded and weight > 1 and slots:
        inner = _as_txn(inner.replies[0])
        if inner.succeeded:
            return Held(slots[0], reply.revision, tuple(slots[1:]))
    elif reply.succeeded:
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
    more: tuple[int, ...] = ()
    """The others of a lease that holds several."""

    @property
    def slots(self) -> tuple[int, ...]:
        """All of them."""
        return (self.slot, *self.more)


def _delete_mine(keys: Keys, mine: Mine) -> tuple[Operation, ...]:
    slots = tuple(Delete(keys.slot(slot)) for slot in mine.slots)
    return (*slots, Delete(keys.letter(mine.who))) if mine.letter else slots


def drop(keys: Keys, mine: Mine) -> Txn:
    """DROP: success means given back; else a Look."""
    return Txn(
        (*_all_mine(keys, mine), _uncontended(keys)),
        _delete_mine(keys, mine),
        look(keys),
    )


def pass_on(
    keys: Keys,
    mine: Mine,
    limit: Limit,
    queue: Sequence[Queued],
    depth: int,
    wall: float,
    *,
    priorities: int = 0,
    seen: int = 0,
) -> Txn:
    """PASS to the first of `queue` that still waits, trying `depth` of them.

    With `priorities`, the mark's revision, `queue` is all of the line as it was `seen` at a
    revision. Who comes next is told to nobody then: it may be another by that time.

    Success with the innermost else, and failure, bring a Look: see `read_pass`.
    """
    if mine.more or any(waiter.weight > 1 for waiter in queue[:depth]):
        raise AssertionError("PASS hands one slot to one who wants one")
    branch: tuple[Operation, ...] = look(keys)
    forget = (Delete(keys.letter(mine.who)),) if mine.letter else ()
    lines = write_list(queue[:MAX_LISTED])
    for place in range(min(depth, len(queue)) - 1, -1, -1):
        waiter = queue[place]
        behind = queue[place + 1 :]
        give = (
            *_give(keys, (mine.slot,), waiter, () if priorities else lines[place + 1 :], wall),
            *forget,
            *_unmark(keys, priorities, behind),
        )
        branch = (Txn((_waits(keys, waiter), *_may_be_next(keys, waiter, seen)), give, branch),)
    return Txn(
        (
            _mine(keys, mine.slot, mine.token),
            _limit_is(keys, limit),
            _no_surplus(keys, limit),
            _priorities_are(keys, priorities),
        ),
        branch,
        look(keys),
    )


def _unmark(keys: Keys, priorities: int, behind: Sequence[Queued]) -> tuple[Operation, ...]:
    return (Delete(keys.priorities),) if end_priorities(priorities, behind) else ()


def end_priorities(priorities: int, behind: Sequence[Queued]) -> bool:
    """Is nobody with a priority left in line behind those who are served now?"""
    return priorities > 0 and not any(queued.wants.priority for queued in behind)


def _give(
    keys: Keys, slots: Sequence[int], waiter: Queued, behind: Sequence[bytes], wall: float
) -> tuple[Operation, ...]:
    holding = record(waiter.client, waiter.extras, waiter.lease, "acquired", wall)
    return (
        *(Put(keys.slot(slot), holding, waiter.lease) for slot in slots),
        Delete(keys.waiter(waiter.who)),
        Put(keys.letter(waiter.who), write_letter(slots, behind), waiter.lease),
    )


def read_pass(keys: Keys, reply: TxnReply, tried: Sequence[Queued]) -> Queued | Look:
    """Who got it, of those who were tried; else what the releaser must look at."""
    inner = reply
    if reply.succeeded:
        for waiter in tried:
            inner = _as_txn(inner.replies[0])
            if inner.succeeded:
                return waiter
    return read_look(keys, inner, reply.revision)


def clear(keys: Keys, mine: Mine, revision: int) -> Txn:
    """CLEAR: nobody waited at `revision`, nor came since. Failure brings a Look."""
    return Txn(
        (*_all_mine(keys, mine), _none_waits_since(keys, revision)),
        (*_delete_mine(keys, mine), Delete(keys.contended), Delete(keys.priorities)),
        look(keys),
    )


def retire(keys: Keys, mine: Mine) -> Txn:
    """RETIRE: give the slot to nobody."""
    return Txn(_all_mine(keys, mine), _delete_mine(keys, mine))


def vacate(keys: Keys, mine: Mine) -> Txn:
    """VACATE: what is given back is not what the first in line wants. Success brings a Look, after
    which the releaser does a FILL; the watches on deletes see to it if it dies before.

    The mark is put again: that tells observers that the slot was given back, and not lost.
    """
    return Txn(
        _all_mine(keys, mine),
        (*_delete_mine(keys, mine), Put(keys.contended, _HERE), *look(keys)),
    )


def read_vacate(keys: Keys, reply: TxnReply) -> Look | None:
    """What there is to FILL; None if the slots were not ours any more."""
    if not reply.succeeded:
        return None
    reads = tuple(one for one in reply.replies if isinstance(one, RangeReply))
    return read_look(keys, reply._replace(replies=reads), reply.revision)


# ---------------------------------------------------------------- several at once


class Take(NamedTuple):
    """One of a batch wants a slot, for a lease."""

    lease: int
    identity: Identity


def batch(
    keys: Keys,
    limit: Limit,
    parts: Sequence[Take | Mine],
    slots: Sequence[Sequence[int]],
    wall: float,
) -> Txn:
    """BATCH: several TRY and DROP in one transaction, each holding or failing by itself.

    `slots` says which slots each part tries, all of them different: etcd refuses a transaction
    that could write a key twice, and all comparisons see the state before it. Nothing is done
    while anybody stands in line.
    """
    takes: list[Operation] = []
    gives: list[Operation] = []
    for part, hand in zip(parts, slots, strict=True):
        if isinstance(part, Mine):
            gives.append(Txn((_mine(keys, part.slot, part.token),), _delete_mine(keys, part)))
        elif hand:
            if any(slot >= limit.room for slot in hand):
                raise AssertionError(f"slots {hand} were not chosen by the limit {limit}")
            who = part.identity
            holding = record(who.client, who.extras, part.lease, "acquired", wall)
            branch: tuple[Operation, ...] = ()
            for slot in reversed(hand):
                put = (Put(keys.slot(slot), holding, part.lease),)
                branch = (Txn((_free(keys, slot),), put, branch),)
            takes.extend(branch)
    taking = Txn((_limit_is(keys, limit), _no_surplus(keys, limit)), tuple(takes))
    return Txn((_uncontended(keys),), (taking, *gives))


class Gave(NamedTuple):
    """One of a batch has given its slot back."""


def read_batch(
    reply: TxnReply, parts: Sequence[Take | Mine], slots: Sequence[Sequence[int]]
) -> list[Held | Gave | None]:
    """What came of each part; None if nothing was done for it."""
    if not reply.succeeded:
        return [None] * len(parts)
    taking, *gives = map(_as_txn, reply.replies)
    took = iter(taking.replies)
    gave = iter(gives)
    results: list[Held | Gave | None] = []
    for part, hand in zip(parts, slots, strict=True):
        if isinstance(part, Mine):
            results.append(Gave() if next(gave).succeeded else None)
        elif hand and taking.succeeded:
            results.append(_which(_as_txn(next(took)), hand, reply.revision))
        else:
            results.append(None)
    return results


def _which(inner: TxnReply, hand: Sequence[int], revision: int) -> Held | None:
    for slot in hand:
        if inner.succeeded:
            return Held(slot, revision)
        if inner.replies:
            inner = _as_txn(inner.replies[0])
    return None


def pass_all(
    keys: Keys, limit: Limit, mines: Sequence[Mine], line: Sequence[Queued], until: int, wall: float
) -> Txn:
    """PASS of several slots at once, to as many of the first in `line`.

    `line` has all who wait of those who came up to revision `until`. A waiter who has gone leaves
    its slot where it is; everybody else of the first so many gets one, so nobody is passed over.
    Hence all of `mines` must be ours. If they are more than the line, the rest is given back, and
    the mark with it, unless somebody has come since `until`. Nothing is done while priorities are
    in use.

    Success brings who waits then, if the line is used up; failure brings a Look.
    """
    if any(mine.more for mine in mines) or any(waiter.weight > 1 for waiter in line[: len(mines)]):
        raise AssertionError("PASS hands one slot to one who wants one")
    mine_still = [_mine(keys, mine.slot, mine.token) for mine in mines]
    lines = write_list(line[len(mines) : len(mines) + MAX_LISTED])
    done: list[Operation] = []
    for mine, waiter in zip(mines, line, strict=False):
        forget = (Delete(keys.letter(mine.who)),) if mine.letter else ()
        give = _give(keys, (mine.slot,), waiter, lines, wall)
        done.append(Txn((_waits(keys, waiter),), (*give, *forget)))
    spare = [gone for mine in mines[len(line) :] for gone in _delete_mine(keys, mine)]
    if spare:
        spare.append(Delete(keys.contended))
        done.append(Txn((_none_waits_since(keys, until),), tuple(spare)))
    if not lines:
        done.append(_next_in_line(keys))
    if len({mine.slot for mine in mines}) < len(mines):
        done = []  # one of them was taken by hand, so nothing holds; etcd would refuse the rest
    return Txn(
        (*mine_still, _limit_is(keys, limit), _no_surplus(keys, limit), _priorities_are(keys, 0)),
        tuple(done),
        look(keys),
    )


class Passed(NamedTuple):
    """What PASS of several came to: for each slot whether it is done with, in order."""

    done: tuple[bool, ...]
    cleared: bool
    """The rest was given back, and nobody waited any more."""
    line: tuple[tuple[Queued, ...], int] | None
    """Who waits now, if it was read, of those who came up to a revision."""


def read_pass_all(
    keys: Keys, reply: TxnReply, mines: Sequence[Mine], line: Sequence[Queued]
) -> Passed | Look:
    """Read the answer to `pass_all`; a Look if nothing was done."""
    if not reply.succeeded:
        return read_look(keys, reply, reply.revision)
    pairs = min(len(mines), len(line))
    rest = len(mines) - pairs
    done = [_as_txn(one).succeeded for one in reply.replies[:pairs]]
    cleared = rest > 0 and _as_txn(reply.replies[pairs]).succeeded
    done += [cleared] * rest
    known = None
    if len(line) <= len(mines):
        found = as_range(reply.replies[-1])
        cut = found.count > len(found.kvs)
        until = found.kvs[-1].create_revision if cut else reply.revision
        known = read_queue(keys, found.kvs), until
    return Passed(tuple(done), cleared, known)


# ---------------------------------------------------------------- of several semaphores


class Wish(NamedTuple):
    """One of several semaphores of which a slot is wanted. `counted_at` as in `join`."""

    keys: Keys
    limit: Limit
    slot: int
    lease: int
    identity: Identity
    counted_at: int = 0


def take_all(wishes: Sequence[Wish], wall: float) -> Txn:
    """ALL: each slot, if all are free and nobody stands in any line, else nothing.

    Failure brings a Look of each.
    """
    conditions: list[Compare] = []
    puts: list[Operation] = []
    for keys, limit, slot, lease, identity, counted_at in wishes:
        if slot >= limit.room:
            raise AssertionError(f"slot {slot} was not chosen by the limit {limit}")
        guard = _none_held_since(keys, counted_at) if counted_at else _no_surplus(keys, limit)
        conditions += (_limit_is(keys, limit), guard, _uncontended(keys), _free(keys, slot))
        holding = record(identity.client, identity.extras, lease, "acquired", wall)
        puts.append(Put(keys.slot(slot), holding, lease))
    return Txn(tuple(conditions), tuple(puts), look_at_all([wish.keys for wish in wishes]))


def look_at_all(several: Sequence[Keys]) -> tuple[Range, ...]:
    """The reads behind `read_all_looks`; of each line only the first."""
    return tuple(one for keys in several for one in look(keys, queue=1))


def read_all_looks(several: Sequence[Keys], reply: TxnReply) -> list[Look]:
    """Read the answers to `look_at_all`."""
    size = len(reply.replies) // len(several)
    parts = [reply.replies[size * place : size * (place + 1)] for place in range(len(several))]
    return [
        read_look(keys, TxnReply(False, 0, part), reply.revision)
        for keys, part in zip(several, parts, strict=True)
    ]


# ---------------------------------------------------------------- healing


def fill(
    keys: Keys,
    seen: Look,
    pairs: Sequence[tuple[Sequence[int], Queued]],
    behind: Sequence[Queued],
    wall: float,
    *,
    surplus: bool,
    last: bool,
    passed: Queued | None = None,
) -> Txn:
    """FILL free slots for the first in line: all of `pairs`, or nothing. Failure brings a Look.

    `passed`: who wants more than there is, and is passed by those of `pairs` who are eager.

    `last`: nobody stood behind them, so the mark goes too, unless somebody has come since.
    """
    if seen.limit is None:
        raise AssertionError("there is nothing to fill in a semaphore without a limit")
    if surplus and len(pairs) > 1:
        raise AssertionError("the count says that there is room for one; it is not known for more")
    guard = _none_held_since(keys, seen.revision) if surplus else _no_surplus(keys, seen.limit)
    conditions = [_limit_is(keys, seen.limit), guard, _priorities_are(keys, seen.priorities)]
    if passed is not None:
        conditions.append(_waits(keys, passed))
    conditions += _may_be_next(keys, min((w for _, w in pairs), key=_priority), seen.revision)
    lines = [] if seen.priorities else write_list(behind[:MAX_LISTED])
    gives: list[Operation] = []
    for slots, waiter in pairs:
        conditions += (*(_free(keys, slot) for slot in slots), _waits(keys, waiter))
        gives += _give(keys, slots, waiter, lines, wall)
    if last:
        gives.append(uncontend(keys, seen.revision))
    else:
        gives += _unmark(keys, seen.priorities, behind)
    return Txn(tuple(conditions), tuple(gives), look(keys))


def uncontend(keys: Keys, revision: int) -> Txn:
    """Take the mark away: nobody waited at `revision`, nor came since."""
    marks = (Delete(keys.contended), Delete(keys.priorities))
    return Txn((_none_waits_since(keys, revision),), marks)


def _priority(waiter: Queued) -> int:
    return waiter.wants.priority


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


def register(keys: Keys, text: bytes) -> Txn:
    """REGISTER: success means that it is new; else the registered limit."""
    return Txn(
        (Compare(keys.max_leases, "create", "=", 0),),
        (Put(keys.max_leases, text),),
        (Range(keys.max_leases),),
    )


def change_limit(keys: Keys, revision: int, value: bytes) -> Txn:
    """RESIZE, PAUSE, RESUME: write ``max_leases`` anew if it is what it was at this mod revision.

    Failure brings it as it is. So one that lands late changes nothing that came after it was sent.
    """
    return Txn(
        (Compare(keys.max_leases, "mod", "=", revision),),
        (Put(keys.max_leases, value),),
        (Range(keys.max_leases),),
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


def evict_slot(keys: Keys, slots: Sequence[int], token: int, who: bytes | None) -> Txn:
    """EVICT exactly this holder: its keys go, so nobody else can lose a slot by it."""
    letter = (Delete(keys.letter(who)),) if who else ()
    mine = tuple(_mine(keys, slot, token) for slot in slots)
    return Txn(mine, (*(Delete(keys.slot(slot)) for slot in slots), *letter))


def evict_waiter(keys: Keys, who: bytes, created: int, letter: bytes, lease: int) -> Txn:
    """EVICT exactly this waiter. A letter tells it why, and so that it must not join again.

    Not attached to the waiter's own lease: clients that know no such letter would take it for a
    slot's, and wait for ever. They ignore what has another lease, and join again. Failure brings
    the letter that is there: this one, if it was sent twice.
    """
    key = keys.waiter(who)
    return Txn(
        (Compare(key, "create", "=", created),),
        (Delete(key), Put(keys.letter(who), letter, lease)),
        (Range(keys.letter(who)),),
    )


def evicted(reply: TxnReply, lease: int) -> bool:
    """Was the waiter evicted, by this transaction or its first arrival?"""
    return reply.succeeded or any(kv.lease == lease for kv in as_range(reply.replies[0]).kvs)
