"""The other processes of a Kubernetes pod whose containers share a process namespace."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from etcdsem.cli.output import say
from etcdsem.errors import InvalidSetting

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


def kill_others() -> None:
    """Kill every other process of the pod.

    With SIGKILL, because a program that handles SIGTERM may exit with code 0, and the pod would
    count as succeeded.
    """
    try:
        os.kill(-1, signal.SIGKILL)  # all but process 1 and this one
    except ProcessLookupError:
        pass
    except PermissionError:
        say("WARNING: cannot kill the other containers: give all of them the same runAsUser")
