"""One name is a semaphore or a rate limit: who takes it for the other is told, and what to do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import pytest

from etcdsem import Client, RateLimit, Semaphore, WrongKind, aio

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

ON_A_RATE: dict[str, Callable[[Semaphore], object]] = {
    "acquire": lambda sem: sem.acquire(0),
    "wait": lambda sem: sem.acquire(5),
    "hold": lambda sem: sem.hold(5).__enter__(),
    "resize": lambda sem: sem.resize(5),
    "pause": lambda sem: sem.pause(),
    "resume": lambda sem: sem.resume(),
    "drain": lambda sem: sem.drain(5),
    "status": lambda sem: sem.status(),
    "holders": lambda sem: sem.holders(),
    "waiters": lambda sem: sem.waiters(),
    "get_value": lambda sem: sem.get_value(),
    "register": lambda sem: sem.register(),
    "close": lambda sem: sem.close(),
}
"""What one does with a semaphore."""

ON_A_SEMAPHORE: dict[str, Callable[[RateLimit], object]] = {
    "acquire": lambda limit: limit.acquire(5),
    "try": lambda limit: limit.try_acquire(),
    "resize": lambda limit: limit.resize(5, "1m"),
    "pause": lambda limit: limit.pause(),
    "resume": lambda limit: limit.resume(),
    "status": lambda limit: limit.status(),
    "register": lambda limit: limit.register(),
    "close": lambda limit: limit.close(),
}
"""What one does with a rate limit."""


def everything(etcd: EtcdServer, name: str) -> str:
    """All keys and values."""
    return etcd.etcdctl("get", "--prefix", f"/etcdsem/{name}/")


@pytest.mark.parametrize("verb", ON_A_RATE)
def test_a_semaphores_verbs_on_a_rate_limit(
    etcd: EtcdServer, client: Client, name: str, verb: str
) -> None:
    """WrongKind, which names the other class and command; nothing is changed."""
    RateLimit(name, 2, "1h", client=client).acquire()
    before = everything(etcd, name)
    sem = Semaphore(5, name, client=client, register=False)
    said = rf"'{name}' is a rate limit \('2/1h'\).*etcdsem.RateLimit.*etcdsem rate {name}"
    with pytest.raises(WrongKind, match=said):
        ON_A_RATE[verb](sem)
    assert everything(etcd, name) == before


@pytest.mark.parametrize("verb", ON_A_SEMAPHORE)
def test_a_rate_limits_verbs_on_a_semaphore(
    etcd: EtcdServer, client: Client, name: str, verb: str
) -> None:
    """The same the other way round."""
    Semaphore(2, name, client=client).acquire()
    before = everything(etcd, name)
    limit = RateLimit(name, 5, "1m", client=client, register=False)
    said = rf"'{name}' is a semaphore \(its limit is '2'\).*etcdsem.Semaphore.*etcdsem limit {name}"
    with pytest.raises(WrongKind, match=said):
        ON_A_SEMAPHORE[verb](limit)
    assert everything(etcd, name) == before


def test_in_asyncio(etcd: EtcdServer, name: str) -> None:
    """The same errors from the same verbs."""

    async def refused(call: Callable[[], Awaitable[object]]) -> None:
        with pytest.raises(WrongKind):
            await call()

    async def work() -> None:
        async with aio.connect(etcd.endpoint) as client:
            await aio.RateLimit(f"{name}.rate", 2, "1h", client=client)
            sem = await aio.Semaphore(2, name, client=client)
            wrong = aio.Semaphore(5, f"{name}.rate", client=client, register=False)
            verbs: tuple[Callable[[], Awaitable[object]], ...] = (
                *(wrong.pause, wrong.resume, wrong.drain, wrong.status, wrong.get_value),
                *(wrong.acquire, wrong.close, lambda: wrong.resize(5)),
            )
            for call in verbs:
                await refused(call)
            other = aio.RateLimit(name, 5, "1m", client=client, register=False)
            verbs = (
                *(other.pause, other.resume, other.status, other.acquire, other.try_acquire),
                *(other.close, lambda: other.resize(5, "1m")),
            )
            for call in verbs:
                await refused(call)
            await refused(lambda: client.limit(f"{name}.rate"))
            await refused(lambda: client.resize(f"{name}.rate", 5))
            assert await sem.get_value() == 0

    asyncio.run(work())


def test_a_client_asks_by_name(client: Client, name: str) -> None:
    """What is the same for both goes for both; a number is no rate."""
    limit = RateLimit(name, 2, "1h", client=client)
    assert limit.acquire()
    for call in (lambda: client.limit(name), lambda: client.resize(name, 5)):
        with pytest.raises(WrongKind, match="is a rate limit"):
            call()
    assert client.pause(name)
    assert client.status(name).pause
    assert client.resume(name)
    client.evict(name, slot=client.status(name).holders[0].slot)
    assert client.close_semaphore(name).done


def test_a_name_that_has_changed_its_kind(client: Client, name: str) -> None:
    """It was closed, and registered as the other kind: who has known it is told so."""
    sem = Semaphore(2, name, client=client)
    assert sem.get_value() == 0
    sem.close()
    limit = RateLimit(name, 2, "1h", client=client)
    for verb in ON_A_RATE.values():
        with pytest.raises(WrongKind):
            verb(sem)
    assert limit.acquire()
    limit.close()
    Semaphore(2, name, client=client)
    for call in ON_A_SEMAPHORE.values():
        with pytest.raises(WrongKind):
            call(limit)
    assert sem.acquire(0)
    sem.release()


def test_in_memory(name: str) -> None:
    """Users' tests see the same."""
    from etcdsem import testing

    with testing.memory() as etcd:
        client = etcd.client()
        RateLimit(name, 2, "1h", client=client)
        sem = Semaphore(5, name, client=client, register=False)
        for verb in ("pause", "close", "status", "resize", "acquire"):
            with pytest.raises(WrongKind):
                ON_A_RATE[verb](sem)
