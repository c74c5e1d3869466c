"""What must be true of every run, judged from etcd's own history and from what clients believe.

At every revision of etcd:
1. No slot is granted while more than the limit in force are held, nor at or above the limit.
2. A held slot's key is rewritten only by a hand-over; the fencing token is its mod revision.
3. A slot goes to the first in line (by create revision) of those whose waiter key is there; who
   did not stand in line gets one only while nobody stands there.
4. What a key carries is no lease that its client has back in its pool.
5. A slot key ends only after its holder has stopped to rely on it: released, past its own
   deadline, or told; except by a person's hand, and then the holder is told soon.

When a grant is given to a caller:
6. Its lease is valid by its clock, its key is in etcd with that token, and no more callers rely
   on grants than the limit allows (where nobody changed the limit in this run).

While there are no faults:
7. A slot does not stay free while somebody stands in line. Nobody is told that etcd is away.
8. Every slot that is kept alive belongs to a grant that its client knows.

At the end:
9. All callers have returned, and no key is left but the limit (and the mark).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from etcdsem.core.commands import KeyValue
from etcdsem.core.keys import Keys, read_limit, slot_number

if TYPE_CHECKING:
    from etcdsem.core.station import Grant
    from etcdsem.testing.model import Revision
    from etcdsem.testing.simulator import SimClient, World


class Belief(NamedTuple):
    """A caller relies on a grant."""

    client: SimClient
    grant: Grant


class Checker:
    """Judges one semaphore in one world."""

    def __init__(self, world: World, prefix: str, name: str) -> None:
        self.world = world
        self.keys = Keys(prefix, name, "nobody.0.x")
        self.slots: dict[bytes, KeyValue] = {}  # well-formed names; junk is no grant
        self.waiters: dict[bytes, KeyValue] = {}  # those in line: attached to the lease they name
        self.limit = 0
        self.beliefs: dict[tuple[int, int], Belief] = {}  # by slot and token
        self.evicted: dict[tuple[int, int], float] = {}  # beliefs ended by hand, and when
        self.by_hand: set[tuple[bytes, int]] = set()  # slot keys and tokens that a person ended
        self.limits_changed = False
        self.tampered = False  # slots were written by hand
        self.calm_since = math.inf  # no faults since then
        self.bound = 3.0  # seconds that a slot may be free while somebody waits
        self.told_bound = 4.0  # seconds until a holder hears of an eviction
        self._idle_since = math.inf
        self._full = True  # no slot is free, or others stand in line
        self._full_until = 0.0
        self._closed = True
        self._closed_until = 0.0
        self._highest = 0
        world.etcd.observers.append(self.revision)

    # -- at every revision

    def revision(self, revision: Revision) -> None:
        """Judge what a revision changed."""
        self.check_idle()
        keys, hand = self.keys, self.world.by_operator
        left: dict[int, int] = {}  # leases whose waiter key goes now: when they came
        granted: list[tuple[KeyValue, KeyValue | None]] = []
        for event in revision.events:
            kv = event.kv
            if not kv.key.startswith(keys.base):
                continue
            if kv.key == keys.max_leases:
                self._limit_changed(kv if event.kind == "put" else None)
            elif kv.key.startswith(keys.leases) and slot_number(keys, kv.key) is not None:
                before = self.slots.pop(kv.key, None)
                if event.kind == "put":
                    self.slots[kv.key] = kv
                    granted.append((kv, before))
                if before is not None:
                    self._ended(before, hand)
            elif keys.waiters <= kv.key < keys.waiters_end:
                gone = self.waiters.pop(kv.key, None)
                if event.kind == "put" and kv.key.endswith(b"/%016x" % kv.lease) and kv.lease:
                    self.waiters[kv.key] = kv
                    self._check_lease(kv)
                elif gone is not None:
                    left[gone.lease] = gone.create_revision
        if hand:
            self.tampered = self.tampered or bool(granted)
        else:
            for kv, before in granted:
                self._granted(kv, before, left)
        self._note_idle()

    def _limit_changed(self, kv: KeyValue | None) -> None:
        self.limits_changed = self.limits_changed or self.limit != 0
        self.limit = read_limit(kv).room if kv else 0
        if self._closed or kv is None:
            self._closed, self._closed_until = kv is None, self.world.now

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

    def _granted(self, kv: KeyValue, before: KeyValue | None, left: dict[int, int]) -> None:
        world, keys = self.world, self.keys
        slot = slot_number(keys, kv.key)
        if slot is None or kv.lease == 0:
            world.fail(f"a key was written that is no slot: {kv}")
            return
        world.counters["grants"] += 1
        if len(self.slots) > self.limit:
            world.fail(f"{len(self.slots)} held, the limit is {self.limit}: granted {kv}")
        if slot >= self.limit:
            world.fail(f"slot {slot} was granted, the limit is {self.limit}")
        if kv.mod_revision <= self._highest:
            world.fail(f"fencing token {kv.mod_revision} after {self._highest}")
        self._highest = kv.mod_revision
        if any(other.lease == kv.lease for key, other in self.slots.items() if key != kv.key):
            world.fail(f"{kv.key!r} was granted to a lease that holds another slot already")
        queue = [other.create_revision for other in self.waiters.values()]
        came = left.get(kv.lease)
        if came is None:
            if queue:
                world.fail(f"{kv.key!r} was granted past {len(queue)} waiters in line")
            if before is not None:
                world.fail(f"the held slot {kv.key!r} was rewritten")
        else:
            world.counters["hand-overs" if before else "fills"] += 1
            if self.calm_since > world.now:
                world.counters["hand-overs under fault"] += 1
            if queue and min(queue) < came:
                world.fail(f"{kv.key!r} went to waiter {came} before {min(queue)}: not FIFO")
        self._check_lease(kv)

    def _check_lease(self, kv: KeyValue) -> None:
        owner = self.world.owners.get(kv.lease)
        if owner is None or owner.crashed:
            return
        lease = owner.session.keeper.leases.get(kv.lease)
        if lease is not None and lease.state == "spare":
            self.world.fail(f"{kv.key!r} was written with a lease of client {owner.number}'s pool")

    # -- idle slots

    def _note_idle(self) -> None:
        full = bool(self.waiters) or not self._room()
        if self._full or full:
            self._full, self._full_until = full, self.world.now
        idle = bool(self.waiters) and self._room() and self._somebody_lives()
        if not idle:
            self._idle_since = math.inf
        elif self._idle_since == math.inf:
            self._idle_since = self.world.now

    def _room(self) -> bool:
        if len(self.slots) >= self.limit:
            return False
        return any(self.keys.slot(slot) not in self.slots for slot in range(self.limit))

    def _somebody_lives(self) -> bool:
        owners = (self.world.owners.get(kv.lease) for kv in self.waiters.values())
        return any(owner is not None and owner.fine for owner in owners)

    def check_idle(self) -> None:
        """Has a slot been free for too long while somebody waited, without faults?"""
        since = max(self._idle_since, self.calm_since)
        if self.world.now > since + self.bound:
            self.world.fail(
                f"a slot was free for {self.world.now - since:.2f} s while "
                f"{len(self.waiters)} stood in line"
            )
            self._idle_since = math.inf

    # -- callers

    def acquired(self, client: SimClient, grant: Grant) -> None:
        """A caller was given a grant."""
        world = self.world
        now = client.now()
        if not grant.valid(now):
            world.fail(f"client {client.number} was given a grant whose lease has run out")
        kv = self.slots.get(self.keys.slot(grant.slot))
        key = (grant.slot, grant.token)
        if key in self.beliefs:
            world.fail(f"slot and token {key} were given twice")
        self.beliefs[key] = Belief(client, grant)
        if kv is None or kv.mod_revision != grant.token or kv.lease != grant.lease.id:
            if (self.keys.slot(grant.slot), grant.token) in self.by_hand:
                self.evicted[key] = world.now
            else:
                world.fail(f"client {client.number} was given {key}, etcd has {kv}")
        elif not self.limits_changed and not self.tampered:
            relying = [b for k, b in self.beliefs.items() if k not in self.evicted]
            count = sum(map(self._relies, relying))
            if count > self.limit:
                world.fail(f"{count} callers rely on a grant, the limit is {self.limit}")
            world.counters["most holders"] = max(world.counters["most holders"], count)

    def told_full(self, client: SimClient, asked: float) -> None:
        """A caller who tried once, at `asked`, was told that it is full."""
        if not self._full and self._full_until < asked:
            self.world.fail(f"client {client.number} was told that it is full, which it was not")

    def told_closed(self, client: SimClient, asked: float) -> None:
        """A caller, who asked then, was told that the semaphore is closed."""
        if not self._closed and self._closed_until < asked:
            self.world.fail(f"client {client.number} was told that it is closed, which it was not")

    def ended(self, grant: Grant) -> None:
        """A caller has done with a grant."""
        self.beliefs.pop((grant.slot, grant.token), None)
        self.evicted.pop((grant.slot, grant.token), None)

    # -- now and then

    def look(self) -> None:
        """What must be true between revisions too, while there are no faults."""
        self._note_idle()
        self.check_idle()
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

    def check_known(self) -> None:
        """Every slot whose lease is kept alive belongs to a grant that its client knows."""
        for kv in self.slots.values():
            owner = self.world.owners.get(kv.lease)
            if owner is None or not owner.fine:
                continue
            lease = owner.session.keeper.leases.get(kv.lease)
            if lease is None:
                continue
            tokens = {grant.token for grant in owner.session.grants()}
            if kv.mod_revision not in tokens and lease.state != "busy":
                self.world.fail(f"client {owner.number} keeps {kv.key!r} alive, and nobody has it")

    def check_nothing_left(self) -> None:
        """No key of the semaphore is left but the limit, and the mark."""
        keys = self.keys
        for kv in self.world.etcd.keys(keys.base, keys.base_end):
            if kv.key == keys.contended:
                self.world.counters["marks left"] += 1
            elif kv.key != keys.max_leases:
                self.world.fail(f"{kv.key!r} was left behind, with lease {kv.lease:x}")
