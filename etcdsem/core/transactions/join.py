"""JOIN, TRY and LEAVE, and what waiters reread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from etcdsem.core.commands import (
    Compare,
    Delete,
    Fixed,
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
    Demand,
    Identity,
    Keys,
    Limit,
    read_limit,
    record,
    slot_number,
)
from etcdsem.core.transactions.conditions import (
    COUNT_BY_NAME,
    NO_RECORDS,
    Held,
    Look,
    TryFull,
    Waiting,
    as_range,
    as_txn,
    is_known,
    limit_is,
    mark,
    no_surplus,
    none_held_since,
    uncontended,
)
from etcdsem.core.transactions.permit import (
    all_free,
    clear_permits,
    free_slot,
    in_parts,
    permit_value,
    put_slot,
)


def join(
    keys: Keys,
    limit: Limit,
    slots: Sequence[int],
    lease: int,
    who: bytes,
    identity: Identity,
    wall: float,
    *,
    queue_up: bool,
    counted_at: int = 0,
    demand: Demand = ORDINARY,
    seen: Look | None = None,
    count: bool = False,
) -> Txn:
    """JOIN, or without `queue_up` TRY. It takes the first free slot of `slots`; with a weight
    above 1 it takes all of them (exactly that many), or none.

    `seen`: the look that showed the slots, if any. Outdated records that it shows are deleted, too.
    `counted_at`: at this revision fewer slots than the limit were held. Then the condition that
    none was created since replaces "nobody above the limit" (junk may sort there). `count`: if it
    joins the queue, also count those who wait.
    """
    room = limit.room
    if slots and max(slots) >= room:
        raise AssertionError(f"slots {slots} were not chosen by the limit {limit}")
    if queue_up:
        waiting = record(identity.client, identity.extras, lease, "since", wall)
        tail = _queue_up(keys, Put(keys.waiter(who), waiting, lease), demand, limit, count=count)
    else:
        tail = _why_not(keys, room <= COUNT_BY_NAME)
    taking = (keys, limit, slots, lease, identity, wall, demand, seen, tail)
    branch = _take(*taking) if slots else tail
    guard = none_held_since(keys, counted_at) if counted_at else no_surplus(keys, limit)
    rights = _check_rights(keys)
    return Txn(
        compare=(limit_is(keys, limit), guard, uncontended(keys)),
        success=(*branch, rights, *clear_permits(keys, _over(seen), slots)[1]),
        failure=(Txn((is_known(keys),), tail), rights),
    )


def _over(seen: Look | None) -> Mapping[int, int]:
    return ((seen and seen.records) or NO_RECORDS).over


def _queue_up(
    keys: Keys, put: Put, demand: Demand, limit: Limit, *, count: bool
) -> tuple[Operation, ...]:
    """What JOIN does if no slot is free."""
    reads = _why_not(keys, limit.room <= COUNT_BY_NAME)[:2]
    marks = (mark(keys, keys.priorities, limit.lease),) if demand.priority else ()
    counting = (Range(keys.waiters, keys.waiters_end, count_only=True),) if count else ()
    return (put, mark(keys, keys.contended, limit.lease), *reads, *marks, *counting)


@lru_cache(1024)
def _why_not(keys: Keys, few: bool) -> Fixed:
    """What TRY reads if no slot is free."""
    contended = Range(keys.contended, count_only=True)
    return Fixed((Range(keys.max_leases), _count(keys, few), contended))


def _take(
    keys: Keys,
    limit: Limit,
    slots: Sequence[int],
    lease: int,
    identity: Identity,
    wall: float,
    demand: Demand,
    seen: Look | None,
    otherwise: tuple[Operation, ...],
) -> tuple[Operation, ...]:
    """Put the record into the first free slot, or with a weight above 1 into all of them."""
    holding = record(identity.client, identity.extras, lease, "acquired", wall)
    permit = permit_value(limit, identity.client, wall)
    puts = {slot: put_slot(keys, slot, holding, lease, permit, limit.lease) for slot in slots}
    if demand.weight > 1:
        if len(slots) != demand.weight:
            raise AssertionError(f"{len(slots)} slots for a lease of weight {demand.weight}")
        conditions = all_free(keys, limit, slots, _over(seen), seen.revision if seen else 0)
        take = in_parts([one for some in puts.values() for one in some])
        return (Txn(conditions, take, otherwise),)
    branch = otherwise
    for slot in reversed(slots):
        branch = (Txn(free_slot(keys, limit, slot, _over(seen)), puts[slot], branch),)
    return branch


@lru_cache(1024)
def _check_rights(keys: Keys) -> Delete:
    """Delete a key that never exists. etcd before 3.4.42 and 3.5.28 does not check a role's rights
    within nested transactions (CVE-2026-33343), so this rejects a role that may only read.
    """
    return Delete(keys.rights)


@lru_cache(1024)
def _count(keys: Keys, few: bool) -> Range:
    """Count the held slots. Few are read by name, so that junk is not counted."""
    return Range(
        keys.leases,
        keys.leases_end,
        limit=2 * COUNT_BY_NAME if few else 0,
        keys_only=few,
        count_only=not few,
    )


def _counted(keys: Keys, found: RangeReply) -> int:
    if len(found.kvs) < found.count:
        return found.count  # not read by name, or too many of them
    return sum(slot_number(keys, kv.key) is not None for kv in found.kvs)


def read_join(
    keys: Keys, reply: TxnReply, slots: Sequence[int], *, queue_up: bool, weight: int = 1
) -> Held | Waiting | TryFull:
    """The result of a JOIN or TRY."""
    inner = reply
    if reply.succeeded and weight > 1 and slots:
        inner = as_txn(inner.replies[0])
        if inner.succeeded:
            return Held(slots[0], reply.revision, tuple(slots[1:]))
    elif reply.succeeded:
        for slot in slots:
            inner = as_txn(inner.replies[0])
            if inner.succeeded:
                return Held(slot, reply.revision)
    else:
        inner = as_txn(reply.replies[0])
        if not inner.succeeded:
            return TryFull(0, False, None)
    found, count = map(as_range, inner.replies[2:4] if queue_up else inner.replies[:2])
    limit = read_limit(found.kvs[0]) if found.kvs else None
    if queue_up:
        last = inner.replies[-1]
        waiting = last.count if isinstance(last, RangeReply) and len(inner.replies) > 4 else 0
        return Waiting(reply.revision, _counted(keys, count), limit, waiting)
    return TryFull(_counted(keys, count), as_range(inner.replies[2]).count > 0, limit)


def leave(keys: Keys, who: bytes, created: int) -> Txn:
    """LEAVE. Success: it has left the queue. Failure returns the grant message, if any."""
    return Txn(
        (Compare(keys.waiter(who), "create", "=", created),),
        (
            Delete(keys.waiter(who)),
            Range(keys.waiters, keys.waiters_end, limit=1, keys_only=True),
        ),
        (Range(keys.message(who)),),
    )


def read_leave(reply: TxnReply) -> tuple[bool, KeyValue | None, int]:
    """(has left, the grant message, how many wait now)."""
    found = as_range(reply.replies[-1])
    if reply.succeeded:
        return True, None, found.count
    return False, found.kvs[0] if found.kvs else None, 0


def recheck(keys: Keys) -> Txn:
    """What all local waiters of a client must know in case no watch told them."""
    return Txn(
        (),
        (
            Range(keys.my_waiters, keys.my_waiters_end, keys_only=True),
            Range(keys.my_grants, keys.my_grants_end),
            Range(keys.max_leases),
        ),
    )


class Recheck(NamedTuple):
    """The answer to `recheck`."""

    revision: int
    waiting: frozenset[bytes]
    messages: tuple[KeyValue, ...]
    limit: Limit | None


def read_recheck(keys: Keys, reply: TxnReply) -> Recheck:
    """Read the answers to `recheck`."""
    waiting, messages, limit = map(as_range, reply.replies)
    return Recheck(
        revision=reply.revision,
        waiting=frozenset(kv.key[len(keys.waiters) :] for kv in waiting.kvs),
        messages=messages.kvs,
        limit=read_limit(limit.kvs[0]) if limit.kvs else None,
    )
