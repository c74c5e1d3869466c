"""How much of a rate limit is used, by real processes: ``python -m tests.rates.use``.

A referee stamps each start as it comes in, by its own monotonic clock. What lies between a start
and its stamp is a datagram on one machine and the scheduling of two processes. So two starts that
are just a period apart may be stamped closer than that by as much as the first was stamped late:
a window that is shorter by `JITTER` is judged. Nothing shorter than a period is ever granted, so
that hides no mistake that is larger than this.
"""

from __future__ import annotations

import argparse
import os
import random
import select
import socket
import subprocess
import sys
import time
from typing import NamedTuple

from etcdsem import server
from etcdsem.model import Rate, read_rate
from etcdsem.server import EtcdServer

JITTER = 0.1
"""Seconds by which a stamp may be late, on a machine that is busy with much else."""


class Seen(NamedTuple):
    """What the referee saw."""

    starts: int
    most: int
    """In any window of the period, less JITTER."""
    use: float
    """The part of what was allowed, from the end of the first period on."""
    killed: int


def most_in_a_window(starts: list[float], period: float) -> int:
    """The most starts in any window of the period."""
    starts = sorted(starts)
    first = most = 0
    for last, moment in enumerate(starts):
        while starts[first] <= moment - period:
            first += 1
        most = max(most, last - first + 1)
    return most


def measure(
    etcd: EtcdServer, name: str, rate: Rate, seconds: float, *, processes: int, kill_every: float
) -> Seen:
    """Let processes start as often as they may; kill one now and then, and replace it."""
    wire = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    wire.bind(("127.0.0.1", 0))
    port = str(wire.getsockname()[1])
    words = [sys.executable, "-m", "tests.rates.worker", name, str(rate), port]

    def begin() -> subprocess.Popen[bytes]:
        return subprocess.Popen(words, env={**os.environ, **etcd.env()})

    workers = [begin() for _ in range(processes)]
    stamps: list[float] = []
    killed = 0
    rng = random.Random(7)
    try:
        began = last_kill = None
        while began is None or time.monotonic() < began + seconds:
            if select.select([wire], [], [], 0.05)[0]:
                wire.recv(16)
                stamps.append(time.monotonic())
                if began is None:
                    began = last_kill = stamps[0]
            if kill_every and last_kill and time.monotonic() > last_kill + kill_every:
                last_kill = time.monotonic()
                victim = rng.randrange(processes)
                workers[victim].kill()
                workers[victim].wait()
                workers[victim] = begin()
                killed += 1
            if began is None and any(worker.poll() for worker in workers):
                raise RuntimeError("a worker has ended")
    finally:
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.wait()
        wire.close()
    # In whole periods, since a rate comes in bursts.
    periods = max(1, int(seconds / rate.period) - 1)
    until = began + (periods + 1) * rate.period
    counted = sum(began + rate.period <= stamp < until for stamp in stamps)
    return Seen(
        starts=len(stamps),
        most=most_in_a_window(stamps, max(rate.period - JITTER, 0.5 * rate.period)),
        use=counted / (rate.starts * periods),
        killed=killed,
    )


def main() -> None:
    """Measure several periods, one after the other."""
    parser = argparse.ArgumentParser(prog="python -m tests.rates.use", description=__doc__)
    parser.add_argument("rates", nargs="*", default=["10/0.5s", "40/2s", "200/10s", "1000/1m"])
    parser.add_argument("--periods", type=float, default=3.0, help="at least; or 20 s")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--kill-every", type=float, default=0.0, help="seconds; 0: never")
    arguments = parser.parse_args()
    with server.start() as etcd:
        for text in arguments.rates:
            rate = read_rate(text)
            seconds = max(20.0, (arguments.periods + 1) * rate.period)
            name = f"use-{rate.period}"
            seen = measure(
                etcd,
                name,
                rate,
                seconds,
                processes=arguments.processes,
                kill_every=arguments.kill_every,
            )
            print(
                f"{text:>10}: {100 * seen.use:5.1f} % used, at most {seen.most} in a window, "
                f"{seen.starts} starts in {seconds:.0f} s, {seen.killed} killed",
                flush=True,
            )


if __name__ == "__main__":
    main()
