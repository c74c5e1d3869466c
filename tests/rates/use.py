"""How much of a rate limit is used, by real processes: ``python -m tests.rates.use``.

The instant of a start is the library's own: no other clock reads it. What can be known is that it
lay between a reading before `acquire` (and the time that it says to have waited) and one after it
has returned, both of the machine's one monotonic clock. So each start is a span, some tens of
microseconds wide, or as wide as its process was kept from running just then. A window holds too
many only if more spans than the limit lie wholly within it. That needs no tolerance, and never
accuses wrongly; what it cannot see is a slot that was given back early by less than the width of
these spans (`blur`).
"""

from __future__ import annotations

import argparse
import math
import os
import random
import select
import socket
import statistics
import struct
import subprocess
import sys
import time
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

import etcdsem
from etcdsem import Client, RateLimit, server
from etcdsem.clock import boot_time
from etcdsem.model import Rate
from etcdsem.server import EtcdServer
from etcdsem.validation import read_rate

STAMP = struct.Struct("ddid")
"""What a worker sends at each start: a `Span`."""


JOINED = 0.5
"""Seconds within which a process that asks for a start is in the queue."""


BACK_OFF = 2.0
"""Seconds of a back-off; etcd's shortest."""

UNDER_WAY = 0.6
"""Seconds after the call of `penalize` within which a process may not know of it yet."""


class Span(NamedTuple):
    """A start was made between these moments of one clock."""

    earliest: float
    latest: float
    cost: int = 1
    """How many permits it took."""
    asked: float = 0.0
    """When the process asked for it."""


class Seen(NamedTuple):
    """What the referee saw."""

    starts: int
    most: int
    """In any window of the period, for certain."""
    use: float
    """The part of what was allowed."""
    killed: int
    blur: float
    """Half of the spans are narrower than so many seconds."""
    second: tuple[int, float] = (0, 0.0)
    """Of the second window: the most in it, and the part of what was allowed."""
    passed: int = 0
    """How many others at most passed a start."""
    back_offs: int = 0
    in_back_offs: int = 0
    """Starts within them, except those that may have been under way."""


def most_in_a_window(starts: Sequence[Span], period: float) -> int:
    """The most starts that one window of the period holds for certain."""
    starts = sorted(starts)
    begins = [span.earliest for span in starts]
    most = 0
    for first, begin in enumerate(begins):
        end = begin + period
        inside = starts[first : bisect_left(begins, end, first)]
        most = max(most, sum(span.cost for span in inside if span.latest < end))
    return most


def use_of(rate: Rate, starts: Sequence[Span]) -> float:
    """The part of the rate that was used: a period, beside the time that it took on average from a
    start to the one that comes as many later as the limit says. Back-offs count as unused time.
    """
    moments = sorted(span.earliest for span in starts for _ in range(span.cost))
    took = [b - a for a, b in zip(moments, moments[rate.starts :], strict=False)]
    return rate.period / statistics.mean(took)


def most_passed(starts: Sequence[Span]) -> int:
    """How many starts at most were asked for later than another one by more than `JOINED`, and
    served before it.
    """
    starts = sorted(starts)
    return max(
        sum(earlier.asked > span.asked + JOINED for earlier in starts[:place])
        for place, span in enumerate(starts)
    )


def most_in_back_offs(starts: Sequence[Span], quiet: Sequence[float]) -> int:
    """How many starts were within a back-off, for certain."""
    return sum(
        begin + UNDER_WAY < span.earliest and span.latest < begin + BACK_OFF
        for span in starts
        for begin in quiet
    )


def limit_of(name: str, text: str, *second: str, client: Client | None = None) -> RateLimit:
    """The rate limit that all processes use."""
    if second:
        return RateLimit(name, [text, *second], client=client)
    rate = read_rate(text)
    return RateLimit(name, rate.starts, rate.period, block=rate.block, client=client)


