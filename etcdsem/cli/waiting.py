"""What is seen while a command waits for its turn.

On a terminal one line on stderr, drawn again every second; elsewhere a line at once, and then ever
more seldom. The place in line is read from etcd now and then, the more seldom the longer the line:
many that wait must not slow down those who work.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from typing import TYPE_CHECKING, Final

from etcdsem.cli.text import clean, say, span, write_stderr
from etcdsem.errors import EtcdSemError

if TYPE_CHECKING:
    from etcdsem import Client, Status

_REDRAW: Final = 1.0
_LOOK: Final = 2.0
_FIRST_LINE: Final = 30.0
_SELDOM: Final = 600.0
_PER_WAITER: Final = 0.05
"""Seconds between two looks for each one in line: 1000 waiters look once a minute."""


class Picture:
    """Shown from `start()` to `stop()`, from a thread of its own."""

    def __init__(self, client: Client, name: str, *, quiet: bool) -> None:
        self._client = client
        self._name = name
        self._quiet = quiet
        self._terminal = _can_redraw()
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._began = time.monotonic()
        self._drawn = False

    def start(self) -> None:
        """We are in line. May be called again."""
        with self._lock:
            if self._thread is None and not self._quiet and not self._end.is_set():
                show = self._redraw if self._terminal else self._log
                self._thread = threading.Thread(target=show, name="etcdsem-picture", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """It is over: nothing is written after this."""
        with self._lock:
            self._end.set()
            if self._drawn:
                write_stderr("\r\x1b[K")
                self._drawn = False

    def _redraw(self) -> None:
        text, look_at = "", 0.0
        while not self._end.is_set():
            if time.monotonic() >= look_at:
                text, length = self._look()
                look_at = time.monotonic() + max(_LOOK, _PER_WAITER * length)
            self._draw(f"etcdsem: {text}, {span(time.monotonic() - self._began)}")
            self._end.wait(_REDRAW)

    def _draw(self, line: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        shown = line if len(line) <= width else line[: max(0, width - 3)] + "..."
        with self._lock:
            if not self._end.is_set():
                self._drawn = True
                write_stderr(f"\r\x1b[K{shown}")

    def _log(self) -> None:
        pause = _FIRST_LINE
        while not self._end.is_set():
            text, length = self._look()
            waited = time.monotonic() - self._began
            with self._lock:
                if not self._end.is_set():
                    say(text if waited < 1 else f"{text}, {span(waited)}")
            self._end.wait(max(pause, _PER_WAITER * length))
            pause = min(_SELDOM, 1.5 * pause)

    def _look(self) -> tuple[str, int]:
        """What there is to say, and how long the line is."""
        try:
            status = self._client.status(self._name, ttl=False)
            return self._describe(status), len(status.waiters)
        except EtcdSemError:
            return f"waiting for {self._name}: etcd does not answer just now", 0

    def _describe(self, status: Status) -> str:
        place = next((w.position for w in status.waiters if w.client == self._client.id), None)
        length = len(status.waiters)
        limit = "?" if status.max_leases is None else status.max_leases
        where = f"place {place} of {length} in line" if place else "about to be served"
        return clean(f"waiting for {self._name}: {where}, {status.held} of {limit} held")


def _can_redraw() -> bool:
    try:
        return (
            sys.stderr is not None
            and sys.stderr.isatty()
            and os.environ.get("TERM", "dumb") != "dumb"
        )
    except ValueError:
        return False
