"""Decisions from what was seen, as plain functions without etcd and without waiting.

Each takes a `Look` (slots, limit and queue at one revision) and says what to do. The transaction
checks whether that is still right when it is applied.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Sequence
from itertools import islice
from math import gcd
from typing import NamedTuple, TypeAlias

from etcdsem.core.keys import Keys, Limit, Queued, slot_number
from etcdsem.core.transactions import MAX_DEPTH, HeldSlots, Look
from etcdsem.validation import MAX_WEIGHT

HEAL_DELAY = 0.02
"""Seconds. Before healing what all clients see at once, each client waits for a random part of
this; longer if many clients wait."""

LOOKS_AT_ONCE = 4
"""How many clients may look within one such delay: one is enough, the others cover its death."""

LONGEST_HEAL_DELAY = 2.0
"""Seconds to which the delay grows with the number of clients."""

MAX_FILL = MAX_DEPTH + MAX_WEIGHT
"""Maximum number of slots that a FILL grants, unless a waiter needs more."""

FEW = 2
"""How many slots JOIN tries if the first is likely free, or likely none: each costs bytes and
time."""


class Drop(NamedTuple):
    """Nobody waits as far as is known: just give it back."""


class Gone(NamedTuple):
    """The slot is no longer ours."""


class Retire(NamedTuple):
    """Give it back without a hand-over: this slot, or another held one, is above the limit."""


class Vacate(NamedTuple):
    """Give it back, and then look who can be served: the first waiter needs another number of slots
    than this lease has.
    """


class Pass(NamedTuple):
    """Hand it to the first of these that still waits. With `priorities` (see Look) they are the
    whole queue as it was at the revision `seen`.
    """

    limit: Limit
    queue: tuple[Queued, ...]
    priorities: int = 0
    seen: int = 0


class Ask(NamedTuple):
    """Somebody may wait, but nothing is known of the queue."""


class PassAlone(NamedTuple):
    """Hand it over to this waiter if it waits, and nobody else does."""

    limit: Limit
    waiter: Queued


class Clear(NamedTuple):
    """Nobody waited at this revision: give it back, and delete the contended mark."""

    revision: int
    otherwise: PassAlone | None = None
    """In the same transaction, if somebody has joined since."""


class ReadAll(NamedTuple):
    """The part of the queue that was read holds nothing usable, and there is more."""


GiveBack: TypeAlias = Drop | Gone | Retire | Vacate | Pass | Ask | Clear | ReadAll
"""The next step of a release."""


class Blocked(NamedTuple):
    """There is room, but not enough for the first waiter, and nobody may pass it."""

    head: Queued


class Fill(NamedTuple):
    """Grant these free slots to these waiters. `surplus`: slots above the limit are held."""

    pairs: tuple[tuple[tuple[int, ...], Queued], ...]
    behind: tuple[Queued, ...]
    surplus: bool
    last: bool
    """Nobody was behind them."""
    passed: Queued | None = None
    """The waiter that needs more than is free, and is passed by some of these."""


def candidates(
    limit: Limit, favourite: int | None, draw: float, held: Container[int], *, few: bool
) -> list[int]:
    """Some slots to try, in order: the one this client released last, then from a random one on
    (`draw` in [0, 1)), so that clients do not collide; none that it holds.

    16, or only `few` if the first is likely free, or likely none because somebody waits. A client
    that tries too few when most are taken would join the queue although there is room.
    """
    room = limit.room
    if room == 0:
        return []
    slots = [favourite] if favourite is not None and favourite < room else []
    depth = FEW if few else MAX_DEPTH
    for slot in spread(room, draw):
        if len(slots) >= depth:
            break
        if slot != favourite and slot not in held:
            slots.append(slot)
    return slots


def spread(room: int, draw: float) -> Iterator[int]:
    """All slots below `room`, from a random one on and with a random stride (`draw` in [0, 1)).

    With a constant stride they would be taken in runs, and a client that starts within a run would
    find none free although there is room elsewhere.
    """
    if room == 0:
        return
    slot = int(draw * room)
    stride = 1 + int(draw * room * 65536) % room
    while gcd(stride, room) != 1:
        stride += 1
    for _ in range(room):
        yield slot
        slot = (slot + stride) % room


def free_slots(keys: Keys, seen: Look, most: int = MAX_DEPTH) -> list[int]:
    """The first slots below the limit that nobody holds. A foreign key also occupies its slot, and
    so does the record of a permit whose lease has ended too early.
    """
    taken = {slot_number(keys, kv.key) for kv in seen.slots}
    if seen.records is not None:
        taken |= seen.records.blocked.keys()
    room = seen.limit.room if seen.limit else 0
    return list(islice((slot for slot in range(room) if slot not in taken), most))


def room_seen(keys: Keys, seen: Look, most: int = MAX_DEPTH) -> tuple[list[int], int]:
    """The first free slots, as far as there is room; and, if there is surplus, the revision at
    which the held slots were counted, else 0.
    """
    free = free_slots(keys, seen, most)
    if seen.limit is None or not has_surplus(keys, seen):
        return free, 0
    return free[: max(0, seen.limit.room - held_count(keys, seen))], seen.revision


def unblocked_in(seen: Look) -> float:
    """Seconds until a slot becomes free because the time of a permit's record is over; inf if none
    is blocked by one.
    """
    return min(seen.records.blocked.values(), default=math.inf) if seen.records else math.inf


def free_together(keys: Keys, seen: Look, weight: int) -> tuple[list[int], int] | None:
    """`weight` free slots for a new caller, as by `room_seen`; None if there are not enough."""
    slots, counted_at = room_seen(keys, seen, weight)
    return (slots, counted_at) if len(slots) == weight else None


def held_count(keys: Keys, seen: Look) -> int:
    """Number of slots that are held, or blocked by a permit's record. Keys that do not name a slot
    are not counted.
    """
    blocked = len(seen.records.blocked) if seen.records is not None else 0
    return blocked + sum(slot_number(keys, kv.key) is not None for kv in seen.slots)


def waiting_clients(seen: Look) -> int:
    """How many clients wait, estimated from the part of the queue that was read."""
    if not seen.queue:
        return 0
    known = len({queued.client for queued in seen.queue})
    return max(known, known * seen.waiting // len(seen.queue))


def healing_window(clients: int) -> float:
    """Seconds over which `clients` spread when all of them see that a slot was freed.

    One look suffices, and the earliest of many random delays is short: about 2 ms for 1,000 clients
    over 2 s. The upper bound keeps it short if most of the counted clients have left.
    """
    return min(HEAL_DELAY * max(1.0, clients / LOOKS_AT_ONCE), LONGEST_HEAL_DELAY)


def room_for_more(keys: Keys, seen: Look) -> bool:
    """Are more slots free than all waiters together need?"""
    free, _ = room_seen(keys, seen, MAX_FILL)
    return seen.complete and len(free) > sum(queued.weight for queued in seen.queue)


def has_surplus(keys: Keys, seen: Look) -> bool:
    """Is there any key at or above the limit, as the transactions' condition sees it?

    That is a holder above a lowered limit, or junk whose name sorts there.
    """
    first = keys.slot(seen.limit.room if seen.limit else 0)
    return any(first <= kv.key < keys.leases_end for kv in seen.slots)


def give_back(
    keys: Keys, mine: HeldSlots, seen: Look
) -> Gone | Retire | Vacate | Pass | Ask | Clear | ReadAll:
    """How to give back a slot, or all slots of a lease, after this look."""
    mine_there = {kv.key for kv in seen.slots if kv.mod_revision == mine.token}
    if not mine_there.issuperset(map(keys.slot, mine.slots)):
        return Gone()
    if seen.limit is None or max(mine.slots) >= seen.limit.room or has_surplus(keys, seen):
        return Retire()
    if seen.priorities and not seen.complete:
        return ReadAll()
    if seen.queue:
        return hand_over(mine, seen.limit, seen.queue, seen.priorities, seen.revision)
    return Clear(seen.revision) if seen.complete else ReadAll()


def hand_over(
    mine: HeldSlots, limit: Limit, queue: tuple[Queued, ...], priorities: int = 0, seen: int = 0
) -> Pass | Vacate | Ask:
    """How to give back to a known queue: a single slot goes to a first waiter that needs one."""
    queue = without_holders(queue, (mine,))
    if not queue:
        return Ask()
    if mine.more or queue[0].weight > 1:
        return Vacate()
    return Pass(limit, queue, priorities, seen)


def without_holders(line: tuple[Queued, ...], mines: Sequence[HeldSlots]) -> tuple[Queued, ...]:
    """The queue without those that give back now. A holder does not wait, so such an entry is older
    than the grant; and etcd rejects a transaction that both puts and deletes its grant message.
    """
    holders = {mine.who for mine in mines}
    return tuple(waiter for waiter in line if waiter.who not in holders)


def light(line: tuple[Queued, ...], until: int) -> tuple[tuple[Queued, ...], int]:
    """The part of the queue before the first waiter that needs several slots, and the revision up
    to which this part is complete.
    """
    for place, waiter in enumerate(line):
        if waiter.weight > 1:
            return line[:place], waiter.created - 1
    return line, until


def next_fill(
    keys: Keys, seen: Look, most: int = MAX_DEPTH, *, eager: bool = False
) -> Fill | Blocked | ReadAll | None:
    """Which free slots to grant to which waiters, `most` at a time; None if nothing needs healing.

    Waiters are served in order as far as the slots suffice; only an eager one passes a waiter that
    needs more than is free. `eager`: there are eager waiters, so the whole queue is read before
    concluding that nobody can be served. With surplus the count decides: the limit minus the number
    of held slots are free. Then they are filled one by one, since the count is only known for that
    revision.
    """
    if seen.limit is None or seen.limit.room == 0:
        return None
    free, counted_at = room_seen(keys, seen, slots := _slots_to_fill(seen))
    surplus = counted_at > 0
    most = 1 if surplus else most
    if not free or (seen.complete and not seen.queue):
        return None
    if not seen.complete and (seen.priorities or not seen.queue):
        return ReadAll()
    cut = len(free) == slots
    pairs: list[tuple[tuple[int, ...], Queued]] = []
    behind: list[Queued] = []
    blocked = passed = None
    for place, waiter in enumerate(seen.queue):
        fits = waiter.weight <= len(free)
        if not free or len(pairs) == most or (cut and not fits):
            behind += seen.queue[place:]
            break
        if fits and (blocked is None or waiter.demand.backfill):
            pairs.append((tuple(free[: waiter.weight]), waiter))
            del free[: waiter.weight]
            passed = blocked
        else:
            behind.append(waiter)
            blocked = blocked or waiter
    if not pairs:
        return ReadAll() if eager and not seen.complete else Blocked(seen.queue[0])
    last = seen.complete and not behind
    return Fill(tuple(pairs), tuple(behind), surplus, last=last, passed=passed)


def _slots_to_fill(seen: Look) -> int:
    """Maximum number of free slots to look at: never less than one waiter may need."""
    return max(MAX_FILL, MAX_DEPTH + max((one.weight for one in seen.queue), default=1))


def pass_depth(limit: Limit, queue: Sequence[Queued]) -> int:
    """How many of the known waiters a PASS tries.

    With limit 1 the list is nearly always right; with more, others have served from the same list
    since it was read. Each level carries its own grant message, so depth costs bytes. It ends
    before a waiter that needs several slots, because those behind it must not pass.
    """
    wanted = min(MAX_DEPTH, 2 if limit.room == 1 else limit.room + 2)
    depth = 0
    for waiter in queue[:wanted]:
        if waiter.weight > 1:
            break
        depth += 1
    return depth
