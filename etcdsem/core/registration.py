"""REGISTER: how a name comes into etcd, for good or with a lease with which it expires.

Whoever finds its name gone registers it again if the name's lease is gone, too: it has expired. If
the lease is alive, or the name had no lease, somebody has closed the semaphore, and it stays
closed: CLOSE leaves the lease to its TTL.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from etcdsem.core import transactions
from etcdsem.core.commands import (
    GrantLease,
    KeyValue,
    LeaseExists,
    NotApplied,
    OutcomeUnknown,
    Procedure,
    Refused,
    TxnReply,
    perform,
)
from etcdsem.core.keys import Limit, read_limit
from etcdsem.core.leases import RPC_TIMEOUT
from etcdsem.core.limits import limit_read
from etcdsem.core.name_lease import NameLease, has_ended
from etcdsem.core.retry import READ_PATIENCE, read, sleep
from etcdsem.core.semaphore import SemaphoreState
from etcdsem.core.session import Session
from etcdsem.errors import SemaphoreClosed
from etcdsem.model import Rate

T = TypeVar("T")

_REVOKED_WITHIN = 60.0
"""Seconds for which the lease of a name that was not registered is revoked at most; later its TTL
ends it."""


class Registration:
    """What a program registers, and registers again when the name has expired."""

    __slots__ = ("expires", "lease", "wanted")

    def __init__(self, wanted: int | Rate, expires: int) -> None:
        self.wanted = wanted
        self.expires = expires  # seconds
        self.lease = 0  # with which the name expires, as last seen


def register(semaphore: SemaphoreState, wanted: int | Rate, expires: int = 0) -> Procedure[Limit]:
    """REGISTER. Returns the limit that is in force afterwards. `expires`: if the name is new, the
    seconds after which it leaves etcd when nobody uses it; 0: it stays.
    """
    if expires:
        return (yield from _register_with_lease(semaphore, wanted, expires))
    text = str(wanted).encode()
    reply = yield from read(semaphore.session, transactions.register(semaphore.keys, text))
    return _registered(semaphore, reply, text, 0)


def _registered(semaphore: SemaphoreState, reply: TxnReply, text: bytes, lease: int) -> Limit:
    if reply.succeeded:
        now = reply.revision
        limit = read_limit(KeyValue(semaphore.keys.max_leases, text, now, now, lease))
    else:
        limit = read_limit(transactions.as_range(reply.replies[0]).kvs[0])
    semaphore.learn(limit, reply.revision)
    return limit


def _register_with_lease(
    semaphore: SemaphoreState, wanted: int | Rate, expires: int
) -> Procedure[Limit]:
    session, text = semaphore.session, str(wanted).encode()
    reply = yield from read(session, limit_read(semaphore))
    if transactions.as_range(reply.replies[0]).kvs:
        return _registered(semaphore, reply._replace(succeeded=False), text, 0)
    lease = yield from grant(semaphore, expires)
    limit: Limit | None = None
    try:
        txn = transactions.register(semaphore.keys, text, lease.id)
        reply = yield from read(session, txn)
        limit = _registered(semaphore, reply, text, lease.id)
    finally:
        if limit is None or limit.lease != lease.id:
            revoke(session, lease)
    if limit.lease == lease.id:
        semaphore.expires_with(lease)
    return limit


def grant(semaphore: SemaphoreState, ttl: int) -> Procedure[NameLease]:
    """A new lease for a name, requested for a while. `ttl`: in seconds."""
    session = semaphore.session
    env, until = session.env, session.env.now() + READ_PATIENCE
    while True:
        lease = NameLease(semaphore, env.random_id())
        sent = env.now()
        try:
            granted = yield from perform(GrantLease(lease.id, ttl, RPC_TIMEOUT))
        except LeaseExists:
            continue
        except Refused:
            raise
        except BaseException as error:
            if not isinstance(error, NotApplied):
                session.leases.revoke_id_later(lease.id, _REVOKED_WITHIN)
            if not isinstance(error, NotApplied | OutcomeUnknown) or env.now() >= until:
                raise
        else:
            lease.known(sent, granted, granted)
            lease.refreshed = sent
            return lease
        yield from sleep(session, 0.1 + 0.2 * env.random())


def revoke(session: Session, lease: NameLease) -> None:
    """Revoke a lease that no name got, in the background."""
    session.leases.revoke_id_later(lease.id, _REVOKED_WITHIN)


def registered(
    pairs: Sequence[tuple[SemaphoreState, Registration | None]],
    attempt: Callable[[], Procedure[T]],
) -> Procedure[T]:
    """The result of an attempt, repeated if one of the names had expired."""
    if all(known is None for _, known in pairs):
        return attempt()
    return _registered_again(pairs, attempt)


def _registered_again(
    pairs: Sequence[tuple[SemaphoreState, Registration | None]],
    attempt: Callable[[], Procedure[T]],
) -> Procedure[T]:
    while True:
        try:
            return (yield from attempt())
        except SemaphoreClosed:
            again = False
            for semaphore, known in pairs:
                if known is not None and (yield from _register_again(semaphore, known)):
                    again = True
            if not again:
                raise


def _register_again(semaphore: SemaphoreState, known: Registration) -> Procedure[bool]:
    """Register a name again if it has expired. False: it is there as before, or was closed."""
    limit, lease = semaphore.limit, known.lease
    if limit is None and semaphore.name_lease is not None:
        lease = semaphore.name_lease.id
    if not lease or (limit is not None and limit.lease == lease):
        return False
    if not (yield from has_ended(lease)):
        return False
    if limit is None:
        semaphore.session.env.log(
            logging.INFO, "semaphore %s had expired, and is registered again", semaphore.name
        )
        limit = yield from register(semaphore, known.wanted, known.expires)
    known.lease = limit.lease
    return True
