"""A simulated client: an `Env` for the core, its procedures, and its link to etcd."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from etcdsem.core import admin, lifecycle
from etcdsem.core.commands import (
    Command,
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
)
from etcdsem.core.keys import client_id
from etcdsem.core.session import Session
from etcdsem.core.watchbook import WatchHandle
from etcdsem.errors import EtcdSemError
from tests.simulation.process import Box, Call, Process
from tests.simulation.streams import RenewalStream, WatchStream
from tests.simulation.trace import brief
from tests.simulation.world import PREFIX, Cancelled, Timer, World

log = logging.getLogger("etcdsem")


class Link:
    """The link between a client and etcd. While it is blocked, messages are held or dropped."""

    __slots__ = ("down_until", "drops", "slow", "slow_until", "up_until")

    def __init__(self) -> None:
        self.up_until = 0.0
        self.down_until = 0.0
        self.drops = False
        self.slow_until = 0.0
        self.slow = 3.0  # maximum seconds that a message takes until then


class SimClient:
    """A client process: an `Env` for the core, its procedures, its streams."""

    helper = None  # no keeper process
    here = True

    def __init__(self, world: World, number: int, *, rate: float = 1.0) -> None:
        self.world = world
        self.number = number
        self.id = client_id("sim", number + 1, f"{world.rng.getrandbits(40):010x}")
        self.rate = rate  # of its clock, relative to etcd's
        self.offset = world.rng.random() * 1000.0
        self.wall_offset = 0.0  # of its time of day; rates only, see there
        self.link = Link()
        self.crashed = False
        self.broken = False  # it is never healed, and nobody waits for it
        self.paused = False
        self.processes: list[Process] = []
        self.watches = WatchStream(self)
        self.renewals = RenewalStream(self)
        self.session = Session(self, self.id)
        self._backlog: list[tuple[object, Callable[..., object], tuple[Any, ...]]] = []
        world.clients.append(self)

    @property
    def fine(self) -> bool:
        """Is it running without any fault?"""
        return not (self.crashed or self.broken or self.paused)

    def trace(self, *entry: Any) -> None:
        """Record an event of this client."""
        self.world.log.append((self.world.now, self.number, *entry))

    # -- Env

    def now(self) -> float:
        return self.world.now * self.rate + self.offset

    def wall(self) -> float:
        return 1.7e9 + self.world.now + self.wall_offset

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
    ) -> WatchHandle:
        return self.watches.add(listener, key, end, start, only)

    def renew(self, lease_id: int) -> None:
        self.renewals.send(lease_id)

    def restart_renewals(self) -> None:
        self.world.counters["renewal streams restarted"] += 1
        self.renewals.restart()

    # -- running

    def interrupt_somebody(self) -> None:
        """Throw a cancellation into a caller, wherever it is."""
        callers = [process for process in self.processes if process.interruptible]
        if callers:
            self.run(self.world.rng.choice(callers).interrupt, Cancelled())

    def shut_down(self, grace: float) -> None:
        """End like a program that closes its client."""
        self.trace("shuts down")
        self._start_admin(lifecycle.shutdown(self.session, self.now() + grace), "shutdown")

    def resize(self, name: str, max_leases: int) -> None:
        """Change a limit like a program."""
        station = self.session.semaphore(PREFIX, name)
        self._start_admin(admin.resize(station, max_leases), f"resize {max_leases}")

    def pause_semaphore(self, name: str) -> None:
        """Pause a semaphore like an operator."""
        station = self.session.semaphore(PREFIX, name)
        self._start_admin(admin.pause(station, "operator", "why not"), "pause")

    def penalize(self, name: str, seconds: float) -> None:
        """Pause a semaphore for a time; once it is, `on_penalized` is called."""
        began, offset = self.world.now, self.offset
        station = self.session.semaphore(PREFIX, name)

        def done(change: admin.Change | None, error: BaseException | None) -> None:
            self._admin_done(change, error)
            if change is not None and offset == self.offset:  # its clock has not jumped
                self.world.on_penalized(name, began, seconds)

        pause = admin.penalize(station, "sim", seconds, "too many requests")
        self.run(self.start, pause, "penalize", done)

    def resume_semaphore(self, name: str) -> None:
        """Resume a semaphore like an operator."""
        self._start_admin(admin.resume(self.session.semaphore(PREFIX, name)), "resume")

    def drain_semaphore(self, name: str, timeout: float) -> None:
        """Drain a semaphore like an operator; the result goes to `on_drained`."""
        began = self.world.now
        station = self.session.semaphore(PREFIX, name)

        def done(empty: bool | None, error: BaseException | None) -> None:
            self._admin_done(empty, error)
            if empty:
                self.world.counters["drained"] += 1
                self.world.on_drained(name, self, began)

        drain = admin.drain(station, "operator", None, self.now() + timeout)
        self.run(self.start, drain, "drain", done)

    def administer(self, procedure: Procedure[Any], name: str) -> None:
        """Run a procedure of an operator's program."""
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
        """Run a procedure concurrently."""
        process = Process(self, procedure, name, on_done)
        if len(self.processes) > 50:
            self.processes = [other for other in self.processes if not other.done]
        self.processes.append(process)
        self.soon(process.step)
        return process

    def soon(self, function: Callable[..., object], *args: Any) -> None:
        """Call a function as soon as the machine gets to it."""
        rng = self.world.rng
        delay = rng.random() * 0.0005
        if self.world.weather.stall and rng.random() < self.world.weather.stall:
            delay = rng.random() * 0.5
        self.world.after(delay, self.run, function, *args)

    def when(self, local: float, function: Callable[..., object]) -> Timer:
        """Call a function at a time on this client's clock."""
        return self.world.at((local - self.offset) / self.rate + 1e-6, self.run, function)

    def run(self, function: Callable[..., object], *args: Any, stream: object = None) -> None:
        """Call a function now, or after `resume` if paused; never if crashed."""
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
        """Continue. What arrived meanwhile is processed in any order, streams in their own."""
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
        """End without closing anything."""
        self.trace("crashes")
        self.crashed = True
        self.watches.close()
        self.world.counters["crashes"] += 1

    def jump(self, seconds: float) -> None:
        """Jump the clock forward, as after a suspension that etcd did not see."""
        self.trace("clock jumps", seconds)
        self.offset += seconds
        self.world.counters["clock jumps"] += 1
        for process in self.processes:
            process.reset_timer()

    # -- unary calls

    def delay(self) -> float:
        """How long a message takes now."""
        rng = self.world.rng
        if self.link.slow_until > self.world.now:
            return rng.random() * self.link.slow
        return rng.random() * 2 * self.world.weather.latency

    def send(self, process: Process, command: Command[Any]) -> None:
        """Send a request, on a connection of its own."""
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
        """Perform a transaction. etcd may refuse one only for a lease that has ended, and without
        faults no lease ends while it is in use.
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
