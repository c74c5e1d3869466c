"""Ctrl-C on a terminal stops what has started ``etcdsem run``, as without it."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cli.driver import ETCDSEM, Cli, Console, keys
from tests.helpers.slow import sample

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

Start = Callable[..., Cli]
Open = Callable[..., Console]

RUN = " ".join(ETCDSEM) + " run"

PLAIN = "echo up; exec sleep 600"
"""Ctrl-C ends it."""
CATCHES = "trap 'echo caught; exit 5' INT QUIT; echo up; while :; do sleep 0.05; done"
"""It handles Ctrl-C, and ends with a code, like many programs."""

PYTHON = """
import subprocess, sys
for number in range(3):
    subprocess.run(sys.argv[1:])
print("after")
"""
CALL = """
import subprocess, sys
for number in range(3):
    subprocess.call(sys.argv[1:])
print("after")
"""

MAKEFILE = "all: a b c\n\na b c:\n\t@{job}\n"

DRIVERS = ("bash", "dash", "zsh", "make -k", "make -j2", "xargs", "xargs -P", "python", "call")


def driver(kind: str, folder: Path, job: list[str]) -> list[str]:
    """The command line of a program that runs the job three times, and then says "after"."""
    program = kind.split()[0]
    line = shlex.join(job)
    if program in ("python", "call"):
        return [sys.executable, "-c", PYTHON if program == "python" else CALL, *job]
    if shutil.which(program) is None:
        pytest.skip(f"no {program} here")
    if program == "make":
        makefile = folder / "Makefile"
        makefile.write_text(MAKEFILE.format(job=line.replace("$", "$$")))
        return ["sh", "-c", f"{kind} -f {makefile} && echo after"]
    if program == "xargs":
        often = "-P 2 " if kind == "xargs -P" else ""
        return ["sh", "-c", f"printf '1\\n2\\n3\\n' | xargs {often}-n 1 {line} && echo after"]
    return [program, "-c", f"for i in 1 2 3; do {line}; done; echo after"]


@pytest.mark.parametrize(
    ("kind", "script"),
    [
        # bash goes on after a command that has handled the key: "wait and cooperative exit".
        *((kind, PLAIN) for kind in DRIVERS),
        *((kind, CATCHES) for kind in ("dash", "make -k", "python", "call")),
    ],
)
def test_ctrl_c_while_the_command_runs_in_each_driver(
    etcd: EtcdServer, name: str, console: Open, tmp_path: Path, kind: str, script: str
) -> None:
    """No other job starts, and the slot is free."""
    job = [*ETCDSEM, "run", name, "-l", "3", "--", "sh", "-c", script]
    shell = console(etcd, *driver(kind, tmp_path, job))
    shell.expect(r"up\r")
    if kind in ("make -j2", "xargs -P"):
        shell.expect(r"up\r")
    shell.type("\x03")
    code = shell.end()
    assert "up\r" not in shell.seen
    assert "after" not in shell.seen
    assert code != 0
    assert [key for key in keys(etcd, name) if key != "max_leases"] == []


@pytest.mark.parametrize("kind", sample(DRIVERS, 2))
def test_ctrl_c_while_waiting_in_each_driver(
    etcd: EtcdServer, name: str, console: Open, start: Start, tmp_path: Path, kind: str
) -> None:
    """No other job starts to wait, and the queue is empty."""
    start(etcd, "hold", name, "-l", "1").expect("is held", err=True)
    shell = console(etcd, *driver(kind, tmp_path, [*ETCDSEM, "run", name, "--", "echo", "up"]))
    shell.expect("waiting for .*, 1s")
    shell.type("\x03")
    shell.end()
    assert "up\r" not in shell.seen
    assert "after" not in shell.seen
    assert keys(etcd, name).count("leases/00000") == 1
    assert [key for key in keys(etcd, name) if key.startswith("waiters")] == []


COUNTS = (
    "import os, signal, subprocess, sys\n"
    "caught = []\n"
    "signal.signal(signal.SIGINT, lambda *_: caught.append('INT'))\n"
    "signal.signal(signal.SIGQUIT, lambda *_: caught.append('QUIT'))\n"
    "numbers = (signal.SIGINT, signal.SIGQUIT)\n"
    "restore = lambda: [signal.signal(number, signal.SIG_DFL) for number in numbers]\n"
    "code = subprocess.Popen(sys.argv[1:], preexec_fn=restore).wait()\n"
    "print('code', code, 'caught', *caught)\n"
)
"""A driver that counts the keys that reach its process group."""


def counted(console: Open, etcd: EtcdServer, *job: str) -> Console:
    """Open a console with the driver that counts."""
    return console(etcd, sys.executable, "-c", COUNTS, *job)


@pytest.mark.parametrize(
    ("key", "number"), [("\x03", signal.SIGINT), ("\x1c", signal.SIGQUIT)], ids=["INT", "QUIT"]
)
def test_a_key_reaches_the_driver_once(
    etcd: EtcdServer, name: str, console: Open, key: str, number: signal.Signals
) -> None:
    """Whether the command dies of it or handles it, even if it is pressed several times."""
    run = (*ETCDSEM, "run", name, "-l", "1", "--")
    shown = number.name.removeprefix("SIG")
    shell = counted(console, etcd, *run, "sh", "-c", PLAIN)
    shell.expect(r"up\r")
    shell.type(key)
    shell.expect(rf"code -{number:d} caught {shown}\r")
    shell = counted(console, etcd, *run, "sh", "-c", CATCHES)
    shell.expect(r"up\r")
    shell.type(key)
    shell.expect(rf"code 5 caught {shown}\r")
    often = (
        "trap 'echo caught; n=x$n' INT QUIT; echo up; "
        'until [ "$n" = xxx ]; do sleep 0.05; done; exit 0'
    )
    shell = counted(console, etcd, *run, "sh", "-c", often)
    shell.expect(r"up\r")
    for _ in range(3):
        shell.type(key)
        shell.expect(r"caught\r")
    shell.expect(rf"code 0 caught {shown}\r")


def test_what_is_no_key_does_not_reach_the_driver(
    etcd: EtcdServer, name: str, console: Open
) -> None:
    """Signals of `kill`: to the wrapper, to the command, and to the command's group."""
    run = (*ETCDSEM, "run", name, "-l", "1", "--", "sh", "-c")
    trap = "trap 'exit 5' INT; echo up $PPID $$; while :; do sleep 0.05; done"
    for target in (1, 2):
        shell = counted(console, etcd, *run, trap)
        pids = shell.expect(r"up (\d+) (\d+)\r")
        os.kill(int(pids[target]), signal.SIGINT)
        shell.expect(r"code 5 caught\r")
    shell = counted(console, etcd, *run, trap)
    os.killpg(int(shell.expect(r"up \d+ (\d+)\r")[1]), signal.SIGINT)
    shell.expect(r"code 5 caught\r")
    shell = counted(console, etcd, *run, "echo up $PPID; exec sleep 600")
    os.kill(int(shell.expect(r"up (\d+)\r")[1]), signal.SIGINT)
    shell.expect(r"code -2 caught\r")


