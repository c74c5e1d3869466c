"""A hypothesis state machine on the same model, driver and checks, so that failures shrink."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings, target
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from etcdsem.core import acquire, release
from etcdsem.core.commands import Failure, Procedure
from etcdsem.core.grants import Grant
from etcdsem.core.keys import Identity
from etcdsem.core.request import AcquireRequest
from etcdsem.errors import EtcdSemError
from tests.simulation.checks import Checker
from tests.simulation.client import SimClient
from tests.simulation.process import Process
from tests.simulation.world import CALM, PREFIX, Cancelled, Weather, World

NAME = "sem"
TTL = 3

moments = st.sampled_from([0.0, 0.0015, 0.01])
seconds = st.sampled_from([0.001, 0.02, 0.3, 1.0, 2.5, 4.0])


class SemaphoreMachine(RuleBasedStateMachine):
    """Operators, programs and the network do one thing at a time; time passes in between."""

    @initialize(seed=st.integers(0, 3), limit=st.integers(1, 3))
    def begin(self, seed: int, limit: int) -> None:
        """Create a semaphore and two clients."""
        self.world = World(seed)
        self.checker = Checker(self.world, PREFIX, NAME)
        self.world.etcd.put(self.checker.keys.max_leases, b"%d" % limit)
        self.held: list[tuple[SimClient, Grant]] = []
        self.callers: list[tuple[SimClient, Process]] = []
        self.add_client()
        self.add_client()

    def pass_time(self, seconds: float) -> None:
        """Let things happen; raises any violation."""
        self.world.run(self.world.now + seconds)

    def clients(self) -> list[SimClient]:
        """The clients that have not crashed."""
        return [client for client in self.world.clients if not client.crashed]

    def pick(self, number: int) -> SimClient:
        """One of the clients."""
        clients = self.clients()
        return clients[number % len(clients)]

    # -- programs

    @rule()
    @precondition(lambda self: len(self.world.clients) < 6)
    def add_client(self) -> None:
        """A program starts."""
        SimClient(self.world, len(self.world.clients)).session.reread = (1.0, 2.0)

    @rule(
        who=st.integers(0, 5),
        patience=st.sampled_from([0.0, 0.01, 0.5, 5.0, math.inf]),
        times=st.integers(1, 3),
        then=moments,
    )
    def acquire(self, who: int, patience: float, times: int, then: float) -> None:
        """A program acquires a slot, or several."""
        client = self.pick(who)
        for _ in range(times):
            process = client.start(self._acquire(client, patience), "worker", self._done)
            self.callers.append((client, process))
        self.pass_time(then)

    def _acquire(self, client: SimClient, patience: float) -> Procedure[None]:
        request = AcquireRequest(TTL, TTL / 3, Identity.of(client.id, None, {}))
        station = client.session.semaphore(PREFIX, NAME)
        until = client.now() + patience
        grant = yield from acquire.acquire(station, request, until, once=patience == 0.0)
        if grant is not None:
            self.checker.acquired(client, grant)
            self.held.append((client, grant))

    def _done(self, _value: Any, error: BaseException | None) -> None:
        if error is not None and not isinstance(error, Cancelled | EtcdSemError | Failure):
            self.world.failure = self.world.failure or error

    @rule(which=st.integers(0, 9), then=moments)
    @precondition(lambda self: self.held)
    def release(self, which: int, then: float) -> None:
        """A program gives its slot back."""
        client, grant = self.held.pop(which % len(self.held))
        self.checker.ended(grant)
        client.run(client.start, release.release(grant), "release", self._done)
        self.pass_time(then)

    @rule(which=st.integers(0, 9))
    @precondition(lambda self: self.callers)
    def cancel(self, which: int) -> None:
        """A caller gives up waiting."""
        client, process = self.callers[which % len(self.callers)]
        if process.interruptible:
            client.run(process.interrupt, Cancelled())

    @rule(who=st.integers(0, 5))
    @precondition(lambda self: len(self.clients()) > 1)
    def crash(self, who: int) -> None:
        """A program is killed."""
        self.pick(who).crash()

    @rule(who=st.integers(0, 5), seconds=seconds)
    def pause(self, who: int, seconds: float) -> None:
        """A program is suspended for a while."""
        client = self.pick(who)
        client.pause()
        self.world.after(seconds, client.resume)

    # -- the network, etcd, operators

    @rule(seconds=seconds)
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.pass_time(seconds)

    @rule(
        lost=st.sampled_from(["lose_request", "lose_reply", "late", "refuse", "broken"]),
        seconds=st.sampled_from([0.003, 0.02, 1.0]),
    )
    def bad_weather(self, lost: str, seconds: float) -> None:
        """For a while no message gets through as it should."""
        self.world.weather = Weather(**{lost: 1.0})
        self.world.after(seconds, self._clear_up)

    def _clear_up(self) -> None:
        self.world.weather = CALM

    @rule(who=st.integers(0, 5), seconds=seconds, drops=st.booleans())
    def cut_off(self, who: int, seconds: float, drops: bool) -> None:
        """A program cannot reach etcd for a while."""
        link = self.pick(who).link
        link.drops = drops
        link.up_until = link.down_until = self.world.now + seconds

    @rule(who=st.integers(0, 5))
    def cut_streams(self, who: int) -> None:
        """A program's streams break."""
        client = self.pick(who)
        client.watches.cut()
        client.renewals.cut()

    @rule(seconds=seconds)
    def new_leader(self, seconds: float) -> None:
        """The leader is lost, and another is elected."""
        if self.world.etcd.leading:
            self.world.lose_leader()
            self.pass_time(seconds)
            self.world.elect()

    @rule()
    def compact(self) -> None:
        """An operator compacts everything."""
        etcd = self.world.etcd
        self.world.operate("compact", lambda: etcd.compact(etcd.revision))

    @rule(limit=st.sampled_from([b"0", b"1", b"2", b"4", b"abc"]))
    def resize(self, limit: bytes) -> None:
        """An operator changes the limit."""
        key = self.checker.keys.max_leases
        self.world.operate("put limit", lambda: self.world.etcd.put(key, limit))

    @rule(which=st.integers(0, 9), revoke=st.booleans())
    def evict(self, which: int, revoke: bool) -> None:
        """An operator ends a holder's or a waiter's lease, or deletes its key."""
        kvs = [*self.checker.slots.values(), *self.checker.waiters.values()]
        if kvs:
            kv, etcd = kvs[which % len(kvs)], self.world.etcd
            action = (lambda: etcd.revoke(kv.lease)) if revoke else (lambda: etcd.delete(kv.key))
            self.world.operate("evict", action)

    # -- the end

    def teardown(self) -> None:
        """After healing, all waiters are served, and nothing is left behind."""
        if not hasattr(self, "world"):
            return
        target(float(self.world.counters["most holders"]), label="most holders")
        try:
            if self.world.failure is None:
                self.all_is_well()
        finally:
            self.world.dispose()

    def all_is_well(self) -> None:
        """Heal, let everybody have a turn, close."""
        self._clear_up()
        self.pass_time(12.0 + TTL)
        if self.checker.limit == 0:
            self.resize(b"2")
        self.checker.calm_since = self.world.now
        for _ in range(60):
            self.pass_time(0.5)
            self.checker.look()
            if all(process.done or client.crashed for client, process in self.callers):
                break
            while self.held:
                self.release(0, 0.0)
        else:
            self.world.fail("somebody is stuck")
        for client in self.clients():
            client.shut_down(10.0)
        self.pass_time(2 * TTL + 10.0)
        self.checker.check_nothing_left()
        self.pass_time(0.0)


SemaphoreMachine.TestCase.settings = settings(
    max_examples=80,
    stateful_step_count=60,
    deadline=None,
    derandomize=True,  # the same examples in each CI run; `python -m tests.simulation` explores
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)

TestSemaphore = SemaphoreMachine.TestCase


class LongerMachine(SemaphoreMachine):
    """The same, for more examples."""


LongerMachine.TestCase.settings = settings(SemaphoreMachine.TestCase.settings, max_examples=200)

TestSemaphoreForLonger = pytest.mark.slow(LongerMachine.TestCase)
