"""A pause that ends by itself, on a real etcd: who ends it, what wins, and what is seen."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

import etcdsem
from etcdsem import Client, InvalidSetting, RateLimit, Semaphore, SemaphoreClosed
from etcdsem.core import admin
from etcdsem.core.commands import OutcomeUnknown, Procedure, Transact
from tests.helpers.history import assert_clean
from tests.helpers.waiters import Waiters
from tests.helpers.waiting import eventually

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer


def stored(etcd: EtcdServer, name: str, key: str = "max_leases") -> str:
    """A key's value as etcdctl prints it, with the spaces at its end."""
    return etcd.etcdctl("get", "--print-value-only", f"/etcdsem/{name}/{key}")[:-1]


def paused_key(etcd: EtcdServer, name: str) -> bool:
    """Is the key there that says for how long?"""
    return stored(etcd, name, "max_leases_paused") == "1"


@pytest.mark.smoke
def test_it_is_plain_text_and_ends_by_itself(
    any_etcd: EtcdServer, client: Client, name: str
) -> None:
    """Etcdctl shows until when; whoever waits is served when the key is gone, although the client
    that began it is closed.
    """
    sem = Semaphore(1, name, client=client)
    began = datetime.now(UTC)
    assert Semaphore(1, name, client=client, owner="alice").penalize("60s", reason="429")
    text = stored(any_etcd, name)
    assert text.startswith("1 paused by alice since 20")
    assert text.rstrip().endswith("Z, 429")
    pause = sem.status().pause
    assert pause is not None
    assert pause.until is not None
    assert timedelta(seconds=59) < pause.until - began < timedelta(seconds=90)
    assert " until " in str(pause)
    assert paused_key(any_etcd, name)
    assert sem.acquire(timeout=0) is False
    with pytest.raises(etcdsem.AcquireTimeout, match=r"paused by alice .* left; to resume"):
        sem.hold(timeout=0).__enter__()
    assert client.resume(name)
    assert not paused_key(any_etcd, name)
    began = datetime.now(UTC)
    with etcdsem.connect(any_etcd.endpoint) as other:
        assert other.penalize(name, "2s")
    lease = sem.acquire_lease(timeout=30)
    assert lease is not None
    assert stored(any_etcd, name) == "1 "  # as registered, like after a resume
    assert not paused_key(any_etcd, name)
    assert lease.acquired_at - began >= timedelta(seconds=2)
    lease.release()
    assert_clean(any_etcd, name)


@pytest.mark.parametrize("knows", [True, False], ids=["knows", "does-not-know"])
def test_whoever_comes_first_ends_it(
    any_etcd: EtcdServer, client: Client, name: str, knows: bool
) -> None:
    """Everybody has died when it is over: a try ends it, and gets a lease; also by a client that
    knew nothing of the pause.
    """
    sem = Semaphore(1, name, client=client)
    if knows:
        client.penalize(name, "100s")
    else:
        with etcdsem.connect(any_etcd.endpoint) as other:
            other.penalize(name, "100s")
    any_etcd.etcdctl("del", f"/etcdsem/{name}/max_leases_paused")
    assert stored(any_etcd, name).startswith("1 paused by ")
    assert sem.acquire(timeout=0)
    assert stored(any_etcd, name) == "1 "  # as registered, like after a resume
    sem.release()


def test_whoever_comes_first_of_several_ends_it(
    any_etcd: EtcdServer, client: Client, name: str
) -> None:
    """The same for a caller that tries for two semaphores at once."""
    names = (name, f"{name}-2")
    pair = [Semaphore(1, one, client=client) for one in names]
    with etcdsem.connect(any_etcd.endpoint) as other:
        other.penalize(names[1], "100s")
    any_etcd.etcdctl("del", f"/etcdsem/{names[1]}/max_leases_paused")
    leases = etcdsem.acquire_all(*pair, timeout=0)
    assert leases
    for lease in leases:
        lease.release()


def test_the_longest_wins(any_etcd: EtcdServer, client: Client, name: str) -> None:
    """A shorter one changes nothing, a longer one and one without an end replace it, and those
    change nothing in turn; a resume ends any. A resize keeps it.
    """
    Semaphore(1, name, client=client)

    def state() -> tuple[bool, bool]:
        info = client.limit_info(name)
        timed = info.pause is not None and info.pause.until is not None
        return timed, paused_key(any_etcd, name)

    assert client.penalize(name, 60, reason="first")
    assert not client.penalize(name, 30, reason="shorter")
    assert ", first" in stored(any_etcd, name)
    assert client.penalize(name, "2m", reason="longer")
    assert ", longer" in stored(any_etcd, name)
    client.resize(name, 3)
    assert stored(any_etcd, name).startswith("3 paused by ")
    assert state() == (True, True)
    assert client.pause(name)
    assert state() == (False, False)
    assert not client.penalize(name, "1h")
    assert not client.pause(name)
    assert client.resume(name)
    assert client.penalize(name, "1h")
    assert client.resume(name)
    assert state() == (False, False)
    assert stored(any_etcd, name) == "3"


def test_a_short_one_lasts_for_etcds_shortest_lease(
    any_etcd: EtcdServer, client: Client, name: str
) -> None:
    """Etcd has no leases of half a second. What is shown is what etcd granted."""
    limit = RateLimit(name, 5, "1m", client=client)
    assert limit.penalize(0.5)
    pause = limit.status().pause
    assert pause is not None
    assert pause.since is not None
    assert pause.until is not None
    assert (pause.until - pause.since).total_seconds() >= 1
    denied = limit.try_acquire()
    assert isinstance(denied, etcdsem.Denied)
    assert 0 < denied.retry_after < 10
    assert limit.acquire()
    assert not limit.resume()


