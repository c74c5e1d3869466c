"""A live view on the terminal that polls etcd, shared by `top` and `status --watch`.

1. A thread polls etcd, and no more often than is cheap: a slow poll is followed by a pause ten
   times as long. The main thread draws, and handles keys and signals.
2. The view fills the screen (the alternate one, so the old content comes back) until q or Ctrl-C.
3. An etcd that is unreachable at the start is an error; later it is a message in the view.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

import click

from etcdsem.cli import exit_codes
from etcdsem.cli.output import clean, span, unicode_terminal
from etcdsem.cli.signals import STOPPING, Signals
from etcdsem.cli.worker import Worker
from etcdsem.errors import EtcdSemError, InvalidSetting

if TYPE_CHECKING:
    from rich.console import RenderableType

T = TypeVar("T")

LEAST_INTERVAL: Final = 0.1
_PAUSE: Final = 10.0
"""The pause after a poll, in multiples of its duration: polling takes at most 1/11 of the time."""

_LONGEST_PAUSE: Final = 60.0
"""Upper bound in seconds of that pause."""

_SLOW: Final = 3.0
"""Seconds by which a poll is overdue when the view says so."""

interval_option = click.option(
    "-i", "--interval", metavar="DURATION", default="2s", help="Time between updates.  [2s]"
)


class Screen(NamedTuple):
    """The size and abilities of the terminal."""

    width: int
    height: int
    blocks: bool
    """Whether it can show characters beyond ASCII."""


def read_interval(given: str) -> float:
    """Return the seconds between updates. Raises InvalidSetting."""
    from etcdsem.validation import seconds

    every = seconds(given, what="--interval")
    if not LEAST_INTERVAL <= every <= 86400:
        raise InvalidSetting(f"--interval {given} is out of range: give 100ms to 24h")
    return every


def is_screen() -> bool:
    """Whether stdout is a terminal that can be drawn on."""
    try:
        return sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "")
    except (AttributeError, ValueError):
        return False


class Poller(Generic[T]):
    """Polls etcd from a thread of its own, and wakes the main thread after each poll."""

    def __init__(
        self, poll: Callable[[], T], every: float, signals: Signals, close: Callable[[], None]
    ) -> None:
        """Start polling. `close` closes the client, which also ends a poll under way."""
        self._poll = poll
        self._close = close
        self._every = every
        self._signals = signals
        self._end = threading.Event()
        self.seen: T | None = None
        self.error: EtcdSemError | None = None
        self.made = 0
        self._since = time.monotonic()  # of `seen`
        self._under_way = False
        self._worker = Worker(self._run, signals, name="poller")

    def stop(self) -> None:
        """Stop polling."""
        self._end.set()
        self._close()
        self._worker.join(1.0)

    def check(self) -> None:
        """Raise the exception that ended the thread, if any."""
        if self._worker.done:
            self._worker.result()

    def trouble(self) -> str:
        """Return why `seen` is out of date; empty if it is not."""
        old = time.monotonic() - self._since
        if self.error is not None:
            return clean(f"updated {span(old)} ago: {self.error}")
        if self._under_way and old > self._every + _SLOW:
            return f"updated {span(old)} ago: etcd has not answered since"
        return ""

    def _run(self) -> None:
        while not self._end.is_set():
            began = time.monotonic()
            self._under_way = True
            try:
                self.seen, self.error = self._poll(), None
                self._since = time.monotonic()
            except EtcdSemError as error:
                self.error = error
            self._under_way = False
            self.made += 1
            self._signals.wake()
            took = time.monotonic() - began
            cheap = min(_LONGEST_PAUSE, _PAUSE * took) if self.error is None else 1.0
            self._end.wait(max(self._every - took, cheap))


def print_repeatedly(
    poll: Callable[[], T],
    show: Callable[[T, int], None],
    *,
    every: float,
    count: int,
    close: Callable[[], None],
) -> int:
    """Print updates without a terminal, `count` times (0: without end) or until a signal.

    `show` gets the result of `poll`, and its number from 1. Returns the exit code; raises the
    EtcdSemError of a poll that failed.
    """
    signals = Signals()
    signals.install()
    poller, shown = Poller(poll, every, signals, close), 0
    try:
        while True:
            for number in signals.wait(60.0):
                if number in STOPPING:
                    return exit_codes.by_signal(number)
            poller.check()
            if poller.made == shown:
                continue
            shown = poller.made
            if poller.error is not None or poller.seen is None:
                raise poller.error or AssertionError("a poll without a result")
            show(poller.seen, shown)
            if shown == count:
                return exit_codes.OK
    finally:
        poller.stop()


class LiveView(Generic[T]):
    """The view, from the first poll to q."""

    def __init__(
        self,
        poll: Callable[[], T],
        draw: Callable[[T, Screen, str], RenderableType],
        *,
        every: float,
        close: Callable[[], None],
        count: int = 0,
        on_key: Callable[[str], None] = lambda key: None,
    ) -> None:
        """Prepare the view.

        Args:
            poll: reads from etcd.
            draw: draws the last result; gets the screen, and why the result is out of date.
            every: seconds between polls.
            close: closes the client.
            count: polls until the end; 0 means no end.
            on_key: called with each key typed, except q.
        """
        self._poll = poll
        self._draw = draw
        self._every = every
        self._close = close
        self._count = count
        self._on_key = on_key
        self._signals = Signals()

    def run(self) -> int:
        """Show it until the end, and return the exit code. Raises the error of the first poll."""
        self._signals.install()
        self._signals.hear_stop()
        signal.signal(signal.SIGWINCH, _do_nothing)
        poller = Poller(self._poll, self._every, self._signals, self._close)
        try:
            while poller.made == 0:  # do not clear the screen if etcd is unreachable
                for number in self._signals.wait(60.0):
                    if number in STOPPING:
                        return _stopped(number)
                poller.check()
            if poller.seen is None and poller.error is not None:
                raise poller.error
            while True:
                with _keys():
                    number = self._show(poller)
                if number != signal.SIGTSTP:
                    return _stopped(number)
                _stop_here()
        finally:
            poller.stop()

    def _show(self, poller: Poller[T]) -> int:
        """Draw until a signal comes, and return its number; 0 for q and after the last poll."""
        from rich.console import Console
        from rich.live import Live

        console = Console(highlight=False, emoji=False)
        blocks = unicode_terminal()
        with Live(console=console, screen=True, auto_refresh=False) as drawing:
            while True:
                poller.check()
                size = console.size
                screen = Screen(size.width, size.height, blocks)
                seen: Any = poller.seen
                drawing.update(self._draw(seen, screen, poller.trouble()), refresh=True)
                if self._count and poller.made >= self._count:
                    return 0
                for key in self._wait(1.0):
                    if key == "q":
                        return 0
                    self._on_key(key)
                for number in self._signals.wait(0):
                    if number in STOPPING or number == signal.SIGTSTP:
                        return number

    def _wait(self, seconds: float) -> str:
        """Wait for keys, signals or a poll, and return the keys typed, if any."""
        inputs = [self._signals.fds[0]]
        if os.isatty(0):
            inputs.append(0)
        ready, _, _ = select.select(inputs, [], [], seconds)
        if 0 not in ready:
            return ""
        try:
            return os.read(0, 64).decode("ascii", "replace").lower()
        except OSError:
            return ""


def cut(text: str, width: int) -> str:
    """Cut a line of text to `width`, marking the cut with dots."""
    return text if len(text) <= width else text[: max(0, width - 3)] + "..."


def _stopped(number: int) -> int:
    """Return the exit code: 0 for Ctrl-C, the normal way to quit, 128+N for other signals."""
    return exit_codes.OK if number in (0, signal.SIGINT) else exit_codes.by_signal(number)


def _stop_here() -> None:
    """Handle Ctrl-Z: stop, with the terminal restored, until the shell continues us."""
    before = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTSTP)
    signal.signal(signal.SIGTSTP, before)


@contextmanager
def _keys() -> Iterator[None]:
    """Read keys one by one and without echo, if stdin is a terminal."""
    if not os.isatty(0):
        yield
        return
    import termios
    import tty

    before = termios.tcgetattr(0)
    tty.setcbreak(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def _do_nothing(number: int, frame: FrameType | None) -> None:
    """Do nothing: the signal is read from the pipe. Without a handler it would be discarded."""