def test_bash_goes_on_after_a_command_that_handled_the_key(
    etcd: EtcdServer, name: str, console: Open
) -> None:
    """As without the wrapper: only a death by SIGINT tells bash to stop."""
    job = shlex.join([*ETCDSEM, "run", name, "-l", "1", "--", "sh", "-c", CATCHES])
    shell = console(etcd, "bash", "-c", f"for i in 1 2; do {job}; echo code $?; done; echo after")
    for _ in range(2):
        shell.expect(r"up\r")
        shell.type("\x03")
        shell.expect(r"code 5\r")
    shell.expect(r"after\r")
    assert shell.end() == 0


def test_ctrl_c_in_nested_wrappers(etcd: EtcdServer, name: str, console: Open) -> None:
    """Each passes it on, the slots are free, and the driver is told once."""
    inner = (*ETCDSEM, "run", f"{name}-2", "-l", "1", "--")
    outer = (*ETCDSEM, "run", name, "-l", "1", "--")
    shell = counted(console, etcd, *outer, *inner, "sh", "-c", PLAIN)
    shell.expect(r"up\r")
    shell.type("\x03")
    shell.expect(r"code -2 caught INT\r")
    script = f"for i in 1 2 3; do {shlex.join([*inner, 'sh', '-c', PLAIN])}; done; echo after"
    shell = counted(console, etcd, *outer, "bash", "-c", script)
    shell.expect(r"up\r")
    shell.type("\x03")
    assert "up\r" not in shell.expect(r"(?s)(.*)code -2 caught INT\r")[1]
    for one in (name, f"{name}-2"):
        assert [key for key in keys(etcd, one) if key != "max_leases"] == []


