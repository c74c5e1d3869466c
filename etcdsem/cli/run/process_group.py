"""Send signals to a process group that we started, and to no other.

A process group ID can be reused once the group's last process was reaped. A pidfd of the group's
leader, opened while the leader was certainly ours, can never refer to another group (Linux 6.9
and later). Elsewhere the ID is used, and nothing is sent after the leader was reaped.
"""

from __future__ import annotations

import os
import signal
import sys

_PIDFD_SIGNAL_PROCESS_GROUP = 4


class ProcessGroup:
    """The process group of a child that leads it and has not been reaped yet."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.reaped = False
        """Set this before the leader is reaped."""
        try:
            self._pidfd: int | None = os.pidfd_open(pid)
        except (AttributeError, OSError):
            self._pidfd = None

    def send(self, number: int) -> bool:
        """Send a signal to every process of the group. Returns False if the group is empty.

        Signal 0 only checks.
        """
        try:
            if self._pidfd is not None and sys.platform == "linux":
                try:
                    signal.pidfd_send_signal(self._pidfd, number, None, _PIDFD_SIGNAL_PROCESS_GROUP)
                    return True
                except PermissionError:
                    raise
                except ProcessLookupError:
                    return False
                except OSError:
                    self._pidfd = None  # an older kernel
            if self.reaped:
                return False
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # all of them run as another user (setuid), but they exist
        return True
