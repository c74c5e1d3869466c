"""What a cycle costs beside gRPC: ``python -m tests.benchmarks.own``, ``--profile`` for where.

One thread acquires and releases, uncontended, while gRPC's calls are replaced by answers that a
real etcd gave before: what is left is our own code, in µs of the thread's CPU time and in calls of
functions, which hardly depend on what else the machine does. `--limit` 128 is where most threads
have room.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import time
from typing import Any

import etcdsem
from etcdsem import server

CYCLES = 500


def main() -> None:
    """Measure, and say it in a line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.own", description=__doc__)
    parser.add_argument("--limit", type=int, default=128)
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    with server.start() as etcd, etcdsem.connect(etcd.endpoint) as client:
        sem = etcdsem.Semaphore(arguments.limit, "own", client=client, lease_timeout=60)
        _play_back(sem)
        _run(sem)
        best = min(_timed(sem) for _ in range(20))
        profile = cProfile.Profile()
        profile.runcall(_run, sem)
        stats = pstats.Stats(profile)
        calls = stats.total_calls / CYCLES  # type: ignore[attr-defined]
        print(f"{best * 1e6:.0f} µs, {calls:.0f} calls for each cycle", flush=True)
        if arguments.profile:
            stats.sort_stats("tottime").print_stats(40)
        os._exit(0)  # etcd knows nothing of the last lease


def _play_back(sem: etcdsem.Semaphore) -> None:
    """From now on an acquire and a release get the answers that they got once."""
    transport: Any = sem.client._driver.connection._link().transport
    call: Any = transport.call
    said: list[bytes] = []

    def listen(*request: Any, **how: Any) -> bytes:
        said.append(call(*request, **how))
        return said[-1]

    for _ in range(3):
        transport.call = listen
        said.clear()
        sem.acquire()
        sem.release()

    def play(*_request: Any, **_how: Any) -> bytes:
        said.append(said.pop(0))
        return said[-1]

    transport.call = play


def _run(sem: etcdsem.Semaphore) -> None:
    for _ in range(CYCLES):
        sem.acquire()
        sem.release()


def _timed(sem: etcdsem.Semaphore) -> float:
    began = time.thread_time()
    _run(sem)
    return (time.thread_time() - began) / CYCLES


if __name__ == "__main__":
    main()
