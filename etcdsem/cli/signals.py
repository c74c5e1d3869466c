"""How signals reach the wrapper: as bytes in a pipe, and while it waits as an exception.

1. A signal that was ignored when we were started (nohup, a background job) stays ignored, for us
   and for the command; SIGTERM is always heard.
2. While `stoppable()`, INT, QUIT, TERM and HUP raise `Stopped` in the main thread, once; the
   library then leaves the line as it does for Ctrl-C. Later ones wait: the clean-up is bounded.
3. At all other times nothing is raised; `arrived()` gives the numbers in order.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP)
FORWARDED = (*STOPPING, signal.SIGUSR1, signal.SIGUSR2)


class Stopped(KeyboardInterrupt):
    """A signal said to stop, and there is no command yet to pass it to."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number


class Signals:
    """The signals of this process, from `install()` to its end."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        self._raising = False

    @property
    def fds(self) -> tuple[int, int]:
        """Both ends of the pipe, for a child to close."""
        return self._read, self._write

    def install(self) -> None:
        """Hear them, from the main thread."""
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in (*FORWARDED, signal.SIGCHLD):
            ignored = signal.getsignal(number) is signal.SIG_IGN
            if not ignored or number in (signal.SIGTERM, signal.SIGCHLD):
                signal.signal(number, self._heard)

    def hear_stop(self) -> None:
        """From now on Ctrl-Z is ours to pass on; until now it stopped us like any program."""
        if signal.getsignal(signal.SIGTSTP) is not signal.SIG_IGN:
            signal.signal(signal.SIGTSTP, self._heard)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self._raising and number in STOPPING:
            self._raising = False
            raise Stopped(number)

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """Within, a stopping signal raises Stopped; one that came before does so at once."""
        self._raising = True
        try:
            for number in self.arrived():
                if number in STOPPING:
                    raise Stopped(number)
            yield
        finally:
            self._raising = False

    def arrived(self) -> list[int]:
        """The signals that came since the last call, in order."""
        try:
            return list(os.read(self._read, 4096))
        except BlockingIOError:
            return []

    def wait(self, seconds: float) -> list[int]:
        """The next signals; none when `seconds` pass, or when `wake()` is called."""
        select.select([self._read], [], [], max(0.0, seconds))
        return [number for number in self.arrived() if number]

    def wake(self) -> None:
        """End a `wait()`, from any thread."""
        try:
            os.write(self._write, b"\0")
        except BlockingIOError:
            pass  # it is full: whoever waits is awake
