"""The etcd in memory for coroutines: the same scenarios on it and on a real etcd see the same."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pytest

import etcdsem
from etcdsem import aio
from etcdsem.aio import Client, Lease, Semaphore
from etcdsem.testing.aio import Memory, memory
from tests.etcd.proxy import Proxy
from tests.helpers.event_loop import run, until

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer


class Stage:
    """What both kinds of etcd can do."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.log: list[object] = []

    def client(self) -> Client:
        """A client, as of another process."""
        raise NotImplementedError

    async def semaphore(self, limit: int | None, **options: Any) -> Semaphore:
        """The semaphore, for a client of its own."""
        return await Semaphore(limit, self.name, client=self.client(), **options)

    async def delete(self, key: str) -> None:
        """As an operator would."""
        raise NotImplementedError

    async def put(self, key: str, value: str) -> None:
        """As an operator would."""
        raise NotImplementedError

    async def cut(self, away: bool) -> None:
        """Etcd goes away, or comes back."""
        raise NotImplementedError

    async def until(self, condition: Callable[[], Awaitable[object]]) -> None:
        """Let time pass until something is so."""
        raise NotImplementedError

    def key(self, rest: str) -> str:
        """A key of the semaphore."""
        return f"/etcdsem/{self.name}/{rest}"


class RealStage(Stage):
    """A real etcd, behind a proxy that can be cut."""

    def __init__(self, name: str, etcd: EtcdServer, proxy: Proxy) -> None:
        super().__init__(name)
        self.etcd = etcd
        self.proxy = proxy
        self.clients: list[Client] = []

    def client(self) -> Client:
        self.clients.append(aio.connect(self.proxy.endpoint, dial_timeout=1))
        return self.clients[-1]

    async def delete(self, key: str) -> None:
        await asyncio.to_thread(self.etcd.etcdctl, "del", self.key(key))

    async def put(self, key: str, value: str) -> None:
        await asyncio.to_thread(self.etcd.etcdctl, "put", self.key(key), value)

    async def cut(self, away: bool) -> None:
        self.proxy.up = self.proxy.down = "drop" if away else "pass"
        self.proxy.reset()

    async def until(self, condition: Callable[[], Awaitable[object]]) -> None:
        await until(condition)


class MemoryStage(Stage):
    """The etcd in memory."""

    def __init__(self, name: str, memory: Memory) -> None:
        super().__init__(name)
        self.memory = memory

    def client(self) -> Client:
        return self.memory.client()

    async def delete(self, key: str) -> None:
        assert await self.memory.delete(self.key(key)) == 1

    async def put(self, key: str, value: str) -> None:
        await self.memory.put(self.key(key), value)

    async def cut(self, away: bool) -> None:
        await (self.memory.cut() if away else self.memory.restore())

    async def until(self, condition: Callable[[], Awaitable[object]]) -> None:
        for _ in range(600):
            if await condition():
                return
            await self.memory.advance(0.1)
        raise AssertionError("it did not come about in time")


Scenario = Callable[[Stage], Awaitable[None]]
SCENARIOS: list[Scenario] = []


def scenario(function: Scenario) -> Scenario:
    """Played on both kinds; what it notes in `log` must be the same."""
    SCENARIOS.append(function)
    return function


@scenario
async def full(stage: Stage) -> None:
    """Holding, trying, a timeout, giving back."""
    first, second = await stage.semaphore(1), await stage.semaphore(1)
    async with first:
        stage.log.append(await second.acquire(timeout=0))
        stage.log.append(await second.acquire(timeout="400ms"))
        stage.log.append([holder.slot for holder in await second.holders()])
    stage.log.append([await second.acquire(timeout=0), await second.release()])
    stage.log.append(await first.get_value())


@scenario
async def first_in_first_out(stage: Stage) -> None:
    """Waiters of several clients are served in the order in which they came."""
    sems = [await stage.semaphore(1) for _ in range(4)]
    await sems[0].acquire()
    served: list[int] = []

    async def wait(number: int) -> None:
        async with sems[number]:
            served.append(number)

    tasks: list[asyncio.Task[None]] = []

    async def all_in_line() -> bool:
        return len(await sems[0].waiters()) == len(tasks)

    for number in (1, 2, 3):
        tasks.append(asyncio.create_task(wait(number)))
        await stage.until(all_in_line)
    await sems[0].release()
    await asyncio.gather(*tasks)
    stage.log += [served, await sems[0].get_value()]


@scenario
async def cancelled(stage: Stage) -> None:
    """A task that is cancelled while it waits leaves the line."""
    first, second = await stage.semaphore(1), await stage.semaphore(1)
    await first.acquire()
    task = asyncio.create_task(second.acquire())

    async def in_line() -> int:
        return len(await first.waiters())

    await stage.until(in_line)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    stage.log += [len(await first.waiters()), await first.release(), len(second.leases)]
    stage.log.append(await second.acquire(timeout=0))


