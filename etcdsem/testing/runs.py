"""One run: clients that acquire, work and release; faults; then calm; then the end.

1. `fault_time`: everything goes wrong that the options name. Safety is judged.
2. `calm_time`: no faults. Whoever waits must be served: liveness is judged too.
3. The workers stop, all callers return; clients close; nothing may be left behind.
"""

from __future__ import annotations

import logging
import math
import traceback
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from etcdsem.core import procedures
from etcdsem.core.commands import NoSpace, NotApplied, OutcomeUnknown, Procedure, Wait, perform
from etcdsem.core.keys import Identity
from etcdsem.core.station import Grant, Station
from etcdsem.errors import EtcdRefused, EtcdSemError, EtcdUnavailable, SemaphoreClosed
from etcdsem.testing.checks import Checker
from etcdsem.testing.faults import KINDS, Nemesis, Options
from etcdsem.testing.simulator import PREFIX, Cancelled, Process, SimClient, World

SETTLE = 8.0
"""Seconds after the last fault until liveness is judged, beside the TTL: calls may still be out
for 4 s, streams need a second, a retry another."""

BACK_IN_TIME = 12.0
"""Seconds that an acquire with a timeout may last longer than that, at the very worst: its last
call, leaving the line, both unanswered."""


AWAY = frozenset(KINDS) - {"resize", "garbage limit", "compaction", "evict", "delete key", "junk"}
"""Faults after which etcd may be away for a caller. Without them, nobody may be told so."""


class Outcome(NamedTuple):
    """What a run came to. `error` None: no violation."""

    options: Options
    error: BaseException | None
    counters: Counter[str]
    log: list[tuple[Any, ...]]
    steps: int


class Run:
    """One world with its clients, workers, checkers and faults."""

    def __init__(self, options: Options, *, trace: bool = False) -> None:
        self.options = options
        self.world = World(options.seed, trace=trace)
        names = [f"sem{number}" for number in range(options.semaphores)]
        self.checkers = {name: Checker(self.world, PREFIX, name) for name in names}
        for checker in self.checkers.values():
            if options.kinds & {"lost deletes"}:
                checker.bound += options.reread[1]
                checker.told_bound = math.inf
        self.stopping = False
        self.calm = False
        self.workers: list[tuple[SimClient, Process]] = []
        for name in names:
            self.world.etcd.put(f"{PREFIX}/{name}/max_leases".encode(), b"%d" % options.limit)
        self.nemesis = Nemesis(self.world, options, list(self.checkers.values()), self.add_client)
        for _ in range(options.clients):
            self.add_client()

    def add_client(self) -> SimClient:
        """One more client, with its workers."""
        world, options = self.world, self.options
        rate = 1.0 + options.drift * (2 * world.rng.random() - 1)
        client = SimClient(world, len(world.clients), rate=rate)
        client.session.reread = options.reread
        if self.stopping:
            return client
        for number in range(options.workers):
            name = world.rng.choice(list(self.checkers))
            process = client.start(
                self.worker(client, name), f"worker{number}:{name}", self._worker_done
            )
            self.workers.append((client, process))
        return client

    def _worker_done(self, _value: None, error: BaseException | None) -> None:
        if error is not None and not isinstance(error, Cancelled):
            self.world.failure = self.world.failure or error

    # -- what a caller does

    def worker(self, client: SimClient, name: str) -> Procedure[None]:
        """Acquire, work, release, until the run stops."""
        world, options, rng = self.world, self.options, self.world.rng
        station = client.session.station(PREFIX, name)
        box = client.mailbox()
        while not self.stopping and not client.session.closed:
            try:
                yield from perform(Wait(box, client.now() + rng.expovariate(1 / options.idle)))
                grant = yield from self._acquire(client, station)
                if grant is None:
                    yield from perform(Wait(box, client.now() + 0.05 * rng.random()))
                    continue
                yield from self._work(client, station, grant)
            except Cancelled:
                world.counters["cancelled"] += 1

    def _acquire(self, client: SimClient, station: Station) -> Procedure[Grant | None]:
        world, options, rng = self.world, self.options, self.world.rng
        order = procedures.Order(options.ttl, options.refresh, Identity.of(client.id, None, {}))
        once = rng.random() < options.tries
        patience = 0.0 if once else rng.choice(options.patience)
        if 0.0 < patience < math.inf:
            patience *= rng.random()
        began, asked = client.now(), world.now
        was_calm = self.calm
        try:
            grant = yield from procedures.acquire(station, order, began + patience, once=once)
        except SemaphoreClosed:
            world.counters["told that it is closed"] += 1
            self.checkers[station.name].told_closed(client, asked)
            return None
        except (EtcdUnavailable, EtcdRefused, NoSpace, NotApplied, OutcomeUnknown) as error:
            world.counters[f"acquire raises {type(error).__name__}"] += 1
            blameless = was_calm or not self.options.kinds & AWAY
            if blameless and client.fine:
                world.fail(f"without faults, client {client.number}'s acquire raises {error!r}")
            return None
        except EtcdSemError:
            if not client.session.closed:
                raise
            return None
        late = client.now() - began - patience
        if late > BACK_IN_TIME and not self.options.kinds & {"pause", "clock jump"}:
            world.fail(f"client {client.number}'s acquire came back {late:.1f} s late")
        client.trace("acquire", station.name, "once" if once else patience, "gives", _show(grant))
        if grant is None:
            world.counters["told that it is full"] += 1
            if once:
                self.checkers[station.name].told_full(client, asked)
        else:
            self.checkers[station.name].acquired(client, grant)
        return grant

    def _work(self, client: SimClient, station: Station, grant: Grant) -> Procedure[None]:
        rng, checker = self.world.rng, self.checkers[station.name]
        box = client.mailbox()
        grant.on_lost = box.put
        try:
            work = rng.expovariate(1 / self.options.hold)
            if self.calm:
                work = min(work, 0.5)
            elif rng.random() < self.options.long:
                work += 5.0 * self.options.ttl * rng.random()
            until = client.now() + work
            lost = yield from perform(Wait(box, until))
            if lost is not None:
                client.trace("lost", _show(grant), grant.lost_reason)
                self.world.counters["lost leases"] += 1
        finally:
            checker.ended(grant)
            done = yield from procedures.release(grant)
            client.trace("release", _show(grant), "gives", done)

    # -- the run

    def go(self) -> None:
        """Run to the end; raises the first violation."""
        world, options = self.world, self.options
        world.run(options.fault_time)
        self.nemesis.heal()
        world.run(world.now + SETTLE + options.ttl)
        self.calm = True
        for checker in self.checkers.values():
            checker.calm_since = world.now
        self._look_for(options.calm_time)
        before = world.counters["grants"]
        for checker in self.checkers.values():
            checker.check_known()
        self.stopping = True
        self._look_for(60.0)
        if world.counters["grants"] < before:
            raise AssertionError("counters never go back")
        self._everybody_is_back()
        self._close()
        world.run(world.now + 2 * options.ttl + 10.0)
        for checker in self.checkers.values():
            checker.check_nothing_left()
        world.run(world.now)

    def _look_for(self, seconds: float) -> None:
        until = self.world.now + seconds
        while self.world.now < until:
            if not self.stopping and self.world.rng.random() < 0.1:
                self.nemesis.disturb()
            if self.stopping and all(process.done for _, process in self._live_workers()):
                return
            self.world.run(min(until, self.world.now + 0.5))
            self.nemesis.let_in()
            for checker in self.checkers.values():
                checker.look()

    def _live_workers(self) -> list[tuple[SimClient, Process]]:
        return [pair for pair in self.workers if pair[0].fine]

    def _everybody_is_back(self) -> None:
        for client, process in self._live_workers():
            if not process.done:
                self.world.fail(
                    f"client {client.number}'s {process.name} is stuck, waiting for "
                    f"{process.call.what if process.call else process.box}"
                )

    def _close(self) -> None:
        for client in self.world.clients:
            if client.fine:
                client.shut_down(10.0)
        self.nemesis.clean()


