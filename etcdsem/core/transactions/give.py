"""DROP, PASS, CLEAR, RETIRE, VACATE: how a slot is given back."""

from __future__ import annotations

from collections.abc import Sequence

from etcdsem.core.commands import Compare, Delete, Operation, Put, RangeReply, Txn, TxnReply
from etcdsem.core.keys import Keys, Limit, Queued, record, write_list, write_message
from etcdsem.core.transactions.conditions import (
    MAX_LISTED,
    UNLIKELY_LISTED,
    HeldSlots,
    Look,
    all_are_mine,
    as_txn,
    limit_is,
    look,
    mark,
    may_be_next,
    no_surplus,
    none_waits_since,
    priorities_are,
    read_look,
    slot_is_mine,
    still_waits,
    uncontended,
    waits_alone,
)
from etcdsem.core.transactions.permit import in_parts

LIKELY = 2
"""One of the first two waiters that PASS tries is probably still there."""


def delete_mine(keys: Keys, mine: HeldSlots) -> tuple[Operation, ...]:
    """Delete all slots of a lease, with the grant message and the permit's record if there are."""
    slots = tuple(Delete(keys.slot(slot)) for slot in mine.slots)
    if mine.permit:
        slots += tuple(Delete(keys.permit(slot)) for slot in mine.slots)
    return (*slots, Delete(keys.message(mine.who))) if mine.has_message else slots


def drop(keys: Keys, mine: HeldSlots) -> Txn:
    """DROP. Success means given back; failure returns a Look."""
    return Txn(
        (*all_are_mine(keys, mine), uncontended(keys)),
        delete_mine(keys, mine),
        look(keys),
    )


def pass_on(
    keys: Keys,
    mine: HeldSlots,
    limit: Limit,
    queue: Sequence[Queued],
    depth: int,
    wall: float,
    *,
    priorities: int = 0,
    seen: int = 0,
) -> Txn:
    """PASS to the first of `queue` that still waits, trying `depth` of them.

    With `priorities`, the mark's revision, `queue` is the whole queue at revision `seen`; the
    message does not list the next waiters then, since others may come before them. Success with the
    innermost else, and failure, return a Look: see `read_pass`.
    """
    if mine.more or any(waiter.weight > 1 for waiter in queue[:depth]):
        raise AssertionError("PASS hands one slot to a waiter that needs one")
    branch: tuple[Operation, ...] = look(keys)
    forget = (Delete(keys.message(mine.who)),) if mine.has_message else ()
    lines = [] if priorities else write_list(queue[:MAX_LISTED])
    for place in range(min(depth, len(queue)) - 1, -1, -1):
        waiter, behind = queue[place], queue[place + 1 :]
        give = (
            *give_to(keys, (mine.slot,), waiter, _behind(lines, place), wall),
            *forget,
            *unmark(keys, priorities, behind),
        )
        branch = (Txn((still_waits(keys, waiter), *may_be_next(keys, waiter, seen)), give, branch),)
    return Txn(_may_pass(keys, mine, limit, priorities), branch, look(keys))


def _may_pass(keys: Keys, mine: HeldSlots, limit: Limit, priorities: int) -> tuple[Compare, ...]:
    """The slot is mine, and may be granted to somebody else."""
    return (
        slot_is_mine(keys, mine.slot, mine.token),
        limit_is(keys, limit),
        no_surplus(keys, limit),
        priorities_are(keys, priorities),
    )


def _behind(lines: Sequence[bytes], place: int) -> Sequence[bytes]:
    """The list for the waiter at a place: short where it is probably not needed."""
    most = MAX_LISTED if place < LIKELY else UNLIKELY_LISTED
    return lines[place + 1 : place + 1 + most]


def unmark(keys: Keys, priorities: int, behind: Sequence[Queued]) -> tuple[Operation, ...]:
    """Delete the priorities mark if no waiter with a priority is left."""
    return (Delete(keys.priorities),) if end_priorities(priorities, behind) else ()


def end_priorities(priorities: int, behind: Sequence[Queued]) -> bool:
    """Is no waiter with a priority left behind those that are served now?"""
    return priorities > 0 and not any(queued.demand.priority for queued in behind)


def give_to(
    keys: Keys, slots: Sequence[int], waiter: Queued, behind: Sequence[bytes], wall: float
) -> tuple[Operation, ...]:
    """Grant slots to a waiter with a grant message, and remove it from the queue."""
    holding = record(waiter.client, waiter.extras, waiter.lease, "acquired", wall)
    return (
        *in_parts([Put(keys.slot(slot), holding, waiter.lease) for slot in slots]),
        Delete(keys.waiter(waiter.who)),
        Put(keys.message(waiter.who), write_message(slots, behind), waiter.lease),
    )


def read_pass(keys: Keys, reply: TxnReply, tried: Sequence[Queued]) -> Queued | Look:
    """The waiter that got it, of those tried; else a Look for the releaser."""
    inner = reply
    if reply.succeeded:
        for waiter in tried:
            inner = as_txn(inner.replies[0])
            if inner.succeeded:
                return waiter
    return read_look(keys, inner, reply.revision)


def clear(keys: Keys, mine: HeldSlots, revision: int, otherwise: Txn | None = None) -> Txn:
    """CLEAR: nobody waited at `revision` or has joined since. Failure returns a Look, or the
    replies of `otherwise`, which runs then.
    """
    return Txn(
        (*all_are_mine(keys, mine), none_waits_since(keys, revision)),
        (*delete_mine(keys, mine), Delete(keys.contended), Delete(keys.priorities)),
        (otherwise,) if otherwise else look(keys),
    )


def read_clear(keys: Keys, reply: TxnReply, *, otherwise: bool) -> bool | Look:
    """The answer to a CLEAR that did not succeed: True if the PASS in its place did
    (`otherwise`: there was one); else a Look.
    """
    inner = as_txn(reply.replies[0]) if otherwise else reply
    return (otherwise and inner.succeeded) or read_look(keys, inner, reply.revision)


def pass_alone(keys: Keys, mine: HeldSlots, limit: Limit, waiter: Queued, wall: float) -> Txn:
    """PASS to a waiter whose present stay in the queue is not known, if nobody else waits. Failure
    returns a Look.
    """
    forget = (Delete(keys.message(mine.who)),) if mine.has_message else ()
    return Txn(
        (*_may_pass(keys, mine, limit, 0), *waits_alone(keys, waiter)),
        (*give_to(keys, (mine.slot,), waiter, (), wall), *forget),
        look(keys),
    )


def retire(keys: Keys, mine: HeldSlots) -> Txn:
    """RETIRE: give the slot back without a hand-over."""
    return Txn(all_are_mine(keys, mine), delete_mine(keys, mine))


def vacate(keys: Keys, mine: HeldSlots, lease: int = 0) -> Txn:
    """VACATE: give back slots that do not fit what the first waiter needs. Success returns a Look,
    and the releaser follows with a FILL; if it dies before, the watches on deletes trigger it.

    The mark is put again, which shows observers that the slot was given back, and not lost.
    `lease`: with which the name expires.
    """
    return Txn(
        all_are_mine(keys, mine),
        (*delete_mine(keys, mine), mark(keys, keys.contended, lease), *look(keys)),
    )


def read_vacate(keys: Keys, reply: TxnReply) -> Look | None:
    """What there is to FILL; None if the slots were no longer ours."""
    if not reply.succeeded:
        return None
    reads = tuple(one for one in reply.replies if isinstance(one, RangeReply))
    return read_look(keys, reply._replace(replies=reads), reply.revision)
