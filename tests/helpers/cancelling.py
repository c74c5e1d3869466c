"""An asyncio client whose task is cancelled at one of its commands."""

from __future__ import annotations

import asyncio
from typing import Any

from etcdsem import aio
from etcdsem.core.commands import Command


class Canceller:
    """Performs commands like the engine, but cancels the victim at its n-th one."""

    def __init__(
        self, client: aio.Client, step: int, when: str, *, again: bool, forever: bool = False
    ) -> None:
        """`again`: cancel three more times; `forever`: in each iteration of the loop, as anyio."""
        engine = client._driver
        self._perform = engine._perform
        self._left = step
        self._when = when
        self._again = again
        self._forever = forever
        self._loop = asyncio.get_running_loop()
        self.victim: asyncio.Task[object] | None = None
        self.hit = False
        self.made: list[int] = []  # the etcd leases that the client requested
        random_id = engine.random_id

        def note() -> int:
            self.made.append(random_id())
            return self.made[-1]

        engine.random_id = note  # type: ignore[method-assign]
        engine._perform = self  # type: ignore[method-assign]

    async def __call__(self, command: Command[Any]) -> object:
        victim = self.victim
        if victim is None or asyncio.current_task() is not victim:
            return await self._perform(command)
        assert victim is not None
        cancel = victim.cancel
        self._left -= 1
        if self._left != 0:
            return await self._perform(command)
        self.hit = True
        if self._again:
            for delay in (0.0003, 0.001, 0.004):
                self._loop.call_later(delay, cancel)
        if self._forever:
            self._loop.call_soon(self._cancel_forever)
        if self._when == "during":
            self._loop.call_soon(lambda: self._loop.call_soon(cancel))
            return await self._perform(command)
        if self._when == "before":
            cancel()
            await asyncio.sleep(0)
        result = await self._perform(command)
        cancel()
        if self._when == "after":
            await asyncio.sleep(0)
        return result

    def _cancel_forever(self) -> None:
        if self.victim is not None and not self.victim.done():
            self.victim.cancel()
            self._loop.call_soon(self._cancel_forever)
