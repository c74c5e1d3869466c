"""A signal handler that raises (Ctrl-C, a time limit of a task queue) strikes at any moment of a
call: what was granted is given back, and the object goes on.
"""

from __future__ import annotations

import logging
import random
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

import pytest

import etcdsem
from etcdsem import Semaphore
from etcdsem.testing import memory

ROUNDS = 600
LIMIT = 5


class Struck(BaseException):
    """What the signal handler raises."""


class Striker:
    """Raises `Struck` in the main thread once, at a random moment."""

    def __init__(self) -> None:
        self.random = random.Random(12)
        self.armed = False

    def strike_within(self, seconds: float) -> None:
        self.armed = True
        signal.setitimer(signal.ITIMER_REAL, 1e-6 + seconds * self.random.random())

    def handle(self, _signal: int, frame: FrameType | None) -> None:
        if not self.armed:
            return
        while frame is not None:
            inside = "/etcdsem/testing/" in frame.f_code.co_filename  # it stands for a server
            if inside or frame.f_code.co_name == "__del__":
                signal.setitimer(signal.ITIMER_REAL, 2e-5)
                return
            frame = frame.f_back
        self.armed = False
        raise Struck


@pytest.fixture
def striker() -> Iterator[Striker]:
    striker = Striker()
    former = signal.signal(signal.SIGALRM, striker.handle)
    logging.disable(logging.WARNING)
    try:
        yield striker
    finally:
        striker.armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
        logging.disable(logging.NOTSET)


def hold(sem: Semaphore) -> None:
    with sem.hold():
        pass


def hold_all(sem: Semaphore) -> None:
    with etcdsem.hold_all(sem):
        pass


WAYS: dict[str, Callable[[Semaphore], object]] = {
    "acquire": Semaphore.acquire,
    "acquire_lease": Semaphore.acquire_lease,
    "hold": hold,
    "acquire_all": etcdsem.acquire_all,
    "hold_all": hold_all,
}


@pytest.mark.parametrize("way", WAYS)
def test_an_interruption_at_any_moment_leaves_no_lease(way: str, striker: Striker) -> None:
    use = WAYS[way]
    struck = 0
    with memory() as etcd:
        client = etcd.client()
        sem = Semaphore(LIMIT, "sem", client=client)
        began = time.perf_counter()
        for _ in range(50):
            use(sem)
            give_back(sem)
        cycle = (time.perf_counter() - began) / 50
        for _ in range(ROUNDS):
            before = struck
            try:
                striker.strike_within(cycle)
                use(sem)
                striker.armed = False
            except Struck:
                struck += 1
            striker.armed = False
            if struck > before:  # after the handler: its traceback keeps a block alive
                assert sem.leases == ()
            give_back(sem)
        assert struck > ROUNDS / 20
        session = client._driver.session
        while session.leases.revocations:  # what was interrupted is ended beside us
            time.sleep(0.001)
        assert client.status("sem").holders == ()
        assert session.grants() == []
        assert all(sem.acquire(timeout=0) for _ in range(LIMIT))


def give_back(sem: Semaphore) -> None:
    while sem.leases:
        sem.release()
