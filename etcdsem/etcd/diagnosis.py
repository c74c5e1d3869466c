"""A table that explains why no connection was made, with advice on how to fix it.

1. A failure is an exception of `socket` or `ssl`, or, once bytes flow, a text of `http2`. For TLS,
   the first row whose text occurs in the exception's text, in lower case, applies.
2. `settings` means that the settings are wrong, and retrying is useless until they are changed.
"""

from __future__ import annotations

import socket
from typing import NamedTuple

from etcdsem.core.error_mapping import first_line
from etcdsem.etcd.http2 import NO_HTTP2


class Reason(NamedTuple):
    """Why an endpoint cannot be used."""

    text: str
    settings: bool = False


NO_NAME_SERVER = Reason("the name server does not answer")
SILENT = Reason("something accepts connections there but sends nothing")

_NOT_FOR = Reason(
    "TLS: etcd's certificate is not for the host of this endpoint; connect to a name or an address "
    "that the certificate lists (openssl x509 -noout -ext subjectAltName -in server.pem)",
    True,
)
_PLAIN = Reason("TLS: the server does not speak TLS; write http://", True)
_CLOSED = Reason(
    "TLS: the connection was closed in the handshake; if this etcd does not use TLS, write "
    "http:// and give no certificates"
)
_VERSION = Reason(
    "TLS: the server supports no version of TLS that we accept (1.2 or later); upgrade it", True
)
_CLIENT = Reason(
    "TLS: etcd wants a client certificate that it trusts, and ours is missing, expired, or signed "
    "by another authority; give one with cert and key (ETCDSEM_CERT, ETCDSEM_KEY)",
    True,
)
_TLS: tuple[tuple[str, Reason], ...] = (
    (
        "certificate has expired",
        Reason(
            "TLS: etcd's certificate, or that of its authority, has expired; it must be renewed "
            "(openssl x509 -noout -enddate -in server.pem)",
            True,
        ),
    ),
    ("not yet valid", Reason("TLS: etcd's certificate is not valid yet; check the clocks", True)),
    ("hostname mismatch", _NOT_FOR),
    ("ip address mismatch", _NOT_FOR),
    (
        "certificate_verify_failed",
        Reason(
            "TLS: etcd's certificate was not signed by an authority that we trust; give that "
            "authority's certificate with cacert (ETCDSEM_CACERT)",
            True,
        ),
    ),
    # OpenSSL's name for a peer that answers in plain text differs from release to release.
    ("wrong_version_number", _PLAIN),
    ("wrong version number", _PLAIN),
    ("record_layer_failure", _PLAIN),
    ("record layer failure", _PLAIN),
    ("http_request", _PLAIN),
    ("alert protocol version", _VERSION),
    ("unsupported_protocol", _VERSION),
    ("unsupported protocol", _VERSION),
    ("alert unrecognized name", _NOT_FOR),
    ("alert no application protocol", Reason("TLS: the server does not speak HTTP/2", True)),
    (
        "alert handshake failure",
        Reason(
            "TLS: the server accepts none of our ciphers, or wants a client certificate (cert and "
            "key)",
            True,
        ),
    ),
    # The alerts about a client's certificate: bad, required, expired, unknown ca, ...
    ("certificate", _CLIENT),
    ("alert unknown ca", _CLIENT),
    ("alert access denied", _CLIENT),
    ("alert decrypt error", _CLIENT),
    ("eof occurred", _CLOSED),
    ("unexpected_eof", _CLOSED),
)


def explain(error: OSError, *, tls: bool) -> Reason:
    """The reason for a socket error while connecting."""
    if isinstance(error, socket.gaierror):
        if error.errno in _NO_SUCH_NAME:
            return Reason("no such host")
        return Reason(f"the name cannot be looked up: {error.strerror}")
    if isinstance(error, TimeoutError):
        return Reason("no answer in time")
    text = str(error)
    lower = text.lower()
    if tls:
        for part, reason in _TLS:
            if part in lower:
                return reason
        if isinstance(error, (ConnectionResetError, BrokenPipeError)):
            return _CLOSED
        if type(error).__module__ == "ssl":
            return Reason(f"TLS: {first_line(text)}")
    elif isinstance(error, (ConnectionResetError, BrokenPipeError)):
        return explain_start("the connection was closed at once", tls=False)
    return Reason(f"Failed to connect: {error.strerror or first_line(text)}")


_NO_SUCH_NAME = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}


def explain_start(text: str, *, tls: bool) -> Reason:
    """The reason if the peer was reached, but did not begin like an HTTP/2 server."""
    if "answers in TLS" in text:
        return Reason(
            "this etcd wants TLS: write https:// and give the certificate of its authority with "
            "cacert (ETCDSEM_CACERT)",
            True,
        )
    if NO_HTTP2 in text or "not on HTTP/2" in text:
        return Reason(f"something answers there that is not etcd's client port ({text})", True)
    if tls:
        return _CLOSED
    return Reason(
        f"{text}; if this etcd wants TLS, write https:// and give the certificate of its authority "
        "with cacert (ETCDSEM_CACERT)"
    )


def explain_call(code: str, details: str) -> Reason:
    """The reason if the endpoint was connected, but its first call failed."""
    if code == "DEADLINE_EXCEEDED":
        return Reason("no answer in time")
    if code == "UNIMPLEMENTED" or "http status" in details or "content-type" in details:
        return Reason(
            f"something answers there that is not etcd's client port ({first_line(details)})", True
        )
    return Reason(first_line(details) or code)
