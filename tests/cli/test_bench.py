"""``etcdsem bench``: on real etcds, and what it makes of results."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from etcdsem import server
from etcdsem.cli.bench.bench_report import bench_findings
from etcdsem.cli.bench.bench_runner import (
    BenchResults,
    EndpointResult,
    Latency,
    ServerMetrics,
    Throughput,
)
from etcdsem.cli.doctor.probes import Member
from tests.cli.driver import ETCDSEM, Cli, Console, etcdctl, ran
from tests.helpers.slow import sample
from tests.helpers.waiting import eventually

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

FAST = ("bench", "--seconds", "1", "--clients", "4")


def left(etcd: EtcdServer, name: str = "") -> str:
    """What is left below the prefix."""
    return etcdctl(etcd, "get", "--prefix", "--keys-only", f"/etcdsem/{name}").strip()


# ---------------------------------------------------------------- on a real etcd


@pytest.mark.smoke
def test_all_is_measured_and_nothing_is_left(any_fresh_etcd: EtcdServer) -> None:
    done = ran(any_fresh_etcd, *FAST, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    found = json.loads(done.stdout)
    assert list(found) == [
        "seconds", "clients", "endpoints", "latency", "rates", "client_cores", "etcd", "findings",
    ]  # fmt: skip
    (endpoint,) = found["endpoints"]
    assert (endpoint["reached"], endpoint["leader"]) == (True, True)
    assert set(found["latency"]) == {"read", "write", "lease", "event"}
    for latency in (*found["latency"].values(), endpoint["answer"]):
        assert 0 < latency["median"] <= latency["p99"]
        assert latency["n"] >= 3
    for rates in (found["rates"]["two_transactions"], found["rates"]["cycles"]):
        assert set(rates) == {"1", "4"}
        assert min(rates.values()) > 0
    assert found["rates"]["hand_overs"] > 0
    assert found["etcd"]["cores"] > 0
    assert found["etcd"]["backend_commit"] > 0
    synced = found["etcd"]["wal_fsync"]
    assert synced is None if "--unsafe-no-fsync" in any_fresh_etcd._command() else synced > 0
    assert {"semaphore", "one", "many"} <= {one["check"] for one in found["findings"]}
    assert left(any_fresh_etcd) == ""
    assert etcdctl(any_fresh_etcd, "lease", "list").strip() == "found 0 leases"
    assert "putting load on etcd" in done.stderr.splitlines()[0]


def test_a_user_of_one_name(fresh_etcd: EtcdServer) -> None:
    """Everything is measured, also where only root may read a member's status."""
    for command in (
        "user add root:secret", "user grant-role root root", "role add one",
        "role grant-permission one --prefix=true readwrite /etcdsem/mine/",
        "user add worker:pw", "user grant-role worker one", "auth enable",
    ):  # fmt: skip
        etcdctl(fresh_etcd, *command.split())
    login = {"ETCDSEM_USER": "worker", "ETCDSEM_PASSWORD": "pw"}
    done = ran(fresh_etcd, *FAST, "mine", "--json", env=login)
    assert done.returncode == 0, done.stderr
    (endpoint,) = json.loads(done.stdout)["endpoints"]
    assert endpoint["reached"]
    assert endpoint["answer"]["n"] >= 3


def test_for_people(etcd: EtcdServer, console: Callable[..., Console]) -> None:
    """Tables and findings, plain or on a terminal, and below the name that was given."""
    plain = ran(etcd, *FAST, "bench-of-mine")
    assert "/etcdsem/bench-of-mine/" in plain.stderr
    for line in ("put until a watcher sees it", "hand-overs at limit 1", "ok       semaphore: "):
        assert line in plain.stdout
    assert "\x1b" not in plain.stdout
    assert left(etcd, "bench-of-mine") == ""
    shown = console(etcd, *ETCDSEM, *FAST, size=(100, 40))
    shown.end()
    assert "\x1b[32m" in shown.seen


@pytest.mark.parametrize("number", sample([signal.SIGINT, signal.SIGTERM]))
def test_it_cleans_up_when_it_is_stopped(
    etcd: EtcdServer, start: Callable[..., Cli], number: int
) -> None:
    """In the midst of contention: the code says which signal, and nothing is left."""
    name = f"stopped{number}"
    cli = start(etcd, "bench", "--seconds", "20", name)
    eventually(lambda: "max_leases" in left(etcd, name), 60)
    cli.send(number)
    assert cli.end() == 128 + number
    assert "its keys were removed" in cli.rest()
    assert left(etcd, name) == ""


def test_a_semaphore_is_left_alone(etcd: EtcdServer) -> None:
    """A name that is in use is refused, and nothing is written."""
    etcdctl(etcd, "put", "/etcdsem/precious/max_leases", "3")
    done = ran(etcd, "bench", "precious")
    assert (done.returncode, done.stdout) == (64, "")
    assert "precious is a semaphore" in done.stderr
    assert left(etcd, "precious") == "/etcdsem/precious/max_leases"


