"""The process that sees to it that the command does not outlive its lease when the wrapper can't.

1. Forked early, a session of its own, deaf to INT, TERM, HUP and the like; it holds nothing open
   but its end of one pipe.
2. The wrapper tells it the command's process group, and after each renewal the moment until which
   the lease is good, on the clock that counts suspension.
3. EOF without "done" means that the wrapper was killed: SIGKILL to the group, at once.
   The moment passes: the wrapper is stopped, or hangs: SIGKILL to the group.
4. It ends with "done", or after having killed. It never signals anything else.
"""

from __future__ import annotations

import math
import os
import select
import signal
import struct
from typing import NoReturn

from etcdsem.cli.run.process_group import ProcessGroup
from etcdsem.clock import boot_time

_MESSAGE = struct.Struct("!cqd")
_DEAF = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGPIPE,
    signal.SIGTSTP,
    signal.SIGTTIN,
    signal.SIGTTOU,
)


class Watchdog:
    """The wrapper's side."""

    def __init__(self) -> None:
        read, self.fd = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.fd)
            _guard(read)
        os.close(read)
        os.set_blocking(self.fd, False)
        self._deadline = math.nan

    def arm(self, group: int, deadline: float) -> None:
        """From now on kill `group` when the wrapper dies, or at `deadline` (may be infinite)."""
        self._deadline = deadline
        self._tell(b"A", group, deadline)

    def extend(self, deadline: float) -> None:
        """The lease was renewed (or has less time): `deadline` holds now."""
        if deadline != self._deadline:
            self._deadline = deadline
            self._tell(b"D", 0, deadline)

    def done(self) -> None:
        """The command has ended: go, and touch nothing. To be called before it is reaped."""
        self._tell(b"Q", 0, 0.0)
        os.close(self.fd)

    def _tell(self, kind: bytes, group: int, deadline: float) -> None:
        try:
            os.write(self.fd, _MESSAGE.pack(kind, group, deadline))
        except (BrokenPipeError, BlockingIOError):
            pass  # it has killed the group, or somebody killed or stopped it


def _guard(pipe: int) -> NoReturn:
    """The watchdog's life."""
    try:
        os.setsid()
        for number in _DEAF:
            signal.signal(number, signal.SIG_IGN)
        pipe = _close_all_but(pipe)
        _watch_over(pipe)
    finally:
        os._exit(0)


def _close_all_but(pipe: int) -> int:
    """Keep no file of the wrapper's open: somebody may wait for its end."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        if fd != pipe:
            os.dup2(null, fd)
    if pipe != 3:
        os.dup2(pipe, 3)
    os.closerange(4, os.sysconf("SC_OPEN_MAX"))
    os.chdir("/")
    return 3


def _watch_over(pipe: int) -> None:
    group: ProcessGroup | None = None
    deadline = math.inf
    while True:
        left = deadline - boot_time()
        if left > 0:
            # select() counts no suspension, hence the short sleeps towards the end
            ready, _, _ = select.select([pipe], [], [], min(left, 1.0) if group else None)
            if not ready:
                continue
            message = os.read(pipe, _MESSAGE.size)
            if message:
                kind, pid, deadline = _MESSAGE.unpack(message)
                if kind == b"Q":
                    return
                if kind == b"A":
                    group = ProcessGroup(pid)
                continue
        if group is not None:
            group.send(signal.SIGKILL)
        return
