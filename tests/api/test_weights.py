"""Leases that hold several slots: all of them or none, in their turn."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

import etcdsem
from etcdsem import Client, LeaseLost, Semaphore, WeightExceedsLimit
from etcdsem.errors import InvalidSetting
from etcdsem.validation import MAX_WEIGHT
from tests.helpers.costs import counted, spent
from tests.helpers.history import assert_clean
from tests.helpers.waiters import Asking, take
from tests.helpers.waiting import eventually

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

pytestmark = pytest.mark.usefixtures("any_etcd")


def test_all_slots_of_a_lease_come_and_go_together(
    any_etcd: EtcdServer, client: Client, name: str
) -> None:
    """Three slots with one lease and one token, counted as three."""
    sem = Semaphore(4, name, client=client)
    one = take(sem)
    three = take(sem, 3)
    assert three.weight == 3
    assert sorted((*three.slots, one.slot)) == [0, 1, 2, 3]
    assert three.slot == three.slots[0]
    assert sem.get_value() == 4
    holders = [holder for holder in sem.holders() if holder.lease_id == three.id]
    assert [holder.slot for holder in holders] == sorted(three.slots)
    assert {(h.weight, h.fencing_token) for h in holders} == {(3, three.fencing_token)}
    assert sem.acquire(0) is False
    assert three.release()
    assert sem.get_value() == 1
    assert sem.acquire_lease(0, weight=4) is None, "one is held"
    one.release()
    with sem.hold(0, weight=4) as four:
        assert four.slots == (0, 1, 2, 3)
    assert_clean(any_etcd, name)


def test_the_greatest_weight(any_etcd: EtcdServer, client: Client, name: str) -> None:
    """It fits into one transaction of every etcd: taken, granted to a waiter, given back."""
    sem = Semaphore(MAX_WEIGHT + 3, name, client=client)
    first = take(sem, MAX_WEIGHT)
    second = Asking(sem, weight=MAX_WEIGHT)
    assert second.waits
    assert first.release()
    assert second.get().weight == MAX_WEIGHT
    assert second.get().release()
    assert_clean(any_etcd, name)


def test_cost_of_an_uncontended_weight(client: Client, name: str) -> None:
    """One read to find free slots, one transaction to take them, one to give them back."""
    sem = Semaphore(9, name, client=client)
    take(sem, 3).release()
    before = counted(client)
    lease = take(sem, 3)
    assert spent(client, before) == {"read": 1, "txn": 1}
    lease.release()
    assert spent(client, before) == {"read": 1, "txn": 2}


def test_a_big_one_is_not_passed(any_etcd: EtcdServer, client: Client, name: str) -> None:
    """A slot that is free waits for the big one in front, though a small one stands behind it."""
    sem = Semaphore(3, name, client=client)
    held = [take(sem) for _ in range(3)]
    big, small = Asking(sem, weight=2), Asking(sem)
    assert [(w.position, w.weight) for w in sem.waiters()] == [(1, 2), (2, 1)]
    held[0].release()
    assert sem.get_value() == 2
    assert big.waits
    assert small.waits
    assert sem.acquire(0) is False, "nor does anybody pass who comes later"
    held[1].release()
    assert sorted(big.get().slots) == sorted((held[0].slot, held[1].slot))
    assert small.waits
    held[2].release()
    small.get().release()
    big.get().release()
    assert_clean(any_etcd, name)


@pytest.mark.parametrize("how", ["timeout", "evict", "deletion"])
def test_who_stands_behind_a_big_one_that_leaves_is_served(
    any_etcd: EtcdServer, client: Client, name: str, how: str
) -> None:
    """No slot is freed then; that it left the line is enough."""
    sem = Semaphore(2, name, client=client)
    held = take(sem)
    with etcdsem.connect(any_etcd.endpoint) as other:
        here = Semaphore(2, name, client=other)
        big = Asking(sem, weight=2, timeout=1.0 if how == "timeout" else None)
        small = Asking(here)
        assert small.waits
        waiter = f"/etcdsem/{name}/waiters/{client.id}/{sem.waiters()[0].lease_id}"
        if how == "deletion":  # it goes to the end of the line then, behind the small one
            any_etcd.etcdctl("del", waiter)
        elif how == "evict":
            client.evict(name, lease=sem.waiters()[0].lease_id)
        small.get().release()
        held.release()
        if how == "deletion":
            big.get().release()
        else:
            big.thread.join(20)
            assert big.lease is None


def test_released_slots_go_to_as_many_as_they_suffice_for(
    any_etcd: EtcdServer, client: Client, name: str
) -> None:
    """A lease of four is given back: the first three in line get what they want, in order."""
    sem = Semaphore(4, name, client=client)
    four = take(sem, 4)
    line = [Asking(sem, weight=weight) for weight in (1, 2, 1, 3)]
    four.release()
    leases = [one.get() for one in line[:3]]
    assert sorted(slot for lease in leases for slot in lease.slots) == [0, 1, 2, 3]
    assert line[3].waits
    for lease in leases:
        lease.release()
    line[3].get().release()
    assert_clean(any_etcd, name)


def test_more_than_the_limit_is_refused_at_once(client: Client, name: str) -> None:
    """With an error of its own that says what to do; also by one who knows an old limit."""
    sem = Semaphore(2, name, client=client)
    with pytest.raises(WeightExceedsLimit, match=r"weight 3 exceeds the limit of 2.*etcdsem limit"):
        sem.acquire(weight=3)
    assert issubclass(WeightExceedsLimit, ValueError)
    client.resize(name, 3)
    take(sem, 3).release()
    for wrong in (0, -1, MAX_WEIGHT + 1, 1.5, True, "2"):
        with pytest.raises(InvalidSetting, match="weight must be a whole number from 1 to 32"):
            sem.acquire(weight=wrong)  # type: ignore[arg-type]


def test_after_a_shrink_it_is_refused_too(any_etcd: EtcdServer, client: Client, name: str) -> None:
    """Who waits for more than a lowered limit hears so at once; not if that is 0, or paused."""
    sem = Semaphore(3, name, client=client)
    held = take(sem)
    big, small = Asking(sem, weight=3), Asking(sem)
    client.resize(name, 0)
    assert big.waits
    client.resize(name, 2)
    big.thread.join(20)
    assert isinstance(big.error, WeightExceedsLimit)
    small.get().release()
    held.release()
    assert_clean(any_etcd, name)


def test_a_shrink_after_the_grant_changes_nothing(client: Client, name: str) -> None:
    """What is held stays held, and is given back."""
    sem = Semaphore(3, name, client=client)
    three = take(sem, 3)
    client.resize(name, 1)
    assert three.valid
    assert [holder.over_limit for holder in sem.holders()] == [False, True, True]
    assert three.release()
    take(sem).release()


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_lease_ends_with_any_of_its_slots(
    any_etcd: EtcdServer, client: Client, name: str, which: int
) -> None:
    """A slot that was deleted by hand: the lease is lost, the others are given back."""
    sem = Semaphore(3, name, client=client)
    three = take(sem, 3)
    small = Asking(sem)
    assert small.waits
    eventually(lambda: three._grant.watch is not None)
    any_etcd.etcdctl("del", f"/etcdsem/{name}/leases/{three.slots[which]:05d}")
    assert three.lost.wait(10)
    small.get()
    eventually(lambda: sem.get_value() == 1)
    with pytest.raises(LeaseLost):
        three.check()
    assert three.release() is False
    small.get().release()


@pytest.mark.parametrize("by", ["slot", "lease"])
def test_eviction_ends_the_whole_lease(client: Client, name: str, by: str) -> None:
    """By whichever of its slots it is named."""
    sem = Semaphore(3, name, client=client)
    two = take(sem, 2)
    if by == "slot":
        client.evict(name, slot=two.slots[1])
    else:
        client.evict(name, lease=two.id)
    assert sem.get_value() == 0
    assert two.release() is False


def test_two_big_ones_do_not_deadlock(any_etcd: EtcdServer, name: str) -> None:
    """Many want both of two slots, from two clients: one after the other gets them (Curator)."""
    with etcdsem.connect(any_etcd.endpoint) as one, etcdsem.connect(any_etcd.endpoint) as two:
        sems = [Semaphore(2, name, client=client) for client in (one, two)]
        _run(lambda number: _cycle(sems[number % 2], 2), 6)
        assert sems[0].get_value() == 0
    assert_clean(any_etcd, name)


def test_a_big_one_is_served_under_a_stream_of_small_ones(any_etcd: EtcdServer, name: str) -> None:
    """Small ones come and go all the time; who wants all slots gets them (redis-semaphore #18)."""
    with etcdsem.connect(any_etcd.endpoint) as one, etcdsem.connect(any_etcd.endpoint) as two:
        sems = [Semaphore(3, name, client=client) for client in (one, two)]
        served = threading.Event()

        def stream(number: int) -> None:
            while not served.is_set():
                with sems[number % 2].hold():
                    pass

        threads = [threading.Thread(target=stream, args=(number,)) for number in range(5)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(5):
                lease = sems[0].acquire_lease(20, weight=3)
                assert lease is not None
                assert lease.release()
        finally:
            served.set()
        for thread in threads:
            thread.join(20)
    assert_clean(any_etcd, name)


def _cycle(sem: Semaphore, weight: int) -> None:
    for _ in range(10):
        with sem.hold(20, weight=weight) as lease:
            assert lease.weight == weight


def _run(work: Callable[[int], None], many: int) -> None:
    errors: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(many)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors, errors
