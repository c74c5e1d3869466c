"""When the client certificate ends, for `check --certificate-days`."""

from __future__ import annotations

import calendar
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


def end_of(path: str) -> float:
    """Return when the first certificate of a PEM file ends, as a Unix time.

    Raises:
        InvalidSetting: the file cannot be read, or contains no certificate.
    """
    try:
        text = Path(path).read_text()
        first = text[text.index("-----BEGIN CERTIFICATE-----") : text.index(_END) + len(_END)]
        return _not_after(ssl.PEM_cert_to_DER_cert(first))
    except (OSError, ValueError, IndexError) as error:
        raise InvalidSetting(f"the client certificate {path!r} cannot be read: {error}") from None


def _not_after(der: bytes) -> float:
    """RFC 5280, 4.1. Python's ssl module decodes only the certificate of a peer."""
    one = _field(der, _field(der, _field(der, 0).start).start)
    if one.tag == _VERSION:
        one = _field(der, one.end)
    for _ in ("serial number", "signature algorithm", "issuer"):
        one = _field(der, one.end)
    ends = _field(der, _field(der, one.start).end)  # of the validity, the second
    written = der[ends.start : ends.end].decode("ascii")
    if ends.tag == _UTC_TIME:
        written = ("20" if written < "50" else "19") + written
    return calendar.timegm(time.strptime(written, "%Y%m%d%H%M%SZ"))


def _field(der: bytes, start: int) -> _Field:
    length, content = der[start + 1], start + 2
    if length >= 0x80:  # the number of bytes that hold the length
        content += length - 0x80
        length = int.from_bytes(der[start + 2 : content], "big")
    return _Field(der[start], content, content + length)
