"""The process that kills the command at the end of its lease if the wrapper cannot.

1. It is forked early, has a session of its own, and ignores INT, TERM, HUP and the like. It keeps
   no file open except its end of one pipe.
2. The wrapper sends it the command's process group, and after each renewal the lease's new
   deadline, on the clock that counts suspension.
3. EOF without "done" means that the wrapper was killed: it sends SIGKILL to the group at once.
   If the deadline passes, the wrapper is stopped or hangs: it sends SIGKILL to the group.
4. It exits on "done", or after the kill. It never signals anything else.
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
_IGNORED = (
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
        """Kill `group` from now on if the wrapper dies, or at `deadline` (may be infinite)."""
        self._deadline = deadline
        self._tell(b"A", group, deadline)

    def extend(self, deadline: float) -> None:
        """Set a new deadline, later or earlier."""
        if deadline != self._deadline:
            self._deadline = deadline
            self._tell(b"D", 0, deadline)

    def done(self) -> None:
        """End the watchdog, since the command has ended. Call this before reaping the command."""
        self._tell(b"Q", 0, 0.0)
        os.close(self.fd)

    def _tell(self, kind: bytes, group: int, deadline: float) -> None:
        try:
            os.write(self.fd, _MESSAGE.pack(kind, group, deadline))
        except (BrokenPipeError, BlockingIOError):
            pass  # it has killed the group, or was itself killed or stopped


def _guard(pipe: int) -> NoReturn:
    """Run as the watchdog process."""
    try:
        os.setsid()
        for number in _IGNORED:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        _watch_over(close_all_but(pipe))
    finally:
        os._exit(0)


def close_all_but(pipe: int | None) -> int:
    """Close the wrapper's files, since another process may wait for their EOF.

    Returns the pipe's new descriptor, 3.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        if fd != pipe:
            os.dup2(null, fd)
    if pipe is not None and pipe != 3:
        os.dup2(pipe, 3)
    os.closerange(3 if pipe is None else 4, os.sysconf("SC_OPEN_MAX"))
    os.chdir("/")
    return 3


def _watch_over(pipe: int) -> None:
    group: ProcessGroup | None = None
    deadline = math.inf
    while True:
        left = deadline - boot_time()
        if left > 0:
            # select() does not count suspension, hence the short sleeps
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
