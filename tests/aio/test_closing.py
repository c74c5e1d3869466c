"""A client of an event loop that was closed has no connection left."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING

import etcdsem.aio
from etcdsem.aio import Semaphore
from tests.helpers.connections import sockets

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer


def test_no_connection_outlives_its_client(etcd: EtcdServer, name: str) -> None:
    """As many sockets after four clients as after one, also while garbage is not collected: each
    held for so long that its streams were open.
    """

    async def live() -> None:
        async with etcdsem.aio.connect(etcd.endpoint) as client:
            sem = await Semaphore(1, name, client=client, lease_timeout=3)
            async with sem:
                await asyncio.sleep(1.5)

    async def main() -> list[int]:
        seen = []
        for _ in range(4):
            await live()
            least = sockets()
            for _ in range(50):  # what lets go in a moment
                await asyncio.sleep(0.02)
                least = min(least, sockets())
            seen.append(least)
        return seen

    gc.disable()
    try:
        seen = asyncio.run(main())
    finally:
        gc.enable()
    assert seen[-1] <= seen[0], seen
