"""Runs of a rate limit in the simulator: ``python -m tests.simulation --rates --seeds 0:200``.

Clients request starts, with faults and then without, all on virtual time. The limit, the period
and the block are changed meanwhile, and operators delete keys, write junk and close it. Everything
is judged by the world's own clock, which no client can see. A start *counts* for the period that
was in force when it was made; it stops counting when an operator takes its slot, and counts for
less time by as much as its client's clock has jumped ahead since.

1. When a start is made, no more starts under the same limit count than it allows, and together with
   those under other limits of the same period and block no more than the highest of these limits
   that were in force.
2. Nor do starts of more slots count than the highest number of slots that was in force, however
   the period and block were changed.
3. The limit under which it is made was in force a moment ago (`_lag`), and was not paused.
4. With enough demand and without faults, also after faults, at least 95 % is used.
5. The checks of any semaphore (`checks`): slots, FIFO, nobody waits while there is room. A slot
   with the record of a permit is no room while any client's time of day says so.

In some runs starts cost several permits, and are settled later: then what was not used does not
count any more. In some they take permits of a second rate limit, too, which is judged likewise.

In some runs etcd ends leases early, as a leader does that was stopped and resumes; then the clocks
of the clients agree within `AGREE`. In others they differ by anything, and leases end on time. If
both happened, more permits than the limit could count.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING

from etcdsem.core import admin, permits, rates, settle
from etcdsem.core.commands import NoSpace, NotApplied, OutcomeUnknown, Procedure, Wait, perform
from etcdsem.core.keys import (
    Identity,
    PermitRecord,
    permit,
    permit_slot,
    read_limit,
    read_permit,
)
from etcdsem.errors import EtcdRefused, EtcdSemError, EtcdUnavailable, Evicted, WeightExceedsLimit
from etcdsem.model import Rate
from tests.simulation.checks import Checker
from tests.simulation.client import SimClient
from tests.simulation.nemesis import Nemesis
from tests.simulation.options import Options
from tests.simulation.outcome import Outcome, play
from tests.simulation.runs import SETTLE
from tests.simulation.windows import Windows
from tests.simulation.world import CALM, PREFIX, Cancelled, World

if TYPE_CHECKING:
    from etcdsem.core.commands import KeyValue
    from etcdsem.testing.history import Revision

NAME = "rate"
SECOND = "again"

PERIODS = (0.5, 1.0, 1.0, 2.0, 2.0, 5.0, 5.0, 10.0, 10.0, 30.0)
"""Longer periods would show nothing else but drift, for which 30 s is long enough."""

OPEN = 8
"""Seeds that end with this digit have blocks that are open for seconds, and no faults; the limit is
changed under them."""

AGREE = 0.2
"""Seconds by which clocks that agree may differ."""

ODD = frozenset({"garbage limit", "close"})
"""Kinds of faults after which a caller may be told that the limit is not a rate, or not known."""


@dataclass(frozen=True)
class RateOptions:
    """One run, as drawn from its seed."""

    faults: Options
    rate: Rate
    changes: bool
    """Is the limit changed, paused and resumed from time to time?"""
    reshapes: bool
    """Are the period and the block changed, too?"""
    hungry: bool
    """Does everybody want as many starts as possible?"""
    early: bool = False
    """Does etcd end leases early?"""
    clocks: tuple[float, ...] = (0.0,)
    """How much the clients' times of day may differ at most: one is drawn for each client."""
    cost: int = 1
    """Maximum number of permits that a start costs."""
    second: Rate | None = None
    """Another rate limit, of which most starts take a permit, too."""

    @classmethod
    def of(cls, seed: int) -> RateOptions:
        """Draw them from a seed."""
        drawn, rng = cls._drawn(seed)._costly()._paired(), Random(f"their clocks, {seed}")
        if not drawn.faults.kinds or rng.random() < 0.3:
            return drawn
        if rng.random() < 0.6:
            return replace(drawn, early=True, clocks=(AGREE,))
        return replace(drawn, clocks=(0.0, AGREE, 10.0, 100.0, 1e6))

    def _costly(self) -> RateOptions:
        """The same options, in some runs with starts that cost more than one permit."""
        rng = Random(f"what they cost, {self.faults.seed}")
        if rng.random() < 0.7 or self.faults.seed % 10 == OPEN:
            return self
        rate, slots = self.rate, rng.choice((10, 20, 80))
        rate = rate._replace(starts=slots * rate.block)
        return replace(self, rate=rate, cost=rng.choice((rate.starts // 10, rate.starts)))

    def _paired(self) -> RateOptions:
        """The same options, in some runs with a second rate limit."""
        rng = Random(f"what else they need, {self.faults.seed}")
        if rng.random() < 0.8 or self.faults.seed % 10 == OPEN:
            return self
        block = rng.choice((1, 1, 4))
        second = Rate(block * rng.choice((2, 5, 10)), rng.choice(PERIODS), block)
        return replace(self, second=second)

    @classmethod
    def _drawn(cls, seed: int) -> RateOptions:
        faults = Options.of(seed)
        rng = Random(seed * 2 + 7)
        quiet = seed % 5 == 0
        kinds = frozenset() if quiet else faults.kinds - {"resize"}  # done by `_change` instead
        period = rng.choice(PERIODS)
        block = rng.choice((1, 1, 1, 4, 10))
        slots = rng.choice((1, 2, 3, 5, 10))
        rate = Rate(slots * block, period, block)
        hungry = quiet or rng.random() < 0.3
        clients = max(2, faults.clients)
        # Demand: a served worker is away for some milliseconds, and others must be there meanwhile.
        workers = max(faults.workers, math.ceil(slots / clients) if hungry else 1)
        faults = replace(
            faults,
            kinds=kinds,
            weather=faults.weather if "weather" in kinds else CALM,
            semaphores=1,
            ttl=rates.lease_ttl(rate),
            # As far off as the margin for drift allows.
            drift=rng.choice((0.0, 0.5 * permit.DRIFT, permit.DRIFT)),
            patience=(math.inf,) if hungry else faults.patience,
            tries=0.0 if hungry else faults.tries,
            break_for_good=False,
            clients=clients,
            workers=workers,
            fault_time=max(faults.fault_time, 6 * period),
        )
        changes = not quiet and rng.random() < 0.4
        reshapes = changes and rng.random() < 0.6
        if seed % 10 == OPEN:
            return cls._open(faults, rng)
        return cls(faults, rate, changes, reshapes, hungry)

    @classmethod
    def _open(cls, faults: Options, rng: Random) -> RateOptions:
        """Blocks that are open for seconds, and no faults."""
        rate = Rate(10 * rng.choice((2, 40)), 60.0, 10)
        faults = replace(
            faults,
            kinds=frozenset(),
            weather=CALM,
            ttl=rates.lease_ttl(rate),
            clients=2,
            workers=rng.choice((1, 3)),
            idle=1.0,
            fault_time=300.0,
            calm_time=60.0,
        )
        return cls(faults, rate, changes=True, reshapes=rng.random() < 0.5, hungry=False)


class _Nemesis(Nemesis):
    """A nemesis whose healing ends a pause, and keeps the rate a rate."""

    def __init__(
        self,
        world: World,
        options: Options,
        checkers: list[Checker],
        add_client: Callable[[], object],
        rate: Rate,
    ) -> None:
        super().__init__(world, options, checkers, add_client)
        self.rate = rate

    def _usual(self) -> bytes:
        return str(self.rate).encode()

    def _mended(self, good: KeyValue | None) -> bytes:
        return good.value if good and read_limit(good).rate else self._usual()


class RateChecker(Checker):
    """The checks of any semaphore, with the records of permits."""

    def __init__(self, world: World, prefix: str, name: str) -> None:
        super().__init__(world, prefix, name)
        self.records: dict[int, PermitRecord] = {}
        self._tokens: dict[bytes, int] = {}  # of the last grant of each slot

    def revision(self, revision: Revision) -> None:
        """Check the changes of a revision."""
        for event in revision.events:
            slot = permit_slot(self.keys, event.kv.key)
            if slot is None or not event.kv.key.startswith(self.keys.permits):
                continue
            found = read_permit(event.kv) if event.kind == "put" else None
            if found is not None:
                self.records[slot] = found
                continue
            self.records.pop(slot, None)
            if self.world.by_operator:
                name = self.keys.slot(slot)
                self.by_hand.add((name, self._tokens.get(name, 0)))
        super().revision(revision)
        grants = (kv for kv in self.slots.values() if kv.lease)
        self._tokens.update((kv.key, kv.mod_revision) for kv in grants)

    def _room(self) -> int:
        walls = [client.wall() for client in self.world.clients if not client.crashed]
        blocked = sum(
            self.keys.slot(slot) not in self.slots and any(map(record.left, walls))
            for slot, record in self.records.items()
        )
        return max(0, super()._room() - blocked)

    def may_stay(self, key: bytes) -> bool:
        """May a key be left at the end? A permit's record may: it blocks nobody for long."""
        return super().may_stay(key) or key.startswith(self.keys.permits)


class RateRun:
    """One world with a rate limit."""

    def __init__(self, options: RateOptions, *, trace: bool = False) -> None:
        self.options = options
        faults = options.faults
        self.world = world = World(faults.seed, trace=trace)
        self.clocks = Random(f"a client's clock, {faults.seed}")
        self.costs = Random(f"a start's cost, {faults.seed}")
        world.leases_may_end = bool(faults.kinds)
        self.checker = RateChecker(world, PREFIX, NAME)
        late = faults.reread[1] if faults.kinds & {"lost deletes"} else 0.0
        self.checker.bound += late
        self.checker.left_out_bound += late
        if not options.early:  # else a pause may end early, too
            world.on_penalized = lambda name, began, seconds: self.checker.penalized(began, seconds)
        self.windows = Windows(world, self.checker, faulty=bool(faults.kinds))
        self.second: Windows | None = None
        self.checkers: list[Checker] = [self.checker]
        if options.second is not None:
            there = RateChecker(world, PREFIX, SECOND)
            there.bound, there.left_out_bound = self.checker.bound, self.checker.left_out_bound
            self.checkers.append(there)
            self.second = Windows(world, there, faulty=bool(faults.kinds))
            world.etcd.put(there.keys.max_leases, str(options.second).encode())
        self.stopping = False
        self.settled = False  # the limit is not changed any more
        world.etcd.put(f"{PREFIX}/{NAME}/max_leases".encode(), str(options.rate).encode())
        self.nemesis = _Nemesis(world, faults, self.checkers, self.add_client, options.rate)
        for _ in range(faults.clients):
            self.add_client()
        if options.changes:
            world.after(world.rng.random() * 5.0, self._change)
        if options.early:
            world.after(world.rng.random() * 5.0, self._end_early)

    def add_client(self) -> SimClient:
        """Add a client, with its workers."""
        world, faults = self.world, self.options.faults
        drift = 1.0 + faults.drift * (2 * world.rng.random() - 1)
        client = SimClient(world, len(world.clients), rate=drift)
        client.session.reread = faults.reread
        client.wall_offset = self.clocks.choice(self.options.clocks) * self.clocks.uniform(-1, 1)
        if not self.stopping:
            for number in range(faults.workers):
                client.start(self.worker(client), f"worker{number}", self._done)
        return client

    def _done(self, _value: None, error: BaseException | None) -> None:
        if error is not None and not isinstance(error, Cancelled):
            self.world.failure = self.world.failure or error

    # -- the callers

    def worker(self, client: SimClient) -> Procedure[None]:
        """Request starts until the run stops."""
        world, options, rng = self.world, self.options, self.world.rng
        station = client.session.semaphore(PREFIX, NAME)
        station.slots.group.lanes = options.faults.lanes
        box = client.mailbox()
        while not self.stopping and not client.session.closed:
            try:
                idle = 0.0 if options.hungry else rng.expovariate(1 / options.faults.idle)
                yield from perform(Wait(box, client.now() + idle))
                started = yield from self._start(client)
                if started is None:
                    yield from perform(Wait(box, client.now() + 0.05 * rng.random()))
            except Cancelled:
                world.counters["cancelled"] += 1

    def _start(self, client: SimClient) -> Procedure[permits.Started | None]:
        world, faults, rng = self.world, self.options.faults, self.world.rng
        station = client.session.semaphore(PREFIX, NAME)
        once = rng.random() < faults.tries
        patience = 0.0 if once else rng.choice(faults.patience)
        if 0.0 < patience < math.inf:
            patience *= rng.random()
        request = rates.permit_request(Identity.of(client.id, None, {}))
        try:
            until, cost = client.now() + patience, self.costs.randint(1, self.options.cost)
            wanted = [rates.StartRequest(station, request, cost)]
            if self.second is not None and rng.random() < 0.8:
                other = client.session.semaphore(PREFIX, SECOND)
                wanted.insert(rng.randrange(2), rates.StartRequest(other, request))
            starts = yield from rates.start_all(wanted, until, once=once)
        except (EtcdUnavailable, EtcdRefused, NoSpace, NotApplied, OutcomeUnknown) as error:
            world.counters[f"start raises {type(error).__name__}"] += 1
            if not faults.kinds and client.fine:
                world.fail(f"without faults, client {client.number}'s start raises {error!r}")
            return None
        except Evicted:
            self.checker.told_evicted(client)
            return None
        except WeightExceedsLimit:
            if not self.options.changes and not faults.kinds & ODD:
                raise
            world.counters["starts that cost more than the limit"] += 1
            return None
        except EtcdSemError as error:
            if not client.session.closed and not faults.kinds & ODD:
                raise
            world.counters[f"start raises {type(error).__name__}"] += 1
            return None
        if starts is None:
            return None
        client.trace("starts")
        for wish, started in zip(wanted, starts, strict=True):
            windows = self.windows if wish.semaphore is station else self.second
            if windows is not None:
                windows.started(client, started)
        if cost > 1 and self.costs.random() < 0.4:
            own = next(n for n, one in enumerate(wanted) if one.semaphore is station)
            yield from self._settle(client, settle.Paid(wanted[own], starts[own]))
        return starts[0]

    def _settle(self, client: SimClient, paid: settle.Paid) -> Procedure[None]:
        """It has used less than it cost, or more."""
        period, cost, when = self.options.rate.period, paid.wanted.cost, self.world.now
        yield from perform(Wait(client.mailbox(), client.now() + period * self.costs.random()))
        used = self.costs.randint(0, cost + 1)
        self.world.counters["settled"] += 1
        self.windows.settled(paid.started, when, cost - used)
        settle.settle(paid, used)

    # -- etcd

    def _end_early(self) -> None:
        """End leases that are kept alive: all, or some of them."""
        world, rng = self.world, self.world.rng
        if self.nemesis.stopped:
            return
        world.after(rng.expovariate(1.0 / max(2.0, self.options.rate.period)), self._end_early)
        share = rng.choice((0.2, 0.5, 1.0))
        for lease in [one for one in world.etcd.leases if rng.random() < share]:
            world.counters["leases that end early"] += 1
            world.trace("etcd", f"ends lease {lease:x} early")
            world.etcd.revoke(lease)

    # -- the limit

    def _change(self) -> None:
        """Change, pause or resume the limit."""
        world = self.world
        if self.stopping or self.settled:
            return
        world.after(world.rng.expovariate(0.2), self._change)
        clients = [client for client in world.clients if client.fine]
        if not clients:
            return
        client = world.rng.choice(clients)
        station = client.session.semaphore(PREFIX, NAME)
        world.counters["limit changes"] += 1
        what = world.rng.random()
        if what < 0.2:
            client.administer(admin.pause(station, "sim", None), "pause")
        elif what < 0.5:
            client.administer(admin.resume(station), "resume")
        elif what < 0.9:
            changed = self._another_rate()
            client.administer(admin.resize(station, changed), f"resize {changed}")
        else:
            put = str(self._another_rate()).encode()
            world.operate("resize", lambda: world.etcd.put(self.checker.keys.max_leases, put))

    def _another_rate(self) -> Rate:
        rng, rate = self.world.rng, self.options.rate
        slots = rng.randint(1, 2 * (rate.starts // rate.block))
        if not self.options.reshapes:
            return Rate(slots * rate.block, rate.period, rate.block)
        self.world.counters["changes of period and block"] += 1
        block = rng.choice((1, 4, 10))
        return Rate(slots * block, rng.choice(PERIODS[:-1]), block)

    # -- the run

    def go(self) -> None:
        """Run to the end; raises the first violation."""
        world, faults, windows = self.world, self.options.faults, self.windows
        world.run(faults.fault_time)
        self.settled = self.options.hungry
        self.nemesis.heal()
        world.run(world.now + SETTLE + 2 * rates.lease_ttl(Rate(1, self._longest(), 10)))
        began = world.now
        for checker in self.checkers:
            checker.calm_since = began
        before = len(windows.moments)
        self.nemesis.let_in()
        self._look_for(max(faults.calm_time, 4 * self._longest()))
        if self.options.hungry and self.second is None:
            self._judge_use(began)
        elif len(windows.moments) == before and self.checker.limit:
            world.fail("nobody was given a start while there were no faults")
        self.stopping = True
        for client in world.clients:
            if client.fine:
                client.shut_down(10.0)
        self.nemesis.clean()
        world.run(world.now + 2 * rates.lease_ttl(Rate(1, self._longest(), 10)) + 15.0)
        for checker in self.checkers:
            checker.check_nothing_left()
        world.run(world.now)

    def _longest(self) -> float:
        """The longest period of any limit so far."""
        return max(one.longest() for one in (self.windows, self.second) if one is not None)

    def _look_for(self, seconds: float) -> None:
        until = self.world.now + seconds
        while self.world.now < until:
            self.world.run(min(until, self.world.now + 0.5))
            self.nemesis.let_in()
            for checker in self.checkers:
                checker.look()

    def _judge_use(self, since: float) -> None:
        world, era = self.world, self.windows.in_force
        if era is None or era.paused:
            world.fail(f"the limit was not fixed: {era}")
            return
        used = self.windows.use(era.rate, since)
        # The first in the queue waits for as many as it needs, and nobody passes it.
        least = 0.95 if self.options.cost == 1 else 0.85  # then some are settled, or charged later
        least *= 1 - (self.options.cost - 1) / era.rate.starts
        if used is None or used < least:
            world.fail(f"only this fraction of {era.rate} was used: {used}")
            return
        world.counters["use, in tenths of a percent"] = round(1000 * used)
        world.counters["uses that were judged"] += 1

    def count(self) -> None:
        """Add to the counters what is known at the end."""
        self.world.counters["starts"] = len(self.windows.moments)


def run_rate(seed: int, *, trace: bool = False, options: RateOptions | None = None) -> Outcome:
    """Run one seed. Every run of the same seed and options is exactly the same."""
    chosen = options or RateOptions.of(seed)
    return play(chosen.faults, lambda: RateRun(chosen, trace=trace), rates=chosen)


__all__ = ["RateOptions", "RateRun", "run_rate"]
