"""A table that says what a failure means, and whether the request was applied.

1. The first row whose code is the answer's, and whose text occurs in its details, applies.
2. A write counts as not applied only if a row says so. Everything else is unknown, and a write with
   an unknown outcome is never repeated (the callers revoke the attempt's lease instead).
3. `elsewhere`: another endpoint may do better. `login`: the token is no longer valid.

Sources: etcd's server/etcdserver/api/v3rpc/rpctypes/error.go and util.go, its interceptor.go (a
request without a leader is rejected before anything is done), v3_server.go (too many requests),
apply/quota.go ("out of space" may be reported for a request that was applied), and measurements.
"""

from __future__ import annotations

from typing import NamedTuple

from etcdsem.core.commands import (
    AccessDenied,
    Corrupt,
    Failure,
    LeaseExists,
    LeaseNotFound,
    NoSpace,
    NotApplied,
    NotConnected,
    OutcomeUnknown,
    Refused,
)


class Outcome(NamedTuple):
    """One row: a gRPC status, and what it means."""

    code: str
    text: str
    failure: type[Failure]
    elsewhere: bool = False
    login: bool = False


OUTCOMES: tuple[Outcome, ...] = (
    # Our own codes: no connection, so nothing was sent; or the server says that it did nothing.
    Outcome("NOT_CONNECTED", "", NotConnected, elsewhere=True),
    Outcome("NOT_PROCESSED", "", NotApplied),
    # Rejected by the interceptor because of the metadata hasleader.
    Outcome("UNAVAILABLE", "etcdserver: no leader", NotApplied, elsewhere=True),
    Outcome("UNAVAILABLE", "etcdserver: not capable", NotApplied, elsewhere=True),
    Outcome("UNAVAILABLE", "etcdserver: rpc not supported for learner", NotApplied, elsewhere=True),
    # Rejected before it was proposed, because applying lags behind.
    Outcome("UNKNOWN", "too many requests", NotApplied),
    Outcome("RESOURCE_EXHAUSTED", "too many requests", NotApplied),
    # In progress when something broke: it may be applied, now or later.
    Outcome("UNAVAILABLE", "", OutcomeUnknown, elsewhere=True),
    Outcome("DEADLINE_EXCEEDED", "", OutcomeUnknown, elsewhere=True),
    Outcome("CANCELLED", "", OutcomeUnknown),
    Outcome("UNKNOWN", "context deadline exceeded", OutcomeUnknown, elsewhere=True),
    Outcome("UNKNOWN", "raft: stopped", OutcomeUnknown, elsewhere=True),
    Outcome("UNKNOWN", "raft proposal dropped", OutcomeUnknown, elsewhere=True),
    Outcome("UNKNOWN", "not a primary lessor", OutcomeUnknown, elsewhere=True),
    Outcome("RESOURCE_EXHAUSTED", "database space exceeded", NoSpace),
    # Applied, but the answer was too large or nested too deeply to be read.
    Outcome("RESOURCE_EXHAUSTED", "Received message larger than max", OutcomeUnknown),
    Outcome("INTERNAL", "Exception deserializing response", OutcomeUnknown),
    # The login. A login that is not needed (yet) is handled where logins are made.
    Outcome("UNAUTHENTICATED", "invalid auth token", NotApplied, login=True),
    Outcome("INVALID_ARGUMENT", "revision of auth store is old", NotApplied, login=True),
    # The same from etcd 3.5.1: a token's rights are checked before anything is written.
    Outcome("UNKNOWN", "auth: revision in header is old", NotApplied, login=True),
    Outcome("INVALID_ARGUMENT", "user name is empty", AccessDenied, login=True),
    Outcome("INVALID_ARGUMENT", "authentication failed", AccessDenied),
    Outcome("FAILED_PRECONDITION", "authentication is not enabled", AccessDenied),
    Outcome("UNAUTHENTICATED", "", AccessDenied),
    Outcome("PERMISSION_DENIED", "", AccessDenied),
    # Definite answers.
    Outcome("NOT_FOUND", "requested lease not found", LeaseNotFound),
    Outcome("FAILED_PRECONDITION", "lease already exists", LeaseExists),
    Outcome("DATA_LOSS", "corrupt", Corrupt),
    Outcome("INVALID_ARGUMENT", "", Refused),
    Outcome("OUT_OF_RANGE", "", Refused),
    Outcome("UNIMPLEMENTED", "", Refused),  # an HTTP/2 server that is not etcd
)

UNKNOWN = Outcome("", "", OutcomeUnknown)


def classify(code: str, details: str) -> Outcome:
    """The row for a gRPC status; else `UNKNOWN`."""
    for row in OUTCOMES:
        if row.code == code and row.text in details:
            return row
    return UNKNOWN
