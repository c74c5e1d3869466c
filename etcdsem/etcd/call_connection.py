"""One connection of `transport`: a socket and HTTP/2, for one blocking caller at a time."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from etcdsem.clock import boot_time
from etcdsem.etcd.dialing import CHUNK, hang_up, interrupts, would_block
from etcdsem.etcd.http2 import Http2
from etcdsem.etcd.http2_streams import Stream

IDLE_TIME = 10.0
"""Seconds after which an idle connection is closed."""

ACK_INTERVAL = 1.0
"""Seconds between two answers to the peer's PINGs; see `Http2.acknowledge`."""

_EARLY = 0.005
"""Seconds by which a socket's timeout may fire too early."""

_FRESH_TIME = 0.05
"""Seconds after its last use within which a connection is assumed alive without a check."""


class TooLate(Exception):
    """The deadline has passed."""


class CallConnection:
    """One connection, for one call at a time."""

    def __init__(self, sock: socket.socket, http2: Http2) -> None:
        self.sock = sock
        self.used = boot_time()
        self.torn = False  # interrupted: its receive state is undefined
        self._http2 = http2
        self._timeout = -1.0  # of the socket
        self._acknowledged = self.used  # when the peer's PINGs were last answered

    def exchange(self, calls: Sequence[tuple[bytes, bytes]], until: float) -> list[Stream]:
        """Make calls, each a header block and a body; returns when all are done.

        Raises TooLate or OSError.
        """
        streams = [self._http2.request(block, body) for block, body in calls]
        while not all(one.done for one in streams):
            now = self._limit(until)
            if now - self._acknowledged > ACK_INTERVAL:
                self._acknowledged = now
                self._http2.acknowledge()
            try:
                if self._http2.outgoing:
                    self._write()
                self._read(self.sock.recv(CHUNK))
            except OSError as error:
                if would_block(error) and boot_time() >= until - _EARLY:
                    raise TooLate from None
                raise
        self.used = boot_time()
        return streams

    def _limit(self, until: float) -> float:
        """Set the socket's timeout, which takes a system call, unless it is about the same. Even
        when the time is over, data that has arrived counts: this process may have been suspended.
        """
        now = boot_time()
        left = until - now
        if left <= 0:
            if self._http2.outgoing:
                raise TooLate
            self._timeout = 0.0
            self.sock.settimeout(0.0)
        elif not left <= self._timeout <= left + 0.1:
            self._timeout = left + 0.05
            self.sock.settimeout(self._timeout)
        return now

    def _write(self) -> None:
        data = bytes(self._http2.outgoing)
        self._http2.outgoing.clear()
        self.sock.sendall(data)

    def _read(self, data: bytes) -> None:
        if data:
            self._http2.receive(data)
        else:
            self._http2.lost("the connection was closed")

    def alive(self) -> bool:
        """Is it still connected, and does it accept calls? Never blocks."""
        idle = boot_time() - self.used
        if idle > IDLE_TIME:
            return False
        if idle > _FRESH_TIME and not self._http2.retired:
            try:
                self._timeout = 0.0
                self.sock.settimeout(0.0)
                while True:
                    self._read(self.sock.recv(CHUNK))
                    if self._http2.closed is not None:
                        break
            except OSError as error:
                if interrupts(error):
                    raise
                if not would_block(error):
                    return False
        return self._http2.closed is None and not self._http2.retired

    def answered(self) -> bool:
        """For one set aside: have all answers come, or has it broken? Never blocks."""
        if self.torn:
            return False  # unknown
        try:
            self.sock.settimeout(0.0)
            while self._http2.streams:
                self._read(self.sock.recv(CHUNK))
        except OSError as error:
            if interrupts(error):
                self.torn = True
                raise
            return not would_block(error)
        return True

    def hang_up(self) -> None:
        """Interrupt the call in progress in another thread."""
        hang_up(self.sock)

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()

    def __del__(self) -> None:
        if hasattr(self, "sock"):  # else `__init__` was interrupted
            self.sock.close()  # an interruption made its thread forget it