def test_usage_errors() -> None:
    for arguments in (["a/b"], ["--seconds", "0"], ["--clients", "0"], ["a", "b"]):
        done = ran(None, "bench", *arguments)
        assert (done.returncode, done.stdout) == (64, "")


def test_a_cluster_with_one_member_away(etcd_binary: str) -> None:
    """The others are measured, and it is named."""
    with server.start_cluster(3, binary=etcd_binary) as members:
        members[0].kill()
        for member in members[1:]:
            member.wait_healthy()  # so they have a leader
        endpoints = ",".join(member.endpoint for member in members)
        done = ran(None, *FAST, "--json", env={"ETCDSEM_ENDPOINTS": endpoints})
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [one["reached"] for one in found["endpoints"]] == [False, True, True]
    assert sum(one["leader"] for one in found["endpoints"]) == 1
    assert found["etcd"]["peer_round_trip"] is None or found["etcd"]["peer_round_trip"] > 0
    (away,) = [
        one for one in found["findings"] if one["check"] == "far" and "does not" in one["what"]
    ]
    assert members[0].endpoint in away["what"]


# ---------------------------------------------------------------- what it makes of results


def results(**changed: Any) -> BenchResults:
    """A fine cluster: half a millisecond for everything."""
    fast = Latency(0.0005, 0.001, 100)
    members = [Member(f"10.0.0.{n}:2379", False, id=n, version="3.6.14") for n in (1, 2, 3)]
    endpoints = [EndpointResult(one, fast) for one in members]
    one = BenchResults(15, 16, endpoints=endpoints, connected=members[0])
    one.read = one.write = one.grant = one.event = fast
    one.pairs = [Throughput(900, 1, 0.4), Throughput(3000, 16, 0.5)]
    one.cycles = [Throughput(850, 1, 0.4), Throughput(5000, 16, 0.5)]
    one.hand_overs = Throughput(800, 16, 0.5)
    one.disk = ServerMetrics(0.0002, 0.1, 0.001, 0.001, 0.4)
    one.head, one.compacted, one.load = 5000, 4000, 0.1
    for name, value in changed.items():
        setattr(one, name, value)
    return one


def of(check: str, some: BenchResults) -> list[str]:
    """What is said about it, and at which level."""
    return [f"{one.level}: {one.what}" for one in bench_findings(some) if one.check == check]


def test_a_fine_cluster() -> None:
    found = bench_findings(results())
    assert {one.level for one in found} == {"ok"}
    assert "800 times a second" in found[0].what


def test_where_a_write_spends_its_time() -> None:
    """The way, the members or the disk, whichever is longest."""
    slow = Latency(0.03, 0.05, 100)
    assert "the disk" in of("one", results(write=slow))[0]
    assert "between members" in of("one", results(write=slow, read=slow))[0]
    far = results(write=slow, read=slow)
    for endpoint in far.endpoints:
        endpoint.answer = slow
    assert "most of it is the network to etcd" in of("one", far)[0]


def test_what_limits_many() -> None:
    busy = [Throughput(900, 1, 0.4), Throughput(3000, 16, 0.97)]
    assert "Python uses 97% of a core" in of("many", results(pairs=busy))[0]
    assert "etcd's disk" in of("many", results(disk=ServerMetrics(0.002, 0.9, 0.003, None, 0.2)))[0]
    assert "etcd's CPU" in of("many", results(disk=ServerMetrics(0.0002, 0.1, 0.003, None, 1.8)))[0]
    assert "round trips" in of("many", results())[0]


def test_far_members_slow_disks_full_machines_and_long_histories() -> None:
    far = results()
    far.endpoints[2].answer = Latency(0.04, 0.05, 100)
    assert "10.0.0.3:2379 answers in 40.0 ms" in of("far", far)[0]
    assert "a round trip between members takes 20.0 ms" in of(
        "far", results(disk=ServerMetrics(0.0002, 0.1, 0.003, 0.02, 0.1))
    )[0]  # fmt: skip
    assert len(of("disk", results(disk=ServerMetrics(0.02, 0.3, 0.05, None, 0.1)))) == 2
    assert "cannot be read" in of("disk", results(disk=ServerMetrics()))[0]
    assert "no fsync" in of("disk", results(disk=ServerMetrics(None, 0.0, 0.001, None, 0.1)))[0]
    assert of("machine", results(load=3.0))
    assert "warning: never compacted" in of("compaction", results(head=90_000, compacted=0))[0]
    full = results()
    full.endpoints[0].member.db_size, full.endpoints[0].member.quota = 90, 100
    assert of("space", full)
