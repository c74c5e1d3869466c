"""The record of a permit keeps its slot taken if its lease ends early, on the etcd in memory."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

import pytest

from etcdsem import Denied, Holder, Permit, RateLimit, Semaphore
from etcdsem.core import permits, rates
from etcdsem.core.commands import KeyValue, Transact
from etcdsem.core.keys import permit
from etcdsem.model import Rate
from etcdsem.testing.inmemory import Memory, MemoryClient
from tests.core.test_rates import fetched
from tests.helpers.meddling import meddle
from tests.helpers.memory import etcd

__all__ = ["etcd"]

TAKEN = permit.LATE + permit.need(10.0)
"""Seconds for which a record of a permit of 2/10s keeps its slot taken."""


def records(etcd: Memory) -> list[str]:
    """The keys of the records."""
    return [key.rsplit("/", 1)[1] for key in etcd.keys("/etcdsem/api/permits/")]


def end_leases(etcd: Memory) -> None:
    """End all slots' leases early, as far as clients can see."""
    etcd.delete("/etcdsem/api/leases/", prefix=True)


def used_up(etcd: Memory, limit: int = 2) -> MemoryClient:
    """A client that has used all permits of 2/10s, or another limit."""
    client = etcd.client()
    api = RateLimit("api", limit, "10s", client=client)
    for _ in range(limit):
        assert api.acquire()
    assert len(records(etcd)) == limit
    return client


def test_a_slot_whose_lease_ends_early_stays_taken(etcd: Memory) -> None:
    """And whoever asks is told when it becomes free."""
    used_up(etcd)
    end_leases(etcd)
    client = etcd.client()
    limit = RateLimit("api", client=client)
    etcd.advance(3.0)
    denied = limit.try_acquire()
    assert isinstance(denied, Denied)
    assert denied.retry_after == pytest.approx(TAKEN - 3.0, abs=0.01)
    seen = limit.status(ttl=True)
    assert (seen.held, [one.ttl for one in seen.holders]) == (2, [denied.retry_after] * 2)
    assert [one.held for one in client.overview()] == [2]
    etcd.advance(TAKEN - 3.05)
    assert not limit.try_acquire()
    etcd.advance(0.1)
    assert isinstance(limit.try_acquire(), Permit)
    assert limit.acquire(timeout=0.0)
    assert not limit.try_acquire()


def test_a_waiter_is_served_when_a_record_is_over(etcd: Memory) -> None:
    """Nothing happens in etcd at that moment, so the waiter wakes up by itself."""
    used_up(etcd)
    end_leases(etcd)
    began = etcd.now
    served: list[Permit | None] = []
    limit = RateLimit("api", client=etcd.client())
    waiter = threading.Thread(target=lambda: served.append(limit.acquire(timeout=30.0)))
    waiter.start()
    etcd.wait_until(lambda: etcd.keys("/etcdsem/api/waiters/"))
    while not served and etcd.now < began + 20.0:
        etcd.advance(0.1)
    waiter.join()
    assert served[0] is not None
    assert TAKEN <= etcd.now - began < TAKEN + 0.3


def test_the_record_is_deleted_with_its_slot(etcd: Memory) -> None:
    """Of a permit whose owner gives it back in time."""
    used_up(etcd)
    etcd.advance(10.2)
    assert records(etcd) == []


def test_records_that_are_over_are_cleared(etcd: Memory) -> None:
    """The first that finds one in its way deletes others, too; and needs no queue for that."""
    used_up(etcd, 9).close()
    etcd.advance(14.0)
    assert etcd.keys("/etcdsem/api/leases/") == {}
    client = etcd.client()
    limit = RateLimit("api", client=client)
    before = client.requests
    assert limit.acquire(timeout=5.0)
    assert (client.requests - before)["txn"] <= 4
    assert len(records(etcd)) == 2  # one was tried, too
    before = client.requests
    assert limit.acquire(timeout=5.0)
    assert (client.requests - before)["txn"] <= 3


