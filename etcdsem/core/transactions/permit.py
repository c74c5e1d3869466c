"""The records of permits in transactions: see `keys.permit`."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from etcdsem.core.commands import Compare, Delete, Operation, Put, Range, Txn
from etcdsem.core.keys import Keys, Limit, write_permit
from etcdsem.core.transactions.conditions import limit_is, slot_is_free, slot_is_mine

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


def record_permit(keys: Keys, limit: Limit, slot: int, token: int, client: str, wall: float) -> Txn:
    """RECORD: put the record of a permit that is about to be handed out, for a slot that was handed
    over. Failure returns the limit.
    """
    return Txn(
        (slot_is_mine(keys, slot, token), limit_is(keys, limit)),
        (Put(keys.permit(slot), permit_value(limit, client, wall), limit.lease),),
        (Range(keys.max_leases),),
    )
