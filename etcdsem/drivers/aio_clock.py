"""The clocks and mailboxes of an event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from etcdsem.clock import boot_time
from etcdsem.core.commands import Mailbox
from etcdsem.drivers.base import LONGEST_NAP


class AioMailbox:
    """A mailbox, for one waiting task at a time."""

    __slots__ = ("_arrived", "_notes")

    def __init__(self) -> None:
        self._notes: list[Any] = []  # one or two; an empty deque takes 600 bytes
        self._arrived: asyncio.Future[None] | None = None

    def put(self, note: Any, /) -> None:
        self._notes.append(note)
        self._wake()

    def _wake(self) -> None:
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    async def next(self, now: Callable[[], float], until: float) -> object:
        """The next message; None if `until` comes first."""
        loop = asyncio.get_running_loop()
        while not self._notes:
            left = until - now()
            if left <= 0:
                return None
            self._arrived = loop.create_future()
            timer = None
            if left < float("inf"):
                timer = loop.call_later(min(left, LONGEST_NAP), self._wake)
            try:
                await self._arrived
            finally:
                self._arrived = None
                if timer is not None:
                    timer.cancel()
        return self._notes.pop(0)


class RealClock:
    """The machine's clocks."""

    now = staticmethod(boot_time)

    wall = staticmethod(time.time)

    def mailbox(self) -> Mailbox:
        return AioMailbox()

    async def wait(self, box: Mailbox, until: float) -> object:
        if not isinstance(box, AioMailbox):
            raise AssertionError("the mailbox belongs to another driver")
        return await box.next(boot_time, until)
