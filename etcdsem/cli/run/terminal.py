"""Terminal ownership: the job control of a shell, for one job.

1. If stdin is our terminal and we are in its foreground, the command's process group gets it when
   it starts, so that Ctrl-C, Ctrl-Z and reading work as without a wrapper.
2. In a pipeline (stdin or stdout is a pipe) the other members need the terminal as well: the
   command gets it only when it was stopped for using it.
3. When the command is stopped, we take the terminal back and stop too, so that the shell
   notices; when we are continued, so is the command. When it has ended, we take the terminal back.
4. Had the command not had the terminal, Ctrl-C would have reached our own group: a script or
   `make` that started us. So once everything is released, it is passed on to that group.
"""

from __future__ import annotations

import os
import signal
import stat

from etcdsem.cli.run.key_watch import KeyWatch
from etcdsem.cli.signals import KEYS


class Terminal:
    """The controlling terminal, if there is one."""

    def __init__(self) -> None:
        self._fd = self._open()
        self.lent = False
        """Whether the command's process group has it."""
        self._was_lent = False  # when the command ended
        self.key = 0
        """The signal of the key that was pressed while the command had it."""
        self._watch: KeyWatch | None = None

    @staticmethod
    def _open() -> int | None:
        try:
            return os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
        except OSError:
            return None

    @property
    def fds(self) -> tuple[int, ...]:
        """Descriptors that a child must close."""
        return () if self._fd is None else (self._fd,)

    def ours(self) -> bool:
        """Whether our process group is in the terminal's foreground."""
        return self._foreground() == os.getpgrp()

    def wanted(self) -> bool:
        """Whether the command should get it from the start."""
        return self.ours() and os.isatty(0) and not _is_pipe(1)

    def watch_keys(self, group: int) -> None:
        """Notice keys that reach the command's group. Call this while single-threaded."""
        if self._fd is not None:
            self._watch = KeyWatch(group)

    def end(self, group: int) -> None:
        """Take the terminal back, and learn which key was pressed, if any."""
        self._was_lent = self.lent
        self.take_back(group)
        if self._watch is not None:
            self.key = self._watch.end()

    def key_ended(self, number: int) -> None:
        """Note that the command died of a signal that we did not send; it may be the key's."""
        if self._was_lent and number in KEYS:
            self.key = number

    def pass_on_key(self) -> None:
        """Send the key's signal to our own process group, but not to ourselves."""
        if self.key:
            before = signal.signal(self.key, signal.SIG_IGN)
            try:
                os.killpg(os.getpgrp(), self.key)
            except OSError:
                pass  # not even ourselves: the group is another user's
            finally:
                signal.signal(self.key, before)

    def lend(self, group: int) -> None:
        """Make `group`, the command's, the foreground group, if ours is."""
        if self.ours():
            self._set(group)
            self.lent = True

    def take_back(self, group: int) -> None:
        """Make our group the foreground group again, if the command's still is."""
        if self.lent:
            self.lent = False
            if self._foreground() == group:
                self._set(os.getpgrp())

    def _foreground(self) -> int | None:
        if self._fd is None:
            return None
        try:
            return os.tcgetpgrp(self._fd)
        except OSError:
            return None

    def _set(self, group: int) -> None:
        assert self._fd is not None
        set_foreground(self._fd, group)


def set_foreground(fd: int, group: int) -> None:
    """Make a process group the terminal's foreground group."""
    before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    try:
        os.tcsetpgrp(fd, group)
    except OSError:
        pass  # the terminal is gone, or not ours: its reader will notice
    finally:
        signal.signal(signal.SIGTTOU, before)


def _is_pipe(fd: int) -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(fd).st_mode)
    except OSError:
        return False
