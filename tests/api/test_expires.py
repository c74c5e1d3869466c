"""Names that expire: they leave etcd when nobody uses them, and stay while somebody does."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

import etcdsem.testing
from etcdsem import InvalidSetting, RateLimit, Semaphore, SemaphoreClosed, validation
from etcdsem.core import name_lease
from tests import expiring_names
from tests.cli.driver import etcdctl, keys, ran, ran_here
from tests.helpers.slow import sample
from tests.helpers.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from etcdsem import Client
    from etcdsem.server import EtcdServer


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names may expire after seconds."""
    monkeypatch.setattr(validation, "MIN_EXPIRES", 1.0)


@pytest.fixture
def client(etcd: EtcdServer) -> Iterator[Client]:
    with etcdsem.connect(etcd.endpoint) as client:
        yield client


@pytest.mark.parametrize("value", [0, -1, 9.99, "599s", "1e12", 0.5])
def test_what_is_too_short_is_refused(value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with pytest.raises(InvalidSetting, match="expires must be from 10m to"):
        Semaphore(1, "x", register=False, expires=value)  # type: ignore[arg-type]
    with pytest.raises(InvalidSetting, match="two periods of the rate limit, 2h"):
        RateLimit("x", 1, "1h", register=False, expires="1h")
    with pytest.raises(InvalidSetting, match="two periods of the rate limit, 2h"):
        Semaphore(1, "x", register=False, expires="1h", rate="1/1h")
    with pytest.raises(InvalidSetting, match="max_leases, too"):
        Semaphore(None, "x", register=False, expires="1h")
    with pytest.raises(InvalidSetting, match="the limit and the period, too"):
        RateLimit("x", register=False, expires="1h")


def test_who_expires(client: Client, name: str) -> None:
    """A name that was given stays; one that was generated expires; either can be changed."""
    assert Semaphore(1, name, client=client).status().expires_in is None
    unnamed = Semaphore(1, client=client)
    left = unnamed.status().expires_in
    assert left is not None
    assert 86_300 < left <= 86_400
    assert Semaphore(1, client=client, expires=float("inf")).status().expires_in is None
    paced = Semaphore(1, f"{name}-paced", client=client, expires="7d", rate="1/1m")
    for one in (paced.status(), client.status(f"{name}-paced.rate")):
        assert one.expires_in is not None
        assert one.expires_in > 6 * 86_400
    expiring = {one.name: one.expires for one in client.overview()}
    assert (expiring[name], expiring[unnamed.name], expiring[f"{name}-paced"]) == (
        False,
        True,
        True,
    )
    unnamed.close()
    with pytest.raises(SemaphoreClosed):
        unnamed.acquire(timeout=1)


def test_it_leaves_with_everything(etcd: EtcdServer, client: Client, name: str) -> None:
    """After its time no key is left, also not of a rate limit whose program has ended, or of a
    semaphore whose holder and waiters were killed; and it is registered again on the next use.
    """
    script = (
        "import etcdsem, os, sys, threading, time; from etcdsem import validation\n"
        "validation.MIN_EXPIRES = 1.0\n"
        "endpoint, name = sys.argv[1:]\n"
        "client = etcdsem.connect(endpoint)\n"
        "etcdsem.RateLimit(name + '-r', 2, '1s', client=client, expires=3).acquire()\n"
        "one = etcdsem.Semaphore(1, name, client=client, expires=3, lease_timeout=2)\n"
        "one.acquire()\n"
        "threading.Thread(target=lambda: one.acquire_lease(priority=1), daemon=True).start()\n"
        "while not one.waiters(): time.sleep(0.01)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", script, etcd.endpoint, name], check=False, timeout=60)
    there = {*keys(etcd, name), *keys(etcd, f"{name}-r")}
    assert {"max_leases", "contended", "priorities"} <= there
    assert any(one.startswith("permits/") for one in there)
    semaphore = Semaphore(1, f"{name}-x", client=client, expires=3)
    eventually(lambda: not any(keys(etcd, one) for one in (name, f"{name}-r", f"{name}-x")), 60)
    assert semaphore.acquire(timeout=10)
    assert keys(etcd, f"{name}-x") == ["leases/00000", "max_leases"]
    semaphore.release()


