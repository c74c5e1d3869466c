"""The asyncio library on a real etcd."""

from __future__ import annotations

import asyncio
import inspect
import logging
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

import etcdsem
from etcdsem import aio, sync
from etcdsem.aio import Lease, Semaphore
from tests.helpers.event_loop import eventually, run, until
from tests.helpers.history import assert_clean

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer


# ---------------------------------------------------------------- the same face


def public(thing: type) -> dict[str, Any]:
    """The public members of a class."""
    return {name: getattr(thing, name) for name in dir(thing) if not name.startswith("_")}


@pytest.mark.parametrize("kind", ["Semaphore", "Client", "Lease"])
def test_the_same_names_and_signatures(kind: str) -> None:
    """Every public member of a blocking class is there, with the same parameters."""
    blocking, other = public(getattr(sync, kind)), public(getattr(aio, kind))
    assert set(blocking) == set(other)
    for name, member in blocking.items():
        if not callable(member):
            assert isinstance(member, property) == isinstance(other[name], property)
            continue
        mine, its = inspect.signature(member), inspect.signature(other[name])
        assert mine.parameters == its.parameters, name
    arguments, others = (inspect.signature(getattr(one, kind)).parameters for one in (sync, aio))
    assert list(arguments) == list(others)  # a lease is made by another driver


def test_the_same_functions() -> None:
    """connect() and default_client() too."""
    for name in ("connect", "default_client"):
        assert inspect.signature(getattr(sync, name)) == inspect.signature(getattr(aio, name))
    for name in ("acquire_all", "hold_all"):  # their results differ as the libraries do
        mine, its = (inspect.signature(getattr(one, name)).parameters for one in (sync, aio))
        assert mine == its
    assert set(sync.__all__) - set(aio.__all__) == {"from_etcd3"}  # its channels are blocking ones


# ---------------------------------------------------------------- holding


@pytest.mark.smoke
def test_async_with_holds_and_gives_back(any_etcd: EtcdServer, name: str) -> None:
    """An async with block holds one lease, and gives it back."""

    async def main() -> None:
        async with aio.connect(any_etcd.endpoint) as client:
            sem = await Semaphore(2, name, client=client)
            assert await sem.get_value() == 0
            async with sem as same:
                assert same is sem
                assert await sem.get_value() == 1
            assert await sem.get_value() == 0

    run(main())
    assert_clean(any_etcd, name)


def test_one_that_was_not_awaited_registers_itself(etcd: EtcdServer, name: str) -> None:
    """Its first use registers it; but not again after it was closed."""

    async def main() -> None:
        async with aio.connect(etcd.endpoint) as client:
            sem = Semaphore(3, name, client=client)
            async with sem:
                assert await client.limit(name) == 3
            await sem.close()
            with pytest.raises(etcdsem.SemaphoreClosed):
                await sem.acquire()
            never = Semaphore(3, name, client=client, register=False)
            with pytest.raises(etcdsem.SemaphoreClosed):
                await never.acquire()

    run(main())


def test_hold_tells_all_of_the_lease(any_etcd: EtcdServer, name: str) -> None:
    """hold() gives the lease; its block raises what it raises, and the lease is back."""

    async def main() -> None:
        async with aio.connect(any_etcd.endpoint) as client:
            sem = await Semaphore(2, name, client=client, labels={"job": "7"}, owner="me")
            async with sem.hold() as first, sem.hold(timeout=0) as second:
                assert {first.slot, second.slot} == {0, 1}
                assert second.fencing_token > first.fencing_token
                first.check()
                assert 25 < first.remaining <= 30
                holder = (await sem.holders())[first.slot]
                assert (holder.fencing_token, holder.owner) == (first.fencing_token, "me")
                assert holder.lease_id == first.id
                assert sem.leases == (first, second)
                with pytest.raises(etcdsem.AcquireTimeout, match=name):
                    async with sem.hold(timeout=0):
                        pytest.fail("the body ran without a lease")
                assert await sem.acquire(timeout="30ms") is False
            assert not first.valid
            with pytest.raises(etcdsem.LeaseLost, match="released"):
                first.check()
            with pytest.raises(KeyError):
                async with sem.hold():
                    raise KeyError("mine")
            with pytest.raises(RuntimeError, match="Released too often"):
                await sem.release()
            assert await sem.acquire()
            assert await sem.release() is True

    run(main())
    assert_clean(any_etcd, name)


def test_decorator(etcd: EtcdServer, name: str) -> None:
    """A coroutine function runs with a lease; a plain one is refused."""

    async def main() -> None:
        async with aio.connect(etcd.endpoint) as client:
            sem = Semaphore(1, name, client=client)

            @sem
            async def work(number: int) -> int:
                """Documented."""
                assert await sem.get_value() == 1
                return number + 1

            assert set(await asyncio.gather(work(1), work(2))) == {2, 3}
            assert work.__doc__ == "Documented."
            with pytest.raises(TypeError, match="blocking"):
                sem(len)  # type: ignore[arg-type]

    run(main())


