"""A thread makes a blocking call while the main thread hears signals."""

from __future__ import annotations

import threading

import pytest

from etcdsem.cli.signals import Signals
from etcdsem.cli.worker import Worker


@pytest.fixture
def signals() -> Signals:
    """A pipe that nothing but a worker writes to."""
    return Signals()


def test_its_result_wakes_the_main_thread(signals: Signals) -> None:
    """Whoever waits for signals is woken at the end of the call."""
    go = threading.Event()
    worker = Worker(lambda: go.wait(20), signals, name="one")
    assert not worker.done
    go.set()
    assert signals.wait(20) == []
    assert worker.done
    assert worker.result()


def test_its_error_is_raised_in_the_main_thread(signals: Signals) -> None:
    """Whatever it is."""
    worker = Worker(lambda: 1 // 0, signals, name="one")
    worker.join(20)
    assert worker.done
    with pytest.raises(ZeroDivisionError):
        worker.result()
