"""One measurement: so many clients, for so many seconds, and what each of them got done.

A measurement is a few processes. Each runs ``python -m tests.benchmarks.load`` with its part of
the clients, says `warm` when each of them has had a turn, counts for some seconds from when it is
told to, prints its counts as one line of JSON, and ends at once, wherever its clients are.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Load:
    """What one process has to do. Clients are numbered through all processes."""

    endpoint: str
    name: str
    clients: int
    limit: int
    seconds: float
    process: int = 0
    processes: int = 1
    warm_up: float = 60.0
    counts: dict[int, int] = field(default_factory=dict)
    refused: Callable[[], int] = lambda: 0
    """How many transactions etcd has refused, if the contestant counts them."""

    def __post_init__(self) -> None:
        self.counts = dict.fromkeys(self.mine, 0)

    @property
    def mine(self) -> range:
        """The clients of this process."""
        return range(self.process, self.clients, self.processes)

    def judge(self) -> None:
        """Wait until all are warm, count for a while, say the counts, and end the process."""
        print("ready", flush=True)
        until = time.monotonic() + self.warm_up
        while not all(self.counts.values()) and time.monotonic() < until:
            time.sleep(0.05)
        print("warm", flush=True)
        sys.stdin.readline()
        before, cpu, began = dict(self.counts), time.process_time(), time.monotonic()
        time.sleep(self.seconds)
        after, took = dict(self.counts), time.monotonic() - began  # a busy process wakes up late
        cpu = time.process_time() - cpu
        done = {number: after[number] - before[number] for number in before}
        said = {"counts": done, "cpu": cpu, "seconds": took, "refused": self.refused()}
        print(json.dumps(said), flush=True)
        os._exit(0)

    def begin(self) -> None:
        """All is set up. The judge has a thread of its own."""
        threading.Thread(target=self.judge, daemon=True).start()


def run_threads(load: Load, work: Callable[[int], Iterator[None]]) -> None:
    """A thread for each client, each driven from cycle to cycle until the process ends."""

    def run(number: int) -> None:
        try:
            for _ in work(number):
                load.counts[number] += 1
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    load.begin()
    for number in load.mine:
        threading.Thread(target=run, args=(number,), daemon=True).start()
    threading.Event().wait()


def main() -> None:
    """``python -m tests.benchmarks.load MODULE:FUNCTION JSON``."""
    module, function = sys.argv[1].split(":")
    load = Load(**json.loads(sys.argv[2]))
    target: Callable[[Load], Any] = getattr(importlib.import_module(module), function)
    if inspect.iscoroutinefunction(target):
        asyncio.run(target(load))
    else:
        target(load)


if __name__ == "__main__":
    main()
