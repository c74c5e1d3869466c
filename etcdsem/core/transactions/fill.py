"""FILL and UNCONTEND: the transactions of reconciling."""

from __future__ import annotations

from collections.abc import Sequence

from etcdsem.core.commands import Delete, Operation, Txn
from etcdsem.core.keys import Keys, Queued, write_list
from etcdsem.core.transactions.conditions import (
    MAX_DEPTH,
    MAX_LISTED,
    NO_RECORDS,
    Look,
    limit_is,
    look,
    may_be_next,
    no_surplus,
    none_held_since,
    none_waits_since,
    priorities_are,
    still_waits,
)
from etcdsem.core.transactions.give import give_to, unmark
from etcdsem.core.transactions.permit import all_free, clear_permits
from etcdsem.validation import MAX_WEIGHT

FEW = MAX_DEPTH + MAX_WEIGHT
"""Slots up to which a FILL compares each by itself: together with the waiters' own keys below
etcd's 128 operations."""


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
    """FILL free slots for the first waiters: all of `pairs`, or nothing. Failure returns a Look.

    `passed`: the waiter that needs more than is free, and is passed by the eager ones of `pairs`.

    `last`: nobody was behind them, so the mark is deleted too, unless somebody has joined since.
    """
    if seen.limit is None:
        raise AssertionError("a semaphore without a limit cannot be filled")
    if surplus and len(pairs) > 1:
        raise AssertionError("with surplus, the count is only known to allow one grant")
    guard = none_held_since(keys, seen.revision) if surplus else no_surplus(keys, seen.limit)
    conditions = [limit_is(keys, seen.limit), guard, priorities_are(keys, seen.priorities)]
    if passed is not None:
        conditions.append(still_waits(keys, passed))
    conditions += may_be_next(keys, min((w for _, w in pairs), key=_priority), seen.revision)
    over = (seen.records or NO_RECORDS).over
    lines = [] if seen.priorities else write_list(behind[:MAX_LISTED])
    gives: list[Operation] = []
    few = len(filled(pairs)) <= FEW
    for slots, waiter in pairs:
        free = all_free(keys, seen.limit, slots if few else (), over, seen.revision)
        conditions += (*free, still_waits(keys, waiter))
        give = give_to(keys, slots, waiter, lines, wall)
        gives += give if few else (Txn((), give),)
    conditions += () if few else all_free(keys, seen.limit, filled(pairs), over, seen.revision)
    gives += (uncontend(keys, seen.revision),) if last else unmark(keys, seen.priorities, behind)
    gives += clear_permits(keys, over, filled(pairs))[1]
    otherwise = look(keys, records=seen.records is not None)
    return Txn(tuple(conditions), tuple(gives), otherwise)


def filled(pairs: Sequence[tuple[Sequence[int], Queued]]) -> list[int]:
    """The slots that a FILL grants."""
    return [slot for slots, _ in pairs for slot in slots]


def uncontend(keys: Keys, revision: int) -> Txn:
    """Delete the mark: nobody waited at `revision` or has joined since."""
    marks = (Delete(keys.contended), Delete(keys.priorities))
    return Txn((none_waits_since(keys, revision),), marks)


def _priority(waiter: Queued) -> int:
    return waiter.demand.priority
