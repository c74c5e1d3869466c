"""The records of permits in transactions: see `keys.permit`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from etcdsem.core.commands import Compare, Delete, Operation, Put, Range, Txn, TxnReply
from etcdsem.core.keys import Keys, Limit, write_permit
from etcdsem.core.transactions.conditions import (
    HeldSlots,
    all_are_mine,
    as_txn,
    limit_is,
    none_held_since,
    none_recorded_since,
    slot_is_free,
)
from etcdsem.validation import MAX_WEIGHT

CLEARED = 32
"""Maximum number of outdated records that a transaction deletes beside what it is for."""


def free_slot(keys: Keys, limit: Limit, slot: int, over: Mapping[int, int]) -> tuple[Compare, ...]:
    """Nobody holds the slot, and nothing of a rate limit's permit is left of it but the record in
    `over`: records whose time is over, and their revisions.
    """
    free = (slot_is_free(keys, slot),)
    if limit.rate is None:
        return free
    return (*free, Compare(keys.permit(slot), "mod", "=", over.get(slot, 0)))


def all_free(
    keys: Keys, limit: Limit, slots: Sequence[int], over: Mapping[int, int], at: int
) -> tuple[Compare, ...]:
    """All of these slots are free, as a look at revision `at` has shown. For more than etcd can
    compare one by one: nothing was taken or recorded since.
    """
    if len(slots) <= MAX_WEIGHT:
        return tuple(one for slot in slots for one in free_slot(keys, limit, slot, over))
    taken = (none_held_since(keys, at),)
    return taken if limit.rate is None else (*taken, none_recorded_since(keys, at))


def in_parts(operations: Sequence[Operation]) -> tuple[Operation, ...]:
    """The same operations, nested if they are too many for one level: etcd allows 128 on the way to
    each.
    """
    if len(operations) <= 2 * MAX_WEIGHT:
        return tuple(operations)
    size = 2 * MAX_WEIGHT
    parts = range(0, len(operations), size)
    return tuple(Txn((), tuple(operations[first : first + size])) for first in parts)


def permit_value(limit: Limit, client: str, wall: float) -> bytes:
    """The record of a permit that a client takes now; empty for a semaphore."""
    return b"" if limit.rate is None else write_permit(client, limit.rate, wall)


def put_slot(
    keys: Keys, slot: int, holding: bytes, lease: int, permit: bytes, name_lease: int
) -> tuple[Operation, ...]:
    """Put a holder's record into a slot, and the record of its permit if there is one.
    `name_lease`: with which the name expires, and the record with it.
    """
    put = (Put(keys.slot(slot), holding, lease),)
    return (*put, Put(keys.permit(slot), permit, name_lease)) if permit else put


def clear_permits(
    keys: Keys, over: Mapping[int, int], but: Collection[int]
) -> tuple[tuple[int, ...], tuple[Operation, ...]]:
    """Delete records whose time is over, of slots that nobody holds, so that they stand in nobody's
    way. Returns these slots too.
    """
    slots = tuple(slot for slot in over if slot not in but)[:CLEARED]
    clearing = [
        Txn(
            (slot_is_free(keys, slot), Compare(keys.permit(slot), "mod", "=", over[slot])),
            (Delete(keys.permit(slot)),),
        )
        for slot in slots
    ]
    return slots, tuple(clearing)


def record_permit(keys: Keys, limit: Limit, mine: HeldSlots, client: str, wall: float) -> Txn:
    """RECORD: put the record of a permit that is about to be handed out, for each of the slots that
    were handed over. Failure returns the limit. Of many slots, some may be recorded if others are
    lost: see `read_record`.
    """
    value = permit_value(limit, client, wall)
    otherwise = (Range(keys.max_leases),)
    parts = [
        (
            all_are_mine(keys, part),
            tuple(Put(keys.permit(slot), value, limit.lease) for slot in part.slots),
        )
        for part in mine.parts
    ]
    if len(parts) == 1:
        ((conditions, puts),) = parts
        return Txn((*conditions, limit_is(keys, limit)), puts, otherwise)
    return Txn((limit_is(keys, limit),), tuple(Txn(*part, otherwise) for part in parts), otherwise)


def read_record(reply: TxnReply) -> TxnReply:
    """The answer to a RECORD: successful if all slots were recorded, else with the limit."""
    if not reply.succeeded or not isinstance(reply.replies[0], TxnReply):
        return reply
    failed = (one for one in map(as_txn, reply.replies) if not one.succeeded)
    return next((one._replace(revision=reply.revision) for one in failed), reply)
