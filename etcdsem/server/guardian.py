"""The guardian: a small process that is etcd's parent. It reads commands from a pipe; when the pipe
closes, it ends etcd and removes the temporary directory.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import IO

_SCRIPT = """
import ctypes, os, shutil, signal, subprocess, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
folder, log, command = sys.argv[1], sys.argv[2], sys.argv[3:]
try:
    libc = ctypes.CDLL(None)
except OSError:
    libc = None
def dies_with_us():
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    if hasattr(libc, "prctl"):
        libc.prctl(1, signal.SIGKILL)
def stop():
    if etcd is None or etcd.poll() is not None:
        return
    etcd.send_signal(signal.SIGCONT)
    etcd.terminate()
    try:
        etcd.wait(3)
    except subprocess.TimeoutExpired:
        etcd.kill()
        etcd.wait()
etcd = None
for line in sys.stdin:
    if line == "start\\n":
        stop()
        with open(log, "ab") as out:
            etcd = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                    preexec_fn=dies_with_us)
        print(etcd.pid, flush=True)
    elif line == "wait\\n":
        print(etcd.wait(), flush=True)
    else:
        code = etcd.poll()
        print("running" if code is None else code, flush=True)
stop()
if folder:
    shutil.rmtree(folder, ignore_errors=True)
"""


class Guardian:
    """A guardian process, and the pipes to it."""

    def __init__(
        self, folder: str | None, log: str, command: Sequence[str], env: Mapping[str, str]
    ) -> None:
        """Start it. `folder` is removed at its end; None: nothing is."""
        self._process = subprocess.Popen(
            [*(sys.executable, "-I", "-S", "-c", _SCRIPT), *(folder or "", log), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
            start_new_session=True,  # Ctrl-C in the terminal must not reach it
        )

    def ask(self, what: str) -> str:
        """Send a command: start, wait or status. Returns the answer; empty if it has died."""
        to, of = self._pipes()
        with contextlib.suppress(BrokenPipeError):
            to.write(f"{what}\n")
            to.flush()
        return of.readline().strip()

    def end(self) -> None:
        """Have it end etcd and clean up, and wait for its end."""
        to, of = self._pipes()
        with contextlib.suppress(OSError):
            to.close()
        self._process.wait()
        of.close()

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        if self._process.stdin is None or self._process.stdout is None:
            raise AssertionError("the guardian was started with pipes")
        return self._process.stdin, self._process.stdout
