"""HTTP/2, frame by frame: what breaks the rules, what is left aside, and peers of other kinds.

Whole conversations with hyper's `h2`: `test_http2.py`.
"""

from __future__ import annotations

import pytest
from hyperframe.frame import (
    Frame,
    GoAwayFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from etcdsem.etcd import http2_headers, http2_streams
from etcdsem.etcd.http2 import Http2
from etcdsem.etcd.http2_frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HAS_PRIORITY,
    HEADERS,
    MAX_WINDOW,
    PADDED,
    PING,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW,
    WINDOW_UPDATE,
    frame,
)
from etcdsem.etcd.http2_streams import TOO_LARGE, Http2Failure, Stream
from tests.etcd.h2_peer import (
    BLOCK,
    OK,
    RESPONSE,
    TRAILERS,
    encode,
    headers_frame,
    opened,
    sent,
    take,
)

NO_ERROR, PROTOCOL, FLOW, SIZE, CANCEL, COMPRESSION = 0, 1, 3, 6, 8, 9
CLOSED, OPEN, IDLE, PUSHED = 1, 3, 5, 2  # streams of `connection`


def number(value: int) -> bytes:
    """Four bytes."""
    return value.to_bytes(4, "big")


def setting(code: int, value: int) -> bytes:
    """One setting."""
    return code.to_bytes(2, "big") + number(value)


def connection() -> tuple[Http2, Stream]:
    """A connection with a stream that is over, and one under way that has nothing yet."""
    one = opened()
    over = one.request(BLOCK, b"x")
    one.receive(headers_frame(CLOSED, flags=END_STREAM))
    assert over.done
    stream = one.request(BLOCK, b"x")
    assert stream.id == OPEN
    take(one)
    return one, stream


def shut(one: Http2) -> tuple[int, str]:
    """The code and the reason with which we have ended a connection."""
    (last,) = sent(one)[-1:]
    assert isinstance(last, GoAwayFrame)
    assert last.last_stream_id == 0
    assert one.closed is not None
    return last.error_code, one.closed.text


# ---------------------------------------------------------------- what ends the connection

BEGUN = frame(HEADERS, 0, OPEN, encode(RESPONSE)[:3])  # a block that a continuation must end

