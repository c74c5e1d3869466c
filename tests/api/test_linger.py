"""linger: a released slot stays with its client for a moment, unless anybody waits."""

from __future__ import annotations

import asyncio
import math
import threading
from typing import TYPE_CHECKING, Any

import pytest

import etcdsem
from etcdsem import Client, InvalidSetting, Lease, LeaseLost, ReleasedTooOften, Semaphore, aio
from etcdsem.testing import aio as aio_testing
from etcdsem.testing import memory
from tests.helpers.costs import counted, spent
from tests.helpers.history import assert_clean
from tests.helpers.waiting import eventually

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer
    from etcdsem.testing import Memory


def held(etcd: EtcdServer, name: str) -> bool:
    """Is a slot taken, by its key in etcd?"""
    return bool(etcd.etcdctl("get", "--prefix", "--keys-only", f"/etcdsem/{name}/leases/"))


def warm_up(sem: Semaphore) -> None:
    """Cycle until slots stay, which begins once the watches are up."""

    def stays() -> bool:
        with sem:
            pass
        before = counted(sem.client)
        with sem:
            pass
        return not spent(sem.client, before)

    eventually(stays)


@pytest.mark.smoke
def test_cycles_without_etcd(any_etcd: EtcdServer, client: Client, name: str) -> None:
    """Cycles of one client cost no transaction, and one in a second makes a real release."""
    sem = Semaphore(2, name, client=client, linger="50ms")
    warm_up(sem)
    before = counted(client)
    for _ in range(200):
        assert sem.acquire()
        assert sem.release()
    assert spent(client, before).get("txn", 0) < 20
    eventually(lambda: not held(any_etcd, name), what="the slot is given back")
    assert_clean(any_etcd, name)


def test_each_lease_is_one_of_its_own(any_etcd: EtcdServer, client: Client, name: str) -> None:
    """A released lease is over, though the next one has its slot and its token."""
    sem = Semaphore(2, name, client=client, linger="1s")
    warm_up(sem)
    first = sem.acquire_lease()
    assert first is not None
    assert first.release()
    second = sem.acquire_lease()
    assert second is not None
    assert (second.slot, second.fencing_token) == (first.slot, first.fencing_token)
    assert second.valid
    assert not first.valid
    assert first.release() is False
    with pytest.raises(LeaseLost):
        first.check()
    assert sem.leases == (second,)
    assert second.release()
    with pytest.raises(ReleasedTooOften):
        sem.release()
    sem.client.close()
    assert not held(any_etcd, name)


def test_a_waiter_elsewhere_gets_it_at_once(
    any_etcd: EtcdServer, client: Client, name: str
) -> None:
    """Threads that cycle all the time do not keep a waiter of another client waiting."""
    sem = Semaphore(1, name, client=client, linger="1s", lease_timeout="30s")
    warm_up(sem)
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            with sem:
                pass

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    with etcdsem.connect(any_etcd.endpoint) as other:
        patient = Semaphore(1, name, client=other)
        for _ in range(10):
            assert patient.acquire(timeout="20s")
            patient.release()
    stop.set()
    for thread in threads:
        thread.join(30)
    eventually(lambda: not held(any_etcd, name))
    assert_clean(any_etcd, name)


def test_time_is_bounded() -> None:
    """Given back when linger is over; and a second after etcd granted it, whoever cycles."""
    with memory() as etcd:
        client = etcd.client()
        sem = Semaphore(1, "x", client=client, linger="500ms")
        other = Semaphore(1, "x", client=etcd.client())
        cycle_in_memory(sem, etcd)
        assert not other.acquire(timeout=0)
        etcd.advance("499ms")
        assert not other.acquire(timeout=0)
        etcd.advance("2ms")
        assert other.acquire(timeout=0)
        other.release()
        cycle_in_memory(sem, etcd)
        for _ in range(9):
            etcd.advance("100ms")
            with sem:
                pass
            assert not other.acquire(timeout=0)
        etcd.advance("101ms")
        with sem:
            pass
        assert other.acquire(timeout=0)


def cycle_in_memory(sem: Semaphore, etcd: Memory) -> None:
    """The first cycle sets up the watches; the second leaves the slot with its client."""
    for _ in range(2):
        with sem:
            pass
        etcd.advance(0)


def test_a_pause_ends_it() -> None:
    """Nobody gets a slot of a paused semaphore, and a drain sees it free."""
    with memory() as etcd:
        sem = Semaphore(1, "x", client=etcd.client(), linger="1s")
        cycle_in_memory(sem, etcd)
        operator = Semaphore(1, "x", client=etcd.client())
        operator.pause()
        etcd.advance("10ms")
        assert not sem.acquire(timeout=0)
        assert not any("/leases/" in key for key in etcd.keys("/etcdsem/"))
        operator.resume()
        assert sem.acquire(timeout=0)
        etcd.advance("10ms")
        operator.pause()
        etcd.advance("10ms")
        sem.release()
        assert not any("/leases/" in key for key in etcd.keys("/etcdsem/"))


