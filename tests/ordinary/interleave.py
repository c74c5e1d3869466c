"""Finds races and re-entrance without luck: stops a thread at each step of a call, one after the
other, and lets something else happen there.

`meet` runs a call in a thread with a trace function, and at its step number k (a line, a call or a
return in etcdsem) runs `other`: in another thread, as the scheduler of the operating system may; or
in the same thread, as the garbage collector and signal handlers do. `steps` repeats that for
k = 0, 1, 2, ... until the call ends before step k.
"""

from __future__ import annotations

import faulthandler
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import etcdsem
from tests.helpers import guard

HERE = str(Path(etcdsem.__file__).parent)
MEMORY = f"{HERE}/testing/"  # stands for etcd, which is elsewhere

FOUND_BUSY = 0.1
"""Seconds for which a stopped thread waits for the other one, which may have to wait for it."""

STANDSTILL = 10.0
"""Seconds after which a call is taken to stand still."""


class StandsStill(AssertionError):
    """Somebody waits for ever; the message has the stacks of all threads."""


class Meeting:
    """One call that is stopped at one of its steps."""

    def __init__(
        self,
        call: Callable[[], Any],
        other: Callable[[], Any],
        at: int,
        *,
        same_thread: bool,
        where: tuple[str, ...],
    ) -> None:
        self._call = call
        self._other = other
        self._at = at
        self._same_thread = same_thread
        self._where = where
        self._step = -1
        self.place = ""
        """Where the call was stopped; empty if it ended before that step."""
        self.results: list[Any] = [None, None]
        """What the call and the other gave: a value, or an exception."""
        self._second: threading.Thread | None = None
        # Kept alive: CPython 3.11 calls a trace function that a finalizer has just taken out.
        self._tracer = self._trace

    def run(self) -> None:
        """Let both happen; raises StandsStill."""
        first = threading.Thread(target=self._first, daemon=True)
        first.start()
        first.join(STANDSTILL)
        if self._second is not None:
            self._second.join(STANDSTILL)
        if first.is_alive() or (self._second is not None and self._second.is_alive()):
            raise StandsStill(f"stopped at {self.place}:\n{all_stacks()}")

    def _first(self) -> None:
        sys.settrace(self._tracer)
        try:
            self._keep(0, self._call)
        finally:
            sys.settrace(None)

    def _keep(self, place: int, function: Callable[[], Any]) -> None:
        try:
            self.results[place] = function()
        except BaseException as error:
            self.results[place] = error

    def _trace(self, frame: FrameType, event: str, _arg: object) -> Any:
        path = frame.f_code.co_filename
        if not path.startswith(self._where) or path.startswith(MEMORY):
            return None
        if not self._same_thread and guard.owned():
            return self._tracer  # the other would only wait for us
        self._step += 1
        if self._step == self._at:
            sys.settrace(None)
            frame.f_trace = None
            self.place = f"{frame.f_code.co_filename}:{frame.f_lineno} ({event})"
            self._meet()
        return self._tracer if self._step < self._at else None

    def _meet(self) -> None:
        if self._same_thread:
            self._keep(1, self._other)
            return
        self._second = threading.Thread(target=self._keep, args=(1, self._other), daemon=True)
        self._second.start()
        self._second.join(FOUND_BUSY)


def steps(
    prepare: Callable[[], tuple[Callable[[], Any], Callable[[], Any]]],
    *,
    same_thread: bool = False,
    start: int = 0,
    every: int = 1,
    where: tuple[str, ...] = (HERE,),
) -> Iterator[Meeting]:
    """Each meeting of a call with another, after it has happened; `prepare` makes both anew.

    `start`, `every`: from that step on only one in so many. `where`: only code whose path begins
    with one of these is stopped.
    """
    at = start
    while True:
        call, other = prepare()
        meeting = Meeting(call, other, at, same_thread=same_thread, where=where)
        meeting.run()
        if not meeting.place:
            meeting.results[1] = other()
        yield meeting
        if not meeting.place:
            return
        at += every


def all_stacks() -> str:
    """The stacks of all threads."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()