@scenario
async def evicted(stage: Stage) -> None:
    """A holder whose key is deleted is told, once."""
    lost: list[Lease] = []
    sem = await stage.semaphore(1, on_lost=lost.append)
    with pytest.raises(etcdsem.LeaseLost):
        async with sem.hold() as lease:
            if isinstance(stage, RealStage):
                await asyncio.sleep(0.6)  # by then its key is watched
            await stage.delete("leases/00000")

            async def told() -> bool:
                return lost == [lease]

            await stage.until(told)
            stage.log.append([lease.valid, lease.lost.is_set(), await sem.get_value()])
    stage.log.append(len(lost))


@scenario
async def resized_and_closed(stage: Stage) -> None:
    """A raised limit lets a waiter in; closing ends those who wait."""
    sem, other = await stage.semaphore(1), await stage.semaphore(None)
    await sem.acquire()
    task = asyncio.create_task(other.acquire())

    async def in_line() -> int:
        return len(await sem.waiters())

    await stage.until(in_line)
    await stage.put("max_leases", "2")
    stage.log += [await task, await sem.get_value()]
    task = asyncio.create_task(other.acquire())
    await stage.until(in_line)
    await sem.close()
    with pytest.raises(etcdsem.SemaphoreClosed):
        await task
    with pytest.raises(etcdsem.SemaphoreClosed):
        await sem.acquire(timeout=0)


@scenario
async def paused(stage: Stage) -> None:
    """While it is paused nobody gets in; resumed, who waits does."""
    sem, other = await stage.semaphore(1), await stage.semaphore(None)
    stage.log += [await sem.pause(reason="night"), await other.pause()]
    task = asyncio.create_task(other.acquire())

    async def in_line() -> int:
        return len(await sem.waiters())

    await stage.until(in_line)
    stage.log += [await sem.acquire(timeout=0), task.done(), await sem.resume()]
    stage.log += [await task, await other.release(), await sem.resume()]


@scenario
async def drained(stage: Stage) -> None:
    """It is paused, and empty when the last one has given back."""
    sem, other = await stage.semaphore(2), await stage.semaphore(None)
    await sem.acquire()
    stage.log += [await other.drain(0), await other.drain("1s")]
    told = asyncio.Event()
    task = asyncio.create_task(other.client.drain(other.name, reason="disks", on_wait=told.set))
    await told.wait()
    stage.log += [task.done(), await sem.release(), await task]
    stage.log += [await sem.acquire(timeout=0), await other.resume(), await sem.acquire(timeout=0)]
    told = asyncio.Event()
    task = asyncio.create_task(other.client.drain(other.name, on_wait=told.set))
    await told.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    stage.log += [await sem.resume(), await sem.release()]


@scenario
async def held_for_too_long(stage: Stage) -> None:
    """It is lost, its holder is told, and who waits gets the slot."""
    told: list[Lease] = []
    sem = await stage.semaphore(1, max_hold=1, on_lost=told.append)
    other = await stage.semaphore(None)
    lease = await sem.acquire_lease()
    assert lease is not None
    task = asyncio.create_task(other.acquire())

    async def done() -> bool:
        return task.done()

    await stage.until(done)
    stage.log += [await task, lease.valid, lease.lost_reason, len(told), lease.max_hold]
    stage.log += [await sem.release(), await other.release()]


@scenario
async def etcd_away(stage: Stage) -> None:
    """No etcd: an error, not "full"; for longer than the lease lasts: lost."""
    sem, other = await stage.semaphore(1, lease_timeout=2), await stage.semaphore(1)
    await sem.acquire()
    lease = sem.leases[0]
    await stage.cut(True)
    with pytest.raises(etcdsem.EtcdUnavailable):
        await other.acquire(timeout=1)

    async def lost() -> bool:
        return lease.lost.is_set()

    await stage.until(lost)
    stage.log.append([lease.valid, await sem.release()])
    await stage.cut(False)

    async def back() -> bool:
        return await sem.acquire(timeout=5)

    await stage.until(back)
    stage.log.append(sem.leases[0].fencing_token > lease.fencing_token)


@pytest.mark.parametrize("play", SCENARIOS, ids=lambda play: play.__name__)
def test_the_fake_does_as_etcd_does(play: Scenario, etcd: EtcdServer, name: str) -> None:
    """A scenario sees the same on a real etcd and on the one in memory."""

    async def both() -> None:
        with Proxy(etcd.endpoint) as proxy:
            real = RealStage(name, etcd, proxy)
            try:
                await play(real)
            finally:
                for client in real.clients:
                    await client.close()
        async with memory() as one:
            fake = MemoryStage(name, one)
            await play(fake)
        assert real.log == fake.log
        assert real.log

    run(both())


# ---------------------------------------------------------------- time


