"""Who is counted: the tallies of all clients of this process, also of those that are no more.

Apart from `metrics.py`, which shows them, so that a program that never looks need not load that.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque

from etcdsem.core.session import Session
from etcdsem.core.tally import Tallies

MOST_SEMAPHORES = 1000
"""Semaphores that are listed by name; the counts of further ones go to ``(others)``."""


class _Counted:
    """The tallies of this process's clients. A client that is no more leaves its counts."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a finalizer may come back
        self._live: list[Tallies] = []
        self._ended: deque[Tallies] = deque()  # still among the live ones
        self._past = Tallies()

    def follow(self, session: Session) -> None:
        tallies = session.tallies
        with self._lock:
            self._settle()
            self._live.append(tallies)
        # Only noted there: the end of a session may come in the midst of anything, here too.
        weakref.finalize(session, self._ended.append, tallies).atexit = False

    def all(self) -> Tallies:
        with self._lock:
            self._settle()
            total = Tallies()
            for tallies in self._live:
                total.add(tallies, past=False, most=MOST_SEMAPHORES)
            total.add(self._past, past=True, most=MOST_SEMAPHORES)
        return total

    def _settle(self) -> None:
        while self._ended:
            tallies = self._ended.popleft()
            self._live.remove(tallies)
            self._past.add(tallies, past=True, most=MOST_SEMAPHORES)


_counted = _Counted()


def follow(session: Session) -> None:
    """Count what a client does from now on (each engine calls this for its own)."""
    _counted.follow(session)


def all_tallies() -> Tallies:
    """What all clients of this process have counted so far. May be called from any thread."""
    return _counted.all()


def _after_fork_in_child() -> None:
    global _counted
    _counted = _Counted()


os.register_at_fork(after_in_child=_after_fork_in_child)
