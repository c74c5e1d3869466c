"""Coroutines in tests: one event loop per test, which must leave no task behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T], *, seconds: float = 60.0) -> T:
    """Run a coroutine in a separate loop; none of its tasks may be left at the end."""

    async def main() -> T:
        result = await asyncio.wait_for(work, seconds)
        await eventually_idle()
        return result

    return asyncio.run(main())


async def eventually_idle() -> None:
    """Wait until this is the only task."""

    def others() -> set[asyncio.Task[Any]]:
        return asyncio.all_tasks() - {asyncio.current_task()}

    try:
        await eventually(lambda: not others())
    except AssertionError:
        raise AssertionError(f"tasks were left behind: {others()}") from None


async def eventually(condition: Callable[[], object], seconds: float = 15.0) -> None:
    """Wait until a condition is true, for events that have no handle to wait on."""
    until = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < until, "it did not come about in time"
        await asyncio.sleep(0.005)


async def until(condition: Callable[[], Awaitable[object]], seconds: float = 15.0) -> None:
    """The same for a condition that must be awaited."""
    end = asyncio.get_running_loop().time() + seconds
    while not await condition():
        assert asyncio.get_running_loop().time() < end, "it did not come about in time"
        await asyncio.sleep(0.01)
