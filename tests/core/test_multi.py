"""Several semaphores at once: a set is handed out only if all its leases are valid then."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

import etcdsem
from etcdsem import Semaphore
from etcdsem.core import limits, multi, retry, wait
from etcdsem.core.commands import Transact, Wait
from etcdsem.core.keys import Identity
from etcdsem.core.leases import TtlLease
from etcdsem.core.request import AcquireRequest
from etcdsem.testing.inmemory import Memory, MemoryClient
from tests.helpers.meddling import meddle
from tests.helpers.memory import etcd

__all__ = ["etcd"]


def end(client: MemoryClient, name: str) -> None:
    """The deadline of the leases that a client holds on a semaphore passes now."""
    for grant in client._state(name).grants:
        grant.lease.deadline = client._driver.now()


@pytest.mark.parametrize("rounds", [0, multi.ROUNDS])
def test_a_lease_that_ended_while_the_others_were_taken(
    etcd: Memory, monkeypatch: pytest.MonkeyPatch, rounds: int
) -> None:
    """It waits for one of the two, and the lease that it got first ends before it has the second.

    With `rounds` it waits at the full one first, else in the order of the names.
    """
    monkeypatch.setattr(multi, "ROUNDS", rounds)
    mine, theirs = etcd.client(), Semaphore(1, "b", client=etcd.client())
    pair = [Semaphore(1, name, client=mine) for name in "ab"]
    assert mine._driver.run(wait.open_watches(mine._state("b"), math.inf))
    theirs.acquire()
    ended: list[str] = []

    def freed(perform: Callable[[], object]) -> object:
        theirs.release()
        if rounds:
            meddle(mine, Transact, taken)
        else:
            end(mine, "a")
            ended.append("a")
        return perform()

    def taken(perform: Callable[[], object]) -> object:
        answer = perform()
        end(mine, "b")
        ended.append("b")
        return answer

    meddle(mine, Wait, freed)
    leases = etcdsem.acquire_all(*pair)
    assert ended == ["b" if rounds else "a"]
    assert leases is not None
    assert [lease.valid for lease in leases] == [True, True]
    etcd.advance(1)
    for name in "ab":
        assert len(etcd.keys(f"/etcdsem/{name}/leases/")) == 1
    assert len(mine._driver.session.grants()) == 2


@pytest.mark.parametrize("stale", [0, 1])
def test_an_answer_after_the_deadline_of_one_lease_grants_nothing(etcd: Memory, stale: int) -> None:
    """All slots were put into etcd, but one of the leases has run out meanwhile."""
    client = etcd.client()
    engine, session = client._driver, client._driver.session
    pair = [Semaphore(1, name, client=client) for name in "ab"]
    parts, choices, leases = [], [], []
    for number, sem in enumerate(pair):
        station = client._state(sem.name)
        limit = engine.run(limits.known_limit(station))
        parts.append(
            multi.SemaphoreRequest(station, AcquireRequest(30, 10.0, Identity(session.client, b"")))
        )
        choices.append(multi._Choice(limit, 0))
        leases.append(TtlLease(number + 1, 30, 30.0, engine.now()))
    leases[stale].deadline = engine.now()
    with pytest.raises(retry.TryAgain):
        multi._granted(session, parts, leases, choices, 50)
    assert session.grants() == []
    leases[stale].deadline = engine.now() + 0.1
    leases[stale].overdue = False
    granted = multi._granted(session, parts, leases, choices, 50)
    assert session.grants() == granted
    for grant in granted:
        grant.detach()
