"""Pause, resume and resize: what an operator does to a semaphore in use, on a real etcd."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

import etcdsem
from etcdsem import Client, InvalidSetting, Semaphore, SemaphoreClosed
from etcdsem.core import admin, transactions
from etcdsem.core.commands import NotApplied, OutcomeUnknown, Procedure, Transact, TxnReply
from etcdsem.core.keys import read_limit
from tests.etcd.proxy import Proxy
from tests.helpers.history import assert_clean
from tests.helpers.waiters import Waiters
from tests.helpers.waiting import eventually

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer


def stored(etcd: EtcdServer, name: str) -> str:
    """The limit as etcdctl prints it, with the spaces at its end."""
    return etcd.etcdctl("get", "--print-value-only", f"/etcdsem/{name}/max_leases")[:-1]


@pytest.mark.smoke
def test_a_pause_is_plain_text(any_etcd: EtcdServer, client: Client, name: str) -> None:
    """It shows in etcdctl who paused it, since when and why; status and the overview do, too."""
    Semaphore(5, name, client=client)
    before = datetime.now(UTC) - timedelta(seconds=1)
    sem = Semaphore(5, name, client=client, owner="alice")
    assert sem.pause(reason="new disks")
    text = stored(any_etcd, name)
    assert text.startswith("5 paused by alice since 20")
    assert text.rstrip().endswith("Z, new disks")
    pause = client.status(name).pause
    assert pause is not None
    assert (pause.by, pause.reason) == ("alice", "new disks")
    assert pause.since is not None
    assert before <= pause.since <= datetime.now(UTC)
    (line,) = [one for one in client.overview() if one.name == name]
    assert (line.pause, line.max_leases) == (pause, 5)
    assert client.limit(name) == 5
    assert client.resume(name)
    assert stored(any_etcd, name).rstrip() == "5"
    assert client.status(name).pause is None


def test_twice_changes_nothing(client: Client, name: str) -> None:
    """Who pauses what is paused learns it, and the first one's words stay; the same to resume."""
    Semaphore(2, name, client=client)
    assert client.resume(name) is False
    assert client.pause(name, reason="first")
    revision = client.status(name).revision
    assert client.pause(name, reason="second") is False
    seen = client.status(name)
    assert seen.pause is not None
    assert (seen.pause.reason, seen.revision) == ("first", revision)
    assert client.resume(name)
    assert client.resume(name) is False


def test_by_hand(any_etcd: EtcdServer, client: Client, name: str) -> None:
    """The word is enough to pause it by hand; a plain number resumes it."""
    sem = Semaphore(1, name, client=client)
    key = f"/etcdsem/{name}/max_leases"
    any_etcd.etcdctl("put", key, "1 paused")
    assert sem.acquire(timeout=0) is False
    assert client.status(name).pause == etcdsem.Pause("", None, "")
    any_etcd.etcdctl("put", key, "1 paused for the weekend")
    assert client.status(name).pause == etcdsem.Pause("", None, "for the weekend")
    waiters = Waiters(sem, 1)
    any_etcd.etcdctl("put", key, "1")
    waiters.join()
    waiters.leases[0].release()
    assert_clean(any_etcd, name)


def test_holders_go_on_and_their_slots_are_kept_back(
    any_etcd: EtcdServer, client: Client, name: str
) -> None:
    """Who holds is not disturbed; what is given back goes to nobody until it is resumed."""
    with etcdsem.connect(any_etcd.endpoint) as other:
        sem = Semaphore(2, name, client=client)
        theirs = Semaphore(2, name, client=other)
        assert sem.acquire()
        assert theirs.acquire()
        waiters, strangers = Waiters(sem, 2), Waiters(theirs, 1)
        assert other.pause(name)
        assert sem.leases[0].valid
        assert sem.release()
        assert theirs.release()
        assert sem.get_value() == 0
        assert sem.acquire(timeout=0) is False
        assert theirs.acquire(timeout=0.1) is False
        assert not waiters.granted
        assert not strangers.granted
        assert client.resume(name)
        eventually(lambda: len(waiters.granted) == 2)
        for lease in waiters.leases:
            assert lease.release()
        strangers.join()
        strangers.leases[0].release()
    assert_clean(any_etcd, name)


def test_a_resize_keeps_the_pause(any_etcd: EtcdServer, client: Client, name: str) -> None:
    """The number is changed, and whoever waits goes on waiting."""
    sem = Semaphore(1, name, client=client)
    client.pause(name, reason="night")
    assert client.resize(name, 3) == (1, 3)
    assert stored(any_etcd, name).startswith("3 paused by ")
    assert sem.acquire(timeout=0) is False
    client.resume(name)
    assert stored(any_etcd, name) == "3"
    assert sem.acquire(timeout=0)
    sem.release()


