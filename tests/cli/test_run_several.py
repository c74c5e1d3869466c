"""``etcdsem run A B -- COMMAND``: a lease of each of several semaphores, or none."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import etcdsem
from tests.cli.driver import Cli, alive, etcdctl, keys, ran, ran_here
from tests.helpers.slow import sample
from tests.helpers.waiting import eventually

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

Start = Callable[..., Cli]

HOLD = ("sh", "-c", "echo held $$; read x")


@pytest.fixture
def two(name: str) -> tuple[str, str]:
    """Names of two semaphores."""
    return f"{name}-a", f"{name}-b"


def test_the_command_knows_all_its_leases(etcd: EtcdServer, two: tuple[str, str]) -> None:
    """The first in the usual variables, all in JSON; options may stand among the names."""
    a, b = two
    done = ran(etcd, "run", f"{a}=2", "-w", "5", f"{b}=1", "-q", "--", "env")
    assert done.returncode == 0, done.stderr
    found = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    leases = json.loads(found["ETCDSEM_LEASES"])
    assert [one["name"] for one in leases] == [a, b]
    assert [one["limit"] for one in leases] == [2, 1]
    assert found["ETCDSEM_NAME"] == a
    assert found["ETCDSEM_LEASE_ID"] == leases[0]["lease_id"] != leases[1]["lease_id"]
    assert found["ETCDSEM_FENCING_TOKEN"] == str(leases[1]["fencing_token"])
    assert keys(etcd, a) == keys(etcd, b) == ["max_leases"]
    registered = ran(etcd, "run", a, b, "--", "sh", "-c", "exit 7")
    assert registered.returncode == 7
    alone = ran(etcd, "run", a, "--", "sh", "-c", 'echo "$ETCDSEM_LEASES"')
    assert [one["name"] for one in json.loads(alone.stdout)] == [a]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["A", "B", "-l", "2", "--", "true"], "A=2 B=N"),
        (["A=1", "-l", "2", "--", "true"], "A=2"),
        (["A=1", "A=2", "--", "true"], "given twice"),
        (["A=1", "B=", "--", "true"], "expected NAME=N"),
        (["A=1", "B=1", "true"], "must be followed by --"),
        (["A=1", "B=1", "--weight", "2", "--", "true"], "--weight works with one NAME only"),
        (["A=1", "B=1", "--rate", "5/1m", "--", "true"], "--rate works with one NAME only"),
        (["A=1", "B=1", "--"], "no command given"),
        ([*(f"N{number}=1" for number in range(9)), "--", "true"], "maximum 8"),
    ],
)
def test_what_cannot_be(arguments: list[str], said: str) -> None:
    """64, before anything is asked of etcd, and what to write instead."""
    done = ran_here(None, "run", "--endpoints", "127.0.0.1:1", *arguments)
    assert done.returncode == 64, done.stderr
    assert said in done.stderr


def test_words_before_a_later_dash_dash_are_the_commands(etcd: EtcdServer, name: str) -> None:
    """As ever, where they cannot all be names and our options."""
    script = 'echo "$@"'
    done = ran(etcd, "run", name, "-l", "1", "sh", "-c", script, "sh", "--", "x")
    assert (done.returncode, done.stdout) == (0, "-- x\n"), done.stderr


def test_unknown_names_are_named(etcd: EtcdServer, two: tuple[str, str]) -> None:
    """78, and how to register it."""
    a, b = two
    done = ran(etcd, "run", f"{a}=1", b, "--", "true")
    assert done.returncode == 78
    assert f"{b} is not registered yet: give {b}=N" in done.stderr


def test_it_waits_for_the_one_that_is_full(
    etcd: EtcdServer, two: tuple[str, str], start: Start, tmp_path: Path
) -> None:
    """The line says for which; a holder that is killed frees its slot; then all are held."""
    a, b = two
    file = tmp_path / "job.prom"
    holder = start(etcd, "run", f"{b}=1", "-t", "2", "--", *HOLD, stdin=subprocess.PIPE)
    pid = int(holder.expect(r"held (\d+)").group(1))
    assert ran(etcd, "run", f"{a}=1", b, "-n", "--", "true").returncode == 75
    waiter = start(etcd, "run", a, b, "--metrics-file", str(file), "--", "echo", "mine")
    waiter.expect(f"waiting for {b}: place 1 of 1 in the queue", err=True)
    assert keys(etcd, a) == ["max_leases"]
    holder.process.kill()
    eventually(lambda: not alive(pid))
    waiter.expect("mine")
    assert waiter.end() == 0
    assert keys(etcd, a) == ["max_leases"]
    text = file.read_text()
    for one in two:
        assert f'etcdsem_job_granted{{name="{one}"}} 1' in text
        assert f'etcdsem_job_lost{{name="{one}"}} 0' in text


def test_stopped_while_it_waits(etcd: EtcdServer, two: tuple[str, str], start: Start) -> None:
    """143, no key of it is left in either."""
    a, b = two
    holder = start(etcd, "run", f"{b}=1", "--", *HOLD, stdin=subprocess.PIPE)
    holder.expect(r"held (\d+)")
    waiter = start(etcd, "run", f"{a}=1", b, "--", "true")
    waiter.expect(f"waiting for {b}", err=True)
    waiter.send(signal.SIGTERM)
    assert waiter.end() == 128 + signal.SIGTERM
    assert keys(etcd, a) == ["max_leases"]
    assert set(keys(etcd, b)) <= {"max_leases", "leases/00000", "contended"}
    with etcdsem.connect(etcd.endpoint) as client:
        assert client.status(b, ttl=False).waiters == ()


@pytest.mark.parametrize("which", sample([1, 0]))
def test_losing_any_one_ends_the_command(
    etcd: EtcdServer, two: tuple[str, str], start: Start, which: int
) -> None:
    """70, the message names which; the others are given back."""
    a, b = two
    job = start(etcd, "run", f"{a}=1", f"{b}=1", "--", *HOLD, stdin=subprocess.PIPE)
    pid = int(job.expect(r"held (\d+)").group(1))
    etcdctl(etcd, "del", f"/etcdsem/{two[which]}/leases/00000")
    job.expect(f"the lease on '{two[which]}' was lost", err=True)
    assert job.end() == 70
    assert not alive(pid)
    assert keys(etcd, a) == keys(etcd, b) == ["max_leases"]


def test_killed_it_takes_the_command_along(
    etcd: EtcdServer, two: tuple[str, str], start: Start
) -> None:
    """And all slots are free after the lease timeout."""
    a, b = two
    job = start(etcd, "run", f"{a}=1", f"{b}=1", "-t", "2", "--", *HOLD, stdin=subprocess.PIPE)
    pid = int(job.expect(r"held (\d+)").group(1))
    job.send(signal.SIGKILL)
    eventually(lambda: not alive(pid))
    assert ran(etcd, "run", a, b, "-w", "15", "--", "true").returncode == 0
