"""The in-memory etcd for coroutines: `etcdsem.aio` itself, on the model of etcd.

1. It relates to `etcdsem.testing.memory()` as `etcdsem.aio` does to the blocking library: the same
   names, awaited wherever time may pass. It belongs to one event loop.
2. Nothing sleeps. After each step of time the loop runs until every woken task is at rest again
   (`TURNS` iterations in which no task has called etcd or begun to wait).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Self, TypeVar

from etcdsem import aio
from etcdsem.core.commands import Mailbox, Procedure, Txn, TxnReply
from etcdsem.drivers import aio as aio_driver
from etcdsem.errors import InvalidSetting
from etcdsem.model import Duration
from etcdsem.testing.aio_virtual import LoopMailbox, LoopTime
from etcdsem.testing.base import SETTINGS, BaseMemory, MemoryWire
from etcdsem.testing.model import EtcdModel
from etcdsem.validation import seconds

T = TypeVar("T")


class _Calls:
    """Requests to the in-memory etcd."""

    def __init__(self, wire: MemoryWire, model: EtcdModel) -> None:
        self._wire = wire
        self._model = model

    async def transact(self, txn: Txn, timeout: float) -> TxnReply:
        name = "txn" if txn.compare else "read"
        return self._wire.ask(name, lambda: self._model.transact(txn))

    async def grant(self, lease_id: int, ttl: int, timeout: float) -> float:
        return self._wire.ask("grant", lambda: float(self._model.grant(lease_id, ttl)))

    async def revoke(self, lease_id: int, timeout: float) -> None:
        self._wire.ask("revoke", lambda: self._model.revoke(lease_id))

    async def times_to_live(
        self, lease_ids: Sequence[int], timeout: float
    ) -> tuple[float | None, ...]:
        return self._wire.ask(
            "time_to_live", lambda: tuple(map(self._model.time_to_live, lease_ids))
        )

    async def close(self) -> None:
        self._wire.close()


class _Clock:
    """A client's view of time."""

    def __init__(self, wire: MemoryWire, time: LoopTime) -> None:
        self.now = wire.now
        self.wall = wire.wall
        self._wire = wire
        self._time = time

    def mailbox(self) -> Mailbox:
        return LoopMailbox(self._time, self._wire.place)

    async def wait(self, box: Mailbox, until: float) -> object:
        if not isinstance(box, LoopMailbox):
            raise AssertionError("the mailbox belongs to another driver")
        return await self._time.wait(box, until)


class MemoryClient(aio.Client):
    """A client of an in-memory etcd, for coroutines."""

    def __init__(self, memory: Memory, *, prefix: str | None = None) -> None:
        super().__init__(SETTINGS, prefix=prefix)
        self._memory = memory
        self._wire: MemoryWire | None = None

    def __reduce__(self) -> tuple[object, ...]:
        return self._memory.reduced(self.prefix)

    def _dial(
        self, start: aio_driver.StartTask, renewed: Callable[[int, float], None]
    ) -> aio_driver.Backend:
        wire = self._wire = self._memory._dial(renewed)
        time = self._memory._time
        return aio_driver.Backend(_Calls(wire, self._memory._model), wire, wire, _Clock(wire, time))

    async def _run(self, procedure: Procedure[T], what: str) -> T:
        self._memory._time.stir()
        return await super()._run(procedure, what)

    @property
    def requests(self) -> Counter[str]:
        """Number of requests to etcd by kind: txn, read, grant, revoke, keepalives."""
        return Counter(self._wire.counters) if self._wire is not None else Counter()


