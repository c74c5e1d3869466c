"""What `Client` tells of limits and rates, and how it changes them, blocking and for coroutines."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

import pytest

from etcdsem import Client, InvalidSetting, Rate, RateLimit, Semaphore, SemaphoreClosed, WrongKind
from etcdsem import aio as loops

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer


def test_limit_info_of_a_semaphore(client: Client, name: str) -> None:
    """Number and pause, as etcd has them, and afterwards without asking etcd."""
    with pytest.raises(SemaphoreClosed):
        client.limit_info(name)
    assert client.known_limit(name) is None
    Semaphore(3, name, client=client)
    info = client.limit_info(name)
    assert (info.max_leases, info.rate, info.pause, info.text) == (3, None, None, "3")
    client.pause(name, reason="new disks")
    known = client.known_limit(name)
    assert known is not None
    assert known.pause is not None
    assert known.pause.reason == "new disks"
    assert known == client.limit_info(name)


def test_a_rate_is_resized(client: Client, name: str) -> None:
    """It gives the old rate and the new one; a number is no rate, and a rate no number."""
    RateLimit(name, 5, "1m", block=1, client=client)
    assert client.resize(name, Rate(9, 60.0, 1)) == (Rate(5, 60.0, 1), Rate(9, 60.0, 1))
    assert client.limit_info(name).rate == Rate(9, 60.0, 1)
    with pytest.raises(WrongKind):
        client.resize(name, 9)
    with pytest.raises(InvalidSetting):
        client.resize(name, Rate(0, 60.0, 1))
    Semaphore(1, f"{name}-2", client=client)
    with pytest.raises(WrongKind):
        client.resize(f"{name}-2", Rate(9, 60.0, 1))


def test_a_rate_that_cannot_be_read_is_told(etcd: EtcdServer, client: Client, name: str) -> None:
    """Its text is there; a new rate mends it, and the old one is None."""
    RateLimit(name, 5, "1m", block=1, client=client)
    etcd.etcdctl("put", f"/etcdsem/{name}/max_leases", "5/soon")
    info = client.limit_info(name)
    assert (info.max_leases, info.rate, info.text) == (None, None, "5/soon")
    assert client.resize(name, Rate(5, 60.0, 1)) == (None, Rate(5, 60.0, 1))


def test_a_limit_is_changed_by_a_difference(client: Client, name: str) -> None:
    """It gives the old limit and the new one; what cannot be a limit changes nothing."""
    Semaphore(3, name, client=client)
    assert client.resize_by(name, 2) == (3, 5)
    assert client.resize_by(name, -5) == (5, 0)
    with pytest.raises(InvalidSetting, match="Nothing was changed"):
        client.resize_by(name, -1)
    assert client.limit(name) == 0


def test_when_a_start_is_free(client: Client, name: str) -> None:
    """Now, after a while, or never as long as it is paused."""
    limit = RateLimit(name, 1, "1h", block=1, client=client)
    assert Client.next_free(client.status(name, ttl=False)) == 0.0
    limit.acquire(10)
    assert 3000 < Client.next_free(client.status(name, ttl=False)) < 3700
    client.pause(name)
    assert Client.next_free(client.status(name, ttl=False)) == math.inf


def test_the_same_for_coroutines(etcd: EtcdServer, name: str) -> None:
    """`etcdsem.aio.Client` has them too."""

    async def scene() -> None:
        async with loops.connect(etcd.endpoint) as client:
            await loops.Semaphore(3, name, client=client)
            assert await client.resize_by(name, 1) == (3, 4)
            assert await client.resize(name, 6) == (4, 6)
            assert await client.limit_info(name) == client.known_limit(name)
            limit = f"{name}-rate"
            await loops.RateLimit(limit, 5, "1m", block=1, client=client)
            assert (await client.resize(limit, Rate(9, 60.0, 1)))[1] == Rate(9, 60.0, 1)

    asyncio.run(scene())
