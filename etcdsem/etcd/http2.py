"""The client side of HTTP/2 (RFC 9113) as needed by gRPC: no socket, no clock, no thread.

1. `receive` takes bytes as they arrive, in pieces of any size, and returns the streams that were
   affected. Bytes to send are collected in `outgoing`.
2. Nothing that a peer sends raises an exception. A stream that cannot be completed has a `failure`;
   if the whole connection is unusable, `closed` says why, and every open stream has failed.
3. Memory is bounded: frames by 16 KiB, a header block by `MAX_HEADER_BLOCK`, a response by
   `MAX_DATA`. The caller that writes `outgoing` to a peer that does not read must bound that.

`http2_streams` has the streams and their flow control, `http2_headers` the header blocks,
`http2_frames` the constants and the encoding of frames.
"""

from __future__ import annotations

from etcdsem.etcd.http2_frames import (
    ACK,
    CONTINUATION,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    FRAME,
    FRAME_SIZE_ERROR,
    GOAWAY,
    HAS_PRIORITY,
    MAX_ACKS,
    MAX_FRAME,
    MAX_HEADER_BLOCK,
    MAX_STREAM_ID,
    PADDED,
    PING,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
    SETTING,
    SETTINGS,
    SETTINGS_ACK,
    TWO_NUMBERS,
    Broken,
    error_name,
    frame,
    malformed,
    number_in,
    without_padding,
)
from etcdsem.etcd.http2_headers import decode, decoded
from etcdsem.etcd.http2_streams import Http2Failure, Stream, StreamTable

_MAX_CONTINUATIONS = 64

NO_HTTP2 = "not an HTTP/2 server"


