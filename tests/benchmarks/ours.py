"""`etcdsem` under the same loads as the floors."""

from __future__ import annotations

from collections.abc import Iterator

import etcdsem
from etcdsem.process_stats import all_stats
from tests.benchmarks.load import Load, run_threads


def _refused() -> int:
    return all_stats().requests["refused"]


LINGER = "20ms"
"""For those who cycle fast in one process."""


def threads(load: Load, linger: str | None = None) -> None:
    """Threads of one client that acquire and release, the critical section being empty."""
    with etcdsem.connect(load.endpoint) as client:
        sem = etcdsem.Semaphore(
            load.limit, load.name, client=client, lease_timeout=60, linger=linger
        )

        def work(_number: int) -> Iterator[None]:
            while True:
                sem.acquire()
                sem.release()
                yield

        with sem:
            pass  # the connection is open, and a lease is in the pool
        load.refused = _refused
        run_threads(load, work)


def lingering_threads(load: Load) -> None:
    """The same with slots that stay with their client for a moment."""
    threads(load, LINGER)


async def tasks(load: Load, linger: str | None = None) -> None:
    """The same with tasks of one loop."""
    import asyncio

    from etcdsem.aio import Semaphore, connect

    async with connect(load.endpoint) as client:
        sem = await Semaphore(load.limit, load.name, client=client, lease_timeout=60, linger=linger)
        async with sem:
            pass

        async def work(number: int) -> None:
            while True:
                await sem.acquire()
                await sem.release()
                load.counts[number] += 1

        load.refused = _refused
        load.begin()
        await asyncio.gather(*map(work, load.mine))


async def lingering_tasks(load: Load) -> None:
    """The same with slots that stay with their client for a moment."""
    await tasks(load, LINGER)
