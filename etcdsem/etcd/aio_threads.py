"""A line to etcd for an event loop where grpc.aio can't be had: blocking gRPC, in threads.

grpc.aio has one thread for each process, and a forked child of a process that has used it has
none: whatever it asks is never answered. Blocking gRPC works there. So here each call goes
through a thread of a pool, and the streams are the blocking ones.

1. What streams tell is told in the loop. After `cancel` a listener hears nothing more, and after
   `restart` no answer of the former stream: also not what was on its way into the loop.
2. A cancelled call goes on in its thread: its outcome is unknown, as always.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar

from etcdsem.client_lock import ClientLock
from etcdsem.core.commands import Failure, Listener, Txn, TxnReply, Watch
from etcdsem.etcd.connection import Connection
from etcdsem.etcd.keepalive import KeepaliveStream
from etcdsem.etcd.watching import WatchStream

T = TypeVar("T")

THREADS = 32


class ThreadCalls:
    """Calls to etcd, each in a thread."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._pool = ThreadPoolExecutor(THREADS, "etcdsem-call")
        self.counters = connection.counters

    async def _run(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *args)

    async def transact(self, txn: Txn, timeout: float) -> TxnReply:
        """Perform a transaction."""
        return await self._run(self._connection.transact, txn, timeout)

    async def grant(self, lease_id: int, ttl: int, timeout: float) -> float:
        """Create an etcd lease; gives the TTL that etcd granted."""
        return await self._run(self._connection.grant, lease_id, ttl, timeout)

    async def revoke(self, lease_id: int, timeout: float) -> None:
        """End an etcd lease, with its keys."""
        await self._run(self._connection.revoke, lease_id, timeout)

    async def times_to_live(
        self, lease_ids: Sequence[int], timeout: float
    ) -> tuple[float | None, ...]:
        """Seconds that leases have left."""
        return await self._run(self._connection.times_to_live, lease_ids, timeout)

    async def close(self) -> None:
        """Hang up."""
        await self._run(self._connection.close)
        self._pool.shutdown(wait=False)


def _later(loop: asyncio.AbstractEventLoop, function: Callable[[], object]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(function)


class _InLoop:
    """A listener of a stream's thread that tells one of the loop; also the watch."""

    def __init__(self, listener: Listener, loop: asyncio.AbstractEventLoop) -> None:
        self._listener = listener
        self._loop = loop
        self._cancelled = False
        self.watch: Watch | None = None

    def cancel(self) -> None:
        self._cancelled = True
        if self.watch is not None:
            self.watch.cancel()

    def _tell(self, function: Callable[[], object]) -> None:
        _later(self._loop, lambda: None if self._cancelled else function())

    def created(self, revision: int) -> None:
        self._tell(lambda: self._listener.created(revision))

    def events(self, events: Sequence[Any]) -> None:
        self._tell(lambda: self._listener.events(events))

    def gap(self, reason: str) -> None:
        self._tell(lambda: self._listener.gap(reason))

    def refused(self, error: Failure) -> None:
        self._tell(lambda: self._listener.refused(error))


class ThreadWatches:
    """The watch stream in a thread."""

    def __init__(self, connection: Connection) -> None:
        self._stream = WatchStream(connection, ClientLock())
        self._loop = asyncio.get_running_loop()

    def watch(
        self,
        listener: Listener,
        key: bytes,
        end: bytes = b"",
        *,
        start: int = 0,
        only: Literal["put", "delete"] | None = None,
    ) -> Watch:
        """Ask for a watch."""
        ear = _InLoop(listener, self._loop)
        ear.watch = self._stream.watch(ear, key, end, start=start, only=only)
        return ear

    def close(self) -> None:
        """End the stream and its thread."""
        self._stream.close()


class ThreadRenewals:
    """The keepalive stream in a thread."""

    def __init__(self, connection: Connection, renewed: Callable[[int, float], None]) -> None:
        self._guard = ClientLock()
        self._renewed = renewed
        self._generation = 0  # of the stream; changed by the loop, under the guard
        self._loop = asyncio.get_running_loop()
        self._stream = KeepaliveStream(connection, self._guard, self._answered)

    def _answered(self, lease_id: int, ttl: float) -> None:
        generation = self._generation

        def tell() -> None:
            if generation == self._generation:
                self._renewed(lease_id, ttl)

        _later(self._loop, tell)

    def renew(self, lease_id: int) -> None:
        """Send a keepalive."""
        with self._guard:
            self._stream.renew(lease_id)

    def restart(self) -> None:
        """Nothing is heard: take another stream."""
        with self._guard:
            self._generation += 1
            self._stream.restart()

    def close(self) -> None:
        """End the stream and its thread."""
        self._stream.close()