class Http2(StreamTable):
    """One connection."""

    def __init__(self) -> None:
        super().__init__()
        self.ready = False
        """True once the peer's first SETTINGS have arrived: it does speak HTTP/2."""
        self.pongs = 0
        """Number of answers to our pings."""
        self._acks = bytearray()  # answers to the peer's PINGs
        self._input = b""  # an incomplete frame
        self._block: tuple[int, int, bytearray] | None = None  # stream, flags, incomplete headers
        self._continuations = 0

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
                high, low, kind, flags, number = FRAME.unpack_from(buffer, at)
                length = high << 8 | low
                if length > MAX_FRAME:
                    raise Broken(FRAME_SIZE_ERROR, f"a frame of {length} bytes")
                after = at + 9 + length
                if after > size:
                    break
                if self._block is not None and kind != CONTINUATION:
                    raise Broken(PROTOCOL_ERROR, "a header block was interrupted")
                if kind <= CONTINUATION:  # others are extensions, and ignored
                    _ON[kind](self, number & MAX_STREAM_ID, flags, buffer[at + 9 : after])
                at = after
            self._input = buffer[at:]
        except Broken as error:
            self._shut(error.code, str(error))
        touched, self._touched = self._touched, {}
        return list(touched)

    def lost(self, text: str) -> list[Stream]:
        """Record that the connection was lost; returns the streams that this has failed."""
        self._close(Http2Failure(text))
        touched, self._touched = self._touched, {}
        return list(touched)

    def _begins_well(self, buffer: bytes) -> bool:
        """Check that the server begins with SETTINGS; else raise what it seems to be."""
        if buffer.startswith(b"HTTP"):
            line, complete, _ = buffer[:80].partition(b"\r\n")
            if not complete and len(buffer) < 80:
                return False
            raise Broken(PROTOCOL_ERROR, f"{NO_HTTP2}: {line.decode('ascii', 'replace')}")
        if buffer.startswith(b"\x15\x03"):
            raise Broken(PROTOCOL_ERROR, f"{NO_HTTP2}: it answers in TLS")
        if len(buffer) > 4 and (buffer[0] or buffer[3] != SETTINGS or buffer[4] & ACK):
            raise Broken(PROTOCOL_ERROR, f"{NO_HTTP2}: it sent {buffer[:24]!r}")
        return True

    def _close(self, failure: Http2Failure) -> None:
        if self.closed is None:
            self.closed = failure
            self._input = b""
            self._block = None
            self._refuse_waiting(failure.text)
            for stream in list(self.streams.values()):
                self._end(stream, failure)

    def _shut(self, code: int, text: str) -> None:
        self.outgoing += frame(GOAWAY, 0, 0, TWO_NUMBERS.pack(0, code))
        self._close(Http2Failure(text))

    # -- header blocks

    def _on_headers(self, number: int, flags: int, payload: bytes) -> None:
        if flags & PADDED:
            payload = without_padding(payload)
        if flags & HAS_PRIORITY:
            if len(payload) < 5:
                raise Broken(FRAME_SIZE_ERROR, "a header block without its priority")
            payload = payload[5:]
        if flags & END_HEADERS:
            self._complete(number, flags, payload)
        else:
            self._block = (number, flags, bytearray(payload))
            self._continuations = 0

    def _on_continuation(self, number: int, flags: int, payload: bytes) -> None:
        if self._block is None or self._block[0] != number:
            raise Broken(PROTOCOL_ERROR, "a continuation of nothing")
        _, first_flags, block = self._block
        block += payload
        self._continuations += 1
        if len(block) > MAX_HEADER_BLOCK or self._continuations > _MAX_CONTINUATIONS:
            raise Broken(PROTOCOL_ERROR, "a header block that is too large")
        if flags & END_HEADERS:
            self._block = None
            self._complete(number, first_flags, bytes(block))

    def _complete(self, number: int, flags: int, block: bytes) -> None:
        """Process a whole header block: headers, or trailers."""
        headers = decoded.get(block) or decode(block)
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

    # -- other frames

    def _on_priority(self, number: int, flags: int, payload: bytes) -> None:
        """Ignore PRIORITY, which is deprecated and was never binding."""
        if number == 0:
            raise Broken(PROTOCOL_ERROR, "PRIORITY of no stream")
        if len(payload) != 5:
            raise Broken(FRAME_SIZE_ERROR, "malformed PRIORITY")

    def _on_push(self, number: int, flags: int, payload: bytes) -> None:
        raise Broken(PROTOCOL_ERROR, "a push, which we do not accept")

    def _on_reset(self, number: int, flags: int, payload: bytes) -> None:
        code = number_in(payload)
        stream = self._stream(number)
        if stream is not None:  # else NO_ERROR after a complete response, which etcd sends
            text = f"the server reset the stream: {error_name(code)}"
            refused = code == REFUSED_STREAM and stream.headers is None
            self._end(stream, Http2Failure(text, processed=not refused))
            self._start_waiting()

    def _on_settings(self, number: int, flags: int, payload: bytes) -> None:
        if number or len(payload) % 6 or (flags & ACK and payload):
            raise malformed("SETTINGS", number)
        if flags & ACK:
            return
        window = self._stream_window
        for identifier, value in SETTING.iter_unpack(payload):
            if identifier == 3:
                self._max_streams = value
            elif identifier == 4:
                window = value
            elif identifier == 5:
                if not 16_384 <= value < 2**24:
                    raise Broken(PROTOCOL_ERROR, f"MAX_FRAME_SIZE {value}")
                self._max_frame = value
        self._resize_windows(window)
        self.ready = True
        self.outgoing += SETTINGS_ACK  # only data after it may use the new settings
        self._flush_all()
        self._start_waiting()

    def _on_ping(self, number: int, flags: int, payload: bytes) -> None:
        if number or len(payload) != 8:
            raise malformed("PING", number)
        if flags & ACK:
            self.pongs += 1
        else:
            self._acks += frame(PING, ACK, 0, payload)
            if len(self._acks) > MAX_ACKS * 17:
                raise Broken(ENHANCE_YOUR_CALM, "a flood of PINGs")

    def _on_goaway(self, number: int, flags: int, payload: bytes) -> None:
        if number or len(payload) < 8:
            raise malformed("GOAWAY", number)
        last, code = TWO_NUMBERS.unpack_from(payload)
        reason = payload[8:88].decode("ascii", "replace")
        text = f"the server is closing the connection: {error_name(code)} {reason}".rstrip()
        self.retired = True
        self._refuse_waiting(text)
        for stream in list(self.streams.values()):
            if stream.id > last & MAX_STREAM_ID:
                self._end(stream, Http2Failure(text, processed=stream.headers is not None))


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
