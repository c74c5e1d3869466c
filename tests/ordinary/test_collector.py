"""Garbage that gives back leases: the collector runs finalizers in any thread, at any allocation,
also in the middle of the client's own work.
"""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator
from types import FrameType
from typing import TYPE_CHECKING, Any

import pytest

import etcdsem
from etcdsem import EtcdSemError, Lease, Semaphore, aio
from tests.helpers.slow import sample
from tests.ordinary.interleave import HERE
from tests.ordinary.running import Run, play

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

LIMIT = 16
WORKERS = 4
GARBAGE = 6
"""How many leases are with garbage, or on the way to it, at a time."""

OFTEN = 0.004
"""The chance of a release at each line: so small that it may come at any line of a call."""


class Cycle:
    """Keeps itself alive until the collector comes; its `end` runs then."""

    def __init__(self, end: Callable[[], object]) -> None:
        self.me = self
        self._end = end

    def __del__(self) -> None:
        self._end()


def generator_in_a_cycle(sem: Semaphore) -> None:
    """A user's generator with a block inside."""
    cycle: list[Generator[int]] = []

    def rows() -> Generator[int]:
        with sem.hold():
            yield len(cycle)

    one = rows()
    next(one)
    cycle.append(one)


def block_in_a_cycle(sem: Semaphore) -> None:
    """The same with the semaphore itself as the block."""
    cycle: list[Generator[int]] = []

    def rows() -> Generator[int]:
        with sem:
            yield len(cycle)

    one = rows()
    next(one)
    cycle.append(one)


def lease_in_a_finalizer(sem: Semaphore) -> None:
    """An object that owns a lease and gives it back in `__del__`."""
    lease = sem.acquire_lease()
    assert lease is not None
    Cycle(lease.release)


def release_in_a_finalizer(sem: Semaphore) -> None:
    """The same by the semaphore's own `release`."""
    sem.acquire()
    Cycle(sem.release)


KINDS: dict[str, Callable[[Semaphore], None]] = {
    "generator": generator_in_a_cycle,
    "block": block_in_a_cycle,
    "lease": lease_in_a_finalizer,
    "release": release_in_a_finalizer,
}


def garbage(run: Run) -> None:
    """Cycles that own leases are dropped while four threads work and other leases are held."""
    if run.options["threshold"]:
        gc.set_threshold(run.options["threshold"])
    clients = [run.client() for _ in range(run.options["clients"])]
    dropped = [Semaphore(LIMIT, run.name, client=one, lease_timeout=5) for one in clients]
    make = KINDS[run.options["kind"]]
    held = [
        Semaphore(LIMIT, run.name, client=one, lease_timeout=2).acquire_lease() for one in clients
    ]
    sems = [Semaphore(LIMIT, run.name, client=clients[n % len(clients)]) for n in range(WORKERS)]

    def work(number: int) -> None:
        if number >= WORKERS:  # drops something now and then
            target = dropped[number % len(dropped)]
            if len(target.leases) < GARBAGE:
                make(target)
                run.count("dropped")
            else:
                [[] for _ in range(100)]  # something for the collector to count
                time.sleep(0.001)
            return
        sem = sems[number]
        with sem.hold() as lease:
            run.check(lease.valid, "a lease of hold() is not valid in its body")
        run.check(sem.acquire(), "acquire() without a timeout returned False")
        run.check(sem.release(), "release() returned False")
        run.count("worked")

    run.crowd(WORKERS + 2, work)
    for lease in held:
        assert lease is not None
        run.check(lease.valid, "a lease that was held all the time was lost")
        lease.release()
    gc.set_threshold(700, 10, 10)
    gc.collect()
    for sem in dropped:
        run.nothing_held(sem)
    run.check(run.counts["worked"] > 0, "the workers did nothing")
    run.check(run.counts["dropped"] > 0, "nothing was dropped")


@pytest.mark.parametrize("threshold", sample([1, 0]), ids=["at once", "default"])
@pytest.mark.parametrize("kind", sample(KINDS))
def test_garbage(etcd: EtcdServer, name: str, seconds: float, kind: str, threshold: int) -> None:
    play(garbage, etcd, name, seconds, kind=kind, threshold=threshold, clients=1)


@pytest.mark.slow
def test_garbage_of_two_clients(etcd: EtcdServer, name: str, seconds: float) -> None:
    """What one client's thread collects may belong to the other client."""
    play(garbage, etcd, name, seconds, kind="lease", threshold=1, clients=2)


# -- finalizers at any place, also in the background's threads


def anywhere(run: Run) -> None:
    """Leases are released at random places of all threads: in this library and in
    `threading`, as a collector may do that runs there.
    """
    clients = [run.client() for _ in range(2)]
    sems = [Semaphore(LIMIT, run.name, client=one, lease_timeout=5) for one in clients]
    short = [Semaphore(LIMIT, run.name, client=one, lease_timeout=2) for one in clients]
    held = [sem.acquire_lease() for sem in short]
    stock: deque[Lease] = deque()
    where = (HERE, threading.__file__)
    busy = threading.local()

    def trace(frame: FrameType, _event: str, _arg: object) -> Any:
        if not frame.f_code.co_filename.startswith(where) or getattr(busy, "busy", False):
            return None
        if stock and random.random() < OFTEN:
            busy.busy = True
            try:
                stock.popleft().release()
                run.count("released")
            except IndexError:
                pass
            finally:
                busy.busy = False
        return trace

    def work(number: int) -> None:
        sem = sems[number % 2]
        busy.busy = False
        if len(stock) < GARBAGE:
            lease = sem.acquire_lease(timeout=5)
            if lease is not None:
                stock.append(lease)
        with sem.hold() as lease:
            run.check(lease.valid, "a lease of hold() is not valid in its body")
        sem.status()
        run.count("worked")

    threading.settrace(trace)  # of all threads that are started from now on
    try:
        run.crowd(WORKERS, work)
    finally:
        threading.settrace(None)
    while stock:
        stock.popleft().release()
    for lease in held:
        assert lease is not None
        run.check(lease.valid, "a lease that was held all the time was lost")
        lease.release()
    for sem in sems:
        run.nothing_held(sem)
    run.check(run.counts["released"] > 0, "nothing was released on the way")


