"""``etcdsem run --rate`` and ``etcdsem rate``."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from etcdsem import Client, RateLimit
from tests.cli.driver import Cli, ran

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer


def test_a_command_runs_in_its_turn(etcd: EtcdServer, name: str) -> None:
    """Two permits in an hour: the third is told so, and what a command finds in its environment."""
    show = ["sh", "-c", 'echo "$ETCDSEM_NAME $ETCDSEM_RATE $ETCDSEM_WAITED"; exit 3']
    for _ in range(2):
        done = ran(etcd, "run", name, "--rate", "2/1h", "--", *show)
        assert done.returncode == 3
        told = done.stdout.split()
        assert told[:2] == [name, "2/1h"]
        assert float(told[2]) >= 0
    done = ran(etcd, "run", name, "--rate", "2/1h", "-n", "--", *show)
    assert done.returncode == 75
    assert f"{name}: no permit was free" in done.stderr
    done = ran(etcd, "run", name, "--rate", "2/1h", "-w", "3", "-E", "9", "--", *show)
    assert done.returncode == 9


def test_a_command_takes_several_permits(etcd: EtcdServer, client: Client, name: str) -> None:
    """With --cost; more than the limit is an error, and without --rate it is a usage error."""
    run = ["run", name, "--rate", "5/1h", "-n"]
    assert ran(etcd, *run, "--cost", "4", "--", "true").returncode == 0
    assert client.status(name).held == 4
    assert ran(etcd, *run, "--cost", "2", "--", "true").returncode == 75
    done = ran(etcd, *run, "--cost", "6", "--", "true")
    assert (done.returncode, "Request at most 5" in done.stderr) == (64, True)
    for words in (["--cost", "2"], ["--rate", "5/1h", "-l", "1", "--cost", "2"]):
        done = ran(etcd, "run", name, *words, "--", "true")
        assert (done.returncode, "--cost is a number of permits" in done.stderr) == (64, True)


def test_looking_and_changing(etcd: EtcdServer, client: Client, name: str) -> None:
    """`rate` shows and changes; `ls`, `status` and `limit` know what it is."""
    limit = RateLimit(name, 2, "1h", client=client)
    assert limit.acquire()
    shown = ran(etcd, "rate", name)
    assert shown.stdout == f"{name}: 2/1h, 1 used, 1 free, 0 waiting\n"
    assert limit.acquire()
    data = json.loads(ran(etcd, "rate", name, "--json").stdout)
    assert (data["rate"], data["used"], data["free"]) == ("2/1h", 2, 0)
    assert 3000 < data["next_free"] <= 3604
    assert re.search(r"next free in (59m\d\ds|1h00m)", ran(etcd, "rate", name).stdout)
    assert ran(etcd, "rate", name, "1000/1m").stdout == f"{name}: 2/1h -> 1000/1m/4\n"
    assert limit.acquire(10)
    assert "1000/1m/4" in ran(etcd, "ls").stdout
    assert "1000/1m/4" in ran(etcd, "status", name).stdout
    for arguments in ([name], [name, "5"]):
        done = ran(etcd, "limit", *arguments)
        assert (done.returncode, done.stdout) == (78, "")
        assert "is a rate limit ('1000/1m/4')" in done.stderr
        assert f"etcdsem rate {name})" in done.stderr


def test_a_permit_whose_lease_etcd_has_ended(etcd: EtcdServer, name: str) -> None:
    """It counts in all that an operator sees, until it is evicted."""
    for _ in range(2):
        assert ran(etcd, "run", name, "--rate", "2/1h", "true").returncode == 0
    held = json.loads(ran(etcd, "status", name, "--json").stdout)["holders"]
    for one in held:
        etcd.etcdctl("lease", "revoke", one["lease"])
    assert ran(etcd, "run", name, "--rate", "2/1h", "-n", "true").returncode == 75
    assert ran(etcd, "rate", name).stdout.startswith(f"{name}: 2/1h, 2 used, 0 free")
    lines = json.loads(ran(etcd, "ls", "--json").stdout)["semaphores"]
    assert [line["held"] for line in lines if line["name"] == name] == [2]
    found = json.loads(ran(etcd, "status", name, "--json").stdout)["holders"]
    for before, after in zip(held, found, strict=True):
        assert after["lease"] == ""
        assert 3500 < after["ttl"] < 3620
        same = ("slot", "owner", "host", "pid", "client")
        assert [before[one] for one in same] == [after[one] for one in same]
    assert ran(etcd, "status", name).returncode == 0
    evicted = ran(etcd, "evict", name, "--slot", str(found[0]["slot"]))
    assert "(lease already ended)" in evicted.stdout + evicted.stderr
    assert ran(etcd, "run", name, "--rate", "2/1h", "-n", "true").returncode == 0
    assert ran(etcd, "run", name, "--rate", "2/1h", "-n", "true").returncode == 75


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--rate", "soon"], 64, "100/1m"),
        (["--rate", "0/1m"], 64, "from 1"),
        (["--rate", "5/1m", "--weight", "2"], 64, "-l N"),
        (["--rate", "5/1m"], 78, "Inconsistent rate: 5/1m, expected: 2/1h"),
        (["-l", "3"], 78, "is a rate limit"),
        ([], 78, "is a rate limit"),
    ],
)
def test_what_is_refused(
    etcd: EtcdServer, client: Client, name: str, arguments: list[str], code: int, said: str
) -> None:
    """Bad rates, another rate, and a semaphore of the same name."""
    RateLimit(name, 2, "1h", client=client)
    done = ran(etcd, "run", name, *arguments, "--", "true")
    assert done.returncode == code
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_semaphore_is_no_rate_limit(etcd: EtcdServer, name: str) -> None:
    """Neither to be shown nor to be changed as one."""
    assert ran(etcd, "run", name, "-l", "1", "--", "true").returncode == 0
    for arguments in ([name], [name, "5/1m"]):
        done = ran(etcd, "rate", *arguments)
        assert done.returncode == 78
        assert "is a semaphore" in done.stderr


def test_who_waits_leaves_at_a_signal(
    etcd: EtcdServer, client: Client, name: str, start: Callable[..., Cli]
) -> None:
    """While it waits for a permit it is in the queue, says so, and leaves when it is told to."""
    limit = RateLimit(name, 1, "1h", client=client)
    assert limit.acquire()
    waiter = start(etcd, "run", name, "--rate", "1/1h", "--", "true")
    waiter.expect("1 of 1/1h used", err=True)
    assert len(limit.status(ttl=False).waiters) == 1
    waiter.send(signal.SIGTERM)
    assert waiter.end() == 128 + signal.SIGTERM


def test_a_limit_and_a_rate(etcd: EtcdServer, name: str) -> None:
    """`run -l N --rate R` needs both, and gives the lease back if there is no permit in time."""
    for _ in range(2):
        done = ran(etcd, "run", name, "-l", "1", "--rate", "2/1h", "--", "printenv", "ETCDSEM_SLOT")
        assert (done.returncode, done.stdout) == (0, "0\n")
    done = ran(etcd, "run", name, "-l", "1", "--rate", "2/1h", "-w", "4s", "--", "true")
    assert done.returncode == 75
    assert json.loads(ran(etcd, "status", name, "--json").stdout)["held"] == 0
    assert json.loads(ran(etcd, "rate", f"{name}.rate", "--json").stdout)["used"] == 2
    done = ran(etcd, "run", name, "-l", "1", "--rate", "9/1h", "--", "true")
    assert done.returncode == 78
