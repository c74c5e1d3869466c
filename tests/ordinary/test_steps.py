"""Two calls that meet at each of their steps: in two threads, and in one thread, as a finalizer or
a signal handler does.
"""

from __future__ import annotations

import functools
import random
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from etcdsem import Client, EtcdSemError, Semaphore, testing
from tests.helpers.slow import sample
from tests.helpers.waiting import eventually
from tests.ordinary.interleave import HERE, Meeting, steps
from tests.ordinary.running import Run, play

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

Call = Callable[[], Any]


@pytest.fixture
def sem(name: str) -> Iterator[Semaphore]:
    with testing.memory() as memory:
        yield Semaphore(4, name, client=memory.client())


def check_free(sem: Semaphore) -> None:
    """All four slots can be acquired at once."""
    assert sem.leases == ()
    eventually(lambda: sem.get_value() == 0, 5.0)
    assert all(sem.acquire(timeout=0) for _ in range(4))
    assert all(sem.release() for _ in range(4))


# -- two threads


def test_two_releases(sem: Semaphore) -> None:
    """Two threads never choose the same lease: each gives back one."""

    def prepare() -> tuple[Call, Call]:
        assert sem.acquire()
        assert sem.acquire()
        return sem.release, sem.release

    for met in steps(prepare):
        assert met.results == [True, True], met.place
        assert sem.leases == (), met.place
    check_free(sem)


def test_one_lease_is_released_twice(sem: Semaphore) -> None:
    """Two threads release the same lease: one of them does, and the slot is free."""

    def prepare() -> tuple[Call, Call]:
        lease = sem.acquire_lease()
        assert lease is not None
        return lease.release, lease.release

    for met in steps(prepare):
        assert sorted(met.results) == [False, True], met.place
        assert sem.leases == (), met.place
    check_free(sem)


def test_release_leaves_a_block_alone(sem: Semaphore) -> None:
    """`release` never takes the lease that another thread has just got for a block."""
    valid: list[bool] = []

    def block() -> None:
        with sem.hold() as lease:
            valid.append(lease.valid)

    def acquire_and_release() -> bool:
        return sem.acquire() and sem.release()

    for met in steps(lambda: (block, acquire_and_release)):
        assert met.results == [None, True], met.place
        assert sem.leases == (), met.place
        assert all(valid), met.place
    check_free(sem)


def test_two_blocks(sem: Semaphore) -> None:
    """Two threads enter and leave `with sem:`."""

    def block() -> int:
        with sem:
            return len(sem.leases)

    for met in steps(lambda: (block, block)):
        assert all(result in (1, 2) for result in met.results), (met.place, met.results)
        assert sem.leases == (), met.place
    check_free(sem)


def test_acquire_and_release(sem: Semaphore) -> None:
    """One thread acquires while another releases."""

    def prepare() -> tuple[Call, Call]:
        if not sem.leases:
            assert sem.acquire()
        return sem.acquire, sem.release

    for met in steps(prepare):
        assert met.results == [True, True], met.place
        assert len(sem.leases) == 1, met.place
    assert sem.release()
    check_free(sem)


def test_release_and_the_close_of_the_client(name: str) -> None:
    """Whatever comes first, the slot is free, and nothing raises but EtcdSemError."""
    with testing.memory() as memory:
        other = Semaphore(4, name, client=memory.client())

        def prepare() -> tuple[Call, Call]:
            client = memory.client()
            sem = Semaphore(4, name, client=client)
            assert sem.acquire()
            return sem.release, client.close

        for met in steps(prepare, every=3):
            assert met.results[1] is None, met.place
            assert isinstance(met.results[0], bool | EtcdSemError), (met.place, met.results)
            assert other.get_value() == 0, met.place
        check_free(other)


# -- one thread: a finalizer or a signal handler, at each step of a call


def _block(sem: Semaphore) -> None:
    with sem.hold() as lease:
        assert lease.valid


def _new_client(sem: Semaphore) -> None:
    with Client(sem.client.settings) as other:
        Semaphore(4, sem.name, client=other)


CALLS: dict[str, Callable[[Semaphore], Any]] = {
    "acquire and release": lambda sem: sem.acquire() and sem.release(),
    "a block": _block,
    "a try": lambda sem: sem.acquire(timeout=0) and sem.release(),
    "status": lambda sem: sem.status(),
    "the list of threads": lambda sem: threading.enumerate(),
    "the start of a thread": lambda sem: threading.Thread(target=int).start(),
    "a new client": _new_client,
}


def finalizer_releases(run: Run) -> None:
    """A release in the middle of a call is done, then or a moment later, and the call goes on."""
    sem = Semaphore(4, run.name, client=run.client())
    finalized = Semaphore(4, run.name, client=sem.client)

    def prepare() -> Call:
        eventually(lambda: sem.get_value() == 0, 5.0)  # what was left for later is done
        lease = finalized.acquire_lease()
        assert lease is not None
        return lease.release if run.options["what"] == "lease" else finalized.release

    for met in _steps(run, sem, prepare):
        assert not isinstance(met.results[0], BaseException), (met.place, met.results)
        assert isinstance(met.results[1], bool), (met.place, met.results)
        assert finalized.leases == (), met.place
        assert sem.leases == (), met.place


def finalizer_does_anything_else(run: Run) -> None:
    """It works or raises EtcdSemError; it never stands still."""
    sem = Semaphore(4, run.name, client=run.client())

    def other() -> None:
        sem.status()
        if sem.acquire(timeout=0):
            sem.release()

    for met in _steps(run, sem, lambda: other):
        assert not isinstance(met.results[0], BaseException), (met.place, met.results)
        assert met.results[1] is None or isinstance(met.results[1], EtcdSemError), met.place
        eventually(lambda: not sem.leases)


def _steps(run: Run, sem: Semaphore, prepare: Callable[[], Call]) -> Iterator[Meeting]:
    """At the steps of all calls; short runs take one step in a few, and other ones each time."""
    every = 1 if run.seconds > 30 else 13
    where = (HERE, threading.__file__)
    for call in random.sample(list(CALLS.values()), len(CALLS)):
        start = random.randrange(every)
        both = functools.partial(_both, functools.partial(call, sem), prepare)
        for met in steps(both, same_thread=True, start=start, every=every, where=where):
            run.count("steps")
            yield met


def _both(call: Call, prepare: Callable[[], Call]) -> tuple[Call, Call]:
    return call, prepare()


@pytest.mark.parametrize("what", sample(["semaphore", "lease"]))
def test_a_finalizer_releases(etcd: EtcdServer, name: str, seconds: float, what: str) -> None:
    play(finalizer_releases, etcd, name, seconds, what=what)


def test_a_finalizer_does_anything_else(etcd: EtcdServer, name: str, seconds: float) -> None:
    play(finalizer_does_anything_else, etcd, name, seconds)
