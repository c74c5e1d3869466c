"""`Permit.settle`: what a start has really used, on a real etcd."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time

import pytest

import etcdsem
from etcdsem import Client, RateLimit, aio
from etcdsem.errors import InvalidSetting
from etcdsem.server import EtcdServer
from tests.helpers.waiting import eventually


def held(client: Client, name: str) -> int:
    """How many slots are taken."""
    return client.status(name, ttl=False).held


@pytest.mark.parametrize(("cost", "used", "left"), [(8, 3, 3), (8, 0, 0), (100, 40, 40)])
def test_what_was_not_used_goes_to_the_next(
    client: Client, name: str, cost: int, used: int, left: int
) -> None:
    """At once, also if it waits already; the rest counts for its period."""
    limit = RateLimit(name, cost, "1m", client=client)
    permit = limit.acquire(cost=cost)
    assert permit is not None
    got = []
    waiter = threading.Thread(target=lambda: got.append(limit.acquire(20.0, cost=cost - used)))
    waiter.start()
    eventually(lambda: client.status(name, ttl=False).waiters)
    permit.settle(used)
    waiter.join()
    assert got[0] is not None
    assert held(client, name) == cost
    got[0].settle(0)
    eventually(lambda: held(client, name) == left)
    assert len({one.lease_id for one in client.status(name).holders}) == min(left, 1)


def test_a_part_of_a_block_stays_with_its_client(client: Client, name: str) -> None:
    """Only whole blocks can be given back."""
    limit = RateLimit(name, 100, "1m", block=10, client=client)
    permit = limit.acquire(cost=25)
    assert permit is not None
    assert held(client, name) == 3
    permit.settle(12)
    eventually(lambda: held(client, name) == 2)
    assert limit.acquire(cost=8)
    assert held(client, name) == 2
    assert limit.acquire()
    assert held(client, name) == 3


def test_what_was_used_beyond_is_charged(client: Client, name: str) -> None:
    """In the background and in parts: to those who come next."""
    limit = RateLimit(name, 5, "1s", client=client)
    permit = limit.acquire(cost=2)
    assert permit is not None
    began = time.monotonic()
    permit.settle(14)
    eventually(lambda: client.status(name, ttl=False).waiters)
    assert time.monotonic() - began < 0.9
    assert not limit.try_acquire()
    assert limit.acquire(timeout=20.0)  # behind the first 5 of 12; the others come behind it
    assert time.monotonic() - began >= 0.9
    pending = client._state(name).stats
    eventually(lambda: pending.pending == 0, 20.0)


def test_once_and_never_too_late(client: Client, name: str) -> None:
    """The first call counts; nothing is given back that is no longer held."""
    limit = RateLimit(name, 5, "0.5s", client=client)
    permit = limit.acquire(cost=5)
    assert permit is not None
    for used in (-1, 1.5, (1, 2)):
        with pytest.raises(InvalidSetting, match="used"):
            permit.settle(used)  # type: ignore[arg-type]
    permit.settle(4)
    permit.settle(0)
    eventually(lambda: held(client, name) == 4)
    late = limit.acquire(timeout=5.0, cost=5)
    assert late is not None
    eventually(lambda: held(client, name) == 0)
    assert limit.acquire(cost=5)
    late.settle(0)
    assert held(client, name) == 5
    copied = pickle.loads(pickle.dumps(late))
    copied.settle(0)
    assert (copied.cost, copied.waited) == (5, late.waited)


def test_an_evicted_start_has_nothing_left(etcd: EtcdServer, client: Client, name: str) -> None:
    """Its slots belong to others."""
    limit = RateLimit(name, 4, "1m", client=client)
    permit = limit.acquire(cost=4)
    assert permit is not None
    client.evict(name, slot=2)
    with etcdsem.connect(etcd.endpoint) as other:
        assert RateLimit(name, client=other).acquire(cost=4)
        permit.settle(1)
        time.sleep(0.2)
        assert held(client, name) == 4


def test_several_limits(etcd: EtcdServer, client: Client, name: str) -> None:
    """Each by its own number."""
    requests = RateLimit(f"{name}-r", 5, "1m", client=client)
    tokens = RateLimit(f"{name}-t", ["50/1m", "200/2m"], client=client)
    with RateLimit.all(requests, tokens).start(cost=(2, 40)) as permit:
        permit.settle((2, 10))
    eventually(lambda: held(client, f"{name}-t.1m") == 10)
    eventually(lambda: held(client, f"{name}-t.2m") == 10)
    assert held(client, requests.name) == 2

    async def main() -> None:
        async with aio.connect(etcd.endpoint) as mine:
            limit = aio.RateLimit(requests.name, client=mine)
            async with limit.start(cost=3) as permit:
                await permit.settle(1)
            while (await limit.status()).held != 3:
                await asyncio.sleep(0.01)

    asyncio.run(main())
