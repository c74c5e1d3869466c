"""``etcdsem run`` while its command runs: signals, lost leases, its own death."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cli.driver import Cli, alive, beating, etcdctl, keys, last_beat, ran, ran_here, state
from tests.helpers.slow import sample
from tests.helpers.waiting import eventually

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

Start = Callable[..., Cli]

NOW = (sys.executable, "-c", "import time; print(time.monotonic())")

TRAPS = (
    'for s in INT TERM HUP QUIT USR1 USR2; do trap "echo got $s" $s; done; '
    "echo ready; while :; do sleep 0.05; done"
)


def holders(etcd: EtcdServer, name: str) -> list[str]:
    return [key for key in keys(etcd, name) if key.startswith("leases/")]


# ---------------------------------------------------------------- signals


def test_signals_go_to_the_command(etcd: EtcdServer, name: str, start: Start) -> None:
    """All of them, each time; the command decides, and keeps its lease if it goes on."""
    cli = start(etcd, "run", name, "-l", "1", "--", "bash", "-c", TRAPS)
    cli.expect("ready")
    for number in ("INT", "TERM", "HUP", "QUIT", "USR1", "USR2", "TERM"):
        cli.send(signal.Signals[f"SIG{number}"])
        cli.expect(f"got {number}")
    assert holders(etcd, name) == ["leases/00000"]
    assert cli.process.poll() is None


def test_signals_go_to_the_whole_group(etcd: EtcdServer, name: str, start: Start) -> None:
    """What the command started hears them too."""
    cli = start(etcd, "run", name, "-l", "1", "--", "sh", "-c", "sleep 600 & echo $!; wait")
    child = int(cli.expect(r"^(\d+)$")[1])
    cli.send(signal.SIGTERM)
    assert cli.end() == 128 + signal.SIGTERM
    eventually(lambda: not alive(child))
    assert holders(etcd, name) == []


def test_what_the_command_leaves_behind_is_told(etcd: EtcdServer, name: str, start: Start) -> None:
    """It is not waited for and not killed, but it has no lease any more."""
    script = "sleep 600 >/dev/null 2>&1 & echo $!"
    cli = start(etcd, "run", name, "-l", "1", "--", "sh", "-c", script)
    child = int(cli.expect(r"^(\d+)$")[1])
    assert cli.end() == 0
    assert "without a lease" in cli.rest()
    assert alive(child)
    os.kill(child, signal.SIGKILL)


def test_stopped_from_outside_and_continued(etcd: EtcdServer, name: str, start: Start) -> None:
    """SIGTSTP to the wrapper stops the command with it, SIGCONT continues both."""
    cli = start(etcd, "run", name, "-l", "1", "--", *beating("/dev/null/no"), before=())
    assert cli.end() == 1  # (the command could not write there)
    script = "echo pid $$; while :; do sleep 0.05; done"
    cli = start(etcd, "run", name, "-l", "1", "--", "sh", "-c", script, before=("setsid", "-w"))
    child = int(cli.expect(r"pid (\d+)")[1])
    wrapper = int(subprocess.check_output(["ps", "-o", "ppid=", str(child)]))
    os.kill(wrapper, signal.SIGTSTP)  # an orphaned group: nobody could continue us
    eventually(lambda: state(child) in "SR")
    os.kill(wrapper, signal.SIGTERM)
    assert cli.end() == signal.SIGTERM  # so setsid tells that a signal ended its program


# ---------------------------------------------------------------- the lease is lost


def test_a_command_may_outlast_its_lease_timeout(etcd: EtcdServer, name: str, start: Start) -> None:
    """Its lease is refreshed meanwhile, and the watchdog hears of it: one grant throughout."""
    script = 'echo "$ETCDSEM_FENCING_TOKEN"; sleep 3; echo slept; read go; exit 5'
    command = ("run", name, "-l", "1", "-t", "2", "--", "sh", "-c", script)
    cli = start(etcd, *command, stdin=subprocess.PIPE)
    token = int(cli.expect(r"^(\d+)$")[1])
    key = f"/etcdsem/{name}/leases/00000"
    cli.expect("slept")
    held = json.loads(etcdctl(etcd, "get", key, "-w", "json"))["kvs"]
    assert [one["mod_revision"] for one in held] == [token]
    assert cli.process.stdin is not None
    cli.process.stdin.close()
    assert cli.end() == 5
    assert cli.rest() == ""


def test_evicted_is_70(etcd: EtcdServer, name: str, start: Start) -> None:
    """SIGTERM at once; one line says why."""
    cli = start(etcd, "run", name, "-l", "1", "--", "sh", "-c", "echo held; exec sleep 600")
    cli.expect("held")
    assert ran(etcd, "evict", name, "--slot", "0").returncode == 0
    assert cli.end(10) == 70
    said = cli.rest()
    assert said.count("etcdsem:") == 1
    assert name in said


def test_lease_revoked_by_etcdctl_is_70(etcd: EtcdServer, name: str, start: Start) -> None:
    script = "echo lease $ETCDSEM_LEASE_ID; exec sleep 600"
    cli = start(etcd, "run", name, "-l", "1", "--", "sh", "-c", script)
    etcdctl(etcd, "lease", "revoke", cli.expect(r"lease (\w+)")[1])
    assert cli.end(10) == 70


def test_evicted_and_deaf_is_killed(
    etcd: EtcdServer, name: str, start: Start, tmp_path: Path
) -> None:
    """A command that ignores SIGTERM is killed after --kill-after, with what it started."""
    beat = tmp_path / "beat"
    command = beating(beat, "SIGTERM")
    cli = start(
        etcd, "run", name, "-l", "1", "--kill-after", "300ms", "--", *command, env={"CHILD": "1"}
    )
    pids = [int(cli.expect(r"beating (\d+)")[1]) for _ in range(2)]
    assert ran(etcd, "evict", name, "--slot", "0").returncode == 0
    cli.expect("evict|revoked|lost", err=True)
    told = time.monotonic()
    assert cli.end(10) == 70
    assert last_beat(beat) - told < 1.5
    eventually(lambda: not any(map(alive, pids)))


def test_a_child_that_outlives_the_command_after_a_loss_is_killed(
    etcd: EtcdServer, name: str, start: Start, tmp_path: Path
) -> None:
    """The command obeys SIGTERM, its child does not."""
    script = f"{shlex.join(beating(tmp_path / 'beat', 'SIGTERM'))} & wait"
    cli = start(
        etcd, "run", name, "-l", "1", "--kill-after", "300ms", "--", "sh", "-c",
        script,
    )  # fmt: skip
    child = int(cli.expect(r"beating (\d+)")[1])
    assert ran(etcd, "evict", name, "--slot", "0").returncode == 0
    assert cli.end(10) == 70
    eventually(lambda: not alive(child))


@pytest.mark.slow
def test_deaf_command_is_killed_before_the_deadline(
    fresh_etcd: EtcdServer, name: str, start: Start, tmp_path: Path
) -> None:
    """Etcd goes silent: SIGTERM, then SIGKILL, both before the lease could end."""
    beat = tmp_path / "beat"
    command = beating(beat, "SIGTERM")
    cli = start(fresh_etcd, "run", name, "-l", "1", "-t", "4", "--", *command, env={"CHILD": "1"})
    pids = [int(cli.expect(r"beating (\d+)")[1]) for _ in range(2)]
    fresh_etcd.pause()
    silent = time.monotonic()  # all that was answered was sent before
    cli.expect("cannot be refreshed", err=True)
    assert last_beat(beat) - silent < 4
    assert cli.end(10) == 70
    assert not any(map(alive, pids))
    assert last_beat(beat) - silent < 4
    assert last_beat(f"{beat}.child") - silent < 4


@pytest.mark.slow
def test_a_pause_shorter_than_the_deadline_is_no_loss(
    fresh_etcd: EtcdServer, name: str, start: Start
) -> None:
    script = "echo held; read x; exit 5"
    cli = start(
        fresh_etcd, "run", name, "-l", "1", "-t", "10", "--", "sh", "-c", script,
        stdin=subprocess.PIPE,
    )  # fmt: skip
    cli.expect("held")
    fresh_etcd.pause()
    time.sleep(2)
    fresh_etcd.resume()
    time.sleep(1)
    assert cli.process.stdin is not None
    cli.process.stdin.close()
    assert cli.end() == 5
    assert cli.rest() == ""


def test_warn_lets_the_command_go_on(etcd: EtcdServer, name: str, start: Start) -> None:
    """With --on-lost warn a loud line, and the command's own code."""
    script = "echo held; read x; exit 5"
    cli = start(
        etcd, "run", name, "-l", "1", "--on-lost", "warn", "--", "sh", "-c", script,
        stdin=subprocess.PIPE,
    )  # fmt: skip
    cli.expect("held")
    assert ran(etcd, "evict", name, "--slot", "0").returncode == 0
    cli.expect("WARNING.*WITHOUT", err=True)
    assert cli.process.stdin is not None
    cli.process.stdin.close()
    assert cli.end() == 5


