"""``etcdsem run`` on a terminal: who has it, Ctrl-C, Ctrl-Z, and what is drawn."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.cli.driver import ETCDSEM, Cli, Console, keys

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

Start = Callable[..., Cli]
Open = Callable[..., Console]

RUN = " ".join(ETCDSEM) + " run"


def test_the_terminal_is_the_commands(etcd: EtcdServer, name: str, console: Open) -> None:
    """It has it in the foreground, and can read from it."""
    script = (
        'test -t 0 -a -t 1 -a -t 2 && echo "tty $(ps -o tpgid= -p $$) $$"; '
        'read line; echo "got $line"; exit 6'
    )
    shell = console(etcd, *ETCDSEM, "run", name, "-l", "1", "--", "sh", "-c", script)
    found = shell.expect(r"tty +(\d+) (\d+)")
    assert found[1] == found[2]
    shell.type("hello\n")
    shell.expect("got hello")
    assert shell.end() == 6


def test_ctrl_c_goes_to_the_command(etcd: EtcdServer, name: str, console: Open) -> None:
    """It alone decides what that means."""
    script = "trap 'echo caught; exit 5' INT; echo ready; while :; do sleep 0.05; done"
    shell = console(etcd, *ETCDSEM, "run", name, "-l", "1", "--", "sh", "-c", script)
    shell.expect("ready")
    shell.type("\x03")
    shell.expect("caught")
    assert shell.end() == 5


def test_ctrl_c_while_waiting_leaves_the_line(
    etcd: EtcdServer, name: str, console: Open, start: Start
) -> None:
    """The line is drawn on the terminal, and wiped when it is over."""
    holder = start(
        etcd, "run", name, "-l", "1", "--", "sh", "-c", "echo held; read x", stdin=subprocess.PIPE
    )
    holder.expect("held")
    shell = console(etcd, *ETCDSEM, "run", name, "--", "true")
    shell.expect(
        rf"\r\x1b\[Ketcdsem: waiting for {name}: place 1 of 1 in the queue, 1 of 1 held, 0s"
    )
    shell.expect("held, 1s")
    shell.type("\x03")
    shell.expect(r"\r\x1b\[K")
    assert shell.end() == 130
    assert [key for key in keys(etcd, name) if key.startswith("waiters")] == []


def test_waiting_in_the_background(
    etcd: EtcdServer, name: str, console: Open, start: Start
) -> None:
    """``run ... &``: a line as in a log. One that is drawn again would spoil the shell's lines."""
    holder = start(
        etcd,
        "run",
        name,
        "-l",
        "1",
        "-t",
        "3s",
        "--",
        "sh",
        "-c",
        "echo held; read x",
        stdin=subprocess.PIPE,
    )
    holder.expect("held")
    shell = console(etcd, "bash", "-c", f"set -m; {RUN} {name} -- echo ran & wait")
    shell.expect(
        rf"^(?!.*\x1b\[K).*etcdsem: waiting for {name}: place 1 of 1 in the queue, 1 of 1 held\r"
    )
    holder.kill()
    shell.expect(r"^\nran\r")
    assert shell.end() == 0


def test_a_narrow_terminal(etcd: EtcdServer, name: str, console: Open, start: Start) -> None:
    """The line fits, so that it can be drawn again in its place; the place in it is told."""
    holder = start(
        etcd, "run", name, "-l", "1", "--", "sh", "-c", "echo held; read x", stdin=subprocess.PIPE
    )
    holder.expect("held")
    shell = console(etcd, *ETCDSEM, "run", name, "--", "true", env={"COLUMNS": "40"})
    shown = shell.expect(r"\x1b\[K(etcdsem:[^\r\n]*1 of 1[^\r\n]*s)\r")[1]
    assert len(shown) <= 39


def test_the_line_fits_where_stdout_goes_elsewhere(
    etcd: EtcdServer, name: str, console: Open, start: Start
) -> None:
    """The terminal that counts is stderr's."""
    start(etcd, "hold", name, "-l", "1").expect("is held", err=True)
    line = f"{' '.join(ETCDSEM)} run {name} -- true >/dev/null"
    shell = console(etcd, "sh", "-c", line, size=(30, 10))
    assert len(shell.expect(r"\x1b\[K([^\r\n]*1 of 1[^\r\n]*s)\r")[1]) <= 29
    shell.resize(120, 10)
    shell.expect(rf"waiting for {name}: place 1 of 1 in the queue, 1 of 1 held, \d+s")


