"""Calls to etcd from an event loop: `EndpointCalls` decides, `AioTransport` carries them out.

1. When a caller is cancelled, its call runs to its end, and nobody waits for it (`aio_transport`).
2. If thousands of tasks find an endpoint untried, or the login expired, they share one probe and
   one login. These belong to no caller, so a caller's cancellation does not end them; if something
   else does (a loop's end cancels all tasks), they are made again.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from typing import Any, TypeVar

from etcdsem.clock import boot_time
from etcdsem.core.commands import Failure, Txn, TxnReply
from etcdsem.etcd.aio_transport import AioTransport
from etcdsem.etcd.calls import AT_ONCE, EndpointCalls
from etcdsem.etcd.dialing import Dialer
from etcdsem.etcd.methods import Calling, Link, Rpc
from etcdsem.etcd.settings import ConnectionSettings, Endpoint

R = TypeVar("R")


class AioConnection(EndpointCalls[AioTransport]):
    """Calls to etcd, for any number of tasks of one event loop."""

    def __init__(self, settings: ConnectionSettings) -> None:
        super().__init__(settings)
        self._same: dict[str, asyncio.Task[Any]] = {}  # calls that many callers share

    # -- requests of the core

    async def transact(self, txn: Txn, timeout: float) -> TxnReply:
        """Perform a transaction."""
        return await self._make(self.transacting(txn, timeout))

    async def grant(self, lease_id: int, ttl: int, timeout: float) -> float:
        """Create an etcd lease; returns the TTL that etcd granted."""
        return await self._make(self.granting(lease_id, ttl, timeout))

    async def revoke(self, lease_id: int, timeout: float) -> None:
        """Revoke an etcd lease, and delete its keys."""
        await self._make(self.revoking(lease_id, timeout))

    async def times_to_live(
        self, lease_ids: Sequence[int], timeout: float
    ) -> tuple[float | None, ...]:
        """The seconds that leases have left. Raises the failure of the first request; None for
        those that fail later.
        """
        until = boot_time() + timeout
        answers: list[float | None] = [
            await self._make(self.asking_time_to_live(lease_ids[0], timeout))
        ]
        for start in range(1, len(lease_ids), AT_ONCE):
            batch = lease_ids[start : start + AT_ONCE]
            answers += await asyncio.gather(*(self._seconds_left(one, until) for one in batch))
        return tuple(answers)

    async def _seconds_left(self, lease_id: int, until: float) -> float | None:
        left = max(0.001, until - boot_time())
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
            finally:
                answer = error = None  # an error's traceback refers to this frame
            try:
                answer = await (self._one_for_all(one) if one.same else _call(one))
            except BaseException as raised:  # includes interruptions; `throw` raises them
                error = raised

    async def _one_for_all(self, one: Rpc) -> Any:
        while True:
            task = self._same.get(one.same)
            if task is None or task.done():
                task = self._same[one.same] = asyncio.get_running_loop().create_task(_call(one))
                task.add_done_callback(functools.partial(self._heard, one.same))
            await asyncio.wait([task])
            if not task.cancelled():
                return task.result()

    def _heard(self, same: str, task: asyncio.Task[Any]) -> None:
        """Forget a shared call that has ended."""
        if self._same.get(same) is task:
            del self._same[same]
        if not task.cancelled():
            task.exception()  # asyncio complains about errors that were not retrieved

    # -- connections

    def _connect(self, endpoint: Endpoint) -> AioTransport:
        return AioTransport(Dialer(self.settings, endpoint))

    async def open_streams(self, timeout: float) -> tuple[Link[AioTransport], str | None]:
        """Prepare opening streams: returns the link and the token to use. Raises a Failure."""
        return await self._make(self.opening(timeout))

    async def close(self) -> None:
        """Close all connections; calls in progress fail."""
        for link in self._shut():
            link.transport.close()


async def _call(one: Rpc) -> Any:
    data = await one.link.transport.call(
        one.path, one.encoded(), one.timeout, one.token, whole=one.whole
    )
    return one.decoded(data)
