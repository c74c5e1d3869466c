"""When a start of a rate limit may be handed out, on the etcd in memory."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

import pytest

from etcdsem import RateLimit
from etcdsem.core import acquire, permits, rates, wait
from etcdsem.core.commands import KeyValue, Transact, Wait
from etcdsem.core.grants import Grant
from etcdsem.core.keys import Identity, permit
from etcdsem.core.request import AcquireRequest
from etcdsem.model import Rate
from etcdsem.testing.inmemory import Memory, MemoryClient
from tests.helpers.meddling import meddle
from tests.helpers.memory import etcd

__all__ = ["etcd"]


def slots(etcd: Memory) -> set[str]:
    """The keys of the slots."""
    return set(etcd.keys("/etcdsem/api/leases/"))


def fetched(client: MemoryClient, period: float = 10.0) -> Grant:
    """A slot that was granted for a start."""
    ttl = rates.lease_ttl(Rate(1, period, 1))
    request = AcquireRequest(ttl, ttl / 3, Identity.of(client.id, None, {}), rate=True)
    grant = client._driver.run(acquire.acquire(client._state("api"), request, math.inf, once=True))
    assert grant is not None
    return grant


@pytest.mark.parametrize(
    ("changed", "usable"),
    [(None, True), ("3/10s", False), ("5/10s", False), ("9/10s paused", False)],
)
def test_a_slot_that_was_granted_by_another_limit_is_not_used(
    etcd: Memory, changed: str | None, usable: bool
) -> None:
    """Whoever is granted from the line reads the limit again: was it changed after the grant?"""
    client = etcd.client()
    RateLimit("api", 9, "10s", client=client)
    grant = fetched(client)
    if changed is not None:
        etcd.put("/etcdsem/api/max_leases", changed)
    # As if it came from the line: then there is no record.
    block = client._driver.run(rates._usable(grant.semaphore, grant, -math.inf))
    assert block == "changed" or usable
    assert isinstance(block, permits.Block) == usable


def test_nothing_starts_by_a_limit_that_was_changed_meanwhile(etcd: Memory) -> None:
    """A waiter is granted a slot; before it hears of that, the rate is lowered. It gives the slot
    back, and starts when a slot of the new rate is free.
    """
    mine, theirs = etcd.client(), etcd.client()
    limit = RateLimit("api", 1, "10s", client=mine)
    assert RateLimit("api", 1, "10s", client=theirs).acquire()
    assert mine._driver.run(wait.open_watches(mine._state("api"), math.inf))

    def granted_and_changed(perform: Callable[[], object]) -> object:
        note = perform()  # by now the slot is ours
        etcd.put("/etcdsem/api/max_leases", "1/20s")
        return note

    meddle(mine, Wait, granted_and_changed)
    began = etcd.now
    assert limit.acquire()
    assert etcd.now - began >= 10.0
    (record,) = etcd.keys("/etcdsem/api/leases/").values()
    assert mine.id in record
    assert etcd.get("/etcdsem/api/max_leases") == "1/20s"
    held = [grant.lease.ttl for grant in mine._driver.session.grants()]
    assert held == [float(rates.lease_ttl(Rate(1, 20.0, 1)))]


def test_a_block_is_not_used_after_its_end(etcd: Memory) -> None:
    """A start past the end has another slot, and the rest of the first block is forfeited."""
    client = etcd.client()
    limit = RateLimit("api", 9, "10s", block=3, client=client)
    assert limit.acquire()
    assert limit.acquire()
    first = slots(etcd)
    assert len(first) == 1
    end = etcd.now + permit.spending(Rate(9, 10.0, 3))
    etcd.advance(end - etcd.now - 0.01)
    assert limit.acquire()
    assert slots(etcd) == first
    assert limit.acquire()
    second = slots(etcd)
    assert len(second) == 2
    etcd.advance(permit.spending(Rate(9, 10.0, 3)) + 0.01)
    assert limit.acquire()
    assert len(slots(etcd)) == 3
    etcd.advance(10.0)
    assert client._state("api").stats.forfeited == 2


def test_a_slot_is_given_back_one_period_after_its_last_start(etcd: Memory) -> None:
    """And not earlier, by a clock that may be slower than ours."""
    client = etcd.client()
    limit = RateLimit("api", 4, "10s", block=2, client=client)
    assert limit.acquire()
    etcd.advance(0.4)
    assert limit.acquire()
    etcd.advance(10.0)
    assert len(slots(etcd)) == 1
    etcd.advance(0.1)
    assert slots(etcd) == set()


def test_a_start_needs_a_lease_with_a_period_left(etcd: Memory) -> None:
    """The answer came late: the lease would end before the period does, so it is renewed first."""
    client = etcd.client()
    limit = RateLimit("api", 9, "10s", client=client)

    def late(perform: Callable[[], object]) -> object:
        answer = perform()
        (lease,) = client._driver.session.leases.live.values()
        lease.sent -= 2.0
        lease.deadline -= 2.0
        assert lease.deadline - etcd.now < permit.need(10.0)
        return answer

    meddle(client, Transact, late)
    before = client.requests
    assert limit.acquire()
    spent = client.requests - before
    assert (spent["txn"], spent["keepalives"]) == (1, 1)
    (grant,) = client._driver.session.grants()
    assert grant.lease.deadline - etcd.now >= permit.need(10.0)


@pytest.mark.parametrize(("cost", "usable"), [(10, True), (11, False), (9, True), (5, False)])
def test_slots_that_were_requested_with_another_block(
    etcd: Memory, cost: int, usable: bool
) -> None:
    """They are given back, since they are too few, or too many."""
    client = etcd.client()
    RateLimit("api", 100, "10s", block=5, client=client)
    ttl = rates.lease_ttl(Rate(1, 10.0, 5))
    request = AcquireRequest(ttl, ttl / 3, Identity.of(client.id, None, {}), rate=True)
    request = request._replace(demand=request.demand._replace(weight=2))
    state = client._state("api")
    grant = client._driver.run(acquire.acquire(state, request, math.inf, once=True))
    assert grant is not None
    found = client._driver.run(rates._usable(state, grant, -math.inf, cost))
    assert isinstance(found, permits.Block) == usable


def test_several_are_handed_out_at_one_moment(etcd: Memory) -> None:
    """If the first cannot be used any more when the second can, its permit is recorded again."""
    client = etcd.client()
    limits = [RateLimit(name, 1, "10s", client=client) for name in ("a", "b")]
    pauses = iter((0.0, 0.6, permit.LATE + 0.1))  # TRY, TRY, and the record of a's permit

    def slow(perform: Callable[[], object]) -> object:
        answer = perform()
        etcd.suspend(next(pauses, 0.0))
        meddle(client, Transact, slow)
        return answer

    meddle(client, Transact, slow)
    before = client.requests
    assert RateLimit.all(*limits).acquire()
    assert (client.requests - before)["txn"] == 5
    (record,) = etcd.keys("/etcdsem/a/permits/").values()
    seen = permit.read_permit(KeyValue(b"", record.encode(), 1, 1))
    assert seen is not None
    assert client._driver.wall() - seen.since < permit.LATE


def test_it_does_not_wait_for_one_limit_with_permits_of_a_later_one(etcd: Memory) -> None:
    """If the open block that had one closes meanwhile, what it has of `b` is given back."""
    mine, other = etcd.client(), etcd.client()
    a = RateLimit("a", 4, "100s", block=2, client=mine)
    b = RateLimit("b", 1, "10s", client=mine)
    assert a.acquire()
    assert RateLimit("a", client=other).acquire(cost=2)
    assert RateLimit("b", client=other).acquire()
    got: list[object] = []
    both = threading.Thread(target=lambda: got.append(RateLimit.all(a, b).acquire(500.0)))
    both.start()
    etcd.wait_until(lambda: etcd.keys("/etcdsem/b/waiters/"))
    until = etcd.now + 60.0
    while not etcd.keys("/etcdsem/a/waiters/") and etcd.now < until:
        etcd.advance(0.5)
    assert etcd.keys("/etcdsem/a/waiters/")
    assert not etcd.keys("/etcdsem/b/leases/")
    until = etcd.now + 200.0
    while not got and etcd.now < until:
        etcd.advance(1.0)
    both.join()
    assert got[0]
