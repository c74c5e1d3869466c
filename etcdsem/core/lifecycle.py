"""Registering and closing a semaphore (REGISTER, CLOSE), and closing a client."""

from __future__ import annotations

from etcdsem.core import transactions
from etcdsem.core.commands import (
    Compare,
    Failure,
    LeaseNotFound,
    Procedure,
    RevokeLease,
    perform,
)
from etcdsem.core.keys import read_holders, read_limit, read_waiters
from etcdsem.core.leases import RPC_TIMEOUT
from etcdsem.core.limits import limit_read, wrong_kind
from etcdsem.core.release import release
from etcdsem.core.retry import read
from etcdsem.core.semaphore import SemaphoreState
from etcdsem.core.session import Session
from etcdsem.model import CloseResult


def close(
    semaphore: SemaphoreState,
    *,
    force: bool,
    rate: bool | None = None,
    seen: tuple[Compare, ...] = (),
) -> Procedure[CloseResult]:
    """CLOSE. Without `force`, a semaphore that is in use is left alone.

    `rate`: whether it must be a rate limit, else WrongKind is raised; None accepts both kinds.
    `seen`: more conditions; if they fail, it is left alone, too.
    """
    if rate is not None:
        reply = yield from read(semaphore.session, limit_read(semaphore))
        kvs = transactions.as_range(reply.replies[0]).kvs
        wrong = wrong_kind(semaphore, read_limit(kvs[0]), rate=rate) if kvs else None
        if wrong is not None:
            raise wrong
    txn = transactions.close(semaphore.keys, force=force, seen=seen)
    reply = yield from read(semaphore.session, txn)
    slots, waiting = map(transactions.as_range, reply.replies[:2])
    holders, _ = read_holders(semaphore.keys, slots.kvs, None)
    waiters, _ = read_waiters(semaphore.keys, waiting.kvs)
    known = reply.succeeded or transactions.as_range(reply.replies[2]).count > 0
    if reply.succeeded:
        semaphore.closed(reply.revision)
    return CloseResult(
        done=reply.succeeded,
        known=known,
        holders=tuple(h.owner for h in holders),
        waiters=tuple(w.owner for w in waiters),
    )


def shutdown(session: Session, until: float) -> Procedure[None]:
    """Give everything back, as far as time allows until `until`; the rest ends by its TTL.

    Starts of a rate limit that were handed out must not be given back yet; they end by their TTL.
    """
    session.closed = True
    session.leases.until = until
    session.leases.closed = True
    session.wake_heartbeat()
    for semaphore in session.semaphores.values():
        semaphore.client_closed()
    for grant in session.grants():
        if session.env.now() >= until:
            return
        grant.on_lost = None
        if grant.spent:
            grant.leave()
        else:
            yield from release(grant)
    # First the revocations that are in progress in the background: the process may end before they
    # are done, and such a lease may hold a slot.
    manager = session.leases
    for lease_id in (*manager.revoking, *manager.live):
        left = until - session.env.now()
        if left <= 0:
            return
        if lease_id in manager.live:
            manager.retire(manager.live[lease_id])
        try:
            yield from perform(RevokeLease(lease_id, min(left, RPC_TIMEOUT)))
        except LeaseNotFound:
            manager.ended.add(lease_id)
        except Failure:
            continue
        else:
            manager.ended.add(lease_id)
