"""REGISTER, CLOSE, EVICT, and changes of the limit."""

from __future__ import annotations

from collections.abc import Sequence

from etcdsem.core.commands import Compare, Delete, Put, Range, Txn, TxnReply
from etcdsem.core.keys import Keys
from etcdsem.core.transactions.conditions import (
    HeldSlots,
    all_are_mine,
    as_range,
    is_known,
    slot_is_free,
    slot_is_mine,
)
from etcdsem.core.transactions.give import delete_mine


def register(keys: Keys, text: bytes) -> Txn:
    """REGISTER. Success means that it is new; failure returns the registered limit."""
    return Txn(
        (Compare(keys.max_leases, "create", "=", 0),),
        (Put(keys.max_leases, text),),
        (Range(keys.max_leases),),
    )


def change_limit(keys: Keys, revision: int, value: bytes) -> Txn:
    """RESIZE, PAUSE, RESUME: rewrite ``max_leases`` if it still has this mod revision.

    Failure returns the current value. So a late arrival overwrites nothing that came after it was
    sent.
    """
    return Txn(
        (Compare(keys.max_leases, "mod", "=", revision),),
        (Put(keys.max_leases, value),),
        (Range(keys.max_leases),),
    )


def snapshot(keys: Keys, *, records: bool) -> Txn:
    """Everything that people may want to see, at one revision. `records`: also the records of a
    rate limit's permits, which a role for a semaphore may not read.
    """
    return Txn(
        (),
        (
            Range(keys.max_leases),
            Range(keys.leases, keys.leases[:-1] + b"0"),
            Range(keys.waiters, keys.waiters_end, oldest_first=True),
            *((Range(keys.permits, keys.permits_end),) if records else ()),
        ),
    )


def close(keys: Keys, *, force: bool) -> Txn:
    """CLOSE: delete all keys; without `force` only if nobody holds or waits.

    Both branches return the holders' and the waiters' keys.
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
        (is_known(keys), *(() if force else unused)),
        (*reads, Delete(keys.base, keys.base_end)),
        (*reads, Range(keys.max_leases, count_only=True)),
    )


def evict_slot(
    keys: Keys, slots: Sequence[int], token: int, who: bytes | None, *, permit: bool = False
) -> Txn:
    """EVICT exactly this holder: delete its keys, so nobody else can lose a slot by it. `permit`:
    also the record of its permit.
    """
    mine = HeldSlots(slots[0], token, who or b"", who is not None, tuple(slots[1:]), permit)
    parts = [Txn(all_are_mine(keys, part), delete_mine(keys, part)) for part in mine.parts]
    return parts[0] if len(parts) == 1 else Txn((slot_is_mine(keys, slots[0], token),), (*parts,))


def evict_permit(keys: Keys, slot: int, revision: int) -> Txn:
    """EVICT: delete exactly this record of a permit, whose lease has ended early."""
    return Txn(
        (slot_is_free(keys, slot), Compare(keys.permit(slot), "mod", "=", revision)),
        (Delete(keys.permit(slot)),),
    )


def evict_waiter(keys: Keys, who: bytes, created: int, message: bytes, lease: int) -> Txn:
    """EVICT exactly this waiter. A grant message tells it why, so that it does not join again.

    The message is not attached to the waiter's own lease: clients that do not know such messages
    would take it for a slot's, and wait forever. They ignore a message with another lease, and join
    again. Failure returns the message that is there: this one, if it was sent twice.
    """
    key = keys.waiter(who)
    return Txn(
        (Compare(key, "create", "=", created),),
        (Delete(key), Put(keys.message(who), message, lease)),
        (Range(keys.message(who)),),
    )


def evicted(reply: TxnReply, lease: int) -> bool:
    """Was the waiter evicted, by this transaction or by its first arrival?"""
    return reply.succeeded or any(kv.lease == lease for kv in as_range(reply.replies[0]).kvs)
