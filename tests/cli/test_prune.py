"""``prune``: names that nobody uses expire, and those that somebody uses stay."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

import etcdsem
from etcdsem import InconsistentLimit, RateLimit, Semaphore, validation
from tests.cli.driver import etcdctl, keys, ran_here
from tests.helpers.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from etcdsem import Client
    from etcdsem.server import EtcdServer


@pytest.fixture
def client(fresh_etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setattr(validation, "MIN_EXPIRES", 1.0)
    with etcdsem.connect(fresh_etcd.endpoint) as client:
        yield client


def prune(etcd: EtcdServer, *options: str, code: int = 0) -> list[str]:
    """What it prints."""
    done = ran_here(etcd, "prune", *options)
    assert done.returncode == code, done.stderr
    return [*done.stdout.splitlines(), *done.stderr.splitlines()]


def test_unused_names_expire(fresh_etcd: EtcdServer, client: Client) -> None:
    """Only those; the limit stays the registered one, and a pause stays."""
    for name in ("idle", "paused", "waited-for", "held"):
        Semaphore(1, name, client=client)
    Semaphore(1, "expiring", client=client, expires="1h")
    client.pause("paused")
    client.apply_limits(client.plan_limits({"applied": 5}))
    RateLimit("spent", 1, "1h", client=client).acquire()
    etcdctl(fresh_etcd, "put", "/etcdsem/idle/contended", "1")
    etcdctl(fresh_etcd, "put", "/etcdsem/left-over/priorities", "1")
    etcdctl(fresh_etcd, "put", "/etcdsem/left-over/permits/00000", "{}")
    etcdctl(fresh_etcd, "put", "/etcdsem/foreign", "1")
    with Semaphore(1, "held", client=client):
        before = etcdctl(fresh_etcd, "get", "--prefix", "/")
        shown = ["idle: expires in 1h unless used", "paused: expires in 1h unless used"]
        waits = ["waited-for: expires in 1h unless used"]
        left = ["left-over: leftover keys would be deleted"]
        assert prune(fresh_etcd, "--idle", "1h", "--dry-run") == [*shown, *waits, *left]
        assert etcdctl(fresh_etcd, "get", "--prefix", "/") == before
        assert prune(fresh_etcd, "--idle", "1h", "--dry-run", "wait*") == waits
        with Semaphore(1, "waited-for", client=client):
            left = ["left-over: leftover keys deleted"]
            assert prune(fresh_etcd, "--idle", "1h") == [*shown, *left]
            assert prune(fresh_etcd, "--idle", "1h") == ["etcdsem: no unused name to expire"]
    assert keys(fresh_etcd, "idle") == ["max_leases"]
    assert keys(fresh_etcd, "left-over") == []
    expiring = {one.name for one in client.overview() if one.expires}
    assert expiring == {"idle", "paused", "expiring"}
    assert client.status("paused").pause is not None
    with pytest.raises(InconsistentLimit):
        Semaphore(2, "idle", client=client)
    assert "semaphores:\n  applied: 5\n  held: 1\n" in ran_here(fresh_etcd, "export").stdout
    (change,) = client.plan_limits({"idle": 1, "held": 1})[1:]
    assert change.expires
    client.apply_limits([change])
    assert client.status("idle").expires_in is None
    with pytest.raises(InconsistentLimit):
        Semaphore(2, "idle", client=client)


def test_they_go_unless_used(fresh_etcd: EtcdServer, client: Client) -> None:
    semaphore = Semaphore(1, "used", client=client)
    Semaphore(1, "unused", client=client)
    RateLimit("unused-rate", 1, "0.1s", client=client).acquire()
    eventually(lambda: not [one for one in client.overview() if one.held])
    eventually(lambda: "unused-rate" in client.prune("2s", dry_run=True).expiring)
    assert client.prune("5s", pattern="u*").expiring == ("unused", "unused-rate", "used")
    with semaphore:
        eventually(lambda: not (keys(fresh_etcd, "unused") + keys(fresh_etcd, "unused-rate")))
        assert "max_leases" in keys(fresh_etcd, "used")
    eventually(lambda: not keys(fresh_etcd, "used"), 60)


def test_who_comes_meanwhile_keeps_it(fresh_etcd: EtcdServer, client: Client) -> None:
    """Many come and go while it runs: no name is lost under anybody."""
    semaphores = [Semaphore(1, f"n{number}", client=client) for number in range(20)]
    failed: list[BaseException] = []

    def use(some: list[Semaphore]) -> None:
        try:
            for _ in range(5):
                for one in some:
                    with one:
                        pass
        except BaseException as error:
            failed.append(error)

    users = [threading.Thread(target=use, args=(semaphores[place::4],)) for place in range(4)]
    for user in users:
        user.start()
    with etcdsem.connect(fresh_etcd.endpoint) as other:
        while any(user.is_alive() for user in users):
            other.prune("1h")
    assert not failed
    assert len(client.overview()) == 20


@pytest.mark.parametrize("idle", ["599s", "inf", "soon", "-1"])
def test_a_short_time_is_refused(idle: str) -> None:
    done = ran_here(None, "prune", "--idle", idle)
    assert done.returncode == 64
    assert "idle" in done.stderr
