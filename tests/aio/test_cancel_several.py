"""Several semaphores at once, cancelled at every single step: nothing is left behind, nothing lost.

As `test_cancel_every_step.py`, in each of the situations that `acquire_all` knows. What was granted
is given back, or it is in the caller's hands.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import pytest

import etcdsem
from etcdsem import aio
from etcdsem.aio import Lease, Semaphore
from etcdsem.core import multi
from tests.helpers.cancelling import Canceller
from tests.helpers.connections import leases_of
from tests.helpers.event_loop import eventually, run, until
from tests.helpers.history import assert_clean

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

MOST_STEPS = 24

Pair = tuple[Semaphore, Semaphore]

SITUATIONS = {
    "free": 3,  # two leases, ALL, two releases
    "full": 7,  # b is held all the time: in its line until the time is up
    "handed over": 9,  # b comes free while it waits there: then a too, and all is well
    "in vain": 10,  # b comes free, a does not: it passes b on, and goes on at a
    "while it holds": 9,  # it holds a while it stands in line at b
}
"""What others do with a and b, and how many steps there must be at least."""


class Others:
    """Another client: it holds what the situation wants, and gives some of it back in time."""

    def __init__(self, pair: Pair, situation: str) -> None:
        self.a, self.b = pair
        self.situation = situation

    async def begin(self) -> None:
        """Take what is to be taken before."""
        if self.situation != "free":
            assert await self.b.acquire(10)
        if self.situation == "in vain":
            assert await self.a.acquire(10)

    async def come_free(self) -> None:
        """Give b back once somebody waits for it."""
        if self.situation in ("handed over", "in vain"):
            await until(self._somebody_waits)
            await self.b.release()

    async def _somebody_waits(self) -> bool:
        return len(await self.b.waiters()) > 0

    async def end(self) -> None:
        """Give back what is still held."""
        for one in (self.a, self.b):
            for lease in one.leases:
                await lease.release()

    async def settled(self) -> bool:
        """Is nothing held but by us, and nobody in any line?"""
        seen = [await one.status(ttl=False) for one in (self.a, self.b)]
        mine = [len(one.leases) for one in (self.a, self.b)]
        return [one.held for one in seen] == mine and not any(one.waiters for one in seen)


async def in_a_block(pair: Pair, timeout: float, _kept: list[Lease]) -> None:
    """One block."""
    with contextlib.suppress(etcdsem.AcquireTimeout):
        async with aio.hold_all(*pair, timeout=timeout):
            await asyncio.sleep(0)


async def by_hand(pair: Pair, timeout: float, kept: list[Lease]) -> None:
    """One call; the leases are kept."""
    taken = await aio.acquire_all(*pair, timeout=timeout)
    kept += taken or ()
    await asyncio.sleep(0)


USES: dict[str, Callable[[Pair, float, list[Lease]], Awaitable[None]]] = {
    "block": in_a_block,
    "by hand": by_hand,
}


async def sabotaged(
    etcd: EtcdServer, others: Others, step: int, when: str, how: str, *, again: bool, wait: float
) -> tuple[bool, list[int]]:
    """Cancel a task at a step. Was it hit, and which etcd leases had it asked for?

    `wait`: seconds until it gives up where it cannot have both.
    """
    waits = others.situation in ("full", "in vain", "while it holds")
    kept: list[Lease] = []
    await others.begin()
    async with aio.connect(etcd.endpoint) as client:
        pair = (
            await Semaphore(1, others.a.name, client=client, lease_timeout=5),
            await Semaphore(1, others.b.name, client=client, lease_timeout=5),
        )
        canceller = Canceller(client, step, when, again=again)
        work = USES[how](pair, wait if waits else 10.0, kept)
        task = canceller.victim = asyncio.ensure_future(work)
        freeing = asyncio.create_task(others.come_free())
        with contextlib.suppress(asyncio.CancelledError):
            await task
        freeing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await freeing
        # All or none, and no lease that nobody knows of.
        assert [*pair[0].leases, *pair[1].leases] == kept
        assert len(kept) in (0, 2)
        for lease in kept:
            assert await lease.release()
        await eventually(lambda: client._driver.session.leases.revocations == 0)
        assert not client._driver.session.grants()
        await until(others.settled)
        return canceller.hit, canceller.made


@pytest.mark.parametrize("how", list(USES))
@pytest.mark.parametrize(
    ("when", "again"),
    [
        ("before", False),
        ("during", False),
        ("during", True),
        ("after", False),
        ("pending", False),
    ],
)
@pytest.mark.parametrize("situation", list(SITUATIONS))
def test_nothing_is_left_behind(
    etcd: EtcdServer,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    situation: str,
    when: str,
    again: bool,
    how: str,
) -> None:
    """No key, no etcd lease stays; what was granted is given back, or is in the caller's hands."""
    if situation == "while it holds":  # at once in the order of names
        monkeypatch.setattr(multi, "ROUNDS", 0)

    async def main(wait: float) -> int:
        async with aio.connect(etcd.endpoint) as client:
            theirs = (
                await Semaphore(1, f"{name}-a", client=client),
                await Semaphore(1, f"{name}-b", client=client),
            )
            others = Others(theirs, situation)
            made: list[int] = []
            for step in range(1, MOST_STEPS):
                hit, leases = await sabotaged(etcd, others, step, when, how, again=again, wait=wait)
                made += leases
                await others.end()
                assert await aio.acquire_all(*theirs, timeout=10)  # nothing is in the way
                await others.end()
                if not hit:
                    break

            async def ended() -> bool:
                return not await asyncio.to_thread(leases_of, etcd) & set(made)

            await until(ended)
            return step - 1

    # On a busy machine the time is up before the last steps: then with more of it.
    for wait in (0.15, 1.0, 4.0):
        steps = run(main(wait))
        if steps >= SITUATIONS[situation]:
            break
    assert SITUATIONS[situation] <= steps < MOST_STEPS - 1
    for one in "ab":
        assert_clean(etcd, f"{name}-{one}")