# ---------------------------------------------------------------- the wrapper dies, or stands still


@pytest.mark.parametrize("on_lost", sample(["terminate", "warn"]))
def test_killed_wrapper_leaves_no_command(
    etcd: EtcdServer, name: str, start: Start, tmp_path: Path, on_lost: str
) -> None:
    """SIGKILL to the wrapper ends the command and its child at once, deaf or not."""
    command = beating(tmp_path / "beat", "SIGTERM", "SIGHUP", "SIGINT")
    cli = start(
        etcd, "run", name, "-l", "1", "-t", "60", "--on-lost", on_lost, "--", *command,
        env={"CHILD": "1"},
    )  # fmt: skip
    pids = [int(cli.expect(r"beating (\d+)")[1]) for _ in range(2)]
    cli.send(signal.SIGKILL)
    cli.end()
    eventually(lambda: not any(map(alive, pids)), 3)
    eventually(lambda: not processes_with(name), 3)


def processes_with(word: str) -> list[str]:
    """The command lines of living processes that contain this."""
    found = []
    for entry in os.listdir("/proc"):
        try:
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                line = file.read().replace(b"\0", b" ").decode("utf-8", "replace")
        except (OSError, ValueError):
            continue
        if word in line:
            found.append(line)
    return found


def test_killed_while_waiting_leaves_nothing(etcd: EtcdServer, name: str, start: Start) -> None:
    """Neither launcher nor watchdog outlives the wrapper."""
    holder = start(
        etcd, "run", name, "-l", "1", "--", "sh", "-c", "echo held; read x", stdin=subprocess.PIPE
    )
    holder.expect("held")
    waiter = start(etcd, "run", name, "--label", "me=waiter", "--", "true")
    waiter.expect("place 1", err=True)
    assert len(processes_with(f"{name} --label me=waiter")) == 3
    waiter.send(signal.SIGKILL)
    waiter.end()
    eventually(lambda: not processes_with(f"{name} --label me=waiter"), 3)


