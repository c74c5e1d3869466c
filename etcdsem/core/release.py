"""Give a slot back with DROP, PASS, CLEAR, RETIRE or VACATE, as the state of the queue requires.

A release never raises because of etcd. If the write fails, the slot is freed by revoking the lease.
"""

from __future__ import annotations

import logging
import math

from etcdsem.core import decisions, transactions
from etcdsem.core.backoff import Backoff
from etcdsem.core.batching import NOT_BATCHED, BatchPart, NotBatched, together
from etcdsem.core.commands import (
    AccessDenied,
    Failure,
    LeaseNotFound,
    NotApplied,
    Procedure,
    RevokeLease,
    perform,
)
from etcdsem.core.decisions import (
    Ask,
    Clear,
    Drop,
    Gone,
    Pass,
    PassAlone,
    Vacate,
)
from etcdsem.core.grants import Grant
from etcdsem.core.lease_manager import end_interrupted
from etcdsem.core.leases import RPC_TIMEOUT, TtlLease
from etcdsem.core.reconcile import reconcile
from etcdsem.core.release_steps import STEPS, ReleaseResult, Vacated
from etcdsem.core.retry import alone_in_group, sender, sleep, transact
from etcdsem.core.semaphore import SemaphoreState
from etcdsem.core.session import Session
from etcdsem.core.transactions import HeldSlots, Look
from etcdsem.model import duration_text

RELEASE_PATIENCE = 5.0
"""Seconds for which a release retries when etcd is unavailable, before it leaves the slot to the
TTL."""


def release(grant: Grant) -> Procedure[ReleaseResult]:
    """Give back the slots of a grant. Never raises because of etcd."""
    if grant.state != "held":
        grant.let_go()
        return ReleaseResult.NOT_OURS
    semaphore, manager = grant.semaphore, grant.semaphore.session.leases
    try:  # handle any interruption from here on: Ctrl-C may arrive at any byte code
        grant.release_begins()
        if _has_expired(grant):
            return ReleaseResult.NOT_OURS
        if _stays(grant):
            return ReleaseResult.RELEASED
        outcome = yield from _give_back(semaphore, grant.held_slots)
    except Failure as failure:
        level = logging.WARNING if isinstance(failure, AccessDenied) else logging.INFO
        semaphore.session.env.log(
            level, "semaphore %s: releasing by revoking the lease: %s", semaphore.name, failure
        )
        grant.given_back()
        return (yield from _release_by_revoking(grant))
    except BaseException:
        grant.detach()
        grant.given_back()
        yield from end_interrupted(manager, grant.lease)
        raise
    if outcome is ReleaseResult.RELEASED:
        grant.given_back()
        for slot in grant.slots:
            semaphore.slots.freed(slot)
        manager.give_back(grant.lease)
        return outcome
    if semaphore.session.closed:  # shutdown has revoked the lease in the meantime
        grant.given_back()
        outcome = ReleaseResult.RELEASED
    else:
        grant.count_lost("its key in etcd was gone when it was released")
    manager.revoke_later(grant.lease)
    return outcome


def _has_expired(grant: Grant) -> bool:
    """Its lease has expired, so it is lost; etcd may not know yet."""
    now = grant.semaphore.session.env.now()
    if grant.lease.valid(now):
        return False
    grant.count_lost(grant.lease.overrun(now) or "its lease expired before it was released")
    grant.semaphore.session.leases.revoke_later(grant.lease)
    return True


def _stays(grant: Grant) -> bool:
    """Let the slot stay with this client for a moment, if it may."""
    kept = grant.semaphore.lingering
    if kept is None or grant.lingers is None or not kept.keep(grant, grant.lingers):
        return False
    grant.given_back()
    return True


def _release_by_revoking(grant: Grant) -> Procedure[ReleaseResult]:
    """Give the slots back by ending the lease; if that fails, continue in the background."""
    session, lease = grant.semaphore.session, grant.lease
    session.leases.retire(lease)
    try:
        yield from _revoke(session, lease)
    except Failure as error:
        session.leases.revoke_id_later(lease.id, lease.ttl)
        session.env.log(
            logging.WARNING,
            "semaphore %s: slot %d could not be released: %s. Its lease is no longer refreshed, "
            "so etcd will free the slot when the TTL of %s expires",
            grant.semaphore.name,
            grant.slot,
            error or type(error).__name__,
            duration_text(lease.ttl),
        )
        return ReleaseResult.UNCONFIRMED
    except BaseException:
        yield from end_interrupted(session.leases, lease)
        raise
    return ReleaseResult.RELEASED


def _revoke(session: Session, lease: TtlLease) -> Procedure[None]:
    """Revoke a lease, retrying for `RELEASE_PATIENCE` or until the lease expires by itself."""
    env = session.env
    now = env.now()
    until = min(now + min(RELEASE_PATIENCE, session.grace(now)), lease.sent + lease.ttl)
    backoff = Backoff(0.05, 1.0)
    while True:
        try:
            yield from perform(RevokeLease(lease.id, max(0.1, min(RPC_TIMEOUT, until - now))))
            return
        except LeaseNotFound:
            return
        except AccessDenied:
            raise
        except Failure:
            if lease.id in session.leases.ended:
                return  # by `shutdown`
            if env.now() + backoff.pause >= min(until, session.leases.until):
                raise
        yield from sleep(session, backoff.take(env.random()))
        now = env.now()


