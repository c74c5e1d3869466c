"""How signals reach the wrapper: as bytes in a pipe, never as exceptions.

1. Python runs a handler only when the main thread wakes, and an exception that is raised there
   strikes wherever it happens to be. So handlers do nothing; their numbers are read from the pipe
   that the interpreter writes them to, whichever thread the kernel gave the signal.
2. A signal that was ignored when we were started (nohup, a background job) stays ignored, for us
   and for the command; SIGTERM is always heard.
"""

from __future__ import annotations

import os
import select
import signal
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP)
FORWARDED = (*STOPPING, signal.SIGUSR1, signal.SIGUSR2)


class Stopped(Exception):
    """A signal said to stop, and there was no command yet to pass it to."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number


class Signals:
    """The signals of this process, from `install()` to its end."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()

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
                signal.signal(number, _heard)

    def have_no_children(self) -> None:
        """For commands that start no process: what a container's process 1 inherits all the same
        (orphans of `kubectl exec`) is reaped by the kernel.
        """
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    def hear_stop(self) -> None:
        """From now on Ctrl-Z is ours to pass on; until now it stopped us like any program."""
        if signal.getsignal(signal.SIGTSTP) is not signal.SIG_IGN:
            signal.signal(signal.SIGTSTP, _heard)

    def wait(self, seconds: float) -> list[int]:
        """The next signals, in order; none when `seconds` pass, or when `wake()` is called."""
        select.select([self._read], [], [], max(0.0, seconds))
        try:
            return [number for number in os.read(self._read, 4096) if number]
        except BlockingIOError:
            return []

    def stop(self, seconds: float) -> None:
        """Wait like `wait()`, while there is no command: raises Stopped if we are to stop."""
        for number in self.wait(seconds):
            if number in STOPPING:
                raise Stopped(number)

    def wake(self) -> None:
        """End a `wait()`, from any thread."""
        try:
            os.write(self._write, b"\0")
        except BlockingIOError:
            pass  # it is full: whoever waits is awake


def _heard(number: int, frame: FrameType | None) -> None:
    """The interpreter has written it to the pipe."""
