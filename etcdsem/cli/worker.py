"""A thread makes a blocking call while the main thread hears signals.

Python runs signal handlers in the main thread, between two of its steps: a call that blocks there
would have to be interrupted anywhere. So the main thread waits in `Signals`, and the worker wakes
it at its end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from etcdsem.cli.signals import Signals

T = TypeVar("T")


class Worker(Generic[T]):
    """One call in a daemon thread, from the start."""

    def __init__(self, call: Callable[[], T], signals: Signals, *, name: str) -> None:
        self._call = call
        self._signals = signals
        self._outcome: list[T] = []
        self._error: BaseException | None = None
        self.done = False
        """The call has ended; `result()` tells how."""
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def result(self) -> T:
        """What the call returned; raises what it raised. To be asked once it is done."""
        if self._error is not None:
            raise self._error
        return self._outcome[0]

    def join(self, seconds: float) -> None:
        """Wait for the end of the call, deaf to signals."""
        self._thread.join(seconds)

    def _run(self) -> None:
        try:
            self._outcome.append(self._call())
        except BaseException as error:
            self._error = error
        self.done = True
        self._signals.wake()
