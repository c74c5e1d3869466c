"""One run: clients that acquire, work and release; first with faults, then without; then the end.

1. `fault_time`: everything that the options name goes wrong. Safety is judged.
2. `calm_time`: no faults. All waiters must be served: liveness is judged too.
3. The workers stop and all callers return; clients close; nothing may be left behind.
"""

from __future__ import annotations

import math

from etcdsem.core import acquire, multi, release, release_steps
from etcdsem.core.commands import NoSpace, NotApplied, OutcomeUnknown, Procedure, Wait, perform
from etcdsem.core.grants import Grant
from etcdsem.core.keys import ORDINARY, Demand, Identity
from etcdsem.core.request import AcquireRequest
from etcdsem.core.semaphore import SemaphoreState
from etcdsem.errors import (
    EtcdRefused,
    EtcdSemError,
    EtcdUnavailable,
    Evicted,
    QueueFull,
    SemaphoreClosed,
    WeightExceedsLimit,
)
from tests.simulation.checks import Checker
from tests.simulation.client import SimClient
from tests.simulation.nemesis import Nemesis
from tests.simulation.options import KINDS, Options
from tests.simulation.outcome import Outcome, play
from tests.simulation.process import Process
from tests.simulation.shared import SharedObject
from tests.simulation.world import PREFIX, Cancelled, World

SETTLE = 8.0
"""Seconds from the last fault until liveness is judged, in addition to the TTL: calls may last for
4 s more, streams need a second, and a retry another."""

BACK_IN_TIME = 12.0
"""Seconds by which an acquire may exceed its timeout in the worst case: its last call and leaving
the queue, both unanswered."""


GIVEN_BACK_IN_TIME = 9.0
"""The same for each further semaphore of several: a held slot is given back, and its lease revoked,
both unanswered."""

AWAY = frozenset(KINDS) - {"resize", "garbage limit", "compaction", "evict", "delete key", "junk"}
"""Faults after which etcd may be unavailable to a caller. Without them, nobody may be told so."""


