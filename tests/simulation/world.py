"""The third driver of the core: simulated clients on a virtual clock, before a model of etcd.

1. One integer decides everything: all chance comes from `World.rng`, all time from `World.now`.
2. Each step of a procedure and each callback of a listener is one event of the scheduler, so it
   is atomic; events of different clients and streams interleave in any order.
3. A unary call's request and reply travel apart, and independently of all other calls: delayed,
   lost on the way there or back, held and delivered after the caller gave up. The caller then
   sees `OutcomeUnknown`, or `NotApplied` where etcd refused before doing anything.
4. A watch stream and a keepalive stream keep their order. A stream that breaks loses what is
   under way; the driver opens it again and resumes each watch where it was. etcd serves a
   keepalive stream serially: a renewal of an expired lease holds up all behind it.
5. A paused client takes no step, but its clock goes on; what arrives meanwhile waits. A crashed
   client takes no step ever again, and what it sent before may still arrive.
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
    """What a caller throws in who does not want to wait any more."""


class Timer:
    """An event of the scheduler that can be called off."""

    __slots__ = ("args", "function")

    def __init__(self, function: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.function: Callable[..., object] | None = function
        self.args = args

    def cancel(self) -> None:
        """It does not happen."""
        self.function = None


class Weather(NamedTuple):
    """How bad the network is: chances for each message, seconds of latency."""

    lose_request: float = 0.0
    lose_reply: float = 0.0
    late: float = 0.0  # a request arrives only after its caller gave up
    refuse: float = 0.0  # no connection
    overload: float = 0.0  # etcd refuses: too many requests
    broken: float = 0.0  # the connection breaks while a call is under way
    stall: float = 0.0  # a step of a client comes late: a busy machine
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
        self.owners: dict[int, SimClient] = {}  # who asked for a lease
        self.by_operator = False  # a person is changing keys now
        self.no_space = False
        self.leases_may_end = True  # because of some fault, while they are in use
        self.on_drained: Callable[[str, SimClient, float], None] = lambda name, client, began: None
        self.failure: BaseException | None = None
        self.log: deque[tuple[Any, ...]] = deque(maxlen=None if trace else 300)
        self.steps = 0
        self._events: list[tuple[float, int, Timer]] = []
        self._sequence = 0
        self._parked: list[Callable[[], None]] = []  # requests that wait for a leader

    # -- time

    def at(self, moment: float, function: Callable[..., object], *args: Any) -> Timer:
        """Call a function at a moment."""
        timer = Timer(function, args)
        self._sequence += 1
        heapq.heappush(self._events, (max(moment, self.now), self._sequence, timer))
        return timer

    def after(self, delay: float, function: Callable[..., object], *args: Any) -> Timer:
        """Call a function after a delay."""
        return self.at(self.now + delay, function, *args)

    def run(self, until: float) -> None:
        """Let everything happen until a moment; raises the first violation."""
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
        """Run etcd's own loops up to a moment, each at its time."""
        while (due := self.etcd.next_time()) <= moment:
            self.now = max(self.now, due)
            self.etcd.advance(due)
        self.etcd.advance(moment)

    def trace(self, *entry: Any) -> None:
        """Note something for whoever reads a failing run."""
        self.log.append((self.now, *entry))

    def fail(self, message: str) -> None:
        """Note the first violation; `run` raises it."""
        self.trace("VIOLATION", message)
        if self.failure is None:
            self.failure = Violation(message)

    def dispose(self) -> None:
        """End what is still parked (crashed clients' procedures), clean-up and all."""
        for client in self.clients:
            client.crashed = True
            for process in client.processes:
                process.dispose()

    # -- etcd's side of a call

    def serve(self, request: Callable[[], Any], answer: Callable[[Any], None]) -> None:
        """A request has arrived: perform it now, or when there is a leader, or refuse."""
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
        """There is no leader from now on."""
        self.trace("etcd", "has no leader")
        self.etcd.lose_leader()

    def elect(self) -> None:
        """There is a leader again; what waited is performed now, in any order, or never."""
        self.trace("etcd", "has a new leader")
        self.counters["leader changes"] += 1
        self.etcd.elect()
        parked, self._parked = self._parked, []
        self.rng.shuffle(parked)
        for request in parked:
            if self.rng.random() < 0.8:
                self.after(self.rng.random() * 0.01, request)

    def operate(self, what: str, action: Callable[[], object]) -> None:
        """What a person does with etcdctl, at once and past the network."""
        self.trace("operator", what)
        self.by_operator = True
        try:
            action()
        except Failure:
            pass
        finally:
            self.by_operator = False
