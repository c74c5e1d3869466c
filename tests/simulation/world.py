"""The third driver of the core: simulated clients on a virtual clock, with a model of etcd.

1. One integer determines everything: all random numbers come from `World.rng`, and all times from
   `World.now`.
2. Each step of a procedure and each callback of a listener is one event of the scheduler, so it is
   atomic; events of different clients and streams interleave in any order.
3. The request and the reply of a unary call travel separately, and independently of all other
   calls: delayed, lost in either direction, or held and delivered after the caller gave up. The
   caller then gets `OutcomeUnknown`, or `NotApplied` if etcd refused before doing anything.
4. A watch stream and a keepalive stream keep their order. A stream that breaks loses the messages
   in transit; the driver opens it again and resumes each watch where it was. etcd serves a
   keepalive stream serially: a renewal of an expired lease holds up all behind it.
5. A paused client takes no step, but its clock continues; messages that arrive meanwhile wait. A
   crashed client never takes a step again, but what it sent before may still arrive.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from etcdsem.core.commands import (
    Failure,
    NotApplied,
    OutcomeUnknown,
)
from etcdsem.testing.model import EtcdModel

if TYPE_CHECKING:
    from tests.simulation.client import SimClient

PREFIX = "/etcdsem"


class Violation(AssertionError):
    """A promise was broken."""


class Cancelled(BaseException):
    """Thrown into the procedure of a caller that does not want to wait any longer."""


class Timer:
    """A scheduled event that can be cancelled."""

    __slots__ = ("args", "function")

    def __init__(self, function: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.function: Callable[..., object] | None = function
        self.args = args

    def cancel(self) -> None:
        """Cancel the event."""
        self.function = None


class Weather(NamedTuple):
    """How bad the network is: probabilities for each message, and seconds of latency."""

    lose_request: float = 0.0
    lose_reply: float = 0.0
    late: float = 0.0  # a request arrives only after its caller gave up
    refuse: float = 0.0  # no connection
    overload: float = 0.0  # etcd refuses: too many requests
    broken: float = 0.0  # the connection breaks during a call
    stall: float = 0.0  # a step of a client is delayed: a busy machine
    latency: float = 0.001


CALM = Weather()


class World:
    """The scheduler, the model of etcd, and the clients."""

    def __init__(self, seed: int, *, trace: bool = False) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.now = 0.0
        self.etcd = EtcdModel(election=1.0)
        self.weather = CALM
        self.counters: Counter[str] = Counter()
        self.clients: list[SimClient] = []
        self.owners: dict[int, SimClient] = {}  # the client that requested each lease
        self.by_operator = False  # an operator is changing keys now
        self.no_space = False
        self.leases_may_end = True  # because of faults, while they are in use
        self.on_drained: Callable[[str, SimClient, float], None] = lambda name, client, began: None
        self.on_penalized: Callable[[str, float, float], None] = lambda name, began, seconds: None
        self.failure: BaseException | None = None
        self.log: deque[tuple[Any, ...]] = deque(maxlen=None if trace else 300)
        self.steps = 0
        self._events: list[tuple[float, int, Timer]] = []
        self._sequence = 0
        self._parked: list[Callable[[], None]] = []  # requests that wait for a leader

    # -- time

    def at(self, moment: float, function: Callable[..., object], *args: Any) -> Timer:
        """Call a function at a time."""
        timer = Timer(function, args)
        self._sequence += 1
        heapq.heappush(self._events, (max(moment, self.now), self._sequence, timer))
        return timer

    def after(self, delay: float, function: Callable[..., object], *args: Any) -> Timer:
        """Call a function after a delay."""
        return self.at(self.now + delay, function, *args)

    def run(self, until: float) -> None:
        """Run all events until a time; raises the first violation."""
        events = self._events
        while events and events[0][0] <= until:
            moment, _, timer = heapq.heappop(events)
            function = timer.function
            if function is None:
                continue
            self.let_etcd_catch_up(moment)
            self.now = moment
            self.steps += 1
            function(*timer.args)
            if self.failure is not None:
                raise self.failure
        self.let_etcd_catch_up(until)
        self.now = until
        if self.failure is not None:
            raise self.failure

    def let_etcd_catch_up(self, moment: float) -> None:
        """Run etcd's own loops until a time, each iteration at its own time."""
        while (due := self.etcd.next_time()) <= moment:
            self.now = max(self.now, due)
            self.etcd.advance(due)
        self.etcd.advance(moment)

    def trace(self, *entry: Any) -> None:
        """Record an event for the report of a failing run."""
        self.log.append((self.now, *entry))

    def fail(self, message: str) -> None:
        """Record the first violation; `run` raises it."""
        self.trace("VIOLATION", message)
        if self.failure is None:
            self.failure = Violation(message)

    def dispose(self) -> None:
        """End the procedures that are still suspended (of crashed clients), with their clean-up."""
        for client in self.clients:
            client.crashed = True
            for process in client.processes:
                process.dispose()

    # -- etcd's side of a call

    def serve(self, request: Callable[[], Any], answer: Callable[[Any], None]) -> None:
        """Perform a request that has arrived: now, or when there is a leader, or refuse it."""
        if self.etcd.leading:
            try:
                result = request()
            except Failure as failure:
                result = failure
            answer(result)
        elif self.rng.random() < 0.5:
            answer(NotApplied("etcdserver: no leader"))
        else:
            self._parked.append(lambda: self.serve(request, answer))
            if self.rng.random() < 0.5:
                answer(OutcomeUnknown("etcdserver: request timed out, possibly due to lost leader"))

    def lose_leader(self) -> None:
        """Lose the leader."""
        self.trace("etcd", "has no leader")
        self.etcd.lose_leader()

    def elect(self) -> None:
        """Elect a leader; waiting requests are performed now, in any order, or never."""
        self.trace("etcd", "has a new leader")
        self.counters["leader changes"] += 1
        self.etcd.elect()
        parked, self._parked = self._parked, []
        self.rng.shuffle(parked)
        for request in parked:
            if self.rng.random() < 0.8:
                self.after(self.rng.random() * 0.01, request)

    def operate(self, what: str, action: Callable[[], object]) -> None:
        """Do what an operator does with etcdctl, at once and without the network."""
        self.trace("operator", what)
        self.by_operator = True
        try:
            action()
        except Failure:
            pass
        finally:
            self.by_operator = False
