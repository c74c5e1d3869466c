"""Endpoints as they come: dead, silent, paused, IPv6, sockets, names, members that come and go,
and what a newcomer reads when it is the wrong one.

Members that are cut off from their peers, or from us, are in tests/chaos/test_faults.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

import etcdsem
from etcdsem import Semaphore, aio, server
from etcdsem.core.commands import Failure
from etcdsem.errors import EtcdUnavailable
from etcdsem.etcd.connection import Connection
from etcdsem.server import EtcdServer
from tests.etcd.proxy import Proxy
from tests.helpers.connections import leads
from tests.helpers.waiters import Waiters
from tests.helpers.waiting import eventually


class SomewhereElse(EtcdServer):
    """A member whose clients find it at another address."""

    where = ""

    @property
    def endpoint(self) -> str:
        return self.where or super().endpoint


@contextmanager
def silent() -> Iterator[str]:
    """A port that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def hand_over(sem: Semaphore) -> None:
    """Hold, let one wait, give it to that one: calls, watch and message all work."""
    assert sem.acquire(timeout=20)
    waiters = Waiters(sem, 1)
    assert sem.release()
    waiters.join()
    assert waiters.leases[0].release()


def refused(endpoint: str) -> str:
    """What a newcomer reads who connects to the wrong thing."""
    began = time.monotonic()
    with (
        etcdsem.connect(endpoint, dial_timeout=1.2) as client,
        pytest.raises(EtcdUnavailable) as caught,
    ):
        Semaphore(1, "wrong", client=client)
    assert time.monotonic() - began < 8
    message = str(caught.value)
    assert "register 'wrong'" in message
    return message


# ---------------------------------------------------------------- dead, silent, standing still


def test_two_bad_ones_of_three_at_start(etcd: EtcdServer, name: str) -> None:
    """One refuses, one says nothing: the third is found, and all works."""
    with silent() as deaf, etcdsem.connect(["127.0.0.1:1", deaf, etcd.endpoint]) as client:
        began = time.monotonic()
        sem = Semaphore(1, name, client=client, lease_timeout=15)
        assert time.monotonic() - began < 8
        hand_over(sem)


def test_two_bad_ones_of_three_at_start_for_tasks(etcd: EtcdServer, name: str) -> None:
    """The same in an event loop."""

    async def work(deaf: str) -> None:
        endpoints = ["127.0.0.1:1", deaf, etcd.endpoint]
        async with aio.connect(endpoints) as client:
            sem = await aio.Semaphore(1, name, client=client, lease_timeout=15)
            tasks = [asyncio.create_task(hold(sem)) for _ in range(5)]
            assert await asyncio.gather(*tasks) == [True] * 5

    async def hold(sem: aio.Semaphore) -> bool:
        async with sem.hold(timeout=30) as lease:
            return lease.valid

    with silent() as deaf:
        asyncio.run(work(deaf))


def test_the_connected_member_stands_still(etcd_binary: str, name: str) -> None:
    """SIGSTOP under a holder and a waiter: renewals go to another member well within a lease of
    15 s, and the hand-over arrives.
    """
    with server.start_cluster(3, binary=etcd_binary) as members:
        members.sort(key=leads)  # the leader last
        with etcdsem.connect([member.endpoint for member in members]) as client:
            sem = Semaphore(1, name, client=client, lease_timeout=15, refresh_interval=2)
            assert sem.acquire()
            lease = sem.leases[0]
            waiters = Waiters(sem, 1)
            members[0].pause()
            paused = lease._driver.now()
            try:
                eventually(lambda: lease._grant.lease.sent > paused, 15)
                assert lease.valid
                assert sem.release()
                waiters.join()
                assert waiters.leases[0].release()
            finally:
                members[0].resume()


def test_members_come_and_go(etcd_binary: str, name: str) -> None:
    """The connected member is removed from the cluster; a new one serves under the old address,
    and is found once the other is gone too.
    """
    # etcd would refuse to change members in a cluster's first seconds.
    options = ["--strict-reconfig-check=false"]
    with server.start_cluster(3, binary=etcd_binary, extra_args=options) as members:
        members.sort(key=leads)
        first, second, leader = members
        with etcdsem.connect([first.endpoint, second.endpoint]) as client:
            sem = Semaphore(1, name, client=client, lease_timeout=15)
            assert sem.acquire()
            lease = sem.leases[0]
            listed = leader.etcdctl("member", "list").splitlines()
            (line,) = (one for one in listed if f":{first.peer_port}," in one)
            leader.etcdctl("member", "remove", line.split(",")[0])
            first.kill()
            hand = Waiters(sem, 1)
            assert lease.valid
            assert sem.release()
            hand.join()
            added = leader.etcdctl(
                "member", "add", "new", f"--peer-urls=http://127.0.0.1:{first.peer_port}"
            )
            (cluster,) = (
                one.partition("=")[2].strip('"')
                for one in added.splitlines()
                if one.startswith("ETCD_INITIAL_CLUSTER=")
            )
            with EtcdServer(
                binary=etcd_binary,
                port=first.port,
                peer_port=first.peer_port,
                name="new",
                cluster=cluster,
                extra_args=["--initial-cluster-state", "existing"],
            ) as new:
                new.launch()
                new.wait_healthy()
                second.kill()
                eventually(lambda: sem.get_value() == 1)
                assert client._driver.connection.status(5).endpoint == new.endpoint
                assert hand.leases[0].valid
                assert hand.leases[0].release()


