"""A connection that carries streams, for one thread that waits for answers and may be woken.

1. That thread does all reading and writing, since a TLS connection is not thread-safe.
2. After `PING_AFTER` seconds of silence the peer is pinged. If it does not answer, or says that it
   is closing, the connection is given up with an `RpcError`.
"""

from __future__ import annotations

import selectors
import socket
from typing import TYPE_CHECKING

from etcdsem.clock import boot_time
from etcdsem.etcd.dialing import CHUNK, interrupts, not_for_children, would_block
from etcdsem.etcd.grpc_protocol import RpcError, error_of, frame_message, messages
from etcdsem.etcd.http2 import Http2
from etcdsem.etcd.http2_streams import Stream

if TYPE_CHECKING:
    from etcdsem.etcd.dialing import Dialer

PING_AFTER = 10.0
"""Seconds of silence after which the peer is pinged. etcd closes connections that ping more often
than every 5 s."""

PING_TIMEOUT = 3.0
"""Seconds to wait for the answer to a ping."""


class Liveness:
    """When to ping a silent peer, and when to give it up."""

    def __init__(self, http2: Http2) -> None:
        self._http2 = http2
        self._heard_at = boot_time()
        self._asked_at = 0.0  # 0: no ping since

    def heard(self) -> None:
        """Record that something has arrived."""
        self._heard_at = boot_time()
        self._asked_at = 0.0

    def check(self) -> float:
        """Ping if it is due; returns the seconds until the next check. Raises RpcError."""
        now = boot_time()
        if self._asked_at:
            left = self._asked_at + PING_TIMEOUT - now
            if left <= 0:
                raise RpcError("UNAVAILABLE", "the server does not answer")
            return left
        left = self._heard_at + PING_AFTER - now
        if left > 0:
            return left
        self._asked_at = now
        self._http2.ping()
        return PING_TIMEOUT


def news(http2: Http2, touched: list[Stream]) -> list[tuple[Stream, bytes | RpcError]]:
    """The messages of streams. Raises RpcError if the whole connection has ended."""
    found: list[tuple[Stream, bytes | RpcError]] = []
    for stream in touched:
        try:
            found += [(stream, message) for message in messages(stream)]
            if stream.done:
                found.append((stream, error_of(stream) or RpcError("UNAVAILABLE", "it ended")))
        except RpcError as error:
            found.append((stream, error))
    if not found and (http2.closed is not None or http2.retired):
        text = "the server is closing" if http2.closed is None else http2.closed.text
        raise RpcError("UNAVAILABLE", text)
    return found


class StreamConnection:
    """Streams on a socket. Any thread may call `wake`; one thread calls the rest."""

    def __init__(self, dialer: Dialer, sock: socket.socket, http2: Http2) -> None:
        self._dialer = dialer
        self._sock = sock
        self._http2 = http2
        self._liveness = Liveness(http2)
        self._here, self._there = map(not_for_children, socket.socketpair())  # for `wake`
        self._selector = _selector()
        for one in (sock, self._here, self._there):
            one.setblocking(False)
        for one in (sock, self._here):
            self._selector.register(one, selectors.EVENT_READ)
        self._blocked = False  # the socket's buffer is full, and there is more to write

    def open(self, path: str, token: str | None) -> Stream:
        """Open a stream. Never blocks."""
        block = self._dialer.headers(path, token)
        return self._http2.request(block, last=False)

    def send(self, stream: Stream, message: bytes) -> None:
        """Send a message. Never blocks."""
        self._http2.send(stream, frame_message(message))

    def wait(self) -> list[tuple[Stream, bytes | RpcError]]:
        """Wait for messages of streams. Returns early after `wake`, and when nothing has happened
        for a while. Raises RpcError if the connection has ended.
        """
        if self._http2.retired:
            raise RpcError("UNAVAILABLE", "the server is closing the connection")
        timeout = self._liveness.check()
        try:
            self._http2.acknowledge()
            self._write()
            for key, ready in self._selector.select(timeout):
                if key.fileobj is self._here:
                    self._here.recv(4096)
                elif ready & selectors.EVENT_READ:
                    return self._read()
        except OSError as error:
            if would_block(error):
                return []
            raise RpcError("UNAVAILABLE", f"the connection was lost: {error}") from None
        return []

    def _read(self) -> list[tuple[Stream, bytes | RpcError]]:
        touched: dict[Stream, None] = {}
        while True:
            try:
                data = self._sock.recv(CHUNK)
            except OSError as error:
                if would_block(error):
                    break
                raise
            if not data:
                touched.update(dict.fromkeys(self._http2.lost("the connection was closed")))
                break
            self._liveness.heard()
            touched.update(dict.fromkeys(self._http2.receive(data)))
            if len(data) < CHUNK and self._dialer.scheme == "http":
                break  # saves a system call
        return news(self._http2, list(touched))

    def _write(self) -> None:
        outgoing = self._http2.outgoing
        try:
            while outgoing:
                del outgoing[: self._sock.send(outgoing)]
        except OSError as error:
            if not would_block(error):
                raise
        if bool(outgoing) != self._blocked:
            self._blocked = bool(outgoing)
            write = selectors.EVENT_WRITE if self._blocked else 0
            self._selector.modify(self._sock, selectors.EVENT_READ | write)

    def wake(self) -> None:
        """Make `wait` return."""
        try:
            self._there.send(b"!")
        except OSError as error:
            if interrupts(error):
                raise
            # It has been woken often enough, or is closed.

    def close(self) -> None:
        """Close the connection."""
        self._selector.close()
        for one in (self._sock, self._here, self._there):
            one.close()


def _selector() -> selectors.BaseSelector:
    """A selector without a file descriptor of its own if possible. gevent and eventlet replace the
    default one.
    """
    poll = getattr(selectors, "PollSelector", None)
    if poll is None or selectors.DefaultSelector.__module__ != "selectors":
        return selectors.DefaultSelector()
    selector: selectors.BaseSelector = poll()
    return selector
