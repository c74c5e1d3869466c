"""Frames of HTTP/2 (RFC 9113): constants, limits, encoding, and what is common to reading them."""

from __future__ import annotations

import struct

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

FRAME = struct.Struct(">HBBBL")  # length (in two parts), type, flags, stream
SETTING = struct.Struct(">HL")
NUMBER = struct.Struct(">L")
TWO_NUMBERS = struct.Struct(">LL")


class Broken(Exception):
    """The peer violated the protocol of the connection."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def frame(kind: int, flags: int, stream: int, payload: bytes | memoryview = b"") -> bytes:
    """Encode a frame."""
    length = len(payload)
    return FRAME.pack(length >> 8, length & 0xFF, kind, flags, stream) + payload


START = (
    PREFACE
    + frame(
        SETTINGS,
        0,
        0,
        SETTING.pack(1, 0)  # HEADER_TABLE_SIZE
        + SETTING.pack(2, 0)  # ENABLE_PUSH
        + SETTING.pack(4, WINDOW)  # INITIAL_WINDOW_SIZE
        + SETTING.pack(6, MAX_HEADER_BLOCK),  # MAX_HEADER_LIST_SIZE
    )
    + frame(WINDOW_UPDATE, 0, 0, NUMBER.pack(WINDOW - 65_535))
)
NO_TABLE = b"\x20"  # "dynamic table size update" to 0 (RFC 7541, 6.3)
SETTINGS_ACK = frame(SETTINGS, ACK, 0)


def error_name(code: int) -> str:
    """The name of an error code."""
    return ERRORS[code] if code < len(ERRORS) else f"error {code}"


def malformed(name: str, number: int) -> Broken:
    """The error for a connection frame that is on a stream, or of the wrong size."""
    return Broken(PROTOCOL_ERROR if number else FRAME_SIZE_ERROR, f"malformed {name}")


def number_in(payload: bytes) -> int:
    """The number that a payload consists of. Raises Broken."""
    if len(payload) != 4:
        raise Broken(FRAME_SIZE_ERROR, "a frame of the wrong size")
    number: int = NUMBER.unpack(payload)[0]
    return number


def without_padding(payload: bytes) -> bytes:
    """The payload of a padded frame. Raises Broken."""
    if not payload or payload[0] >= len(payload):
        raise Broken(PROTOCOL_ERROR, "more padding than there is payload")
    return payload[1 : len(payload) - payload[0]]
