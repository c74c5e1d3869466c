"""The other processes of a Kubernetes pod whose containers share a process namespace."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Final

from etcdsem.errors import InvalidSetting

LOSS_ACTIONS: Final = ("terminate", "warn", "kill-pod")
"""What `hold` can do when the lease is lost. `check` takes them, too."""

_FIRST = Path("/proc/1/comm")


def require_shared_processes() -> None:
    """Raise InvalidSetting unless process 1 is the pause process of a pod.

    `kill_others()` anywhere else would kill what this user runs on the machine.
    """
    try:
        first = _FIRST.read_text().strip()
    except OSError as error:
        first = str(error)
    if first != "pause":
        raise InvalidSetting(
            "--on-lost kill-pod works only in a Kubernetes pod with shareProcessNamespace: true "
            f"(process 1 is {first!r}, not 'pause')"
        )


def kill_others() -> bool:
    """Kill every other process of the pod; return False if some belong to other users.

    With SIGKILL, because a program that handles SIGTERM may exit with code 0, and the pod would
    count as succeeded.
    """
    with contextlib.suppress(ProcessLookupError):  # there are none
        os.kill(-1, signal.SIGKILL)  # all but process 1 and this one
    return all(map(_may_be_killed, os.listdir("/proc")))


def _may_be_killed(process: str) -> bool:
    if not process.isdigit() or process == "1":
        return True
    try:
        return os.stat(f"/proc/{process}").st_uid == os.geteuid()
    except OSError:  # it has ended
        return True
