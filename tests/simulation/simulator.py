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
import logging
import math
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from etcdsem.core import operating, procedures
from etcdsem.core.commands import (
    Command,
    Event,
    Failure,
    GrantLease,
    LeaseNotFound,
    LeasesTimeToLive,
    Listener,
    Mailbox,
    NoSpace,
    NotApplied,
    NotConnected,
    OutcomeUnknown,
    Procedure,
    Put,
    Refused,
    RevokeLease,
    Transact,
    Txn,
    TxnReply,
    Wait,
)
from etcdsem.core.keys import client_id
from etcdsem.core.station import Session
from etcdsem.core.watchbook import (
    CancelWatch,
    WatchBook,
    WatchEntry,
    WatchRequest,
    WatchResponse,
)
from etcdsem.errors import EtcdSemError
from etcdsem.testing.model import EtcdModel
from etcdsem.testing.watch_server import WatchServer
from tests.simulation.trace import brief

log = logging.getLogger("etcdsem")

PREFIX = "/etcdsem"


class Violation(AssertionError):
    """A promise was broken."""


class Cancelled(BaseException):
    """What a caller throws in who does not want to wait any more."""


class _Disposed(BaseException):
    """The world ends."""


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


# ---------------------------------------------------------------- procedures


class Box:
    """A mailbox; one procedure at a time waits for it."""

    __slots__ = ("client", "notes", "reader")

    def __init__(self, client: SimClient) -> None:
        self.client = client
        self.notes: deque[Any] = deque()
        self.reader: Process | None = None

    def put(self, note: Any, /) -> None:
        self.notes.append(note)
        if self.reader is not None:
            self.client.soon(self.reader.poke, self)


class Call:
    """A unary call under way. Over when it was answered, or its caller gave up."""

    __slots__ = ("deadline", "over", "process", "what")

    def __init__(self, process: Process, what: Command[Any]) -> None:
        self.process = process
        self.what = what
        self.over = False
        self.deadline: Timer | None = None


class Process:
    """One procedure, and what it waits for."""

    __slots__ = ("box", "call", "client", "done", "generator", "name", "on_done", "timer", "until")

    def __init__(
        self,
        client: SimClient,
        generator: Procedure[Any],
        name: str,
        on_done: Callable[[Any, BaseException | None], None],
    ) -> None:
        self.client = client
        self.generator = generator
        self.name = name
        self.on_done = on_done
        self.done = False
        self.box: Box | None = None
        self.call: Call | None = None
        self.timer: Timer | None = None
        self.until = math.inf

    def step(self, value: Any = None, error: BaseException | None = None) -> None:
        """Run it until it has to wait."""
        generator = self.generator
        while True:
            try:
                command = generator.throw(error) if error else generator.send(value)
            except StopIteration as stop:
                self.done = True
                self.on_done(stop.value, None)
                return
            except BaseException as raised:
                self.done = True
                self.on_done(None, raised)
                return
            error = None
            if isinstance(command, Wait):
                box: Any = command.box
                if box.notes:
                    value = box.notes.popleft()
                    continue
                if command.until <= self.client.now():
                    value = None
                    continue
                self.box = box
                box.reader = self
                self.until = command.until
                if command.until < math.inf:
                    self.timer = self.client.when(command.until, self.expire)
                return
            self.client.send(self, command)
            return

    def _stop_waiting(self) -> Box | None:
        box, self.box = self.box, None
        if box is not None:
            box.reader = None
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        return box

    def poke(self, box: Box) -> None:
        """There is a note."""
        if self.box is box and box.notes:
            self._stop_waiting()
            self.step(box.notes.popleft())

    def expire(self) -> None:
        """The time has come, if it has: another wait may have begun while the client paused."""
        box = self.box
        if box is None or self.until > self.client.now() + 1e-5:
            return
        self._stop_waiting()
        self.step(box.notes.popleft() if box.notes else None)

    def reset_timer(self) -> None:
        """The clock has jumped."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = self.client.when(self.until, self.expire)

    def answered(self, call: Call, result: Any) -> None:
        """A call is over, one way or the other."""
        if call.over or self.done:
            return
        call.over = True
        if call.deadline is not None:
            call.deadline.cancel()
        self.call = None
        if isinstance(result, Failure):
            if isinstance(result, OutcomeUnknown):
                self.client.world.counters["unknown outcomes"] += 1
            self.client.trace(self.name, "fails", call.what, result)
            self.step(error=result)
        else:
            self.client.trace(self.name, "gets", call.what, result)
            self.step(result)

    def dispose(self) -> None:
        """End the generator; `close()` would complain when its clean-up yields."""
        while not self.done:
            try:
                self.generator.throw(_Disposed())
            except (_Disposed, StopIteration):
                self.done = True

    @property
    def interruptible(self) -> bool:
        """Is it a caller's, and does it stand at a yield?"""
        return (
            not self.done
            and self.name.startswith("worker")
            and (self.box is not None or self.call is not None)
        )

    def interrupt(self, error: BaseException) -> None:
        """Throw something in, at whatever yield it stands."""
        if self.done or (self.box is None and self.call is None):
            return
        self.client.trace(self.name, "is interrupted at", self.call and self.call.what)
        if self.call is not None:
            self.call.over = True
            if self.call.deadline is not None:
                self.call.deadline.cancel()
            self.call = None
            self.client.world.counters["interrupted calls"] += 1
        else:
            self._stop_waiting()
            self.client.world.counters["interrupted waits"] += 1
        self.step(error=error)