# ---------------------------------------------------------------- step by step

MOST_STEPS = 100
"""Maximum number of steps; if the queue changes faster than that, the release falls back to
revoking the lease."""


def release_some(grant: Grant, count: int) -> Procedure[bool]:
    """Give back the last `count` slots of a grant that keeps the others; False if they may still be
    held. Then they are given back with the others.
    """
    kept, (slot, *more) = grant.slots[:-count], grant.slots[-count:]
    some = grant.held_slots._replace(slot=slot, more=tuple(more), has_message=False)
    try:
        outcome = yield from _give_back(grant.semaphore, some)
    except Failure:
        return False
    if outcome is ReleaseResult.RELEASED:
        grant.keep(kept)
    return outcome is ReleaseResult.RELEASED


def _give_back(semaphore: SemaphoreState, held: HeldSlots) -> Procedure[ReleaseResult]:
    """Give back all slots, in several transactions if they are too many for one."""
    outcome = ReleaseResult.RELEASED
    for part in held.parts:
        if (yield from _give_back_part(semaphore, part)) is not ReleaseResult.RELEASED:
            outcome = ReleaseResult.NOT_OURS
    return outcome


def _give_back_part(semaphore: SemaphoreState, held: HeldSlots) -> Procedure[ReleaseResult]:
    """Take step after step; each is decided from what the one before has seen."""
    step: decisions.GiveBack = Drop()
    if held.has_message or semaphore.waiters:
        known = semaphore.queue.waiters or semaphore.queue.expected
        step = _next_step(semaphore, held) if known else Ask()
    for _ in range(MOST_STEPS):
        if isinstance(step, Gone):
            return ReleaseResult.NOT_OURS
        came_to = yield from _take_step(semaphore, held, step)
        match came_to:
            case ReleaseResult():
                return came_to
            case Vacated(seen):
                yield from _serve_queue(semaphore, seen)
                return ReleaseResult.RELEASED
            case Look():
                semaphore.learn(came_to.limit, came_to.revision)
                semaphore.queue.saw(came_to)
                step = decisions.give_back(semaphore.keys, held, came_to)
            case _:
                step = _next_step(semaphore, held)
    raise NotApplied("the queue changed faster than a slot could be handed over")


def _take_step(
    semaphore: SemaphoreState, held: HeldSlots, step: decisions.GiveBack
) -> Procedure[ReleaseResult | Vacated | Look | NotBatched]:
    """Take a step in a batch with other callers of this client if there are any, else alone.

    NOT_BATCHED: the batch did nothing for us, and the known state of the queue has changed.
    """
    slots = semaphore.slots
    if slots.passing.busy and _may_gather(step) and not held.more:
        part: BatchPart[HeldSlots] = BatchPart(held, semaphore.session.env.mailbox())
        passed = yield from together(slots.passing, part, math.inf, sender(semaphore.session))
        return passed if isinstance(passed, Look | NotBatched) else ReleaseResult.RELEASED
    if isinstance(step, Drop) and slots.may_share and not held.more:
        box = semaphore.session.env.mailbox()
        shared: BatchPart[transactions.Take | HeldSlots] = BatchPart(held, box)
        gave = yield from together(slots.group, shared, math.inf, sender(semaphore.session))
        if gave is not NOT_BATCHED:
            return ReleaseResult.RELEASED
    taking = STEPS[type(step)]
    txn = taking.build(semaphore, held, step)
    if taking.group is None:
        reply = yield from transact(semaphore.session, txn)
    else:
        reply = yield from alone_in_group(semaphore.session, taking.group(semaphore), txn)
    return taking.read(semaphore, held, step, reply)


def _may_gather(step: decisions.GiveBack) -> bool:
    """Can callers that take this step at the same time share a transaction?"""
    if isinstance(step, Pass):
        return not step.priorities
    return isinstance(step, Ask | Clear)


def _next_step(semaphore: SemaphoreState, held: HeldSlots) -> Ask | Pass | Vacate | Clear:
    """How to give back a slot, given what is known of the queue."""
    queue, limit = semaphore.queue, semaphore.limit
    if limit is not None and queue.waiters:
        return decisions.hand_over(held, limit, queue.waiters)
    expected = queue.expected
    if limit is not None and expected is not None and not held.more and held.who != expected.who:
        return Clear(queue.until, PassAlone(limit, expected))
    return Ask() if limit is None or queue.until == 0 else Clear(queue.until)


def _serve_queue(semaphore: SemaphoreState, seen: Look) -> Procedure[None]:
    """Serve the queue after the slots were given back. If it fails, watches have told others."""
    try:
        if not seen.queue and seen.complete:
            yield from transact(
                semaphore.session, transactions.uncontend(semaphore.keys, seen.revision)
            )
        else:
            until = semaphore.session.env.now() + RPC_TIMEOUT
            yield from reconcile(semaphore, seen, until=until)
    except Failure as failure:
        semaphore.session.env.log(
            logging.INFO,
            "semaphore %s: reconciliation failed; another client will serve the queue: %s",
            semaphore.name,
            failure,
        )