@pytest.mark.parametrize("width", range(0, 130, 3))
def test_the_line_at_any_width(width: int) -> None:
    """What counts most goes last."""
    from etcdsem.cli.progress import Progress

    seen = Progress(
        "payments-api.production", "place 12 of 340 in the queue", "12 of 340", "5 of 5 held"
    )
    line = seen.fitting(width, "3m07s")
    assert len(line) <= width
    if width >= 16:
        assert "12 of 340" in line
        assert line.endswith("3m07s")
    if width >= 30:
        assert "paym" in line
    if width >= 100:
        assert line == f"etcdsem: {seen.whole}, 3m07s"
    silent = Progress("payments-api.production", "etcd is not responding")
    assert len(silent.fitting(width, "3m07s")) <= width


@pytest.fixture
def bash(etcd: EtcdServer, console: Open) -> Console:
    """An interactive shell with job control."""
    shell = console(etcd, "bash", "--norc", "--noprofile", "-i")
    shell.type("PS1='%'; stty -echo\n")
    shell.expect("%$|%\r")
    return shell


# Not sh: dash vforks, and a stop between its child's vfork and exec leaves it hanging, with or
# without a wrapper.
LOOP = "'echo up; i=0; while :; do i=$((i+1)); echo beat $i; sleep 0.1; done'"


def test_ctrl_z_and_fg(name: str, bash: Console) -> None:
    """The shell sees the job stop, gets the terminal back, and fg continues it."""
    bash.type(f"{RUN} {name} -l 1 -- bash -c {LOOP}\n")
    bash.expect("beat 2")
    bash.type("\x1a")
    bash.expect("Stopped")
    bash.type("echo still $((40+2)) here\n")
    bash.expect("still 42 here")
    bash.type("fg\n")
    bash.expect(r"beat \d+")
    bash.expect(r"beat \d+")
    bash.type("\x03")
    bash.type("echo code $?\n")
    bash.expect("code 130")


def test_bg_and_fg(name: str, bash: Console) -> None:
    """In the background it runs, and can be brought back."""
    bash.type(f"{RUN} {name} -l 1 -- bash -c {LOOP}\n")
    bash.expect("beat 2")
    bash.type("\x1a")
    bash.expect("Stopped")
    bash.type("bg\n")
    bash.expect(r"beat \d+")
    bash.expect(r"beat \d+")
    bash.type("fg\n")
    bash.expect(r"beat \d+")
    bash.type("\x03")
    bash.type("echo code $?\n")
    bash.expect("code 130")


def test_a_background_job_that_reads_is_stopped_until_fg(name: str, bash: Console) -> None:
    bash.type(f"{RUN} {name} -l 1 -- sh -c 'read x; echo got $x' &\n")
    bash.type("while ! jobs | grep Stopped; do sleep 0.1; done\n")
    bash.expect("Stopped")
    bash.type("fg\n")
    bash.type("word\n")
    bash.expect("got word")
    bash.type("echo code $?\n")
    bash.expect("code 0")


def test_in_a_pipeline(name: str, bash: Console) -> None:
    """The command gets the terminal when it asks; the others keep theirs; Ctrl-C ends all."""
    bash.type(f"{RUN} {name} -l 1 -- sh -c 'read x </dev/tty; echo got $x' | cat\n")
    bash.type("word\n")
    bash.expect("got word")
    bash.type(f"{RUN} {name} -- bash -c {LOOP} | cat\n")
    bash.expect("beat 2")
    bash.type("\x03")
    bash.type("echo codes ${PIPESTATUS[*]}\n")
    bash.expect("codes 130 130")


@pytest.mark.slow
def test_ctrl_z_in_a_pipeline(name: str, bash: Console) -> None:
    bash.type(f"{RUN} {name} -l 1 -- bash -c {LOOP} | cat\n")
    bash.expect("beat 2")
    bash.type("\x1a")
    bash.expect("Stopped")
    bash.type("fg\n")
    bash.expect(r"beat \d+")
    bash.expect(r"beat \d+")
    bash.type("\x03")
    bash.type("echo code $?\n")
    bash.expect("code 130")


def test_the_terminal_comes_back_to_a_script(etcd: EtcdServer, name: str, console: Open) -> None:
    """A script without job control can read after the command has ended."""
    script = f"{RUN} {name} -l 1 -- sh -c 'read a; echo first $a'; read b; echo second $b"
    shell = console(etcd, "sh", "-c", script)
    shell.type("one\n")
    shell.expect("first one")
    shell.type("two\n")
    shell.expect("second two")
    assert shell.end() == 0


def test_ctrl_z_where_nobody_could_continue_it(etcd: EtcdServer, name: str, console: Open) -> None:
    """As a session's leader, as in a container: it goes on."""
    shell = console(etcd, *ETCDSEM, "run", name, "-l", "1", "--", "bash", "-c", LOOP.strip("'"))
    shell.expect("beat 2")
    shell.type("\x1a")
    shell.expect(r"beat \d+")
    shell.expect(r"beat \d+")
    shell.expect(r"beat \d+")
    shell.type("\x03")
    assert shell.end() == 130
