"""The three stages: threads and asyncio before a real etcd, and the simulator."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import math
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

import etcdsem
from etcdsem import aio
from etcdsem.core import acquire, admin, release, release_steps, transactions
from etcdsem.core.commands import Procedure
from etcdsem.core.grants import Grant
from etcdsem.core.keys import ORDINARY, Demand, Identity
from etcdsem.core.request import AcquireRequest
from etcdsem.core.semaphore import SemaphoreState
from etcdsem.errors import SemaphoreClosed, WeightExceedsLimit
from tests.helpers.history import assert_clean
from tests.helpers.waiting import eventually
from tests.scenarios.scenarios import LIMIT, Attempt, Fate
from tests.simulation.checks import Checker
from tests.simulation.client import SimClient
from tests.simulation.world import PREFIX, Cancelled, World

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

T = TypeVar("T")


class Hit(BaseException):
    """What cancels a thread."""


class RealAttempt:
    """Its outcome is a future: a lease, None, or an error."""

    def __init__(self, client: int) -> None:
        self.client = client
        self.outcome: Future[etcdsem.Lease | aio.Lease | None] = Future()
        self.thread: threading.Thread | None = None
        self.task: asyncio.Task[None] | None = None

    @property
    def lease(self) -> Any:
        """What was granted."""
        lease = self.outcome.result(30)
        assert lease is not None
        return lease

    @property
    def slot(self) -> int:
        """Of the lease."""
        slot: int = self.lease.slot
        return slot

    @property
    def slots(self) -> tuple[int, ...]:
        """Of the lease."""
        slots: tuple[int, ...] = self.lease.slots
        return slots

    @property
    def token(self) -> int:
        """Of the lease."""
        token: int = self.lease.fencing_token
        return token


class RealStage:
    """What the two real stages share: a blocking client looks on."""

    def __init__(self, etcd: EtcdServer, name: str) -> None:
        self.etcd = etcd
        self.name = name
        self.observer = etcdsem.connect(etcd.endpoint)
        self.seen = etcdsem.Semaphore(LIMIT, name, client=self.observer)

    def start(self, attempt: RealAttempt, timeout: float | None, demand: Demand) -> None:
        """Begin, in whatever way."""
        raise NotImplementedError

    def begin(
        self, *, client: int = 0, timeout: float | None = None, demand: Demand = ORDINARY
    ) -> RealAttempt:
        attempt = RealAttempt(client)
        before = self.waiting()
        self.start(attempt, timeout, demand)
        if timeout is None:
            eventually(lambda: attempt.outcome.done() or self.waiting() > before)
        return attempt

    def fate(self, attempt: Attempt) -> Fate:
        outcome = _real(attempt).outcome
        try:
            return "granted" if outcome.result(30) is not None else "full"
        except SemaphoreClosed:
            return "closed"
        except WeightExceedsLimit:
            return "too heavy"
        except (Hit, asyncio.CancelledError):
            return "cancelled"

    def pending(self, attempt: Attempt) -> bool:
        return not _real(attempt).outcome.done()

    def valid(self, attempt: Attempt) -> bool:
        valid: bool = _real(attempt).lease.valid
        return valid

    def wait_lost(self, attempt: Attempt) -> None:
        eventually(_real(attempt).lease.lost.is_set)

    def resize(self, limit: int) -> None:
        self.seen.resize(limit)

    def pause(self) -> bool:
        return self.seen.pause()

    def penalize(self, seconds: float) -> bool:
        return self.seen.penalize(seconds, reason="too many requests")

    def resume(self) -> bool:
        return self.seen.resume()

    def evict(self, slot: int) -> None:
        self.observer.evict(self.name, slot=slot)

    def close(self) -> None:
        self.seen.close()

    def held(self) -> int:
        return self.seen.get_value()

    def waiting(self) -> int:
        try:
            return len(self.seen.status(ttl=False).waiters)
        except SemaphoreClosed:
            return 0

    def end(self) -> None:
        """Judge what etcd recorded."""
        self.observer.close()
        assert_clean(self.etcd, self.name)


def _real(attempt: Attempt) -> RealAttempt:
    assert isinstance(attempt, RealAttempt)
    return attempt


class ThreadStage(RealStage):
    """One thread for each attempt, two clients."""

    def __init__(self, etcd: EtcdServer, name: str) -> None:
        super().__init__(etcd, name)
        self.clients = [etcdsem.connect(etcd.endpoint) for _ in range(2)]
        self.semaphores = [etcdsem.Semaphore(LIMIT, name, client=one) for one in self.clients]

    def start(self, attempt: RealAttempt, timeout: float | None, demand: Demand) -> None:
        def work() -> None:
            try:
                sem = self.semaphores[attempt.client]
                attempt.outcome.set_result(sem.acquire_lease(timeout, **demand._asdict()))
            except BaseException as error:
                attempt.outcome.set_exception(error)

        attempt.thread = threading.Thread(target=work, daemon=True)
        attempt.thread.start()

    def cancel(self, attempt: Attempt) -> None:
        thread = _real(attempt).thread
        assert thread is not None
        assert thread.ident is not None
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident), ctypes.py_object(Hit)
        )

    def release(self, attempt: Attempt) -> bool:
        done: bool = _real(attempt).lease.release()
        return done

    def end(self) -> None:
        for client in self.clients:
            client.close()
        super().end()


class AioStage(RealStage):
    """One task for each attempt, in a loop that runs in a thread of its own; two clients."""

    def __init__(self, etcd: EtcdServer, name: str) -> None:
        super().__init__(etcd, name)
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.clients = [aio.connect(etcd.endpoint) for _ in range(2)]
        self.semaphores = [aio.Semaphore(LIMIT, name, client=one) for one in self.clients]

    def do(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Call something in the loop, and wait for it."""

        async def work() -> T:
            return await call()

        return asyncio.run_coroutine_threadsafe(work(), self.loop).result(30)

    def start(self, attempt: RealAttempt, timeout: float | None, demand: Demand) -> None:
        async def work() -> None:
            try:
                sem = self.semaphores[attempt.client]
                lease = await sem.acquire_lease(timeout, **demand._asdict())
                attempt.outcome.set_result(lease)
            except BaseException as error:
                attempt.outcome.set_exception(error)

        async def begin() -> None:
            attempt.task = asyncio.create_task(work())

        self.do(begin)

    def cancel(self, attempt: Attempt) -> None:
        task = _real(attempt).task
        assert task is not None
        self.loop.call_soon_threadsafe(task.cancel)

    def release(self, attempt: Attempt) -> bool:
        done: bool = self.do(lambda: _real(attempt).lease.release())
        return done

    def end(self) -> None:
        for client in self.clients:
            self.do(client.close)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()
        super().end()


