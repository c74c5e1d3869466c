"""BATCH and PASS of several: what callers of one client do together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from etcdsem.core.commands import Delete, Operation, Put, Txn, TxnReply
from etcdsem.core.keys import Identity, Keys, Limit, Queued, read_queue, record, write_list
from etcdsem.core.transactions.conditions import (
    MAX_LISTED,
    Held,
    Look,
    Mine,
    as_range,
    as_txn,
    limit_is,
    look,
    next_in_line,
    no_surplus,
    none_waits_since,
    priorities_are,
    read_look,
    slot_is_free,
    slot_is_mine,
    still_waits,
    uncontended,
)
from etcdsem.core.transactions.give import delete_mine, give_to


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
            gives.append(Txn((slot_is_mine(keys, part.slot, part.token),), delete_mine(keys, part)))
        elif hand:
            if any(slot >= limit.room for slot in hand):
                raise AssertionError(f"slots {hand} were not chosen by the limit {limit}")
            who = part.identity
            holding = record(who.client, who.extras, part.lease, "acquired", wall)
            branch: tuple[Operation, ...] = ()
            for slot in reversed(hand):
                put = (Put(keys.slot(slot), holding, part.lease),)
                branch = (Txn((slot_is_free(keys, slot),), put, branch),)
            takes.extend(branch)
    taking = Txn((limit_is(keys, limit), no_surplus(keys, limit)), tuple(takes))
    return Txn((uncontended(keys),), (taking, *gives))


class Gave(NamedTuple):
    """One of a batch has given its slot back."""


def read_batch(
    reply: TxnReply, parts: Sequence[Take | Mine], slots: Sequence[Sequence[int]]
) -> list[Held | Gave | None]:
    """What came of each part; None if nothing was done for it."""
    if not reply.succeeded:
        return [None] * len(parts)
    taking, *gives = map(as_txn, reply.replies)
    took = iter(taking.replies)
    gave = iter(gives)
    results: list[Held | Gave | None] = []
    for part, hand in zip(parts, slots, strict=True):
        if isinstance(part, Mine):
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
    mine_still = [slot_is_mine(keys, mine.slot, mine.token) for mine in mines]
    lines = write_list(line[len(mines) : len(mines) + MAX_LISTED])
    done: list[Operation] = []
    for mine, waiter in zip(mines, line, strict=False):
        forget = (Delete(keys.letter(mine.who)),) if mine.letter else ()
        give = give_to(keys, (mine.slot,), waiter, lines, wall)
        done.append(Txn((still_waits(keys, waiter),), (*give, *forget)))
    spare = [gone for mine in mines[len(line) :] for gone in delete_mine(keys, mine)]
    if spare:
        spare.append(Delete(keys.contended))
        done.append(Txn((none_waits_since(keys, until),), tuple(spare)))
    if not lines:
        done.append(next_in_line(keys))
    if len({mine.slot for mine in mines}) < len(mines):
        done = []  # one of them was taken by hand, so nothing holds; etcd would refuse the rest
    return Txn(
        (*mine_still, limit_is(keys, limit), no_surplus(keys, limit), priorities_are(keys, 0)),
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
    done = [as_txn(one).succeeded for one in reply.replies[:pairs]]
    cleared = rest > 0 and as_txn(reply.replies[pairs]).succeeded
    done += [cleared] * rest
    known = None
    if len(line) <= len(mines):
        found = as_range(reply.replies[-1])
        cut = found.count > len(found.kvs)
        until = found.kvs[-1].create_revision if cut else reply.revision
        known = read_queue(keys, found.kvs), until
    return Passed(tuple(done), cleared, known)
