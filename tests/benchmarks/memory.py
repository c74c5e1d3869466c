"""What waiting and idling cost in memory: ``python -m tests.benchmarks.memory``.

Each figure is a slope: a process's resident memory (that of its own: private pages) with many, less
that with few, by the difference. So what a process has anyway does not count.

    task     a coroutine that waits in `acquire()`, with its etcd lease, of one asyncio client; they
             came in groups of 50
    burst    the same, all 2,000 at the same moment: the heap keeps what so many calls at once took
    thread   the same, a thread of one blocking client; its stack is the system's to give
    client   a client that has acquired and released once, and now idles; its channels included
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tests.benchmarks.book import Book
from tests.benchmarks.measure import fresh_etcd, machine

if TYPE_CHECKING:
    from etcdsem import Client

SIZES = {"task": (200, 2200), "thread": (50, 450), "client": (5, 45)}
TITLES = {
    "process": "a process with one client, in MB",
    "task": "a waiting task, in kB",
    "burst": "a waiting task, in kB, when all came at once",
    "thread": "a waiting thread, in kB",
    "client": "one more idle client (blocking), in kB",
    "aio_client": "one more idle client (asyncio), in kB",
}
SIZES |= {"aio_client": SIZES["client"], "burst": SIZES["task"]}


def private_kb() -> float:
    """This process's own memory."""
    gc.collect()
    text = Path("/proc/self/smaps_rollup").read_text()
    return float(sum(map(int, re.findall(r"(?m)^Private_(?:Clean|Dirty):\s+(\d+)", text))))


def settled() -> float:
    """The same when it no longer changes: freed buffers, leases that are still on their way."""
    last = private_kb()
    for _ in range(20):
        time.sleep(0.25)
        now = private_kb()
        if abs(now - last) < 32:
            break
        last = now
    return now


# ---------------------------------------------------------------- in a process of their own


def threads(endpoint: str, few: int, many: int) -> tuple[float, float]:
    """Waiting threads."""
    import etcdsem

    client = etcdsem.connect(endpoint)
    sem = etcdsem.Semaphore(1, "x", client=client)
    sem.acquire()
    seen = []
    started = 0
    for size in (few, many):
        while started < size:
            threading.Thread(target=sem.acquire, daemon=True).start()
            started += 1
        _until_wait(client, size)
        seen.append(settled())
    return seen[0], seen[1]


def clients(endpoint: str, few: int, many: int) -> tuple[float, float]:
    """Idle clients."""
    import etcdsem

    kept: list[object] = []
    seen = []
    for size in (few, many):
        while len(kept) < size:
            client = etcdsem.connect(endpoint)
            sem = etcdsem.Semaphore(1, f"x{len(kept)}", client=client)
            with sem:
                pass
            kept.append((client, sem))
        seen.append(settled())
    return seen[0], seen[1]


def process(endpoint: str, _few: int, _many: int) -> tuple[float, float]:
    """All of a process with one client; the slope is that of 1."""
    import etcdsem

    with etcdsem.connect(endpoint) as client, etcdsem.Semaphore(1, "x", client=client):
        return 0.0, settled()


async def tasks(endpoint: str, few: int, many: int, group: int = 50) -> tuple[float, float]:
    """Waiting tasks, that came in groups."""
    from etcdsem.aio import Semaphore, connect

    client = connect(endpoint)
    sem = await Semaphore(1, "x", client=client)
    await sem.acquire()
    kept: list[asyncio.Task[bool]] = []
    seen = []
    for size in (few, many):
        while len(kept) < size:
            kept += [
                asyncio.create_task(sem.acquire()) for _ in range(min(group, size - len(kept)))
            ]
            while (await client.overview())[0].waiting < len(kept):
                await asyncio.sleep(0.02)
        await asyncio.sleep(1)
        seen.append(await asyncio.to_thread(settled))
    return seen[0], seen[1]


async def burst(endpoint: str, few: int, many: int) -> tuple[float, float]:
    """Waiting tasks that came all at once."""
    return await tasks(endpoint, few, many, many)


async def aio_clients(endpoint: str, few: int, many: int) -> tuple[float, float]:
    """Idle clients of one loop."""
    from etcdsem.aio import Semaphore, connect

    kept: list[object] = []
    seen = []
    for size in (few, many):
        while len(kept) < size:
            client = connect(endpoint)
            sem = await Semaphore(1, f"x{len(kept)}", client=client)
            async with sem:
                pass
            kept.append((client, sem))
        await asyncio.sleep(0.5)
        seen.append(await asyncio.to_thread(settled))
    return seen[0], seen[1]


def _until_wait(client: Client, count: int) -> None:
    until = time.monotonic() + 120
    while client.overview()[0].waiting < count:
        if time.monotonic() > until:
            raise AssertionError("not all of them got into line")
        time.sleep(0.1)


WORK: dict[str, Callable[[str, int, int], object]] = {
    "process": process,
    "task": tasks,
    "burst": burst,
    "thread": threads,
    "client": clients,
    "aio_client": aio_clients,
}


def worker(what: str, endpoint: str, few: int, many: int) -> None:
    """In the process that is measured: print both sizes, and end without tidying up."""
    import logging
    import os

    logging.disable(logging.CRITICAL)
    function = WORK[what]
    with contextlib.suppress(KeyboardInterrupt):
        if asyncio.iscoroutinefunction(function):
            seen = asyncio.run(_then_leave(function(endpoint, few, many)))
        else:
            seen = function(endpoint, few, many)
            print(json.dumps(seen), flush=True)
    os._exit(0)


async def _then_leave(work: object) -> None:
    import os

    print(json.dumps(await work), flush=True)  # type: ignore[misc]
    os._exit(0)


# ---------------------------------------------------------------- outside


def slope(what: str) -> float:
    """KB for each, measured on an etcd of its own."""
    few, many = SIZES.get(what, (0, 1))
    with fresh_etcd() as etcd:
        done = subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.memory", "--worker", what, etcd.endpoint],
            stdout=subprocess.PIPE,
            check=True,
            text=True,
            timeout=300,
        )
    low, high = json.loads(done.stdout)
    return float(high - low) / (many - few)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.memory", description=__doc__)
    parser.add_argument("--json", type=Path, help="add it to this file")
    parser.add_argument("--only", choices=TITLES, action="append", help="only this")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        what, endpoint = options.worker
        worker(what, endpoint, *SIZES.get(what, (0, 1)))
    found: dict[str, float] = {}
    for what in options.only or TITLES:
        found[what] = slope(what)
        if what == "process":
            found[what] /= 1024
        print(f"{found[what]:8.1f}  {TITLES[what]}", flush=True)
    facts: dict[str, object] = {"machine": machine()}
    if "task" in found:
        facts["task_kb"] = found["task"]
    if "process" in found:
        facts["process_mb"] = found["process"]
    if "client" in found:
        facts["client_mb"] = found["client"] / 1024
    table = [["", ""], *([TITLES[what], f"{value:.1f}"] for what, value in found.items())]
    Book(options.json).put("memory", {**facts, "table": table})


if __name__ == "__main__":
    main()
