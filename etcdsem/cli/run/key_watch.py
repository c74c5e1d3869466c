"""Whether Ctrl-C or Ctrl-\\ was pressed while the command had the terminal.

The terminal signals only its foreground group, which is the command's. So a child of ours in that
group waits for the key, ignores it, and reports it. The kernel marks signals that it sends itself
(`si_code`), so signals of `kill` do not count. Without a terminal there is no such child.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Final, NoReturn

from etcdsem.cli.run.watchdog import close_all_but
from etcdsem.cli.signals import KEYS
from etcdsem.posix import die_with_parent

_FINISH: Final = signal.SIGALRM  # never forwarded to the command's group
_SI_KERNEL: Final = 0x80


class KeyWatch:
    """The wrapper's side."""

    def __init__(self, group: int) -> None:
        """Fork a child into the command's process group; without it, no key is ever reported.

        All signals must be blocked.
        """
        self._pid = 0
        if not sys.platform.startswith("linux"):
            return
        parent = os.getpid()
        try:
            self._pid = os.fork()
            if self._pid == 0:
                _watch(group, parent)
        except OSError:
            pass  # at a limit of processes

    def end(self) -> int:
        """End the child. Returns the signal of the key that was pressed, or 0."""
        pid, self._pid = self._pid, 0
        if pid == 0:
            return 0
        try:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            os.kill(pid, _FINISH)  # it has not been reaped, so the PID is its own
            os.kill(pid, signal.SIGCONT)  # its group may have been stopped
            _, status = os.waitpid(pid, 0)
        except (ChildProcessError, ProcessLookupError):
            return 0
        code = os.waitstatus_to_exitcode(status)
        return max(0, code)  # negative: it was killed with its group


def _watch(group: int, parent: int) -> NoReturn:
    """The child's side. All signals are blocked."""
    pressed = 0
    try:
        os.setpgid(0, group)
        die_with_parent()
        close_all_but(None)
        while os.getppid() == parent:
            seen = signal.sigwaitinfo((*KEYS, _FINISH))  # pending ones: the lowest number first
            if seen is None:
                continue
            if seen.si_signo == _FINISH:
                if seen.si_pid == parent:
                    break
            elif seen.si_code == _SI_KERNEL:
                pressed = pressed or seen.si_signo
    finally:
        os._exit(pressed)
