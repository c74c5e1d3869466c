"""Bugs that other semaphores have had, each as a test that would fail on the faulty design."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

import etcdsem
from etcdsem import Client, Lease, Semaphore
from etcdsem.core.commands import OutcomeUnknown, Transact, Txn
from tests.etcd.proxy import Proxy
from tests.helpers.history import assert_clean
from tests.helpers.slow import sample
from tests.helpers.waiters import Waiters
from tests.helpers.waiting import eventually

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer


# -- 1: conch watches one key at rank r-N; etcd-recipes has windows of several departures


@pytest.mark.parametrize("which", [0, 1])
def test_releasing_either_holder_promotes(client: Client, name: str, which: int) -> None:
    """Limit 2: whichever holder leaves, the first waiter is served at once."""
    sem = Semaphore(2, name, client=client)
    sem.acquire()
    sem.acquire()
    waiters = Waiters(sem, 1)
    held = sem.leases
    began = time.monotonic()
    held[which].release()
    waiters.join()
    assert time.monotonic() - began < 4.0, "it was found by the slow re-read only"
    assert waiters.leases[0].slot == held[which].slot
    held[1 - which].release()
    waiters.leases[0].release()


@pytest.mark.parametrize("how", ["release", "evict"])
def test_a_burst_of_departures_promotes_as_many(
    any_etcd: EtcdServer, client: Client, name: str, how: str
) -> None:
    """Five leave at the same moment: five waiters are served, in order."""
    sem = Semaphore(5, name, client=client)
    held: list[Lease] = []
    for _ in range(5):
        lease = sem.acquire_lease()
        assert lease is not None
        held.append(lease)
    waiters = Waiters(sem, 7)
    if how == "release":
        threads = [threading.Thread(target=lease.release) for lease in held]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    else:
        any_etcd.etcdctl("del", "--prefix", f"/etcdsem/{name}/leases/")
    eventually(lambda: len(waiters.leases) == 5, 4.0)
    assert len(sem.waiters()) == 2
    for lease in waiters.leases[:2]:
        lease.release()
    waiters.join()
    for lease in waiters.leases:
        if lease.valid:
            lease.release()
    if how == "release":
        assert_clean(any_etcd, name)


# -- 2: a release between a waiter's read and its watch; compaction during the wait


def _before_step(client: Client, step: int, action: Callable[[], object]) -> None:
    """Do something right before a client's n-th request from now."""
    perform = client._driver._perform
    left = [step]

    def between(command: object) -> object:
        left[0] -= 1
        if left[0] == 0:
            action()
        return perform(command)  # type: ignore[arg-type]

    client._driver._perform = between  # type: ignore[method-assign]


def test_release_between_any_two_steps_of_joining(
    any_etcd: EtcdServer, client: Client, name: str
) -> None:
    """The slot is freed between each two requests of a joining waiter: it is always served."""
    sem = Semaphore(1, name, client=client)
    for step in range(1, 8):
        with etcdsem.connect(any_etcd.endpoint) as joiner:
            other = Semaphore(1, name, client=joiner)
            sem.acquire()
            _before_step(joiner, step, sem.release)
            began = time.monotonic()
            if not other.acquire(timeout=0.5):
                sem.release()  # it needed fewer steps than that
                assert other.acquire(timeout=5)
            assert time.monotonic() - began < 4.0, f"step {step}: found by the slow re-read only"
            other.release()
            if sem.leases:
                sem.release()


def test_compaction_during_a_wait(any_fresh_etcd: EtcdServer, name: str) -> None:
    """A wait that outlives compactions is served, and leaves no stale key."""
    with etcdsem.connect(any_fresh_etcd.endpoint) as client:
        sem = Semaphore(1, name, client=client)
        sem.acquire()
        waiters = Waiters(sem, 1)
        for turn in range(5):
            any_fresh_etcd.etcdctl("put", "unrelated", str(turn))
            revision = client._driver.connection.status(5).revision
            any_fresh_etcd.etcdctl("compact", str(revision))
        sem.release()
        waiters.join()
        waiters.leases[0].release()
    keys = any_fresh_etcd.etcdctl("get", "--prefix", "--keys-only", f"/etcdsem/{name}/").split()
    assert keys == [f"/etcdsem/{name}/max_leases"]


