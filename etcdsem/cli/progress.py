"""What is seen while a command waits for its turn.

In the foreground of a terminal one line on stderr, drawn again every second; elsewhere a line at
once, and then ever more seldom. The place in line is read from etcd now and then, the more seldom
the longer the line: many that wait must not slow down those who work.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from etcdsem.cli.output import clean, pause_text, say, span, write_stderr
from etcdsem.errors import EtcdSemError

if TYPE_CHECKING:
    from etcdsem import Client, Status

_REDRAW: Final = 1.0
_LEAST_NAME: Final = 4
_LOOK: Final = 2.0
_FIRST_LINE: Final = 30.0
_SELDOM: Final = 600.0
_PER_WAITER: Final = 0.05
"""Seconds between two looks for each one in line: 1000 waiters look once a minute."""


class ProgressLine:
    """Shown from `start()` to `stop()`, from a thread of its own."""

    def __init__(self, client: Client, name: str, *, quiet: bool) -> None:
        self._client = client
        self._name = name
        self._quiet = quiet
        self._terminal = _can_redraw()
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._moved = threading.Event()  # to another line, or to the end
        self._thread: threading.Thread | None = None
        self._began = time.monotonic()
        self._drawn = False

    def start(self, name: str | None = None) -> None:
        """We are in line. May be called again: of several semaphores, `name` is waited for now."""
        with self._lock:
            if name is not None and name != self._name:
                self._name = name
                self._moved.set()
            if self._thread is None and not self._quiet and not self._end.is_set():
                show = self._redraw if self._terminal else self._log
                self._thread = threading.Thread(target=show, name="etcdsem-progress", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """It is over: nothing is written after this."""
        with self._lock:
            self._end.set()
            self._moved.set()
            if self._drawn:
                write_stderr("\r\x1b[K")
                self._drawn = False

    def _redraw(self) -> None:
        seen, look_at = Progress(self._name), 0.0
        while not self._end.is_set():
            if time.monotonic() >= look_at or seen.name != self._name:
                seen, length = self._look()
                look_at = time.monotonic() + max(_LOOK, _PER_WAITER * length)
            self._draw(seen.fitting(_width() - 1, span(time.monotonic() - self._began)))
            self._end.wait(_REDRAW)

    def _draw(self, shown: str) -> None:
        with self._lock:
            if not self._end.is_set():
                self._drawn = True
                write_stderr(f"\r\x1b[K{shown}")

    def _log(self) -> None:
        pause = _FIRST_LINE
        while not self._end.is_set():
            seen, length = self._look()
            text = seen.whole
            waited = time.monotonic() - self._began
            with self._lock:
                if not self._end.is_set():
                    say(text if waited < 1 else f"{text}, {span(waited)}")
            if self._moved.wait(max(pause, _PER_WAITER * length)) and not self._end.is_set():
                self._moved.clear()
            pause = min(_SELDOM, 1.5 * pause)

    def _look(self) -> tuple[Progress, int]:
        """What there is to say, and how long the line is."""
        try:
            status = self._client.status(self._name, ttl=False)
            return self._describe(status), len(status.waiters)
        except EtcdSemError:
            return Progress(self._name, "etcd does not answer just now"), 0

    def _describe(self, status: Status) -> Progress:
        place = next((w.position for w in status.waiters if w.client == self._client.id), None)
        length = len(status.waiters)
        limit = "?" if status.max_leases is None else status.max_leases
        held = f"{status.held} of {limit} held"
        if status.rate is not None:
            held = f"{status.rate.block * status.held} of {status.rate} used"
        paused = pause_text(status.pause) if status.pause is not None else ""
        if place is None:
            return Progress(self._name, "about to be served", "next", held)
        where = f"place {place} of {length} in line"
        return Progress(self._name, where, f"{place} of {length}", held, paused)


class Progress(NamedTuple):
    """What is known of the line."""

    name: str
    where: str = "in line"
    short: str = ""
    held: str = ""
    paused: str = ""
    """Who paused it, since when, why; empty if it is not paused."""
    doing: str = "waiting for"

    @property
    def whole(self) -> str:
        """All of it."""
        rest = [part for part in (self.held, self.paused) if part]
        return clean(", ".join((f"{self.doing} {self.name}: {self.where}", *rest)))

    def fitting(self, width: int, waited: str) -> str:
        """All that fits on one line: first of all the place in line and the time, then the name."""
        paused = ", paused" if self.paused else ""
        name, short = clean(self.name), (self.short or self.where) + paused
        for line in (
            f"etcdsem: {self.whole}, {waited}",
            f"etcdsem: {name}: {self.where}, {self.held}{paused}, {waited}" if self.held else "",
            f"etcdsem: {name}: {self.where}{paused}, {waited}",
            f"etcdsem: {name}: {short}, {waited}",
        ):
            if line and len(line) <= width:
                return line
        rest = f": {short}, {waited}"
        for head in (f"etcdsem: {name}", name):
            room = width - len(rest) - 3
            if room >= len(head) - len(name) + _LEAST_NAME:
                return f"{head[:room]}...{rest}"
        return f"{short}, {waited}"[: max(0, width)]


def _width() -> int:
    """Columns of the terminal that is drawn on: stderr's, wherever stdout goes."""
    told = os.environ.get("COLUMNS", "")
    if told.isascii() and told.isdigit() and int(told) > 0:
        return int(told)
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError, AttributeError):
        return 80


def _can_redraw() -> bool:
    try:
        return (
            sys.stderr is not None
            and sys.stderr.isatty()
            and os.environ.get("TERM", "dumb") != "dumb"
            and not _in_background(sys.stderr.fileno())
        )
    except ValueError:
        return False


def _in_background(terminal: int) -> bool:
    """As with ``run ... &``: a line drawn again and again would spoil what others write there."""
    try:
        return os.tcgetpgrp(terminal) != os.getpgrp()
    except OSError:  # it is not the terminal of our session
        return False
