"""Converts failures into the exceptions that users see, with advice on what to do."""

from __future__ import annotations

from etcdsem.core.commands import (
    AccessDenied,
    Corrupt,
    Failure,
    Misconfigured,
    NoSpace,
    NotApplied,
    OutcomeUnknown,
)
from etcdsem.errors import EtcdRefused, EtcdSemError, EtcdUnavailable, PermissionDenied


def public_error(failure: Failure, what: str) -> EtcdSemError:
    """The exception for a caller; `what` says what was attempted, and on which semaphore."""
    at = f" at {failure.endpoint}" if failure.endpoint else ""
    match failure:
        case AccessDenied():
            return PermissionDenied(
                f"{what}: etcd{at} refuses: {failure.detail}. {_access(failure)}"
            )
        case NoSpace():
            return EtcdRefused(
                f"{what}: etcd{at} is out of space. Held leases stay refreshed and can be "
                "released. To fix it: etcdctl compact, etcdctl defrag, etcdctl alarm disarm."
            )
        case Corrupt():
            return EtcdRefused(
                f"{what}: etcd{at} reports corrupt data and rejects writes; see etcdctl alarm list"
            )
        case Misconfigured():
            return EtcdUnavailable(f"{what}: no connection to etcd{at}: {failure.detail}")
        case NotApplied() | OutcomeUnknown():
            return EtcdUnavailable(
                f"{what}: etcd{at} cannot be reached or does not answer: {failure.detail}. "
                "Check that it runs and that the endpoints are right (ETCDSEM_ENDPOINTS)."
            )
        case _:
            return EtcdRefused(f"{what}: etcd{at} refuses: {failure.detail}")


def _access(failure: AccessDenied) -> str:
    """Advice on how to fix a refused access."""
    detail = failure.detail
    if "user name is empty" in detail:
        return (
            "This etcd wants a login: give a user and a password (ETCDSEM_USER and "
            "ETCDSEM_PASSWORD or ETCDSEM_PASSWORD_FILE)."
        )
    if "login failed" in detail:
        return "Check the user and the password."
    return (
        "The user's role must allow readwrite on the semaphore's prefix: etcdctl role "
        "grant-permission ROLE --prefix=true readwrite /etcdsem/NAME/ (docs/security.md)."
    )


def first_line(text: str) -> str:
    """The first line of a text, at most 200 characters: details may quote whole pages."""
    line = text.strip().split("\n")[0]
    return line if len(line) <= 200 else line[:197] + "..."
