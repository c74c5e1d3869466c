"""Exit codes (those of sysexits.h where possible), and the mapping from errors to them.

A wrapped command's own code is passed on unchanged. If a code is ours, one line on stderr that
begins with ``etcdsem:`` says why.
"""

from __future__ import annotations

import errno
from typing import Final

from etcdsem import errors

OK: Final = 0
NOT_DONE: Final = 1  # close: in use; evict: no such holder or waiter. Never from `run`
DIFFERS: Final = 2  # apply --dry-run: there are changes, as diff(1) has it
USAGE: Final = 64
UNAVAILABLE: Final = 69
LOST: Final = 70
CONFLICT: Final = 75
NO_PERMISSION: Final = 77
CONFIG: Final = 78
CANNOT_EXECUTE: Final = 126
NOT_FOUND: Final = 127
SIGNAL: Final = 128  # plus its number

NO_ROOM: Final = (errno.EAGAIN, errno.ENOMEM)
"""What fork() and exec() report at a limit."""


class CannotStart(errors.EtcdSemError):
    """No thread or process can be started: the process, user or container is at its limit."""

    def __init__(self, what: str, why: object) -> None:
        super().__init__(
            f"cannot start {what}: {why}. Raise the limit on processes and threads (ulimit -u, the "
            "pod's pids limit) or on memory"
        )


def no_room(error: BaseException) -> CannotStart | None:
    """Return the error to report if `error` means that no thread or process could be started."""
    if isinstance(error, OSError) and error.errno in NO_ROOM and error.filename is None:
        return CannotStart("a process", error.strerror)
    if isinstance(error, MemoryError):
        return CannotStart("a thread", "out of memory")
    if isinstance(error, RuntimeError) and "start new thread" in str(error):
        return CannotStart("a thread", error)
    return None


class BySignal(int):
    """128+N: signal N ended the command, or the wait. `main` then ends by that signal itself.

    A shell shows both alike, but only a death by SIGINT tells it to stop a script.
    """

    @property
    def number(self) -> int:
        """N."""
        return self - SIGNAL


def by_signal(number: int) -> BySignal:
    """Return the exit code for a signal."""
    return BySignal(SIGNAL + number)


_CODES: Final[tuple[tuple[type[Exception], int], ...]] = (
    (errors.PermissionDenied, NO_PERMISSION),
    (errors.EtcdUnavailable, UNAVAILABLE),
    (errors.EtcdRefused, UNAVAILABLE),
    (CannotStart, UNAVAILABLE),
    (errors.InconsistentLimit, CONFIG),
    (errors.WrongKind, CONFIG),
    (errors.SemaphoreClosed, CONFIG),
    (errors.InvalidName, USAGE),
    (errors.InvalidSetting, USAGE),
    (errors.WeightExceedsLimit, USAGE),
    (errors.AcquireTimeout, CONFLICT),
    (errors.QueueFull, CONFLICT),
    (errors.LeaseLost, LOST),
    (errors.Evicted, LOST),
    (errors.EtcdSemError, NOT_DONE),
)


def code_for(error: errors.EtcdSemError) -> int:
    """Return the exit code for an error."""
    return next(code for kind, code in _CODES if isinstance(error, kind))