def learns(connection: Connection) -> bool:
    """Has it come up as a learner?"""
    with contextlib.suppress(Failure):
        return connection.status(5).learner
    return False


def test_a_learner_is_passed_by(etcd_binary: str, name: str) -> None:
    """A member that has no vote yet takes no calls: the next one does; alone it is told."""
    with server.start(binary=etcd_binary) as voter:
        client_port, peer_port = server.free_ports(2)
        added = voter.etcdctl(
            *("member", "add", "young", "--learner"),
            f"--peer-urls=http://127.0.0.1:{peer_port}",
        )
        (cluster,) = (
            one.partition("=")[2].strip('"')
            for one in added.splitlines()
            if one.startswith("ETCD_INITIAL_CLUSTER=")
        )
        with EtcdServer(
            binary=etcd_binary,
            port=client_port,
            peer_port=peer_port,
            name="young",
            cluster=cluster,
            extra_args=["--initial-cluster-state", "existing"],
        ) as learner:
            learner.launch()
            with etcdsem.connect(learner.endpoint) as client:
                eventually(lambda: learns(client._driver.connection), 30)
            with etcdsem.connect([learner.endpoint, voter.endpoint]) as client:
                hand_over(Semaphore(1, name, client=client, lease_timeout=15))
            assert "learner" in refused(learner.endpoint)


# ---------------------------------------------------------------- addresses of all kinds


def test_ipv6(etcd_binary: str, name: str) -> None:
    """[::1] with a port, as a URL too."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    with SomewhereElse(binary=etcd_binary) as six:
        six.where = f"[::1]:{six.port}"
        six.launch()
        six.wait_healthy()
        for endpoint in (six.endpoint, f"http://{six.endpoint}/"):
            with etcdsem.connect(endpoint) as client:
                hand_over(Semaphore(1, f"{name}-{len(endpoint)}", client=client))


def test_unix_sockets(
    etcd_binary: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Etcd makes its socket in its working directory, with its made-up port in the name."""
    monkeypatch.chdir(tmp_path)
    (port,) = server.free_ports(1)
    urls = f"unix://etcd.sock:1,http://127.0.0.1:{port}"
    with EtcdServer(
        binary=etcd_binary, port=port, extra_args=["--listen-client-urls", urls]
    ) as local:
        local.launch()
        local.wait_healthy()
        for number, scheme in enumerate(("unix://", "unix:")):
            with etcdsem.connect(f"{scheme}{tmp_path}/etcd.sock:1") as client:
                hand_over(Semaphore(1, f"{name}-{number}", client=client))


def test_a_name_with_several_addresses(
    etcd: EtcdServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only one of them answers; then only the other does: the lease is kept all the time."""
    (port,) = server.free_ports(1)
    asked: list[str] = []
    look_up = socket.getaddrinfo

    def names(host: str, port: int, *more: int, **options: int) -> list[Any]:
        if host != "etcd.test" or options["flags"] & socket.AI_NUMERICHOST:
            return look_up(host, port, *more, **options)
        asked.append(host)
        return look_up("127.0.0.2", port, **options) + look_up("127.0.0.3", port, **options)

    monkeypatch.setattr(socket, "getaddrinfo", names)
    first = Proxy(etcd.endpoint, host="127.0.0.3", port=port)
    with etcdsem.connect(f"etcd.test:{port}") as client:
        sem = Semaphore(1, name, client=client, lease_timeout=15, refresh_interval=1)
        assert sem.acquire(timeout=20)
        lease = sem.leases[0]
        waiters = Waiters(sem, 1)
        with first, Proxy(etcd.endpoint, host="127.0.0.2", port=port):
            first.__exit__(None, None, None)
            moved = lease._driver.now()
            eventually(lambda: lease._grant.lease.sent > moved, 15)
            assert lease.valid
            assert sem.release()
            waiters.join()
            assert waiters.leases[0].release()
    assert asked


# ---------------------------------------------------------------- the wrong thing


def test_a_web_server() -> None:
    """It is told apart from an etcd that is away, and at once."""

    class Quiet(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Quiet) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        message = refused(f"127.0.0.1:{web.server_port}")
        web.shutdown()
    assert "not etcd's client port" in message


def test_nothing_there() -> None:
    """Nobody listens, nobody speaks, nobody has that name: each in plain words."""
    assert "Connection refused" in refused("127.0.0.1:1")
    assert "no such host" in refused("no-such-host.invalid:2379")
    assert "No such file" in refused("unix:///no/such.sock")
    with silent() as deaf:
        message = refused(deaf)
        assert "sends nothing" in message or "no answer in time" in message
    both = refused("127.0.0.1:1,no-such-host.invalid:2379")
    assert "127.0.0.1:1: Failed to connect" in both
    assert "no-such-host.invalid:2379: no such host" in both


def test_the_port_for_peers(any_etcd: EtcdServer, name: str) -> None:
    """Etcd serves clients on its port for peers too where that is in plain text; where it does
    not, it is told.
    """
    endpoint = f"127.0.0.1:{any_etcd.peer_port}"
    try:
        with etcdsem.connect(endpoint, dial_timeout=3) as client:
            hand_over(Semaphore(1, name, client=client))
    except EtcdUnavailable as error:
        if "not etcd's client port" not in str(error):
            raise


def test_proxies_of_the_web_are_left_aside(
    etcd: EtcdServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """http_proxy and its kind are not for etcd."""
    for variable in ("http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:1")
    assert os.environ["http_proxy"]
    with etcdsem.connect(etcd.endpoint) as client:
        hand_over(Semaphore(1, name, client=client))
