"""The client side of HTTP/2 (RFC 9113) as needed by gRPC: no socket, no clock, no thread.

1. `receive` takes bytes as they arrive, in pieces of any size, and returns the streams that were
   affected. Bytes to send are collected in `outgoing`.
2. Nothing that a peer sends raises an exception. A stream that cannot be completed has a `failure`;
   if the whole connection is unusable, `closed` says why, and every open stream has failed.
3. A stream waits, unsent, while the peer allows no more streams. `Failure.processed` is False if
   the peer certainly did nothing: the request was never sent, or the peer says so.
4. We announce a header table of size 0, so header blocks are stateless and their decoded form is
   cached by their bytes.
5. Memory is bounded: frames by 16 KiB, a header block by `MAX_HEADER_BLOCK`, a response by
   `MAX_DATA`. The caller that writes `outgoing` to a peer that does not read must bound that.
"""

from __future__ import annotations

import logging
import struct
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

from hpack import Decoder
from hpack.exceptions import HPACKError

for _name in ("hpack.hpack", "hpack.table"):
    # They log each header at level DEBUG, in our threads that must not wait for a handler.
    logging.getLogger(_name).setLevel(logging.getLogger(_name).level or logging.INFO)

Headers: TypeAlias = Mapping[bytes, bytes]

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY = range(8)
WINDOW_UPDATE, CONTINUATION = 8, 9

END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
HAS_PRIORITY = 0x20

ERRORS = (
    "NO_ERROR",
    "PROTOCOL_ERROR",
    "INTERNAL_ERROR",
    "FLOW_CONTROL_ERROR",
    "SETTINGS_TIMEOUT",
    "STREAM_CLOSED",
    "FRAME_SIZE_ERROR",
    "REFUSED_STREAM",
    "CANCEL",
    "COMPRESSION_ERROR",
    "CONNECT_ERROR",
    "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY",
    "HTTP_1_1_REQUIRED",
)
"""Names of error codes (RFC 9113, section 7)."""

NO_ERROR, PROTOCOL_ERROR, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR = 0, 1, 3, 6
REFUSED_STREAM, CANCEL, COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 7, 8, 9, 11

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
MAX_FRAME = 16_384
"""Maximum bytes in a frame that we accept; the minimum that the standard allows."""
MAX_WINDOW = 2**31 - 1
MAX_STREAM_ID = 2**31 - 1
WINDOW = 2**24
"""Bytes that a peer may send before we acknowledge any, on a stream and on the connection."""
MAX_HEADER_BLOCK = 65_536
"""Maximum bytes in a header block, and in the list that it decodes to."""
MAX_DATA = 2**28
"""Maximum bytes of a response."""
MAX_ACKS = 1_000
"""Maximum number of PINGs that may wait for our answer."""
_MAX_CONTINUATIONS = 64
_CACHED_BLOCKS, _CACHED_SIZE = 256, 512

_FRAME = struct.Struct(">HBBBL")  # length (in two parts), type, flags, stream
_SETTING = struct.Struct(">HL")
_NUMBER = struct.Struct(">L")
_TWO_NUMBERS = struct.Struct(">LL")

_blocks: dict[bytes, Headers] = {}  # decoded, by their bytes


def frame(kind: int, flags: int, stream: int, payload: bytes | memoryview = b"") -> bytes:
    """Encode a frame."""
    length = len(payload)
    return _FRAME.pack(length >> 8, length & 0xFF, kind, flags, stream) + payload


_START = (
    PREFACE
    + frame(
        SETTINGS,
        0,
        0,
        _SETTING.pack(1, 0)  # HEADER_TABLE_SIZE
        + _SETTING.pack(2, 0)  # ENABLE_PUSH
        + _SETTING.pack(4, WINDOW)  # INITIAL_WINDOW_SIZE
        + _SETTING.pack(6, MAX_HEADER_BLOCK),  # MAX_HEADER_LIST_SIZE
    )
    + frame(WINDOW_UPDATE, 0, 0, _NUMBER.pack(WINDOW - 65_535))
)
_NO_TABLE = b"\x20"  # "dynamic table size update" to 0 (RFC 7541, 6.3)
_SETTINGS_ACK = frame(SETTINGS, ACK, 0)


