"""How leases are acquired and released: one by one, and by ``async with`` blocks.

A cancelled call leaves nothing behind: a lease is listed in `Semaphore.leases` in the step in
which it is granted.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from types import FrameType, TracebackType
from typing import Any, Self

from etcdsem.aio.bound import Bound
from etcdsem.aio.lease import Lease
from etcdsem.core.grants import Grant
from etcdsem.core.keys import ORDINARY, Demand
from etcdsem.facade import multi
from etcdsem.facade.decorators import AsyncDecorator
from etcdsem.facade.semaphore import BaseSemaphore
from etcdsem.model import Duration
from etcdsem.validation import timeout_seconds


class LeasingSemaphore(AsyncDecorator, Bound, BaseSemaphore[Lease]):
    """The part of a semaphore that acquires and releases."""

    async def _acquired(self, timeout: Duration | None, demand: Demand) -> bool:
        return await self._acquire(timeout, None, _to_nobody, demand) is not None

    async def _acquired_lease(
        self, timeout: Duration | None, on_wait: Callable[[], object] | None, demand: Demand
    ) -> Lease | None:
        return await self._acquire(timeout, on_wait, _to_caller, demand)

    async def _acquire(
        self,
        timeout: Duration | None,
        on_wait: Callable[[], object] | None,
        keep: Callable[[Lease], object],
        demand: Demand,
    ) -> Lease | None:
        """`keep` gets the lease in the step in which it is granted."""
        limit = timeout_seconds(timeout)
        await self._ready()
        client = self.client
        driver = client._driver

        def lease_of(grant: Grant) -> Lease:
            lease = Lease(self, driver, grant)
            keep(lease)
            return lease

        state = client._state(self.name, self._prefix)
        acquiring = self._acquiring(state, limit, on_wait, lease_of, demand=demand)
        return await client._run(acquiring, f"acquire {self.name!r}")

    async def _release_oldest(self) -> bool:
        while True:
            lease = self._oldest()
            done = await lease._run(self._releasing(lease._driver))
            if done is not None:
                return done

    def _releasable(self) -> tuple[Lease, ...]:
        loop = asyncio.get_running_loop()
        ours = tuple(lease for lease in self.leases if lease._driver.loop is loop)
        return ours or self.leases  # those of other loops: an error that says so

    def __aenter__(self) -> Coroutine[Any, Any, Self]:
        return self._enter(sys._getframe(1))

    async def _enter(self, frame: FrameType) -> Self:
        held = HoldBlock(self, None, ORDINARY)
        await held.__aenter__()
        self._blocks.enter(held, frame, asyncio.current_task())
        return self

    def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> Coroutine[Any, Any, None]:
        frame = sys._getframe(1)
        held: HoldBlock = self._blocks.leave(frame, _current_task())
        return held._exit(kind, awaitable=_may_await(kind, frame))


def _to_nobody(lease: Lease) -> None:
    pass


def _to_caller(lease: Lease) -> None:
    lease.owner = "caller"


class HoldBlock(AsyncDecorator, AbstractAsyncContextManager[Lease, None]):
    """The block of ``async with semaphore.hold()``. A block that is dropped without having been
    left gives its lease back.
    """

    def __init__(
        self, semaphore: LeasingSemaphore, timeout: Duration | None, demand: Demand
    ) -> None:
        self._semaphore = semaphore
        self._timeout = timeout
        self._wants = demand
        self._entered = False
        self._lease: Lease | None = None

    def _block(self) -> Self:
        return type(self)(self._semaphore, self._timeout, self._wants)

    async def __aenter__(self) -> Lease:
        if self._entered:
            raise RuntimeError("this block was already entered: call hold() for each")
        self._entered = True
        lease = await self._semaphore._acquire(self._timeout, None, self._keep, self._wants)
        if lease is None:
            raise self._semaphore._no_lease(self._semaphore._state(), self._timeout)
        return lease

    def _keep(self, lease: Lease) -> None:
        lease.owner = "block"
        self._lease = lease

    def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> Coroutine[Any, Any, None]:
        return self._exit(kind, awaitable=_may_await(kind, sys._getframe(1)))

    async def _exit(self, kind: type[BaseException] | None, *, awaitable: bool) -> None:
        lease = self._lease
        if lease is None:
            return
        if not awaitable:
            lease._drop()
        elif kind is None:
            await lease._end()
        else:
            await lease.release()

    def __del__(self) -> None:
        if self._lease is not None and self._lease._held:
            self._lease._drop()


class HoldAllBlock(AsyncDecorator, AbstractAsyncContextManager[tuple[Lease, ...], None]):
    """The block of ``async with hold_all(...)``."""

    def __init__(self, semaphores: tuple[LeasingSemaphore, ...], timeout: Duration | None) -> None:
        self._semaphores = semaphores
        self._timeout = timeout
        self._entered = False
        self._leases: tuple[Lease, ...] = ()

    def _block(self) -> Self:
        return type(self)(self._semaphores, self._timeout)

    async def __aenter__(self) -> tuple[Lease, ...]:
        if self._entered:
            raise RuntimeError("this block was already entered: call hold_all() for each")
        self._entered = True
        taken = await _acquire_all(self._semaphores, self._timeout, None, self._keep)
        if isinstance(taken, str):
            raise multi.not_all(taken, self._semaphores, self._timeout)
        return taken

    def _keep(self, leases: tuple[Lease, ...]) -> None:
        for lease in leases:
            lease.owner = "block"
        self._leases = leases

    def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> Coroutine[Any, Any, None]:
        return self._exit(kind, awaitable=_may_await(kind, sys._getframe(1)))

    async def _exit(self, kind: type[BaseException] | None, *, awaitable: bool) -> None:
        if not awaitable:
            self.__del__()
        elif self._leases:
            ending = multi.ending(self._leases, quietly=kind is not None)
            await self._leases[0]._run(ending)

    def __del__(self) -> None:
        for lease in self._leases:
            if lease._held:
                lease._drop()


async def leases_of_all(
    semaphores: tuple[LeasingSemaphore, ...],
    timeout: Duration | None,
    on_wait: Callable[[str], object] | None,
) -> tuple[Lease, ...] | None:
    """A lease of each; None if the timeout came first."""
    taken = await _acquire_all(semaphores, timeout, on_wait)
    return None if isinstance(taken, str) else taken


async def _acquire_all(
    semaphores: tuple[LeasingSemaphore, ...],
    timeout: Duration | None,
    on_wait: Callable[[str], object] | None,
    keep: Callable[[tuple[Lease, ...]], object] | None = None,
) -> tuple[Lease, ...] | str:
    parts = multi.parts_of(semaphores, LeasingSemaphore, Lease)
    limit = timeout_seconds(timeout)
    for one in semaphores:
        await one._ready()
    acquiring = multi.acquiring(parts, limit, on_wait, keep)
    return await semaphores[0].client._run(acquiring, f"acquire {multi.named(semaphores)}")


def _may_await(kind: type[BaseException] | None, frame: FrameType) -> bool:
    """Whether the end of a block may await. It may not in a coroutine that is being closed, for
    instance by the garbage collector; in an async generator it may.
    """
    in_generator = frame.f_code.co_flags & inspect.CO_ASYNC_GENERATOR
    return kind is not GeneratorExit or bool(in_generator)


def _current_task() -> object:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None  # no loop here: a coroutine is being closed by the collector


__all__ = ["HoldAllBlock", "HoldBlock", "LeasingSemaphore", "leases_of_all"]
