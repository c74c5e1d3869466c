"""Thousands of tasks share one client."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from etcdsem import aio
from etcdsem.aio import Semaphore
from tests.helpers.connections import leases_of
from tests.helpers.event_loop import run
from tests.helpers.history import assert_clean

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

TASKS, LIMIT = 1_000, 50


def test_a_thousand_tasks(fresh_etcd: EtcdServer, name: str) -> None:
    """Limit 50: exact at every revision, first in, first out, one stream each, nothing left."""
    inside = most = 0

    async def work(sem: Semaphore) -> None:
        nonlocal inside, most
        async with sem:
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    async def main() -> dict[str, int]:
        async with aio.connect(fresh_etcd.endpoint) as client:
            sem = await Semaphore(LIMIT, name, client=client, lease_timeout=60)
            await asyncio.gather(*(work(sem) for _ in range(TASKS)))
            assert await sem.waiters() == ()
            return dict(client._driver.connection.counters)

    cost = run(main(), seconds=150)
    verdict = assert_clean(fresh_etcd, name)
    print(f"{TASKS} tasks, limit {LIMIT}: {verdict.handed_over} hand-overs, {cost}")
    assert verdict.grants == TASKS
    assert verdict.most_held == LIMIT
    assert most <= LIMIT
    assert verdict.handed_over > TASKS / 2
    assert not leases_of(fresh_etcd)
    assert cost["txn"] <= 8 * TASKS, "they were in each other's way"