@pytest.mark.parametrize("rate", sample([False, True]))
def test_it_stays_while_somebody_uses_it(
    etcd: EtcdServer, client: Client, name: str, rate: bool
) -> None:
    """A holder, a waiter, and a program that acquires now and then: none of them registered it."""
    registered = time.monotonic()
    if rate:
        RateLimit(name, 10, "1s", client=client, expires=4)
    else:
        Semaphore(1, name, client=client, expires=4)
    with etcdsem.connect(etcd.endpoint) as other, etcdsem.connect(etcd.endpoint) as third:
        if rate:
            limit = RateLimit(name, client=other)
            while time.monotonic() < registered + 9:
                assert limit.acquire(timeout=5)
                time.sleep(0.5)
        else:
            holder, waiter = (
                Semaphore(None, name, client=other),
                Semaphore(None, name, client=third),
            )
            with holder:
                waiting = threading.Thread(target=waiter.acquire)
                waiting.start()
                while time.monotonic() < registered + 9:
                    assert "max_leases" in keys(etcd, name)
                    time.sleep(0.2)
            waiting.join()
            waiter.release()
    eventually(lambda: not keys(etcd, name), 60)


def test_a_short_program_keeps_it(etcd: EtcdServer, name: str) -> None:
    """One that ends before its heartbeat begins refreshes the name when it closes."""
    with etcdsem.connect(etcd.endpoint) as client:
        Semaphore(1, name, client=client, expires=4)
    until = time.monotonic() + 9
    while time.monotonic() < until:
        with etcdsem.connect(etcd.endpoint) as client:
            client._driver.session.leases.chores.clear()  # the heartbeat never gets to it
            with Semaphore(None, name, client=client):
                pass
        time.sleep(1)
    assert "max_leases" in keys(etcd, name)


def test_changes_keep_the_lease_and_etcdctl_ends_it(
    etcd: EtcdServer, client: Client, name: str
) -> None:
    """Resize, pause and resume; a plain put makes the name stay."""
    semaphore = Semaphore(1, name, client=client, expires="1h")
    semaphore.resize(2)
    semaphore.pause()
    ran_here(etcd, "limit", name, "+1")
    semaphore.resume()
    status = semaphore.status()
    assert status.max_leases == 3
    assert status.expires_in is not None
    assert "expires in 59m" in ran_here(etcd, "status", name).stdout
    etcdctl(etcd, "put", f"/etcdsem/{name}/max_leases", "4")
    with semaphore:
        assert semaphore.status().expires_in is None


def test_a_name_that_was_closed_stays_closed(etcd: EtcdServer, client: Client, name: str) -> None:
    """Unlike one that has expired; also for a waiter."""
    semaphore = Semaphore(1, name, client=client, expires="1h")
    with etcdsem.connect(etcd.endpoint) as other:
        other.close_semaphore(name)
        with pytest.raises(SemaphoreClosed):
            semaphore.acquire(timeout=1)
        assert keys(etcd, name) == []
        again = Semaphore(1, name, client=other, expires="1h")
        assert semaphore.acquire(timeout=1)
        semaphore.release()
        again.close()


def test_if_it_ends_in_use_nobody_gets_too_much(
    etcd: EtcdServer, client: Client, name: str
) -> None:
    """Its lease is revoked, as if its users had been cut off for long: the holder keeps its slot,
    the waiter registers the name again and waits on, and nobody else gets the slot.
    """
    holder = Semaphore(1, name, client=client, expires="1h")
    got: list[bool] = []
    with etcdsem.connect(etcd.endpoint) as other:
        waiter = Semaphore(1, name, client=other, expires="1h")
        waiting = threading.Thread(target=lambda: got.append(waiter.acquire(timeout=60)))
        with holder.hold() as lease:
            waiting.start()
            eventually(lambda: "contended" in keys(etcd, name), 30)
            end(etcd, name)
            eventually(lambda: {"max_leases", "contended"} <= {*keys(etcd, name)}, 30)
            assert lease.valid
            assert not got
            assert not Semaphore(1, name, client=client).acquire(timeout=0)
        waiting.join(timeout=60)
        assert got == [True]


def end(etcd: EtcdServer, name: str) -> None:
    """Revoke the lease of a name."""
    found = etcdctl(etcd, "get", f"/etcdsem/{name}/max_leases", "-w", "fields")
    number = next(int(one.split()[-1]) for one in found.splitlines() if '"Lease"' in one)
    etcdctl(etcd, "lease", "revoke", f"{number:x}")


