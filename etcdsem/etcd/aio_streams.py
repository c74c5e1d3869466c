"""The watch stream and the keepalive stream of a client in an event loop.

The rules are those of `watching` and `keepalive`; the decisions are `watchbook`'s. All is done in
the loop's thread, so there are no locks: a listener is told between two awaits.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine
from typing import Any, Literal, Protocol, Self

import grpc

from etcdsem.core.commands import AccessDenied, Failure, Listener
from etcdsem.etcd import rpc
from etcdsem.etcd.aio_connection import AioConnection
from etcdsem.etcd.connection import Stream
from etcdsem.etcd.keepalive import tell_trouble
from etcdsem.etcd.watchbook import WatchBook, WatchEntry
from etcdsem.etcd.watching import LONGEST_PAUSE, WatchHandle

log = logging.getLogger("etcdsem")


class Start(Protocol):
    """Starts a task that belongs to the client."""

    def __call__(self, work: Coroutine[Any, Any, None], name: str, /) -> object: ...


class Outbox:
    """The requests of one stream, in order, until `end`."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Any] = asyncio.Queue()

    def put(self, request: Any) -> None:
        """Send a request; never blocks."""
        self._queue.put_nowait(request)

    def end(self) -> None:
        """Send no more."""
        self._queue.put_nowait(None)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        request = await self._queue.get()
        if request is None:
            raise StopAsyncIteration
        return request


class AioWatchStream:
    """All watches of a client on one stream."""

    def __init__(self, connection: AioConnection, start: Start) -> None:
        self._connection = connection
        self._start = start
        self._book = WatchBook(connection.whoami)
        self._requests = Outbox()
        self._stream: Stream | None = None
        self._running = False
        self._closed = False

    def watch(
        self,
        listener: Listener,
        key: bytes,
        end: bytes = b"",
        *,
        start: int = 0,
        only: Literal["put", "delete"] | None = None,
    ) -> WatchHandle:
        """Ask for a watch; the stream is opened for the first one."""
        entry = WatchEntry(listener, key, end, start, only)
        self._requests.put(self._book.add(entry))
        if not self._running and not self._closed:
            self._running = True
            self._start(self._run(), "watch")
        return WatchHandle(self, entry)

    def remove(self, entry: WatchEntry) -> None:
        """Ask for no more of it."""
        request = self._book.remove(entry)
        if request is not None:
            self._requests.put(request)

    def close(self) -> None:
        """End the stream."""
        self._closed = True
        if self._stream is not None:
            self._stream.call.cancel()

    async def _run(self) -> None:
        pause = 0.01
        while not self._closed:
            heard = False
            try:
                heard = await self._one_stream()
            except AccessDenied as failure:
                log.warning("etcdsem: nothing can be watched: %s", failure)
                for one in self._book.refuse_all(failure):
                    one()
                if not self._book.entries:
                    self._running = False
                    return
            except Failure as failure:
                log.debug("etcdsem: the watch stream could not be opened: %s", failure)
            except Exception:
                if not self._closed:
                    log.exception("etcdsem: error in the watch stream")
            pause = 0.01 if heard else min(pause * 2, LONGEST_PAUSE)
            await asyncio.sleep(pause * (0.5 + random.random()))

    async def _one_stream(self) -> bool:
        """Open a stream and follow it to its end. True if it said anything."""
        requests = self._requests = Outbox()
        for request in self._book.reopened():
            requests.put(request)
        stream = await self._connection.open_stream("watch", requests, timeout=5.0)
        self._stream = stream
        heard = False
        try:
            async for response in stream.call:
                heard = True
                self._connection.counters["watch_events"] += len(response.events)
                tell, send = self._book.heard(response)
                for request in send:
                    requests.put(request)
                for one in tell:
                    one()
                if self._book.needs_login:
                    self._connection.forget_login(stream)
                    break
        except grpc.RpcError as error:
            if not self._closed:
                failure = self._connection.stream_broke(stream, error)
                log.debug("etcdsem: the watch stream broke: %s", failure)
        finally:
            requests.end()
            stream.call.cancel()
            self._stream = None  # a call that is kept keeps its connection open
        return heard


class AioKeepaliveStream:
    """All renewals of a client on one stream."""

    def __init__(
        self, connection: AioConnection, start: Start, on_renewed: Callable[[int, float], None]
    ) -> None:
        self._connection = connection
        self._start = start
        self._on_renewed = on_renewed
        self._requests: Outbox | None = None  # None: no stream
        self._stream: Stream | None = None
        self._closed = False

    def renew(self, lease_id: int) -> None:
        """Send a keepalive for a lease."""
        if self._closed:
            return
        if self._requests is None:
            self._requests = Outbox()
            self._start(self._run(self._requests), "keepalive")
        self._connection.counters["keepalives"] += 1
        self._requests.put(rpc.LeaseKeepAliveRequest(ID=lease_id))

    def restart(self) -> None:
        """Nothing is heard: give the stream up; the next renewal goes to the next endpoint."""
        stream = self._stream
        self._drop()
        if stream is not None:
            self._connection.leave(stream.link)

    def close(self) -> None:
        """End the stream."""
        self._closed = True
        self._drop()

    def _drop(self) -> None:
        requests, self._requests = self._requests, None
        stream, self._stream = self._stream, None
        if requests is not None:
            requests.end()
        if stream is not None:
            stream.call.cancel()

    async def _run(self, requests: Outbox) -> None:
        try:
            await self._follow(requests)
        except Failure as failure:
            tell_trouble("could not be opened", failure)
        except Exception:
            if not self._closed:
                log.exception("etcdsem: error in the keepalive stream")
        finally:
            if self._requests is requests:
                self._drop()

    async def _follow(self, requests: Outbox) -> None:
        stream = await self._connection.open_stream("keepalive", requests, timeout=5.0)
        if self._requests is not requests:
            stream.call.cancel()
            return
        self._stream = stream
        try:
            async for response in stream.call:
                if self._requests is not requests:
                    return
                self._on_renewed(response.ID, float(response.TTL))
        except grpc.RpcError as error:
            if self._requests is requests:
                tell_trouble("broke", self._connection.stream_broke(stream, error))
