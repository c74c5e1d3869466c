"""The blocking library on a real etcd: everything in the table of its members."""

from __future__ import annotations

import copy
import logging
import pickle
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

import etcdsem
from etcdsem import Client, Holder, Lease, Semaphore
from etcdsem.core.commands import Put, Txn
from etcdsem.core.waiters import WATCH_WAITER_AFTER
from etcdsem.drivers import threads
from tests.helpers.history import assert_clean
from tests.helpers.waiters import Waiters
from tests.helpers.waiting import eventually

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

pytestmark = pytest.mark.usefixtures("any_etcd")


@pytest.mark.smoke
def test_with_holds_and_gives_back(any_etcd: EtcdServer, client: Client, name: str) -> None:
    """A with block holds one lease, and gives it back."""
    sem = Semaphore(2, name, client=client)
    assert sem.get_value() == 0
    with sem as same:
        assert same is sem
        assert sem.get_value() == 1
    assert sem.get_value() == 0
    assert_clean(any_etcd, name)


def test_with_gives_back_when_the_body_raises(
    any_etcd: EtcdServer, client: Client, name: str
) -> None:
    """The body's exception comes out, and the lease is back."""
    sem = Semaphore(1, name, client=client)
    with pytest.raises(KeyError), sem:
        raise KeyError("mine")
    assert sem.acquire(timeout=0)
    sem.release()
    assert_clean(any_etcd, name)


def test_decorator_holds_for_each_call(client: Client, name: str) -> None:
    """A decorated function runs with a lease."""
    sem = Semaphore(1, name, client=client)

    @sem
    def work(number: int) -> int:
        """Documented."""
        assert sem.get_value() == 1
        return number + 1

    assert work(1) == 2
    assert work.__doc__ == "Documented."
    assert sem.get_value() == 0


def test_decorator_refuses_coroutine_functions(client: Client, name: str) -> None:
    """A coroutine function would be run without a lease, so it is refused."""
    sem = Semaphore(1, name, client=client)

    async def work() -> None:
        """Never run."""

    with pytest.raises(TypeError, match="aio"):
        sem(work)


@pytest.mark.parametrize("timeout", [0, 0.05, "50ms", timedelta(milliseconds=50)])
def test_acquire_gives_false_when_full(
    any_etcd: EtcdServer, client: Client, name: str, timeout: float | str | timedelta
) -> None:
    """False means full, and leaves nothing behind."""
    sem = Semaphore(1, name, client=client)
    assert sem.acquire()
    assert sem.acquire(timeout=timeout) is False
    assert sem.waiters() == ()
    assert sem.release()
    assert_clean(any_etcd, name)


def test_hold_gives_the_lease(any_etcd: EtcdServer, client: Client, name: str) -> None:
    """A lease tells slot, token, id and time; all agree with etcd."""
    sem = Semaphore(2, name, client=client, labels={"job": "7"}, owner="me")
    with sem.hold() as first, sem.hold() as second:
        assert {first.slot, second.slot} == {0, 1}
        assert second.fencing_token > first.fencing_token
        assert first.valid
        first.check()
        assert 25 < first.remaining <= 30
        assert first.id in any_etcd.etcdctl("lease", "list")
        holders = {holder.slot: holder for holder in sem.holders()}
        holder = holders[first.slot]
        assert holder.fencing_token == first.fencing_token
        assert holder.lease_id == first.id
        assert holder.owner == "me"
        assert holder.labels == {"job": "7"}
        assert holder.ttl is not None
        assert 20 < holder.ttl <= 30
        assert sem.leases == (first, second)
    assert not first.valid
    assert first.remaining == 0
    with pytest.raises(etcdsem.LeaseLost, match="released"):
        first.check()
    assert first.release() is False
    assert_clean(any_etcd, name)


def test_hold_raises_when_full(client: Client, name: str) -> None:
    """hold(timeout) raises, and the body does not run."""
    sem = Semaphore(1, name, client=client)
    with sem.hold():
        with pytest.raises(etcdsem.AcquireTimeout, match=name), sem.hold(timeout=0):
            pytest.fail("the body ran without a lease")
        with pytest.raises(TimeoutError), sem.hold(timeout="20ms"):
            pytest.fail("the body ran without a lease")