def test_an_interactive_loop(etcd: EtcdServer, name: str, console: Open) -> None:
    """A loop typed at a prompt ends, and the shell stays."""
    shell = console(etcd, "bash", "--norc", "--noprofile", "-i")
    shell.type("PS1='%'; stty -echo\n")
    shell.expect("%$|%\r")
    job = shlex.join([*ETCDSEM, "run", name, "-l", "1", "--", "sh", "-c", PLAIN])
    shell.type(f"for i in 1 2 3; do {job}; done; echo never $((40+2))\n")
    shell.expect(r"up\r")
    shell.type("\x03")
    shell.type("echo code $?, still $((40+3))\n")
    assert "up" not in shell.expect(r"(?s)(.*)code 130, still 43")[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_signal_that_ended_the_command_ends_the_wrapper(
    etcd: EtcdServer, name: str, start: Start, number: signal.Signals, tmp_path: Path
) -> None:
    """Its parent sees the death by a signal; everything was released and written before."""
    metrics = tmp_path / "job.prom"
    cli = start(
        etcd, "run", name, "-l", "1", "--metrics-file", str(metrics), "--",
        "sh", "-c", f"kill -{number:d} $$",
    )  # fmt: skip
    assert cli.process.wait(30) == -number
    assert cli.rest() == ""
    assert [key for key in keys(etcd, name) if key != "max_leases"] == []
    assert f" {128 + number}\n" in metrics.read_text()


def test_no_core_is_dumped_twice(etcd: EtcdServer, name: str, start: Start) -> None:
    """The command's death by SIGSEGV may leave a core; the wrapper's leaves none."""
    script = f"ulimit -c 0; exec {RUN} {name} -l 1 -- sh -c 'kill -SEGV $$'"
    done = subprocess.Popen(["sh", "-c", script], env={**os.environ, **etcd.env()})
    _, status = os.waitpid(done.pid, 0)
    done.returncode = status
    assert os.WTERMSIG(status) == signal.SIGSEGV
    assert not os.WCOREDUMP(status)


LINES = (
    ("hold {name}", "place 1"),
    ("drain {name}", "still held"),
    ("status {name} --watch", "SLOT"),
    ("exporter --listen 127.0.0.1:0", "serving"),
    ("bench --seconds 60 --clients 2", "load"),
)


@pytest.mark.parametrize(("line", "shown"), LINES, ids=[line.split()[0] for line, _ in LINES])
def test_other_commands_die_of_the_signal_too(
    fresh_etcd: EtcdServer, name: str, start: Start, line: str, shown: str
) -> None:
    """So a script that loops over them stops as well."""
    start(fresh_etcd, "hold", name, "-l", "1").expect("is held", err=True)
    cli = start(fresh_etcd, *line.format(name=name).split())
    cli.expect(shown, err="status" not in line)
    cli.send(signal.SIGINT)
    assert cli.process.wait(30) == -signal.SIGINT


def test_dev_dies_of_the_signal(etcd_binary: str) -> None:
    """Its own, and the one of its command."""
    env = {**os.environ, "ETCDSEM_ETCD": etcd_binary}
    alone = subprocess.Popen([*ETCDSEM, "dev"], env=env, stdout=subprocess.PIPE, text=True)
    assert alone.stdout is not None
    alone.stdout.readline()
    alone.send_signal(signal.SIGINT)
    alone.communicate(timeout=30)
    assert alone.returncode == -signal.SIGINT
    command = [*ETCDSEM, "dev", "--", "sh", "-c", "kill -TERM $$"]
    assert subprocess.run(command, env=env, timeout=60, check=False).returncode == -signal.SIGTERM


def test_ctrl_c_while_run_starts_its_processes(etcd: EtcdServer, name: str) -> None:
    """Python drops a KeyboardInterrupt in what it calls at a fork; the signal must not be lost."""
    code = (
        "import os, signal\n"
        "os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), signal.SIGINT))\n"
        "from etcdsem.cli.main import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "run", name, "-l", "1", "--", "echo", "ran"],
        env={**os.environ, **etcd.env()},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout) == (-signal.SIGINT, "")
    assert "SIGINT while waiting" in done.stderr
    assert [key for key in keys(etcd, name) if key.startswith("waiters")] == []
