"""What child processes do. They import this by name, so there is no pytest in it."""

from __future__ import annotations

import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from etcdsem import Semaphore

Grant = tuple[int, int]
"""Slot and fencing token, which are unique together."""


def turns(sem: Semaphore, number: int) -> list[Grant]:
    """Hold it a number of times; gives the grants."""
    tokens = []
    for _ in range(number):
        with sem.hold() as lease:
            lease.check()
            tokens.append((lease.slot, lease.fencing_token))
    return tokens


def one_turn(sem: Semaphore) -> tuple[int, Grant]:
    """Hold it once; gives the process and the grant."""
    return os.getpid(), turns(sem, 1)[0]


def leave_without_release(sem: Semaphore, how: str) -> None:
    """End in some way while holding."""
    sem.acquire()

    def work() -> None:
        with sem:
            time.sleep(0.5)
            if sem.get_value() != 2:  # the end of the target must not take what threads work with
                sem.resize(99)

    match how:
        case "thread":
            threading.Thread(target=work).start()
        case "executor":
            ThreadPoolExecutor(2).submit(work)
        case "raise":
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - the traceback is no news
            raise KeyError("on purpose")
        case "exit":
            sys.exit(3)


def hold_for_ever(sem: Semaphore) -> None:
    """Hold it until the end comes from outside."""
    with sem:
        threading.Event().wait()