VIOLATIONS = {
    "data on no stream": (frame(DATA, 0, 0, b"x"), PROTOCOL, "stream 0 was never opened"),
    "data on an idle stream": (frame(DATA, 0, IDLE, b"x"), PROTOCOL, "stream 5 was never opened"),
    "data on a pushed stream": (frame(DATA, 0, PUSHED, b""), PROTOCOL, "stream 2 was never opened"),
    "data without its padding": (frame(DATA, PADDED, OPEN), PROTOCOL, "more padding"),
    "data all padding and more": (frame(DATA, PADDED, OPEN, b"\2x"), PROTOCOL, "more padding"),
    "padding too long on a closed one": (frame(DATA, PADDED, CLOSED, b"\x09"), PROTOCOL, "padding"),
    "headers on no stream": (headers_frame(0), PROTOCOL, "stream 0 was never opened"),
    "headers on an idle stream": (headers_frame(IDLE), PROTOCOL, "stream 5 was never opened"),
    "headers on a pushed stream": (headers_frame(PUSHED), PROTOCOL, "stream 2 was never opened"),
    "headers without their padding": (
        frame(HEADERS, END_HEADERS | PADDED, OPEN),
        PROTOCOL,
        "more padding than there is payload",
    ),
    "headers of padding only": (
        frame(HEADERS, END_HEADERS | PADDED, OPEN, b"\x05four"),
        PROTOCOL,
        "more padding than there is payload",
    ),
    "headers without their priority": (
        frame(HEADERS, END_HEADERS | HAS_PRIORITY, OPEN, b"four"),
        SIZE,
        "a header block without its priority",
    ),
    "headers whose padding is their priority": (
        frame(HEADERS, END_HEADERS | HAS_PRIORITY | PADDED, OPEN, b"\x01four!"),
        SIZE,
        "a header block without its priority",
    ),
    "headers that end in the middle": (
        frame(HEADERS, END_HEADERS, OPEN, encode(RESPONSE)[:-1]),
        COMPRESSION,
        "unreadable headers: HPACKDecodingError",
    ),
    "headers from the dynamic table": (
        frame(HEADERS, END_HEADERS, OPEN, b"\xbe"),
        COMPRESSION,
        "unreadable headers: InvalidTableIndex",
    ),
    "name from the dynamic table": (
        frame(HEADERS, END_HEADERS, OPEN, b"\x7e\x01x"),
        COMPRESSION,
        "unreadable headers: InvalidTableIndex",
    ),
    "index 0": (frame(HEADERS, END_HEADERS, OPEN, b"\x80"), COMPRESSION, "InvalidTableIndex"),
    "a header table after all": (
        frame(HEADERS, END_HEADERS, OPEN, b"\x21\x88"),
        COMPRESSION,
        "unreadable headers: InvalidTableSizeError",
    ),
    "an endless number": (
        frame(HEADERS, END_HEADERS, OPEN, b"\x00\x7f" + b"\xff" * 10_000),
        COMPRESSION,
        "unreadable headers: HPACKDecodingError",
    ),
    "bad Huffman code": (
        frame(HEADERS, END_HEADERS, OPEN, b"\x00\x84\xff\xff\xff\xff\x00"),
        COMPRESSION,
        "unreadable headers: HPACKDecodingError",
    ),
    "a list far larger than its block": (
        frame(HEADERS, END_HEADERS, OPEN, b"\x88" * 2_000),
        COMPRESSION,
        "unreadable headers: OversizedHeaderListError",
    ),
    "unreadable headers of a closed stream": (
        frame(HEADERS, END_HEADERS, CLOSED, b"\xbe"),
        COMPRESSION,
        "unreadable headers",
    ),
    "priority of no stream": (frame(PRIORITY, 0, 0, b"5byte"), PROTOCOL, "PRIORITY of no stream"),
    "priority of the wrong size": (frame(PRIORITY, 0, OPEN, b"4byt"), SIZE, "malformed PRIORITY"),
    "reset of no stream": (frame(RST_STREAM, 0, 0, number(8)), PROTOCOL, "stream 0 was never"),
    "reset of an idle stream": (frame(RST_STREAM, 0, IDLE, number(8)), PROTOCOL, "stream 5 was"),
    "reset that is short": (frame(RST_STREAM, 0, OPEN, b"123"), SIZE, "a frame of the wrong size"),
    "reset that is long": (frame(RST_STREAM, 0, OPEN, b"12345"), SIZE, "a frame of the wrong size"),
    "settings on a stream": (frame(SETTINGS, 0, OPEN), PROTOCOL, "malformed SETTINGS"),
    "settings of the wrong size": (frame(SETTINGS, 0, 0, b"x" * 7), SIZE, "malformed SETTINGS"),
    "acknowledgement that sets": (
        frame(SETTINGS, ACK, 0, setting(3, 1)),
        SIZE,
        "malformed SETTINGS",
    ),
    "window too large": (
        frame(SETTINGS, 0, 0, setting(4, MAX_WINDOW + 1)),
        FLOW,
        "INITIAL_WINDOW_SIZE 2147483648",
    ),
    "window of a stream too large": (
        frame(WINDOW_UPDATE, 0, OPEN, number(100)) + frame(SETTINGS, 0, 0, setting(4, MAX_WINDOW)),
        FLOW,
        "a stream's window is too large",
    ),
    "frames too small": (
        frame(SETTINGS, 0, 0, setting(5, 16_383)),
        PROTOCOL,
        "MAX_FRAME_SIZE 16383",
    ),
    "frames too large": (
        frame(SETTINGS, 0, 0, setting(5, 2**24)),
        PROTOCOL,
        "MAX_FRAME_SIZE 16777216",
    ),
    "push": (frame(PUSH_PROMISE, END_HEADERS, OPEN, number(2)), PROTOCOL, "a push, which we do"),
    "ping on a stream": (frame(PING, 0, OPEN, b"12345678"), PROTOCOL, "malformed PING"),
    "ping of the wrong size": (frame(PING, 0, 0, b"1234567"), SIZE, "malformed PING"),
    "pong of the wrong size": (frame(PING, ACK, 0, b"123456789"), SIZE, "malformed PING"),
    "goaway on a stream": (frame(GOAWAY, 0, OPEN, bytes(8)), PROTOCOL, "malformed GOAWAY"),
    "goaway that is short": (frame(GOAWAY, 0, 0, bytes(7)), SIZE, "malformed GOAWAY"),
    "update of the wrong size": (frame(WINDOW_UPDATE, 0, 0, b"123"), SIZE, "wrong size"),
    "update by nothing": (frame(WINDOW_UPDATE, 0, 0, bytes(4)), PROTOCOL, "WINDOW_UPDATE by 0"),
    "update of an idle stream": (
        frame(WINDOW_UPDATE, 0, IDLE, number(1)),
        PROTOCOL,
        "stream 5 was never opened",
    ),
    "update of a pushed stream": (
        frame(WINDOW_UPDATE, 0, PUSHED, number(1)),
        PROTOCOL,
        "stream 2 was never opened",
    ),
    "window of the connection too large": (
        frame(WINDOW_UPDATE, 0, 0, number(MAX_WINDOW - 65_000)),
        FLOW,
        "WINDOW_UPDATE by 2147418647",
    ),
    "continuation of nothing": (
        frame(CONTINUATION, END_HEADERS, OPEN, b"\x88"),
        PROTOCOL,
        "a continuation of nothing",
    ),
    "continuation after its end": (
        headers_frame(OPEN) + frame(CONTINUATION, END_HEADERS, OPEN, b"\x88"),
        PROTOCOL,
        "a continuation of nothing",
    ),
    "continuation of another stream": (
        BEGUN + frame(CONTINUATION, END_HEADERS, CLOSED, b""),
        PROTOCOL,
        "a continuation of nothing",
    ),
    "endless empty continuations": (
        BEGUN + frame(CONTINUATION, 0, OPEN) * 65,
        PROTOCOL,
        "a header block that is too large",
    ),
    "endless continuations": (
        BEGUN + frame(CONTINUATION, 0, OPEN, bytes(16_384)) * 4,
        PROTOCOL,
        "a header block that is too large",
    ),
    "a frame that is too large": (
        (16_385).to_bytes(3, "big") + bytes((DATA, 0)) + number(OPEN),
        SIZE,
        "a frame of 16385 bytes",
    ),
    "a frame of an unknown type that is too large": (
        (2**24 - 1).to_bytes(3, "big") + bytes((99, 0)) + number(OPEN),
        SIZE,
        "a frame of 16777215 bytes",
    ),
}


