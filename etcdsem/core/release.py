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
from etcdsem.core.leases import RPC_TIMEOUT, TtlLease
from etcdsem.core.reconcile import look, reconcile
from etcdsem.core.retry import alone_in_group, sender, sleep, transact
from etcdsem.core.station import Grant, Session, Station
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
    station = grant.station
    keeper = station.session.keeper
    try:  # from here on, whatever interrupts: Ctrl-C may strike at any byte code
        grant.state = "releasing"
        grant.detach()
        now = station.session.env.now()
        if not grant.lease.valid(now):
            grant.count_lost(grant.lease.overrun(now) or "its lease ran out before it was released")
            keeper.settle_later(grant.lease)
            return False
        there = yield from _give_back(grant)
    except Failure as failure:
        level = logging.WARNING if isinstance(failure, AccessDenied) else logging.INFO
        station.session.env.log(
            level, "semaphore %s: releasing by ending the lease: %s", station.name, failure
        )
        grant.given_back()
        return (yield from _release_by_revoking(grant))
    except BaseException:
        grant.detach()
        grant.given_back()
        keeper.settle_later(grant.lease)
        raise
    if not there and station.session.closed:
        grant.given_back()  # shutdown has revoked its lease meanwhile
        keeper.settle_later(grant.lease)
        return True
    if not there:
        grant.count_lost("its key in etcd was gone when it was released")
        keeper.settle_later(grant.lease)
        return False
    grant.given_back()
    for slot in grant.slots:
        station.freed(slot)
    keeper.give_back(grant.lease)
    return True


def _release_by_revoking(grant: Grant) -> Procedure[bool]:
    """Give it back by ending its lease. What cannot be done in time goes on beside the caller."""
    session, lease = grant.station.session, grant.lease
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
            grant.station.name,
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


def _give_together(station: Station, mine: transactions.Mine) -> Procedure[bool]:
    """Give a slot back by a batch. False says nothing."""
    if not station.may_share or mine.more:
        return False
    part: Part[transactions.Take | transactions.Mine] = Part(mine, station.session.env.mailbox())
    return (yield from together(station.group, part, math.inf, sender(station.session))) is not None


def _pass_together(station: Station, mine: transactions.Mine) -> Procedure[bool | Look | None]:
    """Hand a slot over by a batch. None says nothing, a Look that nothing was handed over."""
    part: Part[transactions.Mine] = Part(mine, station.session.env.mailbox())
    return (yield from together(station.passing, part, math.inf, sender(station.session)))


def _passing(station: Station, txn: Txn) -> Procedure[TxnReply]:
    """A transaction that hands over one slot, while which others may gather."""
    return alone_in_group(station.session, station.passing, txn)


def _may_gather(step: object) -> bool:
    """Do those who are to take this step at the same time share a transaction?"""
    if isinstance(step, decisions.Pass):
        return not step.priorities
    return isinstance(step, decisions.Ask | decisions.Clear)


def _to_next(
    station: Station, mine: transactions.Mine
) -> decisions.Ask | decisions.Pass | decisions.Vacate | decisions.Clear:
    """How to give back a slot by what is known of the line."""
    if station.limit is None or station.line_until == 0:
        return decisions.Ask()
    if station.line:
        return decisions.hand_over(mine, station.limit, station.line)
    return decisions.Clear(station.line_until)


def _give_back(grant: Grant) -> Procedure[bool]:
    """DROP, PASS, CLEAR, RETIRE or VACATE, whichever it takes. False: it was not ours any more."""
    station = grant.station
    session, keys, env = station.session, station.keys, station.session.env
    mine = grant.mine
    step: object = None
    if grant.letter or station.waiting:
        step = _to_next(station, mine) if station.line else decisions.Ask()
    for _ in range(100):
        if station.passing.busy and _may_gather(step) and not mine.more:
            passed = yield from _pass_together(station, mine)
            if passed is True:
                return True
            if isinstance(passed, Look):
                station.learn(passed.limit, passed.revision)
                station.saw_line(passed)
                step = decisions.give_back(keys, mine, passed)
            else:
                step = _to_next(station, mine)
            continue
        match step:
            case None:
                if (yield from _give_together(station, mine)):
                    return True
                reply = yield from alone_in_group(
                    session, station.group, transactions.drop(keys, mine)
                )
                station.contended = not reply.succeeded
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
                    yield from _after_vacate(station, vacated)
                return vacated is not None
            case decisions.Ask():
                reply = yield from _passing(station, Txn((), transactions.look(keys)))
                seen = transactions.read_look(keys, reply, reply.revision)
            case decisions.Clear(revision=revision):
                txn = transactions.clear(keys, mine, revision)
                reply = yield from _passing(station, txn)
                station.contended = not reply.succeeded
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
                reply = yield from _passing(station, txn)
                after = transactions.read_pass(keys, reply, queue[:depth])
                if not isinstance(after, Look):
                    if not step.priorities:
                        station.served(after.created)
                    return True
                station.forget_line()  # they have gone
                seen = after
            case decisions.ReadAll():
                seen = yield from look(station, queue=0)
                if not seen.queue:
                    seen = seen._replace(complete=True)
            case _:
                raise AssertionError(f"no such step: {step}")
        station.learn(seen.limit, seen.revision)
        station.saw_line(seen)
        step = decisions.give_back(keys, mine, seen)
    raise NotApplied("the queue changed faster than a slot could be handed over")


def _after_vacate(station: Station, seen: Look) -> Procedure[None]:
    """The slots are given back; now see to those in line. If it fails, watches have told others."""
    try:
        if not seen.queue and seen.complete:
            yield from transact(
                station.session, transactions.uncontend(station.keys, seen.revision)
            )
        else:
            until = station.session.env.now() + RPC_TIMEOUT
            yield from reconcile(station, seen, until=until)
    except Failure as failure:
        station.session.env.log(
            logging.INFO, "semaphore %s: others will serve the line: %s", station.name, failure
        )