def test_another_request_takes_another_slot() -> None:
    """A kept slot has the record of its request; one with another owner takes one of its own."""
    with memory() as etcd:
        client = etcd.client()
        sem = Semaphore(3, "x", client=client, linger="1s")
        cycle_in_memory(sem, etcd)
        named = Semaphore(3, "x", client=client, linger="1s", owner="alice")
        kept = sem.acquire_lease()
        assert kept is not None
        kept.release()
        lease = named.acquire_lease()
        assert lease is not None
        assert lease.slot != kept.slot
        heavy = sem.acquire_lease(weight=2, timeout=0)
        assert heavy is None  # one slot is alice's, and one is kept: it is held in etcd
        etcd.advance("1s")
        assert sem.acquire_lease(weight=2, timeout=0)


def test_a_lost_one_is_not_given_again() -> None:
    """If etcd ends its lease meanwhile, the next acquire asks etcd."""
    with memory() as etcd:
        lost: list[Lease] = []
        sem = Semaphore(1, "x", client=etcd.client(), linger="1s", on_lost=lost.append)
        cycle_in_memory(sem, etcd)
        etcd.suspend("10m")
        lease = sem.acquire_lease(timeout="1m")
        assert lease is not None
        assert lease.valid
        assert lost == []  # nobody held it


def test_closing_gives_it_back(any_etcd: EtcdServer, name: str) -> None:
    """At once, and no thread of the client stays."""
    before = threading.active_count()
    with etcdsem.connect(any_etcd.endpoint) as client:
        warm_up(Semaphore(1, name, client=client, linger="1s"))
    assert not held(any_etcd, name)
    eventually(lambda: threading.active_count() <= before)
    assert_clean(any_etcd, name)


def test_max_hold_counts_from_each_acquire() -> None:
    """The lease of a slot that stays has no bound, and each holder has all of its time."""
    with memory() as etcd:
        sem = Semaphore(1, "x", client=etcd.client(), linger="1s", max_hold="1s")
        cycle_in_memory(sem, etcd)
        etcd.advance("600ms")
        lease = sem.acquire_lease()
        assert lease is not None
        etcd.advance("600ms")
        assert lease.valid
        etcd.advance("500ms")
        assert not lease.valid


async def _cycles(etcd: EtcdServer, name: str) -> None:
    async with aio.connect(etcd.endpoint) as client:
        sem = await aio.Semaphore(2, name, client=client, linger="50ms")
        connection: Any = client._driver.connection
        spared = 0
        for _ in range(400):
            before = connection.counters["txn"]
            async with sem:
                await asyncio.sleep(0)
            spared += connection.counters["txn"] == before
        assert spared > 200


def test_asyncio(any_etcd: EtcdServer, name: str) -> None:
    """The same for tasks."""
    asyncio.run(_cycles(any_etcd, name))
    assert not held(any_etcd, name)
    assert_clean(any_etcd, name)


def test_asyncio_in_memory() -> None:
    """A cancelled task leaves nothing behind, and a kept slot goes to a waiter."""

    async def cycle(sem: aio.Semaphore) -> None:
        while True:
            async with sem:
                await asyncio.sleep(0.01)

    async def main() -> None:
        async with aio_testing.memory() as etcd:
            sem = await aio.Semaphore(1, "x", client=etcd.client(), linger="1s")
            for _ in range(3):
                async with sem:
                    await asyncio.sleep(0.01)
            other = await aio.Semaphore(1, "x", client=etcd.client())
            assert await other.acquire(timeout="300ms")
            await other.release()
            cycling = asyncio.create_task(cycle(sem))
            await asyncio.sleep(0.2)
            assert await other.acquire(timeout="300ms")  # though the slot is used all the time
            cycling.cancel()
            await asyncio.gather(cycling, return_exceptions=True)
            waiting = asyncio.create_task(sem.acquire())
            await asyncio.sleep(0.1)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            await other.release()
            assert await sem.acquire(timeout="1s")

    asyncio.run(main())


@pytest.mark.parametrize("wrong", [-1, "soon", math.nan, math.inf, True, "1001ms"])
def test_what_cannot_be(wrong: Any) -> None:
    """Nonsense is refused before etcd is asked."""
    with pytest.raises(InvalidSetting, match="linger"):
        Semaphore(1, "x", register=False, linger=wrong)


def test_what_can_be() -> None:
    """Every way to write a duration; None and 0 keep nothing."""
    for given, means in ((None, 0.0), (0, 0.0), ("10ms", 0.01), (1, 1.0)):
        assert Semaphore(1, "x", register=False, linger=given).linger == means
