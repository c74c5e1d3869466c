"""What must be true of every run, judged from etcd's own history and from what clients believe.

At every revision of etcd:
1. No slot is granted while more than the limit in force are held, nor at or above the limit.
2. A held slot's key is rewritten only by a hand-over; the fencing token is its mod revision. A
   lease gets exactly as many slots as its record's weight, all at one revision.
3. A slot goes to the first waiter (by priority, then by create revision) whose key exists, or to an
   eager one that passes a waiter that needs several. A caller that was not in the queue gets one
   only while the queue is empty.
4. No key carries a lease that its client has back in its pool.
5. A slot key ends only after its holder has stopped relying on it: released, past its own deadline,
   or told. An operator may end it earlier; then the holder is told soon.

When a grant is given to a caller:
6. Its lease is valid by the caller's clock, its key is in etcd with that token, and no more callers
   rely on grants than the limit allows (if nobody changed the limit in this run).

While there are no faults:
7. If as many slots as the first waiter needs are free, they do not stay free; nor does one for
   which a caller waits that was put out of the queue by hand. Nobody is told that etcd is
   unavailable.
8. Every slot that is kept alive belongs to a grant that its client knows.

About operators and bounds:
10. While the semaphore is paused nothing is granted (this is 1, with a limit of 0). If a drain
    reports success, the semaphore was paused and empty at some moment after the drain began.
14. A pause that ends by itself lasts as long as was asked, unless an operator resumes or closes it:
    until then it stays paused. When it is over, 7 holds again.
12. A waiter that was evicted stops waiting, and nobody else is told of an eviction.
11. Nobody relies on a grant for longer than its max_hold, or loses it for that reason any sooner;
    when it is over, and there are no faults, the slot is freed soon.

About a bounded queue (`max_waiting`):
15. A caller is refused only if at some moment of its call as many as may wait were in the queue
    beside it (with 0: if it was full). No more than may wait stay there for longer than an instant.

About slots that stay with their client after a release (`linger`):
13. Such a slot is given again only to its client, when the former caller no longer relies on it,
    for about `MAX_TENURE` at most, and not while somebody has been waiting for longer than news
    takes.

At the end:
9. All callers have returned, and no key is left except the limit (and the mark). An object that
   threads shared, and released as often as they acquired, holds no lease.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from etcdsem.core.commands import KeyValue
from etcdsem.core.keys import (
    ORDINARY,
    Demand,
    Keys,
    addressee,
    read_eviction,
    read_limit,
    slot_number,
    stated,
)
from etcdsem.core.linger import MAX_TENURE
from etcdsem.validation import MAX_WEIGHT

if TYPE_CHECKING:
    from etcdsem.core.grants import Grant
    from etcdsem.testing.history import Revision
    from tests.simulation.client import SimClient
    from tests.simulation.world import World


AGAIN_BOUND = 0.5
"""Seconds after which, without faults, a client that lets slots stay has heard of a waiter."""


class Belief(NamedTuple):
    """A caller that relies on a grant."""

    client: SimClient
    grant: Grant


def demand_of(kv: KeyValue) -> Demand:
    """The weight, priority and eagerness of a holder or waiter."""
    special = any(word in kv.value for word in (b'"weight"', b'"priority"', b'"eager"'))
    return stated(kv).demand if special else ORDINARY


def _place(kv: KeyValue) -> tuple[int, int]:
    """The sort key of the queue."""
    return -demand_of(kv).priority, kv.create_revision


class Checker:
    """Judges one semaphore in one world."""

    def __init__(self, world: World, prefix: str, name: str, *, linger: float = 0.0) -> None:
        self.world = world
        self.keys = Keys(prefix, name, "nobody.0.x")
        self.station = prefix, name
        self.slots: dict[bytes, KeyValue] = {}  # well-formed names only; junk is not a grant
        self.waiters: dict[bytes, KeyValue] = {}  # those attached to the lease that they name
        self.limit = 0
        self.number: int | None = None  # the stored number, paused or not; None: not registered
        self.paused = False
        self.timed = False  # paused until its key is gone
        self.key_there = False  # is the key of a timed pause there?
        self.penalized_until = -math.inf  # nothing may be granted before that
        self._was_timed = False
        self._resumed_at = -math.inf
        self.bounds: dict[tuple[int, int], float] = {}  # by slot and token, on its client's clock
        self.granted_at: dict[bytes, float] = {}
        self.leases: dict[tuple[int, int], int] = {}  # of grants, by slot and token
        self.linger = linger  # seconds for which a released slot may stay with its client
        self._used: set[tuple[int, int]] = set()  # grants that were given to a caller
        self._waited_since = math.inf
        self._drained = False  # paused and empty
        self._drained_until = -1.0
        self.max_waiting = math.inf  # the bound that all callers have
        self._queue: dict[bytes, float] = {}  # all keys in the queue, junk too, and since when
        self._crowded = dict.fromkeys(range(2, 6), False)
        """By number: true while so many keys are in the queue."""
        self._crowded_until = dict.fromkeys(self._crowded, -1.0)
        self.beliefs: dict[tuple[int, int], Belief] = {}  # by slot and token
        self.evicted: dict[tuple[int, int], float] = {}  # beliefs ended by an operator, and when
        self.by_hand: set[tuple[bytes, int]] = set()  # slot keys and tokens an operator ended
        self.limits_changed = False
        self.tampered = False  # slots were written by hand
        self.calm_since = math.inf  # no faults since then
        self.bound = 3.0  # seconds that a slot may be free while somebody waits
        self.left_out_bound = 1.5  # the same while somebody waits who was put out of the queue
        self.told_bound = 4.0  # seconds until a holder is told of an eviction
        self.turned_away: dict[int, float] = {}  # leases of waiters that were evicted, and when
        self._left_out: dict[int, float] = {}  # leases of callers waiting out of the queue, since
        self._idle_since = math.inf
        self._full = dict.fromkeys(range(1, MAX_WEIGHT + 1), True)
        """By weight: true while that many slots are not free, or others are in the queue."""
        self._full_until = dict.fromkeys(self._full, 0.0)
        self._limits = [(0.0, 0)]  # the limits, and since when each was in force
        self._closed = True
        self._closed_until = 0.0
        self._highest = 0
        world.etcd.observers.append(self.revision)

    # -- at every revision

    def revision(self, revision: Revision) -> None:
        """Check the changes of a revision."""
        self.check_idle()
        keys, hand = self.keys, self.world.by_operator
        left: dict[int, KeyValue] = {}  # leases whose waiter key is deleted now
        granted: list[tuple[KeyValue, KeyValue | None]] = []
        for event in revision.events:
            kv = event.kv
            if not kv.key.startswith(keys.base):
                continue
            if kv.key == keys.max_leases:
                self._limit_changed(kv if event.kind == "put" else None)
            elif kv.key == keys.paused:
                self.key_there = event.kind == "put"
            elif kv.key.startswith(keys.leases) and slot_number(keys, kv.key) is not None:
                before = self.slots.pop(kv.key, None)
                if event.kind == "put":
                    self.slots[kv.key] = kv
                    granted.append((kv, before))
                if before is not None:
                    self._ended(before, hand)
            elif event.kind == "put" and read_eviction(kv.value):
                self.turned_away[addressee(keys, kv.key)] = self.world.now
            elif keys.waiters <= kv.key < keys.waiters_end:
                if event.kind == "put":
                    self._queue.setdefault(kv.key, self.world.now)
                else:
                    self._queue.pop(kv.key, None)
                gone = self.waiters.pop(kv.key, None)
                if event.kind == "put" and kv.key.endswith(b"/%016x" % kv.lease) and kv.lease:
                    self.waiters[kv.key] = kv
                    self._check_lease(kv)
                elif gone is not None:
                    left[gone.lease] = gone
        self._check_timed(revision)
        if hand:
            self.tampered = self.tampered or bool(granted)
        else:
            for kv, before in granted:
                self._granted(kv, before, left)
            self._check_weights([kv for kv, _ in granted])
            if granted:
                self._highest = revision.number
        for kv, _ in granted:
            self.granted_at[kv.key] = self.world.now
            self.leases[slot_number(keys, kv.key) or 0, kv.mod_revision] = kv.lease
        if not self.waiters:
            self._waited_since = math.inf
        elif self._waited_since == math.inf:
            self._waited_since = self.world.now
        self._note_idle()
        self._note_drained()
        self._note_crowded()

    def _limit_changed(self, kv: KeyValue | None) -> None:
        limit = read_limit(kv) if kv else None
        number = limit.number or 0 if limit else 0
        self.limits_changed = self.limits_changed or self.number not in (None, number)
        self.number, self.limit = number, limit.room if limit else 0
        self.paused = limit is not None and limit.paused
        self.timed = limit is not None and limit.after_pause != b""
        self._limits.append((self.world.now, self.limit))
        if self._closed or kv is None:
            self._closed, self._closed_until = kv is None, self.world.now

    # -- pauses that end by themselves

    def penalized(self, began: float, seconds: float) -> None:
        """A program, which asked at `began`, was told that it is paused for so many seconds. Its
        clock and etcd's differ.
        """
        if self._resumed_at <= began:
            self.penalized_until = max(self.penalized_until, began + 0.985 * seconds)

    def _check_timed(self, revision: Revision) -> None:
        keys = self.keys
        kinds = {event.kv.key: event.kind for event in revision.events}
        if keys.max_leases in kinds and not self.timed:
            was, self._was_timed = self._was_timed, False
            ended = was and not self.world.by_operator
            by_itself = ended and keys.paused not in kinds
            self.world.counters["pauses that ended by themselves"] += by_itself
            if ended and self.key_there:
                self.world.fail("a pause was ended, and its time is not over")
            if self.world.by_operator or kinds.get(keys.paused) == "delete" or not self.number:
                self._resumed_at, self.penalized_until = self.world.now, -math.inf
        self._was_timed = self.timed
        if self.world.now < self.penalized_until and not (self.paused or self._closed):
            self.world.fail(f"not paused any more before {self.penalized_until:.3f}")

    def _ended(self, before: KeyValue, hand: bool) -> None:
        slot = slot_number(self.keys, before.key)
        if slot is None:
            return
        if hand:
            self.by_hand.add((before.key, before.mod_revision))
        key = (slot, before.mod_revision)
        belief = self.beliefs.get(key)
        if belief is None or not self._relies(belief):
            return
        if hand:
            self.evicted[key] = self.world.now
            self.world.counters["evicted holders"] += 1
            return
        self.world.fail(
            f"slot {slot} (token {before.mod_revision}) ended in etcd while its holder, client "
            f"{belief.client.number}, still relied on it"
        )

    @staticmethod
    def _relies(belief: Belief) -> bool:
        client, grant = belief
        return not client.crashed and grant.valid(client.now())

    def _granted(self, kv: KeyValue, before: KeyValue | None, left: dict[int, KeyValue]) -> None:
        world, keys = self.world, self.keys
        slot = slot_number(keys, kv.key)
        if slot is None or kv.lease == 0:
            world.fail(f"a key was written that is not a slot: {kv}")
            return
        world.counters["grants"] += 1
        if len(self.slots) > self.limit:
            world.fail(f"{len(self.slots)} held, the limit is {self.limit}: granted {kv}")
        if slot >= self.limit:
            world.fail(f"slot {slot} was granted, the limit is {self.limit}")
        if kv.mod_revision <= self._highest:
            world.fail(f"fencing token {kv.mod_revision} after {self._highest}")
        others = (one for key, one in self.slots.items() if key != kv.key)
        if any(one.lease == kv.lease and one.mod_revision != kv.mod_revision for one in others):
            world.fail(f"{kv.key!r} was granted to a lease that holds another slot already")
        queue = list(self.waiters.values())
        came = left.get(kv.lease)
        if came is None:
            if queue:
                world.fail(f"{kv.key!r} was granted past {len(queue)} waiters in the queue")
            if before is not None:
                world.fail(f"the held slot {kv.key!r} was rewritten")
        else:
            world.counters["hand-overs" if before else "fills"] += 1
            if self.calm_since > world.now:
                world.counters["hand-overs under fault"] += 1
            first = min(queue, key=_place, default=came)
            if _place(first) < _place(came):
                if demand_of(came).backfill and demand_of(first).weight > 1:
                    world.counters["eager grants"] += 1
                else:
                    world.fail(f"{kv.key!r} went to waiter {came} before {first}: not FIFO")
            world.counters["grants by priority"] += any(
                other.create_revision < came.create_revision for other in queue
            )
        self._check_lease(kv)

    def _check_weights(self, granted: list[KeyValue]) -> None:
        leases = [kv.lease for kv in granted]
        for kv in granted:
            weight, got = demand_of(kv).weight, leases.count(kv.lease)
            if got != weight:
                self.world.fail(f"{got} slots were granted to a lease of weight {weight}: {kv}")
            self.world.counters["heavy grants"] += weight > 1

    def _check_lease(self, kv: KeyValue) -> None:
        owner = self.world.owners.get(kv.lease)
        if owner is None or owner.crashed:
            return
        lease = owner.session.leases.live.get(kv.lease)
        if lease is not None and lease.state == "spare":
            self.world.fail(f"{kv.key!r} was written with a lease of client {owner.number}'s pool")

    # -- operators

    def _note_drained(self) -> None:
        drained = self.paused and not any(kv.lease for kv in self.slots.values())
        if self._drained or drained:
            self._drained, self._drained_until = drained, self.world.now

    def told_drained(self, client: SimClient, asked: float) -> None:
        """An operator, who asked at `asked`, was told that it is paused and nobody holds."""
        if not self._drained and self._drained_until < asked:
            self.world.fail(f"client {client.number} was told that it is drained, which it was not")

    def told_lost(self, client: SimClient, grant: Grant) -> None:
        """A caller was told that its grant is lost."""
        if "max_hold" not in grant.lost_reason:
            return
        self.world.counters["held for too long"] += 1
        bound = self.bounds.get((grant.slot, grant.token))
        if bound is None or client.now() < bound - 1e-6:
            self.world.fail(
                f"client {client.number} lost slot {grant.slot} for its max_hold, which was not "
                "over, or was not set"
            )

    def _check_bounds(self) -> None:
        now = self.world.now
        for key, bound in self.bounds.items():
            belief = self.beliefs.get(key)
            if belief is not None and belief.client.now() > bound and self._relies(belief):
                self.world.fail(
                    f"client {belief.client.number} relies on slot {key[0]} beyond its max_hold"
                )
        for kv in self.slots.values():
            owner, max_hold = self.world.owners.get(kv.lease), stated(kv).max_hold
            if owner is None or max_hold is None or not owner.fine:
                continue
            since = max(self.granted_at[kv.key], self.calm_since)
            if now > since + 1.01 * max_hold + self.told_bound:
                self.world.fail(f"{kv.key!r} is held still, {now - since:.2f} s and its max_hold")

    # -- idle slots

    def _note_idle(self) -> None:
        room = self._room()
        for weight, was_full in self._full.items():
            full = bool(self.waiters) or room < weight
            if was_full or full:
                self._full[weight], self._full_until[weight] = full, self.world.now
        idle = bool(self.waiters) and self._next_wants() <= room and self._somebody_lives()
        if not idle:
            self._idle_since = math.inf
        elif self._idle_since == math.inf:
            self._idle_since = self.world.now

    def _room(self) -> int:
        """Number of free slots."""
        limit = (self.number or 0) if self.timed and not self.key_there else self.limit
        free = sum(self.keys.slot(slot) not in self.slots for slot in range(limit))
        return max(0, min(free, limit - len(self.slots)))

    def _next_wants(self) -> int:
        """How many slots must be free so that somebody must be served."""
        first = min(self.waiters.values(), key=_place)
        eager = [demand_of(kv).weight for kv in self.waiters.values() if demand_of(kv).backfill]
        return min([demand_of(first).weight, *eager])

    def _somebody_lives(self) -> bool:
        owners = (self.world.owners.get(kv.lease) for kv in self.waiters.values())
        return any(owner is not None and owner.fine for owner in owners)

    def check_idle(self) -> None:
        """Check that no slot was free for too long while somebody waited, without faults."""
        since = max(self._idle_since, self.calm_since)
        if self.world.now > since + self.bound:
            self.world.fail(
                f"a slot was free for {self.world.now - since:.2f} s (or as many as the next "
                f"waiter needs: {self._next_wants()}) while "
                f"{len(self.waiters)} were in the queue"
            )
            self._idle_since = math.inf

    # -- callers

    def acquired(self, client: SimClient, grant: Grant, max_hold: float | None = None) -> None:
        """A caller was given a grant, which it may hold for `max_hold` seconds at most."""
        world = self.world
        now = client.now()
        if not grant.valid(now):
            world.fail(f"client {client.number} was given a grant whose lease has expired")
        for slot in grant.slots:
            self._believed(client, grant, slot)
            if max_hold is not None:
                # Of several at once, the first may have been granted earlier.
                self.bounds[slot, grant.token] = grant.since + max_hold
        if not self.limits_changed and not self.tampered:
            relying = [b for k, b in self.beliefs.items() if k not in self.evicted]
            count = sum(map(self._relies, relying))
            if count > (self.number or 0):
                world.fail(f"{count} callers rely on a grant, the limit is {self.number}")
            world.counters["most holders"] = max(world.counters["most holders"], count)

    def _believed(self, client: SimClient, grant: Grant, slot: int) -> None:
        name, key = self.keys.slot(slot), (slot, grant.token)
        kv = self.slots.get(name)
        former = self.beliefs.get(key)
        if former is not None or key in self._used:
            self._used_again(client, former, name, key)
        self._used.add(key)
        self.beliefs[key] = Belief(client, grant)
        if kv is None or kv.mod_revision != grant.token or kv.lease != grant.lease.id:
            if (name, grant.token) in self.by_hand:
                self.evicted[key] = self.world.now
            elif not any((self.keys.slot(s), grant.token) in self.by_hand for s in grant.slots):
                self.world.fail(f"client {client.number} was given {key}, etcd has {kv}")

    def _used_again(
        self, client: SimClient, former: Belief | None, name: bytes, key: tuple[int, int]
    ) -> None:
        """A slot is given again with the same token: to its client, soon, while nobody waits."""
        world, now, number = self.world, self.world.now, client.number
        world.counters["used again"] += 1
        if self.world.owners.get(self.leases[key]) is not client or not self.linger:
            world.fail(f"slot and token {key} were given twice")
        if former is not None and self._relies(former):
            world.fail(f"slot and token {key} were given to client {number} while it relies on it")
        if not self._is_calm(now - AGAIN_BOUND):
            return
        tenure = now - self.granted_at[name] if name in self.slots else 0.0
        if tenure > (MAX_TENURE + self.linger) * 1.02:
            world.fail(f"client {number} uses slot {key} again {tenure:.2f} s after its grant")
        if self.waiters and now > self._waited_since + AGAIN_BOUND:
            world.fail(f"client {number} uses slot {key} again past {len(self.waiters)} waiters")

    def _is_calm(self, moment: float) -> bool:
        return moment >= self.calm_since

    def told_full(self, client: SimClient, asked: float, weight: int) -> None:
        """A caller that tried once, at `asked`, was told that fewer than `weight` are free."""
        if not self._full[weight] and self._full_until[weight] < asked:
            self.world.fail(f"client {client.number} was told that it is full, which it was not")

    def _note_crowded(self) -> None:
        for number, was in self._crowded.items():
            crowded = len(self._queue) >= number
            if was or crowded:
                self._crowded[number], self._crowded_until[number] = crowded, self.world.now

    def told_refused(self, client: SimClient, asked: float, most: int, weight: int) -> None:
        """A caller, which asked at `asked`, was told that `most` wait already."""
        self.world.counters["refused by a full queue"] += 1
        if most == 0:
            self.told_full(client, asked, weight)
        elif not self._crowded[most + 1] and self._crowded_until[most + 1] < asked:
            self.world.fail(f"client {client.number} was refused, but fewer than {most} waited")

    def _check_crowd(self) -> None:
        """Check that no more wait than may: an instant is what it takes to leave."""
        since = max(self.calm_since, self.world.now - 1.0)
        stay = [
            key for key, joined in self._queue.items() if joined < since and key in self.waiters
        ]
        if self.world.now > self.calm_since + 1.0 and len(stay) > self.max_waiting:
            owners = [self.world.owners.get(self.waiters[key].lease) for key in stay]
            if sum(one is not None and one.fine for one in owners) > self.max_waiting:
                self.world.fail(f"{len(stay)} wait, and {self.max_waiting} may")

    def told_too_heavy(self, client: SimClient, asked: float, weight: int) -> None:
        """A caller, which asked at `asked`, was told that the limit is lower than its weight."""
        self.world.counters["told that it is too heavy"] += 1
        ends = [since for since, _ in self._limits[1:]] + [math.inf]
        limits = [limit for (_, limit), end in zip(self._limits, ends, strict=True) if end >= asked]
        if not any(0 < limit < weight for limit in limits):
            self.world.fail(
                f"client {client.number} was told that {weight} is too much, the limits were "
                f"{limits}"
            )

    def told_closed(self, client: SimClient, asked: float) -> None:
        """A caller, which asked at `asked`, was told that the semaphore is closed."""
        if not self._closed and self._closed_until < asked:
            self.world.fail(f"client {client.number} was told that it is closed, which it was not")

    def told_evicted(self, client: SimClient) -> None:
        """A caller was told that it was evicted while it waited."""
        self.world.counters["told that it is evicted"] += 1
        leases = [one for one in self.turned_away if self.world.owners.get(one) is client]
        if leases:
            del self.turned_away[leases[0]]
        else:
            self.world.fail(f"client {client.number} was told that it is evicted, which it was not")

    def ended(self, grant: Grant) -> None:
        """A caller has finished with a grant."""
        for slot in grant.slots:
            belief = self.beliefs.get((slot, grant.token))
            if belief is not None and belief.grant is grant:  # else it is used again
                del self.beliefs[slot, grant.token]
                self.evicted.pop((slot, grant.token), None)
                self.bounds.pop((slot, grant.token), None)

    # -- regularly

    def look(self) -> None:
        """Check what must be true between revisions too, while there are no faults."""
        self._note_idle()
        self.check_idle()
        self._check_bounds()
        self._check_waiting()
        self._check_crowd()
        now = self.world.now
        for key, moment in self.evicted.items():
            belief = self.beliefs.get(key)
            since = max(moment, self.calm_since)
            if belief is None or not belief.client.fine or now <= since + self.told_bound:
                continue
            if self._relies(belief):
                self.world.fail(
                    f"client {belief.client.number} still relies on slot {key[0]} (token "
                    f"{key[1]}), which was taken by hand {now - moment:.2f} s ago"
                )

    def _check_waiting(self) -> None:
        """Check that no evicted waiter still waits, and nobody waits out of the queue while there
        is room.
        """
        now, left_out = self.world.now, dict[int, float]()
        room = self._room() - sum(demand_of(kv).weight for kv in self.waiters.values())
        held = {kv.lease for kv in self.slots.values()}
        for client in self.world.clients:
            station = client.session.semaphores.get(self.station) if client.fine else None
            for waiting in station.waiters if station else ():
                lease = waiting.lease.id
                evicted = max(self.turned_away.get(lease, math.inf), self.calm_since)
                if now > evicted + self.told_bound:
                    self.world.fail(f"client {client.number} still waits, though it was evicted")
                out = waiting.created and self.keys.waiter(waiting.who) not in self.waiters
                if out and lease not in held and waiting.demand.weight <= room:
                    left_out[lease] = self._left_out.get(lease, now)
                    if now > max(left_out[lease], self.calm_since) + self.left_out_bound:
                        self.world.fail(
                            f"client {client.number} waits out of the queue, and there is room"
                        )
        self._left_out = left_out

    def check_known(self) -> None:
        """Check that every slot whose lease is kept alive belongs to a grant its client knows."""
        for kv in self.slots.values():
            owner = self.world.owners.get(kv.lease)
            if owner is None or not owner.fine:
                continue
            lease = owner.session.leases.live.get(kv.lease)
            if lease is None:
                continue
            tokens = {grant.token for grant in owner.session.grants()}
            if kv.mod_revision not in tokens and lease.state != "busy":
                self.world.fail(f"client {owner.number} keeps {kv.key!r} alive, and nobody has it")

    def check_nothing_left(self) -> None:
        """Check that no key of the semaphore is left except the limit, and the mark."""
        keys = self.keys
        for kv in self.world.etcd.keys(keys.base, keys.base_end):
            if self.may_stay(kv.key):
                self.world.counters["marks left"] += 1
            elif kv.key != keys.max_leases:
                self.world.fail(f"{kv.key!r} was left behind, with lease {kv.lease:x}")

    def may_stay(self, key: bytes) -> bool:
        """May a key be left at the end?"""
        return key in (self.keys.contended, self.keys.priorities)
