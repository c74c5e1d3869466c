"""One semaphore object shared by threads or tasks that call `acquire()` and `release()`, as users
of `threading.Semaphore` do: each acquire is matched by one lease given back.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import pytest

from etcdsem import Semaphore, aio, testing
from tests.helpers.slow import sample
from tests.ordinary.running import Run, play

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

LIMIT = 8
THREADS = 16


def bare(run: Run, sem: Semaphore) -> None:
    """Acquire and release without a block."""
    run.check(sem.acquire(), "acquire() without a timeout returned False")
    with run.inside(LIMIT):
        pass
    run.check(sem.release(), "release() returned False")
    run.count("released")


def block(run: Run, sem: Semaphore) -> None:
    """`with sem:`"""
    with sem, run.inside(LIMIT):
        pass


def hold(run: Run, sem: Semaphore) -> None:
    """`with sem.hold():` has its own lease, which nobody else gives back."""
    with sem.hold() as lease, run.inside(LIMIT):
        run.check(lease.valid, "the lease of hold() was given back while its body ran")


def threads(run: Run) -> None:
    """Threads on one object, or one for each client."""
    sems = [Semaphore(LIMIT, run.name, client=run.client()) for _ in range(run.options["clients"])]
    works = [bare, block, hold] if run.options["mixed"] else [bare]
    run.crowd(THREADS, lambda n: works[n // len(sems) % len(works)](run, sems[n % len(sems)]))
    left = [lease for sem in sems for lease in sem.leases]
    run.check(not left, f"as many releases as acquires, and still held: {left}")


@pytest.mark.parametrize("mixed", [False, True], ids=["bare", "mixed"])
@pytest.mark.parametrize("clients", sample([1, 2]))
def test_threads(etcd: EtcdServer, name: str, seconds: float, clients: int, mixed: bool) -> None:
    counts = play(threads, etcd, name, seconds, clients=clients, mixed=mixed)
    assert counts["released"] > 20


def loop(run: Run) -> None:
    """Tasks of one event loop on one object."""
    asyncio.run(_loop(run))


async def _loop(run: Run) -> None:
    async def bare() -> None:
        run.check(await sem.acquire(), "acquire() without a timeout returned False")
        with run.inside(LIMIT):
            await asyncio.sleep(0)
        run.check(await sem.release(), "release() returned False")
        run.count("released")

    async def block() -> None:
        async with sem:
            with run.inside(LIMIT):
                await asyncio.sleep(0)

    async def hold() -> None:
        async with sem.hold() as lease:
            with run.inside(LIMIT):
                await asyncio.sleep(0)
                run.check(lease.valid, "the lease of hold() was given back while its body ran")

    works = [bare, block, hold] if run.options["mixed"] else [bare]
    async with aio.connect(run.endpoint) as client:
        sem = await aio.Semaphore(LIMIT, run.name, client=client)
        await run.tasks(THREADS, lambda n: works[n % len(works)]())
        run.check(not sem.leases, f"as many releases as acquires, and still held: {sem.leases}")
        value = await sem.get_value()
        run.check(value == 0, f"{value} are held in etcd")


@pytest.mark.parametrize("mixed", [False, True], ids=["bare", "mixed"])
def test_tasks(etcd: EtcdServer, name: str, seconds: float, mixed: bool) -> None:
    counts = play(loop, etcd, name, seconds, mixed=mixed)
    assert counts["released"] > 20


@pytest.mark.parametrize("mixed", [False, True], ids=["bare", "mixed"])
def test_in_memory(name: str, seconds: float, mixed: bool) -> None:
    """The same without etcd: the in-memory etcd shows this kind too."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with testing.memory() as memory:
            run = Run("", name, min(seconds, 5.0), {})
            sem = Semaphore(LIMIT, name, client=memory.client())
            works = [bare, block, hold] if mixed else [bare]
            run.crowd(THREADS, lambda n: works[n % len(works)](run, sem))
            assert not run.wrong, "\n".join(run.wrong[:5])
            assert sem.leases == ()
            assert set(memory.keys()) == {f"/etcdsem/{name}/max_leases"}
            other = Semaphore(LIMIT, name, client=memory.client())
            assert all(other.acquire(timeout=0) for _ in range(LIMIT))
    finally:
        sys.setswitchinterval(interval)
