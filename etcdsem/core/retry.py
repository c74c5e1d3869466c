"""One request to etcd, and when it is repeated.

1. A read is repeated for a while; a write only if it was certainly not applied.
2. An attempt to acquire is repeated with another lease (`acquire`, 1) until there is an outcome.
3. What may last until somebody intervenes (wrong settings at first contact, etcd out of space) is
   raised at once, since waiting would hide it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from etcdsem.core.backoff import Backoff
from etcdsem.core.batching import Group, alone
from etcdsem.core.commands import (
    Failure,
    LeaseNotFound,
    Misconfigured,
    NoSpace,
    NotApplied,
    OutcomeUnknown,
    Procedure,
    Refused,
    Transact,
    Txn,
    TxnReply,
    Wait,
    perform,
)
from etcdsem.core.error_mapping import public_error
from etcdsem.core.leases import RPC_TIMEOUT
from etcdsem.core.session import Session
from etcdsem.errors import EtcdSemError

T = TypeVar("T")

READ_PATIENCE = 10.0
"""Seconds for which a read retries while etcd is unavailable. At first contact as above."""


class TryAgain(Exception):
    """This attempt is over without an outcome. `full`: it was queued, so there was no room."""

    def __init__(self, why: str, *, full: bool = False) -> None:
        super().__init__(why)
        self.full = full


def transact(session: Session, txn: Txn, until: float = math.inf) -> Procedure[TxnReply]:
    """Perform one transaction. Near the caller's deadline it still gets at least a second (at first
    contact no more than `Session.first_contact`).
    """
    now = session.env.now()
    timeout = max(1.0, min(RPC_TIMEOUT, until - now))
    if not session.reached:
        timeout = min(timeout, session.first_contact)
    stats = session.stats
    try:
        reply = yield from perform(Transact(txn, min(timeout, session.grace(now))))
    except BaseException as error:
        stats.requests[_outcome(error)] += 1
        raise
    session.leases.last_contact = answered = session.env.now()
    stats.requests["done"] += 1
    stats.latency.observe(answered - now)
    return reply


def _outcome(error: BaseException) -> str:
    """The name of a failed transaction's outcome in the statistics."""
    match error:
        case NotApplied():
            return "not applied"
        case Refused():
            return "refused"
    return "unknown"  # includes interruptions


def read(session: Session, txn: Txn, *, once: bool = False) -> Procedure[TxnReply]:
    """Perform a transaction that only reads (or may be applied twice), retrying for a while.

    `once`: do not retry if it may have been applied.
    """
    return (yield from patiently(session, lambda until: transact(session, txn, until), once=once))


def patiently(
    session: Session, request: Callable[[float], Procedure[T]], *, once: bool = False
) -> Procedure[T]:
    """Repeat a request for a while; it is given its deadline. `once` as for `read`."""
    first = not session.reached
    until = session.env.now() + (session.first_contact if first else READ_PATIENCE)
    backoff = Backoff(0.05, 1.0)
    while True:
        try:
            return (yield from request(until))
        except (NotApplied, OutcomeUnknown) as failure:
            last = min(until, session.leases.until)  # the client may be closed in the meantime
            if _hopeless(session, failure) or session.env.now() + backoff.pause >= last:
                raise
            if once and isinstance(failure, OutcomeUnknown):
                raise
        yield from sleep(session, backoff.take(session.env.random()))


def _hopeless(session: Session, failure: Failure) -> bool:
    """Is a retry pointless? The failure may last until somebody fixes it; waiting would hide it."""
    if isinstance(failure, Misconfigured):
        return not session.reached  # else the settings were right before
    return isinstance(failure, NoSpace)


def sleep(session: Session, seconds: float) -> Procedure[None]:
    """Suspend the procedure for some seconds."""
    yield from perform(Wait(session.env.mailbox(), session.env.now() + seconds))


class _Retry:
    """When attempts are repeated."""

    def __init__(
        self, session: Session, what: str, until: float, *, once: bool, seen_full: bool
    ) -> None:
        self.session = session
        self.what = what
        self.until = until
        self.once = once
        self.seen_full = seen_full
        self.began = session.env.now()
        self.late = False
        self.backoff = Backoff(0.02, 1.0)

    def after_retryable(self, again: TryAgain | LeaseNotFound) -> float | None:
        """Seconds until the next attempt; None: it was full. Raises an error at the deadline.

        LeaseNotFound: etcd has ended a lease of the pool. That is definite; another one will do.
        """
        env, what = self.session.env, self.what
        if self.session.closed:
            return 0.0
        env.log(logging.WARNING, "%s: %s; trying again", what, again)
        self.seen_full = self.seen_full or (isinstance(again, TryAgain) and again.full)
        if env.now() >= self.until:
            if self.seen_full:
                return None
            if self.late:
                raise public_error(NotApplied(str(again)), what) from again
            self.late = True  # one more attempt, since this says nothing about being full
        return 0.01 * env.random()

    def after_failure(self, failure: Failure) -> float | None:
        """Seconds until the next attempt; None: it was full. Raises an error if it is pointless."""
        session = self.session
        now = session.env.now()
        ends = now + self.backoff.pause >= self.until
        if _hopeless(session, failure):
            raise failure
        if self.once or ends or (self.until == math.inf and out_of_patience(session, self.began)):
            if self.seen_full and ends:
                return None
            raise public_error(failure, self.what) from failure
        return self.backoff.take(session.env.random())


def out_of_patience(session: Session, began: float) -> bool:
    """Has etcd been unavailable for as long as a call without a timeout waits?"""
    away = session.env.now() - max(session.leases.last_contact, began)
    return away >= (session.patience if session.reached else session.first_contact)


def retry_attempts(
    session: Session,
    what: str,
    attempt: Callable[[], Procedure[T | None]],
    until: float,
    *,
    once: bool,
    seen_full: bool = False,
) -> Procedure[T | None]:
    """Repeat attempts until there is an outcome; None if there was no room.

    `what` names the operation in errors; `seen_full`: it was full before.
    """
    env = session.env
    retry = _Retry(session, what, until, once=once, seen_full=seen_full)
    while True:
        if session.closed:
            raise EtcdSemError(f"{what}: its client was closed")
        try:
            outcome = yield from attempt()
            if outcome is not None or once or env.now() >= until:
                return outcome
            retry.seen_full = True
            continue
        except (TryAgain, LeaseNotFound) as again:
            pause = retry.after_retryable(again)
        except (NoSpace, NotApplied, OutcomeUnknown) as failure:
            pause = retry.after_failure(failure)
        if pause is None:
            return None
        if pause:
            yield from sleep(session, min(pause, max(0.0, until - env.now())))


def sender(session: Session) -> Callable[[Txn], Procedure[TxnReply]]:
    """The function with which a batch sends its transaction."""
    return partial(transact, session)


def alone_in_group(
    session: Session, group: Group[Any, Any], txn: Txn, until: float = math.inf
) -> Procedure[TxnReply]:
    """Perform a caller's own transaction; others may gather in the group meanwhile."""
    return alone(group, transact(session, txn, until))
