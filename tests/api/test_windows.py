"""Several windows of a rate limit, and several rate limits together, on a real etcd."""

from __future__ import annotations

import asyncio
import threading

import pytest

import etcdsem
from etcdsem import (
    AcquireTimeout,
    Client,
    Denied,
    InconsistentLimit,
    InvalidSetting,
    RateLimit,
    WeightExceedsLimit,
    aio,
)
from etcdsem.clock import boot_time
from etcdsem.server import EtcdServer
from tests.helpers.waiting import eventually
from tests.rates.use import Span, most_in_a_window


def held(client: Client, name: str) -> int:
    """How many slots are taken."""
    return client.status(name, ttl=False).held


def test_each_window_holds(etcd: EtcdServer, name: str) -> None:
    """Two clients with threads: neither window is exceeded, and the tight one is used up."""
    spans: list[Span] = []

    def work(limit: RateLimit, until: float) -> None:
        while boot_time() < until:
            before = boot_time()
            permit = limit.acquire(timeout=0.5)
            if permit:
                spans.append(Span(before + permit.waited, boot_time()))

    with etcdsem.connect(etcd.endpoint) as one, etcdsem.connect(etcd.endpoint) as two:
        limits = [RateLimit(name, ["4/0.5s", "10/3s"], client=client) for client in (one, two)]
        until = boot_time() + 6.0
        threads = [threading.Thread(target=work, args=(limits[n % 2], until)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert most_in_a_window(spans, 0.5) <= 4
    assert 8 <= most_in_a_window(spans, 3.0) <= 10
    assert len(spans) >= 18


def test_windows_in_etcd(client: Client, name: str) -> None:
    """Each is a rate limit of its own; the tight one is named."""
    limit = RateLimit(name, ["2/1m", "100000/1d"], client=client)
    assert list(limit.windows) == [f"{name}.1m", f"{name}.24h"]
    assert str(client.limit_info(f"{name}.24h").rate) == "100000/24h/391"
    assert limit.acquire()
    assert limit.acquire(cost=1)
    denied = limit.try_acquire()
    assert isinstance(denied, Denied)
    assert denied.name == f"{name}.1m"
    assert 50 < denied.retry_after <= 61
    seen = limit.status()
    assert seen.name == denied.name
    assert seen.next_free is not None
    assert abs(seen.next_free - denied.retry_after) < 2
    assert [one.name for one in seen.windows] == list(limit.windows)
    assert held(client, f"{name}.24h") == 1  # both permits are of one block
    with pytest.raises(WeightExceedsLimit):
        limit.acquire(cost=3)
    assert limit.pause(reason="bill")
    assert client.limit_info(f"{name}.24h").pause
    with pytest.raises(AcquireTimeout, match="paused"), limit.start(0):
        pass
    assert limit.resume()
    assert limit.penalize("30s")
    for window in limit.windows:
        pause = client.limit_info(window).pause
        assert pause is not None
        assert pause.until is not None
    assert limit.resume()
    with pytest.raises(InconsistentLimit):
        RateLimit(name, ["3/1m", "100000/1d"], client=client)
    assert RateLimit(name, ["2/1m"], client=client).windows
    limit.close()
    assert not [one for one in client.overview() if one.name.startswith(name)]


@pytest.mark.parametrize("limits", [[], ["5/1m", "9/60s"], [f"5/{n}s" for n in range(1, 10)]])
def test_windows_that_cannot_be(client: Client, name: str, limits: list[str]) -> None:
    """None, two of one period, or too many."""
    with pytest.raises(InvalidSetting, match="windows of different periods"):
        RateLimit(name, limits, client=client)


def test_all_or_none(client: Client, name: str) -> None:
    """What is not there of one is not taken of the others."""
    requests = RateLimit(f"{name}-r", 5, "1m", client=client)
    tokens = RateLimit(f"{name}-t", 100, "1m", client=client)
    both = RateLimit.all(requests, tokens)
    permit = both.acquire(cost=(1, 60))
    assert permit is not None
    denied = both.try_acquire(cost=(1, 60))
    assert isinstance(denied, Denied)
    assert denied.name == tokens.name
    assert both.acquire(timeout=0.4, cost=(4, 41)) is None
    assert (held(client, requests.name), held(client, tokens.name)) == (1, 60)
    with both.start(cost=(4, 40)):
        assert (held(client, requests.name), held(client, tokens.name)) == (5, 100)
    assert [one.next_free is not None for one in both.status()] == [True, True]
    with pytest.raises(InvalidSetting, match="one for each of the 2"):
        both.acquire(cost=(1, 2, 3))
    with pytest.raises(InvalidSetting, match="twice"):
        RateLimit.all(tokens, tokens).acquire()
    with pytest.raises(WeightExceedsLimit):
        both.acquire(cost=(1, 101))
    assert (held(client, requests.name), held(client, tokens.name)) == (5, 100)


def test_whatever_the_order_nobody_waits_for_ever(etcd: EtcdServer, name: str) -> None:
    """Callers that name them in different orders, and others that need one of them only."""
    done: list[int] = []

    def work(number: int) -> None:
        with etcdsem.connect(etcd.endpoint) as client:
            a = RateLimit(f"{name}-a", 3, "0.3s", client=client)
            b = RateLimit(f"{name}-b", 3, "0.5s", client=client)
            for _ in range(3):
                way = [(a, b), (b, a), (a,), (b,)][number]
                assert RateLimit.all(*way).acquire(timeout=20.0, cost=1 + number % 2)
                done.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 12


def test_a_cancelled_call_leaves_nothing(etcd: EtcdServer, name: str) -> None:
    """What it had, unspent, is given back at once, and the next waiter gets it."""

    async def main() -> None:
        async with aio.connect(etcd.endpoint) as client:
            a = aio.RateLimit(f"{name}-a", 2, "1m", client=client)
            b = aio.RateLimit(f"{name}-b", 2, "1m", client=client)
            both = aio.RateLimit.all(a, b)
            assert await b.acquire(cost=2)
            waits = asyncio.Event()
            task = asyncio.create_task(both.acquire(on_wait=waits.set))
            await waits.wait()
            assert (await a.status()).held == 1
            other = asyncio.create_task(a.acquire(cost=2))
            while not (await a.status()).waiters:
                await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert await other
            assert not (await b.status()).waiters

    asyncio.run(main())


def test_unspent_permits_are_kept_for_longer_than_a_lease(client: Client, name: str) -> None:
    """While it waits for the second, the first is refreshed, and it counts from the hand-out."""
    a = RateLimit(f"{name}-a", 1, "0.2s", client=client)
    b = RateLimit(f"{name}-b", 1, "5s", client=client)
    assert b.acquire()
    got = []
    thread = threading.Thread(target=lambda: got.append(RateLimit.all(a, b).acquire(30.0)))
    thread.start()
    eventually(lambda: held(client, a.name) == 1)
    assert not a.try_acquire()
    thread.join()
    assert got[0] is not None
    assert got[0].waited > 4.0
    assert not a.try_acquire()
