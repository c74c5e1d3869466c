"""Who waits when its client is closed is told so, and nothing is tried again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

import etcdsem
from etcdsem import Client, EtcdSemError, RateLimit, Semaphore, acquire_all, aio
from tests.helpers.event_loop import run, until
from tests.helpers.waiting import eventually

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

WAYS: dict[str, Callable[[Client, str], object]] = {
    "acquire": lambda client, name: Semaphore(1, name, client=client).acquire(),
    "hold": lambda client, name: Semaphore(1, name, client=client).hold(60).__enter__(),
    "several": lambda client, name: acquire_all(
        Semaphore(1, name, client=client), Semaphore(1, f"{name}.2", client=client)
    ),
}
"""How one may come to wait for a slot of a semaphore."""


@pytest.mark.parametrize("way", WAYS)
def test_waiters_are_told(
    etcd: EtcdServer, client: Client, name: str, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a semaphore, and of several."""
    full = Semaphore(1, name, client=client)
    full.acquire()
    closing = etcdsem.connect(etcd.endpoint)
    with ThreadPoolExecutor() as pool, caplog.at_level(logging.INFO, logger="etcdsem"):
        waiting = pool.submit(WAYS[way], closing, name)
        eventually(full.waiters)
        closing.close()
        with pytest.raises(EtcdSemError, match="its client was closed"):
            waiting.result(30)
    assert "trying again" not in caplog.text
    full.release()


@pytest.mark.parametrize("starts", [1, 300])
def test_waiters_of_a_rate_limit_are_told(
    etcd: EtcdServer, client: Client, name: str, starts: int, caplog: pytest.LogCaptureFixture
) -> None:
    """With single starts and with blocks: the first in line here, and who stands behind it."""
    full = RateLimit(name, starts, "1h", client=client)
    while full.try_acquire():
        pass
    closing = etcdsem.connect(etcd.endpoint)
    with ThreadPoolExecutor() as pool, caplog.at_level(logging.INFO, logger="etcdsem"):
        limit = RateLimit(name, starts, "1h", client=closing)
        waiting = [pool.submit(limit.acquire) for _ in range(2)]
        eventually(lambda: full.status().waiters)
        closing.close()
        for one in waiting:
            with pytest.raises(EtcdSemError, match="its client was closed"):
                one.result(30)
    assert "trying again" not in caplog.text


def test_waiters_in_asyncio_are_told(
    etcd: EtcdServer, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The same there."""

    async def main() -> None:
        async with aio.connect(etcd.endpoint) as client:
            full = await aio.Semaphore(1, name, client=client)
            await full.acquire()
            closing = aio.connect(etcd.endpoint)
            sem = await aio.Semaphore(1, name, client=closing)
            waiting = asyncio.ensure_future(sem.acquire())
            await until(full.waiters)
            await closing.close()
            with pytest.raises(EtcdSemError, match="its client was closed"):
                await waiting
            await full.release()

    with caplog.at_level(logging.INFO, logger="etcdsem"):
        run(main())
    assert "trying again" not in caplog.text
