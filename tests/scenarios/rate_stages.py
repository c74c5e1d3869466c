"""The stages for rate limits: threads and asyncio, each before a real etcd and before the one in
memory; and the simulator.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import etcdsem
import etcdsem.testing
import etcdsem.testing.aio
from etcdsem import aio
from etcdsem.clock import boot_time
from etcdsem.core import admin, forecast, permits, rates, transactions
from etcdsem.core.commands import Procedure
from etcdsem.core.keys import Identity
from etcdsem.core.semaphore import SemaphoreState
from etcdsem.errors import SemaphoreClosed
from etcdsem.model import BasePermit, Denied, Rate
from tests.helpers.waiting import eventually
from tests.scenarios.rates import FIRST_RATE, Asked, RateFate
from tests.simulation.checks import Checker
from tests.simulation.client import SimClient
from tests.simulation.world import PREFIX, World

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

T = TypeVar("T")

IN_TIME = 30.0
"""Seconds of the stage's time within which anything must come about."""


class RateAttempt:
    """Its outcome is a future; it was started between `lo` and `hi`, by its stage's clock."""

    def __init__(self, client: int) -> None:
        self.client = client
        self.outcome: Future[BasePermit | None] = Future()
        self.lo = self.hi = math.nan

    def started(self, before: float, start: BasePermit | None, after: float) -> None:
        """`acquire` was called and has returned."""
        if start is not None:
            self.lo, self.hi = before + start.waited, after
        self.outcome.set_result(start)


def _own(asked: Asked) -> RateAttempt:
    assert isinstance(asked, RateAttempt)
    return asked


class _Judged:
    """What all stages say of an attempt in the same way."""

    def until(self, condition: Callable[[], object]) -> None:
        """Let time pass until something is so."""
        raise NotImplementedError

    def fate(self, asked: Asked) -> RateFate:
        outcome = _own(asked).outcome
        self.until(outcome.done)
        try:
            return "started" if outcome.result() is not None else "none"
        except SemaphoreClosed:
            return "closed"

    def apart(self, first: Asked, second: Asked) -> float:
        return _own(second).hi - _own(first).lo


class ThreadRates(_Judged):
    """One thread for each attempt, two clients, and a third that looks on; before a real etcd."""

    def __init__(self, connect: Callable[[], etcdsem.Client], name: str) -> None:
        self.name = name
        self.clients = [connect() for _ in range(3)]
        starts, period, _ = FIRST_RATE
        self.limits = [etcdsem.RateLimit(name, starts, period, client=one) for one in self.clients]
        self.seen = self.limits[2]

    def now(self) -> float:
        """By the clock of the stage."""
        return boot_time()

    def until(self, condition: Callable[[], object]) -> None:
        eventually(condition, IN_TIME)

    def begin(self, *, client: int = 0, timeout: float | None = None) -> RateAttempt:
        attempt = RateAttempt(client)
        before = self.waiting()

        def work() -> None:
            try:
                asked = self.now()
                start = self.limits[client].acquire(timeout)
                attempt.started(asked, start, self.now())
            except BaseException as error:
                attempt.outcome.set_exception(error)

        threading.Thread(target=work, daemon=True).start()
        if timeout is None:
            self.until(lambda: attempt.outcome.done() or self.waiting() > before)
        return attempt

    def a_moment(self) -> None:
        time.sleep(0.03)

    def pending(self, asked: Asked) -> bool:
        return not _own(asked).outcome.done()

    def retry_after(self, client: int) -> float:
        denied = self.limits[client].try_acquire()
        assert isinstance(denied, Denied)
        return denied.retry_after

    def resize(self, rate: Rate) -> None:
        """With the block, too: as ``etcdsem rate`` does."""
        station = self.clients[2]._state(self.name)
        self.clients[2]._run(admin.resize(station, rate), "resize")

    def pause(self) -> bool:
        return self.seen.pause()

    def penalize(self, seconds: float) -> bool:
        return self.seen.penalize(seconds)

    def resume(self) -> bool:
        return self.seen.resume()

    def evict(self, slot: int) -> None:
        self.clients[2].evict(self.name, slot=slot)

    def leave(self, client: int) -> None:
        self.clients[client].close()

    def close(self) -> None:
        self.seen.close()

    def held(self) -> int:
        return self.seen.status(ttl=False).held

    def waiting(self) -> int:
        try:
            return len(self.seen.status(ttl=False).waiters)
        except SemaphoreClosed:
            return 0

    def end(self) -> None:
        """Close the clients: whoever waits leaves the line."""
        for client in self.clients:
            client.close()


def real_threads(etcd: EtcdServer, name: str) -> ThreadRates:
    """Before a real etcd."""
    return ThreadRates(lambda: etcdsem.connect(etcd.endpoint), name)


