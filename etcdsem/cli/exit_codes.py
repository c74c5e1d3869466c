"""Exit codes (those of sysexits.h where possible), and the mapping from errors to them.

A wrapped command's own code is passed on unchanged. If a code is ours, one line on stderr that
begins with ``etcdsem:`` says why.
"""

from __future__ import annotations

from typing import Final

from etcdsem import errors

OK: Final = 0
NOT_DONE: Final = 1  # close: in use; evict: no such holder or waiter. Never from `run`
USAGE: Final = 64
UNAVAILABLE: Final = 69
LOST: Final = 70
CONFLICT: Final = 75
NO_PERMISSION: Final = 77
CONFIG: Final = 78
CANNOT_EXECUTE: Final = 126
NOT_FOUND: Final = 127
SIGNAL: Final = 128  # plus its number


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
    (errors.InconsistentLimit, CONFIG),
    (errors.WrongKind, CONFIG),
    (errors.SemaphoreClosed, CONFIG),
    (errors.InvalidName, USAGE),
    (errors.InvalidSetting, USAGE),
    (errors.WeightExceedsLimit, USAGE),
    (errors.AcquireTimeout, CONFLICT),
    (errors.LeaseLost, LOST),
    (errors.Evicted, LOST),
    (errors.EtcdSemError, NOT_DONE),
)


def code_for(error: errors.EtcdSemError) -> int:
    """Return the exit code for an error."""
    return next(code for kind, code in _CODES if isinstance(error, kind))