def test_what_it_refuses(client: Client, name: str) -> None:
    """An unknown name, and durations that are none."""
    with pytest.raises(SemaphoreClosed, match="not known"):
        client.penalize(name, 1)
    sem = Semaphore(1, name, client=client)
    for wrong in (0, -1, "366d", float("inf"), "soon"):
        with pytest.raises(InvalidSetting, match="duration"):
            sem.penalize(wrong)
    with pytest.raises(etcdsem.WrongKind):
        RateLimit(name, client=client, register=False).penalize(1)


def test_races_lose_nothing(any_etcd: EtcdServer, client: Client, name: str) -> None:
    """Penalties, resumes and resizes at once: the longest one stands at the end, unless resumed,
    and no number is lost.
    """
    Semaphore(1, name, client=client)
    with etcdsem.connect(any_etcd.endpoint) as other:

        def penalize() -> None:
            for seconds in range(100, 130):
                other.penalize(name, seconds)

        thread = threading.Thread(target=penalize)
        thread.start()
        number = 1
        while thread.is_alive():
            number += 1
            client.resize(name, number)
            client.resume(name)
        thread.join()
        assert client.limit(name) == number
        client.penalize(name, 300)
        assert not other.penalize(name, 200)
    assert stored(any_etcd, name).startswith(f"{number} paused by ")
    assert paused_key(any_etcd, name)


@pytest.mark.parametrize("applied", [True, False])
def test_a_lost_answer(client: Client, name: str, applied: bool) -> None:
    """It is done once, whether etcd's answer or the request was lost."""
    Semaphore(1, name, client=client)
    state = client._state(name)
    lost: list[object] = []

    def losing() -> Procedure[admin.Change]:
        procedure = admin.penalize(state, "alice", 60.0, None)
        command = next(procedure)
        while True:
            first = isinstance(command, Transact) and command.txn.compare and not lost
            try:
                if first:
                    lost.append(command)
                reply = (yield command) if not first or applied else None
                command = (
                    procedure.throw(OutcomeUnknown("lost")) if first else procedure.send(reply)
                )
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]

    change = client._run(losing(), "penalize")
    assert lost
    assert change.changed
    assert change.after.pause is not None
    assert change.after.pause.by == "alice"
    assert not client.penalize(name, 50)


def test_a_kept_slot_obeys(any_etcd: EtcdServer, client: Client, name: str) -> None:
    """A slot that stays with its client (`linger`) is not used again while it is paused."""
    sem = Semaphore(1, name, client=client, linger=1.0)
    with etcdsem.connect(any_etcd.endpoint) as other:
        for _ in range(3):  # the watches are up
            assert sem.acquire()
            sem.release()
        other.penalize(name, "100s")
        eventually(lambda: not (sem.acquire(timeout=0) and sem.release()))
        other.resume(name)
        assert sem.acquire(timeout=5)
        sem.release()


def test_a_key_by_hand(any_etcd: EtcdServer, client: Client, name: str) -> None:
    """The text alone, without the key, is over at once; a plain pause by hand has no end; a key
    that no lease ends lasts until somebody deletes it.
    """
    sem = Semaphore(1, name, client=client)
    base = f"/etcdsem/{name}/max_leases"
    text = "1 paused by me since 2026-11-25T09:30:00.000Z until 2026-11-25T09:31:00.000Z, why"
    any_etcd.etcdctl("put", base, text)
    assert sem.acquire(timeout=0)
    sem.release()
    assert stored(any_etcd, name) == "1"
    any_etcd.etcdctl("put", base, "1 paused until tomorrow")
    assert sem.acquire(timeout=0) is False
    any_etcd.etcdctl("put", base, text)
    any_etcd.etcdctl("put", f"{base}_paused", "1")
    assert sem.acquire(timeout=0) is False
    assert not sem.penalize("1h")
    waiters = Waiters(sem, 1)
    any_etcd.etcdctl("del", f"{base}_paused")
    waiters.join()
    waiters.leases[0].release()


def test_a_resize_of_an_old_program_and_a_drain(
    any_etcd: EtcdServer, client: Client, name: str
) -> None:
    """Programs that do not know of it keep its text when they resize, and read it as a pause. A
    drain replaces it by a pause without an end.
    """
    sem = Semaphore(2, name, client=client)
    client.penalize(name, "100s")
    old = stored(any_etcd, name)
    any_etcd.etcdctl("put", f"/etcdsem/{name}/max_leases", "5" + old[1:])
    assert client.limit(name) == 5
    assert sem.acquire(timeout=0) is False
    assert client.drain(name, timeout=5)
    pause = client.limit_info(name).pause
    assert pause is not None
    assert pause.until is None


def test_a_name_that_expires_still_does(any_etcd: EtcdServer, client: Client, name: str) -> None:
    """A penalty and its end leave the limit attached to the lease with which the name expires."""

    def lease() -> str:
        shown = any_etcd.etcdctl("get", f"/etcdsem/{name}/max_leases", "-w", "fields")
        return next(line for line in shown.splitlines() if line.startswith('"Lease"'))

    sem = Semaphore(1, name, client=client, expires="1h")
    before = lease()
    assert before.split() != ['"Lease"', ":", "0"]
    sem.penalize("100s")
    assert lease() == before
    any_etcd.etcdctl("del", f"/etcdsem/{name}/max_leases_paused")
    assert sem.acquire(timeout=0)
    sem.release()
    assert lease() == before
    sem.penalize("100s")
    client.resume(name)
    assert lease() == before
