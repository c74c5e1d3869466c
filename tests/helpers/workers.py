"""Python processes that the tests start, watch and kill."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer


class Worker:
    """A Python process that runs `code`; it reports on its standard output."""

    def __init__(self, etcd: EtcdServer, code: str, *arguments: object, first: str = "") -> None:
        prelude = (
            f"{first}\n"
            "import sys, os, time, signal, threading\n"
            "import etcdsem\n"
            "from etcdsem import Semaphore\n"
            # In one write: with PYTHONUNBUFFERED print() makes two, and forked processes mix them.
            "def say(*words):\n"
            "    sys.stdout.write(' '.join(map(str, words)) + '\\n')\n"
            "    sys.stdout.flush()\n"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", prelude + code, *map(str, arguments)],
            env={**os.environ, **etcd.env()},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def out(self) -> IO[str]:
        """Its standard output."""
        assert self.process.stdout is not None
        return self.process.stdout

    def expect(self, word: str) -> list[str]:
        """Wait for a line that begins with `word`, and return its words."""
        for line in self.out:
            if line.split()[:1] == [word]:
                return line.split()
        raise AssertionError(f"it ended with {self.process.wait()} and never said {word!r}")

    def tell(self, line: str = "") -> None:
        """Write a line to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def end(self) -> int:
        """Wait for its end."""
        return self.process.wait(30)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()
