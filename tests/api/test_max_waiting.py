"""A bounded queue: `max_waiting`, on a real etcd and in memory."""

from __future__ import annotations

import asyncio
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

import etcdsem
import etcdsem.testing.aio
from etcdsem import Client, InvalidSetting, QueueFull, RateLimit, Semaphore, aio
from etcdsem.core import acquire, release
from etcdsem.core.commands import Delete, Procedure, Transact
from etcdsem.core.grants import Grant
from etcdsem.metrics import snapshot
from tests.helpers.history import assert_clean
from tests.helpers.waiters import Asking, Waiters

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer


def test_one_too_many_is_refused_at_once(any_etcd: EtcdServer, client: Client, name: str) -> None:
    """Two may wait, whoever they are; the third is refused and leaves nothing in the queue. When
    there is a place again, the next one waits. Nobody is refused who need not wait.
    """
    sem = Semaphore(1, name, client=client, max_waiting=2)
    with etcdsem.connect(any_etcd.endpoint) as other:
        assert sem.acquire()
        waiters = Waiters(Semaphore(1, name, client=other), 1)
        line = [Asking(sem)]
        for _ in range(3):
            with pytest.raises(QueueFull, match=f"2 or more callers are waiting.*status {name}"):
                sem.acquire()
        assert sem.acquire(timeout=0) is False
        assert len(sem.waiters()) == 2
        (mine,) = (one for one in snapshot().semaphores if one.name == name)
        assert (mine.refused_total, mine.pending_leases) == (3, 2)
        assert sem.release()
        waiters.join()
        line.append(Asking(sem))
        assert line[1].waits
        waiters.leases[0].release()
        for one in line:
            one.get().release()
        assert sem.acquire()
        sem.release()
    assert_clean(any_etcd, name)


def test_a_place_that_comes_while_one_leaves(
    any_etcd: EtcdServer, client: Client, name: str
) -> None:
    """The one that waits leaves between a caller's JOIN, which finds one too many, and its LEAVE:
    it waits instead of being refused.
    """
    sem = Semaphore(1, name, client=client, max_waiting=1)
    with etcdsem.connect(any_etcd.endpoint) as other:
        theirs = Semaphore(1, name, client=other)
        assert theirs.acquire()
        first = Asking(theirs)
        state = client._state(name)
        request = sem._request(state, theirs.release)
        evicted: list[object] = []

        def evict() -> None:
            """In a thread: this one is inside of a client."""
            with ThreadPoolExecutor(1) as pool:
                waiter = pool.submit(theirs.waiters).result()[0]
                evicted.append(pool.submit(other.evict, name, lease=waiter.lease_id).result())

        def acquiring() -> Procedure[Grant | None]:
            procedure = acquire.acquire(state, request, math.inf, once=False)
            command = next(procedure)
            while True:
                leaves = isinstance(command, Transact) and command.txn.success[:1] == (
                    Delete(command.txn.compare[0].key) if command.txn.compare else None,
                )
                if leaves and not evicted:
                    evict()
                try:
                    command = procedure.send((yield command))
                except StopIteration as stop:
                    return stop.value  # type: ignore[no-any-return]

        grant = client._run(acquiring(), "acquire")
        assert evicted
        assert isinstance(grant, Grant)
        client._run(release.release(grant), "release")
        first.thread.join(10)
        assert isinstance(first.error, etcdsem.Evicted)


def test_zero_never_waits(client: Client, name: str) -> None:
    """With 0 a caller gets a slot now, or is refused; a block is not run."""
    sem = Semaphore(1, name, client=client, max_waiting=0)
    with sem:
        for block in (sem, sem.hold()):
            with pytest.raises(QueueFull, match="it is full"), block:
                raise AssertionError
        with pytest.raises(QueueFull):
            sem.acquire(timeout=10)
        assert sem.acquire(timeout=0) is False
        assert not sem.waiters()
    assert not sem.leases


@pytest.mark.parametrize("most", [1, 3])
def test_many_at_once(any_etcd: EtcdServer, client: Client, name: str, most: int) -> None:
    """Of many that come at once, exactly as many wait as may."""
    holder = Semaphore(1, name, client=client)
    assert holder.acquire()
    clients = [etcdsem.connect(any_etcd.endpoint) for _ in range(3)]
    callers = [Semaphore(1, name, client=one, max_waiting=most) for one in clients]
    refused: list[QueueFull] = []
    all_but = threading.Event()

    def ask(number: int) -> bool:
        try:
            got = callers[number % 3].acquire()
        except QueueFull as error:
            refused.append(error)
            if len(refused) == 12 - most:
                all_but.set()
            return False
        callers[number % 3].release()
        return got

    with ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(ask, number) for number in range(12)]
        assert all_but.wait(20)
        assert len(holder.waiters()) == most
        holder.release()
        assert sum(one.result() for one in asked) == most
    for one in clients:
        one.close()
    assert_clean(any_etcd, name)


def test_weights_and_several(client: Client, name: str) -> None:
    """Callers count, not slots. Several semaphores at once: refused if any queue is full, and then
    nothing is held.
    """
    big = Semaphore(2, name, client=client, max_waiting=1)
    small = Semaphore(1, f"{name}-2", client=client)
    assert big.acquire()
    first = Asking(big, weight=2)
    assert first.waits
    with pytest.raises(QueueFull):
        big.acquire_lease(weight=2)
    with pytest.raises(QueueFull, match=name):
        etcdsem.acquire_all(big, small)
    assert small.get_value() == 0
    big.release()
    first.get().release()


def test_a_rate_limit(client: Client, name: str) -> None:
    """The same for permits. With blocks, those that wait in line here count."""
    single = RateLimit(name, 1, "1h", client=client, max_waiting=0)
    assert single.acquire()
    with pytest.raises(QueueFull):
        single.acquire()
    assert not single.try_acquire()
    (mine,) = (one for one in snapshot().rate_limits if one.name == name)
    assert mine.refused_total == 1
    blocks = RateLimit(f"{name}-2", 10, "1h", block=10, client=client, max_waiting=1)
    blocks.acquire()
    client.evict(f"{name}-2", slot=0)  # the block is used up; the next one comes when it is resumed
    client.pause(f"{name}-2")
    waits = ThreadPoolExecutor(1).submit(blocks.acquire, 20)
    while not blocks.status().waiters:
        assert not waits.done()
    with pytest.raises(QueueFull):
        blocks.acquire()
    client.resume(f"{name}-2")
    assert waits.result()


def test_invalid(client: Client, name: str) -> None:
    """Not a number of callers."""
    for wrong in (-1, 1.5, "3", True):
        with pytest.raises(InvalidSetting, match="max_waiting"):
            Semaphore(1, name, client=client, max_waiting=wrong)  # type: ignore[arg-type]


def test_asyncio_in_memory() -> None:
    """Tasks, and the etcd in memory."""

    async def work() -> None:
        async with etcdsem.testing.aio.memory() as etcd:
            sem = await aio.Semaphore(1, "x", client=etcd.client(), max_waiting=1)
            async with sem:
                waits = asyncio.create_task(sem.acquire())
                while not await sem.waiters():
                    await asyncio.sleep(0)
                with pytest.raises(QueueFull):
                    await sem.acquire()
            assert await waits
            await sem.release()

    asyncio.run(work())
