"""BATCH and PASS of several: transactions shared by callers of one client."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from etcdsem.core.commands import Delete, Operation, Txn, TxnReply
from etcdsem.core.keys import Identity, Keys, Limit, Queued, read_queue, record, write_list
from etcdsem.core.transactions.conditions import (
    MAX_LISTED,
    NO_RECORDS,
    UNLIKELY_LISTED,
    Held,
    HeldSlots,
    Look,
    as_range,
    as_txn,
    first_waiters,
    limit_is,
    look,
    no_surplus,
    none_waits_since,
    priorities_are,
    read_look,
    slot_is_mine,
    still_waits,
    uncontended,
)
from etcdsem.core.transactions.give import delete_mine, give_to
from etcdsem.core.transactions.permit import free_slot, permit_value, put_slot

MAX_PASSED = 12
"""Maximum number of grant messages in a PASS of several slots beyond one for each slot."""


class Take(NamedTuple):
    """A part of a batch that takes a slot for a lease."""

    lease: int
    identity: Identity


def batch(
    keys: Keys,
    limit: Limit,
    parts: Sequence[Take | HeldSlots],
    slots: Sequence[Sequence[int]],
    wall: float,
) -> Txn:
    """BATCH: several TRY and DROP in one transaction, each succeeding or failing by itself.

    `slots` lists the slots that each part tries, all of them different: etcd rejects a transaction
    that could write a key twice, and all comparisons see the state before it. Nothing is done while
    anybody is in the queue.
    """
    takes: list[Operation] = []
    gives: list[Operation] = []
    for part, hand in zip(parts, slots, strict=True):
        if isinstance(part, HeldSlots):
            gives.append(Txn((slot_is_mine(keys, part.slot, part.token),), delete_mine(keys, part)))
        elif hand:
            if any(slot >= limit.room for slot in hand):
                raise AssertionError(f"slots {hand} were not chosen by the limit {limit}")
            who = part.identity
            holding = record(who.client, who.extras, part.lease, "acquired", wall)
            permit = permit_value(limit, who.client, wall)
            branch: tuple[Operation, ...] = ()
            for slot in reversed(hand):
                put = put_slot(keys, slot, holding, part.lease, permit, limit.lease)
                branch = (Txn(free_slot(keys, limit, slot, NO_RECORDS.over), put, branch),)
            takes.extend(branch)
    taking = Txn((limit_is(keys, limit), no_surplus(keys, limit)), tuple(takes))
    return Txn((uncontended(keys),), (taking, *gives))


class Gave(NamedTuple):
    """A part of a batch that has given its slot back."""


def read_batch(
    reply: TxnReply, parts: Sequence[Take | HeldSlots], slots: Sequence[Sequence[int]]
) -> list[Held | Gave | None]:
    """The result of each part; None if nothing was done for it."""
    if not reply.succeeded:
        return [None] * len(parts)
    taking, *gives = map(as_txn, reply.replies)
    took = iter(taking.replies)
    gave = iter(gives)
    results: list[Held | Gave | None] = []
    for part, hand in zip(parts, slots, strict=True):
        if isinstance(part, HeldSlots):
            results.append(Gave() if next(gave).succeeded else None)
        elif hand and taking.succeeded:
            results.append(_which(as_txn(next(took)), hand, reply.revision))
        else:
            results.append(None)
    return results


def _which(inner: TxnReply, hand: Sequence[int], revision: int) -> Held | None:
    for slot in hand:
        if inner.succeeded:
            return Held(slot, revision)
        if inner.replies:
            inner = as_txn(inner.replies[0])
    return None


def pass_all(
    keys: Keys,
    limit: Limit,
    mines: Sequence[HeldSlots],
    line: Sequence[Queued],
    until: int,
    wall: float,
) -> Txn:
    """PASS of several slots at once, to as many of the first in `line` that still wait.

    `line` has all current waiters that joined up to revision `until`. Others may have served the
    first of them since, so the first `depth` are tried in turn as the one to begin with. If one
    behind it has left, its slot stays where it is; each of the others gets one, so nobody is passed
    over. Hence all of `mines` must be ours. If there are more slots than waiters, the rest is given
    back and the contended mark deleted, unless somebody has joined since `until`. Nothing is done
    while priorities are in use.

    Success returns the waiters at that time if the line is used up; failure returns a Look.
    """
    depth = pass_all_depth(limit, mines, line)
    if any(mine.more for mine in mines) or any(waiter.weight > 1 for waiter in line):
        raise AssertionError("PASS hands one slot to a waiter that needs one")
    mine_still = [slot_is_mine(keys, mine.slot, mine.token) for mine in mines]
    branch = _serve(keys, mines, line[depth:], until, wall, UNLIKELY_LISTED)
    for place in range(depth - 1, -1, -1):
        listed = UNLIKELY_LISTED if place else MAX_LISTED
        serve = _serve(keys, mines, line[place:], until, wall, listed)
        branch = (Txn((still_waits(keys, line[place]),), serve, branch),)
    if len({mine.slot for mine in mines}) < len(mines):
        branch = ()  # a slot is listed twice, so one was taken by hand; etcd would reject the rest
    return Txn(
        (*mine_still, limit_is(keys, limit), no_surplus(keys, limit), priorities_are(keys, 0)),
        branch,
        look(keys),
    )


def pass_all_depth(limit: Limit, mines: Sequence[HeldSlots], line: Sequence[Queued]) -> int:
    """How many of the known waiters a PASS of several tries as the first to serve; see
    `decisions.pass_depth`. Each costs as many grant messages as there are slots.
    """
    return max(0, min(len(line), limit.room + 2 - len(mines), MAX_PASSED // len(mines)))


def _serve(
    keys: Keys,
    mines: Sequence[HeldSlots],
    line: Sequence[Queued],
    until: int,
    wall: float,
    listed: int,
) -> tuple[Operation, ...]:
    """Pass the slots to the first of `line`, and give back those that are left over."""
    lines = write_list(line[len(mines) : len(mines) + listed])
    done: list[Operation] = []
    for mine, waiter in zip(mines, line, strict=False):
        forget = (Delete(keys.message(mine.who)),) if mine.has_message else ()
        give = give_to(keys, (mine.slot,), waiter, lines, wall)
        done.append(Txn((still_waits(keys, waiter),), (*give, *forget)))
    spare = _delete_all(keys, mines[len(line) :])
    if spare:
        done.append(Txn((none_waits_since(keys, until),), (*spare, Delete(keys.contended))))
    if not lines:
        done.append(first_waiters(keys))
    return tuple(done)


def _delete_all(keys: Keys, mines: Sequence[HeldSlots]) -> list[Operation]:
    gone: list[Operation] = []
    for mine in mines:
        deletes = delete_mine(keys, mine)
        gone += (Txn((), deletes),) if mine.permit else deletes  # nested: etcd counts each level
    return gone


class Passed(NamedTuple):
    """The result of a PASS of several: for each slot, in order, whether it is settled, and the
    waiter that it went to; the last slots have none if there were not enough waiters.
    """

    done: tuple[bool, ...]
    waiters: tuple[Queued, ...]
    cleared: bool
    """The rest was given back, and nobody waited any more."""
    served: int
    """Of the waiters that joined up to this revision none is left at the front; 0: unknown."""
    line: tuple[tuple[Queued, ...], int] | None
    """If it was read: the current waiters that joined up to a revision, and that revision."""


def read_pass_all(
    keys: Keys, reply: TxnReply, limit: Limit, mines: Sequence[HeldSlots], line: Sequence[Queued]
) -> Passed | Look:
    """Read the answer to `pass_all`; a Look if nothing was done."""
    if not reply.succeeded:
        return read_look(keys, reply, reply.revision)
    gone, inner = 0, reply
    for _ in range(pass_all_depth(limit, mines, line)):
        inner = as_txn(inner.replies[0])
        if inner.succeeded:
            break
        gone += 1
    pairs = min(len(mines), len(line) - gone)
    rest = len(mines) - pairs
    done = [as_txn(one).succeeded for one in inner.replies[:pairs]]
    cleared = rest > 0 and as_txn(inner.replies[pairs]).succeeded
    done += [cleared] * rest
    served = tuple(line[: gone + pairs])
    known = None
    if len(line) - gone <= len(mines):
        found = as_range(inner.replies[-1])
        cut = found.count > len(found.kvs)
        until = found.kvs[-1].create_revision if cut else reply.revision
        known = read_queue(keys, found.kvs), until
    last = served[-1].created if served else 0
    return Passed(tuple(done), served[gone:], cleared, last, known)