class SimAttempt:
    """An acquire of the simulator."""

    def __init__(self) -> None:
        self.grant: Grant | None = None
        self.error: BaseException | None = None
        self.done = False
        self.lost = False
        self.process: Any = None

    def ended(self, grant: Grant | None, error: BaseException | None) -> None:
        """The procedure has ended."""
        self.grant, self.error, self.done = grant, error, True
        if grant is not None:
            grant.on_lost = self._lost

    def _lost(self, _: Grant) -> None:
        self.lost = True

    @property
    def slot(self) -> int:
        """Of the grant."""
        assert self.grant is not None
        return self.grant.slot

    @property
    def slots(self) -> tuple[int, ...]:
        """Of the grant."""
        assert self.grant is not None
        return self.grant.slots

    @property
    def token(self) -> int:
        """Of the grant."""
        assert self.grant is not None
        return self.grant.token


class SimStage:
    """The simulator, in fair weather; every revision is judged by its checker."""

    def __init__(self, seed: int) -> None:
        self.world = World(seed)
        self.checker = Checker(self.world, PREFIX, "scenario")
        self.keys = self.checker.keys
        self.world.etcd.put(self.keys.max_leases, b"%d" % LIMIT)
        self.clients = [SimClient(self.world, number) for number in range(2)]
        for client in self.clients:
            client.session.reread = (1000.0, 2000.0)  # what the watches tell must do

    def _until(self, condition: Callable[[], object], seconds: float = 20.0) -> None:
        until = self.world.now + seconds
        while not condition():
            assert self.world.now < until, "it did not come about in time"
            self.world.run(self.world.now + 0.002)

    def begin(
        self, *, client: int = 0, timeout: float | None = None, demand: Demand = ORDINARY
    ) -> SimAttempt:
        one, attempt, before = self.clients[client], SimAttempt(), self.waiting()
        until = math.inf if timeout is None else one.now() + timeout
        request = AcquireRequest(10, 3.0, Identity.of(one.id, None, {}), demand=demand)
        station = one.session.semaphore(PREFIX, "scenario")
        procedure = acquire.acquire(station, request, until, once=timeout == 0)
        attempt.process = one.start(procedure, "worker", attempt.ended)
        if timeout is None:
            self._until(lambda: attempt.done or self.waiting() > before)
        return attempt

    def fate(self, attempt: Attempt) -> Fate:
        one = _simulated(attempt)
        self._until(lambda: one.done)
        if one.error is None:
            return "granted" if one.grant is not None else "full"
        if isinstance(one.error, SemaphoreClosed):
            return "closed"
        if isinstance(one.error, WeightExceedsLimit):
            return "too heavy"
        assert isinstance(one.error, Cancelled), one.error
        return "cancelled"

    def pending(self, attempt: Attempt) -> bool:
        self.world.run(self.world.now + 0.05)
        return not _simulated(attempt).done

    def valid(self, attempt: Attempt) -> bool:
        grant = _simulated(attempt).grant
        assert grant is not None
        return grant.valid(grant.semaphore.session.env.now())

    def wait_lost(self, attempt: Attempt) -> None:
        self._until(lambda: _simulated(attempt).lost)

    def release(self, attempt: Attempt) -> bool:
        grant = _simulated(attempt).grant
        assert grant is not None
        env = grant.semaphore.session.env
        assert isinstance(env, SimClient)
        done: list[bool] = []
        env.start(
            release.release(grant),
            "release",
            lambda value, _: done.append(value is release_steps.ReleaseResult.RELEASED),
        )
        self._until(lambda: done)
        return done[0]

    def cancel(self, attempt: Attempt) -> None:
        _simulated(attempt).process.interrupt(Cancelled())

    def resize(self, limit: int) -> None:
        self._operate(lambda station: admin.resize(station, limit))

    def _operate(self, verb: Callable[[SemaphoreState], Procedure[admin.Change]]) -> bool:
        """What an operator does, by a client of its own."""
        done: list[tuple[admin.Change, object]] = []
        verbs = SimClient(self.world, 9)
        procedure = verb(verbs.session.semaphore(PREFIX, "scenario"))
        verbs.start(procedure, "verb", lambda value, error: done.append((value, error)))
        self._until(lambda: done)
        assert done[0][1] is None
        return done[0][0].changed

    def pause(self) -> bool:
        return self._operate(lambda station: admin.pause(station, "test", None))

    def penalize(self, seconds: float) -> bool:
        return self._operate(lambda station: admin.penalize(station, "test", seconds, None))

    def resume(self) -> bool:
        return self._operate(admin.resume)

    def evict(self, slot: int) -> None:
        self.world.run(self.world.now + 1.0)  # so long that it is watched
        self.world.operate("evict", lambda: self.world.etcd.delete(self.keys.slot(slot)))

    def close(self) -> None:
        close = transactions.close(self.keys, force=True)
        self.world.run(self.world.now + 1.0)
        self.world.operate("close", lambda: self.world.etcd.transact(close))

    def held(self) -> int:
        return len(self.world.etcd.keys(self.keys.leases, self.keys.leases_end))

    def waiting(self) -> int:
        return len(self.world.etcd.keys(self.keys.waiters, self.keys.waiters_end))

    def end(self) -> None:
        """Close the clients; nothing may be left."""
        for client in self.clients:
            client.shut_down(5.0)
        self.world.run(self.world.now + 30.0)
        self.checker.check_nothing_left()
        self.world.run(self.world.now)
        with contextlib.suppress(Exception):
            self.world.dispose()


def _simulated(attempt: Attempt) -> SimAttempt:
    assert isinstance(attempt, SimAttempt)
    return attempt
