"""Who is served first: priorities, and backfill requests that pass large ones."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

import etcdsem
from etcdsem import Client, Semaphore
from etcdsem.errors import InvalidSetting
from tests.helpers.history import assert_clean
from tests.helpers.waiters import Asking, take
from tests.helpers.waiting import eventually

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

pytestmark = pytest.mark.usefixtures("any_etcd")


def keys(etcd: EtcdServer, name: str) -> set[str]:
    """The semaphore's keys without those of holders and waiters."""
    found = etcd.etcdctl("get", "--prefix", "--keys-only", f"/etcdsem/{name}/").split()
    return {key.split("/")[3] for key in found if len(key.split("/")) == 4}


def test_the_highest_is_served_first(any_etcd: EtcdServer, client: Client, name: str) -> None:
    """And of the same priority in the order in which they came; status shows that order."""
    sem = Semaphore(1, name, client=client)
    with etcdsem.connect(any_etcd.endpoint) as other:
        here = Semaphore(1, name, client=other)
        held = take(sem)
        wanted = [0, -5, 10, 0, 10, 100, -5]
        line = [
            Asking((sem, here)[number % 2], priority=priority)
            for number, priority in enumerate(wanted)
        ]
        order = sorted(range(len(wanted)), key=lambda number: (-wanted[number], number))
        shown = sem.waiters()
        assert [one.priority for one in shown] == [wanted[number] for number in order]
        assert [one.position for one in shown] == list(range(1, 8))
        assert "priorities" in keys(any_etcd, name)
        held.release()
        for place, number in enumerate(order):
            lease = line[number].get()
            assert all(line[later].waits for later in order[place + 1 :])
            lease.release()
        eventually(lambda: keys(any_etcd, name) == {"max_leases"})


def test_what_is_held_is_taken_from_nobody(client: Client, name: str) -> None:
    """A high priority waits for a slot like everybody."""
    sem = Semaphore(1, name, client=client)
    held = take(sem)
    assert sem.acquire(0.2, priority=100) is False
    assert held.valid
    held.release()


def test_a_priority_that_comes_in_between_is_seen(
    any_etcd: EtcdServer, client: Client, name: str
) -> None:
    """A holder knows from its grant message who is next. Then somebody comes with a priority: the
    hand-over that was thought of does not hold, and another is made.
    """
    sem = Semaphore(1, name, client=client)
    held = take(sem)
    first, second, third, last = (Asking(sem) for _ in range(4))
    held.release()
    first.get().release()
    lease = second.get()
    assert len(lease._grant.semaphore.queue.waiters) == 2, "those who are next are known"
    urgent = Asking(sem, priority=1)
    lease.release()
    lease = urgent.get()
    assert third.waits
    assert last.waits
    lease.release()
    third.get().release()
    last.get().release()
    eventually(lambda: keys(any_etcd, name) == {"max_leases"})


def test_a_low_priority_lets_the_ordinary_pass(client: Client, name: str) -> None:
    """Also one who comes later and knows nothing of priorities."""
    sem = Semaphore(1, name, client=client)
    held = take(sem)
    low, ordinary = Asking(sem, priority=-1), Asking(sem)
    held.release()
    ordinary.get().release()
    low.get().release()


@pytest.mark.parametrize("how", ["timeout", "evict"])
def test_the_mark_goes_when_the_priority_does(
    any_etcd: EtcdServer, client: Client, name: str, how: str
) -> None:
    """After that hand-overs cost what they cost before."""
    sem = Semaphore(1, name, client=client)
    held = take(sem)
    other, high = Asking(sem), Asking(sem, priority=1, timeout=1.0 if how == "timeout" else 5.0)
    assert "priorities" in keys(any_etcd, name)
    if how == "timeout":
        high.thread.join(20)
    else:
        held.release()
        held = high.get()
    held.release()
    lease = other.get()
    assert "priorities" not in keys(any_etcd, name)
    lease.release()
    if how == "evict":
        assert_clean(any_etcd, name)


@pytest.mark.parametrize("wrong", [101, -101, 0.5, True, "high"])
def test_wrong_priorities(client: Client, name: str, wrong: object) -> None:
    """Are refused, and say what they may be."""
    sem = Semaphore(1, name, client=client)
    with pytest.raises(InvalidSetting, match="priority must be a whole number from -100 to 100"):
        sem.acquire(priority=wrong)  # type: ignore[arg-type]


def test_eager_ones_pass_who_wants_more_than_is_free(
    any_etcd: EtcdServer, client: Client, name: str
) -> None:
    """One that is there when a slot is freed, one that comes when a slot is free; no other."""
    sem = Semaphore(3, name, client=client)
    with etcdsem.connect(any_etcd.endpoint) as other:
        here = Semaphore(3, name, client=other)
        held = [take(sem) for _ in range(3)]
        big = Asking(sem, weight=3)
        small = Asking(sem)
        backfill = Asking(here, backfill=True)
        waiters = sem.waiters()
        assert [one.backfill for one in waiters] == [False, False, True]
        with pytest.warns(DeprecationWarning, match="backfill"):
            assert waiters[2].eager  # the deprecated name
        held[0].release()
        lease = backfill.get()
        held[1].release()
        lease.release()
        Asking(here, backfill=True).get().release()
        assert big.waits
        assert small.waits
        held[2].release()
        big.get().release()
        small.get().release()


def test_an_eager_one_far_behind_is_found(client: Client, name: str) -> None:
    """It is served though the part of the line that is usually read does not contain it."""
    sem = Semaphore(2, name, client=client)
    held = take(sem)
    big = Asking(sem, weight=2)
    crowd = [threading.Thread(target=_use, args=(sem,), daemon=True) for _ in range(40)]
    for thread in crowd:
        thread.start()
    eventually(lambda: len(sem.waiters()) == 41)
    Asking(sem, backfill=True).get().release()
    assert big.waits
    held.release()
    big.get().release()
    for thread in crowd:
        thread.join(20)


def _use(sem: Semaphore) -> None:
    with sem.hold():
        pass
