"""etcd in trouble: out of space, standing still, restarted, one of three members gone."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from typing import TYPE_CHECKING

import pytest

import etcdsem
from etcdsem import Lease, Semaphore, aio, server
from etcdsem.core import release
from etcdsem.errors import EtcdSemError
from tests.etcd.proxy import Proxy
from tests.helpers.event_loop import run
from tests.helpers.history import judge, read_history
from tests.helpers.waiters import Waiters
from tests.helpers.waiting import eventually

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer


def test_out_of_space(etcd_binary: str, name: str) -> None:
    """Held leases stay refreshed and can be released, acquire says what is wrong, and after the
    alarm was disarmed all goes on.
    """
    with (
        server.start(binary=etcd_binary, extra_args=["--quota-backend-bytes", "200000"]) as etcd,
        etcdsem.connect(etcd.endpoint) as client,
    ):
        sem = Semaphore(3, name, client=client, lease_timeout=3)
        sem.acquire()
        sem.acquire()
        with contextlib.suppress(EtcdSemError):
            for _ in range(50):
                etcd.etcdctl("put", "filler", "x" * 20_000)
        assert "NOSPACE" in etcd.etcdctl("alarm", "list")
        with pytest.raises(etcdsem.EtcdRefused, match="out of space"):
            sem.acquire(timeout=5)
        eventually(lambda: client._driver.session.leases.revocations == 0)
        first, second = sem.leases
        assert first.release()
        assert sem.get_value() == 1
        until = time.monotonic() + 4
        eventually(lambda: time.monotonic() > until)
        assert second.valid, "its refresh did not work without space"
        revision = str(client._driver.connection.status(5).revision)
        etcd.etcdctl("compact", revision)
        etcd.etcdctl("defrag")
        etcd.etcdctl("alarm", "disarm")
        assert sem.acquire(timeout=10)
        assert sem.release()
        assert sem.release()
        assert sem.get_value() == 0


def test_etcd_stands_still_for_longer_than_the_lease(fresh_etcd: EtcdServer, name: str) -> None:
    """The holder is told before etcd could give the slot away, with no network needed; after that
    nobody has it twice.
    """
    lost: list[Lease] = []
    with etcdsem.connect(fresh_etcd.endpoint) as client:
        sem = Semaphore(1, name, client=client, lease_timeout=3, on_lost=lost.append)
        sem.acquire()
        lease = sem.leases[0]
        fresh_etcd.pause()
        deadline = time.monotonic() + lease.remaining
        assert lease.lost.wait(10)
        assert time.monotonic() <= deadline + 1.0
        assert not lease.valid
        fresh_etcd.resume()
        eventually(lambda: lost == [lease])
        assert lease.release() is False
        other = Semaphore(1, name, client=client)
        assert other.acquire(timeout=20)
        other.release()
    assert not judge(read_history(fresh_etcd, name), name).wrong


def test_a_short_stand_still_loses_nothing(fresh_etcd: EtcdServer, name: str) -> None:
    """Less than half of the lease timeout: nothing is lost, no alarm is raised."""
    with etcdsem.connect(fresh_etcd.endpoint) as client:
        sem = Semaphore(1, name, client=client, lease_timeout=10)
        sem.acquire()
        waiters = Waiters(sem, 1)
        fresh_etcd.pause()
        assert not sem.leases[0].lost.wait(3)
        fresh_etcd.resume()
        assert sem.leases[0].valid
        eventually(lambda: sem.release() or not sem.leases)
        waiters.join()
        waiters.leases[0].release()


def test_one_member_of_three_dies(etcd_binary: str, name: str) -> None:
    """The connected member is killed under holders and waiters: they go on with another one."""
    with (
        server.start_cluster(3, binary=etcd_binary) as members,
        etcdsem.connect([member.endpoint for member in members]) as client,
    ):
        sem = Semaphore(2, name, client=client, lease_timeout=15)
        done: list[int] = []

        def work(number: int) -> None:
            for _ in range(10):
                with sem:
                    pass
            done.append(number)

        sem.acquire()
        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        members[0].kill()
        for thread in threads:
            thread.join(90)
        assert sorted(done) == list(range(6))
        assert sem.leases[0].valid, sem.leases[0].lost_reason
        sem.release()
        eventually(lambda: sem.get_value() == 0)
        assert not judge(read_history(members[1], name), name).wrong


def test_the_first_contact_is_tried_again(fresh_etcd: EtcdServer, name: str) -> None:
    """Reading the limit of a registered semaphore waits for etcd as registering it does: an
    election, or a member without a leader, is no reason to give up.
    """
    with etcdsem.connect(fresh_etcd.endpoint) as client:
        Semaphore(2, name, client=client)
    fresh_etcd.kill()
    back = threading.Timer(1.0, fresh_etcd.restart)
    back.start()
    with etcdsem.connect(fresh_etcd.endpoint) as client:
        assert Semaphore(None, name, client=client).acquire(timeout=20)
    back.join()


# ---------------------------------------------------------------- releasing


def test_release_is_tried_again(etcd: EtcdServer, name: str) -> None:
    """The connection is reset, and three more break at once: True, and the slot is free."""
    with Proxy(etcd.endpoint) as proxy, etcdsem.connect(proxy.endpoint) as client:
        sem = Semaphore(1, name, client=client)
        assert sem.acquire()
        proxy.failing = 3
        proxy.reset()
        assert sem.release() is True
        assert sem.get_value() == 0


def test_release_is_tried_again_in_asyncio(etcd: EtcdServer, name: str) -> None:
    """The same there."""

    async def main() -> None:
        with Proxy(etcd.endpoint) as proxy:
            async with aio.connect(proxy.endpoint) as client:
                sem = await aio.Semaphore(1, name, client=client)
                assert await sem.acquire()
                proxy.failing = 3
                proxy.reset()
                assert await sem.release() is True
                assert await sem.get_value() == 0

    run(main())


def test_a_release_that_etcd_cannot_be_told_says_so(
    etcd: EtcdServer, name: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Etcd stays away: False after some seconds, a warning that says why and what comes of the
    slot, and it is free as soon as etcd is back.
    """
    monkeypatch.setattr(release, "RELEASE_PATIENCE", 0.5)
    with Proxy(etcd.endpoint) as proxy, etcdsem.connect(proxy.endpoint) as client:
        sem = Semaphore(1, name, client=client)
        assert sem.acquire()
        proxy.failing = 10**9
        proxy.reset()
        with caplog.at_level(logging.WARNING, logger="etcdsem"):
            assert sem.release() is False
        (said,) = (one.getMessage() for one in caplog.records if "not be released" in one.message)
        assert re.search(rf"{name}: slot 0 could not be released: .+TTL of 30s expires", said)
        proxy.failing = 0
        with etcdsem.connect(etcd.endpoint) as other:
            eventually(lambda: Semaphore(None, name, client=other).get_value() == 0)