@pytest.mark.parametrize(
    ("since", "blocks"),
    [(0.0, True), (0.9, True), (1.1, False), (0.1 - TAKEN, True), (-0.1 - TAKEN, False)],
)
def test_a_record_blocks_until_its_time_is_over(etcd: Memory, since: float, blocks: bool) -> None:
    """Unless it lies in the future: then clocks disagree."""
    client = etcd.client()
    limit = RateLimit("api", 1, "10s", client=client)
    wall = client._driver.wall() + since
    value = permit.write_permit("h.1.a", Rate(1, 10.0, 1), wall).decode()
    etcd.put("/etcdsem/api/permits/00000", value)
    assert bool(limit.try_acquire()) == (not blocks)


@pytest.mark.parametrize(
    "value",
    [
        "junk",
        '{"acquired":"2999-01-01T00:00:00Z"}',
        '{"acquired":"2020-01-01T00:00:00Z","seconds":true}',
        '{"acquired":"2020-01-01T00:00:00Z","seconds":NaN}',
        '{"acquired":"2020-01-01T00:00:00Z","seconds":1e999}',
        '{"acquired":5,"seconds":5}',
    ],
)
def test_an_unreadable_record_blocks_nobody(etcd: Memory, value: str) -> None:
    """It was put there by hand."""
    limit = RateLimit("api", 1, "10s", client=etcd.client())
    etcd.put("/etcdsem/api/permits/00000", value)
    assert limit.try_acquire()


def test_a_late_answer_is_recorded_again(etcd: Memory) -> None:
    """The record counts from when a slot was asked for; the permit is handed out later."""
    client = etcd.client()
    limit = RateLimit("api", 1, "10s", client=client)

    def late(perform: Callable[[], object]) -> object:
        answer = perform()
        etcd.suspend(0.6)
        return answer

    meddle(client, Transact, late)
    before = client.requests
    assert limit.acquire()
    assert (client.requests - before)["txn"] == 2
    (record,) = etcd.keys("/etcdsem/api/permits/").values()
    seen = permit.read_permit(KeyValue(b"", record.encode(), 1, 1))
    assert seen is not None
    assert client._driver.wall() - seen.since < 0.7


def test_nothing_is_handed_out_long_after_its_record(etcd: Memory) -> None:
    """This process stood still after it had found the slot usable."""
    client = etcd.client()
    RateLimit("api", 1, "10s", client=client)
    state = client._state("api")
    grant = fetched(client)
    block = client._driver.run(rates._usable(state, grant, state.session.env.now()))
    assert isinstance(block, permits.Block)
    etcd.suspend(permit.LATE + 0.01)
    assert not block.usable(state, state.session.env.now())


def test_a_slot_that_was_handed_over_and_is_gone_is_not_used(etcd: Memory) -> None:
    """Its lease ended before the record of its permit was put."""
    client = etcd.client()
    RateLimit("api", 1, "10s", client=client)
    grant = fetched(client)
    end_leases(etcd)
    etcd.delete("/etcdsem/api/permits/", prefix=True)
    assert client._driver.run(rates._usable(grant.semaphore, grant, -math.inf)) == "changed"
    assert records(etcd) == []


def test_evict_frees_the_slot_at_once(etcd: Memory) -> None:
    """Of a permit whose lease has ended early, as of any other."""
    used_up(etcd)
    etcd.delete("/etcdsem/api/leases/00000")
    client = etcd.client()
    for slot in range(2):
        holder = client.evict("api", slot=slot)
        assert isinstance(holder, Holder)
        assert bool(holder.lease_id) == bool(slot)
        assert holder.owner
    assert records(etcd) == []
    limit = RateLimit("api", client=client)
    assert limit.try_acquire()
    assert limit.try_acquire()


def test_semaphores_have_no_records(etcd: Memory) -> None:
    """And what a rate limit of this name has left behind is of no interest to them."""
    used_up(etcd)
    end_leases(etcd)
    etcd.put("/etcdsem/api/max_leases", "2")
    semaphore = Semaphore(2, "api", client=etcd.client())
    with semaphore, semaphore:
        assert len(records(etcd)) == 2
