"""The process that becomes the command.

1. It is forked while the wrapper has no thread but one, and waits on a pipe.
   So no fork ever happens beside threads, and the command starts without an interpreter's delay.
2. It is in a process group of its own from the start: the group that may be killed, and that
   nothing which we did not start can be in.
3. EOF on the pipe means that the wrapper gave up or died: it goes away without a word.
4. The command gets what the wrapper got: environment (and the additions), working directory,
   standard streams, other inherited files, ignored signals. Only SIGPIPE and SIGXFSZ, which
   Python ignores for itself, go back to their default.
5. If the wrapper dies, the kernel kills the command (PR_SET_PDEATHSIG, Linux). The watchdog sees
   to the rest of its process group, and to other systems.
"""

from __future__ import annotations

import os
import signal
import struct
from collections.abc import Mapping, Sequence
from typing import NoReturn

from etcdsem.cli.run.terminal import set_foreground
from etcdsem.posix import die_with_parent

_LENGTH = struct.Struct("!I?")
_ERRNO = struct.Struct("!i")


class Launcher:
    """The wrapper's side. `pid` is the command's, and its process group's."""

    def __init__(self, command: Sequence[str], *, inherited: Sequence[int]) -> None:
        """Fork. `inherited` are pipe ends of the wrapper that the child must not keep open."""
        parent = os.getpid()
        go_read, self._go = os.pipe()
        told, tell = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            for fd in (self._go, told, *inherited):
                os.close(fd)
            _become(command, go_read, tell, parent)
        os.close(go_read)
        os.close(tell)
        self._told = told

    def go(self, additions: Mapping[str, str], *, terminal: bool) -> int:
        """Start the command, with `additions` to its environment, and if `terminal` with the
        terminal of stdin in its hands. Returns 0, or the errno with which it could not start.
        """
        payload = b"".join(
            os.fsencode(key) + b"=" + os.fsencode(value) + b"\0" for key, value in additions.items()
        )
        try:
            os.write(self._go, _LENGTH.pack(len(payload), terminal) + payload)
        except BrokenPipeError:
            return 0  # somebody killed it; its exit status will tell
        finally:
            os.close(self._go)
        answer = os.read(self._told, _ERRNO.size)  # EOF: exec closed it
        os.close(self._told)
        return int(_ERRNO.unpack(answer)[0]) if answer else 0

    def give_up(self) -> None:
        """Let it go away, without having started the command."""
        os.close(self._go)
        os.close(self._told)
        os.waitpid(self.pid, 0)


def _become(command: Sequence[str], go: int, tell: int, parent: int) -> NoReturn:
    """The child's side: wait for "go", and become the command."""
    try:
        os.setpgid(0, 0)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        die_with_parent()
        if os.getppid() != parent:
            os._exit(0)  # it died before we asked
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
        for sig in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(sig, signal.SIG_DFL)
        _exec(command, payload, tell)
    except BaseException as error:
        # Nothing of the parent's may run here: neither its exits nor its messages.
        number = error.errno if isinstance(error, OSError) and error.errno else 1
        os.write(tell, _ERRNO.pack(number))
    finally:
        os._exit(127)


def _exec(command: Sequence[str], payload: bytes, tell: int) -> None:
    environment = dict(os.environb)
    for line in payload.split(b"\0")[:-1]:
        key, _, value = line.partition(b"=")
        environment[key] = value
    os.set_inheritable(tell, False)
    os.execvpe(command[0], list(command), environment)  # noqa: S606 - no shell, on purpose