def test_finalizers_anywhere(etcd: EtcdServer, name: str, seconds: float) -> None:
    play(anywhere, etcd, name, seconds)


# -- clients


def dropped_clients(run: Run) -> None:
    """Clients in cycles: their threads end, and what their pool had is given back."""
    keep = Semaphore(LIMIT, run.name, client=run.client(), lease_timeout=2)
    held = keep.acquire_lease()

    def work(number: int) -> None:
        if number:
            with keep:
                pass
            return
        client = etcdsem.connect(run.endpoint)
        sem = Semaphore(LIMIT, run.name, client=client)
        with sem:
            pass
        cycle: list[object] = [client, sem]
        cycle.append(cycle)
        run.count("dropped")
        if run.counts["dropped"] % 3 == 0:
            del client, sem, cycle
            gc.collect()

    run.crowd(3, work)
    gc.collect()
    assert held is not None
    run.check(held.valid, "a lease that was held all the time was lost")
    held.release()
    run.check(run.counts["dropped"] > 1, "nothing was dropped")


@pytest.mark.slow
def test_dropped_clients(etcd: EtcdServer, name: str, seconds: float) -> None:
    play(dropped_clients, etcd, name, seconds)


# -- asyncio


def loop(run: Run) -> None:
    """Tasks, coroutines and async generators that are collected in the middle of a block."""
    asyncio.run(_loop(run))
    run.expected.append("Task was destroyed but it is pending")  # asyncio says so, and is right


async def _loop(run: Run) -> None:
    async def forgotten(sem: aio.Semaphore) -> None:
        """A task that nobody refers to waits for a future that nobody else has."""

        async def work() -> None:
            async with sem.hold():
                entered.set()
                await asyncio.get_running_loop().create_future()

        entered = asyncio.Event()
        asyncio.create_task(work())  # noqa: RUF006  (this is what users forget)
        await entered.wait()

    async def generator(sem: aio.Semaphore) -> None:
        """An async generator in a cycle, left in the middle."""
        cycle: list[object] = []

        async def rows() -> AsyncGenerator[int]:
            async with sem.hold():
                yield len(cycle)

        one = rows()
        await anext(one)
        cycle.append(one)

    drop = {"task": forgotten, "generator": generator}[run.options["kind"]]
    async with aio.connect(run.endpoint) as client:
        dropped = await aio.Semaphore(LIMIT, run.name, client=client, lease_timeout=5)
        held = await aio.Semaphore(LIMIT, run.name, client=client, lease_timeout=2)
        sem = await aio.Semaphore(LIMIT, run.name, client=client)
        lease = await held.acquire_lease()

        async def work(number: int) -> None:
            if number == 0:
                if len(dropped.leases) < GARBAGE:
                    await drop(dropped)
                    run.count("dropped")
                gc.collect()
                await asyncio.sleep(0.01)
                return
            async with sem.hold() as mine:
                run.check(mine.valid, "a lease of hold() is not valid in its body")
            run.count("worked")

        await run.tasks(WORKERS, work)
        for _ in range(100):
            gc.collect()
            if not await sem.get_value() > 1:
                break
            await asyncio.sleep(0.05)
        run.check(not dropped.leases, f"still held here: {dropped.leases}")
        value = await sem.get_value()
        run.check(value == 1, f"{value} are held in etcd, and should be 1")
        assert lease is not None
        run.check(lease.valid, "a lease that was held all the time was lost")
        await lease.release()
    run.check(run.counts["dropped"] > 1, "nothing was dropped")


@pytest.mark.parametrize("kind", ["task", "generator"])
def test_garbage_of_a_loop(etcd: EtcdServer, name: str, seconds: float, kind: str) -> None:
    play(loop, etcd, name, seconds, kind=kind)


# -- what else a finalizer may do


def other_calls(run: Run) -> None:
    """Finalizers that ask, acquire and close: they work or raise EtcdSemError."""
    gc.set_threshold(1)
    sem = Semaphore(LIMIT, run.name, client=run.client())

    def use() -> None:
        try:
            sem.status(ttl=False)
            if sem.acquire(timeout=0):
                sem.release()
            with sem.hold():
                pass
        except EtcdSemError:
            run.count("refused")
        run.count("finalized")

    def work(number: int) -> None:
        if number == 0:
            Cycle(use)
            time.sleep(0.001)
            return
        with sem:
            pass

    run.crowd(WORKERS, work)
    gc.set_threshold(700)
    gc.collect()
    run.check(run.counts["finalized"], "nothing was finalized")
    run.nothing_held(sem)


def test_finalizers_that_do_anything_else(etcd: EtcdServer, name: str, seconds: float) -> None:
    play(other_calls, etcd, name, seconds)
