"""Threads that cannot be started, and exceptions in the heartbeat: `acquire` raises, or its lease
is refreshed as soon as there are threads again, or its loss is told. `close` never raises.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import subprocess
import threading
import time
import unittest.mock
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from etcdsem import Client, EtcdSemError, Semaphore, aio
from tests.helpers.slow import sample
from tests.ordinary.running import Program, Run, play

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

TTL = 2
OUTAGE = 2.0
"""Seconds for which no thread can be started."""

EXPECTED = [
    "lost the lease",
    "can't start new thread",
    "thread",  # the library may say what it could not start
    "error in",
    "not released, because its lease was lost",
]

START = next(
    name
    for name in ("_start_joinable_thread", "_start_new_thread")  # from Python 3.13 on, before it
    if hasattr(threading, name)
)


class Failing:
    """Lets the start of thread number `first`, counted from 1, fail; `lasting`: also those of the
    next two seconds.
    """

    def __init__(self, first: int, *, lasting: bool) -> None:
        self._left = first
        self._lasting = lasting
        self._until = 0.0
        self._start = getattr(threading, START)
        self.failed = 0
        setattr(threading, START, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._left -= 1
        if self._left == 0:
            self._until = time.monotonic() + (OUTAGE if self._lasting else 0.0)
        if self._left == 0 or time.monotonic() < self._until:
            self.failed += 1
            raise RuntimeError("can't start new thread")
        return self._start(*args, **kwargs)

    def end(self) -> None:
        """From now on all can be started."""
        setattr(threading, START, self._start)


def holds(run: Run, sem: Semaphore, lost: threading.Event, *, must_live: bool) -> None:
    """A lease that was granted is refreshed beyond its TTL, or its loss is told."""
    lease = sem.leases[0]
    end = time.monotonic() + 2 * TTL + 0.5
    while lease.valid and time.monotonic() < end:
        time.sleep(0.05)
    if lease.valid:
        run.count("held on")
        run.check(sem.release(), "the lease is valid and was not released")
        return
    run.count("lost")
    run.check(not must_live, "the lease was lost though threads could be started")
    run.eventually(lost.is_set, "the lease was lost and on_lost was not called")
    told = [one for one in run.records if one.levelname == "CRITICAL"]
    run.check(told, "the lease was lost and nothing was logged at CRITICAL")
    run.check(sem.release() is False, "a lease that was lost was released")


def kth_start(run: Run) -> None:
    """The k-th thread of the program cannot be started."""
    run.expected += EXPECTED
    lasting: bool = run.options["lasting"]
    failing = Failing(run.options["k"], lasting=lasting)
    lost = threading.Event()
    client = run.client()
    with run.noting():
        try:
            sem = Semaphore(
                2, run.name, client=client, lease_timeout=TTL, on_lost=lambda _: lost.set()
            )
            granted = sem.acquire(timeout=10)
        except EtcdSemError as error:
            run.count("refused")
            run.check("thread" in str(error), f"the error does not tell why: {error}")
        else:
            run.check(granted, "acquire() returned False, though it was not full")
            # An outage of as long as the TTL may end the lease, and then it must be told.
            holds(run, sem, lost, must_live=not lasting)
    run.count("failed", failing.failed)
    run.count("seen", failing.failed > 0)
    with run.noting():
        client.close()
    failing.end()


@pytest.mark.parametrize("lasting", sample([False, True]), ids=["once", "for 2 s"])
def test_the_kth_start_fails(etcd: EtcdServer, name: str, lasting: bool) -> None:
    """Eight programs at a time: in each another thread cannot be started."""
    programs = [
        Program(kth_start, etcd, f"{name}-{k}", 10, k=k, lasting=lasting) for k in range(1, 9)
    ]
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda program: program.outcome(), programs))
    wrong = [
        f"k={k}: {one}" for k, one in enumerate(outcomes, 1) if isinstance(one, AssertionError)
    ]
    assert not wrong, "\n".join(wrong)
    counts = [one for one in outcomes if not isinstance(one, AssertionError)]
    assert sum(one["seen"] for one in counts) >= 2  # so many threads a client needs at least


@contextlib.contextmanager
def no_room_for_stacks() -> Iterator[None]:
    """The address space is used up but for a little: no stack of 8 MB fits in."""
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 4 * 2**20, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def no_memory(run: Run) -> None:
    """Real failures: there is no memory for the stack of another thread, for two seconds."""
    run.expected += EXPECTED
    threading.stack_size(16 * 2**20)
    lost = threading.Event()
    client = run.client()
    sem = Semaphore(2, run.name, client=client, lease_timeout=TTL, on_lost=lambda _: lost.set())
    if run.options["warm"]:  # its heartbeat and streams are there
        sem.acquire()
        time.sleep(1.0)
    began = time.monotonic()
    with run.noting():
        granted = False
        with no_room_for_stacks():
            with contextlib.suppress(RuntimeError):
                threading.Thread(target=int).start()
                run.note("there was room for the stack of a thread")
            try:
                granted = sem.acquire(timeout=10)
            except EtcdSemError:
                run.count("refused")
            time.sleep(max(0.0, began + OUTAGE - time.monotonic()))
        if granted:
            holds(run, sem, lost, must_live=False)
        if run.options["warm"]:
            lease = sem.leases[0]
            run.check(lease.valid, "a lease that was there before was lost")
            sem.release()
    with run.noting():
        client.close()


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_no_memory_for_threads(etcd: EtcdServer, name: str, warm: bool) -> None:
    play(no_memory, etcd, name, 10, warm=warm)


def waits(run: Run) -> None:
    """Who has to wait while no thread can be started gets the slot when it is free."""
    run.expected += EXPECTED
    holder = Semaphore(1, run.name, client=run.client())
    holder.acquire()
    waiter = Semaphore(1, run.name, client=run.client(), lease_timeout=TTL)
    threading.Timer(OUTAGE + 1.0, holder.release).start()
    Failing(1, lasting=True)
    lost = threading.Event()
    try:
        granted = waiter.acquire(timeout=20)
    except EtcdSemError:
        run.count("refused")
    else:
        run.check(granted, "acquire() returned False after 20 s")
        holds(run, waiter, lost, must_live=True)


def test_a_waiter(etcd: EtcdServer, name: str) -> None:
    play(waits, etcd, name, 15)


# -- exceptions in the heartbeat


def chores(run: Run) -> None:
    """Chores of the heartbeat, and the renewals, raise for as long as the TTL lasts."""
    run.expected += ["heartbeat", "renew", "injected"]
    client = run.client()
    sem = Semaphore(2, run.name, client=client, lease_timeout=TTL + 1)
    sem.acquire()
    _break(client, run.options["what"])
    end = time.monotonic() + 2 * TTL + 2.5
    while sem.leases[0].valid and time.monotonic() < end:
        time.sleep(0.05)
    run.check(sem.leases[0].valid, "the lease was not refreshed any more")
    sem.release()


def _break(client: Client | aio.Client, what: str) -> None:
    """Let something in the heartbeat raise: always, or at first."""
    engine = client._driver
    left = [1]  # the heartbeat tries again within the TTL
    renew: Callable[[int], None] = engine.renew

    def chore(_now: float) -> float:
        raise RuntimeError("injected into a chore")

    def failing_renew(lease_id: int) -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise MemoryError("injected into renew")
        renew(lease_id)

    if what == "chore":
        engine.session.leases.chores.append(chore)
    else:
        engine.renew = failing_renew  # type: ignore[method-assign]
    engine.session.leases.box.put(None)


@pytest.mark.parametrize("what", ["chore", "renew"])
def test_an_exception_in_the_heartbeat(etcd: EtcdServer, name: str, what: str) -> None:
    play(chores, etcd, name, 5, what=what)


def loop_chores(run: Run) -> None:
    """The same in asyncio."""
    run.expected += ["heartbeat", "renew", "injected"]

    async def main() -> None:
        async with aio.connect(run.endpoint) as client:
            sem = await aio.Semaphore(2, run.name, client=client, lease_timeout=TTL + 1)
            async with sem.hold() as lease:
                _break(client, run.options["what"])
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(lease.lost.wait(), 2 * TTL + 2.5)
                run.check(lease.valid, "the lease was not refreshed any more")

    asyncio.run(main())


@pytest.mark.parametrize("what", ["chore", "renew"])
def test_an_exception_in_the_heartbeat_of_a_loop(etcd: EtcdServer, name: str, what: str) -> None:
    play(loop_chores, etcd, name, 5, what=what)


def keeper_dies(run: Run) -> None:
    """Keeper processes that end as they start: this process refreshes its leases itself."""
    run.expected += ["keeper", "helper", "error in"]
    client = run.client(keeper=True)
    sem = Semaphore(2, run.name, client=client, lease_timeout=TTL)
    sem.acquire()

    class Ending(subprocess.Popen[bytes]):
        """A process that has ended before anybody can write to it."""

        def __init__(self, _command: object, **options: Any) -> None:
            super().__init__(["true"], **options)
            self.wait()

    helper: Any = client._driver.helper
    with unittest.mock.patch("subprocess.Popen", Ending):
        os.kill(helper.pid, signal.SIGKILL)
        end = time.monotonic() + 2 * TTL + 0.5
        while sem.leases[0].valid and time.monotonic() < end:
            time.sleep(0.05)
    run.check(sem.leases[0].valid, "the lease was not refreshed any more")
    sem.release()


def test_a_keeper_process_that_dies(etcd: EtcdServer, name: str) -> None:
    play(keeper_dies, etcd, name, 5)
