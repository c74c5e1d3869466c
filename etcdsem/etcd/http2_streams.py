"""The streams of a connection: requests, responses, and flow control in both directions.

1. A stream waits, unsent, while the peer allows no more streams. `Failure.processed` is False if
   the peer certainly did nothing: the request was never sent, or the peer says so.
2. A body is sent as far as the peer's windows allow. Windows that we have granted are opened again
   when half of them is used.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from etcdsem.etcd.http2_frames import (
    CANCEL,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    FLOW_CONTROL_ERROR,
    HEADERS,
    MAX_DATA,
    MAX_STREAM_ID,
    MAX_WINDOW,
    NO_ERROR,
    NO_TABLE,
    NUMBER,
    PADDED,
    PROTOCOL_ERROR,
    RST_STREAM,
    START,
    WINDOW,
    WINDOW_UPDATE,
    Broken,
    frame,
    number_in,
    without_padding,
)
from etcdsem.etcd.http2_headers import Headers

RETIRED = "the connection takes no further requests"
TOO_LARGE = f"the response is larger than {MAX_DATA} bytes"


class Http2Failure(NamedTuple):
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
        self.failure: Http2Failure | None = None
        self.done = False
        """True once the response is complete, or has failed."""
        self._block = block
        self._unsent: bytes | memoryview = body
        self._last = last  # nothing follows the unsent body
        self._announced = False  # END_STREAM was sent
        self._window = 0  # bytes that we may send
        self._consumed = 0  # bytes received since the last WINDOW_UPDATE


class StreamTable:
    """The streams of one connection, and the bytes to send for them."""

    def __init__(self) -> None:
        self.outgoing = bytearray(START)
        self.closed: Http2Failure | None = None
        """Why the connection is unusable; None if it is usable."""
        self.retired = False
        """True if it accepts no further streams; those in progress continue."""
        self.streams: dict[int, Stream] = {}
        self._waiting: deque[Stream] = deque()  # unsent, since the peer allows no more streams
        self._touched: dict[Stream, None] = {}  # by the peer, since it was last asked for
        self._next_id = 1
        self._window = 65_535  # bytes that we may send
        self._stream_window = 65_535  # the same for a new stream
        self._max_frame = 16_384  # bytes in a frame that we send
        self._max_streams = MAX_WINDOW
        self._consumed = 0  # bytes received since the last WINDOW_UPDATE

    # -- sending

    def request(self, block: bytes, body: bytes = b"", *, last: bool = True) -> Stream:
        """Open a stream. `block` is the encoded header block; `last`: no further body follows."""
        stream = Stream(block, body, last)
        if self.closed is not None or self.retired:
            stream.done = True
            text = RETIRED if self.closed is None else self.closed.text
            stream.failure = Http2Failure(text, processed=False)
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
                self.outgoing += frame(RST_STREAM, 0, stream.id, NUMBER.pack(CANCEL))
            else:
                self._waiting.remove(stream)
            self._end(stream, Http2Failure("the call was cancelled", processed=stream.id != 0))
            del self._touched[stream]  # `_touched` is for effects of the peer only
            self._start_waiting()

    def _start(self, stream: Stream) -> None:
        number = stream.id = self._next_id
        self._next_id += 2
        self.retired = self._next_id > MAX_STREAM_ID
        self.streams[number] = stream
        stream._window = self._stream_window
        # We use no header table. A peer that wants a smaller one than usual must learn that.
        block = stream._block if number > 1 else NO_TABLE + stream._block
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
                self._refuse_waiting(RETIRED)
            else:
                self._start(self._waiting.popleft())

    def _refuse_waiting(self, text: str) -> None:
        while self._waiting:
            self._end(self._waiting.popleft(), Http2Failure(text, processed=False))

    # -- the ends of streams

    def _end(self, stream: Stream, failure: Http2Failure | None = None) -> None:
        stream.done = True
        stream.failure = failure
        stream._unsent = b""
        self.streams.pop(stream.id, None)
        self._touched[stream] = None

    def _fail(self, stream: Stream, code: int, text: str) -> None:
        """Reset a stream whose protocol the peer violated."""
        self.outgoing += frame(RST_STREAM, 0, stream.id, NUMBER.pack(code))
        self._end(stream, Http2Failure(text))
        self._start_waiting()

    def _stream(self, number: int) -> Stream | None:
        """An open stream; None if it has ended."""
        stream = self.streams.get(number)
        if stream is None and (number >= self._next_id or number % 2 == 0):
            raise Broken(PROTOCOL_ERROR, f"stream {number} was never opened")
        return stream

    def _finish(self, stream: Stream) -> None:
        """The response is complete. If the request is not, the peer does not want the rest."""
        if not stream._announced:
            self.outgoing += frame(RST_STREAM, 0, stream.id, NUMBER.pack(NO_ERROR))
        self._end(stream)
        if self._waiting:
            self._start_waiting()

    # -- receiving, and flow control

    def _on_data(self, number: int, flags: int, payload: bytes) -> None:
        stream = self._stream(number)
        size = len(payload)
        self._consumed += size  # includes padding
        if self._consumed > WINDOW // 2:
            self.outgoing += frame(WINDOW_UPDATE, 0, 0, NUMBER.pack(self._consumed))
            self._consumed = 0
        if flags & PADDED:
            payload = without_padding(payload)
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
            self.outgoing += frame(WINDOW_UPDATE, 0, number, NUMBER.pack(stream._consumed))
            stream._consumed = 0

    def _on_window_update(self, number: int, flags: int, payload: bytes) -> None:
        size = number_in(payload) & MAX_WINDOW
        code = FLOW_CONTROL_ERROR if size else PROTOCOL_ERROR
        if number == 0:
            self._window += size
            if size == 0 or self._window > MAX_WINDOW:
                raise Broken(code, f"WINDOW_UPDATE by {size}")
            self._flush_all()
            return
        stream = self._stream(number)
        if stream is not None:
            stream._window += size
            if size == 0 or stream._window > MAX_WINDOW:
                self._fail(stream, code, f"WINDOW_UPDATE by {size}")
            elif stream._unsent:
                self._flush(stream)

    def _resize_windows(self, size: int) -> None:
        if size > MAX_WINDOW:
            raise Broken(FLOW_CONTROL_ERROR, f"INITIAL_WINDOW_SIZE {size}")
        change = size - self._stream_window
        self._stream_window = size
        for stream in self.streams.values():
            stream._window += change
            if stream._window > MAX_WINDOW:
                raise Broken(FLOW_CONTROL_ERROR, "a stream's window is too large")
