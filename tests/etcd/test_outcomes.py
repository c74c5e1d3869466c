"""The table of outcomes: each row of FAULTS' catalogue, and the default."""

from __future__ import annotations

import pytest

from etcdsem.core import commands
from etcdsem.etcd.outcomes import OUTCOMES, UNKNOWN, Outcome, classify

CASES = [
    ("DEADLINE_EXCEEDED", "Deadline Exceeded", commands.OutcomeUnknown),
    ("CANCELLED", "Locally cancelled by application!", commands.OutcomeUnknown),
    ("UNAVAILABLE", "etcdserver: request timed out", commands.OutcomeUnknown),
    ("UNAVAILABLE", "etcdserver: leader changed", commands.OutcomeUnknown),
    ("UNAVAILABLE", "etcdserver: server stopped", commands.OutcomeUnknown),
    ("UNAVAILABLE", "Socket closed", commands.OutcomeUnknown),
    ("UNAVAILABLE", "recvmsg:Connection reset by peer", commands.OutcomeUnknown),
    ("UNAVAILABLE", "etcdserver: no leader", commands.NotApplied),
    ("NOT_CONNECTED", "whatever", commands.NotConnected),
    ("UNKNOWN", "context deadline exceeded", commands.OutcomeUnknown),
    ("UNKNOWN", "etcdserver: too many requests", commands.NotApplied),
    ("RESOURCE_EXHAUSTED", "etcdserver: too many requests", commands.NotApplied),
    ("RESOURCE_EXHAUSTED", "etcdserver: mvcc: database space exceeded", commands.NoSpace),
    ("RESOURCE_EXHAUSTED", "Received message larger than max (5 vs. 4)", commands.OutcomeUnknown),
    ("INTERNAL", "Exception deserializing response!", commands.OutcomeUnknown),
    ("NOT_FOUND", "etcdserver: requested lease not found", commands.LeaseNotFound),
    ("FAILED_PRECONDITION", "etcdserver: lease already exists", commands.LeaseExists),
    ("INVALID_ARGUMENT", "etcdserver: duplicate key given in txn request", commands.Refused),
    ("OUT_OF_RANGE", "etcdserver: too large lease TTL", commands.Refused),
    ("PERMISSION_DENIED", "etcdserver: permission denied", commands.AccessDenied),
    ("UNAUTHENTICATED", "etcdserver: invalid auth token", commands.NotApplied),
    ("INVALID_ARGUMENT", "etcdserver: revision of auth store is old", commands.NotApplied),
    ("UNKNOWN", "auth: revision in header is old", commands.NotApplied),
    ("INVALID_ARGUMENT", "etcdserver: authentication failed, invalid user", commands.AccessDenied),
    ("DATA_LOSS", "etcdserver: corrupt cluster", commands.Corrupt),
    ("UNKNOWN", "raft proposal dropped", commands.OutcomeUnknown),
    ("UNKNOWN", "not a primary lessor", commands.OutcomeUnknown),
    ("ABORTED", "whatever", commands.OutcomeUnknown),
    ("UNKNOWN", "", commands.OutcomeUnknown),
]


@pytest.mark.parametrize(("code", "details", "failure"), CASES)
def test_what_is_seen_means(code: str, details: str, failure: type[commands.Failure]) -> None:
    """A status means exactly this failure."""
    assert classify(code, details).failure is failure


@pytest.mark.parametrize("row", OUTCOMES, ids=lambda row: f"{row.code}-{row.text}")
def test_every_row_can_be_reached(row: Outcome) -> None:
    """No row is hidden by one above it."""
    assert classify(row.code, f"etcdserver: {row.text}") is row


def test_the_default_is_unknown() -> None:
    """What no row knows may have been applied."""
    assert classify("SOMETHING_NEW", "?") is UNKNOWN
    assert UNKNOWN.failure is commands.OutcomeUnknown


def test_definite_failures_are_no_unknown_outcomes() -> None:
    """The classes keep apart what may be repeated and what may not."""
    assert not issubclass(commands.NotApplied, commands.OutcomeUnknown)
    assert not issubclass(commands.Refused, commands.OutcomeUnknown)
    assert issubclass(commands.NoSpace, commands.OutcomeUnknown)
