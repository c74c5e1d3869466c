"""A dead holder's slot is used again in time, however many wait, and without a stampede."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.chaos.lookout import measure

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer


@pytest.mark.slow
def test_a_thousand_waiters(fresh_etcd: EtcdServer) -> None:
    """A thousand threads in ten processes wait; each process is one client, one of whose threads
    looks for all. The slot is used again within TTL + 1.5 s, and etcd gets few requests.
    """
    seen = measure(fresh_etcd, processes=10, clients=1, waiters=100, ttl=5, after=3.0)
    print("\n".join(seen.lines()))
    assert seen.kill_to_acquired <= seen.ttl + 1.5
    assert seen.delete_to_grant <= 1.0
    assert seen.requests <= 100


@pytest.mark.slow
@pytest.mark.parametrize("clients", [5, 30])
def test_many_clients_do_not_stampede(fresh_etcd: EtcdServer, clients: int) -> None:
    """Each waiter is a separate client and sees the slot become free: their looks are spread over
    two seconds and not made at once; yet the first one comes soon.
    """
    seen = measure(fresh_etcd, processes=4, clients=clients, waiters=1, ttl=5, after=4.0)
    print("\n".join(seen.lines()))
    assert seen.kill_to_acquired <= seen.ttl + 1.5
    assert seen.requests <= 2 * seen.clients + 20
