"""How signals reach the wrapper: as bytes in a pipe, and while it waits as an exception.

1. A signal that was ignored when we were started (nohup, a background job) stays ignored, for us
   and for the command; SIGTERM is always heard.
2. While `stoppable()`, INT, QUIT, TERM and HUP raise `Stopped` in the main thread, once; the
   library then leaves the line as it does for Ctrl-C. Later ones wait: the clean-up is bounded.
3. At all other times nothing is raised; `arrived()` gives the numbers in order.
4. The kernel may hand a signal to any thread, and Python runs its handler only when the main
   thread next wakes: seconds later, if that waits for a lock. So while `stoppable()` a thread
   reads the pipe, and pokes the main thread until it has heard.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP)
FORWARDED = (*STOPPING, signal.SIGUSR1, signal.SIGUSR2)
_POKE = signal.SIGURG
_POKE_EVERY = 0.05


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
        self._read_already: list[int] = []

    @property
    def fds(self) -> tuple[int, int]:
        """Both ends of the pipe, for a child to close."""
        return self._read, self._write

    def install(self) -> None:
        """Hear them, from the main thread."""
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in (*FORWARDED, signal.SIGCHLD, _POKE):
            ignored = signal.getsignal(number) is signal.SIG_IGN
            if not ignored or number in (signal.SIGTERM, signal.SIGCHLD, _POKE):
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
        done = threading.Event()
        poker = threading.Thread(target=self._poke, args=(done,), name="signals", daemon=True)
        try:
            for number in self.arrived():
                if number in STOPPING:
                    raise Stopped(number)
            poker.start()
            yield
        finally:
            self._raising = False
            if poker.ident is not None:
                done.set()
                self.wake()
                poker.join()

    def _poke(self, done: threading.Event) -> None:
        main = threading.main_thread().ident
        assert main is not None
        while not done.is_set():
            select.select([self._read], [], [])
            came = self._read_all()
            self._read_already += came
            if any(number in STOPPING for number in came):
                while self._raising and not done.wait(_POKE_EVERY):
                    signal.pthread_kill(main, _POKE)

    def arrived(self) -> list[int]:
        """The signals that came since the last call, in order."""
        before, self._read_already = self._read_already, []
        return before + self._read_all()

    def _read_all(self) -> list[int]:
        try:
            return [one for one in os.read(self._read, 4096) if one not in (0, _POKE)]
        except BlockingIOError:
            return []

    def wait(self, seconds: float) -> list[int]:
        """The next signals; none when `seconds` pass, or when `wake()` is called."""
        select.select([self._read], [], [], max(0.0, seconds))
        return self.arrived()

    def wake(self) -> None:
        """End a `wait()`, from any thread."""
        try:
            os.write(self._write, b"\0")
        except BlockingIOError:
            pass  # it is full: whoever waits is awake
