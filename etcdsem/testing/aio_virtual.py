"""Time that moves only on request, for the tasks of one event loop that wait for it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from etcdsem.core.commands import NotApplied
from etcdsem.testing.model import EtcdModel
from etcdsem.testing.virtual import STILLNESS, Place

log = logging.getLogger("etcdsem")

TURNS = 30
"""Loop iterations without any activity of ours after which everything is at rest. A woken task
continues in the next iteration; what it has started or ended takes some more."""


class _LoopSleeper:
    """One task's wait."""

    __slots__ = ("box", "caller", "over", "until")

    def __init__(self, box: LoopMailbox, until: float, caller: bool) -> None:
        self.box = box
        self.until = until
        self.caller = caller  # a task of the user's, not one of the library's own
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class LoopMailbox:
    """A mailbox at which one task at a time waits."""

    __slots__ = ("notes", "place", "sleeper", "time")

    def __init__(self, time: LoopTime, place: Place) -> None:
        self.time = time
        self.place = place
        self.notes: deque[Any] = deque()
        self.sleeper: _LoopSleeper | None = None

    def put(self, note: Any, /) -> None:
        self.notes.append(note)
        if self.sleeper is not None and not self.place.paused:
            self.time.wake(self.sleeper)


class LoopTime:
    """A clock that moves only on request, and the tasks that wait for it."""

    def __init__(self, model: EtcdModel, *, by_itself: float) -> None:
        self.lock: AbstractContextManager[Any] = contextlib.nullcontext()
        self.now = 0.0
        self.ended = False
        self.deliver: Callable[[], bool] = lambda: False
        self.doings = 0  # incremented on any activity of ours
        self._model = model
        self._by_itself = by_itself
        self._sleepers: set[_LoopSleeper] = set()
        self._flier: asyncio.Task[None] | None = None
        self._moving = asyncio.Lock()
        self._calls = 0  # the user's calls from outside
        self._flown = 0.0  # seconds that have passed automatically since the last call

    def stir(self) -> None:
        """Record that the user has done something."""
        self._calls += 1
        self._flown = 0.0

    async def wait(self, box: LoopMailbox, until: float) -> object:
        """The next note in a box; None if the time `until` comes first."""
        self.deliver()
        self.doings += 1
        while True:
            if not box.place.paused or self.ended:
                if box.notes:
                    return box.notes.popleft()
                if until <= self.now:
                    return None
            if self.ended:
                if until == math.inf:
                    raise NotApplied("the in-memory etcd was closed")
                self.now = until
                return None
            task = asyncio.current_task()
            caller = task is not None and not task.get_name().startswith("etcdsem-")
            sleeper = box.sleeper = _LoopSleeper(box, until, caller)
            self._sleepers.add(sleeper)
            if caller and self._by_itself > 0 and self._flier is None:
                self._flier = asyncio.create_task(self._fly(), name="etcdsem-time")
            try:
                await sleeper.over
            finally:
                box.sleeper = None
                self._sleepers.discard(sleeper)
                self.doings += 1

    def wake(self, sleeper: _LoopSleeper) -> None:
        """Let a task continue."""
        self.doings += 1
        self._sleepers.discard(sleeper)
        if not sleeper.over.done():
            sleeper.over.set_result(None)

    def wake_due(self) -> None:
        """Wake the tasks whose time has come or that have a note."""
        for sleeper in list(self._sleepers):
            if self.ended or (
                not sleeper.box.place.paused and (sleeper.until <= self.now or sleeper.box.notes)
            ):
                self.wake(sleeper)

    # -- moving

    async def settle(self) -> None:
        """Let everything happen that can happen now."""
        still = 0
        while still < TURNS:
            before = self.doings
            delivered = self.deliver()
            await asyncio.sleep(0)
            still = 0 if delivered or self.doings != before else still + 1

    async def step(self, limit: float) -> None:
        """At rest: move to the next event, but not beyond `limit`, and let it happen."""
        waits = [s.until for s in self._sleepers if not s.box.place.paused]
        moment = max(self.now, min([limit, self._model.next_time(), *waits]))
        self._model.advance(moment)
        self.now = moment
        self.wake_due()
        await self.settle()

    async def move(self, seconds: float) -> None:
        """Move by `seconds`, event by event."""
        async with self._moving:
            await self.settle()
            target = self.now + seconds
            while self.now < target:
                await self.step(target)

    async def jump(self, seconds: float) -> None:
        """Move by `seconds` during which no task of a client runs."""
        async with self._moving:
            await self.settle()
            target = self.now + seconds
            self._model.advance(target)
            self.now = target
            self.wake_due()
            await self.settle()

    async def _fly(self) -> None:
        """When everything is at rest and a caller waits, let time pass until a caller is woken."""
        try:
            while callers := {sleeper for sleeper in self._sleepers if sleeper.caller}:
                calls = self._calls
                await asyncio.sleep(STILLNESS)
                if self._moving.locked() or calls != self._calls:
                    continue
                async with self._moving:
                    await self.settle()
                    while callers <= self._sleepers and self._flown < self._by_itself:
                        before = self.now
                        await self.step(before + self._by_itself - self._flown)
                        self._flown += self.now - before
                if self._flown >= self._by_itself:
                    log.warning(
                        "etcdsem: %g s have passed automatically and this wait continues; another "
                        "task must end it, or advance()",
                        self._flown,
                    )
                    while callers <= self._sleepers and calls == self._calls:
                        await asyncio.sleep(STILLNESS)
        finally:
            self._flier = None

    async def end(self) -> None:
        """End all waiting."""
        self.ended = True
        self.wake_due()
        await self.settle()
        if self._flier is not None:
            self._flier.cancel()
            await asyncio.wait([self._flier])
