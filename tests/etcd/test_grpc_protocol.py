"""gRPC on HTTP/2: headers as another HPACK decodes them, messages, and what a response means."""

from __future__ import annotations

import math

import pytest
from hpack import Decoder

from etcdsem.etcd.grpc_protocol import (
    CODES,
    NOT_PROCESSED,
    RpcError,
    error_of,
    frame_message,
    header_block,
    messages,
    response,
)
from etcdsem.etcd.http2_headers import Headers
from etcdsem.etcd.http2_streams import TOO_LARGE, Http2Failure, Stream

PATH, HOST = "/etcdserverpb.KV/Txn", "etcd.example.org:2379"
HEADERS = {b":status": b"200", b"content-type": b"application/grpc"}


def decoded(block: bytes) -> list[tuple[str, str]]:
    """The headers in a block, by hyper's decoder."""
    headers = Decoder(max_header_list_size=100_000).decode(block, raw=True)
    return [(bytes(name).decode(), bytes(value).decode()) for name, value in headers]


def ended(
    data: bytes = b"",
    trailers: Headers | None = None,
    headers: Headers | None = None,
    failure: Http2Failure | None = None,
) -> Stream:
    """A stream that is done."""
    stream = Stream(b"", b"", last=True)
    stream.headers = HEADERS if headers is None else headers
    stream.data += data
    stream.trailers = {b"grpc-status": b"0"} if trailers is None else trailers
    stream.failure = failure
    stream.done = True
    return stream


def code_and_details(stream: Stream) -> tuple[str, str]:
    """What a stream failed with."""
    error = error_of(stream)
    assert error is not None
    with pytest.raises(RpcError) as caught:
        response(stream)
    assert (caught.value.code, caught.value.details) == (error.code, error.details)
    assert str(error) == f"{error.code}: {error.details}"
    return error.code, error.details


# ---------------------------------------------------------------- request headers


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_headers_of_a_call(scheme: str) -> None:
    """Exactly these; what begins with a colon comes first."""
    assert decoded(header_block(PATH, HOST, scheme, None)) == [
        (":method", "POST"),
        (":scheme", scheme),
        (":path", PATH),
        (":authority", HOST),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("hasleader", "true"),
    ]


@pytest.mark.parametrize("size", [1, 10, 125, 126, 127, 128, 254, 255, 256, 1_000, 16_511, 70_000])
def test_tokens_of_any_length(size: int) -> None:
    """Around each length whose encoding is a byte longer."""
    token = "".join(chr(ord("!") + at % 90) for at in range(size))
    headers = decoded(header_block(PATH, HOST, "https", token, 5))
    assert headers[-2:] == [("grpc-timeout", "5000m"), ("token", token)]


def test_empty_token_is_none() -> None:
    """A server without users gives none."""
    assert header_block(PATH, HOST, "http", "") == header_block(PATH, HOST, "http", None)


@pytest.mark.parametrize("size", [1, 126, 127, 128, 300])
def test_paths_and_names_of_any_length(size: int) -> None:
    """They are encoded as tokens are."""
    headers = dict(decoded(header_block("/" + "p" * size, "h" * size, "http", None)))
    assert headers[":path"] == "/" + "p" * size
    assert headers[":authority"] == "h" * size


def test_names_beyond_ascii() -> None:
    """In UTF-8; a server may refuse them."""
    headers = dict(decoded(header_block(PATH, "etcd.münchen", "http", None)))
    assert headers[":authority"] == "etcd.münchen"


@pytest.mark.parametrize(
    ("timeout", "header"),
    [
        (None, None),
        (-5.0, "100m"),
        (0.0, "100m"),
        (0.000_001, "100m"),
        (0.1, "100m"),
        (0.100_001, "200m"),
        (0.5, "500m"),
        (1, "1000m"),
        (2.95, "3000m"),
        (3_600.0, "3600000m"),
        (99_999.0, "99999000m"),
        (99_999.5, None),
        (1e12, None),
        (math.inf, None),
    ],
)
def test_timeouts(timeout: float | None, header: str | None) -> None:
    """Rounded up to tenths of a second; at most eight digits, else there is none."""
    headers = dict(decoded(header_block(PATH, HOST, "http", None, timeout)))
    assert headers.get("grpc-timeout") == header