def _show(grant: Grant | None) -> str:
    return f"slot {grant.slot} token {grant.token}" if grant else "nothing"


def run_seed(seed: int, *, trace: bool = False, options: Options | None = None) -> Outcome:
    """Run one seed. Every run of the same seed and options is the same, to the letter."""
    log = logging.getLogger("etcdsem")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        return _run_seed(options or Options.of(seed), trace=trace)
    finally:
        log.setLevel(level)


def _run_seed(options: Options, *, trace: bool) -> Outcome:
    run = Run(options, trace=trace)
    error: BaseException | None = None
    try:
        run.go()
    except Exception as raised:  # a violation, or the core raised what it must not
        error = raised
    world = run.world
    world.dispose()
    return Outcome(run.options, error, world.counters, list(world.log), world.steps)


def report(outcome: Outcome, *, last: int = 80) -> str:
    """A run for people to read: how to repeat it, its options, its last events."""
    lines = [f"seed {outcome.options.seed}: {outcome.error or 'no violation'}"]
    if outcome.error is not None and not isinstance(outcome.error, AssertionError):
        lines += traceback.format_exception(outcome.error)
    lines.append(f"repeat with: python -m etcdsem.testing --seed {outcome.options.seed} --trace")
    lines.append(str(outcome.options))
    lines += map(_line, outcome.log[-last:])
    return "\n".join(lines)


def _line(entry: tuple[Any, ...]) -> str:
    moment, who, *what = entry
    return f"{moment:10.4f}  {who!s:>8}  " + " ".join(map(_brief, what))


def _brief(thing: Any) -> str:
    from etcdsem.testing.trace import brief

    return brief(thing)


def run_seeds(seeds: Iterable[int]) -> Iterable[Outcome]:
    """Run several."""
    return map(run_seed, seeds)
