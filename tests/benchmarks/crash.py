"""How long a slot is lost when its holder is killed: ``python -m tests.benchmarks.crash``.

A holder is a process that holds the only slot; another process waits in line. The holder gets
SIGKILL at a random moment of its refreshing, and the time until the other one has the slot is
taken. The promise is TTL + 1 s at the worst: etcd looks for expired leases every half second.

Peers, where they are installed: ``etcdctl lock --ttl``, and Dask with the same lease timeout.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.benchmarks import peers
from tests.benchmarks.book import Book
from tests.benchmarks.measure import fresh_etcd, machine

_OURS = """
import sys, time, etcdsem
endpoint, name, ttl = sys.argv[1], sys.argv[2], float(sys.argv[3])
with etcdsem.connect(endpoint) as client:
    sem = etcdsem.Semaphore(1, name, client=client, lease_timeout=ttl)
    print("up", flush=True)
    sem.acquire()
    print("held", flush=True)
    time.sleep(600)
"""
_DASK = """
import logging, sys, time, dask, distributed
logging.disable(logging.CRITICAL)
address, name, ttl = sys.argv[1], sys.argv[2], sys.argv[3]
dask.config.set({"distributed.scheduler.locks.lease-timeout": ttl + "s"})
client = distributed.Client(address, set_as_default=True)
sem = distributed.Semaphore(1, name)
print("up", flush=True)
sem.acquire()
print("held", flush=True)
time.sleep(600)
"""

Command = Callable[[str], list[str]]
"""The command that a holder or a waiter of a name is."""


@contextlib.contextmanager
def process(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A process in a group of its own, which ends with the block."""
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
        start_new_session=True,
    ) as one:
        try:
            yield one
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(one.pid, signal.SIGKILL)


def _says(one: subprocess.Popen[str], word: str) -> None:
    assert one.stdout is not None
    for line in one.stdout:
        if line.strip() == word:
            return
    raise SystemExit(f"{one.args!r} ended early")


def kill_one(command: list[str], environment: dict[str, str], ttl: float, seed: int) -> float:
    """Seconds from the holder's death until the waiter holds."""
    with process(command, environment) as holder:
        _says(holder, "held")
        with process(command, environment) as waiter:
            if "lock" not in command:
                _says(waiter, "up")
            time.sleep(1.0 + random.Random(seed).random() * ttl / 3)
            os.killpg(holder.pid, signal.SIGKILL)
            killed = time.monotonic()
            _says(waiter, "held")
            return time.monotonic() - killed


def kills(
    command: Command, environment: dict[str, str], ttl: float, count: int, at_once: int
) -> list[float]:
    """Kill so many, some at a time, each with a name of its own."""

    def one(number: int) -> float:
        return kill_one(command(f"crash{number}"), environment, ttl, number)

    with ThreadPoolExecutor(at_once) as pool:
        return sorted(pool.map(one, range(count)))


def ours(ttl: float, count: int, at_once: int) -> list[float]:
    """A `Semaphore` in a program."""
    with fresh_etcd() as etcd:

        def command(name: str) -> list[str]:
            return [sys.executable, "-c", _OURS, etcd.endpoint, name, str(ttl)]

        return kills(command, dict(os.environ), ttl, count, at_once)


def etcdctl(ttl: float, count: int, at_once: int) -> list[float]:
    """``etcdctl lock``, and what it runs is killed with it."""
    with fresh_etcd() as etcd:

        def command(name: str) -> list[str]:
            rest = ["sh", "-c", "echo held; sleep 600"]
            return [etcd.etcdctl_binary, "lock", f"--ttl={ttl:.0f}", name, "--", *rest]

        return kills(command, {**os.environ, **etcd.env()}, ttl, count, at_once)


def dask(ttl: float, count: int, at_once: int) -> list[float]:
    """`distributed.Semaphore`."""
    os.environ["DASK_DISTRIBUTED__SCHEDULER__LOCKS__LEASE_TIMEOUT"] = f"{ttl:.0f}s"
    with peers.surroundings("dask") as (_, extra):

        def command(name: str) -> list[str]:
            return [sys.executable, "-c", _DASK, extra["endpoint"], name, f"{ttl:.0f}"]

        return kills(command, dict(os.environ), ttl, count, at_once)


KINDS = {"etcdsem": ours, "etcdctl lock": etcdctl, "dask": dask}


def main() -> None:
    """Print medians and the worst."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.crash",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kills", type=int, default=20, help="of each kind, default 20")
    parser.add_argument("--ttl", type=float, default=5.0, help="seconds, default 5")
    parser.add_argument("--at-once", type=int, default=4, help="that many at a time, default 4")
    parser.add_argument("--only", choices=KINDS, action="append", help="only this kind")
    parser.add_argument("--json", type=Path, help="add it to this file")
    options = parser.parse_args()
    table = [["", "TTL, s", "kills", "median, s", "worst, s"]]
    facts: dict[str, object] = {"machine": machine(), "ttl": options.ttl}
    for kind in options.only or KINDS:
        if why := peers.missing(kind):
            print(f"without {kind}: {why}", file=sys.stderr)
            continue
        found = KINDS[kind](options.ttl, options.kills, options.at_once)
        median, worst = statistics.median(found), max(found)
        print(f"{median:6.2f} s at the median, {worst:6.2f} s at the worst: {kind}", flush=True)
        row = [kind, f"{options.ttl:g}", str(len(found)), f"{median:.2f}", f"{worst:.2f}"]
        table.append(row)
        if kind == "etcdsem":
            facts |= {"median": median, "worst": worst, "all": [round(one, 3) for one in found]}
    Book(options.json).put("crash", {**facts, "table": table})


if __name__ == "__main__":
    main()
