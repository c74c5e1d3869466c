"""Connect to an endpoint from an event loop; `Dialer` has the rules and the messages.

1. As in `dialing`: until the peer has sent its SETTINGS, every failure is a `NotConnected`.
2. The loop never blocks. Names are looked up in separate daemon threads: with the loop's executor,
   `asyncio.run` would wait at its end for a name server that does not answer.
3. The loop only reports when the socket is ready, so TLS fails with the same errors as in blocking
   mode, and a socket is closed at once: no asyncio transport is involved.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from etcdsem.clock import boot_time
from etcdsem.core.commands import NotConnected
from etcdsem.etcd.diagnosis import NO_NAME_SERVER, SILENT, Reason, explain
from etcdsem.etcd.dialing import CHUNK, Address, Dialer, Way, not_for_children, waits_for
from etcdsem.etcd.http2 import Http2

if TYPE_CHECKING:
    import ssl

R = TypeVar("R")

_BUSY_NAP = 0.01
"""Seconds after which connecting is retried if the accept queue of a Unix socket is full."""


class AioDial:
    """One attempt to connect to an endpoint, until `until`."""

    def __init__(self, dialer: Dialer, until: float) -> None:
        self._dialer = dialer
        self._until = until
        self.waits = Reason("no answer in time")
        """The reason to report if the caller stops waiting."""

    async def run(self) -> tuple[socket.socket, Http2]:
        """Connect, and wait for the peer's SETTINGS. Raises NotConnected."""
        dialer = self._dialer
        context = dialer.tls_context()
        for attempt in dialer.attempts(await self._look_up(), self._until):
            try:
                found = await self._connect(attempt.address, context, attempt.timeout)
            except NotConnected:
                if attempt.last:
                    raise
            else:
                dialer.answered(attempt.address)
                return found
        raise AssertionError("the resolver returned a name without addresses")

    # -- addresses

    async def _look_up(self) -> list[Address]:
        found = self._dialer.addresses()
        if found is not None:
            return found
        self.waits = NO_NAME_SERVER
        try:
            async with asyncio.timeout(max(0.01, self._until - boot_time())):
                answer = await self._ask()
        except TimeoutError:
            raise self._dialer.error(self.waits) from None
        if isinstance(answer, OSError):
            raise self._dialer.error(explain(answer, tls=False))
        return answer

    def _ask(self) -> asyncio.Future[list[Address] | OSError]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Address] | OSError] = loop.create_future()

        def ask() -> None:
            answer: list[Address] | OSError
            try:
                answer = self._dialer.resolve()
            except OSError as error:
                answer = error
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(_answer, future, answer)

        try:
            threading.Thread(target=ask, name="etcdsem-resolve", daemon=True).start()
        except (RuntimeError, MemoryError):
            ask()  # no thread can be started; better to block than to fail
        return future

    # -- sockets

    async def _connect(
        self, address: Address, context: ssl.SSLContext | None, timeout: float
    ) -> tuple[socket.socket, Http2]:
        dialer, until = self._dialer, boot_time() + timeout
        self.waits = Reason("no answer in time")
        sock = None
        try:
            sock = dialer.new_socket(address)
            sock.setblocking(False)
            async with asyncio.timeout(timeout):
                await _reach(sock, address)
                if context is not None:
                    sock = context.wrap_socket(
                        sock, server_hostname=dialer.server_name, do_handshake_on_connect=False
                    )
                    not_for_children(sock)
                    await _when_ready(sock, "read", sock.do_handshake)
                    dialer.check_protocol(sock.selected_alpn_protocol())
            return sock, await self._greet(sock, until)
        except BaseException as error:
            if sock is not None:
                sock.close()
            if isinstance(error, OSError):
                raise dialer.error(explain(error, tls=context is not None)) from None
            raise

    async def _greet(self, sock: socket.socket, until: float) -> Http2:
        """Wait for the peer's SETTINGS, which come at once. Our ACK goes with the first call."""
        http2 = Http2()
        self.waits = SILENT
        try:
            async with asyncio.timeout(max(0.01, until - boot_time())):
                with contextlib.suppress(OSError):  # what the peer sent must still be read
                    while http2.outgoing:
                        sent = await _when_ready(sock, "write", lambda: sock.send(http2.outgoing))
                        del http2.outgoing[:sent]
                http2.outgoing.clear()
                while not http2.ready:
                    data = await _when_ready(sock, "read", lambda: sock.recv(CHUNK))
                    self._dialer.hear_greeting(http2, data)
        except TimeoutError:
            raise self._dialer.error(SILENT) from None
        return http2


async def _reach(sock: socket.socket, address: Address) -> None:
    """Connect a socket."""
    code = sock.connect_ex(address.where)
    while code == errno.EAGAIN and address.family == socket.AF_UNIX:
        await asyncio.sleep(_BUSY_NAP)
        code = sock.connect_ex(address.where)
    if code == errno.EINPROGRESS:
        await _ready(sock, "write")
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))


async def _when_ready(sock: socket.socket, doing: Way, step: Callable[[], R]) -> R:
    """Repeat an operation until it does not block. Raises OSError."""
    while True:
        try:
            return step()
        except OSError as error:
            way = waits_for(error, doing)
            if way is None:
                raise
        await _ready(sock, way)


async def _ready(sock: socket.socket, way: Way) -> None:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    reading = way == "read"
    add, remove = (
        (loop.add_reader, loop.remove_reader) if reading else (loop.add_writer, loop.remove_writer)
    )
    add(sock.fileno(), _answer, future, None)
    try:
        await future
    finally:
        remove(sock.fileno())


def _answer(future: asyncio.Future[R], answer: R) -> None:
    if not future.done():
        future.set_result(answer)
