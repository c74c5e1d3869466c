"""Log handlers and callbacks that take their time or use etcdsem: other leases live on, nothing
stands still, and none of them runs under a client's lock.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

import etcdsem
from etcdsem import EtcdSemError, Lease, Semaphore
from tests.helpers import guard
from tests.helpers.slow import sample
from tests.ordinary.interleave import StandsStill, all_stacks
from tests.ordinary.running import Run, play

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

TTL = 2
EXPECTED = ["lost the lease", "its lease was lost", "is paused", "not released"]


class Handler(logging.Handler):
    """A user's log handler."""

    def __init__(self, emit: Callable[[logging.LogRecord], object]) -> None:
        super().__init__(logging.INFO)
        self._emit = emit
        self.called = threading.Event()

    def createLock(self) -> None:
        """None: each record is emitted in its own thread, and they do not wait for each other."""
        self.lock = None

    def emit(self, record: logging.LogRecord) -> None:
        guard.check("a log handler")
        self.called.set()
        self._emit(record)


def within(seconds: float, function: Callable[[], object]) -> None:
    """Run something that must end in time."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise StandsStill(f"not done within {seconds} s:\n{all_stacks()}")


class Scene:
    """A client with two leases: one that is evicted, which is logged and calls `on_lost`, and one
    of a short TTL, which must live on.
    """

    def __init__(self, run: Run, on_lost: Callable[[Lease], object] | None = None) -> None:
        run.expected += EXPECTED
        guard.watch_starts()
        self.run = run
        self.client = run.client()
        self.operator = run.client()
        self.sem = Semaphore(8, run.name, client=self.client, on_lost=on_lost)
        short = Semaphore(8, run.name, client=self.client, lease_timeout=TTL)
        self.evicted = self._lease(self.sem)
        self.living = self._lease(short)
        time.sleep(1.0)  # the keys of what is held are watched from now on

    @staticmethod
    def _lease(sem: Semaphore) -> Lease:
        lease = sem.acquire_lease()
        assert lease is not None
        return lease

    def evict(self) -> None:
        """Its loss is logged, and `on_lost` is called."""
        self.operator.evict(self.run.name, slot=self.evicted.slot)
        self.run.check(self.evicted.lost.wait(15), "the eviction was not noticed")

    def lives_on(self) -> None:
        """The other lease is refreshed for longer than its TTL, and can be given back."""
        end = time.monotonic() + 2 * TTL + 0.5
        while self.living.valid and time.monotonic() < end:
            time.sleep(0.05)
        self.run.check(self.living.valid, "a lease was lost while foreign code took its time")

    def end(self) -> None:
        """Give back what is held, in bounded time."""
        within(10, self.living.release)
        within(10, self.evicted.release)

    def use(self) -> None:
        """What foreign code may want of the client: all works, or raises EtcdSemError."""
        try:
            self.sem.status()
            if self.sem.acquire(timeout=0):
                self.sem.release()
            with self.sem.hold(timeout=5):
                pass
        except EtcdSemError:
            self.run.count("refused")
        self.run.count("used")


def blocking_handler(run: Run) -> None:
    """A handler that blocks (a full pipe) while another lease must be refreshed."""
    scene = Scene(run)
    pipe = threading.Event()
    handler = Handler(lambda record: pipe.wait(60))
    logging.getLogger("etcdsem").addHandler(handler)
    scene.evict()
    run.check(handler.called.wait(15), "the loss was not logged")
    scene.lives_on()
    within(10, lambda: Semaphore(8, run.name, client=scene.client).get_value())
    pipe.set()
    logging.getLogger("etcdsem").removeHandler(handler)
    scene.end()


def using_handler(run: Run) -> None:
    """A handler that uses etcdsem: it writes to a log that has a semaphore of its own."""
    scene = Scene(run)
    busy = threading.local()

    def emit(_record: logging.LogRecord) -> None:
        if not getattr(busy, "busy", False):  # what it does is logged too
            busy.busy = True
            try:
                scene.use()
            finally:
                busy.busy = False

    handler = Handler(emit)
    logging.getLogger("etcdsem").addHandler(handler)
    within(20, scene.evict)
    run.eventually(lambda: run.counts["used"], "the handler did not come to its end")
    scene.lives_on()
    within(20, scene.end)  # logs that the lease was lost, in this thread
    logging.getLogger("etcdsem").removeHandler(handler)


def waiting_handler(run: Run) -> None:
    """A handler that waits for another thread which uses etcdsem, as one with a queue does."""
    scene = Scene(run)

    def emit(_record: logging.LogRecord) -> None:
        thread = threading.Thread(target=scene.sem.get_value, daemon=True)
        thread.start()
        thread.join(5)
        run.check(not thread.is_alive(), "nobody can use the client while a record is handled")

    handler = Handler(emit)
    handler.setLevel(logging.WARNING)
    logging.getLogger("etcdsem").addHandler(handler)
    within(30, scene.evict)
    scene.lives_on()
    within(30, scene.end)
    logging.getLogger("etcdsem").removeHandler(handler)


def blocking_callbacks(run: Run) -> None:
    """on_lost and on_wait that do not return: everything else goes on."""
    block, lost, waits = threading.Event(), threading.Event(), threading.Event()

    def on_lost(_lease: Lease) -> None:
        guard.check("on_lost")
        lost.set()
        block.wait(60)

    def on_wait() -> None:
        guard.check("on_wait")
        waits.set()
        block.wait(60)

    scene = Scene(run, on_lost)
    scene.evict()
    run.check(lost.wait(15), "on_lost was not called")
    full = Semaphore(1, f"{run.name}-full", client=scene.client)
    full.acquire()
    within(20, lambda: full.acquire_lease(timeout=1, on_wait=on_wait))
    run.check(waits.is_set(), "on_wait was not called")
    scene.lives_on()
    full.release()
    scene.end()
    block.set()


def using_callbacks(run: Run) -> None:
    """on_lost and on_wait that use the client."""
    done, waited = threading.Event(), threading.Event()

    def on_lost(_lease: Lease) -> None:
        guard.check("on_lost")
        scene.use()
        done.set()

    def on_wait() -> None:
        guard.check("on_wait")
        scene.use()
        full.release()
        waited.set()

    scene = Scene(run, on_lost)
    scene.evict()
    run.check(done.wait(20), "on_lost did not come to its end")
    full = Semaphore(1, f"{run.name}-full", client=scene.client)
    full.acquire()
    within(30, lambda: full.acquire_lease(timeout=20, on_wait=on_wait))
    run.check(waited.wait(20), "on_wait did not come to its end")
    full.release()
    scene.lives_on()
    scene.end()


def raising(run: Run) -> None:
    """A handler and callbacks that raise do no harm."""
    run.expected += ["on-lost", "on_lost", "raised by"]
    logging.raiseExceptions = False

    def fail(*_: object) -> None:
        raise ZeroDivisionError("raised by foreign code")

    scene = Scene(run, fail)
    handler = Handler(fail)
    logging.getLogger("etcdsem").addHandler(handler)
    scene.evict()
    scene.lives_on()
    logging.getLogger("etcdsem").removeHandler(handler)
    within(10, scene.end)


SCENES = {
    one.__name__: one
    for one in (
        blocking_handler,
        using_handler,
        waiting_handler,
        blocking_callbacks,
        using_callbacks,
        raising,
    )
}


@pytest.mark.parametrize("scene", sample(SCENES, 3))
def test_foreign_code(etcd: EtcdServer, name: str, scene: str) -> None:
    play(SCENES[scene], etcd, name, 20)


def everything(run: Run) -> None:
    """A bit of everything, with each record and each start of a thread under guard."""
    guard.watch_starts()
    run.expected += [*EXPECTED, "was closed while in use"]
    client = run.client()
    for _ in range(3):
        sem = Semaphore(2, run.name, client=client, lease_timeout=TTL, max_hold=3)
        with sem:
            sem.acquire(timeout=5)
            sem.acquire(timeout=0.2)
            sem.resize(3)
            sem.acquire_lease(timeout=5, on_wait=lambda: guard.check("on_wait"))
            sem.resize(2)
            sem.pause(reason="a test")
            sem.acquire(timeout=0.2)
            sem.resume()
        while sem.leases:
            sem.release()
        sem.close()
    with etcdsem.connect(run.endpoint) as other:
        lost = threading.Event()
        sem = Semaphore(2, run.name, client=other, on_lost=lambda _: lost.set())
        sem.acquire()
        time.sleep(0.5)
        client.evict(run.name, slot=sem.leases[0].slot)
        run.check(lost.wait(15), "on_lost was not called")
        sem.release()


def test_everything_under_guard(etcd: EtcdServer, name: str) -> None:
    play(everything, etcd, name, 20)