def test_nothing_runs_on_after_a_clean_end(etcd: EtcdServer, name: str) -> None:
    assert ran(etcd, "run", name, "-l", "1", "--", "true").returncode == 0
    eventually(lambda: not processes_with(name), 3)


@pytest.mark.smoke
def test_stopped_wrapper_cannot_keep_the_command(
    etcd: EtcdServer, name: str, start: Start, tmp_path: Path
) -> None:
    """SIGSTOP past the deadline: the watchdog kills, before the next in line starts."""
    beat = tmp_path / "beat"
    command = beating(beat, "SIGTERM")
    cli = start(etcd, "run", name, "-l", "1", "-t", "4", "--", *command, env={"CHILD": "1"})
    pids = [int(cli.expect(r"beating (\d+)")[1]) for _ in range(2)]
    waiter = start(
        etcd, "run", name, "--", sys.executable, "-c", "import time; print('on', time.monotonic())"
    )
    waiter.expect("place 1", err=True)
    cli.send(signal.SIGSTOP)
    began = float(waiter.expect(r"on ([\d.]+)")[1])
    assert not any(map(alive, pids))
    assert last_beat(beat) < began
    assert last_beat(f"{beat}.child") < began
    cli.send(signal.SIGCONT)
    assert cli.end(10) == 70


