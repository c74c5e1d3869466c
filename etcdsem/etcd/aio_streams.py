"""The driver of `Streams` for an event loop: a task connects, the loop moves bytes.

1. Everything runs in the loop's thread, so there is no guard: each notification is its own step.
2. While connected, requests are sent at the end of the loop's iteration.
3. A task exists only while there is no connection, and something to connect for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from etcdsem.core.backoff import Backoff
from etcdsem.core.commands import AccessDenied, Failure, NotConnected, Refused
from etcdsem.etcd.aio_connection import AioConnection
from etcdsem.etcd.aio_stream_wire import StreamWire
from etcdsem.etcd.grpc_protocol import RpcError
from etcdsem.etcd.http2_streams import Stream
from etcdsem.etcd.streams import LONGEST_PAUSE, OPEN_TIMEOUT, SHORTEST_PAUSE, Streams

log = logging.getLogger("etcdsem")


class StartTask(Protocol):
    """Starts a task that belongs to the client."""

    def __call__(
        self, work: Coroutine[Any, Any, None], name: str, /
    ) -> asyncio.Task[None] | None: ...


class AioStreams(Streams):
    """All watches and renewals of a client, driven by an event loop."""

    _connection: AioConnection

    def __init__(
        self, connection: AioConnection, start: StartTask, on_renewed: Callable[[int, float], None]
    ) -> None:
        super().__init__(connection, contextlib.nullcontext(), on_renewed)
        self._loop = asyncio.get_running_loop()
        self._start = start
        self._wire: StreamWire | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._due = False  # `_send` will be called
        self._tried = False  # the first attempt to connect does not wait
        self._backoff = Backoff(SHORTEST_PAUSE, LONGEST_PAUSE)

    def close(self) -> None:
        """End the streams."""
        self._closed = True
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()

    def _wake(self) -> None:
        if self._closed:
            return
        if self._restart:
            self._hang_up()
        if self._wire is not None:
            if not self._due:
                self._due = True
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    self._loop.call_soon(self._send)
        elif self._wanted and (self._connecting is None or self._connecting.done()):
            self._connecting = self._start(self._connect(), "streams")

    def _send(self) -> None:
        """Send the requests of this loop iteration."""
        self._due = False
        if self._wire is not None:
            self._flush(self._wire)
            self._wire.flush()

    def _hang_up(self) -> None:
        wire, self._wire, self._due = self._wire, None, False
        if wire is not None:
            wire.close()
            self._disconnected()

    # -- receiving

    def _hear(self, stream: Stream, message: bytes | RpcError) -> None:
        if not isinstance(message, RpcError):
            self._backoff.reset()
        self._heard(stream, message)
        if self._outbox:
            self._wake()

    def _ended(self, wire: StreamWire, error: RpcError) -> None:
        if self._wire is not wire:
            return
        self._wire, self._due = None, False
        log.log(*self._broke(error))
        self._disconnected()
        self._wake()

    # -- connecting

    async def _connect(self) -> None:
        while self._wanted and not self._closed and self._wire is None:
            if self._tried:
                await asyncio.sleep(self._backoff.take(random.random()))
            self._tried = True
            try:
                await self._try_to_connect()
            except Exception:
                log.exception("etcdsem: error in the streams")
        if self._wire is not None:
            self._wake()

    async def _try_to_connect(self) -> None:
        try:
            link, token = await self._connection.open_streams(OPEN_TIMEOUT)
            try:
                wire = await link.transport.connect_streams(OPEN_TIMEOUT, self._hear, self._ended)
            except NotConnected:
                self._connection.leave(link)
                raise
        except (AccessDenied, Refused) as failure:
            log.warning("etcdsem: nothing can be watched or renewed: %s", failure)
            self._refused(failure)
        except Failure as failure:
            log.debug("etcdsem: the streams could not be opened: %s", failure)
            self._unreached()
        else:
            self._connected(link, token)
            self._wire = wire
            if self._closed:
                self.close()
