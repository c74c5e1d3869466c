"""A connection that carries streams, in an event loop.

1. Messages of streams are delivered straight from the socket's readiness callback, one by one: a
   hand-over waits for nothing else. An error of the receiver is logged, and the next message is
   delivered.
2. Everything requested in one iteration of the loop is sent together.
3. A silent peer is pinged (`Liveness`). If it does not answer, or says that it is closing, the
   connection has ended.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from etcdsem.etcd.aio_wire import Wire
from etcdsem.etcd.grpc_protocol import RpcError, frame_message
from etcdsem.etcd.http2 import Http2
from etcdsem.etcd.http2_streams import Stream
from etcdsem.etcd.stream_connection import Liveness, news

if TYPE_CHECKING:
    from etcdsem.etcd.dialing import Dialer

log = logging.getLogger("etcdsem")

Hear: TypeAlias = Callable[[Stream, bytes | RpcError], None]
"""Receives a message of a stream. Raises RpcError if the connection must be given up."""

Ended: TypeAlias = Callable[["StreamWire", RpcError], None]
"""Called once at the end, unless `close` was called."""


class StreamWire(Wire):
    """A connection for streams."""

    def __init__(
        self, dialer: Dialer, sock: socket.socket, http2: Http2, hear: Hear, ended: Ended
    ) -> None:
        super().__init__(sock, http2)
        self._dialer = dialer
        self._hear = hear
        self._tell_end = ended
        self._liveness = Liveness(http2)
        self._timer = self._loop.call_later(self._liveness.check(), self._look)

    def open(self, path: str, token: str | None) -> Stream:
        """Open a stream. Never blocks."""
        block = self._dialer.headers(path, token)
        return self.http2.request(block, last=False)

    def send(self, stream: Stream, message: bytes) -> None:
        """Queue a message for the next `flush`. Never blocks."""
        self.http2.send(stream, frame_message(message))

    def close(self) -> None:
        """Close the connection without calling `ended`."""
        self._tell_end = _nobody
        self.lost("the client closed the connection")

    def _heard(self, streams: list[Stream]) -> None:
        self._liveness.heard()
        try:
            for stream, message in news(self.http2, streams):
                if self.over:  # the receiver has closed the connection
                    return
                self._tell(stream, message)
            if self.http2.retired:
                raise RpcError("UNAVAILABLE", "the server is closing the connection")
        except RpcError as error:
            self._give_up(error)

    def _tell(self, stream: Stream, message: bytes | RpcError) -> None:
        try:
            self._hear(stream, message)
        except RpcError:
            raise
        except Exception:
            log.exception("etcdsem: error in the streams")

    def _ended(self) -> None:
        self._timer.cancel()
        closed = self.http2.closed
        self._give_up(RpcError("UNAVAILABLE", "" if closed is None else closed.text))

    def _give_up(self, error: RpcError) -> None:
        tell, self._tell_end = self._tell_end, _nobody
        self.lost(error.details)
        tell(self, error)

    def _look(self) -> None:
        """Check whether the peer is alive."""
        self.read()  # after the loop was blocked, the answer may still be in the socket
        if self.over:
            return
        try:
            left = self._liveness.check()
        except RpcError as error:
            self._give_up(error)
            return
        self._timer = self._loop.call_later(left, self._look)
        self.flush()


def _nobody(wire: StreamWire, error: RpcError) -> None:
    """Does nothing: the connection was closed by this side."""