class ThreadRatesInMemory(ThreadRates):
    """The same before the etcd in memory; the test moves the time."""

    def __init__(self, name: str) -> None:
        self.memory = etcdsem.testing.memory()
        super().__init__(self.memory.client, name)

    def now(self) -> float:
        return self.memory.now

    def a_moment(self) -> None:
        self.memory.advance(0.03)

    def until(self, condition: Callable[[], object]) -> None:
        until = self.memory.now + IN_TIME
        while not condition():
            assert self.memory.now < until, "it did not come about in time"
            self.memory.advance(0.01)
            time.sleep(0.0005)  # real time, for threads that have yet to begin, or to end

    def end(self) -> None:
        self.memory.close()


def threads_in_memory(_etcd: EtcdServer, name: str) -> ThreadRatesInMemory:
    """Before the etcd in memory."""
    return ThreadRatesInMemory(name)


class AioRates(_Judged):
    """One task for each attempt, in a loop that runs in a thread of its own; before a real etcd."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.tasks: set[asyncio.Task[None]] = set()
        self.clients = [self.do(self.connect) for _ in range(3)]
        self.limits = [self.do(partial(self.limit, one)) for one in self.clients]
        self.seen = self.limits[2]

    async def connect(self) -> aio.Client:
        """A client."""
        raise NotImplementedError

    async def limit(self, client: aio.Client) -> aio.RateLimit:
        """The rate limit, registered."""
        return await aio.RateLimit(self.name, FIRST_RATE.starts, FIRST_RATE.period, client=client)

    def do(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Call something in the loop, and wait for it."""

        async def work() -> T:
            return await call()

        return asyncio.run_coroutine_threadsafe(work(), self.loop).result(IN_TIME)

    def now(self) -> float:
        """By the clock of the stage."""
        return boot_time()

    def until(self, condition: Callable[[], object]) -> None:
        eventually(condition, IN_TIME)

    def begin(self, *, client: int = 0, timeout: float | None = None) -> RateAttempt:
        attempt = RateAttempt(client)
        before = self.waiting()

        async def work() -> None:
            try:
                asked = self.now()
                start = await self.limits[client].acquire(timeout)
                attempt.started(asked, start, self.now())
            except BaseException as error:
                attempt.outcome.set_exception(error)

        async def begin() -> None:
            task = asyncio.create_task(work())
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

        self.do(begin)
        if timeout is None:
            self.until(lambda: attempt.outcome.done() or self.waiting() > before)
        return attempt

    def a_moment(self) -> None:
        time.sleep(0.03)

    def pending(self, asked: Asked) -> bool:
        return not _own(asked).outcome.done()

    def retry_after(self, client: int) -> float:
        denied = self.do(lambda: self.limits[client].try_acquire())
        assert isinstance(denied, Denied)
        return denied.retry_after

    def resize(self, rate: Rate) -> None:
        """With the block, too: as ``etcdsem rate`` does."""

        async def resize() -> None:
            station = self.clients[2]._state(self.name)
            await self.clients[2]._run(admin.resize(station, rate), "resize")

        self.do(resize)

    def pause(self) -> bool:
        return self.do(lambda: self.seen.pause())

    def penalize(self, seconds: float) -> bool:
        return self.do(lambda: self.seen.penalize(seconds))

    def resume(self) -> bool:
        return self.do(lambda: self.seen.resume())

    def evict(self, slot: int) -> None:
        self.do(lambda: self.clients[2].evict(self.name, slot=slot))

    def leave(self, client: int) -> None:
        self.do(lambda: self.clients[client].close())

    def close(self) -> None:
        self.do(lambda: self.seen.close())

    def held(self) -> int:
        return self.do(lambda: self.seen.status(ttl=False)).held

    def waiting(self) -> int:
        try:
            return len(self.do(lambda: self.seen.status(ttl=False)).waiters)
        except SemaphoreClosed:
            return 0

    def end(self) -> None:
        """Close the clients: whoever waits leaves the line."""
        for client in self.clients:
            self.do(client.close)
        self.stop()

    def stop(self) -> None:
        """End the loop, when the tasks have ended."""
        eventually(lambda: not self.tasks)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()


class AioRatesReal(AioRates):
    """Before a real etcd."""

    def __init__(self, etcd: EtcdServer, name: str) -> None:
        self.etcd = etcd
        super().__init__(name)

    async def connect(self) -> aio.Client:
        return aio.connect(self.etcd.endpoint)