@pytest.mark.smoke
def test_release_too_often(any_etcd: EtcdServer, client: Client, name: str) -> None:
    """One release too many raises, and changes nothing in etcd."""
    sem = Semaphore(1, name, client=client)
    before = any_etcd.etcdctl("get", "--prefix", f"/etcdsem/{name}/", "-w", "json")
    with pytest.raises(RuntimeError, match="Released too often"):
        sem.release()
    after = any_etcd.etcdctl("get", "--prefix", f"/etcdsem/{name}/", "-w", "json")
    assert before.split('"kvs"')[1] == after.split('"kvs"')[1]


def test_release_gives_back_the_oldest(client: Client, name: str) -> None:
    """Leases are given back in the order in which they were acquired."""
    sem = Semaphore(3, name, client=client)
    for _ in range(3):
        sem.acquire()
    oldest, *rest = sem.leases
    assert sem.release()
    assert not oldest.valid
    assert list(sem.leases) == rest
    sem.release()
    sem.release()


def test_release_spares_the_lease_of_a_block(client: Client, name: str) -> None:
    """release() takes a lease from acquire() before the one that a with block relies on."""
    sem = Semaphore(2, name, client=client)
    with sem.hold() as held:
        sem.acquire()
        sem.release()
        assert held.valid


@pytest.mark.smoke
def test_limits_must_agree(client: Client, name: str) -> None:
    """Another limit is refused, and both are named."""
    Semaphore(3, name, client=client)
    Semaphore(3, name, client=client)
    with pytest.raises(ValueError, match="Inconsistent max leases: 5, expected: 3") as caught:
        Semaphore(5, name, client=client)
    assert isinstance(caught.value, etcdsem.InconsistentLimit)
    assert pickle.loads(pickle.dumps(caught.value)).registered == 3


def test_a_resized_limit_breaks_nobody(any_etcd: EtcdServer, client: Client, name: str) -> None:
    """Programs that carry the old number go on after an operator's resize."""
    Semaphore(3, name, client=client)
    any_etcd.etcdctl("put", f"/etcdsem/{name}/max_leases", "5")
    sem = Semaphore(3, name, client=client)
    for _ in range(5):
        assert sem.acquire(timeout=0)
    assert not sem.acquire(timeout=0)
    for _ in range(5):
        sem.release()


def test_max_leases_none_takes_what_is_registered(client: Client, name: str) -> None:
    """None takes the registered limit; without one the semaphore is not known."""
    with pytest.raises(etcdsem.SemaphoreClosed, match="not known"):
        Semaphore(None, name, client=client)
    Semaphore(1, name, client=client)
    sem = Semaphore(None, name, client=client)
    assert sem.acquire(timeout=0)
    assert not sem.acquire(timeout=0)
    sem.release()


def test_unregistered_semaphore_is_not_known(client: Client, name: str) -> None:
    """register=False writes nothing; acquire says that the semaphore is not known."""
    sem = Semaphore(1, name, client=client, register=False)
    with pytest.raises(RuntimeError, match="not known"):
        sem.acquire()
    sem.register()
    assert sem.acquire()
    sem.release()


def test_waiters_are_served_in_order(any_etcd: EtcdServer, client: Client, name: str) -> None:
    """First in, first out, also across clients."""
    sem = Semaphore(1, name, client=client)
    sem.acquire()
    with etcdsem.connect(any_etcd.endpoint) as other:
        elsewhere = Semaphore(1, name, client=other)
        line = [Waiters(sem, 1), Waiters(elsewhere, 1), Waiters(sem, 1), Waiters(elsewhere, 1)]
        assert [w.position for w in sem.waiters()] == [1, 2, 3, 4]
        for place, waiter in enumerate(line):
            assert all(not later.granted for later in line[place:])
            (sem.release if place == 0 else line[place - 1].leases[0].release)()
            waiter.join()
            assert waiter.granted == [0]
        line[-1].leases[0].release()
    assert_clean(any_etcd, name)


def test_raising_the_limit_wakes_waiters(client: Client, any_etcd: EtcdServer, name: str) -> None:
    """New room goes to those who wait, at once."""
    sem = Semaphore(1, name, client=client)
    sem.acquire()
    waiters = Waiters(sem, 3)
    sem.resize(3)
    eventually(lambda: len(waiters.granted) == 2)
    assert set(waiters.granted) == {0, 1}
    any_etcd.etcdctl("put", f"/etcdsem/{name}/max_leases", "4")
    waiters.join()
    for lease in (*waiters.leases, *sem.leases):
        lease.release()
    assert_clean(any_etcd, name)