# -- 3: the lease is gone while queued (etcd #11456, Curator #1112)


def test_a_waiter_whose_lease_is_gone_is_not_served_by_mistake(
    any_etcd: EtcdServer, client: Client, name: str
) -> None:
    """Revoked in line: it joins again, and what it gets in the end is its own key."""
    sem = Semaphore(1, name, client=client, lease_timeout=3)
    sem.acquire()
    waiters = Waiters(sem, 1)
    any_etcd.etcdctl("lease", "revoke", sem.waiters()[0].lease_id)
    sem.release()
    waiters.join()
    lease = waiters.leases[0]
    holder = sem.holders()[0]
    assert (holder.lease_id, holder.fencing_token) == (lease.id, lease.fencing_token)
    lease.release()
    assert_clean(any_etcd, name)


# -- 5: non-blocking acquires exceed N (kazoo #213); a repeat takes two (dask #3690, Curator #835)


def test_concurrent_tries_never_exceed_the_limit(
    any_etcd: EtcdServer, client: Client, name: str
) -> None:
    """Forty threads of four clients try at the same moment: exactly three get in."""
    Semaphore(3, name, client=client)
    clients = [etcdsem.connect(any_etcd.endpoint) for _ in range(4)]
    sems = [Semaphore(3, name, client=clients[n % 4]) for n in range(40)]
    start = threading.Barrier(40)
    got: list[bool] = []

    def attempt(sem: Semaphore) -> None:
        start.wait()
        got.append(sem.acquire(timeout=0))

    threads = [threading.Thread(target=attempt, args=(sem,)) for sem in sems]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sum(got) == 3
    for one in clients:
        one.close()
    assert_clean(any_etcd, name)


def test_an_ambiguous_write_takes_one_slot(any_etcd: EtcdServer, client: Client, name: str) -> None:
    """JOIN was applied but its answer is lost: the retry ends with one slot, not two."""
    sem = Semaphore(2, name, client=client)
    engine = client._driver
    perform = engine._perform
    losing = [True]

    def lossy(command: object) -> object:
        result = perform(command)  # type: ignore[arg-type]
        if losing[0] and isinstance(command, Transact) and _takes_a_slot(command.txn):
            losing[0] = False
            raise OutcomeUnknown("the answer was lost")
        return result

    engine._perform = lossy  # type: ignore[method-assign]
    assert sem.acquire(timeout=10)
    assert not losing[0]
    eventually(lambda: engine.session.leases.revocations == 0)
    assert sem.get_value() == 1
    assert sem.acquire(timeout=10)
    assert not sem.acquire(timeout=0)
    sem.release()
    sem.release()
    assert_clean(any_etcd, name)


def _takes_a_slot(txn: Txn) -> bool:
    return any(b"/leases/" in c.key and c.end for c in txn.compare)


# -- 8: over-release, double release, release after loss: no extra capacity (Redisson #5066)


def test_no_release_makes_extra_room(any_etcd: EtcdServer, client: Client, name: str) -> None:
    """However often and however late a lease is released, the limit stays."""
    sem = Semaphore(1, name, client=client)
    lease = sem.acquire_lease()
    assert lease is not None
    assert lease.release() is True
    assert lease.release() is False
    with pytest.raises(etcdsem.ReleasedTooOften):
        sem.release()
    lost = sem.acquire_lease()
    assert lost is not None
    client.evict(name, slot=0)
    other = Semaphore(1, name, client=client)
    assert other.acquire(timeout=10)
    assert lost.release() is False
    assert other.get_value() == 1
    assert sem.acquire(timeout=0) is False
    other.release()
    assert_clean(any_etcd, name)


# -- 13: etcd is away at the start; one endpoint of several is; the login runs out


