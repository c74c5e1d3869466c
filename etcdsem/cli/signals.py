"""Signal handling: signals arrive as bytes in a pipe, never as exceptions.

1. Python runs a handler only when the main thread wakes, and an exception raised in it would
   interrupt the main thread at any point. So handlers do nothing; the interpreter writes the signal
   numbers to a pipe, whichever thread received the signal, and they are read from there.
2. A signal that was ignored when we were started (nohup, a background job) stays ignored, for us
   and for the command, except SIGTERM, which is always handled.
3. A signal that was blocked when we were started would never arrive. So `main` unblocks all of
   them for us; the command that `run` or `dev` starts gets the mask that we were started with.
"""

from __future__ import annotations

import atexit
import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from etcdsem.posix import never_dump_core

STOPPING = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP)
KEYS = (signal.SIGINT, signal.SIGQUIT)
"""The signals of Ctrl-C and Ctrl-\\."""

FORWARDED = (*STOPPING, signal.SIGUSR1, signal.SIGUSR2)


def raise_on_sigint(raises: bool) -> None:
    """Let SIGINT raise KeyboardInterrupt, or end the process at once.

    Nothing catches the exception while Python starts or ends. A SIGINT that is ignored, or handled
    in another way, stays so.
    """
    before = signal.getsignal(signal.SIGINT)
    if raises and before is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    elif not raises and before is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


_inherited_mask: set[signal.Signals | int] = set()


def unblock_signals() -> None:
    """Unblock all signals. Call this once, at the start."""
    _inherited_mask.update(signal.pthread_sigmask(signal.SIG_SETMASK, ()))


def restore_mask() -> None:
    """Block what was blocked at our start: in a child that is about to become a command."""
    signal.pthread_sigmask(signal.SIG_SETMASK, _inherited_mask)


@contextmanager
def inherited_mask() -> Iterator[None]:
    """Start a process in this block, which then gets the mask that we were started with."""
    restore_mask()
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, ())


@contextmanager
def all_blocked() -> Iterator[None]:
    """Fork in this block: no signal arrives before both sides are prepared for it.

    A KeyboardInterrupt could be lost in what Python calls at a fork.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Stopped(Exception):
    """A signal to stop arrived while there was no command to forward it to."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number


class Signals:
    """The signals of this process, from `install()` on."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()

    @property
    def fds(self) -> tuple[int, int]:
        """Both ends of the pipe, which a child must close."""
        return self._read, self._write

    def install(self) -> None:
        """Install the handlers. Call this in the main thread."""
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in (*FORWARDED, signal.SIGCHLD):
            ignored = signal.getsignal(number) is signal.SIG_IGN
            if not ignored or number in (signal.SIGTERM, signal.SIGCHLD):
                signal.signal(number, _do_nothing)

    def have_no_children(self) -> None:
        """Let the kernel reap children, for commands that start none.

        As process 1 of a container they inherit orphans, e.g. of `kubectl exec`.
        """
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    def hear_stop(self) -> None:
        """Handle SIGTSTP (Ctrl-Z) from now on, which until now stopped us like any program."""
        if signal.getsignal(signal.SIGTSTP) is not signal.SIG_IGN:
            signal.signal(signal.SIGTSTP, _do_nothing)

    def end(self) -> int:
        """Give Ctrl-C and Ctrl-\\ their default action again.

        Returns the number of one that arrived while nothing could be done about it any more, or 0.
        """
        if signal.getsignal(signal.SIGTERM) is not _do_nothing:
            return 0  # they were not installed
        for number in KEYS:
            if signal.getsignal(number) is _do_nothing:
                signal.signal(number, signal.SIG_DFL)
        return next((number for number in self.wait(0) if number in KEYS), 0)

    def wait(self, seconds: float) -> list[int]:
        """Wait up to `seconds` for signals, or until `wake()`. Returns them in order."""
        select.select([self._read], [], [], max(0.0, seconds))
        try:
            return [number for number in os.read(self._read, 4096) if number]
        except BlockingIOError:
            return []

    def stop(self, seconds: float) -> None:
        """Wait like `wait()`, and raise Stopped on a signal to stop."""
        for number in self.wait(seconds):
            if number in STOPPING:
                raise Stopped(number)

    def wake(self) -> None:
        """End a `wait()`, from any thread."""
        try:
            os.write(self._write, b"\0")
        except BlockingIOError:
            pass  # the pipe is full, so `wait()` returns anyway


def die_of(number: int) -> None:
    """End this process by a signal, so that our parent sees which. Flush the output before.

    Returns where that is impossible: as process 1 of a container.
    """
    if os.getpid() == 1:
        return
    atexit._run_exitfuncs()
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    never_dump_core()
    signal.raise_signal(number)


def _do_nothing(number: int, frame: FrameType | None) -> None:
    """Do nothing: the interpreter has written the number to the pipe."""