@pytest.mark.parametrize("size", [10**9, 1], ids=["whole", "bytewise"])
@pytest.mark.parametrize("name", VIOLATIONS)
def test_broken_rules_of_the_connection(name: str, size: int) -> None:
    """GOAWAY with the right code; all that is under way fails, what waits was not processed."""
    data, code, text = VIOLATIONS[name]
    one, stream = connection()
    one._max_streams = 1
    waiting = one.request(BLOCK)
    touched: list[Stream] = []
    for at in range(0, len(data), size):
        touched += one.receive(data[at : at + size])

    found = shut(one)
    assert found[0] == code
    assert text in found[1]
    assert len(found[1]) < 100
    assert stream.failure == Http2Failure(found[1])
    assert waiting.failure == Http2Failure(found[1], processed=False)
    assert {stream, waiting} <= set(touched)
    assert (one.streams, one._input, one._block) == ({}, b"", None)
    assert one.receive(frame(PING, 0, 0, bytes(8))) == []
    assert sent(one) == []


@pytest.mark.parametrize("kind", [*range(9), 99])
def test_interrupted_header_block(kind: int) -> None:
    """Nothing but CONTINUATION may come, not even a frame of an unknown type."""
    one, _ = connection()
    one.receive(BEGUN)
    assert one.closed is None
    one.receive(frame(kind, 0, OPEN, bytes(8)))
    assert shut(one) == (PROTOCOL, "a header block was interrupted")


