"""The statistics of all clients of this process, including those that no longer exist.

Separate from `metrics`, which shows them, so that a program that never looks need not load it.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque

from etcdsem.core.session import Session
from etcdsem.core.stats import ClientStats

MOST_SEMAPHORES = 1000
"""Number of semaphores that are listed by name; further ones are counted as ``(others)``."""


class _Counted:
    """The statistics of this process's clients. Those of former clients are kept."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a finalizer may re-enter
        self._live: list[ClientStats] = []
        self._ended: deque[ClientStats] = deque()  # those still listed in `_live`
        self._past = ClientStats()

    def follow(self, session: Session) -> None:
        stats = session.stats
        with self._lock:
            self._settle()
            self._live.append(stats)
        # Only noted there: a session may end at any moment, even during this code.
        weakref.finalize(session, self._ended.append, stats).atexit = False

    def all(self) -> ClientStats:
        with self._lock:
            self._settle()
            total = ClientStats()
            for stats in self._live:
                total.add(stats, past=False, most=MOST_SEMAPHORES)
            total.add(self._past, past=True, most=MOST_SEMAPHORES)
        return total

    def _settle(self) -> None:
        while self._ended:
            stats = self._ended.popleft()
            self._live.remove(stats)
            self._past.add(stats, past=True, most=MOST_SEMAPHORES)


_counted = _Counted()


def follow(session: Session) -> None:
    """Count what a client does from now on (each engine calls this for its own session)."""
    _counted.follow(session)


def all_stats() -> ClientStats:
    """Everything that all clients of this process have counted. Safe in any thread."""
    return _counted.all()


def _after_fork_in_child() -> None:
    global _counted
    _counted = _Counted()


os.register_at_fork(after_in_child=_after_fork_in_child)
