"""REGISTER, CLOSE, EVICT, and changes of the limit."""

from __future__ import annotations

from collections.abc import Sequence

from etcdsem.core.commands import Compare, Delete, KeyValue, Put, Range, Txn, TxnReply
from etcdsem.core.keys import Keys, Limit
from etcdsem.core.transactions.conditions import (
    HERE,
    HeldSlots,
    all_are_mine,
    as_range,
    is_known,
    limit_is,
    slot_is_free,
    slot_is_mine,
)
from etcdsem.core.transactions.give import delete_mine


def register(keys: Keys, text: bytes, lease: int = 0) -> Txn:
    """REGISTER, with an etcd lease if the name expires. Success means that it is new; failure
    returns the registered limit.

    If the lease of a name has ended in use, its waiters are still there, and the mark is not.
    """
    waiting = Compare(keys.waiters, "create", ">", 0, end=keys.waiters_end)
    marked = (Txn((waiting,), (Put(keys.contended, HERE, lease),)),) if lease else ()
    return Txn(
        (Compare(keys.max_leases, "create", "=", 0),),
        (Put(keys.max_leases, text, lease), *marked),
        (Range(keys.max_leases),),
    )


def change_limit(
    keys: Keys, revision: int, value: bytes, lease: int = 0, *, timed: bool = False
) -> Txn:
    """RESIZE, PAUSE, RESUME: rewrite ``max_leases`` if it still has this mod revision, and with it
    this lease. `timed`: this ends a timed pause.

    Failure returns the current value. So a late arrival overwrites nothing that came after it was
    sent.
    """
    return Txn(
        (Compare(keys.max_leases, "mod", "=", revision),),
        (Put(keys.max_leases, value, lease), *((Delete(keys.paused),) if timed else ())),
        (Range(keys.max_leases),),
    )


def penalize(keys: Keys, limit: Limit, value: bytes, lease: int) -> Txn:
    """PENALIZE: the same with a timed pause, which lasts as long as the lease. Failure returns what
    `pause_read` reads.
    """
    return Txn(
        (limit_is(keys, limit),),
        (Put(keys.max_leases, value, limit.lease), Put(keys.paused, HERE, lease)),
        pause_read(keys).success,
    )


def pause_read(keys: Keys) -> Txn:
    """Read the limit, and the key of a timed pause."""
    return Txn((), (Range(keys.max_leases), Range(keys.paused)))


def end_timed_pause(keys: Keys, limit: Limit) -> Txn:
    """UNPAUSE: write the limit back if this timed pause is over, which is when etcd has ended the
    lease of its key. Failure returns the current value.
    """
    return Txn(
        (limit_is(keys, limit), Compare(keys.paused, "create", "=", 0)),
        (Put(keys.max_leases, limit.after_pause, limit.lease),),
        (Range(keys.max_leases),),
    )


def expire(
    keys: Keys, limit: KeyValue, value: bytes, lease: int, *, records: bool, seen: int
) -> Txn:
    """EXPIRE: attach a name that nobody uses to an etcd lease. Its marks have no meaning then, and
    go; and, with `records`, the records of permits that were over at revision `seen`.
    """
    gone: list[Delete] = [Delete(keys.contended), Delete(keys.priorities)]
    conditions = [Compare(keys.max_leases, "mod", "=", limit.mod_revision), *unused(keys)]
    if records:
        conditions.append(Compare(keys.permits, "mod", "<", seen + 1, end=keys.permits_end))
        gone.append(Delete(keys.permits, keys.permits_end))
    return Txn(tuple(conditions), (Put(keys.max_leases, value, lease), *gone))


def sweep(keys: Keys, seen: int) -> Txn:
    """SWEEP: delete what is left of a name without a limit that nobody uses: marks, and the records
    of permits that were over at revision `seen`.
    """
    marks = (keys.contended, keys.priorities)
    return Txn(
        (
            Compare(keys.max_leases, "create", "=", 0),
            *unused(keys),
            Compare(keys.permits, "mod", "<", seen + 1, end=keys.permits_end),
        ),
        (*map(Delete, marks), Delete(keys.permits, keys.permits_end)),
    )


def unused(keys: Keys) -> tuple[Compare, Compare]:
    """Nobody holds or waits."""
    return (
        Compare(keys.leases, "create", "=", 0, end=keys.leases_end),
        Compare(keys.waiters, "create", "=", 0, end=keys.waiters_end),
    )


def limits_as_set(keys: Keys) -> tuple[Range, Range]:
    """The reads behind a plan of `declare`: the limit, and what was last applied."""
    return Range(keys.max_leases), Range(keys.applied)


def unchanged_since(keys: Keys, limit: int, applied: int) -> tuple[Compare, Compare]:
    """The limit, and what was last applied, still have these mod revisions; 0: not there."""
    return (
        Compare(keys.max_leases, "mod", "=", limit),
        Compare(keys.applied, "mod", "=", applied),
    )


def apply_limit(keys: Keys, seen: tuple[Compare, Compare], value: bytes | None, text: bytes) -> Txn:
    """APPLY: put the limit (`value` None: leave it) and what was applied, if nothing has changed
    since it was `seen`. Failure returns both.
    """
    puts = () if value is None else (Put(keys.max_leases, value),)
    return Txn(seen, (*puts, Put(keys.applied, text)), limits_as_set(keys))


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


def close(keys: Keys, *, force: bool, seen: tuple[Compare, ...] = ()) -> Txn:
    """CLOSE: delete all keys; without `force` only if nobody holds or waits. `seen`: more
    conditions.

    Both branches return the holders' and the waiters' keys.
    """
    reads = (
        Range(keys.leases, keys.leases_end),
        Range(keys.waiters, keys.waiters_end, oldest_first=True),
    )
    return Txn(
        (is_known(keys), *seen, *(() if force else unused(keys))),
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