def test_limits_must_agree(etcd: EtcdServer, name: str) -> None:
    """Another limit is refused, and both are named; a resize breaks nobody."""

    async def main() -> None:
        async with aio.connect(etcd.endpoint) as client:
            sem = await Semaphore(3, name, client=client)
            with pytest.raises(etcdsem.InconsistentLimit, match="3"):
                await Semaphore(5, name, client=client)
            await sem.resize(4)
            await Semaphore(3, name, client=client)
            assert (await client.status(name)).max_leases == 4
            assert any(line.name == name and line.held == 0 for line in await client.overview())

    run(main())


# ---------------------------------------------------------------- loss


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
def test_a_lost_lease_is_told(
    any_etcd: EtcdServer, name: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An eviction sets `lost`, calls on_lost once, plain or async, and the block raises."""
    told: list[Lease] = []

    async def later(lease: Lease) -> None:
        await asyncio.sleep(0)
        told.append(lease)

    async def main() -> None:
        async with aio.connect(any_etcd.endpoint) as client:
            on_lost = told.append if kind == "plain" else later
            sem = await Semaphore(1, name, client=client, on_lost=on_lost)
            with pytest.raises(etcdsem.LeaseLost, match=name):
                async with sem.hold() as lease:
                    await client.evict(name, slot=0)
                    await asyncio.wait_for(_lost(lease), 15)
                    assert not lease.valid
                    await eventually(lambda: told == [lease])

    run(main())
    critical = [entry for entry in caplog.records if entry.levelno == logging.CRITICAL]
    assert len(critical) == 1
    assert name in critical[0].getMessage()


async def _lost(lease: Lease) -> None:
    assert await lease.lost


def test_close_wakes_those_who_wait(any_etcd: EtcdServer, name: str) -> None:
    """Who waits gets the error at once."""

    async def main() -> None:
        async with aio.connect(any_etcd.endpoint) as client:
            sem = await Semaphore(1, name, client=client)
            await sem.acquire()
            waiting = [asyncio.create_task(sem.acquire()) for _ in range(3)]

            async def all_wait() -> bool:
                return len(await sem.waiters()) == 3

            await until(all_wait)
            await sem.close()
            for task in waiting:
                with pytest.raises(etcdsem.SemaphoreClosed):
                    await task
            await sem.release()

    run(main())


# ---------------------------------------------------------------- pickling, loops


def test_pickling_carries_no_connection(etcd: EtcdServer, name: str) -> None:
    """Name, limit and options travel; in the loop they find one client."""

    async def main() -> None:
        async with aio.connect(etcd.endpoint) as client:
            sem = await Semaphore(2, name, client=client, labels={"a": "b"}, lease_timeout=7)
            await sem.acquire()
            data = pickle.dumps(sem)
            one, two = pickle.loads(data), pickle.loads(data)
            assert (one.name, one.max_leases, one.lease_timeout) == (name, 2, 7)
            assert one.leases == ()
            assert one.client is two.client
            assert await one.acquire(timeout=0)
            assert await sem.get_value() == 2
            await one.release()
            await one.client.close()

    run(main())


def test_a_client_belongs_to_one_loop(etcd: EtcdServer, name: str) -> None:
    """From another loop, or from none, it says so; also after its loop has ended."""
    client = aio.connect(etcd.endpoint)
    sem = Semaphore(1, name, client=client)
    with pytest.raises(etcdsem.WrongEventLoop, match="no event loop"):
        _ = client.id
    leases: list[Lease] = []

    async def first() -> None:
        await sem.acquire()
        leases.extend(sem.leases)

    async def second() -> None:
        with pytest.raises(etcdsem.WrongEventLoop, match="has ended"):
            await sem.acquire()
        with pytest.raises(RuntimeError, match="belongs to another event loop"):
            await client.status(name)
        assert sem.leases == ()
        assert await leases[0].release() is False
        await client.close()

    asyncio.run(first())
    asyncio.run(second())
    assert_clean(etcd, name)


def test_each_loop_has_a_default_client(
    etcd: EtcdServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A semaphore without a client serves loop after loop; each gives back at its end."""
    monkeypatch.setenv("ETCDSEM_ENDPOINTS", etcd.endpoint)
    sem = Semaphore(1, name)

    async def main() -> str:
        assert await sem.acquire(timeout=5)
        return sem.client.id

    assert asyncio.run(main()) != asyncio.run(main())
    assert_clean(etcd, name)


def test_release_takes_a_lease_of_its_own_loop(etcd: EtcdServer, name: str) -> None:
    """Also where another loop, in another thread, has an older one of the same object."""
    sem = Semaphore(2, name, client=None)
    held, leave = threading.Event(), threading.Event()

    async def elsewhere() -> None:
        aio.swap_default_client(aio.connect(etcd.endpoint))
        await sem.acquire()
        held.set()
        await asyncio.to_thread(leave.wait)
        assert await sem.release() is True

    async def main() -> None:
        aio.swap_default_client(aio.connect(etcd.endpoint))
        await sem.acquire()
        assert await sem.release() is True

    with ThreadPoolExecutor() as pool:
        other = pool.submit(asyncio.run, elsewhere())
        held.wait()
        try:
            asyncio.run(main())
        finally:
            leave.set()
        other.result()
    assert sem.leases == ()