class Run:
    """One world with its clients, workers, checkers and faults."""

    def __init__(self, options: Options, *, trace: bool = False) -> None:
        self.options = options
        self.world = World(options.seed, trace=trace)
        self.world.leases_may_end = bool(options.kinds)
        names = [f"sem{number}" for number in range(options.semaphores)]
        self.checkers = {
            name: Checker(self.world, PREFIX, name, linger=options.linger) for name in names
        }
        for checker in self.checkers.values():
            if options.max_waiting is not None:
                checker.max_waiting = options.max_waiting
            if options.kinds & {"lost deletes"}:
                checker.bound += options.reread[1]
                checker.told_bound += options.reread[1]
                checker.left_out_bound += options.reread[1]
        self.world.on_penalized = lambda name, began, seconds: self.checkers[name].penalized(
            began, seconds
        )
        self.world.on_drained = lambda name, client, began: self.checkers[name].told_drained(
            client, began
        )
        self.shared: dict[tuple[SimClient, str], SharedObject] = {}
        self.stopping = False
        self.calm = False
        self.workers: list[tuple[SimClient, Process]] = []
        for name in names:
            self.world.etcd.put(f"{PREFIX}/{name}/max_leases".encode(), b"%d" % options.limit)
        self.nemesis = Nemesis(self.world, options, list(self.checkers.values()), self.add_client)
        for _ in range(options.clients):
            self.add_client()

    def add_client(self) -> SimClient:
        """Add a client, with its workers."""
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

    # -- the callers

    def worker(self, client: SimClient, name: str) -> Procedure[None]:
        """Acquire, work, release, until the run stops."""
        world, options, rng = self.world, self.options, self.world.rng
        station = client.session.semaphore(PREFIX, name)
        station.slots.group.lanes = options.lanes
        box = client.mailbox()
        shared = None
        if options.shared and int(client.world.rng.random() * 4):
            shared = self.shared.get((client, name))
            if shared is None:
                shared = self.shared[client, name] = SharedObject(client, name, self.checkers[name])
        while not self.stopping and not client.session.closed:
            try:
                yield from perform(Wait(box, client.now() + rng.expovariate(1 / options.idle)))
                stations = [station]
                if options.several and rng.random() < options.several:
                    names = rng.sample(list(self.checkers), rng.choice((2, 2, 3)))
                    stations = [client.session.semaphore(PREFIX, one) for one in names]
                grants = yield from self._acquire(client, stations)
                if grants is None:
                    yield from perform(Wait(box, client.now() + 0.05 * rng.random()))
                    continue
                if shared is not None and len(grants) == 1:
                    shared.take(grants[0])
                    world.counters["leases of a shared object"] += 1
                    yield from self._work(client, grants, shared)
                else:
                    yield from self._work(client, grants)
            except Cancelled:
                world.counters["cancelled"] += 1

    def _acquire(
        self, client: SimClient, stations: list[SemaphoreState]
    ) -> Procedure[list[Grant] | None]:
        """Acquire a slot of each."""
        world, options, rng = self.world, self.options, self.world.rng
        request = self._request(client, ORDINARY if len(stations) > 1 else self._wants())
        once = rng.random() < options.tries
        patience = 0.0 if once else rng.choice(options.patience)
        if 0.0 < patience < math.inf:
            patience *= rng.random()
        began, asked = client.now(), world.now
        taken = yield from self._taken(client, stations, request, began + patience, once=once)
        if taken is None:
            return None
        late = client.now() - began - patience
        most = BACK_IN_TIME + GIVEN_BACK_IN_TIME * (len(stations) - 1)
        if late > most and not self.options.kinds & {"pause", "clock jump"}:
            world.fail(f"client {client.number}'s acquire came back {late:.1f} s late")
        shown = " and ".join(map(_show, taken.grants)) or _show(None)
        named = ", ".join(station.name for station in stations)
        client.trace("acquire", named, "once" if once else patience, "gives", shown)
        if taken.full is not None:
            world.counters["told that it is full"] += 1
            if once:
                full = self.checkers[taken.full.part.semaphore.name]
                full.told_full(client, asked, request.demand.weight)
            return None
        if len(stations) > 1:
            world.counters["several at once"] += 1
            together = len({grant.token for grant in taken.grants}) == 1
            world.counters["several in one transaction"] += together
        for station, grant in zip(stations, taken.grants, strict=True):
            self.checkers[station.name].acquired(client, grant, request.max_hold)
        return taken.grants

    def _request(self, client: SimClient, demand: Demand) -> AcquireRequest:
        options, max_hold = self.options, self.options.max_hold
        if max_hold is not None and self.world.rng.random() < 0.5:
            max_hold = None
        identity = Identity.of(client.id, None, {}, max_hold=max_hold)
        linger = options.linger if options.linger and self.world.rng.random() < 0.8 else 0.0
        return AcquireRequest(
            options.ttl,
            options.refresh,
            identity,
            demand=demand,
            max_hold=max_hold,
            linger=linger,
            max_waiting=options.max_waiting,
        )

    def _taken(
        self,
        client: SimClient,
        stations: list[SemaphoreState],
        request: AcquireRequest,
        until: float,
        *,
        once: bool,
    ) -> Procedure[multi.Taken | None]:
        """The result of an acquire. None: it raised an exception that is allowed."""
        world, asked, was_calm = self.world, self.world.now, self.calm
        try:
            return (yield from self._taking(stations, request, until, once=once))
        except SemaphoreClosed as closed:
            world.counters["told that it is closed"] += 1
            # The message says which of several was closed.
            self.checkers[_named_in(closed, stations)].told_closed(client, asked)
            return None
        except Evicted as evicted:
            self.checkers[_named_in(evicted, stations)].told_evicted(client)
            return None
        except QueueFull as full:
            checker = self.checkers[_named_in(full, stations)]
            checker.told_refused(client, asked, request.max_waiting or 0, request.demand.weight)
            return None
        except WeightExceedsLimit:
            checker = self.checkers[stations[0].name]
            checker.told_too_heavy(client, asked, request.demand.weight)
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

    def _wants(self) -> Demand:
        """The weight, priority and eagerness of the next acquire; draws only if they vary."""
        options, rng = self.options, self.world.rng
        return Demand(
            rng.choice(options.weights) if len(options.weights) > 1 else 1,
            rng.choice(options.priorities) if len(options.priorities) > 1 else 0,
            backfill=options.eager > 0 and rng.random() < options.eager,
        )

    def _taking(
        self,
        stations: list[SemaphoreState],
        request: AcquireRequest,
        until: float,
        *,
        once: bool,
    ) -> Procedure[multi.Taken]:
        if len(stations) > 1:
            demand = [multi.SemaphoreRequest(station, request) for station in stations]
            return (yield from multi.acquire_all(demand, until, once=once))
        grant = yield from acquire.acquire(stations[0], request, until, once=once)
        if grant is None:
            return multi.Taken([], multi.NoRoom(multi.SemaphoreRequest(stations[0], request)))
        return multi.Taken([grant])

    def _work(
        self, client: SimClient, grants: list[Grant], shared: SharedObject | None = None
    ) -> Procedure[None]:
        rng = self.world.rng
        box = client.mailbox()
        for grant in grants:
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
                client.trace("lost", _show(lost), lost.lost_reason)
                self.checkers[lost.semaphore.name].told_lost(client, lost)
                self.world.counters["lost leases"] += 1
        finally:
            if shared is not None:
                done = yield from shared.release()
                client.trace("release of some lease of", grants[0].semaphore.name, "gives", done)
            else:
                for grant in grants:
                    self.checkers[grant.semaphore.name].ended(grant)
                yield from self._give_back(client, grants)

    def _give_back(self, client: SimClient, grants: list[Grant]) -> Procedure[None]:
        try:
            done = (yield from release.release(grants[0])) is release_steps.ReleaseResult.RELEASED
            client.trace("release", _show(grants[0]), "gives", done)
        finally:  # an interruption of one does not stop the others
            if len(grants) > 1:
                yield from self._give_back(client, grants[1:])

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
        self._everything_is_given_back()
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

    def _everything_is_given_back(self) -> None:
        for (client, name), shared in self.shared.items():
            if client.fine and not client.session.closed and shared.leases:
                self.world.fail(
                    f"client {client.number}'s object of {name} was released as often as acquired, "
                    f"and still has {shared.leases}"
                )

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

    def count(self) -> None:
        """Add to the counters what is known at the end."""
        world = self.world
        stations = [one for client in world.clients for one in client.session.semaphores.values()]
        world.counters["batches"] = sum(station.slots.group.sent for station in stations)
        world.counters["batches of hand-overs"] = sum(one.slots.passing.sent for one in stations)


def _named_in(error: EtcdSemError, stations: list[SemaphoreState]) -> str:
    return next(one.name for one in stations if repr(one.name) in str(error))


def _show(grant: Grant | None) -> str:
    return f"slots {grant.slots} token {grant.token}" if grant else "nothing"


def run_seed(seed: int, *, trace: bool = False, options: Options | None = None) -> Outcome:
    """Run one seed. Every run of the same seed and options is exactly the same."""
    chosen = options or Options.of(seed)
    return play(chosen, lambda: Run(chosen, trace=trace))
