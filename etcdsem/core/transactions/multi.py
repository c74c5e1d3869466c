"""ALL: a slot of each of several semaphores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from etcdsem.core.commands import Compare, Operation, Put, Txn, TxnReply
from etcdsem.core.keys import Identity, Keys, Limit, record
from etcdsem.core.transactions.conditions import (
    Look,
    limit_is,
    look,
    no_surplus,
    none_held_since,
    read_look,
    slot_is_free,
    uncontended,
)


class SlotRequest(NamedTuple):
    """A slot to take of one of several semaphores. `counted_at` as in `join`."""

    keys: Keys
    limit: Limit
    slot: int
    lease: int
    identity: Identity
    counted_at: int = 0


def take_all(wishes: Sequence[SlotRequest], wall: float) -> Txn:
    """ALL: take each slot if all are free and no queue has a waiter, else nothing.

    Failure returns a Look of each.
    """
    conditions: list[Compare] = []
    puts: list[Operation] = []
    for keys, limit, slot, lease, identity, counted_at in wishes:
        if slot >= limit.room:
            raise AssertionError(f"slot {slot} was not chosen by the limit {limit}")
        guard = none_held_since(keys, counted_at) if counted_at else no_surplus(keys, limit)
        conditions += (limit_is(keys, limit), guard, uncontended(keys), slot_is_free(keys, slot))
        holding = record(identity.client, identity.extras, lease, "acquired", wall)
        puts.append(Put(keys.slot(slot), holding, lease))
    return Txn(tuple(conditions), tuple(puts), look_at_all([wish.keys for wish in wishes]))


def look_at_all(several: Sequence[Keys]) -> tuple[Operation, ...]:
    """The reads behind `read_all_looks`; of each queue only the first waiter."""
    return tuple(one for keys in several for one in look(keys, queue=1))


def read_all_looks(several: Sequence[Keys], reply: TxnReply) -> list[Look]:
    """Read the answers to `look_at_all`."""
    size = len(reply.replies) // len(several)
    parts = [reply.replies[size * place : size * (place + 1)] for place in range(len(several))]
    return [
        read_look(keys, TxnReply(False, 0, part), reply.revision)
        for keys, part in zip(several, parts, strict=True)
    ]