class AioRatesInMemory(AioRates):
    """Before the etcd in memory; the test moves the time."""

    def __init__(self, _etcd: EtcdServer, name: str) -> None:
        self.memory: etcdsem.testing.aio.Memory | None = None
        super().__init__(name)

    async def connect(self) -> aio.Client:
        if self.memory is None:
            self.memory = etcdsem.testing.aio.memory()
        return self.memory.client()

    @property
    def etcd(self) -> etcdsem.testing.aio.Memory:
        """The etcd in memory."""
        assert self.memory is not None
        return self.memory

    def now(self) -> float:
        return self.etcd.now

    def until(self, condition: Callable[[], object]) -> None:
        until = self.etcd.now + IN_TIME
        while not condition():
            assert self.etcd.now < until, "it did not come about in time"
            self.do(lambda: self.etcd.advance(0.01))

    def a_moment(self) -> None:
        self.do(lambda: self.etcd.advance(0.03))

    def end(self) -> None:
        self.do(lambda: self.etcd.close())
        self.stop()


class SimRates(_Judged):
    """The simulator, in fair weather; every revision is judged by its checker."""

    def __init__(self, seed: int) -> None:
        self.world = World(seed)
        self.checker = Checker(self.world, PREFIX, "scenario")
        self.keys = self.checker.keys
        self.world.etcd.put(self.keys.max_leases, str(FIRST_RATE).encode())
        self.clients = [SimClient(self.world, number) for number in range(3)]
        for client in self.clients:
            client.session.reread = (1000.0, 2000.0)  # what the watches tell must do

    def until(self, condition: Callable[[], object]) -> None:
        until = self.world.now + IN_TIME
        while not condition():
            assert self.world.now < until, "it did not come about in time"
            self.world.run(self.world.now + 0.002)

    def begin(self, *, client: int = 0, timeout: float | None = None) -> RateAttempt:
        one, attempt, before = self.clients[client], RateAttempt(client), self.waiting()
        asked = self.world.now
        until = math.inf if timeout is None else one.now() + timeout

        def ended(started: permits.Started | None, error: BaseException | None) -> None:
            if error is not None:
                attempt.outcome.set_exception(error)
            else:
                start = None if started is None else BasePermit(started.waited)
                attempt.started(asked, start, self.world.now)

        station = one.session.semaphore(PREFIX, "scenario")
        request = rates.permit_request(Identity.of(one.id, None, {}))
        one.start(rates.start(station, request, until, once=timeout == 0), "worker", ended)
        if timeout is None:
            self.until(lambda: attempt.outcome.done() or self.waiting() > before)
        return attempt

    def pending(self, asked: Asked) -> bool:
        self.world.run(self.world.now + 0.05)
        return not _own(asked).outcome.done()

    def retry_after(self, client: int) -> float:
        from etcdsem.core.inspection import status

        station = self.clients[client].session.semaphore(PREFIX, "scenario")
        seen = self._run(status(station, ttl=False))
        return forecast.next_free(seen, self.clients[client].wall())

    def _run(self, procedure: Procedure[T]) -> T:
        """What an operator does, by a client of its own."""
        done: list[tuple[Any, BaseException | None]] = []
        self.clients[2].start(procedure, "verb", lambda *ended: done.append(ended))
        self.until(lambda: done)
        value, error = done[0]
        assert error is None, error
        result: T = value
        return result

    @property
    def _station(self) -> SemaphoreState:
        return self.clients[2].session.semaphore(PREFIX, "scenario")

    def resize(self, rate: Rate) -> None:
        self._run(admin.resize(self._station, rate))

    def pause(self) -> bool:
        return self._run(admin.pause(self._station, "test", None)).changed

    def penalize(self, seconds: float) -> bool:
        return self._run(admin.penalize(self._station, "test", seconds, None)).changed

    def resume(self) -> bool:
        return self._run(admin.resume(self._station)).changed

    def evict(self, slot: int) -> None:
        self.world.run(self.world.now + 1.0)  # so long that it is watched
        for key in (self.keys.slot(slot), self.keys.permit(slot)):
            self.world.operate("evict", partial(self.world.etcd.delete, key))

    def a_moment(self) -> None:
        self.world.run(self.world.now + 0.03)

    def leave(self, client: int) -> None:
        self.clients[client].shut_down(5.0)

    def close(self) -> None:
        close = transactions.close(self.keys, force=True)
        self.world.run(self.world.now + 1.0)
        self.world.operate("close", lambda: self.world.etcd.transact(close))

    def held(self) -> int:
        return len(self.world.etcd.keys(self.keys.leases, self.keys.leases_end))

    def waiting(self) -> int:
        return len(self.world.etcd.keys(self.keys.waiters, self.keys.waiters_end))

    def end(self) -> None:
        """Nobody waits for a slot that is free; the clients end."""
        self.checker.calm_since = self.world.now
        self.world.run(self.world.now + 5.0)
        self.checker.look()
        self.world.run(self.world.now)
        self.world.dispose()
