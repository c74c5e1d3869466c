"""Judges the starts of a rate limit: rules 1 to 3 of `rates`."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from etcdsem.core import permits, rates
from etcdsem.core.keys import read_limit
from etcdsem.model import Rate
from tests.simulation.checks import Checker
from tests.simulation.client import SimClient
from tests.simulation.world import World

if TYPE_CHECKING:
    from etcdsem.testing.history import Revision


@dataclass
class Era:
    """A limit, and when it was in force."""

    revision: int
    rate: Rate
    paused: bool
    until: float = math.inf

    @property
    def slots(self) -> int:
        """Number of blocks that it allows."""
        return self.rate.starts // self.rate.block


class Counted:
    """The starts of one slot that still count, made since its client's clock last jumped."""

    def __init__(self, era: Era, client: SimClient, block: permits.Block) -> None:
        self.era = era
        self.block = block
        self.client = client
        self.offset = client.offset
        self.moments: deque[float] = deque()

    def forget(self, now: float) -> None:
        """Remove those that no longer count. One second of a slow clock is a little longer than
        one of the world's.
        """
        past = now - self.era.rate.period + 1.01 * (self.client.offset - self.offset)
        while self.moments and self.moments[0] <= past:
            self.moments.popleft()


class Windows:
    """Judges starts by the world's clock."""

    def __init__(self, world: World, checker: Checker, *, faulty: bool) -> None:
        self.world = world
        self.faulty = faulty
        self.checker = checker  # it observes each revision first
        self.eras: list[Era] = []
        self.counting: dict[tuple[bytes, int, float], Counted] = {}
        """By the slot's key, the token of its grant, and the client's clock offset."""
        self.moments: list[float] = []  # of all starts
        world.etcd.observers.append(self._revision)

    @property
    def in_force(self) -> Era | None:
        """The current limit, if it is a rate."""
        return self.eras[-1] if self.eras and self.eras[-1].until == math.inf else None

    def _revision(self, revision: Revision) -> None:
        for event in revision.events:
            if event.kv.key != self.checker.keys.max_leases:
                continue
            if self.in_force is not None:
                self.in_force.until = self.world.now
            limit = read_limit(event.kv) if event.kind == "put" else None
            if limit is not None and limit.rate is not None:
                self.eras.append(Era(event.kv.mod_revision, limit.rate, limit.paused))

    def longest(self) -> float:
        """The longest period of any limit so far."""
        return max(era.rate.period for era in self.eras)

    def _lag(self) -> float:
        """Maximum seconds between a grant in etcd and its start: as long as a lease may last.
        Without faults: until a newly opened block has heard of another limit.
        """
        if not self.faulty:
            return permits.LISTEN_AFTER + 0.2
        return max(rates.lease_ttl(era.rate) for era in self.eras) + 5.0

    def started(self, client: SimClient, started: permits.Started) -> None:
        """A program was given a start: so many permits of some blocks."""
        for block, count in started.parts:
            self._counts(client, block, count)
        self._forget()
        for block, _ in started.parts:
            self._judge(next(one for one in self.eras if one.revision == block.revision))

    def _counts(self, client: SimClient, block: permits.Block, count: int) -> None:
        """So many permits of a block were handed out: its slots are used in order."""
        world, now = self.world, self.world.now
        self.moments += [now] * count
        era = next((one for one in self.eras if one.revision == block.revision), None)
        if era is None:
            world.fail(f"a start under a limit that never existed, revision {block.revision}")
            return
        if era.paused or era.until < now - self._lag():
            world.fail(f"a start under {era}, at {now}")
        if era.until < now:
            world.counters["starts under a former limit"] += 1
        grant, used = block.grant, block.size * len(block.grant.slots) - block.left
        for place in range(used - count, used):
            slot = grant.slots[place // block.size]
            key = self.checker.keys.slot(slot), grant.token, client.offset
            if key not in self.counting:
                self.counting[key] = Counted(era, client, block)
            self.counting[key].moments.append(now)

    def settled(self, started: permits.Started, when: float, unused: int) -> None:
        """So many permits of a start at this time were not used: they no longer count."""
        for block, count in reversed(started.parts):
            back = min(count, max(0, unused))
            unused -= back
            for counted in self.counting.values():
                while back and counted.block is block and when in counted.moments:
                    counted.moments.remove(when)
                    back -= 1

    def _forget(self) -> None:
        """Remove what no longer counts."""
        world, now = self.world, self.world.now
        for key, counted in list(self.counting.items()):
            counted.forget(now)
            if key[:2] in self.checker.by_hand:
                world.counters["starts that were taken by hand"] += len(counted.moments)
                counted.moments.clear()
            if not counted.moments:
                del self.counting[key]

    def _judge(self, era: Era) -> None:
        counting = self.counting.values()
        own = sum(len(one.moments) for one in counting if one.era is era)
        self._at_most(own, era.rate.starts, era.rate.period)
        kin = [one for one in counting if one.era.rate[1:] == era.rate[1:]]
        alike = [one for one in self._since(kin) if one.rate[1:] == era.rate[1:]]
        most = max((one.rate.starts for one in alike), default=era.rate.starts)
        self._at_most(sum(len(one.moments) for one in kin), most, era.rate.period)
        counts: Counter[permits.Block] = Counter()
        for one in counting:
            counts[one.block] += len(one.moments)
        slots = sum(-(-count // block.size) for block, count in counts.items())
        allowed = max((one.slots for one in self._since(counting)), default=era.slots)
        if slots > allowed:
            self.world.fail(f"starts within their periods are of {slots} slots, not of {allowed}")

    def _since(self, counting: Iterable[Counted]) -> list[Era]:
        """The limits in force since the first of these was granted."""
        since = min((one.moments[0] for one in counting), default=self.world.now) - self._lag()
        return [era for era in self.eras if era.until >= since]

    def _at_most(self, count: int, limit: int, period: float) -> None:
        if count > limit:
            self.world.fail(f"{count} starts within {period} s, the limit is {limit}")

    def use(self, rate: Rate, since: float) -> float | None:
        """The fraction that was used: the period, divided by the average time from a start to the
        one that is `rate.starts` later. None if there are too few.
        """
        moments = [moment for moment in self.moments if moment >= since]
        took = [b - a for a, b in zip(moments, moments[rate.starts :], strict=False)]
        return rate.period * len(took) / sum(took) if took else None
