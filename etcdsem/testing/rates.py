"""Runs of a rate limit in the simulator: ``python -m etcdsem.testing --rates --seeds 0:200``.

Clients ask for starts; faults; then calm; all on virtual time. Judged by the world's own clock,
which no client can see:

1. In every window of the period there are at most as many starts as the limit allowed (where it
   was changed: the highest of those in force since the window began).
2. Where demand is there and nothing is faulty, at least 95 % of it is used.
3. What `checks` has to say about any semaphore: slots, FIFO, nobody waits while there is room.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING

from etcdsem.core import operating, rates
from etcdsem.core.commands import NoSpace, NotApplied, OutcomeUnknown, Procedure, Wait, perform
from etcdsem.core.keys import Identity, read_limit
from etcdsem.errors import EtcdRefused, EtcdSemError, EtcdUnavailable
from etcdsem.model import Rate
from etcdsem.testing.checks import Checker
from etcdsem.testing.faults import Nemesis, Options
from etcdsem.testing.runs import SETTLE, Outcome
from etcdsem.testing.simulator import CALM, PREFIX, Cancelled, SimClient, World

if TYPE_CHECKING:
    from etcdsem.testing.model import Revision

NAME = "rate"

HARMLESS = frozenset(
    {"operate", "clock jump", "evict", "delete key", "junk", "garbage limit", "resize", "close"}
)
"""Kinds of faults that are left out here: what a person does by hand to slots, and clocks that go
forward by themselves, for which no promise is made. The limit is changed by this module itself."""

IN_HAND = 10.0
"""Seconds from a grant in etcd to its start, at most: a change of the limit may lie between."""


@dataclass(frozen=True)
class RateOptions:
    """One run, as its seed wants it."""

    faults: Options
    rate: Rate
    changes: bool
    """Is the limit changed, paused and resumed now and then?"""
    hungry: bool
    """Does everybody want as many starts as can be had?"""

    @classmethod
    def of(cls, seed: int) -> RateOptions:
        """Draw them from a seed."""
        faults = Options.of(seed)
        rng = Random(seed * 2 + 7)
        kinds = faults.kinds - HARMLESS
        quiet = seed % 5 == 0
        period = rng.choice((0.5, 1.0, 2.0, 5.0, 10.0))
        block = rng.choice((1, 1, 1, 4, 10))
        slots = rng.choice((1, 2, 3, 5, 10))
        rate = Rate(slots * block, period, block)
        faults = replace(
            faults,
            kinds=frozenset() if quiet else kinds,
            weather=CALM if quiet or "weather" not in kinds else faults.weather,
            semaphores=1,
            ttl=rates.lease_ttl(rate),
            drift=rng.choice((0.0, 0.0005)),
            patience=(math.inf,) if quiet else faults.patience,
            tries=0.0 if quiet else faults.tries,
            break_for_good=False,
            clients=max(2, faults.clients),
            fault_time=max(faults.fault_time, 6 * period),
        )
        return cls(faults, rate, changes=not quiet and rng.random() < 0.3, hungry=quiet)


class Windows:
    """Judges starts by the world's clock."""

    def __init__(self, world: World, rate: Rate) -> None:
        self.world = world
        self.period = rate.period
        self.limits: list[tuple[float, int]] = []  # those that there were, and since when
        self.key = f"{PREFIX}/{NAME}/max_leases".encode()
        world.etcd.observers.append(self._revision)
        self.recent: deque[float] = deque()
        self.starts = 0
        self.fullest = 0

    def _revision(self, revision: Revision) -> None:
        for event in revision.events:
            if event.kv.key == self.key and event.kind == "put":
                rate = read_limit(event.kv).rate
                if rate is not None:
                    self.limits.append((self.world.now, rate.starts))

    def started(self) -> None:
        """A program was given a start."""
        now = self.world.now
        self.recent.append(now)
        self.starts += 1
        while self.recent[0] <= now - self.period:
            self.recent.popleft()
        count = len(self.recent)
        self.fullest = max(self.fullest, count)
        since = now - self.period - IN_HAND
        ends = [moment for moment, _ in self.limits[1:]] + [math.inf]
        allowed = max(
            limit for (_, limit), end in zip(self.limits, ends, strict=True) if end >= since
        )
        if count > allowed:
            self.world.fail(f"{count} starts within {self.period} s, the limit is {allowed}")


class _Nemesis(Nemesis):
    """Whose healing ends a pause, and leaves a rate a rate."""

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

    def let_in(self) -> None:
        for checker in self.checkers:
            if checker.limit == 0:
                self.world.etcd.put(checker.keys.max_leases, str(self.rate).encode())