def test_headers_leave_no_trace_in_a_decoder() -> None:
    """Nothing is indexed, tokens least of all (RFC 7541, 7.1.3)."""
    decoder = Decoder()
    for token in ("a", "b", "a"):
        headers = decoder.decode(header_block(PATH, HOST, "http", token, 1.5))
        assert [one.indexable for one in headers] == [True] * 2 + [False] * 7
    assert len(decoder.header_table.dynamic_entries) == 0


# ---------------------------------------------------------------- messages


@pytest.mark.parametrize("size", [0, 1, 255, 256, 70_000])
def test_message_there_and_back(size: int) -> None:
    """Five bytes before the message: not compressed, and its length."""
    message = b"m" * size
    framed = frame_message(message)
    assert framed == b"\0" + size.to_bytes(4, "big") + message
    assert response(ended(framed)) == message


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"\0\0\0\0",
        frame_message(b"message")[:-1],
        frame_message(b"message") + b"x",
        frame_message(b"one") + frame_message(b"two"),
        frame_message(b"") * 2,
        b"\1" + frame_message(b"compressed")[1:],
        b"\0\xff\xff\xff\xff",
        b"\0\1\0\0\5five!",
    ],
)
def test_not_exactly_one_message(data: bytes) -> None:
    """A unary call that succeeded with none, a part of one, two, or a compressed one."""
    stream = ended(data)
    assert error_of(stream) is None
    with pytest.raises(RpcError, match="not exactly one message"):
        response(stream)


def test_messages_split_at_any_byte() -> None:
    """Each comes once, when its last byte is there; the rest stays."""
    data = frame_message(b"first") + frame_message(b"") + frame_message(b"third" * 50)
    for cut in range(len(data) + 1):
        stream = Stream(b"", b"", last=True)
        stream.data += data[:cut]
        found = messages(stream)
        stream.data += data[cut:]
        found += messages(stream)
        assert found == [b"first", b"", b"third" * 50]
        assert stream.data == b""


def test_messages_byte_by_byte() -> None:
    """As the slowest server sends them."""
    stream = Stream(b"", b"", last=True)
    found = []
    for byte in frame_message(b"one") + frame_message(b"two") + b"\0\0":
        stream.data.append(byte)
        found += messages(stream)
    assert found == [b"one", b"two"]
    assert stream.data == b"\0\0"


@pytest.mark.parametrize("flag", [1, 2, 255])
def test_compressed_message_in_a_stream(flag: int) -> None:
    """We did not offer to understand it."""
    stream = ended(bytes((flag, 0, 0, 0, 9)))
    with pytest.raises(RpcError, match="INTERNAL: a compressed message"):
        messages(stream)


# ---------------------------------------------------------------- what it ended with


@pytest.mark.parametrize("number", range(17))
def test_status(number: int) -> None:
    """Each of gRPC's codes, from trailers or from a response of trailers only."""
    trailers = {b"grpc-status": b"%d" % number, b"grpc-message": b"why"}
    for headers in (None, {**HEADERS, **trailers}):
        stream = ended(frame_message(b""), trailers if headers is None else headers, headers)
        if number:
            assert code_and_details(stream) == (CODES[number], "why")
        else:
            assert error_of(stream) is None
            assert response(stream) == b""


def test_codes_are_those_of_grpcio() -> None:
    """In their order."""
    grpc = pytest.importorskip("grpc")
    assert tuple(code.name for code in sorted(grpc.StatusCode, key=lambda one: one.value)) == CODES


@pytest.mark.parametrize(
    "status", [b"-1", b"17", b"99", b"OK", b"", b"0 ", b"00", b"1.0", b"\xb2", b"9" * 5_000]
)
def test_status_that_is_none(status: bytes) -> None:
    """It is a failure of unknown kind, never a success, and never a traceback."""
    trailers = {b"grpc-status": status, b"grpc-message": b"why"}
    code, details = code_and_details(ended(frame_message(b""), trailers))
    assert code == "UNKNOWN"
    assert details == f"grpc-status {status.decode('ascii', 'replace')}: why"


