"""Logins that are forgotten, in an event loop: the same as for threads, see test_users.py."""

from __future__ import annotations

import asyncio
import math
from typing import Any

from etcdsem import aio
from tests.security.secured import JOB, SECRET, secured


def test_a_restart_forgets_tokens(module_binary: str, name: str) -> None:
    """One new login between all tasks, streams with the new token, the hand-over by an event."""

    async def work(endpoint: str, restart: object) -> None:
        assert callable(restart)
        async with aio.connect(endpoint, user=JOB, password=SECRET) as client:
            client._driver.session.reread = (math.inf, math.inf)
            sem = await aio.Semaphore(1, name, client=client, lease_timeout=30)
            lease = await sem.acquire_lease()
            assert lease is not None
            in_line = asyncio.Event()
            loop = asyncio.get_running_loop()
            waiter = asyncio.create_task(
                sem.acquire_lease(60, on_wait=lambda: loop.call_soon_threadsafe(in_line.set))
            )
            await asyncio.wait_for(in_line.wait(), 20)
            transport = client._driver.connection._link().transport
            call, made = transport.call, []

            async def counted(path: str, *arguments: Any, **options: Any) -> bytes:
                if path.endswith("/Authenticate"):
                    made.append(path)
                return await call(path, *arguments, **options)

            transport.call = counted  # type: ignore[method-assign]
            await asyncio.to_thread(restart)
            values = await asyncio.gather(*(sem.get_value() for _ in range(20)))
            assert values == [1] * 20
            assert lease.valid
            assert await lease.release()
            served = await asyncio.wait_for(waiter, 30)
            assert served is not None
            assert served.valid
            assert await served.release()
            assert 1 <= len(made) <= 3

    with secured(module_binary) as etcd:
        asyncio.run(work(etcd.endpoint, etcd.restart))
