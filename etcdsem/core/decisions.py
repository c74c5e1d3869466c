"""Decisions over what was seen: plain functions, no etcd, no waiting.

Each takes a `Look` (one revision's slots, limit and queue) and says what to do. Whether it is
still right when the transaction lands is the transaction's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

from etcdsem.core.keys import Keys, Limit, Queued, slot_number
from etcdsem.core.transactions import MAX_DEPTH, Look, Mine


class Gone(NamedTuple):
    """The slot is not ours any more."""


class Retire(NamedTuple):
    """Give it back to nobody: it, or somebody, is above the limit."""


class Pass(NamedTuple):
    """Hand it to the first of these who still waits."""

    limit: Limit
    queue: tuple[Queued, ...]


class Clear(NamedTuple):
    """Nobody waited at this revision: give it back, and the mark with it."""

    revision: int


class ReadAll(NamedTuple):
    """The part of the queue that was read holds nothing usable, and there is more."""


class Fill(NamedTuple):
    """Give this free slot to this waiter. `surplus`: slots above the limit are held."""

    slot: int
    waiter: Queued
    behind: tuple[Queued, ...]
    surplus: bool


def candidates(limit: Limit, favourite: int | None, draw: float) -> list[int]:
    """Up to 16 slots to try, in order: the one this client released last, then from a random
    one on (`draw` in [0, 1)), so that clients don't collide.
    """
    room = limit.room
    if room == 0:
        return []
    start = int(draw * room)
    slots = [favourite] if favourite is not None and favourite < room else []
    for step in range(min(room, MAX_DEPTH)):
        slot = (start + step) % room
        if slot != favourite:
            slots.append(slot)
    return slots[:MAX_DEPTH]


def free_slots(keys: Keys, seen: Look) -> list[int]:
    """The first 16 slots below the limit that nobody holds. A strange holder's is not free."""
    taken = {slot_number(keys, kv.key) for kv in seen.slots}
    room = seen.limit.room if seen.limit else 0
    return list(islice((slot for slot in range(room) if slot not in taken), MAX_DEPTH))


def held_count(keys: Keys, seen: Look) -> int:
    """How many slots are taken. Keys of strange names count for nothing."""
    return sum(slot_number(keys, kv.key) is not None for kv in seen.slots)


def has_surplus(keys: Keys, seen: Look) -> bool:
    """Does anything stand at or above the limit, as the transactions' condition sees it?

    That is a holder above a lowered limit, or junk whose name sorts there.
    """
    first = keys.slot(seen.limit.room if seen.limit else 0)
    return any(first <= kv.key < keys.leases_end for kv in seen.slots)


def give_back(keys: Keys, mine: Mine, seen: Look) -> Gone | Retire | Pass | Clear | ReadAll:
    """How to give back a slot after this look."""
    key = keys.slot(mine.slot)
    if not any(kv.key == key and kv.mod_revision == mine.token for kv in seen.slots):
        return Gone()
    if seen.limit is None or mine.slot >= seen.limit.room or has_surplus(keys, seen):
        return Retire()
    if seen.queue:
        return Pass(seen.limit, seen.queue)
    return Clear(seen.revision) if seen.complete else ReadAll()


def next_fill(keys: Keys, seen: Look) -> Fill | ReadAll | None:
    """Which free slot must go to whom, or None if nothing needs healing.

    With surplus, the count decides: as many slots are free as the limit exceeds the held ones.
    """
    if seen.limit is None or seen.limit.room == 0:
        return None
    surplus = has_surplus(keys, seen)
    if surplus and held_count(keys, seen) >= seen.limit.room:
        return None
    free = free_slots(keys, seen)
    if not free:
        return None
    if not seen.queue:
        return None if seen.complete else ReadAll()
    return Fill(free[0], seen.queue[0], seen.queue[1:], surplus)


def pass_depth(limit: Limit, queue: Sequence[Queued]) -> int:
    """How many of the known waiters a PASS tries.

    With limit 1 the list is nearly always right; with more, others have served from the same
    list since it was read. Each level carries its own letter, so depth costs bytes.
    """
    wanted = 2 if limit.room == 1 else limit.room + 2
    return min(len(queue), MAX_DEPTH, wanted)