def test_etcd_away_is_an_error_within_the_timeout(name: str) -> None:
    """Nobody listens: an error that says what to do, never False, in bounded time."""
    with etcdsem.connect("127.0.0.1:1", dial_timeout=1.0) as client:
        began = time.monotonic()
        with pytest.raises(ConnectionError, match="ETCDSEM_ENDPOINTS"):
            Semaphore(1, name, client=client)
        sem = Semaphore(1, name, client=client, register=False)
        for timeout in (0, 1):
            with pytest.raises(etcdsem.EtcdUnavailable, match=r"127\.0\.0\.1:1"):
                sem.acquire(timeout=timeout)
        assert time.monotonic() - began < 10


@pytest.mark.parametrize("dial", sample([0.4, 2]))
def test_dial_timeout_bounds_the_first_contact(etcd: EtcdServer, name: str, dial: float) -> None:
    """`dial_timeout` is how long registering, and an acquire without a timeout, try to reach an
    etcd that has never answered: whether nobody listens there, or somebody who does not answer.
    """
    with Proxy(etcd.endpoint) as proxy:
        proxy.down = "drop"
        for endpoint in ("127.0.0.1:1", proxy.endpoint):
            with etcdsem.connect(endpoint, dial_timeout=dial) as client:
                sem = Semaphore(1, name, client=client, register=False)
                for call in (sem.register, sem.acquire):
                    began = time.monotonic()
                    with pytest.raises(etcdsem.EtcdUnavailable, match=endpoint):
                        call()
                    assert dial * 0.5 < time.monotonic() - began < dial + 3
        proxy.reset()


def test_one_endpoint_of_several_is_down(etcd: EtcdServer, name: str) -> None:
    """A dead endpoint in the list is passed by."""
    with etcdsem.connect(["127.0.0.1:1", etcd.endpoint, "127.0.0.1:2"]) as client:
        sem = Semaphore(1, name, client=client)
        with sem:
            pass


def test_etcd_away_during_a_wait_and_a_hold(fresh_etcd: EtcdServer, name: str) -> None:
    """A restart of etcd under a holder and a waiter is borne: both go on as if nothing had been."""
    with etcdsem.connect(fresh_etcd.endpoint) as client:
        sem = Semaphore(1, name, client=client, lease_timeout=20)
        sem.acquire()
        waiters = Waiters(sem, 1)
        fresh_etcd.kill()
        fresh_etcd.restart()
        assert sem.leases[0].valid
        eventually(lambda: sem.release() or not sem.leases)
        waiters.join()
        assert waiters.leases[0].valid
        waiters.leases[0].release()


@pytest.mark.slow
def test_the_login_runs_out_during_a_wait(etcd_binary: str, name: str) -> None:
    """Tokens live for 2 s: a holder and a waiter outlast them, and the smallest role will do."""
    from etcdsem import server

    with server.start(binary=etcd_binary, extra_args=["--auth-token-ttl", "2"]) as etcd:
        for line in (
            "user add root:root",
            "user grant-role root root",
            "role add jobs",
            "role grant-permission jobs --prefix=true readwrite /etcdsem/",
            "user add job:secret",
            "user grant-role job jobs",
            "auth enable",
        ):
            etcd.etcdctl(*line.split())
        with etcdsem.connect(etcd.endpoint, user="job", password="secret") as client:
            sem = Semaphore(1, name, client=client, lease_timeout=5)
            sem.acquire()
            waiters = Waiters(sem, 1)
            until = time.monotonic() + 7
            eventually(lambda: time.monotonic() > until)
            assert sem.leases[0].valid, sem.leases[0].lost_reason
            sem.release()
            waiters.join()
            waiters.leases[0].release()
        with (
            etcdsem.connect(etcd.endpoint, user="job", password="wrong") as stranger,
            pytest.raises(PermissionError, match="job"),
        ):
            Semaphore(1, name, client=stranger)


# -- 15: the body runs without the lock (python-etcd3, aetcd)


def test_no_block_runs_without_a_lease(client: Client, name: str) -> None:
    """`with` raises rather than run its body without a lease."""
    sem = Semaphore(1, name, client=client)
    sem.close()
    with pytest.raises(etcdsem.SemaphoreClosed), sem:
        pytest.fail("the body ran without a lease")
    with pytest.raises(etcdsem.SemaphoreClosed), sem.hold():
        pytest.fail("the body ran without a lease")
