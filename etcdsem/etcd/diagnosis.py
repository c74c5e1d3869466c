"""Why no connection came about, in words that say what to do: a table.

1. The first row whose text occurs in gRPC's details, in small letters, decides. Rows of TLS count
   only where TLS was tried.
2. `settings`: the settings are wrong, and trying again is of no use until they are changed.

gRPC's texts are those of grpcio 1.60 to 1.85; what no row knows is shown as it is.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from etcdsem.core.outward import first_line


class Reason(NamedTuple):
    """Why an endpoint cannot be used."""

    text: str
    settings: bool = False


_NOT_FOR = Reason(
    "TLS: etcd's certificate is not for the host of this endpoint; connect to a name or an address "
    "that the certificate lists (openssl x509 -noout -ext subjectAltName -in server.pem)",
    True,
)
_OURS = Reason(
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
    ("hostname verification check failed", _NOT_FOR),
    ("is not in peer certificate", _NOT_FOR),
    (
        "certificate_verify_failed",
        Reason(
            "TLS: etcd's certificate was not signed by an authority that we trust; give that "
            "authority's certificate with cacert (ETCDSEM_CACERT)",
            True,
        ),
    ),
    ("wrong_version_number", Reason("TLS: what listens there speaks no TLS; write http://", True)),
    ("unwrap failed", _OURS),
    ("certificate_required", _OURS),
    ("bad_certificate", _OURS),
    ("alert", _OURS),
    (
        "handshake read failed",
        Reason(
            "TLS: the connection was closed in the handshake; if this etcd speaks no TLS, write "
            "http:// and give no certificates"
        ),
    ),
)

_WEB = ("http status", "content-type", "failed parsing http/2")


def explain(code: str, details: str, *, tls: bool) -> Reason:
    """What to say of a gRPC status that came instead of a connection."""
    lower = details.lower()
    if code == "DEADLINE_EXCEEDED":
        return Reason("no answer in time")
    if code == "UNIMPLEMENTED" or any(text in lower for text in _WEB):
        return Reason(
            f"something answers there that is not etcd's client port ({_plain(details)})", True
        )
    if "before receiving settings frame" in lower:
        return Reason("something accepts connections there, and says nothing")
    if "domain name not found" in lower:
        return Reason("there is no host of that name")
    if tls:
        for text, reason in _TLS:
            if text in lower:
                return reason
        if "handshake" in lower:
            return Reason(f"TLS: {_plain(details)}")
    elif "socket closed" in lower:
        return Reason(
            "the connection was closed at once; if this etcd wants TLS, write https:// and give "
            "the certificate of its authority with cacert (ETCDSEM_CACERT)"
        )
    return Reason(_plain(details) or code)


def _plain(details: str) -> str:
    """GRPC's details without what it says each time, and without the address, which we tell."""
    text = re.sub(r"failed to connect to all addresses; last error: [A-Z_]+: ", "", details)
    return first_line(re.sub(r"^(ipv4|ipv6|unix):\S+: ", "", text))
