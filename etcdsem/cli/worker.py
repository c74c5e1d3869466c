"""A thread that makes a blocking call while the main thread handles signals.

Python runs signal handlers in the main thread, between two bytecodes: a blocking call there could
be interrupted at any point. So the main thread waits in `Signals`, and the worker wakes it when
the call ends.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from etcdsem.cli.signals import Signals

T = TypeVar("T")


class Worker(Generic[T]):
    """Makes one call in a daemon thread, which starts at once."""

    def __init__(self, call: Callable[[], T], signals: Signals, *, name: str) -> None:
        self._call = call
        self._signals = signals
        self._outcome: list[T] = []
        self._error: BaseException | None = None
        self.done = False
        """The call has ended; `result()` returns or raises its outcome."""
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def result(self) -> T:
        """Return what the call returned, or raise what it raised. Only valid once `done`."""
        if self._error is not None:
            raise self._error
        return self._outcome[0]

    def join(self, seconds: float) -> None:
        """Wait for the end of the call without handling signals."""
        self._thread.join(seconds)

    def _run(self) -> None:
        try:
            self._outcome.append(self._call())
        except BaseException as error:
            self._error = error
        self.done = True
        self._signals.wake()