def test_frames_before_a_broken_rule_count() -> None:
    """However they were cut into segments."""
    one, stream = connection()
    data = headers_frame(OPEN, flags=END_STREAM) + frame(PING, 0, 0, b"short")
    assert one.receive(data) == [stream]
    assert stream.failure is None
    assert one.closed is not None


def test_header_list_larger_than_we_accept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that we would accept can decode to more than that."""
    monkeypatch.setattr(http2_headers, "MAX_HEADER_BLOCK", 100)
    one, _ = connection()
    one.receive(headers_frame(OPEN, [(":status", "200"), ("x", "y" * 70)]))
    assert shut(one) == (COMPRESSION, "unreadable headers: OversizedHeaderListError")


# ---------------------------------------------------------------- what ends a stream

NO_HEADERS_YET = "data came before headers"
INTERIM = headers_frame(OPEN, [(":status", "100")])

FAULTS = {
    "data before headers": (frame(DATA, 0, OPEN, b"x"), PROTOCOL, NO_HEADERS_YET),
    "an end before headers": (frame(DATA, END_STREAM, OPEN), PROTOCOL, NO_HEADERS_YET),
    "data after interim headers": (INTERIM + frame(DATA, 0, OPEN, b""), PROTOCOL, NO_HEADERS_YET),
    "interim headers that end": (
        headers_frame(OPEN, [(":status", "100")], END_STREAM),
        PROTOCOL,
        "an interim response ended the stream",
    ),
    "a second header block": (
        headers_frame(OPEN) * 2,
        PROTOCOL,
        "a second header block within a response",
    ),
    "an interim response within a response": (
        headers_frame(OPEN) + INTERIM,
        PROTOCOL,
        "a second header block within a response",
    ),
    "update by nothing": (
        frame(WINDOW_UPDATE, 0, OPEN, bytes(4)),
        PROTOCOL,
        "WINDOW_UPDATE by 0",
    ),
    "window too large": (
        frame(WINDOW_UPDATE, 0, OPEN, number(MAX_WINDOW)),
        FLOW,
        "WINDOW_UPDATE by 2147483647",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_broken_rules_of_a_stream(name: str) -> None:
    """RST_STREAM with the right code; the connection and its other streams go on."""
    data, code, text = FAULTS[name]
    one, stream = connection()
    other = one.request(BLOCK, b"x")
    take(one)
    assert one.receive(data) == [stream]

    (reset,) = sent(one)
    assert isinstance(reset, RstStreamFrame)
    assert (reset.stream_id, reset.error_code) == (OPEN, code)
    assert stream.done
    assert stream.failure == Http2Failure(text)
    assert one.receive(headers_frame(OPEN, flags=END_STREAM)) == []
    assert one.receive(headers_frame(other.id, flags=END_STREAM)) == [other]
    assert other.failure is None
    assert one.closed is None


def test_response_larger_than_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call is cancelled; a message that is just as large passes."""
    monkeypatch.setattr(http2_streams, "MAX_DATA", 10)
    one, stream = connection()
    other = one.request(BLOCK, b"x")
    take(one)
    one.receive(headers_frame(OPEN) + frame(DATA, 0, OPEN, b"x" * 10))
    assert not stream.done
    one.receive(frame(DATA, 0, OPEN, b"x"))
    assert stream.failure == Http2Failure(TOO_LARGE)
    (reset,) = sent(one)
    assert isinstance(reset, RstStreamFrame)
    assert reset.error_code == CANCEL

    end = headers_frame(other.id, TRAILERS, END_STREAM)
    one.receive(headers_frame(other.id) + frame(DATA, 0, other.id, b"y" * 10) + end)
    assert (other.failure, bytes(other.data)) == (None, b"y" * 10)