class Memory(BaseMemory):
    """An in-memory etcd for one event loop; created by `etcdsem.testing.aio.memory()`.

    ``async with`` closes its clients at the end. Durations are seconds, ``"1m30s"``, or a
    timedelta.
    """

    def __init__(self, *, autojump: Duration = "1h") -> None:
        super().__init__()
        self._time: LoopTime = LoopTime(self._model, by_itself=seconds(autojump, what="autojump"))
        self._time.deliver = self._deliver
        self._clients: list[MemoryClient] = []

    def __repr__(self) -> str:
        return f"<etcdsem.testing.aio.Memory, {len(self.keys())} keys, at {self.now:g} s>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all clients; waiting tasks get an error. Closing twice is harmless."""
        for client in self._clients:
            closing = asyncio.ensure_future(client.close())
            while not closing.done():  # waiters leave at their own pace
                await self._time.move(0.05)
            await closing
        await self._time.end()

    # -- clients

    def client(self, *, prefix: str | None = None) -> MemoryClient:
        """Create a client that behaves as if it ran in another process."""
        client = MemoryClient(self, prefix=prefix)
        self._clients.append(client)
        return client

    @contextlib.contextmanager
    def default(self, client: aio.Client | None = None) -> Iterator[aio.Client]:
        """Within the block, semaphores of this loop without an explicit client use this etcd.

        Yields the client that they use: `client`, or a new one.
        """
        chosen = client if client is not None else self.client()
        former = aio.swap_default_client(chosen)
        try:
            yield chosen
        finally:
            aio.swap_default_client(former)

    def _dial(self, renewed: Callable[[int, float], None]) -> MemoryWire:
        self._own()
        wire = MemoryWire(self, self._time, contextlib.nullcontext(), renewed)
        self._wires.append(wire)
        return wire

    # -- time

    async def advance(self, duration: Duration) -> None:
        """Let time pass, including everything that happens in it: leases are refreshed, or end;
        tasks that wait until then are woken.
        """
        self._time.stir()
        await self._time.move(seconds(duration, what="advance"))

    async def suspend(self, duration: Duration) -> None:
        """Let time pass for etcd while all clients are suspended, as if the machine slept or the
        loop was blocked.
        """
        self._time.stir()
        await self._time.jump(seconds(duration, what="suspend"))

    async def settle(self) -> None:
        """Let the tasks do everything that they can do now; time stands still."""
        self._time.stir()
        await self._time.settle()

    # -- faults

    async def cut(self, *clients: aio.Client) -> None:
        """Make etcd unreachable for these clients, or for all."""
        self._cut_wires(self._of(clients), True)
        await self.settle()

    async def restore(self, *clients: aio.Client) -> None:
        """Make etcd reachable again for these clients, or for all."""
        self._cut_wires(self._of(clients), False)
        await self.settle()

    async def pause(self, *clients: aio.Client) -> None:
        """Suspend these clients (or all) until `resume`."""
        self._pause_wires(self._of(clients), True)
        await self.settle()

    async def resume(self, *clients: aio.Client) -> None:
        """Resume these clients, or all."""
        self._pause_wires(self._of(clients), False)
        self._time.wake_due()
        await self.settle()

    def _of(self, clients: Sequence[aio.Client]) -> list[MemoryWire] | None:
        if not clients:
            return None
        wires: list[MemoryWire] = []
        for client in clients:
            if not isinstance(client, MemoryClient) or client._memory is not self:
                raise InvalidSetting(f"{client!r} is not a client of this etcd")
            _ = client._driver  # its wire is created on first use
            if client._wire is not None:
                wires.append(client._wire)
        return wires

    # -- what an operator does with etcdctl

    async def put(self, key: str, value: str) -> None:
        """Write a key without a lease, as ``etcdctl put`` does."""
        self._put(key, value)
        await self.settle()

    async def delete(self, key: str, *, prefix: bool = False) -> int:
        """Delete a key, or with `prefix` all keys that start with it. Returns their number."""
        deleted = self._delete(key, prefix=prefix)
        await self.settle()
        return deleted

    async def expire(self, lease: aio.Lease | str) -> None:
        """End an etcd lease and delete its keys. `lease` is a `Lease`, or its ID in hex.

        Half a second passes first, so that a holder watches its key and notices at once. Raises
        InvalidSetting if there is no such lease.
        """
        await self.advance(0.5)
        self._revoke(lease if isinstance(lease, str) else lease.id)
        await self.settle()


def memory(*, autojump: Duration = "1h") -> Memory:
    """Create an in-memory etcd for coroutines: no server, no network, and its time stands still.

    Args:
        autojump: if tasks wait and the loop has been idle for 50 ms, time jumps from one event to
            the next, by at most this duration. ``0`` disables that: only `advance` moves time.
            Disable it if other tasks work in real time meanwhile (sleep, talk to a server).

    Returns:
        A `Memory`; best used in an ``async with`` block.
    """
    return Memory(autojump=autojump)


__all__ = ["Memory", "MemoryClient", "memory"]
