"""Signals that were blocked when ``etcdsem`` was started: they end it, and only its command gets
the mask.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.cli.driver import ETCDSEM, Cli, Console, keys
from tests.helpers.slow import sample

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

Start = Callable[..., Cli]
Open = Callable[..., Console]

BLOCKED = (
    sys.executable,
    "-c",
    "import os, signal, sys\n"
    "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})\n"
    "os.execv(sys.argv[1], sys.argv[1:])",
)
MASK = ("grep", "SigBlk", "/proc/self/status")  # not in sh: dash unblocks all signals
SHOWN = r"SigBlk:\s+0*4003$"  # 1, 2 and 15

LINES = (
    ("run {name} -- true", "place 1", -1),
    ("hold {name}", "place 1", -1),
    ("hold other-{name} -l 1", "is held", 0),
    ("drain {name}", "still held", -1),
    ("top --count 0", "NAME", -1),
    ("status {name} --watch", "SLOT", -1),
    ("exporter --listen 127.0.0.1:0", "serving", -1),
    ("bench --seconds 60 --clients 2", "load", -1),
)


@pytest.mark.parametrize("number", sample([signal.SIGTERM, signal.SIGINT, signal.SIGHUP]))
@pytest.mark.parametrize(("line", "shown", "code"), LINES, ids=[line for line, _, _ in LINES])
def test_a_blocked_signal_ends_each_command(
    fresh_etcd: EtcdServer,
    name: str,
    start: Start,
    line: str,
    shown: str,
    code: int,
    number: signal.Signals,
) -> None:
    """As if it had not been blocked."""
    start(fresh_etcd, "hold", name, "-l", "1").expect("is held", err=True)
    cli = start(fresh_etcd, *line.format(name=name).split(), before=BLOCKED)
    cli.expect(shown, err=shown not in ("NAME", "SLOT"))
    cli.send(number)
    assert cli.process.wait(20) == code * number


@pytest.mark.parametrize("number", sample([signal.SIGTERM, signal.SIGINT, signal.SIGHUP]))
def test_dev_with_blocked_signals(
    etcd_binary: str, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """It ends; its command has the mask."""
    monkeypatch.setenv("ETCDSEM_ETCD", etcd_binary)
    process = subprocess.Popen([*BLOCKED, *ETCDSEM, "dev"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("export")
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode == -number
    shown = subprocess.check_output([*BLOCKED, *ETCDSEM, "dev", "--", *MASK], text=True)
    assert re.match(SHOWN, shown)


def test_the_command_has_the_mask(etcd: EtcdServer, name: str, start: Start) -> None:
    """What was blocked for the wrapper is blocked for the command, and nothing else is."""
    cli = start(etcd, "run", name, "-l", "1", "--", *MASK, before=BLOCKED)
    cli.expect(SHOWN)
    assert cli.end() == 0
    cli = start(etcd, "run", name, "-l", "1", "--", *MASK)
    cli.expect(r"SigBlk:\s+0+$")
    assert cli.end() == 0


def test_signals_are_forwarded_although_blocked(etcd: EtcdServer, name: str, start: Start) -> None:
    """They reach a command that unblocks them."""
    script = (
        "import signal, time\n"
        "def end(*_):\n"
        "    print('got it', flush=True)\n"
        "    raise SystemExit\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "signal.pthread_sigmask(signal.SIG_SETMASK, ())\n"
        "print('up', flush=True)\n"
        "time.sleep(60)\n"
    )
    command = ("run", name, "-l", "1", "--", sys.executable, "-c", script)
    cli = start(etcd, *command, before=BLOCKED)
    cli.expect("up")
    cli.send(signal.SIGTERM)
    cli.expect("got it")
    assert cli.end() == 0
    assert "leases/00000" not in keys(etcd, name)


def test_top_on_a_terminal(etcd: EtcdServer, console: Open) -> None:
    """Its view ends with a blocked signal, too."""
    shell = console(etcd, *BLOCKED, *ETCDSEM, "top")
    shell.expect("NAME|no semaphores")
    os.kill(shell.process.pid, signal.SIGTERM)
    assert shell.end() == 128 + signal.SIGTERM
