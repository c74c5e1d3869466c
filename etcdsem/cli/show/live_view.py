"""A picture on the terminal that follows etcd: what `top` and `status --watch` have in common.

1. Etcd is asked by a thread of its own, and no more often than is cheap: a look that took long is
   followed by a pause of ten times as long. The main thread draws, and hears keys and signals.
2. The picture fills the screen (the alternate one: what was there comes back), until q or Ctrl-C.
3. An etcd that cannot be reached at the start is an error; later it is a line in the picture.
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
from etcdsem.cli.output import clean, span
from etcdsem.cli.signals import STOPPING, Signals
from etcdsem.cli.worker import Worker
from etcdsem.errors import EtcdSemError, InvalidSetting

if TYPE_CHECKING:
    from rich.console import RenderableType

T = TypeVar("T")

LEAST_INTERVAL: Final = 0.1
_PAUSE: Final = 10.0
"""A look takes at most one part in eleven of the time,"""

_LONGEST_PAUSE: Final = 60.0
"""but for one that took longer than six seconds."""

_SLOW: Final = 3.0
"""Seconds after which it is said that a look takes long."""

interval_option = click.option(
    "-i", "--interval", metavar="DURATION", default="2s", help="From one look to the next.  [2s]"
)


class Screen(NamedTuple):
    """The terminal."""

    width: int
    height: int
    blocks: bool
    """Can it show what is not ASCII?"""


def read_interval(given: str) -> float:
    """Seconds from one look to the next; raises InvalidSetting."""
    from etcdsem.model import seconds

    every = seconds(given, what="--interval")
    if not LEAST_INTERVAL <= every <= 86400:
        raise InvalidSetting(f"--interval {given}: give 100ms to 24h")
    return every


def is_screen() -> bool:
    """Can stdout be drawn on?"""
    try:
        return sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "")
    except (AttributeError, ValueError):
        return False


class Poller(Generic[T]):
    """Polls etcd from a thread of its own, and wakes the main thread each time."""

    def __init__(
        self, look: Callable[[], T], every: float, signals: Signals, close: Callable[[], None]
    ) -> None:
        """`close` lets go of etcd, and so ends a look that is under way."""
        self._look = look
        self._close = close
        self._every = every
        self._signals = signals
        self._end = threading.Event()
        self.seen: T | None = None
        self.error: EtcdSemError | None = None
        self.made = 0
        self._since = time.monotonic()  # when `seen` was
        self._under_way = False
        self._worker = Worker(self._run, signals, name="poller")

    def stop(self) -> None:
        """Look no more."""
        self._end.set()
        self._close()
        self._worker.join(1.0)

    def check(self) -> None:
        """Raise what ended the thread, if anything did."""
        if self._worker.done:
            self._worker.result()

    def trouble(self) -> str:
        """Why what was seen is old; empty if it is not."""
        old = time.monotonic() - self._since
        if self.error is not None:
            return clean(f"seen {span(old)} ago: {self.error}")
        if self._under_way and old > self._every + _SLOW:
            return f"seen {span(old)} ago: etcd has not answered since"
        return ""

    def _run(self) -> None:
        while not self._end.is_set():
            began = time.monotonic()
            self._under_way = True
            try:
                self.seen, self.error = self._look(), None
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
    look: Callable[[], T],
    show: Callable[[T, int], None],
    *,
    every: float,
    count: int,
    close: Callable[[], None],
) -> int:
    """Not on a terminal: `show` what was seen, and which look it was, `count` times (0: for
    ever), or until a signal. Gives the exit code; raises what went wrong.
    """
    signals = Signals()
    signals.install()
    poller, shown = Poller(look, every, signals, close), 0
    try:
        while True:
            for number in signals.wait(60.0):
                if number in STOPPING:
                    return exit_codes.SIGNAL + number
            poller.check()
            if poller.made == shown:
                continue
            shown = poller.made
            if poller.error is not None or poller.seen is None:
                raise poller.error or AssertionError("a look without anything seen")
            show(poller.seen, shown)
            if shown == count:
                return exit_codes.OK
    finally:
        poller.stop()


class LiveView(Generic[T]):
    """The picture, from its first look to q."""

    def __init__(
        self,
        look: Callable[[], T],
        draw: Callable[[T, Screen, str], RenderableType],
        *,
        every: float,
        close: Callable[[], None],
        count: int = 0,
        on_key: Callable[[str], None] = lambda key: None,
    ) -> None:
        """`draw` gets what was seen, the screen, and what is wrong; `count` looks, 0: for ever."""
        self._look = look
        self._draw = draw
        self._every = every
        self._close = close
        self._count = count
        self._on_key = on_key
        self._signals = Signals()

    def run(self) -> int:
        """Gives the exit code."""
        self._signals.install()
        self._signals.hear_stop()
        signal.signal(signal.SIGWINCH, _heard)
        poller = Poller(self._look, self._every, self._signals, self._close)
        try:
            while poller.made == 0:  # an etcd that is not there is no reason to clear the screen
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
        """Until a signal comes; 0 for q, and after the last look."""
        from rich.console import Console
        from rich.live import Live

        console = Console(highlight=False, emoji=False)
        blocks = console.encoding.lower().startswith("utf")
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
        """The keys that were typed, if any, before something else happens."""
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
    """One line of a picture."""
    return text if len(text) <= width else text[: max(0, width - 3)] + "..."


def _stopped(number: int) -> int:
    """Ctrl-C is how one leaves such a picture; other signals are news for whoever started it."""
    return exit_codes.OK if number in (0, signal.SIGINT) else exit_codes.SIGNAL + number


def _stop_here() -> None:
    """Ctrl-Z: stop, with the terminal as it was, until the shell continues us."""
    before = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTSTP)
    signal.signal(signal.SIGTSTP, before)


@contextmanager
def _keys() -> Iterator[None]:
    """Keys come one by one and are not shown, where stdin is a terminal."""
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


def _heard(number: int, frame: FrameType | None) -> None:
    """It is read from the pipe; its default would be to do nothing."""
