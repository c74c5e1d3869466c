"""What a thread does on its way out of a client, and what it must not do inside of it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType

import pytest

from etcdsem import Client, EtcdSemError, Semaphore
from etcdsem.client_lock import ClientLock, enter, leave


def test_who_is_at_work_logs_when_its_call_is_over() -> None:
    """Others may wait for what it does next, and one of them may have the handler's lock."""
    lock = ClientLock()
    logged: list[str] = []
    enter(lock)
    try:
        lock.log(lambda: logged.append(threading.current_thread().name))
        lock.settle()
        assert not logged
    finally:
        leave()
    lock.settle()
    assert logged == [threading.current_thread().name]


def test_who_waits_has_its_records_logged_elsewhere() -> None:
    """A call may wait for an hour: its warnings come at once."""
    lock = ClientLock()
    come = threading.Event()
    logged: list[str] = []

    def record() -> None:
        logged.append(threading.current_thread().name)
        come.set()

    enter(lock)
    try:
        lock.log(record)
        lock.hand_over_records()
        assert come.wait(10)
    finally:
        leave()
    lock.settle()
    assert logged == ["etcdsem-log"]


@pytest.mark.parametrize("same", [True, False], ids=["same client", "another client"])
def test_a_signal_handler_asks_while_its_thread_waits(
    client: Client, name: str, same: bool
) -> None:
    """It is refused at every moment, not only in the midst of a step, since what it asks for may
    have to wait for what its own thread would do next. It may give back.
    """
    sem = Semaphore(1, name, client=client)
    another = client if same else Client(client.settings)
    other = Semaphore(1, f"{name}-other", client=another)
    lease = sem.acquire_lease()
    assert lease is not None
    calls: list[Callable[[], object]] = [other.status, lambda: other.acquire(timeout=0)]
    raised: list[BaseException] = []

    def handle(_signal: int, _frame: FrameType | None) -> None:
        for call in calls:
            try:
                call()
            except EtcdSemError as error:
                raised.append(error)
        assert lease.release() is False  # another thread does it a moment later

    former = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        assert sem.acquire(timeout=30)
    finally:
        signal.signal(signal.SIGALRM, former)
    assert [str(error) for error in raised] == [str(raised[0])] * 2
    assert "in another thread" in str(raised[0])
    assert sem.release()
    another.close()