def test_another_number_is_told_also_after_a_pause(client: Client, name: str) -> None:
    """A pause is no resize: programs with another number than the registered one are still told,
    while it lasts and afterwards. After a resize they are not.
    """
    Semaphore(3, name, client=client)
    client.pause(name)
    Semaphore(3, name, client=client)
    with pytest.raises(etcdsem.InconsistentLimit):
        Semaphore(5, name, client=client)
    client.resume(name)
    with pytest.raises(etcdsem.InconsistentLimit):
        Semaphore(5, name, client=client)
    client.resize(name, 4)
    client.pause(name)
    Semaphore(5, name, client=client)
    client.resume(name)
    Semaphore(5, name, client=client)


def test_what_cannot_be_paused(any_etcd: EtcdServer, client: Client, name: str) -> None:
    """An unknown semaphore, a limit that is none, a reason that nobody could read."""
    for verb in (client.pause, client.resume):
        with pytest.raises(SemaphoreClosed, match="not known"):
            verb(name)
    Semaphore(1, name, client=client)
    with pytest.raises(InvalidSetting, match="printable"):
        client.pause(name, reason="one\ntwo")
    any_etcd.etcdctl("put", f"/etcdsem/{name}/max_leases", "many")
    with pytest.raises(etcdsem.EtcdSemError, match="set one first"):
        client.pause(name)
    assert client.resume(name) is False


def test_verbs_that_race_lose_nothing(any_etcd: EtcdServer, client: Client, name: str) -> None:
    """Pausing, resuming and resizing at once: each is made of what the other has left."""
    Semaphore(1, name, client=client)
    with etcdsem.connect(any_etcd.endpoint) as other:

        def resize() -> None:
            for number in range(2, 40):
                other.resize(name, number)

        thread = threading.Thread(target=resize)
        thread.start()
        changed = 0
        while thread.is_alive():
            changed += client.pause(name)
            changed += client.resume(name)
        thread.join()
        assert changed
        client.pause(name)
    assert stored(any_etcd, name).startswith("39 paused by ")


def test_differences_that_race_are_all_counted(
    any_etcd: EtcdServer, client: Client, name: str
) -> None:
    """Each is counted from what the others have left, at whatever moment it comes."""
    Semaphore(1, name, client=client)
    with etcdsem.connect(any_etcd.endpoint) as other, ThreadPoolExecutor(8) as pool:

        def change(number: int) -> admin.Change:
            user = (client, other)[number % 2]
            return user._run(admin.change_by(user._state(name), 1 + number % 3), "change")

        changes = list(pool.map(change, range(60)))
    steps = sorted((one.before.number, one.after.number) for one in changes)
    assert [before for before, _ in steps[1:]] == [after for _, after in steps[:-1]]
    assert stored(any_etcd, name) == "121"


@pytest.mark.parametrize("meanwhile", ["", "2", "5", "gone"])
@pytest.mark.parametrize("applied", [True, False])
def test_a_difference_whose_answer_is_lost(
    etcd: EtcdServer, client: Client, name: str, applied: bool, meanwhile: str
) -> None:
    """It is made once, or it is said that it is not known."""
    Semaphore(1, name, client=client)
    key = f"/etcdsem/{name}/max_leases"
    lost: list[Transact] = []

    def losing(procedure: Procedure[admin.Change]) -> Procedure[admin.Change]:
        command = procedure.send(None)
        while True:
            try:
                if isinstance(command, Transact) and command.txn.compare and not lost:
                    lost.append(command)
                    if applied:
                        yield command
                    if meanwhile == "gone":
                        etcd.etcdctl("del", key)
                    elif meanwhile:
                        etcd.etcdctl("put", key, meanwhile)
                    command = procedure.throw(OutcomeUnknown("lost"))
                else:
                    command = procedure.send((yield command))
            except StopIteration as stop:
                change: admin.Change = stop.value
                return change

    procedure = losing(admin.change_by(client._state(name), 1))
    if meanwhile == "gone":
        with pytest.raises(SemaphoreClosed):
            client._run(procedure, "change")
    elif applied or meanwhile:
        now = meanwhile or "2"
        with pytest.raises(etcdsem.EtcdUnavailable, match=rf"was 1 and is now {now}; it is not"):
            client._run(procedure, "change")
        assert stored(etcd, name) == now
    else:
        change = client._run(procedure, "change")
        assert (change.before.number, change.after.number) == (1, 2)
        assert stored(etcd, name) == "2"
    assert lost


@pytest.mark.parametrize("applied", [True, False])
def test_an_answer_that_is_lost(client: Client, name: str, applied: bool) -> None:
    """A pause whose answer never came is known when it is read again, and is counted once."""
    Semaphore(2, name, client=client)
    engine = client._driver
    lost: list[Transact] = []

    def losing(procedure: Procedure[admin.Change]) -> Procedure[admin.Change]:
        command = procedure.send(None)
        while True:
            if isinstance(command, Transact) and command.txn.compare and not lost:
                lost.append(command)
                if applied:
                    yield command
                error = OutcomeUnknown("lost") if applied else NotApplied("refused")
                command = procedure.throw(error)
                continue
            try:
                command = procedure.send((yield command))
            except StopIteration as stop:
                change: admin.Change = stop.value
                return change

    change = engine.run(losing(admin.pause(client._state(name), "me", None)))
    assert lost
    assert change.changed
    assert change.after.paused
    assert not change.before.paused