# ---------------------------------------------------------------- what is left aside

HARMLESS = {
    "nothing": b"",
    "data of a closed stream": frame(DATA, 0, CLOSED, b"late"),
    "padded data of a closed stream": frame(DATA, PADDED, CLOSED, b"\x03late"),
    "headers of a closed stream": headers_frame(CLOSED),
    "trailers of a closed stream": headers_frame(CLOSED, TRAILERS, END_STREAM),
    "reset of a closed stream": frame(RST_STREAM, 0, CLOSED, number(NO_ERROR)),
    "update of a closed stream": frame(WINDOW_UPDATE, 0, CLOSED, bytes(4)),
    "priority": frame(PRIORITY, 0, OPEN, b"5byte") + frame(PRIORITY, 0, IDLE, b"5byte"),
    "unknown types": b"".join(frame(kind, 0xFF, kind, b"?") for kind in range(10, 256)),
    "acknowledged settings": frame(SETTINGS, ACK, 0),
    "pong that was not asked for": frame(PING, ACK, 0, b"etcdsem!"),
    "the reserved bit": frame(DATA, 0, 1 << 31 | CLOSED, b"x"),
    "undefined flags": frame(RST_STREAM, 0xFF, CLOSED, number(NO_ERROR)),
    "interim headers": INTERIM,
}


@pytest.mark.parametrize("name", HARMLESS)
def test_frames_that_change_nothing(name: str) -> None:
    """They are no answer to anything, and get none."""
    one, stream = connection()
    assert one.receive(HARMLESS[name]) == []
    assert sent(one) == []
    assert one.closed is None
    assert one.receive(headers_frame(OPEN, TRAILERS, END_STREAM)) == [stream]
    assert stream.trailers == OK


def test_settings_that_we_do_not_know() -> None:
    """They are acknowledged and left aside; so are those that bind a server's pushes."""
    one, _ = connection()
    one.receive(frame(SETTINGS, 0, 0, setting(2, 0) + setting(6, 10) + setting(0xABCD, 7)))
    (ack,) = sent(one)
    assert isinstance(ack, SettingsFrame)
    assert set(ack.flags) == {"ACK"}


def test_unknown_frame_in_small_pieces() -> None:
    """It is skipped as a whole."""
    one, stream = connection()
    for byte in frame(77, 0, OPEN, bytes(300)) + headers_frame(OPEN, TRAILERS, END_STREAM):
        one.receive(bytes((byte,)))
    assert stream.trailers == OK


