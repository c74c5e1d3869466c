"""When the client certificate ends, for `check --certificate-days`."""

from __future__ import annotations

import ssl
import time
from pathlib import Path
from typing import Final, NamedTuple

from etcdsem.errors import InvalidSetting

_VERSION: Final = 0xA0  # optional first field of a certificate
_UTC_TIME: Final = 0x17  # with a year of two digits; the other form has four
_END: Final = "-----END CERTIFICATE-----"


class _Field(NamedTuple):
    """An element of DER: its tag, where its content starts, and where it ends."""

    tag: int
    start: int
    end: int


def days_left(path: str) -> float:
    """Return the days until the first certificate of a PEM file ends; negative if it has ended.

    Raises:
        InvalidSetting: the file cannot be read, or contains no certificate.
    """
    try:
        text = Path(path).read_text()
        first = text[text.index("-----BEGIN CERTIFICATE-----") : text.index(_END) + len(_END)]
        ends = _not_after(ssl.PEM_cert_to_DER_cert(first))
    except (OSError, ValueError, IndexError) as error:
        raise InvalidSetting(f"the client certificate {path!r} cannot be read: {error}") from None
    return (ends - time.time()) / 86400


def _not_after(der: bytes) -> float:
    """When a certificate ends, as a Unix time: RFC 5280, 4.1. The ssl module of Python decodes only
    a peer's certificate.
    """
    certificate = _field(der, 0)
    one = _field(der, _field(der, certificate.start).start)
    if one.tag == _VERSION:
        one = _field(der, one.end)
    for _ in ("serial number", "signature algorithm", "issuer"):
        one = _field(der, one.end)
    validity = one
    ends = _field(der, _field(der, validity.start).end)
    written = der[ends.start : ends.end].decode("ascii")
    if ends.tag == _UTC_TIME:
        written = ("20" if written < "50" else "19") + written
    stamp = time.strptime(written, "%Y%m%d%H%M%SZ")
    return ssl.cert_time_to_seconds(time.strftime("%b %d %H:%M:%S %Y GMT", stamp))


def _field(der: bytes, start: int) -> _Field:
    length, content = der[start + 1], start + 2
    if length >= 0x80:  # the number of bytes that hold the length
        content += length - 0x80
        length = int.from_bytes(der[start + 2 : content], "big")
    return _Field(der[start], content, content + length)
