"""Give a slot back: DROP, PASS, CLEAR, RETIRE or VACATE, whichever it takes.

A release never raises because of etcd: what etcd cannot be told now is settled by revoking the
lease.
"""

from __future__ import annotations

import logging
import math

from etcdsem.core import decisions, transactions
from etcdsem.core.batching import Part, together
from etcdsem.core.commands import (
    AccessDenied,
    Failure,
    LeaseNotFound,
    NotApplied,
    Procedure,
    RevokeLease,
    Txn,
    TxnReply,
    perform,
)
from etcdsem.core.grants import Grant
from etcdsem.core.leases import RPC_TIMEOUT, TtlLease
from etcdsem.core.reconcile import look, reconcile
from etcdsem.core.retry import alone_in_group, sender, sleep, transact
from etcdsem.core.semaphore import SemaphoreState
from etcdsem.core.session import Session
from etcdsem.core.transactions import Look
from etcdsem.model import duration_text

RELEASE_PATIENCE = 5.0
"""Seconds that etcd may be away before a release leaves the slot to the TTL."""


def release(grant: Grant) -> Procedure[bool]:
    """Give a slot back. True: etcd knows. False: it was lost before, or etcd can't be told now.

    Never raises for etcd's sake.
    """
    if grant.state != "held":
        grant.let_go()
        return False
    semaphore = grant.semaphore
    keeper = semaphore.session.keeper
    try:  # from here on, whatever interrupts: Ctrl-C may strike at any byte code
        grant.release_begins()
        now = semaphore.session.env.now()
        if not grant.lease.valid(now):
            grant.count_lost(grant.lease.overrun(now) or "its lease ran out before it was released")
            keeper.settle_later(grant.lease)
            return False
        there = yield from _give_back(grant)
    except Failure as failure:
        level = logging.WARNING if isinstance(failure, AccessDenied) else logging.INFO
        semaphore.session.env.log(
            level, "semaphore %s: releasing by ending the lease: %s", semaphore.name, failure
        )
        grant.given_back()
        return (yield from _release_by_revoking(grant))
    except BaseException:
        grant.detach()
        grant.given_back()
        keeper.settle_later(grant.lease)
        raise
    if not there and semaphore.session.closed:
        grant.given_back()  # shutdown has revoked its lease meanwhile
        keeper.settle_later(grant.lease)
        return True
    if not there:
        grant.count_lost("its key in etcd was gone when it was released")
        keeper.settle_later(grant.lease)
        return False
    grant.given_back()
    for slot in grant.slots:
        semaphore.slots.freed(slot)
    keeper.give_back(grant.lease)
    return True


def _release_by_revoking(grant: Grant) -> Procedure[bool]:
    """Give it back by ending its lease. What cannot be done in time goes on beside the caller."""
    session, lease = grant.semaphore.session, grant.lease
    session.keeper.retire(lease)
    try:
        yield from _revoke(session, lease)
    except BaseException as error:
        session.keeper.settle_id(lease.id, lease.ttl)
        if not isinstance(error, Failure):
            raise
        session.env.log(
            logging.WARNING,
            "semaphore %s: slot %d could not be released: %s. Its lease is not refreshed any more, "
            "so etcd frees the slot when the TTL of %s is over",
            grant.semaphore.name,
            grant.slot,
            error or type(error).__name__,
            duration_text(lease.ttl),
        )
        return False
    return True


def _revoke(session: Session, lease: TtlLease) -> Procedure[None]:
    """End a lease, tried again for `RELEASE_PATIENCE`, and not after it has ended by itself."""
    env = session.env
    now = env.now()
    until = min(now + min(RELEASE_PATIENCE, session.grace(now)), lease.sent + lease.ttl)
    pause = 0.05
    while True:
        try:
            yield from perform(RevokeLease(lease.id, max(0.1, min(RPC_TIMEOUT, until - now))))
            return
        except LeaseNotFound:
            return
        except AccessDenied:
            raise
        except Failure:
            if lease.id in session.keeper.ended:
                return  # by `shutdown`
            if env.now() + pause >= min(until, session.keeper.until):
                raise
        yield from sleep(session, pause * (0.5 + env.random()))
        now = env.now()
        pause = min(2 * pause, 1.0)


def _give_together(semaphore: SemaphoreState, mine: transactions.Mine) -> Procedure[bool]:
    """Give a slot back by a batch. False says nothing."""
    if not semaphore.slots.may_share or mine.more:
        return False
    part: Part[transactions.Take | transactions.Mine] = Part(mine, semaphore.session.env.mailbox())
    return (
        yield from together(semaphore.slots.group, part, math.inf, sender(semaphore.session))
    ) is not None


