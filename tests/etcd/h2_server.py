"""A scripted HTTP/2 server behind a port of the running loop: hyper's `h2`, and what a test says.

It answers each request with one empty message, which is a valid answer of any kind. A test takes
that over with `on_request`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Mapping
from typing import Any, Self, TypeAlias

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    PingAckReceived,
    PingReceived,
    RequestReceived,
    StreamEnded,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings

RESPONSE = [(":status", "200"), ("content-type", "application/grpc")]


class Conversation:
    """One connection, as the server sees it."""

    def __init__(self, server: H2Server, writer: asyncio.StreamWriter) -> None:
        self.h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        if server.settings:
            self.h2.local_settings = Settings(client=False, initial_values=dict(server.settings))
        self.paths: dict[int, str] = {}  # of the requests, by stream
        self.pings = 0
        self.pongs = 0  # answers to pings of the server's
        self.over = asyncio.Event()  # the client has hung up
        self._server = server
        self._writer = writer
        self.h2.initiate_connection()
        self.flush()

    def flush(self) -> None:
        """Send what there is to send."""
        with contextlib.suppress(ConnectionError):
            self._writer.write(self.h2.data_to_send())

    def answer(self, stream: int, message: bytes = b"", *, end: bool = True) -> None:
        """A message, and by default the end of the call."""
        self.h2.send_headers(stream, RESPONSE)
        self.h2.send_data(stream, b"\0" + len(message).to_bytes(4, "big") + message)
        if end:
            self.h2.send_headers(stream, [("grpc-status", "0")], end_stream=True)
        self.flush()

    def say_goodbye(self, last: int) -> None:
        """GOAWAY: streams after `last` were not processed."""
        self.h2.close_connection(last_stream_id=last)
        self.flush()

    def send_raw(self, data: bytes) -> None:
        """Bytes that h2 would not send, or not any more."""
        self._writer.write(data)

    def hang_up(self) -> None:
        """Close the connection."""
        self._writer.close()

    def hear(self, event: Event) -> None:
        if isinstance(event, RequestReceived):
            self.paths[event.stream_id] = _path(event)
        elif isinstance(event, DataReceived):
            self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            self._server.on_data(self, event.stream_id, event.data)
        elif isinstance(event, StreamEnded):
            self._server.on_request(self, event.stream_id)
        elif isinstance(event, PingReceived):
            self.pings += 1
        elif isinstance(event, PingAckReceived):
            self.pongs += 1
        elif isinstance(event, ConnectionTerminated):
            self.hang_up()


def _path(event: RequestReceived) -> str:
    headers: dict[Any, Any] = dict(event.headers)
    return str(headers[":path"])


Heard: TypeAlias = Callable[[Conversation, int], None]


class H2Server:
    """Serves while its `async with` block lasts."""

    def __init__(
        self,
        on_request: Heard = lambda talk, stream: talk.answer(stream),
        *,
        settings: Mapping[SettingCodes, int] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.on_request = on_request
        self.on_data: Callable[[Conversation, int, bytes], None] = lambda talk, stream, data: None
        self.settings = settings
        self.talks: list[Conversation] = []
        self.endpoint = ""
        self.reads = asyncio.Event()  # cleared: it hears nothing
        self.reads.set()
        self._tls = tls

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.endpoint = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()
        for talk in self.talks:
            talk.hang_up()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talk = Conversation(self, writer)
        self.talks.append(talk)
        try:
            while data := await reader.read(65536):
                await self.reads.wait()
                for event in talk.h2.receive_data(data):
                    talk.hear(event)
                talk.flush()
        except (ConnectionError, ProtocolError):
            pass
        finally:
            talk.over.set()
            writer.close()
