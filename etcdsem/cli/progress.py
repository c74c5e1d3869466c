"""Progress output while a command waits in the queue.

In the foreground of a terminal this is one line on stderr, redrawn every second; elsewhere a line
at once, then further lines at increasing intervals. The longer the queue, the less often its state
is read from etcd, so that many waiters do not slow down the holders.
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
_POLL: Final = 2.0
_FIRST_PAUSE: Final = 30.0
_LONGEST_PAUSE: Final = 600.0
_PER_WAITER: Final = 0.05
"""Seconds between two reads per waiter in the queue: 1000 waiters read once a minute each."""


class ProgressLine:
    """Shows progress between `start()` and `stop()`, from a thread of its own."""

    def __init__(self, client: Client, name: str, *, quiet: bool) -> None:
        self._client = client
        self._name = name
        self._quiet = quiet
        self._terminal = _can_redraw()
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._moved = threading.Event()  # to another queue, or to the end
        self._thread: threading.Thread | None = None
        self._began = time.monotonic()
        self._drawn = False

    def start(self, name: str | None = None) -> None:
        """Start, or (with several semaphores) switch to `name`, whose queue it waits in now."""
        with self._lock:
            if name is not None and name != self._name:
                self._name = name
                self._moved.set()
            if self._thread is None and not self._quiet and not self._end.is_set():
                show = self._redraw if self._terminal else self._log
                self._thread = threading.Thread(target=show, name="etcdsem-progress", daemon=True)
                try:
                    self._thread.start()
                except (RuntimeError, MemoryError) as error:
                    say(f"waiting for {clean(self._name)}, without showing progress: {error}")

    def stop(self) -> None:
        """Erase the line. Nothing is written after this."""
        with self._lock:
            self._end.set()
            self._moved.set()
            if self._drawn:
                write_stderr("\r\x1b[K")
                self._drawn = False

    def note(self, text: str) -> None:
        """Print a message of its own; nothing with `quiet`, or after `stop()`."""
        with self._lock:
            if self._quiet or self._end.is_set():
                return
            if self._drawn:
                write_stderr("\r\x1b[K")
                self._drawn = False
            say(text)

    def _redraw(self) -> None:
        seen, poll_at = Progress(self._name), 0.0
        while not self._end.is_set():
            if time.monotonic() >= poll_at or seen.name != self._name:
                seen, length = self._poll()
                poll_at = time.monotonic() + max(_POLL, _PER_WAITER * length)
            self._draw(seen.fitting(_width() - 1, span(time.monotonic() - self._began)))
            self._end.wait(_REDRAW)

    def _draw(self, shown: str) -> None:
        with self._lock:
            if not self._end.is_set():
                self._drawn = True
                write_stderr(f"\r\x1b[K{shown}")

    def _log(self) -> None:
        pause = _FIRST_PAUSE
        while not self._end.is_set():
            seen, length = self._poll()
            text = seen.whole
            waited = time.monotonic() - self._began
            with self._lock:
                if not self._end.is_set():
                    say(text if waited < 1 else f"{text}, {span(waited)}")
            if self._moved.wait(max(pause, _PER_WAITER * length)) and not self._end.is_set():
                self._moved.clear()
            pause = min(_LONGEST_PAUSE, 1.5 * pause)

    def _poll(self) -> tuple[Progress, int]:
        """Return the current progress, and the length of the queue."""
        try:
            status = self._client.status(self._name, ttl=False)
            return self._describe(status), len(status.waiters)
        except EtcdSemError:
            return Progress(self._name, "etcd is not responding"), 0

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
        where = f"place {place} of {length} in the queue"
        return Progress(self._name, where, f"{place} of {length}", held, paused)


class Progress(NamedTuple):
    """The state of the wait."""

    name: str
    where: str = "in the queue"
    short: str = ""
    held: str = ""
    paused: str = ""
    """Who paused it, when and why; empty if it is not paused."""
    doing: str = "waiting for"

    @property
    def whole(self) -> str:
        """The full text."""
        rest = [part for part in (self.held, self.paused) if part]
        return clean(", ".join((f"{self.doing} {self.name}: {self.where}", *rest)))

    def fitting(self, width: int, waited: str) -> str:
        """Return what fits on one line: first the place in the queue and the time, then the name.

        Args:
            width: columns available.
            waited: the time waited so far, as text.
        """
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
    """Return the width of stderr's terminal, even if stdout is elsewhere."""
    given = os.environ.get("COLUMNS", "")
    if given.isascii() and given.isdigit() and int(given) > 0:
        return int(given)
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
    """Whether this is a background job (``run ... &``), which must not redraw the terminal."""
    try:
        return os.tcgetpgrp(terminal) != os.getpgrp()
    except OSError:  # not the terminal of our session
        return False