class Failure(NamedTuple):
    """Why a stream has no complete response, or a connection is unusable."""

    text: str
    processed: bool = True
    """False if the peer certainly did nothing with the request."""


class Stream:
    """A request and its response."""

    __slots__ = (
        "_announced",
        "_block",
        "_consumed",
        "_last",
        "_unsent",
        "_window",
        "data",
        "done",
        "failure",
        "headers",
        "id",
        "trailers",
    )

    def __init__(self, block: bytes, body: bytes, last: bool) -> None:
        self.id = 0  # until it is sent
        self.headers: Headers | None = None
        self.data = bytearray()  # of the response; `messages` removes what it has taken
        self.trailers: Headers | None = None
        self.failure: Failure | None = None
        self.done = False
        """True once the response is complete, or has failed."""
        self._block = block
        self._unsent: bytes | memoryview = body
        self._last = last  # nothing follows the unsent body
        self._announced = False  # END_STREAM was sent
        self._window = 0  # bytes that we may send
        self._consumed = 0  # bytes received since the last WINDOW_UPDATE


class _Broken(Exception):
    """The peer violated the protocol of the connection."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Http2:
    """One connection."""

    def __init__(self) -> None:
        self.outgoing = bytearray(_START)
        self.ready = False
        """True once the peer's first SETTINGS have arrived: it does speak HTTP/2."""
        self.closed: Failure | None = None
        """Why the connection is unusable; None if it is usable."""
        self.retired = False
        """True if it accepts no further streams; those in progress continue."""
        self.streams: dict[int, Stream] = {}
        self.pongs = 0
        """Number of answers to our pings."""
        self._acks = bytearray()  # answers to the peer's PINGs
        self._waiting: deque[Stream] = deque()  # unsent, since the peer allows no more streams
        self._touched: dict[Stream, None] = {}
        self._input = b""  # an incomplete frame
        self._next_id = 1
        self._window = 65_535  # bytes that we may send
        self._stream_window = 65_535  # the same for a new stream
        self._max_frame = 16_384  # bytes in a frame that we send
        self._max_streams = MAX_WINDOW
        self._consumed = 0  # bytes received since the last WINDOW_UPDATE
        self._block: tuple[int, int, bytearray] | None = None  # stream, flags, incomplete headers
        self._continuations = 0
        self._decoder: Decoder | None = None

    # -- sending

    def request(self, block: bytes, body: bytes = b"", *, last: bool = True) -> Stream:
        """Open a stream. `block` is the encoded header block; `last`: no further body follows."""
        stream = Stream(block, body, last)
        if self.closed is not None or self.retired:
            stream.done = True
            text = _RETIRED if self.closed is None else self.closed.text
            stream.failure = Failure(text, processed=False)
        elif len(self.streams) >= self._max_streams:
            self._waiting.append(stream)
        else:
            self._start(stream)
        return stream

    def send(self, stream: Stream, body: bytes, *, last: bool = False) -> None:
        """Send more of a request's body."""
        if not stream.done:
            stream._unsent = b"".join((stream._unsent, body))
            stream._last = last
            if stream.id:
                self._flush(stream)

    def cancel(self, stream: Stream) -> None:
        """Cancel a stream whose response nobody wants any more; the server cancels the call."""
        if not stream.done:
            if stream.id:
                self.outgoing += frame(RST_STREAM, 0, stream.id, _NUMBER.pack(CANCEL))
            else:
                self._waiting.remove(stream)
            self._end(stream, Failure("the call was cancelled", processed=stream.id != 0))
            del self._touched[stream]  # `_touched` is for effects of the peer only
            self._start_waiting()

    def acknowledge(self) -> None:
        """Answer the peer's PINGs. etcd sends one with each response until the last was answered,
        to measure its bandwidth; answering only now and then saves both sides that work.
        """
        self.outgoing += self._acks
        self._acks.clear()

    @property
    def pinged(self) -> bool:
        """Is the peer waiting for `acknowledge`?"""
        return bool(self._acks)

    def ping(self) -> None:
        """Send a PING; `pongs` counts the answers."""
        self.outgoing += frame(PING, 0, 0, b"etcdsem?")

    def _start(self, stream: Stream) -> None:
        number = stream.id = self._next_id
        self._next_id += 2
        self.retired = self._next_id > MAX_STREAM_ID
        self.streams[number] = stream
        stream._window = self._stream_window
        # We use no header table. A peer that wants a smaller one than usual must be told.
        block = stream._block if number > 1 else _NO_TABLE + stream._block
        stream._block = b""
        flags = END_HEADERS
        if stream._last and not stream._unsent:
            flags |= END_STREAM
            stream._announced = True
        if len(block) <= self._max_frame:
            self.outgoing += frame(HEADERS, flags, number, block)
        else:
            self._send_long_headers(number, flags, block)
        self._flush(stream)

    def _send_long_headers(self, number: int, flags: int, block: bytes) -> None:
        limit = self._max_frame
        self.outgoing += frame(HEADERS, flags & ~END_HEADERS, number, block[:limit])
        for start in range(limit, len(block), limit):
            last = END_HEADERS if start + limit >= len(block) else 0
            self.outgoing += frame(CONTINUATION, last, number, block[start : start + limit])

    def _flush(self, stream: Stream) -> None:
        """Send as much of the body as the peer allows."""
        body, at = memoryview(stream._unsent), 0
        while at < len(body):
            size = min(len(body) - at, self._max_frame, self._window, stream._window)
            if size <= 0:
                stream._unsent = body[at:]
                return
            last = stream._last and at + size == len(body)
            stream._announced = stream._announced or last
            self.outgoing += frame(DATA, END_STREAM * last, stream.id, body[at : at + size])
            self._window -= size
            stream._window -= size
            at += size
        stream._unsent = b""
        if stream._last and not stream._announced:
            stream._announced = True
            self.outgoing += frame(DATA, END_STREAM, stream.id)

    def _flush_all(self) -> None:
        for stream in self.streams.values():
            if stream._unsent:
                self._flush(stream)

    def _start_waiting(self) -> None:
        while self._waiting and len(self.streams) < self._max_streams:
            if self.retired:
                self._refuse_waiting(_RETIRED)
            else:
                self._start(self._waiting.popleft())

    def _refuse_waiting(self, text: str) -> None:
        while self._waiting:
            self._end(self._waiting.popleft(), Failure(text, processed=False))

    # -- receiving

    def receive(self, data: bytes) -> list[Stream]:
        """Process bytes from the peer; returns the streams that were affected."""
        if self.closed is not None:
            return []
        buffer = self._input + data if self._input else data
        at, size = 0, len(buffer)
        try:
            if not self.ready and not self._begins_well(buffer):
                size = 0  # wait for more data before deciding
            while size - at >= 9:
                high, low, kind, flags, number = _FRAME.unpack_from(buffer, at)
                length = high << 8 | low
                if length > MAX_FRAME:
                    raise _Broken(FRAME_SIZE_ERROR, f"a frame of {length} bytes")
                after = at + 9 + length
                if after > size:
                    break
                if self._block is not None and kind != CONTINUATION:
                    raise _Broken(PROTOCOL_ERROR, "a header block was interrupted")
                if kind <= CONTINUATION:  # others are extensions, and ignored
                    _ON[kind](self, number & MAX_STREAM_ID, flags, buffer[at + 9 : after])
                at = after
            self._input = buffer[at:]
        except _Broken as error:
            self._shut(error.code, str(error))
        touched, self._touched = self._touched, {}
        return list(touched)

    def lost(self, text: str) -> list[Stream]:
        """Record that the connection was lost; returns the streams that this has failed."""
        self._close(Failure(text))
        touched, self._touched = self._touched, {}
        return list(touched)

    def _begins_well(self, buffer: bytes) -> bool:
        """Check that the server begins with SETTINGS; else raise what it seems to be."""
        if buffer.startswith(b"HTTP"):
            line, complete, _ = buffer[:80].partition(b"\r\n")
            if not complete and len(buffer) < 80:
                return False
            raise _Broken(PROTOCOL_ERROR, f"{NO_HTTP2}: {line.decode('ascii', 'replace')}")
        if buffer.startswith(b"\x15\x03"):
            raise _Broken(PROTOCOL_ERROR, f"{NO_HTTP2}: it answers in TLS")
        if len(buffer) > 4 and (buffer[0] or buffer[3] != SETTINGS or buffer[4] & ACK):
            raise _Broken(PROTOCOL_ERROR, f"{NO_HTTP2}: it sent {buffer[:24]!r}")
        return True

    def _close(self, failure: Failure) -> None:
        if self.closed is None:
            self.closed = failure
            self._input = b""
            self._block = None
            self._refuse_waiting(failure.text)
            for stream in list(self.streams.values()):
                self._end(stream, failure)

    def _shut(self, code: int, text: str) -> None:
        self.outgoing += frame(GOAWAY, 0, 0, _TWO_NUMBERS.pack(0, code))
        self._close(Failure(text))

    def _end(self, stream: Stream, failure: Failure | None = None) -> None:
        stream.done = True
        stream.failure = failure
        stream._unsent = b""
        self.streams.pop(stream.id, None)
        self._touched[stream] = None

    def _fail(self, stream: Stream, code: int, text: str) -> None:
        """Reset a stream whose protocol the peer violated."""
        self.outgoing += frame(RST_STREAM, 0, stream.id, _NUMBER.pack(code))
        self._end(stream, Failure(text))
        self._start_waiting()

    def _stream(self, number: int) -> Stream | None:
        """An open stream; None if it has ended."""
        stream = self.streams.get(number)
        if stream is None and (number >= self._next_id or number % 2 == 0):
            raise _Broken(PROTOCOL_ERROR, f"stream {number} was never opened")
        return stream

    def _finish(self, stream: Stream) -> None:
        """The response is complete. If the request is not, the peer does not want the rest."""
        if not stream._announced:
            self.outgoing += frame(RST_STREAM, 0, stream.id, _NUMBER.pack(NO_ERROR))
        self._end(stream)
        if self._waiting:
            self._start_waiting()

    def _on_data(self, number: int, flags: int, payload: bytes) -> None:
        stream = self._stream(number)
        size = len(payload)
        self._consumed += size  # includes padding
        if self._consumed > WINDOW // 2:
            self.outgoing += frame(WINDOW_UPDATE, 0, 0, _NUMBER.pack(self._consumed))
            self._consumed = 0
        if flags & PADDED:
            payload = _without_padding(payload)
        if stream is None:
            return
        if stream.headers is None:
            self._fail(stream, PROTOCOL_ERROR, "data came before headers")
            return
        stream.data += payload
        if len(stream.data) > MAX_DATA:
            self._fail(stream, CANCEL, TOO_LARGE)
            return
        if flags & END_STREAM:
            self._finish(stream)
            return
        self._touched[stream] = None
        stream._consumed += size
        if stream._consumed > WINDOW // 2:
            self.outgoing += frame(WINDOW_UPDATE, 0, number, _NUMBER.pack(stream._consumed))
            stream._consumed = 0

    def _on_headers(self, number: int, flags: int, payload: bytes) -> None:
        if flags & PADDED:
            payload = _without_padding(payload)
        if flags & HAS_PRIORITY:
            if len(payload) < 5:
                raise _Broken(FRAME_SIZE_ERROR, "a header block without its priority")
            payload = payload[5:]
        if flags & END_HEADERS:
            self._complete(number, flags, payload)
        else:
            self._block = (number, flags, bytearray(payload))
            self._continuations = 0

    def _on_continuation(self, number: int, flags: int, payload: bytes) -> None:
        if self._block is None or self._block[0] != number:
            raise _Broken(PROTOCOL_ERROR, "a continuation of nothing")
        _, first_flags, block = self._block
        block += payload
        self._continuations += 1
        if len(block) > MAX_HEADER_BLOCK or self._continuations > _MAX_CONTINUATIONS:
            raise _Broken(PROTOCOL_ERROR, "a header block that is too large")
        if flags & END_HEADERS:
            self._block = None
            self._complete(number, first_flags, bytes(block))

    def _complete(self, number: int, flags: int, block: bytes) -> None:
        """Process a whole header block: headers, or trailers."""
        headers = _blocks.get(block) or self._decode(block)
        stream = self._stream(number)
        if stream is None:
            return
        last = flags & END_STREAM
        if stream.headers is None:
            if headers.get(b":status", b"")[:1] == b"1":
                if last:
                    self._fail(stream, PROTOCOL_ERROR, "an interim response ended the stream")
                return
            stream.headers = headers
            if last:
                stream.trailers = headers  # "trailers-only"
        elif last:
            stream.trailers = headers
        else:
            self._fail(stream, PROTOCOL_ERROR, "a second header block within a response")
            return
        if last:
            self._finish(stream)
        else:
            self._touched[stream] = None

    def _decode(self, block: bytes) -> Headers:
        if self._decoder is None:
            self._decoder = Decoder(max_header_list_size=MAX_HEADER_BLOCK)
            self._decoder.header_table_size = self._decoder.max_allowed_table_size = 0
        try:
            headers = dict(self._decoder.decode(block, raw=True))
        except (HPACKError, ValueError, IndexError) as error:
            text = f"unreadable headers: {type(error).__name__}"  # its own text may be long
            raise _Broken(COMPRESSION_ERROR, text) from None
        if len(block) <= _CACHED_SIZE:
            if len(_blocks) >= _CACHED_BLOCKS:
                _blocks.clear()
            _blocks[block] = headers
        return headers

    def _on_priority(self, number: int, flags: int, payload: bytes) -> None:
        """Ignore PRIORITY, which is deprecated and was never binding."""
        if number == 0:
            raise _Broken(PROTOCOL_ERROR, "PRIORITY of no stream")
        if len(payload) != 5:
            raise _Broken(FRAME_SIZE_ERROR, "malformed PRIORITY")

    def _on_push(self, number: int, flags: int, payload: bytes) -> None:
        raise _Broken(PROTOCOL_ERROR, "a push, which we do not accept")

    def _on_reset(self, number: int, flags: int, payload: bytes) -> None:
        code = _number(payload)
        stream = self._stream(number)
        if stream is not None:  # else NO_ERROR after a complete response, which etcd sends
            text = f"the server reset the stream: {error_name(code)}"
            refused = code == REFUSED_STREAM and stream.headers is None
            self._end(stream, Failure(text, processed=not refused))
            self._start_waiting()

    def _on_settings(self, number: int, flags: int, payload: bytes) -> None:
        if number or len(payload) % 6 or (flags & ACK and payload):
            raise _malformed("SETTINGS", number)
        if flags & ACK:
            return
        window = self._stream_window
        for identifier, value in _SETTING.iter_unpack(payload):
            if identifier == 3:
                self._max_streams = value
            elif identifier == 4:
                window = value
            elif identifier == 5:
                if not 16_384 <= value < 2**24:
                    raise _Broken(PROTOCOL_ERROR, f"MAX_FRAME_SIZE {value}")
                self._max_frame = value
        self._resize_windows(window)
        self.ready = True
        self.outgoing += _SETTINGS_ACK  # only data after it may use the new settings
        self._flush_all()
        self._start_waiting()

    def _resize_windows(self, size: int) -> None:
        if size > MAX_WINDOW:
            raise _Broken(FLOW_CONTROL_ERROR, f"INITIAL_WINDOW_SIZE {size}")
        change = size - self._stream_window
        self._stream_window = size
        for stream in self.streams.values():
            stream._window += change
            if stream._window > MAX_WINDOW:
                raise _Broken(FLOW_CONTROL_ERROR, "a stream's window is too large")

    def _on_ping(self, number: int, flags: int, payload: bytes) -> None:
        if number or len(payload) != 8:
            raise _malformed("PING", number)
        if flags & ACK:
            self.pongs += 1
        else:
            self._acks += frame(PING, ACK, 0, payload)
            if len(self._acks) > MAX_ACKS * 17:
                raise _Broken(ENHANCE_YOUR_CALM, "a flood of PINGs")

    def _on_goaway(self, number: int, flags: int, payload: bytes) -> None:
        if number or len(payload) < 8:
            raise _malformed("GOAWAY", number)
        last, code = _TWO_NUMBERS.unpack_from(payload)
        reason = payload[8:88].decode("ascii", "replace")
        text = f"the server is closing the connection: {error_name(code)} {reason}".rstrip()
        self.retired = True
        self._refuse_waiting(text)
        for stream in list(self.streams.values()):
            if stream.id > last & MAX_STREAM_ID:
                self._end(stream, Failure(text, processed=stream.headers is not None))

    def _on_window_update(self, number: int, flags: int, payload: bytes) -> None:
        size = _number(payload) & MAX_WINDOW
        code = FLOW_CONTROL_ERROR if size else PROTOCOL_ERROR
        if number == 0:
            self._window += size
            if size == 0 or self._window > MAX_WINDOW:
                raise _Broken(code, f"WINDOW_UPDATE by {size}")
            self._flush_all()
            return
        stream = self._stream(number)
        if stream is not None:
            stream._window += size
            if size == 0 or stream._window > MAX_WINDOW:
                self._fail(stream, code, f"WINDOW_UPDATE by {size}")
            elif stream._unsent:
                self._flush(stream)