@pytest.mark.parametrize(
    ("message", "details"),
    [
        (b"", ""),
        (b"plain text, with a + and a ~", "plain text, with a + and a ~"),
        (b"100%25 of %0A%09it", "100% of \n\tit"),
        (b"%E2%82%AC%e2%82%ac", "€€"),
        (b"50% off %zz %", "50% off %zz %"),
        (b"%FF%E2%82", "\ufffd\ufffd"),
        ("süß".encode(), "süß"),
        (b"\xff", "\ufffd"),
    ],
)
def test_percent_encoded_messages(message: bytes, details: str) -> None:
    """A message that is badly encoded is shown as it is (gRPC: never an error)."""
    trailers = {b"grpc-status": b"5", b"grpc-message": message}
    assert code_and_details(ended(trailers=trailers)) == ("NOT_FOUND", details)


def test_status_without_a_message() -> None:
    """Servers leave an empty one out."""
    assert code_and_details(ended(trailers={b"grpc-status": b"8"})) == ("RESOURCE_EXHAUSTED", "")


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (b"400", "INTERNAL"),
        (b"401", "UNAUTHENTICATED"),
        (b"403", "PERMISSION_DENIED"),
        (b"404", "UNIMPLEMENTED"),
        (b"429", "UNAVAILABLE"),
        (b"502", "UNAVAILABLE"),
        (b"503", "UNAVAILABLE"),
        (b"504", "UNAVAILABLE"),
        (b"302", "UNKNOWN"),
        (b"500", "UNKNOWN"),
        (b"201", "UNKNOWN"),
        (b"2000", "UNKNOWN"),
        (b"", "UNKNOWN"),
        (b"\xff", "UNKNOWN"),
    ],
)
@pytest.mark.parametrize("trailers", [{}, {b"grpc-status": b"0"}, {b"x": b"y"}], ids=range(3))
def test_answers_of_proxies(status: bytes, code: str, trailers: Headers) -> None:
    """What is not 200 is no success, whatever else it says."""
    headers = {b":status": status, b"content-type": b"text/html"}
    found = code_and_details(ended(b"<html>", trailers, headers))
    shown = status.decode("ascii", "replace")
    assert found == (code, f"Received http2 header with http status {shown}")


def test_grpc_status_of_a_proxy_counts() -> None:
    """The status of HTTP is for responses without one of gRPC (http-grpc-status-mapping.md)."""
    headers = {b":status": b"503", b"grpc-status": b"16", b"grpc-message": b"log in"}
    assert code_and_details(ended(b"", headers, headers)) == ("UNAUTHENTICATED", "log in")


def test_web_page() -> None:
    """200, and nothing of gRPC: without trailers, and with others."""
    headers = {b":status": b"200", b"content-type": b"text/html; charset=utf-8"}
    stream = ended(b"<html>", {}, headers)
    text = "a response without a grpc-status, of content-type 'text/html; charset=utf-8'"
    assert code_and_details(stream) == ("UNKNOWN", text)
    stream.trailers = None
    assert code_and_details(stream) == ("UNKNOWN", text)


def test_no_headers_at_all() -> None:
    """It cannot be, and is no success."""
    stream = ended()
    stream.headers = None
    assert code_and_details(stream)[0] == "UNKNOWN"


@pytest.mark.parametrize(
    ("failure", "code", "details"),
    [
        (Http2Failure("cut off"), "UNAVAILABLE", "cut off"),
        (Http2Failure("refused", processed=False), NOT_PROCESSED, "refused"),
        (
            Http2Failure(TOO_LARGE),
            "RESOURCE_EXHAUSTED",
            f"Received message larger than max: {TOO_LARGE}",
        ),
    ],
)
def test_failures_of_the_connection(failure: Http2Failure, code: str, details: str) -> None:
    """They outweigh whatever had come by then."""
    stream = ended(frame_message(b"x"), failure=failure)
    assert code_and_details(stream) == (code, details)
