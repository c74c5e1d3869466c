"""The real command line as a subprocess, plain or on a terminal, and what to wait for."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import pty
import queue
import re
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO, TYPE_CHECKING
from unittest import mock

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

ETCDSEM = (sys.executable, "-m", "etcdsem")

BEATING = (
    "import os, signal, sys, time\n"
    "path, *ignored = sys.argv[1:]\n"
    "for one in ignored: signal.signal(getattr(signal, one), signal.SIG_IGN)\n"
    "if '--child' not in ignored and os.environ.get('CHILD') and os.fork() == 0: path += '.child'\n"
    "first = True\n"
    "while True:\n"
    "    with open(path + '.new', 'w') as file: file.write(str(time.monotonic()))\n"
    "    os.replace(path + '.new', path)\n"
    "    if first: os.write(1, b'beating %d\\n' % os.getpid())\n"
    "    first = False\n"
    "    time.sleep(0.01)\n"
)
"""A command that writes down until when it lived; a child of its own too, if CHILD is set."""


def beating(path: object, *ignored: str) -> list[str]:
    """The command line of a command that beats, and ignores these signals."""
    return [sys.executable, "-c", BEATING, str(path), *ignored]


def last_beat(path: object) -> float:
    """Until when it lived, by this machine's monotonic clock."""
    with open(str(path)) as file:
        return float(file.read())


def alive(pid: int) -> bool:
    """Does a process run (a zombie doesn't)?"""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def state(pid: int) -> str:
    """A process's state as ps shows it: R, S, T (stopped), ..."""
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()[0]


def as_shown(code: int) -> int:
    """An exit code as a shell shows it: 128+N if signal N ended the process."""
    return code if code >= 0 else 128 - code


def keys(etcd: EtcdServer, name: str) -> list[str]:
    """The semaphore's keys in etcd, without its base."""
    base = f"/etcdsem/{name}/"
    listed = etcdctl(etcd, "get", "--prefix", "--keys-only", base)
    return [line.removeprefix(base) for line in listed.split()]


def etcdctl(etcd: EtcdServer, *arguments: str) -> str:
    """What etcdctl prints."""
    return etcd.etcdctl(*arguments)


def records(lines: Sequence[str]) -> list[str]:
    """The rows of a drawn table, each with its further lines, which are indented."""
    rows: list[str] = []
    for line in lines:
        if line.startswith("  ") and rows:
            rows[-1] += line
        else:
            rows.append(line)
    return rows


class Cli:
    """``etcdsem <arguments>``, running."""

    def __init__(
        self,
        etcd: EtcdServer,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        before: Sequence[str] = (),
    ) -> None:
        self.process = subprocess.Popen(
            [*before, *ETCDSEM, *arguments],
            env={**os.environ, **etcd.env(), **(env or {})},
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.out = self._lines(self.process.stdout)
        self.err = self._lines(self.process.stderr)
        self.said: list[str] = []

    @staticmethod
    def _lines(stream: IO[bytes] | None) -> queue.Queue[str | None]:
        lines: queue.Queue[str | None] = queue.Queue()

        def read() -> None:
            assert stream is not None
            for line in stream:
                lines.put(line.decode("utf-8", "replace").rstrip("\n"))
            lines.put(None)

        threading.Thread(target=read, daemon=True).start()
        return lines

    @property
    def pid(self) -> int:
        return self.process.pid

    def expect(self, pattern: str, *, err: bool = False, seconds: float = 30.0) -> re.Match[str]:
        """Wait for a line that matches."""
        until = time.monotonic() + seconds
        while True:
            line = (self.err if err else self.out).get(timeout=max(0.01, until - time.monotonic()))
            assert line is not None, f"it ended and never said {pattern!r}: {self.said}"
            self.said.append(line)
            if (found := re.search(pattern, line)) is not None:
                return found

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self, seconds: float = 30.0) -> int:
        """Wait for its end; gives the exit code as a shell shows it."""
        return as_shown(self.process.wait(seconds))

    def rest(self, *, err: bool = True) -> str:
        """All that is still to be read, after its end."""
        lines = []
        while (line := (self.err if err else self.out).get(timeout=10)) is not None:
            lines.append(line)
        return "\n".join(lines)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()


