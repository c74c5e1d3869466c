"""A leader that was stopped for longer than leases last, and resumes, ends live leases: on every
version of etcd. Rates hold nevertheless.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial

import pytest

from etcdsem import Client, EtcdUnavailable, RateLimit, connect
from etcdsem.clock import boot_time
from etcdsem.core.keys import permit
from etcdsem.model import Rate
from tests.chaos.clusters import Cluster, in_processes
from tests.helpers.waiting import eventually
from tests.rates.use import Span, most_in_a_window

RATE = Rate(20, 3.0, 1)
STOPPED = 9.0
"""Seconds: an election, and longer than a permit's lease (5 s)."""


@pytest.fixture
def cluster(etcd_binary: str) -> Iterator[Cluster]:
    """Three members."""
    with in_processes(etcd_binary) as one:
        yield one


class Starters:
    """Threads of a few clients that take permits as fast as they can."""

    def __init__(self, cluster: Cluster, clients: int = 3, threads: int = 8) -> None:
        self.spans: list[Span] = []
        self._over = threading.Event()
        self._clients = [connect(",".join(cluster.endpoints)) for _ in range(clients)]
        for client in self._clients:
            RateLimit("api", RATE.starts, RATE.period, client=client)
        self._threads = [
            threading.Thread(target=self._run, args=(client,))
            for client in self._clients
            for _ in range(threads)
        ]

    def __enter__(self) -> Starters:
        for thread in self._threads:
            thread.start()
        return self

    def _run(self, client: Client) -> None:
        api = RateLimit("api", client=client)
        while not self._over.is_set():
            before = boot_time()
            with suppress(EtcdUnavailable):
                start = api.acquire(timeout=10.0)
                if start is not None:
                    self.spans.append(Span(before + start.waited, boot_time()))

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        for client in self._clients:
            client.close()

    def have(self, wanted: int) -> bool:
        """Have so many permits been handed out?"""
        return len(self.spans) >= wanted

    def most(self) -> int:
        """The most permits that were certainly handed out within one period."""
        return most_in_a_window(self.spans, RATE.period)


def stall_a_leader(cluster: Cluster, starters: Starters) -> None:
    """Stop the leader, let it resume, and wait until permits are handed out again."""
    member = cluster.members[cluster.leader()]
    member.pause()
    time.sleep(STOPPED)
    member.resume()
    wanted = len(starters.spans) + 3 * RATE.starts
    eventually(partial(starters.have, wanted), 60.0)


@pytest.mark.slow
def test_no_rate_is_exceeded_by_a_leader_that_resumes(cluster: Cluster) -> None:
    """With nothing excused."""
    with Starters(cluster) as starters:
        for _ in range(2):
            stall_a_leader(cluster, starters)
    print(f"{len(starters.spans)} permits, at most {starters.most()} in a period")
    assert starters.most() <= RATE.starts


@pytest.mark.slow
def test_without_records_it_is_exceeded(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: etcd's leases alone do not keep a rate."""
    monkeypatch.setattr(permit.PermitRecord, "left", lambda record, wall: 0.0)
    with Starters(cluster) as starters:
        for _ in range(5):
            stall_a_leader(cluster, starters)
            if starters.most() > RATE.starts:
                break
    print(f"{len(starters.spans)} permits, at most {starters.most()} in a period")
    assert starters.most() > RATE.starts
