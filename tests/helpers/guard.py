"""No foreign code may run under a client's lock: log handlers, callbacks, the start of a thread.
Nothing may be logged during a procedure either.

Foreign code can take any time, and can wait for another thread that needs this lock, or for what
the procedure does next. `install` watches every call of the `etcdsem` logger, even of a disabled
level, and `watch_starts` every `Thread.start`; a test calls `check` from its own callbacks.
"""

from __future__ import annotations

import functools
import logging
import sys
import threading
import traceback
import weakref
from types import FrameType
from typing import Any

from etcdsem.client_lock import ClientLock
from etcdsem.drivers.threads import ThreadDriver

violations: list[str] = []
"""What was called under a client's lock, with the stack."""

_drivers: list[weakref.ref[ThreadDriver]] = []  # append is atomic; a WeakSet is not safe here

CALLS = ("debug", "info", "warning", "error", "exception", "critical", "log")


def owned() -> bool:
    """Does this thread hold the lock of any client?"""
    for one in list(_drivers):
        driver = one()
        if driver is not None and driver.lock._is_owned():  # type: ignore[attr-defined]
            return True
    return False


def check(what: str) -> None:
    """Called by foreign code: record a violation if this thread holds a client's lock."""
    if owned():
        stack = "".join(traceback.format_stack(limit=12)[:-1])
        violations.append(f"{what} under a client's lock:\n{stack}")


def _check_procedure() -> None:
    """Record a violation if this thread is in a procedure, and another thread could have logged
    instead. Calls by the in-memory etcd's clock are allowed: it stands for the machine's clock.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code is not _FALLBACK:
        if frame.f_globals.get("__name__") == "etcdsem.testing.virtual":
            return
        if frame.f_code is _DRIVE:
            stack = "".join(traceback.format_stack(limit=12)[:-1])
            violations.append(f"a log record in the midst of a procedure:\n{stack}")
        frame = frame.f_back


_DRIVE = ThreadDriver._drive.__code__
_FALLBACK = ClientLock._report_elsewhere.__code__


def take_violations() -> list[str]:
    """The violations since the last call, each place once."""
    taken = list(dict.fromkeys(violations))
    violations.clear()
    return taken


@functools.cache
def install() -> None:
    """Watch the logger until this process ends."""
    original = ThreadDriver.__init__

    def init(self: ThreadDriver, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        _drivers[:] = [one for one in _drivers if one() is not None]
        _drivers.append(weakref.ref(self))

    ThreadDriver.__init__ = init  # type: ignore[method-assign]
    logger = logging.getLogger("etcdsem")
    for name in CALLS:
        setattr(logger, name, _watched_call(getattr(logger, name)))


def _watched_call(original: Any) -> Any:
    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> None:
        check("a log record")
        _check_procedure()
        original(*args, **{"stacklevel": 2, **kwargs})

    return call


@functools.cache
def watch_starts() -> None:
    """Watch every start of a thread until this process ends."""
    original = threading.Thread.start

    def start(self: threading.Thread) -> None:
        check(f"the start of thread {self.name!r}")
        original(self)

    threading.Thread.start = start  # type: ignore[method-assign]
