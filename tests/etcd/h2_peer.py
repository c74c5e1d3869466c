"""A scripted HTTP/2 server for tests of our client's side: hyper's `h2`, connected in memory.

1. `Peer.pump` carries bytes both ways until both sides are silent, cut by `cut` on each way.
2. h2 checks what we send by the rules (flow control, states, header blocks), and raises if we break
   one; so each test that uses it is a test of that, too.
3. For what h2 would not send, `opened` gives a connection to feed with frames made by hand, and
   `sent` parses what we send with `hyperframe`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    DataReceived,
    Event,
    RequestReceived,
    StreamEnded,
    StreamReset,
)
from h2.settings import SettingCodes, Settings
from hpack import Encoder
from hyperframe.frame import Frame

from etcdsem.etcd.grpc_protocol import frame_message, header_block
from etcdsem.etcd.http2 import Http2
from etcdsem.etcd.http2_frames import END_HEADERS, HEADERS, PREFACE, SETTINGS, frame
from etcdsem.etcd.http2_streams import Stream

BLOCK = header_block("/etcdserverpb.KV/Txn", "localhost:2379", "http", None)

Pairs = list[tuple[str, str]]
RESPONSE: Pairs = [(":status", "200"), ("content-type", "application/grpc")]
TRAILERS: Pairs = [("grpc-status", "0"), ("grpc-message", "")]
OK = {b"grpc-status": b"0", b"grpc-message": b""}

Cut = Callable[[bytes], Iterable[bytes]]


def whole(data: bytes) -> Iterable[bytes]:
    """All in one segment."""
    yield data


def pieces(size: int) -> Cut:
    """Segments of that size."""

    def cut(data: bytes) -> Iterable[bytes]:
        return (data[at : at + size] for at in range(0, len(data), size))

    return cut


def by_frame(data: bytes) -> Iterable[bytes]:
    """A frame in each segment. (h2 learns of an acknowledged frame size only between segments.)"""
    at = len(PREFACE) if data.startswith(PREFACE) else 0
    begun = 0
    while begun < len(data):
        end = at + 9 + int.from_bytes(data[at : at + 3], "big")
        yield data[begun:end]
        begun = at = end


class Peer:
    """A server, with our client.

    Args:
        settings: of the server, from its first SETTINGS on.
        cut: how bytes are cut into segments.
        reads: the server acknowledges what it receives, so that windows never end.
    """

    def __init__(
        self,
        settings: Mapping[SettingCodes, int] | None = None,
        *,
        cut: Cut = whole,
        reads: bool = True,
        http2: Http2 | None = None,
    ) -> None:
        self.http2 = http2 or Http2()
        self.cut = cut
        self.reads = reads
        self.h2 = H2Connection(H2Configuration(client_side=False, header_encoding=None))
        if settings:
            self.h2.local_settings = Settings(client=False, initial_values=dict(settings))
            self.h2.max_inbound_frame_size = self.h2.local_settings.max_frame_size
        self.requests: dict[int, dict[bytes, bytes]] = {}  # by stream
        self.bodies: dict[int, bytes] = {}
        self.ended: set[int] = set()
        self.resets: dict[int, int] = {}  # code by stream
        self.events: list[Event] = []
        self.touched: list[Stream] = []
        self.h2.initiate_connection()
        self.pump()

    def pump(self) -> None:
        """Carry bytes until nobody has any to send."""
        while True:
            ours, theirs = take(self.http2), self.h2.data_to_send()
            if not ours and not theirs:
                return
            for part in self.cut(ours):
                for event in self.h2.receive_data(part):
                    self._note(event)
            for part in self.cut(theirs):
                self.touched += self.http2.receive(part)

    def _note(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, RequestReceived):
            self.requests[event.stream_id] = dict(event.headers)
            self.bodies[event.stream_id] = b""
        elif isinstance(event, DataReceived):
            self.bodies[event.stream_id] += event.data
            if self.reads:
                self.read(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, StreamEnded):
            self.ended.add(event.stream_id)
        elif isinstance(event, StreamReset):
            self.resets[event.stream_id] = int(event.error_code)

    def read(self, size: int, stream: int) -> None:
        """Acknowledge so many bytes, as far as anybody counts them."""
        if size:
            self.h2.acknowledge_received_data(size, stream)

    def count(self, kind: type[Event]) -> int:
        """How many events of a kind there were."""
        return sum(isinstance(event, kind) for event in self.events)

    def call(self, body: bytes = b"", *, last: bool = True) -> Stream:
        """Send a request of ours."""
        stream = self.http2.request(BLOCK, body, last=last)
        self.pump()
        return stream

    def headers(self, stream: int, headers: Pairs = RESPONSE, *, last: bool = False) -> None:
        """Send headers, or trailers."""
        self.h2.send_headers(stream, headers, end_stream=last)
        self.pump()

    def data(self, stream: int, data: bytes, *, last: bool = False, padding: int = 0) -> None:
        """Send data, in as many frames as our windows and frame size ask for."""
        pad = padding + 1 if padding else 0
        at = 0
        while True:
            size = min(
                self.h2.local_flow_control_window(stream) - pad,
                self.h2.max_outbound_frame_size - pad,
                len(data) - at,
            )
            assert size > 0 or not data, "we do not open our window"
            end = last and at + size == len(data)
            part = data[at : at + size]
            self.h2.send_data(stream, part, end_stream=end, pad_length=padding or None)
            self.pump()
            at += size
            if at == len(data):
                return

    def answer(self, stream: int, message: bytes, trailers: Pairs = TRAILERS) -> None:
        """A whole response of one message."""
        self.headers(stream)
        self.data(stream, frame_message(message))
        self.headers(stream, trailers, last=True)


def take(http2: Http2) -> bytes:
    """What we send."""
    data = bytes(http2.outgoing)
    http2.outgoing.clear()
    return data


def sent(http2: Http2) -> list[Frame]:
    """What we send, as frames."""
    return parse(take(http2))


def parse(data: bytes) -> list[Frame]:
    """Frames, with or without the preface before them."""
    data = data.removeprefix(PREFACE)
    frames = []
    while data:
        one, length = Frame.parse_frame_header(memoryview(data[:9]))
        assert len(data) >= 9 + length
        one.parse_body(memoryview(data[9 : 9 + length]))
        frames.append(one)
        data = data[9 + length :]
    return frames


def opened(*settings: tuple[int, int]) -> Http2:
    """A connection whose peer has sent SETTINGS; what we sent by then is taken."""
    http2 = Http2()
    payload = b"".join(
        code.to_bytes(2, "big") + value.to_bytes(4, "big") for code, value in settings
    )
    assert http2.receive(frame(SETTINGS, 0, 0, payload)) == []
    assert http2.ready
    take(http2)
    return http2


def encode(headers: Pairs) -> bytes:
    """A header block, with references to no dynamic table."""
    return Encoder().encode(headers)


def headers_frame(stream: int, headers: Pairs = RESPONSE, flags: int = 0) -> bytes:
    """A HEADERS frame, with its end."""
    return frame(HEADERS, END_HEADERS | flags, stream, encode(headers))