def measure(
    etcd: EtcdServer,
    name: str,
    rate: Rate,
    seconds: float,
    *,
    processes: int,
    kill_every: float = 0.0,
    early: float = 0.0,
    cost: int = 1,
    second: Rate | None = None,
    back_off_every: float = 0.0,
) -> Seen:
    """Let processes start as often as they may; kill one now and then, and replace it. Each start
    costs from 1 to `cost` permits, in both windows if there is a `second`. Now and then there is a
    back-off, every `back_off_every` seconds.

    `early`: they give their slots back so many seconds before the period is over, which is wrong.
    """
    wire = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    wire.bind(("127.0.0.1", 0))
    port = str(wire.getsockname()[1])
    texts = [str(rate), *([str(second)] if second else [])]
    words = [sys.executable, "-m", "tests.rates.worker", name, texts[0], port, str(early)]
    words += [str(cost), *texts[1:]]

    def begin() -> subprocess.Popen[bytes]:
        return subprocess.Popen(words, env={**os.environ, **etcd.env()})

    workers = [begin() for _ in range(processes)]
    starts: list[Span] = []
    killed = 0
    quiet: list[float] = []
    next_back_off = math.inf
    rng = random.Random(7)
    client = etcdsem.connect(etcd.endpoint)
    limit = limit_of(name, *texts, client=client)
    try:
        began = last_kill = None
        while began is None or time.monotonic() < began + seconds:
            if select.select([wire], [], [], 0.05)[0]:
                span = Span(*STAMP.unpack(wire.recv(STAMP.size)))
                starts.append(span)
                if not span.earliest <= span.latest <= boot_time():
                    raise AssertionError(f"not within its acquire: {span}")
                if began is None:
                    began = last_kill = time.monotonic()
                    next_back_off = boot_time() + back_off_every
            if kill_every and last_kill and time.monotonic() > last_kill + kill_every:
                last_kill = time.monotonic()
                victim = rng.randrange(processes)
                workers[victim].kill()
                workers[victim].wait()
                workers[victim] = begin()
                killed += 1
            if back_off_every and began and boot_time() > next_back_off:
                quiet.append(boot_time())
                limit.penalize(BACK_OFF)
                next_back_off = quiet[-1] + back_off_every
            if began is None and any(worker.poll() for worker in workers):
                raise RuntimeError("a worker has ended")
    finally:
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.wait()
        wire.close()
        client.close()
    return Seen(
        starts=len(starts),
        most=most_in_a_window(starts, rate.period),
        use=use_of(rate, starts),
        killed=killed,
        blur=statistics.median(span.latest - span.earliest for span in starts),
        second=(most_in_a_window(starts, second.period), use_of(second, starts))
        if second
        else (0, 0.0),
        passed=most_passed(starts),
        back_offs=len(quiet),
        in_back_offs=most_in_back_offs(starts, quiet),
    )


def main() -> None:
    """Measure several periods, one after the other."""
    parser = argparse.ArgumentParser(prog="python -m tests.rates.use", description=__doc__)
    parser.add_argument("rates", nargs="*", default=["10/0.5s", "40/2s", "200/10s", "1000/1m"])
    parser.add_argument("--periods", type=float, default=3.0, help="at least; or 20 s")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--kill-every", type=float, default=0.0, help="seconds; 0: never")
    parser.add_argument("--back-off-every", type=float, default=0.0, help="seconds; 0: never")
    parser.add_argument("--cost", type=int, default=1, help="a start costs from 1 to so much")
    parser.add_argument("--second", type=read_rate, help="another window for all starts")
    parser.add_argument("--seconds", type=float, default=0.0, help="at least so long")
    arguments = parser.parse_args()
    with server.start() as etcd:
        for text in arguments.rates:
            rate = read_rate(text)
            seconds = max(20.0, arguments.seconds, (arguments.periods + 1) * rate.period)
            name = f"use-{rate.period}"
            seen = measure(
                etcd,
                name,
                rate,
                seconds,
                processes=arguments.processes,
                kill_every=arguments.kill_every,
                cost=arguments.cost,
                second=arguments.second,
                back_off_every=arguments.back_off_every,
            )
            print(
                f"{text:>10}: {100 * seen.use:5.1f} % used, at most {seen.most} in a window, "
                f"{seen.starts} starts in {seconds:.0f} s, {seen.killed} killed, "
                f"blur {1e6 * seen.blur:.0f} us; second window:"
                f" {100 * seen.second[1]:5.1f} % used, "
                f"at most {seen.second[0]}; at most {seen.passed} passed one; "
                f"{seen.back_offs} back-offs, {seen.in_back_offs} starts in them",
                flush=True,
            )


if __name__ == "__main__":
    main()