def test_who_finds_it_gone_registers_it_again(etcd: EtcdServer, client: Client, name: str) -> None:
    """Also a copy of the object, several at once, and the rate limit of a semaphore."""
    semaphore = Semaphore(1, name, client=client, expires="1h", rate="9/1s")
    other = Semaphore(1, f"{name}-o", client=client, expires="1h")
    third = Semaphore(1, f"{name}-t", client=client, expires="1h")
    copy = pickle.loads(pickle.dumps(semaphore))
    for users in ([semaphore], [copy], [other, third]):
        for gone in (name, f"{name}.rate", f"{name}-o", f"{name}-t"):
            end(etcd, gone)
        leases = etcdsem.acquire_all(*users, timeout=10) if len(users) > 1 else None
        assert leases is not None or users[0].acquire(timeout=10)
        for user in users:
            user.release()
            with Semaphore(None, user.name, client=client):
                pass
            assert user.status().expires_in is not None
        for one in (semaphore, other, third):
            one.register()
        RateLimit(f"{name}.rate", 9, "1s", client=client, expires="1h")
    assert RateLimit(f"{name}.rate", client=client).try_acquire()


def test_who_knows_nothing_of_a_lease_asks_first(client: Client, name: str) -> None:
    """A renewal of a lease that may have expired could hold up all others."""
    semaphore = Semaphore(1, name, client=client, expires="1h")
    state = client._state(name)
    lease = state.name_lease
    assert lease is not None
    semaphore.acquire()
    lease.good_until = lease.refreshed = lease.asked = float("-inf")
    lease.ttl = float("inf")
    client._session.wake_heartbeat()
    eventually(lambda: lease.refreshed > 0, 30)
    assert lease.ttl == 3600
    assert lease.good_until > client._session.env.now() + 3500
    assert lease.due() > client._session.env.now() + name_lease.MOST_BETWEEN - 30
    semaphore.release()


def test_run_expires(etcd: EtcdServer, name: str) -> None:
    """`run --expires`: of a lease, a permit, and several leases."""
    for options in (
        (name, "-l", "1"),
        (f"{name}-r", "--rate", "9/1s"),
        (f"{name}-a=1", f"{name}-b=2"),
    ):
        done = ran(etcd, "run", *options, "--expires", "1h", "--", "true")
        assert done.returncode == 0, done.stderr
    for one in (name, f"{name}-r", f"{name}-a", f"{name}-b"):
        assert "expires in 59m" in ran_here(etcd, "status", one).stdout
    for wrong in (("--expires", "1h"), ("-l", "1", "--expires", "soon")):
        assert ran_here(etcd, "run", name, *wrong, "--", "true").returncode == 64


async def _aio(endpoint: str, name: str) -> None:
    import asyncio

    from etcdsem import aio

    async with aio.connect(endpoint) as client:
        semaphore = aio.Semaphore(1, name, client=client, expires=4)
        limit = aio.RateLimit(f"{name}-r", 10, "1s", client=client, expires=4)
        async with semaphore:
            assert (await client.prune("1h", pattern=f"{name}*")).expiring == ()
            await asyncio.sleep(5)
            assert (await semaphore.status()).expires_in is not None
        while any(one.name.startswith(name) for one in await client.overview()):
            await asyncio.sleep(0.2)
        assert await limit.acquire(timeout=5)
        assert await semaphore.acquire(timeout=5)
        await semaphore.release()


def test_asyncio(etcd: EtcdServer, name: str) -> None:
    """The same there: it stays while held, leaves, and comes back."""
    import asyncio

    asyncio.run(_aio(etcd.endpoint, name))


def test_in_memory() -> None:
    """With a clock that the test moves."""
    with etcdsem.testing.memory() as etcd:
        semaphore = Semaphore(1, "x", client=etcd.client(), expires="1h")
        other = Semaphore(None, "x", client=etcd.client())
        etcd.advance("50m")
        with other:
            etcd.advance("3h")
        etcd.advance("50m")
        assert semaphore.get_value() == 0
        etcd.advance("11m")
        assert etcd.client().overview() == []
        assert semaphore.acquire(timeout=0)
        assert etcd.client().overview()[0].expires


def test_many_names_that_are_used_once(fresh_etcd: EtcdServer) -> None:
    """Nothing of them is left, and the database does not grow. 100,000: `expiring_names`."""
    found = expiring_names.run(fresh_etcd, 240, rounds=2, processes=1, expires=2)
    assert found.most > 50
    assert found.left == (0, 0)
    assert found.sizes[1] <= found.sizes[0]
