"""Calls to etcd from an event loop: `Calls` decides, this makes them with grpc.aio.

1. A call whose task was cancelled is left to its end, which nobody waits for: grpc.aio leaks some
   hundred bytes for each call that it cancels (grpc #43360), and to cancel one that only reads can
   crash etcd (see `Rpc.whole`). Where etcd is silent that would heap up, so of the others only
   `LEFT_ALONE` are left.
2. A call that was cancelled by somebody else (the loop's end cancels gRPC's own tasks too) is no
   cancellation of ours, but an unknown outcome.
3. Thousands of tasks that all find an endpoint untried, or the login run out, make one probe and
   one login between them.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterable, Callable, Sequence
from typing import Any, TypeVar

import grpc
import grpc.aio

from etcdsem.core.commands import Failure, OutcomeUnknown, Txn, TxnReply
from etcdsem.etcd.connection import AT_ONCE, Calling, Calls, Link, Rpc, Stream, metadata_of
from etcdsem.etcd.settings import ConnectionSettings

R = TypeVar("R")

LEFT_ALONE = 1000
"""How many calls of a client may be under way whose answer nobody waits for; each has 25 kB."""


class AioConnection(Calls):
    """Calls to etcd; for any number of tasks of one event loop."""

    _library = grpc.aio

    def __init__(self, settings: ConnectionSettings) -> None:
        super().__init__(settings)
        self._same: dict[str, asyncio.Task[Any]] = {}  # calls that one of many callers makes
        self._left_alone: set[Any] = set()  # calls under way whose answer nobody waits for

    # -- what the core asks for

    async def transact(self, txn: Txn, timeout: float) -> TxnReply:
        """Perform a transaction."""
        return await self._make(self.transacting(txn, timeout))

    async def grant(self, lease_id: int, ttl: int, timeout: float) -> float:
        """Create an etcd lease; gives the TTL that etcd granted."""
        return await self._make(self.granting(lease_id, ttl, timeout))

    async def revoke(self, lease_id: int, timeout: float) -> None:
        """End an etcd lease, with its keys."""
        await self._make(self.revoking(lease_id, timeout))

    async def times_to_live(
        self, lease_ids: Sequence[int], timeout: float
    ) -> tuple[float | None, ...]:
        """Seconds that leases have left; raises the failure of the first, None for later ones."""
        until = time.monotonic() + timeout
        answers: list[float | None] = [
            await self._make(self.asking_time_to_live(lease_ids[0], timeout))
        ]
        for start in range(1, len(lease_ids), AT_ONCE):
            batch = lease_ids[start : start + AT_ONCE]
            answers += await asyncio.gather(*(self._seconds_left(one, until) for one in batch))
        return tuple(answers)

    async def _seconds_left(self, lease_id: int, until: float) -> float | None:
        left = max(0.001, until - time.monotonic())
        try:
            return await self._make(self.asking_time_to_live(lease_id, left))
        except Failure:
            return None

    # -- making calls

    async def _make(self, calling: Calling[R]) -> R:
        answer: Any = None
        error: BaseException | None = None
        while True:
            try:
                one = calling.send(answer) if error is None else calling.throw(error)
            except StopIteration as stop:
                result: R = stop.value
                return result
            answer = error = None
            try:
                answer = await (self._one_for_all(one) if one.same else self._call(one))
            except BaseException as raised:  # also an interruption: it comes out of `throw`
                error = raised

    async def _one_for_all(self, one: Rpc) -> Any:
        task = self._same.get(one.same)
        if task is None or task.done():
            task = self._same[one.same] = asyncio.get_running_loop().create_task(self._call(one))
            task.add_done_callback(functools.partial(self._heard, one.same))
        return await asyncio.shield(task)

    async def _call(self, one: Rpc) -> Any:
        try:
            call = one.method(one.request, timeout=one.timeout, metadata=one.metadata)
        except grpc.aio.UsageError as closed:
            raise ValueError(str(closed)) from closed  # as blocking gRPC calls it
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        call.add_done_callback(_setter(over))
        try:
            await over
        except BaseException:
            if one.whole or len(self._left_alone) < LEFT_ALONE:
                self._left_alone.add(call)  # dropped, grpc.aio would cancel it
                call.add_done_callback(self._left_alone.discard)
            else:
                call.cancel()
            raise
        if call.cancelled():
            raise OutcomeUnknown("the call was cancelled")
        return await call

    def _heard(self, same: str, task: asyncio.Task[Any]) -> None:
        """Forget it: an error keeps its call, and that keeps its connection open."""
        if self._same.get(same) is task:
            del self._same[same]
        if not task.cancelled():
            task.exception()  # asyncio complains about an error that nobody looked at

    # -- streams

    async def open_stream(self, name: str, requests: AsyncIterable[Any], timeout: float) -> Stream:
        """Open a stream at the present endpoint; raises a Failure."""
        link, token = await self._make(self.opening(timeout))
        return Stream(link.stream(name)(requests, metadata=metadata_of(token)), link, token)

    async def close(self) -> None:
        """Hang up; calls under way fail."""
        for link in self._shut():
            await _hang_up(link)
        # grpc.aio hears of calls that were cancelled a moment later, and complains loudly if the
        # loop is closed by then.
        await asyncio.sleep(0.02)


async def _hang_up(link: Link) -> None:
    channels = link.let_go()
    while channels:
        await channels.pop().close(0.5)


def _setter(future: asyncio.Future[None]) -> Callable[[object], None]:
    def done(_: object) -> None:
        if not future.done():
            future.set_result(None)

    return done
