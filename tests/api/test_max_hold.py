"""max_hold: a lease ends after that, whatever its holder does."""

from __future__ import annotations

import json
import logging
import math
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

import etcdsem
from etcdsem import Client, InvalidSetting, Lease, LeaseLost, Semaphore
from etcdsem.model import duration_text
from etcdsem.testing import memory
from etcdsem.validation import warning_ahead
from tests.helpers.history import assert_clean
from tests.helpers.waiters import Waiters
from tests.helpers.waiting import eventually

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer


@pytest.mark.smoke
def test_it_ends_and_the_next_one_gets_the_slot(
    any_etcd: EtcdServer, client: Client, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning first; then it is lost, its holder is told, and the slot goes on at once, long
    before the lease timeout.
    """
    lost: list[Lease] = []
    sem = Semaphore(1, name, client=client, max_hold="1s", on_lost=lost.append)
    lease = sem.acquire_lease()
    assert lease is not None
    assert lease.max_hold == 1
    assert lease.hold_remaining is not None
    assert 0 < lease.remaining <= 1
    assert 0 < lease.hold_remaining <= 1
    with etcdsem.connect(any_etcd.endpoint) as other:
        waiters = Waiters(Semaphore(1, name, client=other), 1)
        waiters.join()
        assert lease.lost.wait(10)
        assert not lease.valid
        assert lease.lost_reason == "held longer than its max_hold of 1s"
        with pytest.raises(LeaseLost, match="max_hold of 1s"):
            lease.check()
        assert lease.release() is False
        waiters.leases[0].release()
    eventually(lambda: lost == [lease])
    said = [one.message for one in caplog.records if one.levelno == logging.WARNING]
    assert any("ends in" in one and "its max_hold is 1s" in one for one in said)
    assert_clean(any_etcd, name)


def test_it_stands_in_etcd_and_in_the_status(
    any_etcd: EtcdServer, client: Client, name: str
) -> None:
    """The record says it, also of one to whom the slot was handed over; status says when."""
    sem = Semaphore(1, name, client=client, max_hold="10m")
    plain = Semaphore(1, name, client=client)
    plain.acquire()
    (holder,) = client.status(name).holders
    assert (holder.max_hold, holder.ends_at) == (None, None)
    waiters = Waiters(sem, 1)
    plain.release()
    waiters.join()
    text = any_etcd.etcdctl("get", "--print-value-only", "--prefix", f"/etcdsem/{name}/leases/")
    assert json.loads(text)["max_hold"] == 600
    (holder,) = client.status(name).holders
    assert holder.max_hold == 600
    assert holder.acquired_at is not None
    assert holder.ends_at == holder.acquired_at + timedelta(minutes=10)
    waiters.leases[0].release()
    plain.acquire()  # perhaps with the same etcd lease
    assert plain.leases[0].max_hold is None
    assert plain.leases[0].remaining > 20
    plain.release()
    assert_clean(any_etcd, name)


def test_counted_from_each_grant() -> None:
    """Whoever acquires again has all of the time again, with the same pooled lease too."""
    with memory() as etcd:
        sem = Semaphore(1, "x", client=etcd.client(), max_hold="1m")
        for _ in range(5):
            sem.acquire()
            etcd.advance("59s")
            assert sem.leases[0].valid
            assert sem.release()
        sem.acquire()
        lease = sem.leases[0]
        etcd.advance("60s")
        assert lease.lost.is_set()
        assert sem.acquire(timeout=0)
        assert sem.leases[-1].valid


def test_who_releases_too_late_is_told() -> None:
    """Also if the program stood still, so that nothing could tell it before."""
    with memory() as etcd:
        sem = Semaphore(1, "x", client=etcd.client(), max_hold="1m", lease_timeout="10m")
        with pytest.raises(LeaseLost, match="held longer than its max_hold of 1m"), sem:
            etcd.suspend("61s")
        assert sem.acquire(timeout="1s")


def test_with_a_keeper_process(etcd: EtcdServer, name: str) -> None:
    """The helper refreshes no longer than the bound, either."""
    with etcdsem.connect(etcd.endpoint, keeper=True) as client:
        sem = Semaphore(1, name, client=client, max_hold="1s", lease_timeout="2s")
        lease = sem.acquire_lease()
        assert lease is not None
        assert lease.lost.wait(20)
        assert "max_hold" in lease.lost_reason
        assert sem.acquire(timeout="10s")
        sem.leases[0].release()


@pytest.mark.parametrize("wrong", [0, -1, "soon", math.nan, -math.inf, True, "0s"])
def test_what_cannot_be(wrong: Any) -> None:
    """Nonsense is refused before etcd is asked."""
    with pytest.raises(InvalidSetting, match="max_hold"):
        Semaphore(1, "x", register=False, max_hold=wrong)


def test_what_can_be() -> None:
    """Every way to write a duration; infinity is no bound."""
    ways: list[tuple[Any, float | None]] = [
        ("10m", 600),
        (timedelta(hours=1), 3600),
        (0.5, 0.5),
        (math.inf, None),
    ]
    for given, means in ways:
        assert Semaphore(1, "x", register=False, max_hold=given).max_hold == means


def test_when_the_warning_comes() -> None:
    """A tenth ahead, from 1 s to 60 s, and never before half of the time."""
    assert [warning_ahead(one) for one in (1, 2, 10, 300, 600, 3600)] == [0.5, 1, 1, 30, 60, 60]


def test_durations_as_they_are_shown() -> None:
    """Short, and as a user may write them."""
    shown = [duration_text(one) for one in (0.5, 30, 60, 90, 600, 3600, 5400, 86400, 61.5)]
    assert shown == ["0.5s", "30s", "1m", "1m30s", "10m", "1h", "1h30m", "24h", "61.5s"]
