"""Acquire, wait and release, driven step by step on the etcd in memory.

What must have happened is looked at once: a second layer (the re-read after 5 to 15 s, the TTL)
would hide the fault.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import pytest

from etcdsem import Semaphore
from etcdsem.core import lifecycle, retry, wait
from etcdsem.core.commands import (
    AccessDenied,
    Command,
    Failure,
    GrantLease,
    LeaseNotFound,
    NotApplied,
    NotConnected,
    OutcomeUnknown,
    RevokeLease,
    Transact,
    Txn,
    Wait,
)
from etcdsem.testing.inmemory import Memory, MemoryClient
from tests.helpers.meddling import Hit, meddle
from tests.helpers.memory import etcd

__all__ = ["etcd"]


def spoil(
    client: MemoryClient, kind: type[Command[Any]], error: BaseException, *, applied: bool
) -> None:
    """That command fails: before it is performed, or after (`applied`)."""

    def fail(perform: Callable[[], object]) -> object:
        if applied:
            perform()
        raise error

    meddle(client, kind, fail)


def waiters(etcd: Memory) -> dict[str, str]:
    """The keys of those in line."""
    return etcd.keys("/etcdsem/db/waiters/")


def held(etcd: Memory) -> dict[str, str]:
    """The keys of the slots."""
    return etcd.keys("/etcdsem/db/leases/")


@pytest.mark.parametrize(
    ("error", "counted"),
    [
        (NotApplied("too many requests"), "not applied"),
        (NotConnected("connection refused"), "not applied"),
        (AccessDenied("permission denied"), "refused"),
        (LeaseNotFound("no such lease"), "refused"),
        (OutcomeUnknown("deadline exceeded"), "unknown"),
        (Hit(), "unknown"),
    ],
)
def test_failed_requests_are_counted_by_what_is_known(
    etcd: Memory, error: BaseException, counted: str
) -> None:
    """Definitely not applied, refused, or unknown: operators act differently upon each."""
    client = etcd.client()
    session = client._driver.session
    before = dict(session.stats.requests)
    request = retry.transact(session, Txn((), ()))
    next(request)
    with pytest.raises(type(error)):
        request.throw(error)
    after = session.stats.requests
    assert {kind: after[kind] - before.get(kind, 0) for kind in after if after[kind]} == {
        kind: int(kind == counted) for kind in after if after[kind]
    }


def test_room_that_join_saw_is_used_at_once(etcd: Memory) -> None:
    """JOIN stands in line although a slot is free, since the mark of a line is there: somebody who
    should have removed it has died. Nobody else will tell this waiter.
    """
    client = etcd.client()
    sem = Semaphore(1, "db", client=client)
    assert client._driver.run(wait.open_watches(client._state("db"), math.inf))
    etcd.put("/etcdsem/db/contended", "1")
    began = etcd.now
    assert sem.acquire()
    assert etcd.now - began < 0.5


def test_room_that_join_did_not_see_is_not_looked_for(etcd: Memory) -> None:
    """A waiter behind a full semaphore costs no look: thousands would look at the same moment."""
    client, other = etcd.client(), etcd.client()
    sem = Semaphore(1, "db", client=client)
    assert client._driver.run(wait.open_watches(client._state("db"), math.inf))
    Semaphore(1, "db", client=other).acquire()
    before = client.requests["read"]
    assert not sem.acquire(timeout=1)
    assert client.requests["read"] == before


@pytest.mark.parametrize("applied", [False, True])
def test_an_interrupted_attempt_is_settled_even_if_its_revocation_fails(
    etcd: Memory, applied: bool
) -> None:
    """Interrupted in line, and the revocation that takes it out of the line fails: it is repeated
    at once, not left to the TTL of 30 s.
    """
    client, holder = etcd.client(), Semaphore(1, "db", client=etcd.client())
    sem = Semaphore(1, "db", client=client, lease_timeout=30)
    holder.acquire()
    left = set(etcd.leases())
    assert client._driver.run(wait.open_watches(client._state("db"), math.inf))
    spoil(client, Wait, Hit(), applied=False)
    spoil(client, RevokeLease, OutcomeUnknown("deadline exceeded"), applied=applied)
    with pytest.raises(Hit):
        sem.acquire()
    etcd.advance(1)
    assert waiters(etcd) == {}
    assert set(etcd.leases()) == left


@pytest.mark.parametrize("error", [OutcomeUnknown("deadline exceeded"), Hit()])
def test_a_lease_that_may_have_been_granted_is_revoked(etcd: Memory, error: BaseException) -> None:
    """GrantLease was applied, and its answer is lost: no etcd lease stays for its TTL."""
    client = etcd.client()
    sem = Semaphore(1, "db", client=client, lease_timeout=30)
    spoil(client, GrantLease, error, applied=True)
    if isinstance(error, Failure):
        with sem:
            pass
        client.close()
    else:
        with pytest.raises(Hit):
            sem.acquire()
    etcd.advance(1)
    assert etcd.leases() == []


def test_a_slot_whose_lease_ran_out_on_the_way_is_not_handed_out(etcd: Memory) -> None:
    """The answer came after the lease's deadline: it is not used, and another attempt is made."""
    client = etcd.client()
    sem = Semaphore(2, "db", client=client, lease_timeout=10)
    with sem:
        pass  # there is a spare lease now
    first = etcd.leases()

    def late(perform: Callable[[], object]) -> object:
        answer = perform()
        etcd.suspend(11)
        return answer

    meddle(client, Transact, late)
    assert sem.acquire()
    (lease,) = sem.leases
    assert lease.valid
    assert lease.id not in first
    etcd.advance(1)
    assert len(held(etcd)) == 1
    assert len(etcd.leases()) == 1


@pytest.mark.parametrize("applied", [False, True])
@pytest.mark.parametrize("error", [OutcomeUnknown("deadline exceeded"), Hit()])
def test_a_release_whose_outcome_is_unknown_ends_the_lease(
    etcd: Memory, error: BaseException, applied: bool
) -> None:
    """The slot is free at once, and the lease is never used again: a late DROP finds nothing."""
    client = etcd.client()
    sem = Semaphore(1, "db", client=client)
    assert sem.acquire()
    (lease,) = sem.leases
    spoil(client, Transact, error, applied=applied)
    if isinstance(error, Failure):
        assert sem.release()
    else:
        with pytest.raises(Hit):
            sem.release()
    etcd.advance(1)
    assert held(etcd) == {}
    assert lease.id not in etcd.leases()
    assert sem.acquire(timeout=0)
    assert sem.leases[0].id != lease.id


def test_a_release_that_its_clients_end_overtakes_is_no_loss(
    etcd: Memory, caplog: pytest.LogCaptureFixture
) -> None:
    """Closing revokes its lease too, so it finds its slot gone. Nobody has lost anything."""
    client = etcd.client()
    lost: list[object] = []
    sem = Semaphore(1, "db", client=client, on_lost=lost.append)
    assert sem.acquire()
    session = client._driver.session

    def overtaken(perform: Callable[[], object]) -> object:
        shutdown = lifecycle.shutdown(session, client._driver.now() + 10.0)
        closing = threading.Thread(target=client._driver.run, args=(shutdown,))
        closing.start()
        closing.join()
        assert held(etcd) == {}
        return perform()

    meddle(client, Transact, overtaken)
    sem.release()
    assert lost == []
    assert "CRITICAL" not in caplog.text
