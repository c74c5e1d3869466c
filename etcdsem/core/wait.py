"""A waiter in the queue, until it is granted a slot or leaves (LEAVE).

The first local waiter reads and reconciles for all waiters of its client (`station`, 3).
"""

from __future__ import annotations

import logging
import math

from etcdsem.core import decisions, transactions
from etcdsem.core.commands import AccessDenied, Failure, NotApplied, Procedure, Wait, perform
from etcdsem.core.keys import read_eviction, read_letter
from etcdsem.core.leases import RPC_TIMEOUT
from etcdsem.core.limits import refuse_too_heavy, semaphore_closed, too_heavy
from etcdsem.core.reconcile import recheck, reconcile_or_recheck
from etcdsem.core.retry import TryAgain, transact
from etcdsem.core.station import (
    Denied,
    Duty,
    Grant,
    Letter,
    OutOfLine,
    Over,
    Station,
    Waiting,
    Watched,
)
from etcdsem.errors import Evicted


def open_watches(station: Station, until: float) -> Procedure[bool]:
    """Have the station's watches up; False if `until` comes first."""
    if station.watching:
        return True
    env = station.session.env
    box = env.mailbox()
    station.expect_watches(box)
    note = yield from perform(Wait(box, min(until, env.now() + RPC_TIMEOUT)))
    if isinstance(note, Watched):
        if note.error is not None:
            raise note.error
        return True
    if env.now() >= until:
        return False
    starved = env.starved()
    raise NotApplied(f"no watch could be set up in time{starved and f' ({starved})'}")


def wait_in_line(
    station: Station, waiting: Waiting, until: float, *, room: bool
) -> Procedure[Grant | None]:
    """In line, until granted or until it is time to go."""
    session, env = station.session, station.session.env
    heal_at = env.now() if room else math.inf
    reread_at = session.next_reread()
    if station.on_duty(waiting) and station.duty_due:
        heal_at = env.now()
    while True:
        if too_heavy(station, waiting.wants.weight):
            grant = yield from _leave(station, waiting)
            if grant is not None:
                return grant  # the limit was lowered after that
            refuse_too_heavy(station, waiting.wants.weight)
            raise TryAgain("the limit was too low for it, and was raised again", full=True)
        on_duty = station.on_duty(waiting)
        wake = min(until, heal_at, reread_at) if on_duty else min(until, heal_at)
        note = yield from perform(Wait(waiting.box, wake))
        now = env.now()
        match note:
            case Letter():
                grant = _open(station, waiting, note)
                if grant is not None:
                    return grant
            case Over(revision=revision) if waiting.created <= revision:
                raise semaphore_closed(station)
            case Denied():
                # Our key may be there still: the lease is ended, not given back.
                session.keeper.settle_later(waiting.lease)
                raise note.error
            case OutOfLine():
                raise TryAgain(f"lost its place in line: {note.reason}", full=True)
            case Duty():
                if note.reread:
                    reread_at = now
                if station.duty_due:
                    window = decisions.healing_window(station.crowd)
                    heal_at = min(heal_at, now + window * env.random())
            case None if now >= until:
                return (yield from _leave(station, waiting))
            case None if now >= heal_at:
                heal_at = math.inf
                if station.healing:
                    station.duty_due = True  # one of ours is at it; if it missed something, then
                elif not (yield from _reconcile_for_client(station, until)):
                    heal_at = env.now() + 0.3 + env.random()
            case None if now >= reread_at:
                reread_at = session.next_reread()
                if not (yield from _tolerantly(recheck(station, until), station)):
                    reread_at = env.now() + 0.3 + env.random()
            case _:
                pass


def _tolerantly(work: Procedure[None], station: Station) -> Procedure[bool]:
    """Do something for everybody that may fail without harm to this waiter."""
    try:
        yield from work
    except AccessDenied as failure:
        station.denied(failure)  # no use in waiting, for none of us
        return False
    except Failure as failure:
        station.session.env.log(
            logging.INFO, "semaphore %s: could not look after it now: %s", station.name, failure
        )
        return False
    return True


def _reconcile_for_client(station: Station, until: float) -> Procedure[bool]:
    """Heal, one of this client's waiters at a time: thousands would only be in each other's way."""
    station.healing, station.duty_due = True, False
    try:
        done = yield from _tolerantly(reconcile_or_recheck(station, until), station)
    except BaseException:
        station.duty_due = True  # interrupted: the next one's duty
        raise
    finally:
        station.healing = False
        if station.duty_due:
            station.call_duty(reread=False)
    station.duty_due = station.duty_due or not done
    return done


def _open(station: Station, waiting: Waiting, letter: Letter) -> Grant | None:
    """The grant in a letter; None if it is an old one, or not from us. Raises Evicted."""
    kv = letter.kv
    if kv.mod_revision <= waiting.created:
        return None
    by = read_eviction(kv.value)
    if by is not None:
        raise Evicted(f"acquire {station.name!r}: evicted from the queue {by}")
    if kv.lease != waiting.lease.id:
        return None
    content = read_letter(kv.value, station.line_until)
    if content is None:
        station.session.env.log(
            logging.WARNING, "semaphore %s: cannot read the letter %s", station.name, kv.key
        )
        return None
    slots, queue = content
    if queue:
        station.learn_line(queue, queue[-1].created)
    if not waiting.wants.priority and not waiting.wants.eager:  # they pass others
        station.served(waiting.created)
    if len(slots) != waiting.wants.weight:  # who sent it does not know weights
        raise TryAgain(f"{len(slots)} slots were granted instead of {waiting.wants.weight}")
    if not waiting.lease.valid(station.session.env.now()):
        raise TryAgain("a slot was granted, but its lease had run out meanwhile")
    station.exit(waiting)
    slot, *more = slots
    return Grant(
        station,
        waiting.lease,
        waiting.who,
        slot,
        kv.mod_revision,
        letter=True,
        more=tuple(more),
    )


def _leave(station: Station, waiting: Waiting) -> Procedure[Grant | None]:
    """LEAVE. A slot that was granted meanwhile is taken. Raises Evicted."""
    session, keys = station.session, station.keys
    txn = transactions.leave(keys, waiting.who, waiting.created)
    try:
        reply = yield from transact(session, txn)
    except Failure as failure:
        session.env.log(
            logging.INFO,
            "semaphore %s: left the line by ending the lease: %s",
            station.name,
            failure,
        )
        session.keeper.settle_later(waiting.lease)
        return None
    left, letter, empty = transactions.read_leave(reply)
    if not left:
        grant = _open(station, waiting, Letter(letter)) if letter is not None else None
        if grant is None:
            session.keeper.settle_later(waiting.lease)
        return grant
    if empty:
        try:
            yield from transact(session, transactions.uncontend(keys, reply.revision))
        except Failure as failure:
            session.env.log(
                logging.DEBUG, "semaphore %s: the mark stays: %s", station.name, failure
            )
    return None