def test_wrapper_without_a_watchdog_still_works(etcd: EtcdServer, name: str, start: Start) -> None:
    """Somebody killed the watchdog: nothing breaks."""
    script = "echo pid $$; read x; exit 4"
    cli = start(etcd, "run", name, "-l", "1", "--", "sh", "-c", script, stdin=subprocess.PIPE)
    child = int(cli.expect(r"pid (\d+)")[1])
    watchdog = watchdog_of(cli, child)
    os.kill(watchdog, signal.SIGKILL)
    eventually(lambda: not alive(watchdog))
    assert cli.process.stdin is not None
    cli.process.stdin.close()
    assert cli.end() == 4


def watchdog_of(cli: Cli, command: int) -> int:
    """The process beside the command that the wrapper has started."""
    family = subprocess.check_output(["ps", "-o", "pid=", "--ppid", str(cli.pid)]).split()
    (watchdog,) = [int(pid) for pid in family if int(pid) != command]
    return watchdog


def test_wrapper_and_watchdog_killed_at_once(etcd: EtcdServer, name: str, start: Start) -> None:
    """The kernel kills the command with the wrapper, also where nobody else is left to do it."""
    cli = start(etcd, "run", name, "-l", "1", "--", "sh", "-c", "echo pid $$; exec sleep 600")
    child = int(cli.expect(r"pid (\d+)")[1])
    watchdog = watchdog_of(cli, child)
    os.kill(watchdog, signal.SIGKILL)
    eventually(lambda: not alive(watchdog))
    cli.send(signal.SIGKILL)
    cli.end()
    eventually(lambda: not alive(child), 3)


def test_the_watchdog_is_deaf(etcd: EtcdServer, name: str, start: Start) -> None:
    """Whoever stops all processes of a program that bear its name does not stop the watchdog."""
    script = "echo pid $$; sleep 600 & echo child $!; exec sleep 600"
    cli = start(etcd, "run", name, "-l", "1", "--", "sh", "-c", script)
    command = int(cli.expect(r"pid (\d+)")[1])
    child = int(cli.expect(r"child (\d+)")[1])
    watchdog = watchdog_of(cli, command)
    for number in ("INT", "TERM", "HUP", "QUIT", "USR1", "USR2", "PIPE"):
        os.kill(watchdog, signal.Signals[f"SIG{number}"])
    assert alive(watchdog)
    cli.send(signal.SIGKILL)
    cli.end()
    eventually(lambda: not alive(child), 3)