@pytest.mark.parametrize("flags", [0, PADDED, HAS_PRIORITY, PADDED | HAS_PRIORITY])
@pytest.mark.parametrize("parts", [1, 2, 64])
def test_header_block_in_parts(flags: int, parts: int) -> None:
    """With what may come before and after the block in its first frame."""
    block = encode([*RESPONSE, ("x", "y" * 1_000)])
    size = -(-len(block) // parts)
    pieces = [block[at : at + size] for at in range(0, len(block), size)]
    first = b"\x04" * bool(flags & PADDED) + b"prior" * bool(flags & HAS_PRIORITY) + pieces[0]
    flags |= END_STREAM | END_HEADERS * (parts == 1)
    data = frame(HEADERS, flags, OPEN, first + b"0123" * bool(flags & PADDED))
    for at, piece in enumerate(pieces[1:], 2):
        data += frame(CONTINUATION, END_HEADERS * (at == len(pieces)), OPEN, piece)

    one, stream = connection()
    assert one.receive(data) == [stream]
    assert stream.headers is not None
    assert stream.headers[b"x"] == b"y" * 1_000
    assert stream.done
    assert stream.failure is None


def test_many_header_blocks_in_parts() -> None:
    """Continuations are counted for each block; after the last of one, other frames may come."""
    one = opened()
    block = encode(RESPONSE)
    for _ in range(100):
        stream = one.request(BLOCK)
        one.receive(frame(HEADERS, END_STREAM, stream.id, block[:2]))
        one.receive(frame(CONTINUATION, END_HEADERS, stream.id, block[2:]))
        assert one.receive(frame(PRIORITY, 0, stream.id, b"5byte")) == []
        assert stream.headers == {k.encode(): v.encode() for k, v in RESPONSE}
    assert one.closed is None


def test_priority_of_an_empty_block() -> None:
    """Five bytes are enough."""
    one, stream = connection()
    one.receive(headers_frame(OPEN))
    one.receive(frame(HEADERS, END_HEADERS | END_STREAM | HAS_PRIORITY, OPEN, b"prior"))
    assert (one.closed, stream.failure, stream.trailers) == (None, None, {})


def test_windows_as_large_as_they_may_be() -> None:
    """2^31 - 1 bytes, by updates or by SETTINGS; one more is too many."""
    one = opened()
    stream = one.request(BLOCK, last=False)
    for number_of in (0, stream.id):
        one.receive(frame(WINDOW_UPDATE, 0, number_of, number(MAX_WINDOW - 65_535)))
    one.receive(frame(SETTINGS, 0, 0, setting(4, 65_534)))
    one.receive(frame(SETTINGS, 0, 0, setting(4, 65_535)))
    assert (one.closed, stream.failure) == (None, None)
    one.receive(frame(SETTINGS, 0, 0, setting(4, 65_536)))
    assert shut(one) == (FLOW, "a stream's window is too large")

    one = opened((4, MAX_WINDOW))
    stream = one.request(BLOCK)
    one.receive(frame(WINDOW_UPDATE, 0, stream.id, number(1)))
    assert stream.failure == Http2Failure("WINDOW_UPDATE by 1")
    one.receive(frame(WINDOW_UPDATE, 0, 0, number(MAX_WINDOW - 65_535)))
    one.receive(frame(WINDOW_UPDATE, 0, 0, number(1)))
    assert shut(one) == (FLOW, "WINDOW_UPDATE by 1")


@pytest.mark.parametrize("how", ["no body", "a body", "an end later", "an end alone later"])
def test_nothing_is_said_when_both_sides_have_ended(how: str) -> None:
    """RST_STREAM is for a server that ended before we did."""
    one = opened()
    stream = one.request(BLOCK, b"x" * (how != "no body"), last="later" not in how)
    if "later" in how:
        one.send(stream, b"" if "alone" in how else b"end", last=True)
    assert sum("END_STREAM" in each.flags for each in sent(one)) == 1
    one.receive(headers_frame(1, TRAILERS, END_STREAM))
    assert stream.done
    assert sent(one) == []


def test_empty_header_block() -> None:
    """As trailers it is a list of nothing."""
    one, stream = connection()
    one.receive(headers_frame(OPEN) + headers_frame(OPEN, [], END_STREAM))
    assert (stream.failure, stream.trailers) == (None, {})


# ---------------------------------------------------------------- floods


def test_pings_are_answered_in_order_when_we_like() -> None:
    """The answers wait for `acknowledge`."""
    one, _ = connection()
    one.receive(b"".join(frame(PING, 0, 0, at.to_bytes(8, "big")) for at in range(1_000)))
    assert not one.outgoing
    assert one.pinged
    one.acknowledge()
    assert not one.pinged
    answers = sent(one)
    assert all(isinstance(answer, PingFrame) and set(answer.flags) == {"ACK"} for answer in answers)
    assert [int.from_bytes(_opaque(one), "big") for one in answers] == list(range(1_000))
    one.acknowledge()
    assert not one.outgoing


def test_ping_flood() -> None:
    """More PINGs than anybody needs end the connection."""
    one, _ = connection()
    one.receive(frame(PING, 0, 0, b"12345678") * 1_001)
    assert one.closed is not None
    assert "a flood of PINGs" in one.closed.text


def _opaque(answer: Frame) -> bytes:
    assert isinstance(answer, PingFrame)
    return answer.opaque_data


def test_settings_flood_is_acknowledged() -> None:
    """Each of them once."""
    one, _ = connection()
    one.receive(frame(SETTINGS, 0, 0, setting(3, 5)) * 1_000)
    assert len(sent(one)) == 1_000


@pytest.mark.parametrize(
    "flood",
    [
        frame(DATA, 0, OPEN),
        frame(PRIORITY, 0, OPEN, b"5byte"),
        frame(WINDOW_UPDATE, 0, CLOSED, number(1)),
        frame(RST_STREAM, 0, CLOSED, number(0)),
        headers_frame(CLOSED, [(":status", "200"), ("x", "y" * 600)]),
        frame(99, 0, 0, b"x"),
        frame(PING, ACK, 0, bytes(8)),
        frame(GOAWAY, 0, 0, number(MAX_WINDOW) + number(0) + b"soon"),
    ],
    ids=range(8),
)
def test_floods_of_what_needs_no_answer_leave_nothing(flood: bytes) -> None:
    """Neither kept nor answered."""
    one, stream = connection()
    one.receive(headers_frame(OPEN))
    for _ in range(1_000):
        assert set(one.receive(flood)) <= {stream}
    assert len(one.outgoing) == 0
    assert (one._input, one._block, one._touched) == (b"", None, {})
    assert stream.data == b""


def test_window_updates_byte_by_byte_of_a_large_body() -> None:
    """Each costs what it allows to be sent, not what is left to be sent."""
    one = opened((4, 0))
    stream = one.request(BLOCK, b"x" * 10_000_000)
    take(one)
    for _ in range(20_000):
        one.receive(frame(WINDOW_UPDATE, 0, 1, number(1)))
    frames = sent(one)
    assert len(frames) == 20_000
    assert len(stream._unsent) == 9_980_000


# ---------------------------------------------------------------- how a peer begins


@pytest.mark.parametrize("size", [1, 3, 10**9])
@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\n", "HTTP/1.1 400 Bad Request"),
        (b"HTTP/1.0 404 Not Found\r\n\r\n", "HTTP/1.0 404 Not Found"),
        (b"HTTP/1.1 200 " + b"x" * 1_000, "HTTP/1.1 200 " + "x" * 67),
        (b"HTTP\xff\r\n", "HTTP\ufffd"),
        (b"\x15\x03\x01\x00\x02\x02\x46", "it answers in TLS"),
        (b"\x15\x03\x03\x00\x02\x02\x46", "it answers in TLS"),
    ],
    ids=range(6),
)
def test_peers_of_other_kinds(data: bytes, text: str, size: int) -> None:
    """What they seem to be is said, in whatever pieces it comes."""
    one = Http2()
    stream = one.request(BLOCK, b"x")
    for at in range(0, len(data), size):
        one.receive(data[at : at + size])
    assert shut(one) == (PROTOCOL, f"not an HTTP/2 server: {text}")
    assert stream.failure == Http2Failure(f"not an HTTP/2 server: {text}")
    assert not one.ready