# ---------------------------------------------------------------- clients


class Link:
    """The way between a client and etcd. Blocked: messages are held until then, or dropped."""

    __slots__ = ("down_until", "drops", "slow", "slow_until", "up_until")

    def __init__(self) -> None:
        self.up_until = 0.0
        self.down_until = 0.0
        self.drops = False
        self.slow_until = 0.0
        self.slow = 3.0  # seconds that a message may take until then


class SimClient:
    """A client process: an `Env` for the core, its procedures, its streams."""

    helper = None  # no keeper process
    here = True

    def __init__(self, world: World, number: int, *, rate: float = 1.0) -> None:
        self.world = world
        self.number = number
        self.id = client_id("sim", number + 1, f"{world.rng.getrandbits(40):010x}")
        self.rate = rate  # of its clock, against etcd's
        self.offset = world.rng.random() * 1000.0
        self.link = Link()
        self.crashed = False
        self.broken = False  # it stays as it is: nobody waits for it
        self.paused = False
        self.processes: list[Process] = []
        self.watches = WatchStream(self)
        self.renewals = RenewalStream(self)
        self.session = Session(self, self.id)
        self._backlog: list[tuple[object, Callable[..., object], tuple[Any, ...]]] = []
        world.clients.append(self)

    @property
    def fine(self) -> bool:
        """Does it run, and is nothing wrong with it?"""
        return not (self.crashed or self.broken or self.paused)

    def trace(self, *entry: Any) -> None:
        """Note something about this client."""
        self.world.log.append((self.world.now, self.number, *entry))

    # -- Env

    def now(self) -> float:
        return self.world.now * self.rate + self.offset

    def wall(self) -> float:
        return 1.7e9 + self.world.now

    def random(self) -> float:
        return self.world.rng.random()

    def random_id(self) -> int:
        lease_id = self.world.rng.getrandbits(62) + 1
        self.world.owners[lease_id] = self
        return lease_id

    def mailbox(self) -> Mailbox:
        return Box(self)

    def spawn(self, procedure: Procedure[Any], name: str) -> None:
        self.start(procedure, name, self._spawned)

    def _spawned(self, _value: object, error: BaseException | None) -> None:
        if error is not None:
            self.world.failure = self.world.failure or error

    def starved(self) -> str:
        return ""

    def after(self, action: Callable[[], object]) -> None:
        action()

    def call(self, function: Callable[[], object], name: str) -> None:
        self.soon(function)

    def log(
        self, level: int, message: str, *args: object, error: BaseException | None = None
    ) -> None:
        log.log(level, message, *args, exc_info=error)

    def watch(
        self,
        listener: Listener,
        key: bytes,
        end: bytes = b"",
        *,
        start: int = 0,
        only: str | None = None,
    ) -> SimWatch:
        return self.watches.add(listener, key, end, start, only)

    def renew(self, lease_id: int) -> None:
        self.renewals.send(lease_id)

    def restart_renewals(self) -> None:
        self.world.counters["renewal streams restarted"] += 1
        self.renewals.restart()

    # -- running

    def interrupt_somebody(self) -> None:
        """Throw a cancellation into a caller, wherever it stands."""
        callers = [process for process in self.processes if process.interruptible]
        if callers:
            self.run(self.world.rng.choice(callers).interrupt, Cancelled())

    def shut_down(self, grace: float) -> None:
        """End as a program that closes its client."""
        self.trace("shuts down")
        self._start_admin(procedures.shutdown(self.session, self.now() + grace), "shutdown")

    def resize(self, name: str, max_leases: int) -> None:
        """Change a limit as a program does."""
        station = self.session.station(PREFIX, name)
        self._start_admin(operating.resize(station, max_leases), f"resize {max_leases}")

    def pause_semaphore(self, name: str) -> None:
        """Pause one as an operator does."""
        station = self.session.station(PREFIX, name)
        self._start_admin(operating.pause(station, "operator", "why not"), "pause")

    def resume_semaphore(self, name: str) -> None:
        """Resume one as an operator does."""
        self._start_admin(operating.resume(self.session.station(PREFIX, name)), "resume")

    def drain_semaphore(self, name: str, timeout: float) -> None:
        """Drain one as an operator does; what it comes to goes to `on_drained`."""
        began = self.world.now
        station = self.session.station(PREFIX, name)

        def done(empty: bool | None, error: BaseException | None) -> None:
            self._admin_done(empty, error)
            if empty:
                self.world.counters["drained"] += 1
                self.world.on_drained(name, self, began)

        drain = operating.drain(station, "operator", None, self.now() + timeout)
        self.run(self.start, drain, "drain", done)

    def administer(self, procedure: Procedure[Any], name: str) -> None:
        """Do what an operator's program does."""
        self._start_admin(procedure, name)

    def _start_admin(self, procedure: Procedure[Any], name: str) -> None:
        self.run(self.start, procedure, name, self._admin_done)

    def _admin_done(self, _value: object, error: BaseException | None) -> None:
        if error is not None and not isinstance(error, Failure | EtcdSemError):
            self.world.failure = self.world.failure or error

    def start(
        self,
        procedure: Procedure[Any],
        name: str,
        on_done: Callable[[Any, BaseException | None], None],
    ) -> Process:
        """Run a procedure beside the others."""
        process = Process(self, procedure, name, on_done)
        if len(self.processes) > 50:
            self.processes = [other for other in self.processes if not other.done]
        self.processes.append(process)
        self.soon(process.step)
        return process

    def soon(self, function: Callable[..., object], *args: Any) -> None:
        """Do something as soon as the machine gets to it."""
        rng = self.world.rng
        delay = rng.random() * 0.0005
        if self.world.weather.stall and rng.random() < self.world.weather.stall:
            delay = rng.random() * 0.5
        self.world.after(delay, self.run, function, *args)

    def when(self, local: float, function: Callable[..., object]) -> Timer:
        """Do something when this client's clock says so."""
        return self.world.at((local - self.offset) / self.rate + 1e-6, self.run, function)

    def run(self, function: Callable[..., object], *args: Any, stream: object = None) -> None:
        """Do something now, unless the client is paused or gone."""
        if self.crashed:
            return
        if self.paused:
            self._backlog.append((stream, function, args))
            return
        function(*args)

    def pause(self) -> None:
        """Take no step until `resume`."""
        self.trace("is paused")
        self.paused = True
        self.world.counters["pauses"] += 1

    def resume(self) -> None:
        """Go on; what came meanwhile is met in any order, streams in theirs."""
        if not self.paused:
            return
        self.trace("goes on")
        self.paused = False
        backlog, self._backlog = self._backlog, []
        last: dict[int, float] = {}
        for stream, function, args in backlog:
            moment = self.world.now + self.world.rng.random() * 0.003
            if stream is not None:
                moment = last[id(stream)] = max(moment, last.get(id(stream), 0.0) + 1e-6)
            self.world.at(moment, self._again, stream, function, args)

    def _again(
        self, stream: object, function: Callable[..., object], args: tuple[Any, ...]
    ) -> None:
        self.run(function, *args, stream=stream)

    def crash(self) -> None:
        """End without a word."""
        self.trace("crashes")
        self.crashed = True
        self.watches.close()
        self.world.counters["crashes"] += 1

    def jump(self, seconds: float) -> None:
        """The clock goes forward at once, as after a suspension that etcd did not see."""
        self.trace("clock jumps", seconds)
        self.offset += seconds
        self.world.counters["clock jumps"] += 1
        for process in self.processes:
            process.reset_timer()

    # -- unary calls

    def delay(self) -> float:
        """How long a message travels now."""
        rng = self.world.rng
        if self.link.slow_until > self.world.now:
            return rng.random() * self.link.slow
        return rng.random() * 2 * self.world.weather.latency

    def send(self, process: Process, command: Command[Any]) -> None:
        """Send a request, on a connection shared with nobody."""
        world, rng, weather, link = self.world, self.world.rng, self.world.weather, self.link
        call = process.call = Call(process, command)
        timeout: float = getattr(command, "timeout", 4.0)
        world.counters[f"calls: {type(command).__name__}"] += 1
        if weather.refuse and rng.random() < weather.refuse:
            world.counters["refused connections"] += 1
            self.soon(process.answered, call, NotConnected("connection refused"))
            return
        call.deadline = world.after(
            timeout / self.rate,
            self.run,
            process.answered,
            call,
            OutcomeUnknown("deadline exceeded"),
        )
        moment = world.now + self.delay()
        if weather.late and rng.random() < weather.late:
            moment += timeout * (0.5 + 2 * rng.random())
        if weather.broken and rng.random() < weather.broken:
            self.world.after(
                rng.random() * 2 * weather.latency,
                self.run,
                process.answered,
                call,
                OutcomeUnknown("socket closed"),
            )
            moment += rng.random() * rng.choice((0.0, 0.1, 5.0))
        if moment < link.up_until:
            if link.drops:
                return
            moment = link.up_until + rng.random() * 0.01
        if weather.lose_request and rng.random() < weather.lose_request:
            world.counters["lost requests"] += 1
            return
        world.at(moment, self._arrive, call)

    def _arrive(self, call: Call) -> None:
        world = self.world
        if call.over:
            world.counters["late requests"] += 1
        if world.weather.overload and world.rng.random() < world.weather.overload:
            self._reply(call, NotApplied("etcdserver: too many requests"))
            return
        world.serve(lambda: self._perform(call), lambda result: self._reply(call, result))

    def _perform(self, call: Call) -> Any:
        etcd, what, world = self.world.etcd, call.what, self.world
        before = etcd.revision
        try:
            match what:
                case Transact():
                    if world.no_space and _may_put(what.txn):
                        if world.rng.random() < 0.3:
                            etcd.transact(what.txn)
                        raise NoSpace("etcdserver: mvcc: database space exceeded")
                    return self._transact(what.txn)
                case GrantLease():
                    if world.no_space:
                        if world.rng.random() < 0.3:
                            etcd.grant(what.lease_id, what.ttl)
                        raise NoSpace("etcdserver: mvcc: database space exceeded")
                    return float(etcd.grant(what.lease_id, what.ttl))
                case RevokeLease():
                    return etcd.revoke(what.lease_id)
                case LeasesTimeToLive():
                    return tuple(float(etcd.time_to_live(one)) for one in what.lease_ids)
        finally:
            if call.over and etcd.revision > before:
                world.counters["late-applied writes"] += 1
                world.trace(self.number, call.process.name, "applied late:", what)
        raise AssertionError(f"no such command: {what}")

    def _transact(self, txn: Txn) -> TxnReply:
        """Only a lease that has ended is a reason for etcd to refuse a transaction, and without
        faults none ends while it is in use.
        """
        world = self.world
        try:
            return world.etcd.transact(txn)
        except Refused as refused:
            world.counters["refused transactions"] += 1
            if not (world.leases_may_end and isinstance(refused, LeaseNotFound)):
                world.fail(f"etcd refuses a transaction: {refused}: {brief(txn)}")
            raise

    def _reply(self, call: Call, result: Any) -> None:
        world, rng, link = self.world, self.world.rng, self.link
        if world.weather.lose_reply and rng.random() < world.weather.lose_reply:
            world.counters["lost replies"] += 1
            return
        moment = world.now + self.delay()
        if moment < link.down_until:
            if link.drops:
                return
            moment = link.down_until + rng.random() * 0.01
        world.at(moment, self.run, call.process.answered, call, result)


