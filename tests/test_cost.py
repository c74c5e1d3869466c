"""What it costs: transactions and events, counted where they leave for etcd."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

import etcdsem
from etcdsem import Client, Semaphore
from tests.test_semaphore import eventually

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer


def counted(client: Client) -> dict[str, int]:
    """A copy of a client's counters."""
    return dict(client.engine.connection.counters)


def spent(client: Client, before: dict[str, int]) -> dict[str, int]:
    """What was counted since."""
    return {
        key: number - before.get(key, 0)
        for key, number in counted(client).items()
        if number != before.get(key, 0) and key not in ("keepalives", "progress")
    }


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


@pytest.mark.parametrize("waiting", [2, 100])
def test_contended_is_two_and_one_event(
    any_etcd: EtcdServer, name: str, waiting: int
) -> None:
    """A contended cycle is two transactions and one event, however many wait.

    The list of waiters is read once in some tens of hand-overs; with one waiter at a time the
    newcomer must be read each time, since nobody could have told.
    """
    cycles = 300
    turns = iter(range(cycles))
    with etcdsem.connect(any_etcd.endpoint) as client:
        sem = Semaphore(1, name, client=client)
        sem.acquire()
        started = threading.Barrier(waiting + 1)

        def work() -> None:
            started.wait()
            while next(turns, None) is not None:
                sem.acquire()
                sem.release()

        threads = [threading.Thread(target=work) for _ in range(waiting)]
        for thread in threads:
            thread.start()
        started.wait()
        eventually(lambda: len(sem.status(ttl=False).waiters) == waiting)
        before = counted(client)
        sem.release()
        for thread in threads:
            thread.join(60)
        cost = spent(client, before)
    # What starts and ends the row costs a little more: the first release, the last clears.
    reads = cycles if waiting == 2 else cycles / 8
    extra = 3 * waiting
    assert cost["txn"] <= 2 * cycles + reads + extra
    assert cost["watch_events"] <= cycles + extra
    assert cost.get("grant", 0) == 0