@pytest.mark.parametrize("size", [1, 10**9])
@pytest.mark.parametrize(
    "data",
    [
        b"220 mail.example.org ESMTP",
        b"SSH-2.0-OpenSSH_9.2",
        b"-ERR unknown command 'PRI'\r\n",
        b"\x00\x00\x00\x05\x10",
        b"abc\x04\x00",
        frame(SETTINGS, ACK, 0),
        frame(PING, 0, 0, bytes(8)),
        frame(GOAWAY, 0, 0, bytes(8)),
        headers_frame(1),
        frame(99, 0, 0),
    ],
    ids=range(10),
)
def test_garbage(data: bytes, size: int) -> None:
    """A server begins with SETTINGS. What came instead is shown, as far as it is known by then."""
    one = Http2()
    for at in range(0, len(data), size):
        one.receive(data[at : at + size])
    code, text = shut(one)
    assert code == PROTOCOL
    start = repr(data[: min(24, max(size, 5))])
    assert text == f"not an HTTP/2 server: it sent {start}"


@pytest.mark.parametrize("data", [b"HTTP/1.1 400 Bad", b"\x15", b"SSH-", b"\x00\x00\x00\x04\x00"])
def test_too_little_to_tell(data: bytes) -> None:
    """Nothing is said before more comes, or the connection is lost."""
    one = Http2()
    stream = one.request(BLOCK)
    assert one.receive(data) == []
    assert one.closed is None
    assert not one.ready
    assert one.lost("cut off") == [stream]


