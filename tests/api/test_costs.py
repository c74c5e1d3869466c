"""Starts of a rate limit that cost several permits, on a real etcd with its default settings."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

import etcdsem
from etcdsem import AcquireTimeout, Client, Denied, Permit, RateLimit, WeightExceedsLimit, aio
from etcdsem.core import permits
from etcdsem.core.keys import permit
from etcdsem.errors import InvalidSetting
from etcdsem.server import EtcdServer
from etcdsem.testing import memory
from tests.helpers.waiting import eventually


def counted(client: Client, name: str) -> int:
    """How many permits count now, as far as slots show it."""
    seen = client.status(name, ttl=False)
    assert seen.rate is not None
    return seen.held * seen.rate.block


def wait_for_waiters(client: Client, name: str, number: int) -> None:
    """Wait until so many are in the queue."""
    eventually(lambda: len(client.status(name, ttl=False).waiters) == number)


def wait_in_line(client: Client, name: str, number: int) -> None:
    """Wait until so many threads of the client want permits of a block."""
    pool = permits.pool_of(client._state(name))
    eventually(lambda: len(pool.line) == number)


@pytest.mark.parametrize("cost", [1, 2, 33, 200, 256])
def test_as_many_slots_as_it_costs(client: Client, name: str, cost: int) -> None:
    """All at once, up to the whole limit, in transactions that etcd accepts."""
    limit = RateLimit(name, 256, "2s", client=client)
    began = time.monotonic()
    first = limit.acquire(cost=cost)
    assert isinstance(first, Permit)
    assert first.cost == cost
    assert counted(client, name) == cost
    records = client.status(name).holders
    assert len({one.lease_id for one in records}) == 1
    assert isinstance(limit.try_acquire(cost=257 - cost), Denied)
    if cost < 256:
        assert limit.try_acquire(cost=256 - cost)
    assert counted(client, name) == 256
    assert limit.acquire(timeout=20.0, cost=cost)  # from the queue: granted, then recorded
    assert time.monotonic() - began >= permit.need(2.0)


def test_precision_of_large_limits(client: Client, name: str) -> None:
    """A cost takes whole blocks; what is left of the last one is used by the same client first."""
    limit = RateLimit(name, 10_000_000, "1m", client=client)
    block = 39_063
    assert limit.acquire(cost=10_000)
    assert limit.acquire(cost=29_063)
    assert counted(client, name) == block
    assert limit.acquire(cost=9_900_000)
    assert counted(client, name) == 255 * block
    assert isinstance(limit.try_acquire(cost=2 * block), Denied)


def test_too_dear(client: Client, name: str) -> None:
    """An error at once, not a wait for ever."""
    limit = RateLimit(name, 100, "1m", client=client)
    with pytest.raises(WeightExceedsLimit, match="Request at most 100"):
        limit.acquire(cost=101)
    with pytest.raises(WeightExceedsLimit, match="can take 256"):
        RateLimit(f"{name}-1", 1000, "1m", block=1, client=client).try_acquire(cost=257)
    for cost in (0, -1, 1.5, True):
        with pytest.raises(InvalidSetting, match="cost"):
            limit.acquire(cost=cost)  # type: ignore[arg-type]


def test_a_dear_one_is_not_passed(etcd: EtcdServer, client: Client, name: str) -> None:
    """Cheap ones that come later wait behind it; a dear one is not starved by them."""
    limit = RateLimit(name, 10, "3s", client=client)
    assert limit.acquire(cost=7)
    order: list[int] = []

    def take(cost: int) -> None:
        with etcdsem.connect(etcd.endpoint) as other:
            assert RateLimit(name, client=other).acquire(timeout=20.0, cost=cost)
            order.append(cost)

    threads = []
    for number, cost in enumerate((9, 2, 1)):
        threads.append(threading.Thread(target=take, args=(cost,)))
        threads[-1].start()
        wait_for_waiters(client, name, number + 1)
    for thread in threads:
        thread.join()
    assert order[0] == 9  # although there was room for the others
    assert sorted(order) == [1, 2, 9]


@pytest.mark.parametrize("block", [1, 5])
def test_threads_of_a_client_keep_their_order(client: Client, name: str, block: int) -> None:
    """Also with blocks, where the first of them fetches one."""
    limit = RateLimit(name, 20, "1s", block=block, client=client)
    assert limit.acquire(cost=20)
    order: list[int] = []
    threads = []
    for number, cost in enumerate((15, 6, 16)):

        def take(cost: int = cost) -> None:
            assert limit.acquire(timeout=20.0, cost=cost)
            order.append(cost)

        threads.append(threading.Thread(target=take))
        threads[-1].start()
        if block == 1:
            wait_for_waiters(client, name, number + 1)
        else:
            wait_in_line(client, name, number + 1)
    for thread in threads:
        thread.join()
    assert order == [15, 6, 16]


def test_blocks_and_decorators(client: Client, name: str) -> None:
    """`start` is a block and a decorator; a timeout is an error there."""
    limit = RateLimit(name, 5, "1m", client=client)
    with limit.start(cost=2) as permit:
        assert permit.cost == 2

    @limit.start(0, cost=3)
    def work() -> int:
        return counted(client, name)

    assert work() == 5
    with pytest.raises(AcquireTimeout, match="no permit was free at once"):
        work()


def test_asyncio(etcd: EtcdServer, name: str) -> None:
    """The same."""

    async def main() -> None:
        async with aio.connect(etcd.endpoint) as client:
            limit = aio.RateLimit(name, 5, "1m", client=client)
            async with limit.start(cost=2) as permit:
                assert permit.cost == 2
            assert (await limit.try_acquire(cost=3)).__class__.__name__ == "Permit"
            with pytest.raises(AcquireTimeout):
                async with limit.start(0.05):
                    pass

    asyncio.run(main())


def test_evicted_whole(client: Client, name: str) -> None:
    """Evicting one slot evicts the start, however many slots it has."""
    limit = RateLimit(name, 100, "1m", client=client)
    assert limit.acquire(cost=100)
    client.evict(name, slot=57)
    assert counted(client, name) == 0
    assert limit.try_acquire(cost=100)


@pytest.mark.parametrize("cost", [3, 60])
def test_its_slots_stay_taken_if_its_lease_ends_early(cost: int) -> None:
    """Each slot has a record, also of a start that was granted in the queue."""
    with memory() as etcd:
        limit = RateLimit("api", 60, "10s", client=etcd.client())
        assert limit.acquire(cost=60)
        waiter = RateLimit("api", client=etcd.client())
        got: list[Permit | None] = []
        thread = threading.Thread(target=lambda: got.append(waiter.acquire(30.0, cost=cost)))
        thread.start()
        etcd.wait_until(lambda: etcd.keys("/etcdsem/api/waiters/"))
        while not got:
            etcd.advance(0.1)
        thread.join()
        assert len(etcd.keys("/etcdsem/api/permits/")) == cost
        etcd.delete("/etcdsem/api/leases/", prefix=True)
        third = RateLimit("api", client=etcd.client())
        denied = third.try_acquire(cost=61 - cost)
        assert isinstance(denied, Denied)
        assert denied.retry_after == pytest.approx(permit.LATE + permit.need(10.0), abs=0.3)
        assert third.try_acquire(cost=60 - cost) if cost < 60 else True