def _may_put(txn: Txn) -> bool:
    return any(
        isinstance(operation, Put) or (isinstance(operation, Txn) and _may_put(operation))
        for operation in (*txn.success, *txn.failure)
    )


# ---------------------------------------------------------------- streams


class _Stream:
    """What both streams have in common: an order each way, and generations."""

    def __init__(self, client: SimClient) -> None:
        self.client = client
        self.generation = 0
        self.open = True
        self._up = 0.0
        self._down = 0.0

    def up(self, function: Callable[..., object], *args: Any) -> None:
        """Send towards etcd, in order."""
        link, world = self.client.link, self.client.world
        moment = max(self._up, world.now + self.client.delay()) + 1e-6
        if moment < link.up_until:
            if link.drops:
                self._lose()
                return
            moment = link.up_until + 1e-6
        self._up = moment
        world.at(moment, self._if_current, self.generation, function, args)

    def down(self, function: Callable[..., object], *args: Any) -> None:
        """Send towards the client, in order."""
        link, world = self.client.link, self.client.world
        moment = max(self._down, world.now + self.client.delay()) + 1e-6
        if moment < link.down_until:
            if link.drops:
                self._lose()
                return
            moment = link.down_until + 1e-6
        self._down = moment
        world.at(moment, self._receive, self.generation, function, args)

    def _receive(self, generation: int, function: Callable[..., object], args: Any) -> None:
        self.client.run(self._if_current, generation, function, args, stream=self)

    def _if_current(self, generation: int, function: Callable[..., object], args: Any) -> None:
        if generation == self.generation and self.open and not self.client.crashed:
            function(*args)

    def _lose(self) -> None:
        """A message is gone, so the stream is: noticed by a PING after a while."""
        world = self.client.world
        generation = self.generation
        world.after(8.0 + 3 * world.rng.random(), self._cut_if, generation)

    def _cut_if(self, generation: int) -> None:
        if generation == self.generation:
            self.cut()

    def cut(self) -> None:
        """The connection breaks; it is opened again soon."""
        raise NotImplementedError


