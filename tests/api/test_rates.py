"""Rate limits on a real etcd: the blocking and the asyncio library."""

from __future__ import annotations

import asyncio
import pickle
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

import etcdsem
from etcdsem import (
    Client,
    Holder,
    InconsistentLimit,
    InvalidSetting,
    RateLimit,
    Semaphore,
    SemaphoreClosed,
    WrongKind,
    aio,
)
from etcdsem.clock import boot_time
from etcdsem.core import forecast, rates
from etcdsem.core.commands import Procedure
from etcdsem.core.grants import Grant
from etcdsem.core.keys import permit
from etcdsem.core.semaphore import SemaphoreState
from etcdsem.model import Rate
from etcdsem.server import EtcdServer
from etcdsem.testing import memory
from etcdsem.validation import make_rate, read_rate
from tests.benchmarks.measure import metrics
from tests.helpers.waiting import eventually
from tests.rates.use import Span, most_in_a_window, use_of


@pytest.fixture
def other(etcd: EtcdServer) -> Iterator[Client]:
    """Another client of the same etcd."""
    with etcdsem.connect(etcd.endpoint) as client:
        yield client


def started(limit: RateLimit) -> Span:
    """Wait for a start: between which moments it was."""
    before = boot_time()
    start = limit.acquire()
    assert start is not None
    return Span(before + start.waited, boot_time())


def test_no_window_holds_more_and_nothing_is_wasted(
    client: Client, other: Client, name: str
) -> None:
    """Two clients with two threads each: 5 permits in any two seconds, and at least 95 % of them
    where the machine lets them (else it is tried again).
    """
    rate = Rate(5, 2.0, 1)
    use = 0.0
    for number in range(3):
        limits = [
            RateLimit(f"{name}-{number}", *rate[:2], client=one)
            for one in (client, other)
            for _ in range(2)
        ]
        starts: list[Span] = []

        def work(limit: RateLimit, starts: list[Span] = starts) -> None:
            while len(starts) < 25:
                starts.append(started(limit))

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, limits))
        assert most_in_a_window(starts, rate.period) <= rate.starts
        use = use_of(rate, starts)
        if use >= 0.95:
            return
    pytest.fail(f"{100 * use:.1f} % were used")


def test_try_says_when_to_come_back(client: Client, name: str) -> None:
    """A permit; then `Denied`, which is false, and says for how long."""
    limit = RateLimit(name, 1, "30s", client=client)
    permit = limit.try_acquire()
    assert permit
    assert isinstance(permit, etcdsem.Permit)
    denied = limit.try_acquire()
    assert isinstance(denied, etcdsem.Denied)
    assert not denied
    assert 20 < denied.retry_after <= 30.1
    assert limit.acquire(timeout=0.05) is None


def test_a_start_says_how_long_it_was_waited_for(client: Client, name: str) -> None:
    """The second of two waits for the period."""
    limit = RateLimit(name, 1, 0.3, client=client)
    first, second = limit.acquire(), limit.acquire(10)
    assert first is not None
    assert second is not None
    assert first.waited < second.waited
    assert second.waited > 0.1


def test_who_closes_leaves_its_starts_in_force(etcd: EtcdServer, client: Client, name: str) -> None:
    """A closed client's permit counts until etcd ends its lease, and not longer."""
    with etcdsem.connect(etcd.endpoint) as mine:
        assert RateLimit(name, 1, "1s", client=mine).acquire()
        began = boot_time()
    limit = RateLimit(name, 1, "1s", client=client)
    assert not limit.try_acquire()
    assert limit.acquire(30)
    assert boot_time() - began >= 1.0


def test_waiters_are_served_in_order(client: Client, name: str) -> None:
    """FIFO: each further permit goes to the client that came first."""
    limit = RateLimit(name, 1, "1h", client=client)
    assert limit.acquire()
    served: list[int] = []
    threads = []
    for number in range(4):
        in_line = threading.Event()

        def work(number: int = number, in_line: threading.Event = in_line) -> None:
            limit.acquire(on_wait=in_line.set)
            served.append(number)

        threads.append(threading.Thread(target=work))
        threads[-1].start()
        assert in_line.wait(30)
    for number in range(4):
        limit.resize(2 + number, "1h")
        eventually(lambda: len(served) == (limit.status(ttl=False).max_leases or 0) - 1)
        assert served == list(range(number + 1))
    for thread in threads:
        thread.join(30)