def test_first_settings_may_be_many() -> None:
    """As many as fit into a frame."""
    one = Http2()
    one.receive(frame(SETTINGS, 0, 0, setting(0xF000, 1) * (16_384 // 6)))
    assert one.ready


def test_ready_with_the_first_settings() -> None:
    """Not before their last byte."""
    one = Http2()
    data = frame(SETTINGS, 0, 0, setting(3, 250))
    for byte in data[:-1]:
        one.receive(bytes((byte,)))
        assert not one.ready
    one.receive(data[-1:])
    assert one.ready


def test_server_that_goes_away_at_once() -> None:
    """SETTINGS and GOAWAY: connected, but of no use for requests."""
    one = Http2()
    stream = one.request(BLOCK)
    goaway = frame(GOAWAY, 0, 0, number(0) + number(11) + b"too_many_pings")
    assert one.receive(frame(SETTINGS, 0, 0) + goaway) == [stream]
    text = "the server is closing the connection: ENHANCE_YOUR_CALM too_many_pings"
    assert stream.failure == Http2Failure(text, processed=False)
    assert one.retired
    assert one.ready


def test_going_away_twice() -> None:
    """As grpc-go does it: first with the largest number, then with the last stream it took."""
    one, stream = connection()
    one.receive(frame(GOAWAY, 0, 0, number(MAX_WINDOW) + number(0)))
    assert one.retired
    assert not stream.done
    assert one.receive(frame(GOAWAY, 0, 0, number(CLOSED) + number(0))) == [stream]
    assert stream.failure is not None
    assert not stream.failure.processed


def test_going_away_from_a_stream_that_was_answered() -> None:
    """It has been processed, whatever the server says."""
    one, stream = connection()
    one.receive(headers_frame(OPEN) + frame(GOAWAY, 0, 0, number(CLOSED) + number(0)))
    assert stream.failure is not None
    assert stream.failure.processed


@pytest.mark.parametrize("padding", [b"", bytes(254)], ids=["plain", "padded"])
def test_our_windows_are_opened_when_half_of_them_is_used(padding: bytes) -> None:
    """By all that came in DATA frames, padding too, of whatever streams."""
    one, stream = connection()
    one.receive(headers_frame(OPEN))
    if padding:
        data = frame(DATA, PADDED, OPEN, b"\xfe" + bytes(16_383 - len(padding)) + padding)
    else:
        data = frame(DATA, 0, OPEN, bytes(16_384))
    half = WINDOW // 2 // 16_384
    one.receive(data * half)
    assert sent(one) == []
    assert len(stream.data) == (16_384 - len(padding and padding + b"?")) * half
    one.receive(data)
    updates = [one for one in sent(one) if isinstance(one, WindowUpdateFrame)]
    assert [(one.stream_id, one.window_increment) for one in updates] == [
        (0, (half + 1) * 16_384),
        (OPEN, (half + 1) * 16_384),
    ]
    one.receive(data * half)  # both begin to count anew
    assert sent(one) == []
    one.receive(data)
    assert [one.stream_id for one in sent(one)] == [0, OPEN]
    one.cancel(stream)
    take(one)
    one.receive(data * (half + 1))
    (update,) = sent(one)
    assert update.stream_id == 0
