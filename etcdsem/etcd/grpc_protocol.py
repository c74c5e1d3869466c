"""gRPC on HTTP/2 (gRPC's PROTOCOL-HTTP2.md): request headers, message framing, status.

A failed call is an `RpcError`. Its code is a gRPC status, or one of two of our own for calls that
were certainly not applied: NOT_CONNECTED (nothing was sent), NOT_PROCESSED (the server says so).
"""

from __future__ import annotations

import math
import struct
from functools import lru_cache
from urllib.parse import unquote

from etcdsem.etcd.http2_headers import Headers
from etcdsem.etcd.http2_streams import TOO_LARGE, Http2Failure, Stream

CODES = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)
_OF_STATUS = {b"%d" % number: code for number, code in enumerate(CODES)}

NOT_CONNECTED, NOT_PROCESSED = "NOT_CONNECTED", "NOT_PROCESSED"

_OF_HTTP = {
    b"400": "INTERNAL",
    b"401": "UNAUTHENTICATED",
    b"403": "PERMISSION_DENIED",
    b"404": "UNIMPLEMENTED",
    b"429": "UNAVAILABLE",
    b"502": "UNAVAILABLE",
    b"503": "UNAVAILABLE",
    b"504": "UNAVAILABLE",
}
"""Status codes of a server that does not speak gRPC, for example a proxy (gRPC's
http-grpc-status-mapping.md)."""

_LONGEST = 99_999.0  # seconds, in the eight digits of a grpc-timeout
_PREFIX = struct.Struct(">BL")  # compressed?, length


class RpcError(Exception):
    """A call failed."""

    def __init__(self, code: str, details: str) -> None:
        super().__init__(f"{code}: {details}")
        self.code = code
        self.details = details


# ---------------------------------------------------------------- requests


def header_block(
    path: str, authority: str, scheme: str, token: str | None, timeout: float | None = None
) -> bytes:
    """The encoded headers of a call. `timeout`: seconds after which the server may give up; None,
    or more than the header can hold, means never.
    """
    tenths = 0 if timeout is None or timeout > _LONGEST else max(1, math.ceil(timeout * 10))
    return _header_block(path, authority, scheme, token, tenths)


@lru_cache(512)
def _header_block(path: str, authority: str, scheme: str, token: str | None, tenths: int) -> bytes:
    # Literals that are never indexed (RFC 7541, 6.2.3), so that blocks do not depend on each other.
    # Numbers refer to HPACK's static table.
    block = b"\x83" + (b"\x87" if scheme == "https" else b"\x86")  # :method POST, :scheme
    block += b"\x14" + _string(path)  # :path
    block += b"\x11" + _string(authority)  # :authority
    block += b"\x1f\x10" + _string("application/grpc")  # content-type
    block += _header("te", "trailers") + _header("hasleader", "true")
    if tenths:
        block += _header("grpc-timeout", f"{tenths * 100}m")
    return block + _header("token", token) if token else block


def _header(name: str, value: str) -> bytes:
    return b"\x10" + _string(name) + _string(value)


def _string(text: str) -> bytes:
    data = text.encode()
    size, length = len(data), b""
    if size >= 0x7F:
        size, length = size - 0x7F, b"\x7f"
        while size >= 0x80:
            length += bytes((size & 0x7F | 0x80,))
            size >>= 7
    return length + bytes((size,)) + data


def frame_message(message: bytes) -> bytes:
    """A message with the prefix that gRPC requires in a body."""
    return _PREFIX.pack(0, len(message)) + message


# ---------------------------------------------------------------- responses


def response(stream: Stream) -> bytes:
    """The message of a unary call that is done. Raises RpcError."""
    error = error_of(stream)
    if error is not None:
        raise error
    data = stream.data
    if len(data) < 5 or data[0] or len(data) != 5 + int.from_bytes(data[1:5], "big"):
        raise RpcError("INTERNAL", "Exception deserializing response: not exactly one message")
    return bytes(data[5:])


def messages(stream: Stream) -> list[bytes]:
    """Remove and return the complete messages in a stream's data. Raises RpcError."""
    data, at, found = stream.data, 0, []
    while len(data) - at >= 5:
        compressed, size = _PREFIX.unpack_from(data, at)
        if compressed:
            raise RpcError("INTERNAL", "a compressed message, which was not asked for")
        if len(data) - at - 5 < size:
            break
        found.append(bytes(data[at + 5 : at + 5 + size]))
        at += 5 + size
    del data[:at]
    return found


def error_of(stream: Stream) -> RpcError | None:
    """The error of a stream that is done; None for success."""
    if stream.failure is not None:
        return _broken(stream.failure)
    headers, trailers = stream.headers or {}, stream.trailers or {}
    status = headers.get(b":status", b"")
    if status != b"200" and trailers.get(b"grpc-status", b"0") == b"0":
        return RpcError(
            _OF_HTTP.get(status, "UNKNOWN"),
            f"Received http2 header with http status {status.decode('ascii', 'replace')}",
        )
    if b"grpc-status" not in trailers:
        kind = headers.get(b"content-type", b"").decode("ascii", "replace")
        return RpcError("UNKNOWN", f"a response without a grpc-status, of content-type {kind!r}")
    return _status(trailers)


def _status(trailers: Headers) -> RpcError | None:
    status = trailers[b"grpc-status"]
    if status == b"0":
        return None
    details = unquote(trailers.get(b"grpc-message", b"").decode("utf-8", "replace"))
    code = _OF_STATUS.get(status)
    if code is not None:
        return RpcError(code, details)
    return RpcError("UNKNOWN", f"grpc-status {status.decode('ascii', 'replace')}: {details}")


def _broken(failure: Http2Failure) -> RpcError:
    if not failure.processed:
        return RpcError(NOT_PROCESSED, failure.text)
    if failure.text == TOO_LARGE:
        return RpcError("RESOURCE_EXHAUSTED", f"Received message larger than max: {TOO_LARGE}")
    return RpcError("UNAVAILABLE", failure.text)
