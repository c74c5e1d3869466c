"""SIGINT at random moments, in programs that compete for one slot.

`etcdsem dev -- python -m tests.processes.interrupts [--number 100]` runs the long version.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from typing import NamedTuple

from etcdsem import Semaphore

MODES = ["blocks", "calls"]

_PROGRAM = """
import sys, faulthandler, signal
faulthandler.register(signal.SIGUSR1, all_threads=True)
from etcdsem import Semaphore
sem = Semaphore(1, sys.argv[1], lease_timeout=600)
print('ready', flush=True)
while True:
    if sys.argv[2] == 'blocks':
        with sem:
            pass
    elif sem.acquire(timeout=5):
        sem.release()
"""


class Ended(NamedTuple):
    """How a program ended, and how long after the signal."""

    code: int
    seconds: float
    errors: str


def interrupt_two(environment: dict[str, str], name: str, mode: str) -> list[Ended]:
    """Start two, interrupt each, wait for their ends. One that hangs tells where, and is killed."""
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, name, mode],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for program in programs:
        if program.stdout is None or program.stdout.readline() != "ready\n":
            raise AssertionError("it did not start")
    sent = []
    for program in programs:
        time.sleep(random.random() * 0.3)  # the moment is what is tried
        program.send_signal(signal.SIGINT)
        sent.append(time.monotonic())
    return [_end(program, began) for program, began in zip(programs, sent, strict=True)]


def _end(program: subprocess.Popen[str], began: float) -> Ended:
    try:
        program.wait(20)
    except subprocess.TimeoutExpired:
        program.send_signal(signal.SIGUSR1)
        time.sleep(1)
        program.kill()
    seconds = time.monotonic() - began
    _, errors = program.communicate()
    return Ended(program.returncode, seconds, errors)


def main() -> None:
    """Print how many ended otherwise than they should, and how long it took."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--number", type=int, default=100)
    number = parser.parse_args().number
    for mode in MODES:
        name = f"interrupts-{mode}"
        sem = Semaphore(1, name)
        seconds, hung, left = [], 0, 0
        for _ in range(number // 2):
            for ended in interrupt_two({}, name, mode):
                seconds.append(ended.seconds)
                if ended.code != -signal.SIGINT or ended.seconds > 20:
                    hung += 1
                    print(ended)
            status = sem.status(ttl=False)
            for holder in status.holders:
                left += 1
                sem.client.evict(name, slot=holder.slot)
            left += len(status.waiters)
        print(
            f"{mode}: {number} programs, {hung} did not end as they should, {left} leases left; "
            f"the ends took {sorted(seconds)[number // 2]:.2f} s in the median, "
            f"{max(seconds):.2f} s at most"
        )


if __name__ == "__main__":
    main()