def test_as_pid_1_it_reaps_orphans(etcd: EtcdServer, name: str, start: Start) -> None:
    """In a container: no zombies pile up, and SIGTERM is heard."""
    script = (
        "for i in 1 2 3 4 5; do (sh -c 'sleep 0.1 & exit' &) ; done; sleep 0.5; "
        "echo zombies $(ps -o stat= --ppid 1 | grep -c Z); exec sleep 600"
    )
    pid_1 = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
    if subprocess.run([*pid_1, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to make a PID namespace")
    cli = start(etcd, "run", name, "-l", "1", "--", "sh", "-c", script, before=pid_1)
    assert cli.expect(r"zombies (\d+)")[1] == "0"
    inner = int(subprocess.check_output(["ps", "-o", "pid=", "--ppid", str(cli.pid)]))
    os.kill(inner, signal.SIGTERM)
    assert cli.end(10) == 128 + signal.SIGTERM


# ---------------------------------------------------------------- --max-hold


def test_max_hold_ends_the_command_and_the_next_one_starts(
    etcd: EtcdServer, name: str, start: Start, tmp_path: Path
) -> None:
    """A note ahead; SIGTERM, and to the deaf SIGKILL, before the time is over; 70; and the slot
    goes to the next one at once.
    """
    first = start(
        etcd, "run", name, "-l", "1", "--max-hold", "4s", "--kill-after", "1s", "--",
        *beating(tmp_path / "beat", "SIGTERM"),
    )  # fmt: skip
    first.expect("beating")
    status = json.loads(ran(etcd, "status", name, "--json").stdout)
    (holder,) = status["holders"]
    assert holder["max_hold"] == 4
    assert holder["ends_at"] > holder["acquired_at"]
    shown = ran(etcd, "status", name).stdout
    assert "ENDS" in shown
    assert re.search(r" in [0-4]s ", shown)
    second = start(etcd, "run", name, "--", *NOW)
    first.expect(r"ends in .*, and the command will be ended in .*: --max-hold is 4s", err=True)
    first.expect("nearly reached its --max-hold of 4s; ending the command", err=True)
    assert first.end() == 70
    began = float(second.expect(r"([\d.]+)")[1])
    assert last_beat(tmp_path / "beat") < began
    assert second.end() == 0


def test_max_hold_of_a_command_that_obeys(etcd: EtcdServer, name: str, start: Start) -> None:
    """It has --kill-after to end; the exit code tells that its lease was over."""
    cli = start(
        etcd, "run", name, "-l", "1", "--max-hold", "2s", "--",
        "sh", "-c", "trap 'echo obeyed; exit 0' TERM; echo up; while :; do sleep 0.05; done",
    )  # fmt: skip
    cli.expect("obeyed")
    assert cli.end() == 70


@pytest.mark.slow
def test_max_hold_with_warn(etcd: EtcdServer, name: str, start: Start) -> None:
    """The command goes on, without a lease, and the next one has it."""
    cli = start(
        etcd, "run", name, "-l", "1", "--max-hold", "1s", "--on-lost", "warn", "--",
        "sh", "-c", "echo up; read line; exit 3",
        stdin=subprocess.PIPE,
    )  # fmt: skip
    cli.expect("WARNING: .* was lost: held longer than its max_hold of 1s", err=True)
    assert ran(etcd, "run", name, "-w", "10s", "true").returncode == 0
    assert cli.process.stdin is not None
    cli.process.stdin.write(b"on\n")
    cli.process.stdin.flush()
    assert cli.end() == 3


@pytest.mark.slow
def test_max_hold_ends_a_hold(etcd: EtcdServer, name: str, start: Start) -> None:
    cli = start(etcd, "hold", name, "-l", "1", "--max-hold", "2s", "--notice", "500ms")
    cli.expect("is held", err=True)
    cli.expect("nearly reached its --max-hold of 2s", err=True)
    assert cli.end() == 70
    assert ran(etcd, "run", name, "-n", "true").returncode == 0


@pytest.mark.parametrize(
    "given",
    [
        ("--max-hold", "0"),
        ("--max-hold", "soon"),
        ("--max-hold", "-1s"),
        ("--max-hold", "3s", "--kill-after", "3s"),
        ("--max-hold", "5s", "--kill-after", "4.8s"),
        ("--max-hold", "300ms"),
    ],
)
def test_a_max_hold_that_cannot_be(etcd: EtcdServer, name: str, given: tuple[str, ...]) -> None:
    """There must be time to end the command; nonsense is a usage error."""
    done = ran_here(etcd, "run", name, "-l", "1", *given, "--", "true")
    assert done.returncode == 64
    assert "--max-hold" in done.stderr
