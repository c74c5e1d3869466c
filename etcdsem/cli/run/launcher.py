"""The process that becomes the command.

1. It is forked while the wrapper is single-threaded, and waits on a pipe. So no fork happens
   beside threads, and the command starts without the delay of a new interpreter.
2. It has a process group of its own from the start: this is the group that may be killed, and
   it can contain nothing that we did not start.
3. EOF on the pipe means that the wrapper gave up or died: it exits silently.
4. The command inherits what the wrapper inherited: environment (with additions, and without
   dropped variables), working directory, standard streams, other open files, ignored and blocked
   signals. Only SIGPIPE and SIGXFSZ, which Python ignores for itself, are reset to their defaults.
5. If the wrapper dies, the kernel kills the command (PR_SET_PDEATHSIG, Linux). The watchdog covers
   the rest of its process group, and other systems.
"""

from __future__ import annotations

import os
import signal
import struct
from collections.abc import Mapping, Sequence
from typing import NoReturn

from etcdsem.cli.run.terminal import set_foreground
from etcdsem.cli.signals import restore_mask
from etcdsem.posix import die_with_parent

_LENGTH = struct.Struct("!I?")
_ERRNO = struct.Struct("!i")


class Launcher:
    """The wrapper's side. `pid` is the ID of the command and of its process group."""

    def __init__(
        self, command: Sequence[str], *, inherited: Sequence[int], dropped: Sequence[str] = ()
    ) -> None:
        """Fork.

        Args:
            command: what to execute.
            inherited: descriptors of the wrapper that the child must close.
            dropped: variables that the command must not inherit.

        Raises:
            OSError: no process can be started.
        """
        parent = os.getpid()
        go_read, self._go = os.pipe()
        self._errno, errno_write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            for fd in (self._go, self._errno, *inherited):
                os.close(fd)
            for name in dropped:
                os.environ.pop(name, None)
            _become(command, go_read, errno_write, parent)
        try:
            os.setpgid(self.pid, self.pid)  # so that the group exists now; it does the same
        except OSError:
            pass  # it was faster, or has ended
        os.close(go_read)
        os.close(errno_write)

    def go(self, additions: Mapping[str, str], *, terminal: bool) -> int:
        """Start the command.

        Args:
            additions: variables to add to its environment.
            terminal: make its group the foreground group of the terminal on stdin.

        Returns:
            0, or the errno of the failure to execute it.
        """
        payload = b"".join(
            os.fsencode(key) + b"=" + os.fsencode(value) + b"\0" for key, value in additions.items()
        )
        try:
            os.write(self._go, _LENGTH.pack(len(payload), terminal) + payload)
        except BrokenPipeError:
            return 0  # it was killed; its exit status will show that
        finally:
            os.close(self._go)
        answer = os.read(self._errno, _ERRNO.size)  # EOF: exec closed it
        os.close(self._errno)
        return int(_ERRNO.unpack(answer)[0]) if answer else 0

    def give_up(self) -> None:
        """End the process without starting the command."""
        os.close(self._go)
        os.close(self._errno)
        os.waitpid(self.pid, 0)


def _become(command: Sequence[str], go: int, errno_write: int, parent: int) -> NoReturn:
    """The child's side: wait for "go", then exec the command."""
    try:
        os.setpgid(0, 0)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        die_with_parent()
        if os.getppid() != parent:
            os._exit(0)  # the parent died before die_with_parent()
        head = os.read(go, _LENGTH.size)
        if len(head) < _LENGTH.size:
            os._exit(0)
        size, terminal = _LENGTH.unpack(head)
        payload = b""
        while len(payload) < size:
            part = os.read(go, size - len(payload))
            if not part:
                os._exit(0)
            payload += part
        if terminal:
            set_foreground(0, os.getpgrp())
        restore_mask()
        for sig in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(sig, signal.SIG_DFL)
        _exec(command, payload, errno_write)
    except BaseException as error:
        # None of the parent's exit handlers or messages may run here.
        number = error.errno if isinstance(error, OSError) and error.errno else 1
        os.write(errno_write, _ERRNO.pack(number))
    finally:
        os._exit(127)


def _exec(command: Sequence[str], payload: bytes, errno_write: int) -> None:
    environment = dict(os.environb)
    for pair in payload.split(b"\0")[:-1]:
        key, _, value = pair.partition(b"=")
        environment[key] = value
    os.set_inheritable(errno_write, False)
    os.execvpe(command[0], list(command), environment)  # noqa: S606 - no shell, on purpose