def _pass_together(
    semaphore: SemaphoreState, mine: transactions.Mine
) -> Procedure[bool | Look | None]:
    """Hand a slot over by a batch. None says nothing, a Look that nothing was handed over."""
    part: Part[transactions.Mine] = Part(mine, semaphore.session.env.mailbox())
    return (yield from together(semaphore.slots.passing, part, math.inf, sender(semaphore.session)))


def _passing(semaphore: SemaphoreState, txn: Txn) -> Procedure[TxnReply]:
    """A transaction that hands over one slot, while which others may gather."""
    return alone_in_group(semaphore.session, semaphore.slots.passing, txn)


def _may_gather(step: object) -> bool:
    """Do those who are to take this step at the same time share a transaction?"""
    if isinstance(step, decisions.Pass):
        return not step.priorities
    return isinstance(step, decisions.Ask | decisions.Clear)


def _to_next(
    semaphore: SemaphoreState, mine: transactions.Mine
) -> decisions.Ask | decisions.Pass | decisions.Vacate | decisions.Clear:
    """How to give back a slot by what is known of the line."""
    if semaphore.limit is None or semaphore.queue.until == 0:
        return decisions.Ask()
    if semaphore.queue.waiters:
        return decisions.hand_over(mine, semaphore.limit, semaphore.queue.waiters)
    return decisions.Clear(semaphore.queue.until)


def _give_back(grant: Grant) -> Procedure[bool]:
    """DROP, PASS, CLEAR, RETIRE or VACATE, whichever it takes. False: it was not ours any more."""
    semaphore = grant.semaphore
    session, keys, env = semaphore.session, semaphore.keys, semaphore.session.env
    mine = grant.mine
    step: object = None
    if grant.letter or semaphore.waiters:
        step = _to_next(semaphore, mine) if semaphore.queue.waiters else decisions.Ask()
    for _ in range(100):
        if semaphore.slots.passing.busy and _may_gather(step) and not mine.more:
            passed = yield from _pass_together(semaphore, mine)
            if passed is True:
                return True
            if isinstance(passed, Look):
                semaphore.learn(passed.limit, passed.revision)
                semaphore.queue.saw(passed)
                step = decisions.give_back(keys, mine, passed)
            else:
                step = _to_next(semaphore, mine)
            continue
        match step:
            case None:
                if (yield from _give_together(semaphore, mine)):
                    return True
                reply = yield from alone_in_group(
                    session, semaphore.slots.group, transactions.drop(keys, mine)
                )
                semaphore.queue.set_contended(not reply.succeeded)
                if reply.succeeded:
                    return True
                seen = transactions.read_look(keys, reply, reply.revision)
            case decisions.Gone():
                return False
            case decisions.Retire():
                reply = yield from transact(session, transactions.retire(keys, mine))
                return reply.succeeded
            case decisions.Vacate():
                reply = yield from transact(session, transactions.vacate(keys, mine))
                vacated = transactions.read_vacate(keys, reply)
                if vacated is not None:
                    yield from _after_vacate(semaphore, vacated)
                return vacated is not None
            case decisions.Ask():
                reply = yield from _passing(semaphore, Txn((), transactions.look(keys)))
                seen = transactions.read_look(keys, reply, reply.revision)
            case decisions.Clear(revision=revision):
                txn = transactions.clear(keys, mine, revision)
                reply = yield from _passing(semaphore, txn)
                semaphore.queue.set_contended(not reply.succeeded)
                if reply.succeeded:
                    return True
                seen = transactions.read_look(keys, reply, reply.revision)
            case decisions.Pass(limit=limit, queue=queue):
                depth = decisions.pass_depth(limit, queue)
                txn = transactions.pass_on(
                    keys,
                    mine,
                    limit,
                    queue,
                    depth,
                    env.wall(),
                    priorities=step.priorities,
                    seen=step.seen,
                )
                reply = yield from _passing(semaphore, txn)
                after = transactions.read_pass(keys, reply, queue[:depth])
                if not isinstance(after, Look):
                    if not step.priorities:
                        semaphore.queue.served(after.created)
                    return True
                semaphore.queue.forget()  # they have gone
                seen = after
            case decisions.ReadAll():
                seen = yield from look(semaphore, queue=0)
                if not seen.queue:
                    seen = seen._replace(complete=True)
            case _:
                raise AssertionError(f"no such step: {step}")
        semaphore.learn(seen.limit, seen.revision)
        semaphore.queue.saw(seen)
        step = decisions.give_back(keys, mine, seen)
    raise NotApplied("the queue changed faster than a slot could be handed over")


def _after_vacate(semaphore: SemaphoreState, seen: Look) -> Procedure[None]:
    """The slots are given back; now see to those in line. If it fails, watches have told others."""
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
            logging.INFO, "semaphore %s: others will serve the line: %s", semaphore.name, failure
        )