def test_kinds_do_not_mix(client: Client, name: str) -> None:
    """A semaphore is no rate limit, nor the other way round, whatever is tried."""
    RateLimit(name, 5, "1m", client=client)
    for wrong in (
        lambda: Semaphore(5, name, client=client),
        lambda: Semaphore(None, name, client=client),
        lambda: Semaphore(5, name, client=client, register=False).acquire(0),
        lambda: Semaphore(5, name, client=client, register=False).resize(3),
    ):
        with pytest.raises(WrongKind, match="is a rate limit"):
            wrong()
    Semaphore(5, f"{name}.s", client=client)
    for bad in (
        lambda: RateLimit(f"{name}.s", 5, "1m", client=client),
        lambda: RateLimit(f"{name}.s", client=client),
        lambda: RateLimit(f"{name}.s", client=client, register=False).acquire(0),
        lambda: RateLimit(f"{name}.s", client=client, register=False).resize(5, "1m"),
    ):
        with pytest.raises(WrongKind, match="is a semaphore"):
            bad()


def test_registering_and_resizing(client: Client, other: Client, name: str) -> None:
    """Another rate is refused; a live resize is taken; what waits gets new room at once."""
    limit = RateLimit(name, 1, "1h", client=client)
    with pytest.raises(InconsistentLimit, match="Inconsistent rate: 2/1h, expected: 1/1h"):
        RateLimit(name, 2, "1h", client=other)
    assert limit.acquire()
    waits = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(limit.acquire, 60, on_wait=waits.set)
        assert waits.wait(20)
        RateLimit(name, client=other).resize(2, "1h")
        assert second.result(30)
    assert RateLimit(name, 1, "1h", client=other).status().rate == Rate(2, 3600.0, 1)
    assert len(limit.status().holders) == 2


def test_a_paused_rate_grants_nothing(client: Client, name: str) -> None:
    """Paused, nobody gets a permit, not even from an open block."""
    limit = RateLimit(name, 20, "1m", block=10, client=client)
    assert limit.acquire()
    limit.pause()
    assert not limit.try_acquire()
    limit.resume()
    assert limit.try_acquire()


def test_blocks_cost_little(client: Client, name: str) -> None:
    """A thousand permits in blocks of 50: 20 slots, and about three transactions for each."""
    limit = RateLimit(name, 1000, "1m", block=50, client=client)
    before = sum(client._driver.session.stats.requests.values())
    for _ in range(1000):
        assert limit.acquire(10)
    spent = sum(client._driver.session.stats.requests.values()) - before
    assert spent <= 80
    assert not limit.try_acquire()


def test_ten_thousand_starts_cost_etcd_a_few_hundred_transactions(
    fresh_etcd: EtcdServer, name: str
) -> None:
    """By etcd's own counter: 250 blocks of 40 for every 10,000 permits, and three transactions for
    each. The period is 10 s, so that the test sees two of them: the second one's are handed over.
    """
    rate = Rate(10_000, 10.0, 40)
    with etcdsem.connect(fresh_etcd.endpoint) as one, etcdsem.connect(fresh_etcd.endpoint) as two:
        limits = [RateLimit(name, *rate[:2], client=client) for client in (one, two) * 2]
        before = requests(fresh_etcd)
        starts: list[Span] = []

        def work(limit: RateLimit) -> None:
            while len(starts) < 2 * rate.starts:
                starts.append(started(limit))

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, limits))
        after = requests(fresh_etcd)
    spent = {
        key: after[key] - before.get(key, 0) for key in after if after[key] > before.get(key, 0)
    }
    print(f"{len(starts)} permits cost {spent}")
    assert most_in_a_window(starts, rate.period) <= rate.starts
    blocks = len(starts) / rate.block
    assert spent["Txn"] <= 3 * blocks