@contextlib.asynccontextmanager
async def two(**options: Any) -> AsyncIterator[tuple[Memory, Semaphore, Semaphore]]:
    """An etcd in memory, and a full semaphore as two clients see it."""
    async with memory(**options) as etcd:
        sem = await Semaphore(1, "db", client=etcd.client())
        other = await Semaphore(1, "db", client=etcd.client())
        assert await sem.acquire()
        yield etcd, sem, other


def test_time_passes_when_it_is_told_to() -> None:
    """29.9 s are not enough for a timeout of 30 s, 30 s are; the holder is refreshed meanwhile."""

    async def main() -> None:
        async with two() as (etcd, sem, other):
            task = asyncio.create_task(other.acquire(timeout=30))
            await etcd.advance("29.9s")
            assert not task.done()
            await etcd.advance(0.1)
            assert task.done()
            assert task.result() is False
            await etcd.advance("10m")
            assert sem.leases[0].valid

    began = time.monotonic()
    run(main())
    assert time.monotonic() - began < 100


def test_time_passes_by_itself_when_all_wait(caplog: pytest.LogCaptureFixture) -> None:
    """A timeout is over at once; a wait that nothing ends is warned of."""

    async def main() -> None:
        async with two() as (etcd, sem, other):
            assert await other.acquire(timeout="5m") is False
            assert 300 <= etcd.now < 301
        async with two(autojump="10s") as (etcd, sem, other):
            task = asyncio.create_task(other.acquire())
            while "passed automatically" not in caplog.text:
                await asyncio.sleep(0.01)
            assert 10 <= etcd.now < 11
            await sem.release()
            assert await task
        async with two(autojump=0) as (etcd, sem, other):
            task = asyncio.create_task(other.acquire(timeout=1))
            await asyncio.sleep(0.3)
            assert etcd.now < 0.5
            await sem.release()
            assert await task

    with caplog.at_level(logging.WARNING):
        run(main())


def test_standing_still() -> None:
    """A blocked loop loses its lease and knows; a stopped client is replaced."""

    async def main() -> None:
        async with two() as (etcd, sem, other):
            lease = sem.leases[0]
            await etcd.suspend("31s")
            assert not lease.valid
            assert lease.lost.is_set()
            assert await other.acquire(timeout=0)
            mine = other.leases[0]
            await etcd.pause(other.client)
            assert await sem.acquire(timeout="1m")
            assert not mine.valid
            assert not mine.lost.is_set()
            await etcd.resume(other.client)
            assert mine.lost.is_set()
            assert sem.leases[-1].valid

    run(main())


def test_closing_ends_all_waits() -> None:
    """Tasks that wait get an error, and nothing is left (the runner looks)."""

    async def main() -> None:
        async with two() as (etcd, sem, _):
            tasks = [asyncio.create_task(sem.acquire()) for _ in range(3)]
            await etcd.settle()
            assert len(await sem.waiters()) == 3
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, etcdsem.EtcdSemError) for result in results)

    run(main())


def test_as_the_default_client() -> None:
    """Code that says Semaphore(...) uses it; a pickled semaphore finds it again."""

    async def main() -> None:
        async with memory() as etcd:
            with etcd.default() as client:
                sem = await Semaphore(2, "db")
                async with sem:
                    assert client.id in (etcd.get("/etcdsem/db/leases/00000") or "") or (
                        client.id in (etcd.get("/etcdsem/db/leases/00001") or "")
                    )
            explicit = Semaphore(2, "db", client=client)
            copy: Semaphore = pickle.loads(pickle.dumps(explicit))
            assert await copy.get_value() == 0
            assert copy.client is not client

    run(main())


def test_a_thousand_tasks() -> None:
    """A thousand tasks share a limit of 7; each is served once, and never more than 7 at a time."""

    async def main() -> None:
        async with memory() as etcd:
            sems = [await Semaphore(7, "db", client=etcd.client()) for _ in range(3)]
            inside, most, served = 0, 0, 0

            async def work(sem: Semaphore) -> None:
                nonlocal inside, most, served
                async with sem:
                    inside += 1
                    most = max(most, inside)
                    await asyncio.sleep(0)
                    inside -= 1
                    served += 1

            await asyncio.gather(*(work(sems[number % 3]) for number in range(1000)))
            assert served == 1000
            assert most <= 7

    run(main())


@pytest.mark.smoke
def test_it_needs_no_grpc() -> None:
    """Importing and using it loads neither gRPC nor protobuf."""
    script = """
import asyncio, sys
import etcdsem.testing.aio
from etcdsem.aio import Semaphore
async def main():
    async with etcdsem.testing.aio.memory() as etcd:
        with etcd.default():
            async with Semaphore(2, "db"):
                await etcd.advance("1m")
asyncio.run(main())
loaded = {name.split(".")[0] for name in sys.modules}
assert not loaded & {"grpc", "rich", "click", "pytest"}, loaded
assert "google.protobuf" not in sys.modules
print("fine")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "fine\n", done.stderr