class SimWatch:
    """A watch that can be cancelled."""

    __slots__ = ("entry", "stream")

    def __init__(self, stream: WatchStream, entry: WatchEntry) -> None:
        self.stream = stream
        self.entry = entry

    def cancel(self) -> None:
        self.stream.remove(self.entry)


class _CountedListener:
    """A listener whose events and gaps are counted and traced."""

    __slots__ = ("client", "listener")

    def __init__(self, client: SimClient, listener: Listener) -> None:
        self.client = client
        self.listener = listener

    def created(self, revision: int) -> None:
        self.listener.created(revision)

    def events(self, events: Sequence[Event]) -> None:
        self.client.world.counters["watch events"] += len(events)
        self.client.trace("hears", events)
        self.listener.events(events)

    def gap(self, reason: str) -> None:
        self.client.world.counters["watch gaps"] += 1
        self.listener.gap(reason)

    def refused(self, error: Failure) -> None:
        self.listener.refused(error)


class WatchStream(_Stream):
    """All watches of a client, resumed by the library's own `WatchBook` when the stream breaks."""

    def __init__(self, client: SimClient) -> None:
        super().__init__(client)
        self.book = WatchBook()
        self.connected = True
        self._server = WatchServer(client.world.etcd, self._answer)

    def add(
        self, listener: Listener, key: bytes, end: bytes, start: int, only: str | None
    ) -> SimWatch:
        """Ask for a watch."""
        entry = WatchEntry(_CountedListener(self.client, listener), key, end, start, only)
        self._send(self.book.add(entry))
        return SimWatch(self, entry)

    def remove(self, entry: WatchEntry) -> None:
        """Cancel a watch, also one that etcd has not created yet."""
        self.book.remove(entry)
        self._send(CancelWatch(entry.id))

    def _send(self, request: WatchRequest) -> None:
        """Send a request. To cancel reaches etcd at once: the book ignores what came too late."""
        if isinstance(request, CancelWatch):
            self._server.serve(request)
        elif self.connected:
            self.up(self._create, request)

    def _create(self, request: WatchRequest) -> None:
        if not any(entry.id == request.id for entry in self.book.entries):
            return  # cancelled on the way
        world = self.client.world
        if world.etcd.leading:
            self._server.serve(request)
        else:
            world.after(0.05, self._if_current, self.generation, self._create, (request,))

    def _answer(self, response: WatchResponse) -> None:
        self.down(self._hear, response)

    def _hear(self, response: WatchResponse) -> None:
        tell, send = self.book.heard(response)
        for one in tell:
            one()
        for request in send:
            self._send(request)

    def cut(self) -> None:
        if self.client.crashed:
            return
        self.client.world.counters["watch streams cut"] += 1
        self.close()
        self.client.world.after(self.client.world.rng.random() * 1.0, self._reopen)

    def close(self) -> None:
        """Forget etcd's end."""
        self.generation += 1
        self.connected = False
        self._server.close()

    def _reopen(self) -> None:
        client = self.client
        if client.crashed or self.connected:
            return
        if client.paused or client.link.up_until > client.world.now:
            client.world.after(0.2 + client.world.rng.random(), self._reopen)
            return
        self.connected = True
        for request in self.book.reopened():
            self._send(request)


