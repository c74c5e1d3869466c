"""Process information and services of the operating system; see also `clock.py`.

Linux has all of them. On other systems, callers must do without.
"""

from __future__ import annotations

import signal
import sys
from typing import NamedTuple

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4


def die_with_parent() -> None:
    """Have this process killed when the thread that started it ends (Linux only).

    The parent may have ended before the call, so compare `os.getppid()` after it.
    """
    if sys.platform.startswith("linux"):
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def never_dump_core() -> None:
    """Have this process leave no core dump when a signal such as SIGSEGV ends it."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform.startswith("linux"):
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)  # if they are piped to a program


class ProcessStat(NamedTuple):
    """A process's fields in ``/proc/PID/stat``."""

    state: str
    """R, S, D, T (stopped), t (traced), Z (zombie), X (dead)."""
    parent: int
    group: int


def process_stat(pid: int) -> ProcessStat:
    """Read ``/proc/PID/stat``; raises OSError if there is no such process, or no /proc."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        state, parent, group = file.read().rpartition(b")")[2].split()[:3]
    return ProcessStat(state.decode("ascii"), int(parent), int(group))


def boot_id() -> str | None:
    """The ID of this boot of the machine; None if the system has none."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return None
