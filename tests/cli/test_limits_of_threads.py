"""At a limit on threads and processes, whatever cannot be started: a code and one line at once, and
what was granted is given back.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.cli.driver import Cli, keys

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

Start = Callable[..., Cli]

NO_THREAD = """
import sys, threading
started, first = 0, int(sys.argv.pop(1))
def limited(name):
    start = getattr(threading, name, None)
    def one(*args, **kwargs):
        global started
        started += 1
        if started >= first:
            raise RuntimeError("can't start new thread")
        return start(*args, **kwargs)
    if start is not None:
        setattr(threading, name, one)
limited("_start_joinable_thread" if hasattr(threading, "_start_joinable_thread") else
        "_start_new_thread")
from etcdsem.cli.main import main
main()
"""
"""The start of this thread, counted from 1, and of all after it fails."""


def limited(
    etcd: EtcdServer, first: int, *arguments: str, seconds: float = 20.0
) -> subprocess.CompletedProcess[str]:
    """``etcdsem``, to its end."""
    return subprocess.run(
        [sys.executable, "-c", NO_THREAD, str(first), *arguments],
        env={**os.environ, **etcd.env()},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def is_told(done: subprocess.CompletedProcess[str], code: int = 69) -> None:
    """One line says that no thread can be started."""
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("etcdsem: ")
    assert done.stderr.count("\n") == 1
    assert "cannot start a thread" in done.stderr


@pytest.mark.parametrize("first", [1, 2])
@pytest.mark.parametrize("what", ["run", "run several", "hold"])
def test_no_lease_without_threads(etcd: EtcdServer, name: str, first: int, what: str) -> None:
    """The worker's, and the one that refreshes: no command starts, and no key stays."""
    line = {
        "run": ("run", name, "-l", "1", "--", "echo", "ran"),
        "run several": ("run", f"{name}=1", f"{name}-2=1", "--", "echo", "ran"),
        "hold": ("hold", name, "-l", "1"),
    }[what]
    done = limited(etcd, first, *line)
    is_told(done)
    assert done.stdout == ""
    assert [key for key in keys(etcd, name) if key != "max_leases"] == []


def test_a_lease_that_cannot_be_refreshed_for_want_of_a_thread(etcd: EtcdServer, name: str) -> None:
    """The thread of the renewals: the command ends before the lease does; the line says why."""
    is_told(limited(etcd, 3, "run", name, "-l", "1", "-t", "3s", "--", "sleep", "600"), 70)
    assert [key for key in keys(etcd, name) if key != "max_leases"] == []


@pytest.mark.parametrize("first", [4, 5, 6])
def test_the_release_needs_no_thread(etcd: EtcdServer, name: str, first: int) -> None:
    """The command's code, silence, and the slot is free."""
    done = limited(etcd, first, "run", name, "-l", "1", "-t", "60s", "--", "sh", "-c", "exit 7")
    assert (done.returncode, done.stderr) == (7, "")
    assert [key for key in keys(etcd, name) if key != "max_leases"] == []


@pytest.mark.parametrize("first", [1, 2])
@pytest.mark.parametrize("what", ["run", "run --rate", "hold", "drain"])
def test_no_wait_without_threads(
    etcd: EtcdServer, name: str, start: Start, first: int, what: str
) -> None:
    """It does not wait for what it could never learn, and leaves the queue."""
    line: tuple[str, ...]
    if what == "run --rate":
        used = limited(etcd, 99, "run", name, "--rate", "1/10m", "--", "true")
        assert used.returncode == 0, used.stderr
        line = ("run", name, "--rate", "1/10m", "--", "echo", "ran")
    else:
        start(etcd, "hold", name, "-l", "1").expect("is held", err=True)
        line = (what, name, "--", "echo", "ran") if what == "run" else (what, name)
    done = limited(etcd, first, *line)
    is_told(done)
    assert done.stdout == ""
    assert [key for key in keys(etcd, name) if key.startswith("waiters")] == []


def test_a_wait_without_progress_is_not_silent(etcd: EtcdServer, name: str, start: Start) -> None:
    """The thread that would show it cannot be started: one line says so, and the wait goes on."""
    start(etcd, "hold", name, "-l", "1").expect("is held", err=True)
    refused = limited(etcd, 4, "run", name, "--", "true")  # the call of `on_wait`
    is_told(refused)
    done = limited(etcd, 5, "run", name, "-w", "2s", "--", "true")
    assert done.returncode == 75
    assert f"waiting for {name}, without showing progress: can't start new thread" in done.stderr


@pytest.mark.parametrize(
    "line",
    [
        "hold {name} -l 1 --ready-port 127.0.0.1:0",
        "exporter --listen 127.0.0.1:0",
        "top --count 0",
        "status {name} --watch",
        "bench --seconds 5 --clients 2",
        "drain {name}",
    ],
)
def test_other_commands_without_threads(
    etcd: EtcdServer, name: str, start: Start, line: str
) -> None:
    """A code and a line instead of a traceback."""
    start(etcd, "hold", name, "-l", "1").expect("is held", err=True)
    done = limited(etcd, 1, *line.format(name=name).split())
    assert done.returncode == 69, done.stderr
    assert "Traceback" not in done.stderr
    assert "cannot start a thread" in done.stderr


@pytest.mark.parametrize("which", ["etcd", "command"])
def test_dev_without_processes(etcd_binary: str, which: str) -> None:
    """Neither its etcd nor its command can be started."""
    code = (
        "import errno, os, subprocess, sys\n"
        "genuine, which = subprocess.Popen, sys.argv.pop(1)\n"
        "class Popen(genuine):\n"
        "    def __init__(self, command, *args, **kwargs):\n"
        "        if (which == 'etcd' and '-c' in command) or command[0] == 'true':\n"
        "            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))\n"
        "        super().__init__(command, *args, **kwargs)\n"
        "subprocess.Popen = Popen\n"
        "from etcdsem.cli.main import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, which, "dev", "--", "true"],
        env={**os.environ, "ETCDSEM_ETCD": etcd_binary},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 69, done.stderr
    assert done.stderr.startswith("etcdsem: cannot start a process")
    assert done.stderr.count("\n") == 1