# ---------------------------------------------------------------- drain


def test_drained_when_the_last_one_has_gone(
    any_etcd: EtcdServer, client: Client, name: str
) -> None:
    """It waits for those who hold, also for those who are evicted, and nobody gets in meanwhile."""
    with etcdsem.connect(any_etcd.endpoint) as other:
        sem, theirs = Semaphore(3, name, client=client), Semaphore(3, name, client=other)
        leases = [sem.acquire_lease(), sem.acquire_lease(), theirs.acquire_lease()]
        told = threading.Event()
        with ThreadPoolExecutor() as pool:
            drained = pool.submit(client.drain, name, reason="disks", on_wait=told.set)
            assert told.wait(30)
            waiters = Waiters(theirs, 1)
            pause = client.status(name).pause
            assert pause is not None
            assert pause.reason == "disks"
            assert client.drain(name, 0) is False
            assert theirs.drain("50ms") is False
            for lease in leases[:2]:
                assert lease is not None
                assert lease.release()
                assert not drained.done()
            assert leases[2] is not None
            other.evict(name, slot=leases[2].slot)
            assert drained.result(30) is True
        assert not waiters.granted
        assert sem.drain(0) is True
        client.resume(name)
        waiters.join()
        waiters.leases[0].release()


def test_nobody_to_wait_for(client: Client, name: str) -> None:
    """It is paused, and that is all; a lease of somebody's hand is nobody's."""
    Semaphore(3, name, client=client)
    told = threading.Event()
    assert client.drain(name, on_wait=told.set) is True
    assert client.status(name).pause is not None
    assert not told.is_set()


def test_resumed_while_it_is_drained(client: Client, name: str) -> None:
    """Who drains is told, and does not pause it again behind the other's back."""
    sem = Semaphore(3, name, client=client)
    told = threading.Event()
    with sem, ThreadPoolExecutor() as pool:
        drained = pool.submit(client.drain, name, on_wait=told.set)
        assert told.wait(30)
        client.resume(name)
        with pytest.raises(etcdsem.EtcdSemError, match="was resumed while it was being drained"):
            drained.result(30)
    assert client.status(name).pause is None


def test_closed_while_it_is_drained(client: Client, name: str) -> None:
    """A semaphore that is gone is not empty, but not known."""
    sem = Semaphore(3, name, client=client, raise_on_loss=False)
    told = threading.Event()
    with sem, ThreadPoolExecutor() as pool:
        drained = pool.submit(client.drain, name, on_wait=told.set)
        assert told.wait(30)
        sem.close()
        with pytest.raises(SemaphoreClosed):
            drained.result(30)


def test_drain_reads_again_what_no_watch_told(
    etcd: EtcdServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Etcd releases exist that lose delete events: the slots are read now and then."""
    monkeypatch.setenv("ETCDSEM_VALIDATION_INTERVAL", "0.2")
    monkeypatch.setattr(admin, "_watch", lambda station, box, start: [])
    with etcdsem.connect(etcd.endpoint) as client:
        sem = Semaphore(1, name, client=client)
        lease = sem.acquire_lease()
        assert lease is not None
        with ThreadPoolExecutor() as pool:
            told = threading.Event()
            drained = pool.submit(client.drain, name, on_wait=told.set)
            assert told.wait(30)
            lease.release()
            assert drained.result(30) is True


def test_drain_without_etcd(etcd: EtcdServer, name: str) -> None:
    """While etcd is away nobody knows; at the end of the timeout that is an error, not False."""
    with Proxy(etcd.endpoint) as proxy, etcdsem.connect(proxy.endpoint, dial_timeout=2) as client:
        sem = Semaphore(1, name, client=client)
        assert sem.acquire()
        told = threading.Event()

        def cut() -> None:
            proxy.up = proxy.down = "drop"
            proxy.reset()
            told.set()

        with pytest.raises(etcdsem.EtcdUnavailable):
            client.drain(name, "1s", on_wait=cut)
        assert told.is_set()
        proxy.up = proxy.down = "pass"
        proxy.reset()
        sem.release()


def test_a_pause_that_lands_late_changes_nothing(client: Client, name: str) -> None:
    """It was sent before somebody resized: then it does not land at all."""
    Semaphore(2, name, client=client)
    station = client._state(name)
    assert station.limit is not None
    late = transactions.change_limit(station.keys, station.limit.revision, b"2 paused")
    client.resize(name, 3)

    def send() -> Procedure[TxnReply]:
        from etcdsem.core.retry import transact

        return transact(client._driver.session, late)

    reply = client._driver.run(send())
    assert not reply.succeeded
    (kv,) = transactions.as_range(reply.replies[0]).kvs
    assert read_limit(kv).number == 3
    assert client.status(name).pause is None
