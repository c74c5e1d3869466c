"""A connected socket in an event loop: it moves bytes between the socket and an `Http2`.

1. Everything runs in the loop's thread, straight from the socket's readiness callback: received
   data is delivered before anything else runs in the loop.
2. Nothing waits. What the socket does not accept is sent later; a peer that leaves more than
   `MOST_UNSENT` bytes unread loses the connection.
3. The peer's PINGs are answered a moment later. etcd sends one with each response until the last
   was answered; answering each at once would double the packets.
4. Any interruption of a step (a signal handler that raises) ends the connection, since it is
   unknown how far the step came; the interruption is passed on.
"""

from __future__ import annotations

import asyncio
import socket
import weakref

from etcdsem.etcd.dialing import CHUNK, waits_for
from etcdsem.etcd.http2 import Http2
from etcdsem.etcd.http2_streams import Stream

MOST_UNSENT = 2**24
"""Maximum number of bytes that may wait for the peer to read."""

_ACK_AFTER = 0.2
"""Seconds after which the peer's PINGs are answered."""

_INTERRUPTED = "the connection was lost: a step on it was interrupted"


class Wire:
    """One connection. The subclass handles what arrives."""

    def __init__(self, sock: socket.socket, http2: Http2) -> None:
        self.http2 = http2
        self.reads = 0
        """How often something has arrived."""
        self.sent = 0
        """Bytes that may have been sent to the peer."""
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._fd = sock.fileno()
        self._tls = hasattr(sock, "do_handshake")
        self._blocked = False  # the socket's buffer is full
        self._acking: asyncio.TimerHandle | None = None
        self.over = False
        """The connection was closed."""
        # A loop that just stops leaves its sockets open, and Python warns of each.
        weakref.finalize(self, sock.close)
        self._loop.add_reader(self._fd, self.read)

    def _heard(self, streams: list[Stream]) -> None:
        """Handle streams for which something has arrived."""
        raise NotImplementedError

    def _ended(self) -> None:
        """Handle the end; `http2.closed` and the streams that were open have the reason."""
        raise NotImplementedError

    def read(self) -> None:
        """Receive what has arrived."""
        if self.over:
            return
        try:
            try:
                data = self._sock.recv(CHUNK)
            except OSError as error:
                self._unread(error)
                return
            if not data:
                self.lost("the connection was closed")
                return
            self.reads += 1
            self._heard(self.http2.receive(data))
            if self.http2.outgoing:
                self.flush()  # for example a request that was waiting for this
            if self.http2.pinged and self._acking is None and not self.over:
                self._acking = self._loop.call_later(_ACK_AFTER, self._acknowledge)
            if self.http2.closed is not None:
                self._end()
        except BaseException:
            self.lost(_INTERRUPTED)
            raise

    def flush(self) -> None:
        """Send the outgoing data."""
        outgoing = self.http2.outgoing
        if self.over:
            return
        if self._blocked:
            if len(outgoing) > MOST_UNSENT:
                self.lost("the connection was lost: the server does not read")
            return
        before = self.sent
        self.sent += len(outgoing)  # for now: an interruption may come at any step
        try:
            try:
                count = self._sock.send(outgoing)
            except OSError as error:
                self._unsent(error, before)
                return
            self.sent = before + count
            if count == len(outgoing):
                outgoing.clear()
            else:
                del outgoing[:count]
                self._wait_to_write()
        except BaseException:
            self.lost(_INTERRUPTED)
            raise

    def lost(self, text: str) -> None:
        """Give the connection up."""
        self.http2.lost(text)
        self._end()

    # -- within

    def _acknowledge(self) -> None:
        self._acking = None
        self.http2.acknowledge()
        self.flush()

    def _unread(self, error: OSError) -> None:
        way = waits_for(error, "read")
        if way is None:
            self.lost(f"the connection was lost: {error}")
        elif way == "write":  # TLS must send something first
            self._wait_to_write()

    def _unsent(self, error: OSError, before: int) -> None:
        if not self._tls:  # TLS may have sent a part, and must be given the same bytes again
            self.sent = before
        way = waits_for(error, "write")
        if way is None:
            self.lost(f"the connection was lost: {error}")
        elif way == "write":
            self._wait_to_write()

    def _wait_to_write(self) -> None:
        if not self._blocked:
            self._blocked = True
            self._loop.add_writer(self._fd, self._on_writable)

    def _on_writable(self) -> None:
        self._blocked = False
        self._loop.remove_writer(self._fd)
        if self.http2.outgoing:
            self.flush()
        self.read()

    def _end(self) -> None:
        if not self.over:
            self.over = True
            if not self._loop.is_closed():
                self._loop.remove_reader(self._fd)
                self._loop.remove_writer(self._fd)
            if self._acking is not None:
                self._acking.cancel()
            self._sock.close()
            self._ended()