def test_lowering_the_limit_evicts_nobody(any_etcd: EtcdServer, client: Client, name: str) -> None:
    """Who holds keeps it; nothing is granted until there is room."""
    sem = Semaphore(3, name, client=client)
    for _ in range(3):
        sem.acquire()
    waiters = Waiters(sem, 1)
    sem.resize(1)
    assert sum(holder.over_limit for holder in sem.holders()) == 2
    low = min(sem.leases, key=lambda lease: lease.slot)
    assert low.release()
    assert not waiters.granted, "granted although two still held above the limit"
    first, second = sem.leases
    assert first.valid
    assert first.release()
    assert not waiters.granted
    assert second.release()
    waiters.join()
    assert waiters.leases[0].slot == 0
    waiters.leases[0].release()
    assert_clean(any_etcd, name)


def test_a_limit_of_zero_lets_nobody_in(any_etcd: EtcdServer, client: Client, name: str) -> None:
    """0 pauses; raising it again serves those who waited."""
    sem = Semaphore(1, name, client=client)
    sem.resize(0)
    assert not sem.acquire(timeout=0)
    waiters = Waiters(sem, 1)
    sem.resize(1)
    waiters.join()
    waiters.leases[0].release()
    assert_clean(any_etcd, name)


@pytest.mark.smoke
def test_close_ends_it_for_all(
    any_etcd: EtcdServer, client: Client, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Waiters get the error at once, holders lose their lease, a warning names them."""
    lost: list[Lease] = []
    sem = Semaphore(1, name, client=client, on_lost=lost.append, owner="the-holder")
    sem.acquire()
    held = sem.leases[0]
    waiters = Waiters(sem, 2)
    with caplog.at_level(logging.WARNING, "etcdsem"):
        sem.close()
    waiters.join()
    assert [type(error) for error in waiters.errors] == [etcdsem.SemaphoreClosed] * 2
    assert "the-holder" in caplog.text
    assert held.lost.wait(15)
    eventually(lambda: lost == [held])
    caplog.clear()
    assert held.release() is False
    assert "was lost before" in caplog.text
    sem.close()
    with pytest.raises(RuntimeError, match="not known"):
        sem.acquire()
    assert any_etcd.etcdctl("get", "--prefix", f"/etcdsem/{name}/").strip() == ""


@pytest.mark.parametrize("how", ["revoke", "delete", "overwrite", "evict slot", "evict lease"])
def test_eviction_is_noticed(
    any_etcd: EtcdServer,
    client: Client,
    name: str,
    caplog: pytest.LogCaptureFixture,
    how: str,
) -> None:
    """A lease that is taken away by hand is reported once, loudly; release leaves etcd alone."""
    lost: list[Lease] = []
    sem = Semaphore(1, name, client=client, on_lost=lost.append)
    sem.acquire()
    lease = sem.leases[0]
    slot_key = f"/etcdsem/{name}/leases/00000"
    match how:
        case "revoke":
            any_etcd.etcdctl("lease", "revoke", lease.id)
        case "delete":
            any_etcd.etcdctl("del", slot_key)
        case "overwrite":
            any_etcd.etcdctl("put", slot_key, "mine now")
        case "evict slot":
            client.evict(name, slot=0)
        case _:
            client.evict(name, lease=lease.id)
    assert lease.lost.wait(15)
    assert not lease.valid
    eventually(lambda: lost == [lease])

    def critical() -> list[logging.LogRecord]:
        return [entry for entry in caplog.records if entry.levelno == logging.CRITICAL]

    eventually(critical)  # logged by a thread of its own
    assert len(critical()) == 1
    assert name in critical()[0].getMessage()
    assert str(lease.fencing_token) in critical()[0].getMessage()
    if how == "overwrite":
        assert not sem.acquire(timeout=0), "a slot with a strange holder was granted"
        any_etcd.etcdctl("del", slot_key)
    other = Semaphore(1, name, client=client)
    assert other.acquire(timeout=10)
    assert lease.release() is False
    assert other.get_value() == 1
    other.release()


def test_lost_is_set_when_on_lost_is_called(
    client: Client, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its thread is started, so however soon it runs."""
    sem = Semaphore(1, name, client=client, on_lost=print)
    assert sem.acquire()
    event = sem.leases[0].lost
    seen: list[bool] = []

    start_thread = threads.RealClock.start

    def start(clock: threads.RealClock, function: Callable[[], None], name: str) -> None:
        if name == "etcdsem-on-lost":
            seen.append(event.is_set())
        start_thread(clock, function, name)

    monkeypatch.setattr(threads.RealClock, "start", start)
    client.evict(name, slot=0)
    eventually(lambda: seen)
    assert seen == [True]


def test_with_raises_when_its_lease_was_lost(client: Client, name: str) -> None:
    """A block whose lease was lost ends with LeaseLost, unless told not to."""
    sem = Semaphore(1, name, client=client)
    with pytest.raises(etcdsem.LeaseLost, match=name), sem.hold() as lease:
        client.evict(name, slot=0)
        assert lease.lost.wait(15)
    with pytest.raises(KeyError), sem.hold() as lease:
        client.evict(name, slot=0)
        assert lease.lost.wait(15)
        raise KeyError("the body's own exception is not hidden")
    quiet = Semaphore(1, name, client=client, raise_on_loss=False)
    with quiet.hold() as lease:
        client.evict(name, slot=0)
        assert lease.lost.wait(15)


def test_nobody_to_evict(client: Client, name: str) -> None:
    """A slot or lease that nobody has: an error of its own, which is also a LookupError."""
    sem = Semaphore(1, name, client=client)
    for slot, lease in ((0, None), (7, None), (None, "1f")):
        with pytest.raises(etcdsem.NobodyThere, match=name) as caught:
            client.evict(name, slot=slot, lease=lease)
        assert isinstance(caught.value, LookupError)
        assert not isinstance(caught.value, ValueError)
    with pytest.raises(etcdsem.InvalidSetting):
        client.evict(name, lease="no hex")
    sem.acquire()
    evicted = client.evict(name, lease=sem.leases[0].id)
    assert isinstance(evicted, Holder)
    assert evicted.slot == 0


def test_ttl_of_many(etcd: EtcdServer, client: Client, name: str) -> None:
    """The TTL is asked of all holders and of the first 256 waiters, several at a time."""
    sem = Semaphore(3, name, client=client, lease_timeout=60)
    for _ in range(3):
        sem.acquire()
    connection = client._driver.connection
    base = client._driver.session.env.random_id()
    for number in range(300):
        key = f"/etcdsem/{name}/waiters/host.1.0/{base + number:016x}".encode()
        connection.grant(base + number, 600, 5)
        connection.transact(Txn((), (Put(key, b"{}", base + number),)), 5)
    status = sem.status()
    assert all(50 < (holder.ttl or 0) <= 60 for holder in status.holders)
    asked = [waiter.ttl for waiter in status.waiters]
    assert all(500 < (ttl or 0) <= 600 for ttl in asked[:256])
    assert asked[256:] == [None] * 44
    assert {holder.ttl for holder in sem.status(ttl=False).holders} == {None}
    sem.close()


def test_refresh_keeps_a_lease_beyond_its_timeout(client: Client, name: str) -> None:
    """A lease of 2 s that is refreshed lasts; one that is not refreshed is lost before etcd's
    own deadline.
    """
    sem = Semaphore(1, name, client=client, lease_timeout=2)
    with sem.hold() as lease:
        first_deadline = time.monotonic() + lease.remaining
        eventually(lambda: time.monotonic() > first_deadline + 0.5)
        assert lease.valid
        sem.refresh_leases = False
        assert lease.lost.wait(10)
        sem.refresh_leases = True
        lease.release()
        sem.raise_on_loss = False


def test_a_waiter_whose_key_is_deleted_joins_again(
    any_etcd: EtcdServer, client: Client, name: str
) -> None:
    """A waiter whose key was deleted goes to the end of the line, and is served in the end."""
    sem = Semaphore(1, name, client=client, lease_timeout=6)
    sem.acquire()
    first, second = Waiters(sem, 1), Waiters(sem, 1)
    ahead = sem.waiters()[0]
    key = f"/etcdsem/{name}/waiters/{ahead.client}/{ahead.lease_id}"
    assert any_etcd.etcdctl("del", key).strip() == "1"
    eventually(lambda: len(sem.waiters()) == 2 and sem.waiters()[1].client == ahead.client, 30)
    sem.release()
    second.join()
    assert not first.granted
    second.leases[0].release()
    first.join()
    first.leases[0].release()
    assert_clean(any_etcd, name)


def test_no_slot_idles_while_somebody_waits_out_of_line(
    any_etcd: EtcdServer, client: Client, name: str
) -> None:
    """Its key is deleted in its first moments, when no watch is on it: it takes the slot that is
    freed then, long before such a watch would tell it.
    """
    sem = Semaphore(1, name, client=client)
    sem.acquire()
    waiter = Waiters(sem, 1)
    any_etcd.etcdctl("del", "--prefix", f"/etcdsem/{name}/waiters/")
    began = time.monotonic()
    sem.release()
    waiter.join()
    assert waiter.granted
    assert time.monotonic() - began < WATCH_WAITER_AFTER / 2
    waiter.leases[0].release()
    assert_clean(any_etcd, name)


def test_threads_share_one_object(any_etcd: EtcdServer, client: Client, name: str) -> None:
    """Many threads, one object: the limit holds, and all are served."""
    sem = Semaphore(3, name, client=client)
    inside: list[int] = []
    most: list[int] = []
    lock = threading.Lock()

    def work(number: int) -> None:
        for _ in range(10):
            with sem:
                with lock:
                    inside.append(number)
                    most.append(len(inside))
                with lock:
                    inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(most) == 120
    assert max(most) <= 3
    assert sem.leases == ()
    verdict = assert_clean(any_etcd, name)
    assert verdict.grants == 120


def test_pickle_carries_no_connection(
    any_etcd: EtcdServer, client: Client, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pickling carries name, limit and options; unpickling connects to nothing."""
    monkeypatch.setenv("ETCDSEM_PASSWORD", "s3cret")
    sem = Semaphore(2, name, client=client, labels={"a": "b"}, lease_timeout=7)
    sem.acquire()
    data = pickle.dumps(sem)
    assert b"s3cret" not in data
    before = threading.active_count()
    twin = pickle.loads(data)
    assert threading.active_count() == before
    assert (twin.name, twin.max_leases, twin.lease_timeout) == (name, 2, 7)
    assert twin.leases == ()
    with pytest.raises(RuntimeError, match="Released too often"):
        twin.release()
    assert twin.acquire(timeout=0)
    assert sem.get_value() == 2
    twin.release()
    sem.release()
    assert copy.copy(sem).leases == ()
    twin.client.close()


def test_unknown_status_and_overview(client: Client, name: str) -> None:
    """An unknown name is an error that says so; the overview lists what is known."""
    with pytest.raises(etcdsem.SemaphoreClosed, match="not known"):
        client.status(name)
    sem = Semaphore(4, name, client=client)
    with sem:
        line = next(line for line in client.overview() if line.name == name)
        assert (line.max_leases, line.held, line.waiting) == (4, 1, 0)
    assert client.limit(name) == 4
    assert client.resize(name, 6) == (4, 6)


def test_waiting_is_announced(client: Client, name: str) -> None:
    """on_wait is called once it is clear that one has to wait, and not otherwise."""
    sem = Semaphore(1, name, client=client)
    announced = threading.Event()
    first = sem.acquire_lease(on_wait=announced.set)
    assert first is not None
    assert not announced.is_set()
    later: list[Lease | None] = []
    thread = threading.Thread(
        target=lambda: later.append(sem.acquire_lease(20, on_wait=announced.set))
    )
    thread.start()
    assert announced.wait(10)
    first.release()
    thread.join(20)
    assert later[0] is not None
    later[0].release()


@pytest.mark.parametrize("timeout", [0.0001, 0.001, 0.003, 0.01])
def test_the_shortest_timeouts_mean_full(
    any_etcd: EtcdServer, client: Client, name: str, timeout: float
) -> None:
    """A timeout that ends before the line can be joined is False, not an error."""
    sem = Semaphore(1, name, client=client)
    sem.acquire()
    with etcdsem.connect(any_etcd.endpoint) as other:
        full = Semaphore(1, name, client=other)
        assert full.acquire(timeout=timeout) is False
        sem.release()
        assert full.acquire(timeout=5) is True
