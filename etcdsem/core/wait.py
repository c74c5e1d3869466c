"""A waiter in the queue, until it is granted a slot or leaves (LEAVE).

The first local waiter reads and reconciles for all waiters of its client (see `waiters`).
"""

from __future__ import annotations

import logging
import math

from etcdsem.core import decisions, transactions
from etcdsem.core.commands import AccessDenied, Failure, NotApplied, Procedure, Wait, perform
from etcdsem.core.grants import Grant
from etcdsem.core.keys import read_eviction, read_message
from etcdsem.core.leases import RPC_TIMEOUT
from etcdsem.core.limits import queue_full, refuse_too_heavy, semaphore_closed, too_heavy
from etcdsem.core.reconcile import recheck, reconcile_or_recheck
from etcdsem.core.retry import TryAgain, transact
from etcdsem.core.semaphore import SemaphoreState
from etcdsem.core.waiters import (
    AccessLost,
    Closed,
    GrantMessage,
    LocalWaiter,
    PlaceLost,
    ReconcileNote,
)
from etcdsem.core.watches import WatchesReady
from etcdsem.errors import Evicted


def open_watches(semaphore: SemaphoreState, until: float) -> Procedure[bool]:
    """Set up the semaphore's watches; False if `until` passes first."""
    if semaphore.watches.ready:
        return True
    env = semaphore.session.env
    box = env.mailbox()
    semaphore.watches.expect(box)
    note = yield from perform(Wait(box, min(until, env.now() + RPC_TIMEOUT)))
    if isinstance(note, WatchesReady):
        if note.error is not None:
            raise note.error
        return True
    if env.now() >= until:
        return False
    starved = env.starved()
    raise NotApplied(f"no watch could be set up in time{starved and f' ({starved})'}")


def wait_in_queue(
    semaphore: SemaphoreState, waiter: LocalWaiter, until: float, *, room: bool
) -> Procedure[Grant | None]:
    """Wait in the queue until granted, or until it is time to leave."""
    session, env, waiters = semaphore.session, semaphore.session.env, semaphore.waiters
    reconcile_at = env.now() if room else math.inf
    reread_at = session.next_reread()
    if waiters.leads(waiter) and waiters.reconcile_due:
        reconcile_at = env.now()
    while True:
        if too_heavy(semaphore, waiter.demand.weight):
            return (yield from _leave_too_heavy(semaphore, waiter))
        wake = min(until, reconcile_at)
        if waiters.leads(waiter):
            wake = min(wake, reread_at, waiters.reconcile_at)
        note = yield from perform(Wait(waiter.box, wake))
        now = env.now()
        if isinstance(note, ReconcileNote):
            if note.reread:
                reread_at = now
            if waiters.reconcile_due:
                window = decisions.healing_window(waiters.clients)
                reconcile_at = min(reconcile_at, now + window * env.random())
        elif note is not None:
            grant = _read_note(semaphore, waiter, note)
            if grant is not None:
                return grant
        elif now >= until:
            return (yield from _leave(semaphore, waiter))[0]
        elif now >= min(reconcile_at, waiters.reconcile_at):
            reconcile_at = math.inf
            waiters.reconcile_in(math.inf)
            if waiters.reconciling:
                waiters.request_reconcile()  # once more after the one in progress
            elif not (yield from _reconcile_for_client(semaphore, until)):
                reconcile_at = env.now() + 0.3 + env.random()
        elif now >= reread_at:
            reread_at = session.next_reread()
            if not (yield from _tolerantly(recheck(semaphore, until), semaphore)):
                reread_at = env.now() + 0.3 + env.random()


def _read_note(semaphore: SemaphoreState, waiter: LocalWaiter, note: object) -> Grant | None:
    """The grant that a note brings; None if the wait continues. Raises if the wait has failed."""
    match note:
        case GrantMessage():
            return _open(semaphore, waiter, note)
        case Closed(revision=revision) if waiter.created <= revision:
            raise semaphore_closed(semaphore)
        case AccessLost():
            # Our key may still exist, so the lease is revoked rather than returned to the pool.
            semaphore.session.leases.revoke_later(waiter.lease)
            raise note.error
        case PlaceLost():
            raise TryAgain(f"lost its place in the queue: {note.reason}", full=True)
    return None


def _leave_too_heavy(semaphore: SemaphoreState, waiter: LocalWaiter) -> Procedure[Grant]:
    """Leave because the limit is below our weight. Raises unless a grant came before it was
    lowered.
    """
    grant, _ = yield from _leave(semaphore, waiter)
    if grant is not None:
        return grant
    refuse_too_heavy(semaphore, waiter.demand.weight)
    raise TryAgain("the limit was too low for this weight, and was raised again", full=True)


