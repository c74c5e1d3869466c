"""What it costs: transactions and events, counted where they leave for etcd."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

import etcdsem
from etcdsem import Client, Semaphore
from etcdsem.core import waiters
from etcdsem.core.watches import Watches
from tests.helpers.costs import counted, refused, spent
from tests.helpers.waiting import eventually

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer


def test_uncontended_is_one_and_one(client: Client, name: str) -> None:
    """With a warm lease, an acquire is one transaction and a release is one."""
    sem = Semaphore(3, name, client=client)
    with sem:
        pass
    before = counted(client)
    sem.acquire()
    assert spent(client, before) == {"txn": 1}
    sem.release()
    assert spent(client, before) == {"txn": 2}


def test_contended_with_one_waiter(any_etcd: EtcdServer, client: Client, name: str) -> None:
    """One holder, one waiter: JOIN, PASS, and one event, which nobody waits for. Who comes must be
    read (no commit), since nobody can have told the holder.
    """
    sem = Semaphore(1, name, client=client)
    sem.acquire()
    with etcdsem.connect(any_etcd.endpoint) as other:
        observer = Semaphore(1, name, client=other)

        def cycle() -> None:
            thread = threading.Thread(target=sem.acquire)
            thread.start()
            eventually(observer.waiters)
            sem.release()
            thread.join(20)

        cycle()  # opens the watches, and fills the pool of leases
        before = counted(client)
        for _ in range(20):
            cycle()
    cost = spent(client, before)
    assert cost.pop("read", 0) <= 20
    assert cost.pop("watch_events") <= 21  # that of the cycle before may come late
    assert cost == {"txn": 40}
    sem.release()


def test_two_programs_that_take_turns_read_nothing(
    any_etcd: EtcdServer, client: Client, name: str
) -> None:
    """The next waiter can be guessed: a cycle is JOIN and CLEAR, which passes the slot on."""
    with etcdsem.connect(any_etcd.endpoint) as other:
        sems = [Semaphore(1, name, client=one) for one in (client, other)]
        sems[0].acquire()

        def turn(holder: Semaphore, waiter: Semaphore) -> None:
            thread = threading.Thread(target=waiter.acquire)
            thread.start()
            eventually(lambda: observer.status(ttl=False).waiters)
            holder.release()
            thread.join(20)

        with etcdsem.connect(any_etcd.endpoint) as third:
            observer = Semaphore(1, name, client=third)
            for _ in range(3):
                turn(*sems)
                turn(*reversed(sems))
            before = [counted(one) for one in (client, other)]
            for _ in range(10):
                turn(*sems)
                turn(*reversed(sems))
        for one, at in zip((client, other), before, strict=True):
            cost = spent(one, at)
            assert cost.pop("watch_events") <= 11
            assert cost == {"txn": 20}
        sems[0].release()


def test_a_crowd_of_one_client_hands_over_together(any_etcd: EtcdServer, name: str) -> None:
    """Threads of one client that contend for many slots share the transactions that hand over:
    a cycle is less than two.
    """
    limit, threads, cycles = 50, 64, 20
    with etcdsem.connect(any_etcd.endpoint) as client:
        sem = Semaphore(limit, name, client=client)
        start = threading.Barrier(threads)

        def work() -> None:
            sem.acquire()  # those behind the limit wait in line meanwhile
            sem.release()
            start.wait(60)
            for _ in range(cycles):
                sem.acquire()
                sem.release()

        crowd = [threading.Thread(target=work) for _ in range(threads)]
        before = counted(client)
        for thread in crowd:
            thread.start()
        for thread in crowd:
            thread.join(60)
        cost = spent(client, before)
    print(f"{threads * (cycles + 1)} cycles of {threads} threads, limit {limit}: {cost}")
    assert cost["txn"] <= 2 * threads * (cycles + 1)
    assert cost.get("watch_events", 0) <= 1.1 * threads * (cycles + 1)


def test_nothing_is_refused(any_etcd: EtcdServer, name: str) -> None:
    """Two clients of five threads each, at limit 5: their threads open messages and read answers in
    any order, and none of them takes a holder for one who waits.
    """
    limit, threads, cycles = 5, 5, 300
    with etcdsem.connect(any_etcd.endpoint) as one, etcdsem.connect(any_etcd.endpoint) as other:

        def work(client: Client) -> None:
            sem = Semaphore(limit, name, client=client)
            for _ in range(cycles):
                with sem:
                    pass

        crowd = [
            threading.Thread(target=work, args=(client,))
            for client in (one, other)
            for _ in range(threads)
        ]
        for thread in crowd:
            thread.start()
        for thread in crowd:
            thread.join(60)
        assert refused(one) + refused(other) == 0


def test_contended_with_a_hundred_waiters(any_etcd: EtcdServer, name: str) -> None:
    """However many wait, a cycle is two transactions and one event; the line is read once in
    some tens of hand-overs.
    """
    waiting, cycles = 100, 400
    turns = iter(range(cycles))
    with etcdsem.connect(any_etcd.endpoint) as client:
        sem = Semaphore(1, name, client=client)
        sem.acquire()

        def work() -> None:
            sem.acquire()
            while next(turns, None) is not None:
                sem.release()
                sem.acquire()
            sem.release()

        threads = [threading.Thread(target=work) for _ in range(waiting)]
        for thread in threads:
            thread.start()
        eventually(lambda: len(sem.status(ttl=False).waiters) == waiting)
        before = counted(client)
        sem.release()
        for thread in threads:
            thread.join(60)
        cost = spent(client, before)
    # The waiters of the start were not counted as they joined, so there are this many passes:
    passes = cycles + waiting
    print(f"{cycles} cycles of {waiting} clients: {cost}")
    assert cost["txn"] <= (passes + cycles) * 1.05 + 5
    assert cost["watch_events"] <= passes + 5
    assert cost.get("read", 0) <= passes / 10
    assert cost.get("grant", 0) == 0


@pytest.fixture
def deaf(client: Client, monkeypatch: pytest.MonkeyPatch) -> Client:
    """A client that never hears of grant messages, and does not read them again."""
    for listener in ("_messages", "_freed"):
        monkeypatch.setattr(Watches, listener, lambda _self, _events: None)
    monkeypatch.setattr(waiters, "WATCH_WAITER_AFTER", 1e6)
    client._driver.session.reread = (1e6, 1e6)
    return client


@pytest.mark.parametrize(("limit", "threads"), [(1, 3), (4, 12)])
def test_a_hand_over_within_a_client_needs_no_event(
    deaf: Client, name: str, limit: int, threads: int
) -> None:
    """A waiter learns from the reply to its own client's PASS, also to one of several slots."""
    sem = Semaphore(limit, name, client=deaf)
    first = [sem.acquire_lease() for _ in range(limit)]
    served = threading.Barrier(threads + 1)

    def work() -> None:
        for _ in range(10):
            with sem:
                pass
        served.wait(30)

    for _ in range(threads):
        threading.Thread(target=work, daemon=True).start()
    eventually(lambda: len(sem.status(ttl=False).waiters) == threads)
    for lease in first:
        assert lease is not None
        lease.release()
    served.wait(30)


def test_a_fill_within_a_client_needs_no_event(deaf: Client, name: str) -> None:
    """The waiter that grants free slots tells the others of its client, and itself."""
    sem = Semaphore(1, name, client=deaf)
    sem.acquire()
    served = threading.Barrier(4)

    def work() -> None:
        sem.acquire()
        served.wait(30)

    for _ in range(3):
        threading.Thread(target=work, daemon=True).start()
    eventually(lambda: len(sem.status(ttl=False).waiters) == 3)
    sem.resize(4)
    served.wait(30)