_ON = (
    Http2._on_data,
    Http2._on_headers,
    Http2._on_priority,
    Http2._on_reset,
    Http2._on_settings,
    Http2._on_push,
    Http2._on_ping,
    Http2._on_goaway,
    Http2._on_window_update,
    Http2._on_continuation,
)
"""The handler for each frame type. (Bound methods in an object would create a reference cycle: the
object, with everything that it has received, would stay until the garbage collector runs.)"""

NO_HTTP2 = "not an HTTP/2 server"
_RETIRED = "the connection takes no further requests"
TOO_LARGE = f"the response is larger than {MAX_DATA} bytes"


def error_name(code: int) -> str:
    """The name of an error code."""
    return ERRORS[code] if code < len(ERRORS) else f"error {code}"


def _malformed(name: str, number: int) -> _Broken:
    """The error for a connection frame that is on a stream, or of the wrong size."""
    return _Broken(PROTOCOL_ERROR if number else FRAME_SIZE_ERROR, f"malformed {name}")


def _number(payload: bytes) -> int:
    if len(payload) != 4:
        raise _Broken(FRAME_SIZE_ERROR, "a frame of the wrong size")
    number: int = _NUMBER.unpack(payload)[0]
    return number


def _without_padding(payload: bytes) -> bytes:
    if not payload or payload[0] >= len(payload):
        raise _Broken(PROTOCOL_ERROR, "more padding than there is payload")
    return payload[1 : len(payload) - payload[0]]