class RateRun:
    """One world with a rate limit."""

    def __init__(self, options: RateOptions, *, trace: bool = False) -> None:
        self.options = options
        faults = options.faults
        self.world = world = World(faults.seed, trace=trace)
        self.checker = Checker(world, PREFIX, NAME)
        self.checker.bound += faults.reread[1] if faults.kinds & {"lost deletes"} else 0.0
        self.windows = Windows(world, options.rate)
        self.stopping = False
        world.etcd.put(f"{PREFIX}/{NAME}/max_leases".encode(), str(options.rate).encode())
        self.nemesis = _Nemesis(world, faults, [self.checker], self.add_client, options.rate)
        for _ in range(faults.clients):
            self.add_client()
        if options.changes:
            world.after(world.rng.random() * 5.0, self._change)

    def add_client(self) -> SimClient:
        """One more client, with its workers."""
        world, faults = self.world, self.options.faults
        drift = 1.0 + faults.drift * (2 * world.rng.random() - 1)
        client = SimClient(world, len(world.clients), rate=drift)
        client.session.reread = faults.reread
        if not self.stopping:
            for number in range(faults.workers):
                client.start(self.worker(client), f"worker{number}", self._done)
        return client

    def _done(self, _value: None, error: BaseException | None) -> None:
        if error is not None and not isinstance(error, Cancelled):
            self.world.failure = self.world.failure or error

    # -- what a caller does

    def worker(self, client: SimClient) -> Procedure[None]:
        """Ask for starts until the run stops."""
        world, options, rng = self.world, self.options, self.world.rng
        station = client.session.station(PREFIX, NAME)
        station.group.lanes = options.faults.lanes
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

    def _start(self, client: SimClient) -> Procedure[rates.Started | None]:
        world, faults, rng = self.world, self.options.faults, self.world.rng
        station = client.session.station(PREFIX, NAME)
        once = rng.random() < faults.tries
        patience = 0.0 if once else rng.choice(faults.patience)
        if 0.0 < patience < math.inf:
            patience *= rng.random()
        ask = rates.Ask(Identity.of(client.id, None, {}))
        try:
            started = yield from rates.start(station, ask, client.now() + patience, once=once)
        except (EtcdUnavailable, EtcdRefused, NoSpace, NotApplied, OutcomeUnknown) as error:
            world.counters[f"start raises {type(error).__name__}"] += 1
            if not faults.kinds and client.fine:
                world.fail(f"without faults, client {client.number}'s start raises {error!r}")
            return None
        except EtcdSemError:
            if not client.session.closed:
                raise
            return None
        if started is not None:
            client.trace("starts")
            self.windows.started()
        return started

    # -- the limit

    def _change(self) -> None:
        """Change the limit, or pause it, or resume it."""
        world, rate = self.world, self.options.rate
        if self.stopping:
            return
        world.after(world.rng.expovariate(0.2), self._change)
        clients = [client for client in world.clients if client.fine]
        if not clients:
            return
        client = world.rng.choice(clients)
        station = client.session.station(PREFIX, NAME)
        world.counters["limit changes"] += 1
        what = world.rng.random()
        if what < 0.3:
            client.administer(operating.pause(station, "sim", None), "pause")
        elif what < 0.6:
            client.administer(operating.resume(station), "resume")
        else:
            slots = world.rng.randint(1, 2 * (rate.starts // rate.block))
            changed = Rate(slots * rate.block, rate.period, rate.block)
            client.administer(operating.resize(station, changed), f"resize {changed}")

    # -- the run

    def go(self) -> None:
        """Run to the end; raises the first violation."""
        world, options = self.world, self.options
        faults, rate = options.faults, options.rate
        world.run(faults.fault_time)
        self.nemesis.heal()
        world.run(world.now + SETTLE + 2 * faults.ttl)
        self.checker.calm_since = world.now
        began, before = world.now, self.windows.starts
        self._look_for(max(faults.calm_time, 4 * rate.period))
        used = self.windows.starts - before
        if options.hungry:
            self._judge_use(used, world.now - began)
        elif used == 0 and self.checker.limit:
            world.fail("nobody was given a start while there were no faults")
        self.stopping = True
        for client in world.clients:
            if client.fine:
                client.shut_down(10.0)
        world.run(world.now + 2 * faults.ttl + 15.0)
        self.checker.check_nothing_left()
        world.run(world.now)

    def _look_for(self, seconds: float) -> None:
        until = self.world.now + seconds
        while self.world.now < until:
            self.world.run(min(until, self.world.now + 0.5))
            self.nemesis.let_in()
            self.checker.look()

    def _judge_use(self, used: int, seconds: float) -> None:
        rate = self.options.rate
        could = rate.starts * (seconds / rate.period)
        # In whole windows: the last of them may be cut short, or the first.
        self.world.counters["use, in tenths of a percent"] = round(1000 * used / could)
        if used < 0.95 * (could - rate.starts):
            self.world.fail(f"{used} starts in {seconds} s, of {could:.0f} that were allowed")


def run_rate(seed: int, *, trace: bool = False, options: RateOptions | None = None) -> Outcome:
    """Run one seed. Every run of the same seed and options is the same, to the letter."""
    log = logging.getLogger("etcdsem")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    chosen = options or RateOptions.of(seed)
    try:
        run = RateRun(chosen, trace=trace)
        error: BaseException | None = None
        try:
            run.go()
        except Exception as raised:  # a violation, or the core raised what it must not
            error = raised
        world = run.world
        counters: Counter[str] = world.counters
        counters["starts"] = run.windows.starts
        world.dispose()
        return Outcome(chosen.faults, error, counters, list(world.log), world.steps)
    finally:
        log.setLevel(level)


__all__ = ["RateOptions", "RateRun", "run_rate"]
