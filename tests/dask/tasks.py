"""What Dask's workers run. They import this by name, so there is no pytest in it."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

import etcdsem


def access_resource(number: int, sem: Any) -> int:
    """The task of Dask's documentation, almost."""
    with sem:
        return number


def occupy(number: int, sem: Any) -> tuple[int, float, float]:
    """Hold it for a moment; gives the process, and from when to when (one machine, one clock)."""
    with sem:
        began = time.monotonic()
        time.sleep(0.05)
        return os.getpid(), began, time.monotonic()


def by_name(number: int, library: str, name: str) -> int:
    """Make the semaphore in the task, by its name."""
    return access_resource(number, made(library, 2, name))


def made(library: str, *arguments: Any) -> Any:
    """A semaphore of Dask's or ours."""
    if library == "dask":
        import distributed

        return distributed.Semaphore(*arguments)
    return etcdsem.Semaphore(*arguments)


def hold_until(number: int, sem: etcdsem.Semaphore, gate: str) -> tuple[int, int, int]:
    """Hold it until a file is there; gives the process, the slot and the token."""
    with sem.hold() as lease:
        while not os.path.exists(gate):
            lease.check()
            time.sleep(0.02)
        return os.getpid(), lease.slot, lease.fencing_token


async def occupy_loop(number: int, sem: Any) -> tuple[int, int]:
    """An asynchronous task, which runs in its worker's event loop."""
    import asyncio

    async with sem:
        held = await sem.get_value()
        await asyncio.sleep(0.05)
        return os.getpid(), held


def loaded() -> dict[str, bool]:
    """What this process has loaded and started of ours."""
    return {
        "etcdsem": "etcdsem" in sys.modules,
        "grpc": "grpc" in sys.modules,
        "threads": any(one.name.startswith("etcdsem") for one in threading.enumerate()),
        "client": bool(sys.modules["etcdsem.sync.client"]._clients)
        if "etcdsem" in sys.modules
        else False,
    }


def names_of_metrics(dask_scheduler: Any) -> list[str]:
    """What Dask's scheduler tells Prometheus of semaphores."""
    from distributed.http.scheduler.prometheus.semaphore import SemaphoreMetricCollector

    found = []
    for family in SemaphoreMetricCollector(dask_scheduler).collect():
        total = "_total" if family.type == "counter" else ""
        found.append(family.name + total)
    return found


def token(number: int, sem: etcdsem.Semaphore) -> int:
    """The fencing token of a lease, which is another for each lease."""
    with sem.hold() as lease:
        return lease.fencing_token


def timeout_of(sem: etcdsem.Semaphore | None, name: str) -> float:
    """Of a lease of the semaphore given, or of one that is made here."""
    with (sem or etcdsem.Semaphore(1, name)).hold() as lease:
        return lease.ttl


def without_a_loop(number: int, sem: Any) -> bool:
    """A plain task that uses the asyncio semaphore like a blocking one."""
    held: bool = sem.acquire()
    sem.release()
    return held