def requests(etcd: EtcdServer) -> dict[str, int]:
    """How many unary requests an etcd has answered, by the name of the call."""
    call = re.compile(r'grpc_server_handled_total\{.*grpc_method="(\w+)".*grpc_type="unary"')
    found: dict[str, int] = {}
    for key, number in metrics(etcd).items():
        if match := call.match(key):
            found[match[1]] = found.get(match[1], 0) + int(number)
    return found


def test_with_and_decorator(client: Client, name: str) -> None:
    """``with`` and a decorator wait for a permit; there is nothing to release."""
    limit = RateLimit(name, 3, "1h", client=client)
    with limit:
        pass

    @limit
    def double(number: int) -> int:
        return 2 * number

    assert double(4) == 8
    assert len(limit.status().holders) == 2
    again = pickle.loads(pickle.dumps(RateLimit(name, 3, "1h", client=client)))
    assert again.wanted == Rate(3, 3600.0, 1)


def test_close(client: Client, name: str) -> None:
    """A closed rate limit is not known any more."""
    limit = RateLimit(name, 3, "1h", client=client)
    limit.acquire()
    limit.close()
    limit.close()
    with pytest.raises(SemaphoreClosed):
        limit.acquire(1)


def test_asyncio(etcd: EtcdServer, name: str) -> None:
    """The same in an event loop: many tasks share a client, and no window holds too many."""

    async def main() -> list[Span]:
        starts: list[Span] = []
        async with aio.connect(etcd.endpoint) as client:
            limit = await aio.RateLimit(name, 10, 0.5, client=client)

            async def work() -> None:
                before = boot_time()
                start = await limit.acquire()
                assert start is not None
                starts.append(Span(before + start.waited, boot_time()))

            await asyncio.gather(*(work() for _ in range(45)))
            async with limit:
                pass
            assert isinstance(await limit.try_acquire(), aio.Permit | etcdsem.Denied)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    while True:
                        await limit.acquire()
            assert (await limit.status()).rate == Rate(10, 0.5, 1)
            await limit.resize(20, "1m")
            await limit.close()
        return starts

    starts = asyncio.run(main())
    assert len(starts) == 45
    assert most_in_a_window(starts, 0.5) <= 10


@pytest.mark.parametrize("rate", [(0, 1), (5, 0), (5, 0.05), (5, "soon"), (True, 1), (2.5, 1)])
def test_bad_rates(rate: tuple[int, float | str]) -> None:
    """What cannot be a rate is refused, and the message says what can."""
    with pytest.raises(InvalidSetting):
        make_rate(*rate)


def test_reading_rates() -> None:
    """As on the command line, and in etcd."""
    assert read_rate("100/1m") == Rate(100, 60.0, 1)
    assert read_rate("10000/1m") == Rate(10000, 60.0, 40)
    assert read_rate("10000/1m/50") == Rate(10000, 60.0, 50)
    assert str(Rate(10000, 60.0, 50)) == "10000/1m/50"
    assert str(Rate(5, 0.25, 1)) == "5/0.25s"
    for wrong in ("100", "100/", "/1m", "100/1m/0", "100/1m/x", "100/1m/1/1", "-1/1m"):
        with pytest.raises(InvalidSetting):
            read_rate(wrong)


def test_next_free_is_an_estimate(client: Client, name: str) -> None:
    """0 while there is room; then until the oldest permit is a period old."""
    limit = RateLimit(name, 2, "1m", client=client)
    assert forecast.next_free(limit.status(ttl=False), time.time()) == 0.0
    limit.acquire()
    limit.acquire()
    waits = [
        forecast.next_free(limit.status(ttl=False), time.time() + late) for late in (0, 30, 90)
    ]
    assert all(a > b for a, b in pairwise(waits))
    assert waits[-1] == 0.0


# ---------------------------------------------------------------- at most so many, so often


