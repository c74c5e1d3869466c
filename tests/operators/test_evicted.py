"""An operator turns a waiter away: its acquire ends, with an error that says who did it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

import etcdsem
from etcdsem import Client, Evicted, RateLimit, Semaphore, acquire_all, aio, hold_all
from etcdsem.testing import memory
from tests.helpers.event_loop import run, until
from tests.helpers.waiting import eventually

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer


def _pair(client: Client, name: str) -> tuple[Semaphore, Semaphore]:
    return Semaphore(1, name, client=client), Semaphore(1, f"{name}.2", client=client)


WAYS: dict[str, Callable[[Client, str], object]] = {
    "acquire": lambda client, name: Semaphore(1, name, client=client).acquire(),
    "acquire with a timeout": lambda client, name: Semaphore(1, name, client=client).acquire(60),
    "with": lambda client, name: Semaphore(1, name, client=client).__enter__(),
    "hold": lambda client, name: Semaphore(1, name, client=client).hold(60).__enter__(),
    "several": lambda client, name: acquire_all(*_pair(client, name)),
    "hold several": lambda client, name: hold_all(*_pair(client, name), timeout=60).__enter__(),
}
"""How one may come to wait for a slot of a semaphore."""


def evict_first(client: Client, name: str) -> None:
    """Evict the first in line."""
    first = client.status(name).waiters[0]
    gone = client.evict(name, lease=first.lease_id)
    assert gone == replace(first, ttl=None)


SAID = r"acquire '{}'.*: evicted from the queue by alice at 20\d\d-.*Z"


@pytest.mark.parametrize("way", WAYS)
def test_evicted(
    any_etcd: EtcdServer, client: Client, name: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However it waits: Evicted, which says by whom and when; nothing stays behind of it, the
    holder is not disturbed, and its client can acquire afterwards.
    """
    monkeypatch.setenv("ETCDSEM_OWNER", "alice")
    full = Semaphore(1, name, client=client)
    full.acquire()
    with ThreadPoolExecutor() as pool, etcdsem.connect(any_etcd.endpoint) as other:
        waiting = pool.submit(WAYS[way], other, name)
        eventually(full.waiters)
        (before,) = full.waiters()
        evict_first(client, name)
        with pytest.raises(Evicted, match=SAID.format(name)):
            waiting.result(30)
        assert not full.waiters()
        assert full.release() is True
        assert Semaphore(1, name, client=other).acquire(timeout=10)
        eventually(lambda: before.lease_id not in any_etcd.etcdctl("lease", "list"))


@pytest.mark.parametrize("starts", [1, 300])
def test_evicted_from_a_rate_limit(
    etcd: EtcdServer, client: Client, name: str, starts: int
) -> None:
    """The one in line is told; with blocks, who stood behind it in its client waits on."""
    full = RateLimit(name, starts, "1h", client=client)
    while full.try_acquire():
        pass
    with ThreadPoolExecutor() as pool, etcdsem.connect(etcd.endpoint) as other:
        limit = RateLimit(name, starts, "1h", client=other)
        first = pool.submit(limit.acquire)
        eventually(lambda: full.status().waiters)
        (gone,) = full.status().waiters
        second = pool.submit(limit.acquire)
        evict_first(client, name)
        with pytest.raises(Evicted, match=f"'{name}': evicted from the queue by"):
            first.result(30)
        eventually(lambda: [w for w in full.status().waiters if w.lease_id != gone.lease_id])
        evict_first(client, name)
        with pytest.raises(Evicted):
            second.result(30)


def test_evicted_in_asyncio(any_etcd: EtcdServer, name: str) -> None:
    """The same there, one alone and several at once."""

    async def main() -> None:
        async with aio.connect(any_etcd.endpoint) as client:
            full = await aio.Semaphore(1, name, client=client)
            other = await aio.Semaphore(1, f"{name}.2", client=client)
            assert await full.acquire()
            for waiting in (full.acquire(), aio.acquire_all(other, full)):
                task = asyncio.ensure_future(waiting)
                await until(full.waiters)
                (waiter,) = await full.waiters()
                assert await client.evict(name, lease=waiter.lease_id) == replace(waiter, ttl=None)
                with pytest.raises(Evicted, match="evicted from the queue by"):
                    await task
            assert await full.release()
            assert await other.get_value() == 0

    run(main())


def test_evicted_in_memory() -> None:
    """The etcd for users' tests knows it too; the grant message ends after a while."""
    with memory(autojump=0) as etcd, ThreadPoolExecutor() as pool:
        sem = Semaphore(1, "db", client=etcd.client())
        assert sem.acquire()
        waiting = pool.submit(sem.acquire)
        eventually(sem.waiters)
        evict_first(sem.client, "db")
        with pytest.raises(Evicted):
            waiting.result(30)