def _tolerantly(work: Procedure[None], semaphore: SemaphoreState) -> Procedure[bool]:
    """Do work for all waiters whose failure does not harm this one. False if it failed."""
    try:
        yield from work
    except AccessDenied as failure:
        semaphore.waiters.tell(AccessLost(failure))  # waiting is pointless for all of ours
        return False
    except Failure as failure:
        semaphore.session.env.log(
            logging.INFO,
            "semaphore %s: reconciliation failed, will retry: %s",
            semaphore.name,
            failure,
        )
        return False
    return True


def _reconcile_for_client(semaphore: SemaphoreState, until: float) -> Procedure[bool]:
    """Reconcile, one waiter of this client at a time: thousands would only disturb each other."""
    waiters = semaphore.waiters
    waiters.begin_reconcile()
    try:
        done = yield from _tolerantly(reconcile_or_recheck(semaphore, until), semaphore)
    except BaseException:
        waiters.request_reconcile()  # interrupted: the next leader does it
        raise
    finally:
        waiters.end_reconcile()
    if not done:
        waiters.request_reconcile()
    return done


def _open(semaphore: SemaphoreState, waiter: LocalWaiter, message: GrantMessage) -> Grant | None:
    """The grant in a grant message; None if it is outdated or not ours. Raises Evicted."""
    kv = message.kv
    if kv.mod_revision <= waiter.created:
        return None
    by = read_eviction(kv.value)
    if by is not None:
        raise Evicted(f"acquire {semaphore.name!r}: evicted from the queue {by}")
    if kv.lease != waiter.lease.id:
        return None
    content = read_message(kv.value, semaphore.queue.until)
    if content is None:
        semaphore.session.env.log(
            logging.WARNING,
            "semaphore %s: cannot read the grant message %s",
            semaphore.name,
            kv.key,
        )
        return None
    slots, queue = content
    if queue:
        semaphore.queue.learn(queue, queue[-1].created)
    if not waiter.demand.priority and not waiter.demand.backfill:  # those may pass others
        semaphore.queue.served(waiter.created)
    if len(slots) != waiter.demand.weight:  # the sender does not support weights
        raise TryAgain(f"{len(slots)} slots were granted instead of {waiter.demand.weight}")
    if not waiter.lease.valid(semaphore.session.env.now()):
        raise TryAgain("a slot was granted, but the lease had expired in the meantime")
    semaphore.waiters.exit(waiter)
    slot, *more = slots
    return Grant(
        semaphore,
        waiter.lease,
        waiter.who,
        slot,
        kv.mod_revision,
        has_message=True,
        more=tuple(more),
    )


def leave_full_queue(
    semaphore: SemaphoreState, waiter: LocalWaiter, most: int
) -> Procedure[Grant | None]:
    """Leave because more than `most` wait. Raises QueueFull, unless a slot was granted in the
    meantime; None if fewer wait by now, so that there is a place.
    """
    grant, waiting = yield from _leave(semaphore, waiter)
    if grant is None and waiting >= most:
        raise queue_full(semaphore, most)
    return grant


def _leave(semaphore: SemaphoreState, waiter: LocalWaiter) -> Procedure[tuple[Grant | None, float]]:
    """LEAVE the queue. If a slot was granted in the meantime, it is taken. Also returns how many
    wait then; infinite if that is not known. Raises Evicted.
    """
    session, keys = semaphore.session, semaphore.keys
    txn = transactions.leave(keys, waiter.who, waiter.created)
    try:
        reply = yield from transact(session, txn)
    except Failure as failure:
        session.env.log(
            logging.INFO,
            "semaphore %s: left the queue by revoking the lease: %s",
            semaphore.name,
            failure,
        )
        session.leases.revoke_later(waiter.lease)
        return None, math.inf
    left, message, waiting = transactions.read_leave(reply)
    if not left:
        grant = _open(semaphore, waiter, GrantMessage(message)) if message is not None else None
        if grant is None:
            session.leases.revoke_later(waiter.lease)
        return grant, math.inf
    if not waiting:
        try:
            yield from transact(session, transactions.uncontend(keys, reply.revision))
        except Failure as failure:
            session.env.log(
                logging.DEBUG,
                "semaphore %s: could not clear the contended mark: %s",
                semaphore.name,
                failure,
            )
    return None, waiting
