"""A thread that makes a blocking call while the main thread handles signals.

Python runs signal handlers in the main thread, between two bytecodes: a blocking call there could
be interrupted at any point. So the main thread waits in `Signals`, and the worker wakes it when
the call ends.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from etcdsem.cli.exit_codes import CannotStart, no_room
from etcdsem.cli.signals import Signals
from etcdsem.clock import boot_time

if TYPE_CHECKING:
    from etcdsem import Client

T = TypeVar("T")

STARVED: Final = 1.0
"""Seconds for which a client may fail to start a thread."""


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
        try:
            self._thread.start()
        except (RuntimeError, MemoryError) as error:
            raise no_room(error) or error from None

    def result(self) -> T:
        """Return what the call returned, or raise what it raised. Only valid once `done`.

        Raises CannotStart if the call could not start a thread.
        """
        if self._error is not None:
            raise no_room(self._error) or self._error
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


class StarvedCheck:
    """Notices that a client cannot start its threads: it could wait forever."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._since: float | None = None

    def __call__(self) -> None:
        """Call this about twice a second. Raises CannotStart."""
        why = self._client._driver.turn.unstarted
        if not why:
            self._since = None
        elif self._since is None:
            self._since = boot_time()
        elif boot_time() - self._since >= STARVED:
            raise CannotStart("a thread", why)
