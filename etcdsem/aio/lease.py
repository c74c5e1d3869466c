"""`Lease`: what a coroutine gets for a slot."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any, Literal, TypeVar

from etcdsem.aio.loop_check import methods_need_loop
from etcdsem.core.commands import Procedure
from etcdsem.drivers.aio import AioDriver
from etcdsem.errors import WrongEventLoop
from etcdsem.facade.lease import BaseLease

T = TypeVar("T")


@methods_need_loop
class Lost(asyncio.Event):
    """Set once a lease is lost: ``await lease.lost``, or ``lease.lost.is_set()``."""

    async def wait(self) -> Literal[True]:
        """Wait until the lease is lost."""
        return await super().wait()

    def __await__(self) -> Generator[Any, None, Literal[True]]:
        return self.wait().__await__()


@methods_need_loop
class Lease(BaseLease):
    """One or several slots of a semaphore, held by this event loop.

    It is refreshed in the background until it is released or lost. Lost is final.
    """

    _package = "etcdsem.aio"
    _driver: AioDriver
    _event: Lost | None = None

    @property
    def lost(self) -> Lost:
        """Set once the lease is lost (expired, revoked, evicted, or the semaphore was closed). It
        can be awaited.
        """
        if self._event is None:
            self._event = Lost()
        return self._event

    async def release(self) -> bool:
        """Give it back. False, and no exception, if it was lost or etcd did not confirm it."""
        return self._here and await self._run(self._releasing())

    async def _end(self) -> None:
        if self._here:
            await self._run(self._ending())

    def _drop(self) -> None:
        """Release it in a task of the client's, where nobody can await the release."""
        self._driver.later(self._release_beside)

    def _release_beside(self) -> None:
        if self._held:
            self._driver.spawn(self._releasing(), "release")

    async def _run(self, procedure: Procedure[T]) -> T:
        if self._driver.loop is not asyncio.get_running_loop():
            raise WrongEventLoop(f"{self!r} belongs to another event loop: release it there")
        return await self._driver.run(procedure)


__all__ = ["Lease", "Lost"]