class RenewalStream(_Stream):
    """The keepalive stream of a client; etcd serves it serially."""

    def __init__(self, client: SimClient) -> None:
        super().__init__(client)
        self._queue: deque[int] = deque()
        self._busy = False

    def send(self, lease_id: int) -> None:
        """Ask for a renewal."""
        self.client.world.counters["renewals"] += 1
        self.up(self._arrive, lease_id)

    def _arrive(self, lease_id: int) -> None:
        self._queue.append(lease_id)
        self._next()

    def _next(self) -> None:
        while self._queue and not self._busy:
            lease_id = self._queue.popleft()
            self._busy = True
            generation = self.generation
            self.client.world.etcd.keep_alive(lease_id, partial(self._answer, generation, lease_id))

    def _answer(self, generation: int, lease_id: int, ttl: int) -> None:
        if generation != self.generation:
            return
        self._busy = False
        self.down(self.on_answer, lease_id, ttl)
        self._next()

    def on_answer(self, lease_id: int, ttl: int) -> None:
        """Etcd has answered a renewal."""
        self.client.session.keeper.renewed(lease_id, float(ttl))

    def restart(self) -> None:
        """Another connection; what is under way is dropped, on the way back at least."""
        self.generation += 1
        self._queue = deque()
        self._busy = False

    def cut(self) -> None:
        self.client.world.counters["renewal streams cut"] += 1
        self.restart()