def _without_size() -> dict[str, str]:
    """Our environment without another terminal's size, which pytest-xdist tells its workers."""
    return {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}


class Console:
    """A program on a terminal of its own, in whose session it leads."""

    def __init__(
        self,
        etcd: EtcdServer,
        *command: str,
        env: Mapping[str, str] | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        self._master, slave = pty.openpty()
        if size is not None:
            self.resize(*size)
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *command],
            env={**_without_size(), **etcd.env(), "TERM": "xterm", "PS1": "$ ", **(env or {})},
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        os.close(slave)
        self.seen = ""

    def expect(self, pattern: str, seconds: float = 30.0) -> re.Match[str]:
        """Wait until what was printed matches; what was matched is taken away."""
        until = time.monotonic() + seconds
        while (found := re.search(pattern, self.seen)) is None:
            left = until - time.monotonic()
            ready, _, _ = select.select([self._master], [], [], max(0.0, left))
            assert ready, f"it never showed {pattern!r}: {self.seen!r}"
            try:
                self.seen += os.read(self._master, 4096).decode("utf-8", "replace")
            except OSError:
                raise AssertionError(f"it ended before {pattern!r}: {self.seen!r}") from None
        self.seen = self.seen[found.end() :]
        return found

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def resize(self, columns: int, lines: int) -> None:
        """Give the terminal another size; the kernel tells who is in the foreground."""
        termios.tcsetwinsize(self._master, (lines, columns))

    def settings(self) -> list[object]:
        """How the terminal is set: echo, line by line, and so on."""
        return termios.tcgetattr(self._master)

    def foreground(self) -> int:
        """The process group that has the terminal."""
        return os.tcgetpgrp(self._master)

    def end(self, seconds: float = 30.0) -> int:
        """Wait for its end, reading on; gives the exit code as a shell shows it."""
        until = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < until, f"it did not end: {self.seen!r}"
            if select.select([self._master], [], [], 0.02)[0]:
                try:
                    self.seen += os.read(self._master, 4096).decode("utf-8", "replace")
                except OSError:
                    break
        return as_shown(self.process.wait(seconds))

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)


def ran(
    etcd: EtcdServer | None, *arguments: str, env: Mapping[str, str] | None = None, **options: bytes
) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    done = subprocess.run(
        [*ETCDSEM, *arguments],
        env={**os.environ, **(etcd.env() if etcd else {}), **(env or {})},
        capture_output=True,
        timeout=60,
        check=False,
        input=options.get("input", b""),
    )
    return subprocess.CompletedProcess(
        done.args, as_shown(done.returncode), done.stdout.decode(), done.stderr.decode()
    )


def ran_here(
    etcd: EtcdServer | None, *arguments: str, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run it in this process, which saves the time to start Python.

    Only for help and for what is refused early: starting a process or handling signals is an error.
    """
    from etcdsem.cli.main import main

    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    logger = logging.getLogger("etcdsem")
    handlers, propagate = logger.handlers[:], logger.propagate
    code: object = None
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(sys, "argv", ["etcdsem", *arguments]))
        stack.enter_context(
            mock.patch.dict(os.environ, {**(etcd.env() if etcd else {}), **(env or {})})
        )
        for owner, name in ((os, "fork"), (subprocess, "Popen"), (signal, "signal")):
            stack.enter_context(mock.patch.object(owner, name, _not_here))
        stack.enter_context(mock.patch("etcdsem.cli.main.raise_on_sigint"))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        try:
            main()
        except SystemExit as end:
            code = end.code
        finally:
            logger.handlers[:], logger.propagate = handlers, propagate
    assert isinstance(code, int)
    texts = []
    for stream in (out, err):
        stream.flush()
        stream.seek(0)
        texts.append(stream.read())
    return subprocess.CompletedProcess(list(arguments), code, *texts)


def _not_here(*arguments: object, **options: object) -> None:
    raise AssertionError("it was not refused: it starts processes, or handles signals")