def test_both_at_once(client: Client, name: str) -> None:
    """A lease comes with a permit of the rate limit beside the semaphore, or not at all."""
    sem = Semaphore(2, name, rate="3/1h", client=client)
    limit = RateLimit(f"{name}.rate", 3, "1h", client=client)
    for _ in range(3):
        assert sem.acquire()
        sem.release()
    assert not sem.acquire(timeout=0)
    assert not sem.acquire(timeout=0.2)
    assert sem.leases == ()
    assert sem.get_value() == 0  # the slot was given back
    assert limit.status().held == 3
    with pytest.raises(InconsistentLimit):
        Semaphore(2, name, rate="7/1h", client=client)
    limit.resize(4, "1h")
    assert sem.acquire(timeout=10)


def test_who_has_no_room_uses_no_start(client: Client, name: str) -> None:
    """First the lease, then the start: a full semaphore costs the rate limit nothing."""
    sem = Semaphore(1, name, rate="10/1h", client=client)
    assert sem.acquire()
    assert not sem.acquire(timeout=0.1)
    assert RateLimit(f"{name}.rate", client=client).status().held == 1


def test_interrupted_while_it_waits_for_the_start(client: Client, name: str) -> None:
    """What interrupts gives the lease back, too."""
    sem = Semaphore(1, name, rate="1/1h", client=client)
    with sem:
        pass
    failed: list[BaseException] = []
    in_line = threading.Event()

    def work() -> None:
        try:
            sem.acquire_lease(on_wait=in_line.set)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert in_line.wait(30)
    assert sem.get_value() == 1
    RateLimit(f"{name}.rate", client=client).close()
    thread.join(30)
    assert [type(error) for error in failed] == [SemaphoreClosed]
    assert sem.get_value() == 0


def test_a_lease_lost_while_it_waits_for_the_start(client: Client, name: str) -> None:
    """It is not given, though the permit has come: another lease is."""
    sem = Semaphore(1, name, rate="1/1h", client=client)
    limit = RateLimit(f"{name}.rate", client=client)
    with sem:
        pass
    in_line = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(sem.acquire_lease, 60, on_wait=in_line.set)
        assert in_line.wait(30)
        evicted = client.evict(name, slot=0)
        until = time.monotonic() + 30
        while client._driver.session.losses == 0 and time.monotonic() < until:
            time.sleep(0.01)
        limit.resize(5, "1h")
        lease = waiting.result(60)
    assert lease is not None
    assert lease.valid
    assert isinstance(evicted, Holder)
    assert lease.id != evicted.lease_id


async def _both(endpoint: str, name: str) -> None:

    async with aio.connect(endpoint) as client:
        sem = await aio.Semaphore(2, name, rate="1/1h", client=client)
        assert await sem.acquire()
        assert not await sem.acquire(timeout=0)
        assert len(sem.leases) == 1


def test_both_at_once_with_asyncio(etcd: EtcdServer, name: str) -> None:
    """The same for tasks."""
    asyncio.run(_both(etcd.endpoint, name))


def test_a_rate_is_no_part_of_several_at_once(client: Client, name: str) -> None:
    """It says so, before anything is done."""
    paced = Semaphore(2, name, rate="1/1h", client=client)
    with pytest.raises(InvalidSetting, match="has a rate"):
        etcdsem.acquire_all(paced, Semaphore(1, f"{name}-b", client=client))
    with pytest.raises(InvalidSetting, match="invalid rate"):
        Semaphore(2, name, rate="often", client=client)


@pytest.mark.parametrize("block", [1, 2])
def test_who_stands_still_just_before_a_start_has_another_lease_for_it(
    monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    """The moment of a permit is the one by which its lease was judged: it has a period left."""
    right = rates._usable
    left: list[float] = []

    with memory() as etcd:

        def stands_still(
            station: SemaphoreState, grant: Grant, recorded: float, cost: int
        ) -> Procedure[object]:
            found = yield from right(station, grant, recorded, cost)
            if not left:  # now it does, for longer than a fresh lease has to spare
                grant.lease.sent -= 2.5
                grant.lease.deadline -= 2.5
            left.append(grant.lease.deadline - station.session.env.now())
            return found

        monkeypatch.setattr(rates, "_usable", stands_still)
        limit = RateLimit("api", 4, "10s", block=block, client=etcd.client())
        assert limit.acquire()
        assert left[0] < permit.need(10.0) <= left[1]
        assert limit.status().held == 1  # the first slot was given back
