"""What a client does: acquire, wait, release, heal, look, close. The rules:

1. One lease for each attempt. When the outcome of a write that carries it is unknown, the attempt
   is over and its lease is revoked until etcd says that it is gone; the next attempt has another.
2. A grant is given to the caller only while its lease is valid by the local clock.
3. Whatever interrupts an acquire (an exception thrown in at any yield) leaves the line and gives
   back what may have been granted: revoking the attempt's lease does both.
4. A release never raises for etcd's sake: what cannot be told now is settled by revoking.
5. `False` only ever means "full": if etcd was away all the time, that is an error.
6. Waiters re-read what watches may have missed, and heal what nobody else has.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import NamedTuple

from etcdsem.core import decisions, transactions
from etcdsem.core.commands import (
    AccessDenied,
    Failure,
    KeyValue,
    LeaseNotFound,
    NoSpace,
    NotApplied,
    OutcomeUnknown,
    Procedure,
    RevokeLease,
    Transact,
    Txn,
    TxnReply,
    Wait,
    perform,
)
from etcdsem.core.keys import (
    Identity,
    Limit,
    read_holders,
    read_letter,
    read_limit,
    read_waiters,
)
from etcdsem.core.leases import RPC_TIMEOUT, TtlLease, take
from etcdsem.core.outward import public_error
from etcdsem.core.station import (
    Duty,
    Grant,
    Letter,
    OutOfLine,
    Over,
    Session,
    Station,
    Waiting,
    Watched,
)
from etcdsem.core.transactions import Held, Look
from etcdsem.errors import EtcdSemError, SemaphoreClosed

log = logging.getLogger("etcdsem")

HEAL_DELAY = 0.02
"""Before healing what all clients see at once, each waits for a random part of this."""

FIRST_CONTACT = 10.0
"""Seconds to try to reach etcd before an acquire without a timeout gives up, when this client
has never reached it."""

PATIENCE = 60.0
"""The same when etcd was there before and is away now."""


class Order(NamedTuple):
    """What an acquire asks for: a lease of `ttl` seconds, refreshed every `refresh` seconds."""

    ttl: int
    refresh: float
    identity: Identity
    on_wait: Callable[[], object] | None = None
    """Called once it is known that we are in line."""


class _TryAgain(Exception):
    """This attempt is over without an outcome. `full`: it was in line, so there was no room."""

    def __init__(self, why: str, *, full: bool = False) -> None:
        super().__init__(why)
        self.full = full


def transact(session: Session, txn: Txn, until: float = math.inf) -> Procedure[TxnReply]:
    """One transaction. Towards the caller's deadline it gets at least a second."""
    now = session.env.now()
    timeout = max(1.0, min(RPC_TIMEOUT, until - now))
    reply = yield from perform(Transact(txn, min(timeout, session.grace(now))))
    session.keeper.last_contact = session.env.now()
    return reply


def read(session: Session, txn: Txn) -> Procedure[TxnReply]:
    """A transaction that only reads (or is right when applied twice): tried again for a while."""
    until = session.env.now() + FIRST_CONTACT
    pause = 0.05
    while True:
        try:
            return (yield from transact(session, txn, until))
        except (NotApplied, OutcomeUnknown) as failure:
            if isinstance(failure, NoSpace) or session.env.now() + pause >= until:
                raise
        yield from sleep(session, pause * (0.5 + session.env.random()))
        pause = min(2 * pause, 1.0)


def sleep(session: Session, seconds: float) -> Procedure[None]:
    """Nothing for a while."""
    yield from perform(Wait(session.env.mailbox(), session.env.now() + seconds))


def _closed(station: Station) -> SemaphoreClosed:
    return SemaphoreClosed(
        f"semaphore {station.name!r} is not known: it was closed, or never registered "
        f"(there is no key {station.keys.max_leases.decode()})"
    )


# ---------------------------------------------------------------- acquire


def acquire(station: Station, order: Order, until: float, *, once: bool) -> Procedure[Grant | None]:
    """A grant, or None if there was no room until `until` (`once`: right now).

    Raises SemaphoreClosed, EtcdUnavailable, or a Failure that is not worth another try.
    """
    session = station.session
    env = session.env
    began = env.now()
    seen_full = False
    pause = 0.02
    while True:
        try:
            grant = yield from _attempt(station, order, until, once=once)
            if grant is not None or once or env.now() >= until:
                return grant
            seen_full = True
            continue
        except (_TryAgain, LeaseNotFound) as again:
            # LeaseNotFound: etcd has ended a lease of the pool. Definite; another will do.
            log.warning("semaphore %s: %s; trying again", station.name, again)
            seen_full = seen_full or (isinstance(again, _TryAgain) and again.full)
            wait = 0.01 * env.random()
        except (NoSpace, NotApplied, OutcomeUnknown) as failure:
            now = env.now()
            heard = session.keeper.last_contact
            away = now - max(heard, began)
            patience = PATIENCE if heard > -math.inf else FIRST_CONTACT
            if isinstance(failure, NoSpace):
                raise  # it may last until somebody mends it, and waiting would hide it
            if once or now + pause >= until or (until == math.inf and away >= patience):
                if seen_full and now + pause >= until:
                    return None
                raise public_error(failure, f"acquire {station.name!r}") from failure
            wait = pause * (0.5 + env.random())
            pause = min(2 * pause, 1.0)
        if wait:
            yield from sleep(session, min(wait, max(0.0, until - env.now())))


def _attempt(
    station: Station, order: Order, until: float, *, once: bool
) -> Procedure[Grant | None]:
    """One attempt with one lease."""
    session = station.session
    if session.closed:
        raise EtcdSemError(f"semaphore {station.name!r}: its client was closed")
    if station.limit is None:
        yield from learn_limit(station)
    watching = station.watching
    lease = yield from take(session.keeper, order.ttl)
    lease.refresh = min(order.refresh, lease.ttl / 2)
    try:
        if once or not watching:
            grant = yield from _try(station, order, lease, until, thorough=once)
            if grant is not None or once:
                if grant is None:
                    session.keeper.give_back(lease)
                return grant
            if (yield from watch(station, until)):
                grant = yield from _join(station, order, lease, until, look=not watching)
            else:  # no time for the line; is it really full?
                grant = yield from _try(station, order, lease, until, thorough=True)
        else:
            grant = yield from _join(station, order, lease, until, look=False)
        if grant is None:
            session.keeper.give_back(lease)
        return grant
    except (NotApplied, AccessDenied):
        session.keeper.give_back(lease)  # refused before anything was written
        raise
    except Exception:
        session.keeper.settle_later(lease)
        raise
    except BaseException:
        # Interrupted. Out of the line now, while the caller still waits for us.
        yield from _withdraw(session, lease)
        raise


def _withdraw(session: Session, lease: TtlLease) -> Procedure[None]:
    session.keeper.retire(lease)
    try:
        yield from perform(RevokeLease(lease.id, 1.5))
    except LeaseNotFound:
        pass
    except BaseException:
        session.keeper.settle_id(lease.id, lease.ttl)


def learn_limit(station: Station) -> Procedure[Limit]:
    """Read the limit; raises SemaphoreClosed if there is none."""
    reply = yield from transact(
        station.session, Txn((), transactions.look(station.keys, queue=1)[:1])
    )
    kvs = transactions.as_range(reply.replies[0]).kvs
    station.learn(read_limit(kvs[0]) if kvs else None, reply.revision)
    if station.limit is None:
        raise _closed(station)
    return station.limit


def _known_limit(station: Station) -> Limit:
    if station.limit is None:
        raise _closed(station)
    return station.limit


def _granted(station: Station, lease: TtlLease, who: bytes, held: Held) -> Grant:
    """Publish a grant, if its lease is still good at this moment."""
    if not lease.valid(station.session.env.now()):
        raise _TryAgain("a slot was granted, but its lease had run out meanwhile")
    return Grant(station, lease, who, held.slot, held.token, letter=False, queue=())


def _try(
    station: Station, order: Order, lease: TtlLease, until: float, *, thorough: bool
) -> Procedure[Grant | None]:
    """TRY. If `thorough`, None means that it is full, or that others are in line."""
    session, keys, env = station.session, station.keys, station.session.env
    who = session.who(lease)
    # The slots are chosen by one limit, and the transaction holds only while that one stands.
    limit = _known_limit(station)
    slots = decisions.candidates(limit, station.favourite, env.random())
    counted_at = 0
    for _ in range(8):
        txn = transactions.join(
            keys,
            limit,
            slots,
            lease.id,
            who,
            order.identity,
            env.wall(),
            stand_in_line=False,
            counted_at=counted_at,
        )
        reply = yield from transact(session, txn, until)
        result = transactions.read_join(keys, reply, slots, stand_in_line=False)
        if isinstance(result, Held):
            return _granted(station, lease, who, result)
        if not isinstance(result, transactions.Full):
            raise AssertionError(f"TRY stood in line: {result}")
        station.learn(result.limit, reply.revision)
        if result.limit is None:
            raise _closed(station)
        if not thorough or (result.held >= result.limit.room and not result.contended):
            return None
        # Not evidently full: a mark that nobody took away, a heal that is due, other slots.
        reply = yield from transact(session, Txn((), transactions.look(keys)), until)
        seen = transactions.read_look(keys, reply, reply.revision)
        station.learn(seen.limit, seen.revision)
        if seen.limit is None:
            raise _closed(station)
        limit = seen.limit
        if seen.contended and (seen.queue or not seen.complete):
            yield from heal(station, seen)
            _known_limit(station)  # raises if it was closed meanwhile
            return None
        slots = decisions.free_slots(keys, seen)
        counted_at = 0
        if decisions.has_surplus(keys, seen):
            if decisions.held_count(keys, seen) >= limit.room:
                return None
            counted_at, slots = seen.revision, slots[:1]
        if not slots:
            return None
        if seen.contended:
            yield from transact(session, transactions.uncontend(keys, seen.revision), until)
    return None


def watch(station: Station, until: float) -> Procedure[bool]:
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
    raise NotApplied("no watch could be set up in time")


def _join(
    station: Station, order: Order, lease: TtlLease, until: float, *, look: bool
) -> Procedure[Grant | None]:
    """JOIN, and wait if that put us in line. `look`: for room that a count would not show."""
    session, env = station.session, station.session.env
    who = session.who(lease)
    limit = _known_limit(station)
    slots = decisions.candidates(limit, station.favourite, env.random())
    txn = transactions.join(
        station.keys, limit, slots, lease.id, who, order.identity, env.wall(), stand_in_line=True
    )
    waiting = Waiting(lease, who, env.mailbox(), env.now())
    station.enter(waiting)  # before JOIN: the letter may be faster than JOIN's answer
    lease.on_lost = lambda reason: waiting.box.put(OutOfLine(reason))
    try:
        reply = yield from transact(session, txn, until)
        result = transactions.read_join(station.keys, reply, slots, stand_in_line=True)
        if isinstance(result, Held):
            return _granted(station, lease, who, result)
        if isinstance(result, transactions.Full):
            station.learn(None, reply.revision)
            raise _closed(station)
        waiting.created = result.created
        station.learn(result.limit, reply.revision)
        room = look or result.held < _known_limit(station).room
        if order.on_wait is not None:
            env.call(order.on_wait, "on_wait")
        return (yield from _wait(station, waiting, until, room=room))
    finally:
        station.exit(waiting)
        if lease.on_lost is not None and lease.id not in station.grants:
            lease.on_lost = None


# ---------------------------------------------------------------- waiting


def _wait(
    station: Station, waiting: Waiting, until: float, *, room: bool
) -> Procedure[Grant | None]:
    """In line, until granted or until it is time to go."""
    env = station.session.env
    heal_at = env.now() if room else math.inf
    reread_at = _next_reread(station)
    if station.on_duty(waiting) and station.duty_due:
        heal_at = env.now()
    while True:
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
                raise _closed(station)
            case OutOfLine():
                raise _TryAgain(f"lost its place in line: {note.reason}", full=True)
            case Duty():
                if note.reread:
                    reread_at = now
                if station.duty_due:
                    heal_at = min(heal_at, now + HEAL_DELAY * env.random())
            case None if now >= until:
                return (yield from _leave(station, waiting))
            case None if now >= heal_at:
                heal_at = math.inf
                station.duty_due = False
                if not (yield from _tried(heal(station), station)):
                    heal_at = env.now() + 0.3 + env.random()
            case None if now >= reread_at:
                reread_at = _next_reread(station)
                if not (yield from _tried(reread(station), station)):
                    reread_at = env.now() + 0.3 + env.random()
            case _:
                pass


def _next_reread(station: Station) -> float:
    session = station.session
    low, high = session.reread
    return session.env.now() + low + (high - low) * session.env.random()


def _tried(work: Procedure[None], station: Station) -> Procedure[bool]:
    """Do something for everybody that may fail without harm to this waiter."""
    try:
        yield from work
    except Failure as failure:
        log.info("semaphore %s: could not look after it now: %s", station.name, failure)
        return False
    return True


def _open(station: Station, waiting: Waiting, letter: Letter) -> Grant | None:
    """The grant in a letter; None if it is an old one, or not from us."""
    kv = letter.kv
    if kv.mod_revision <= waiting.created or kv.lease != waiting.lease.id:
        return None
    content = read_letter(kv.value)
    if content is None:
        log.warning("semaphore %s: cannot read the letter %s", station.name, kv.key)
        return None
    slot, queue = content
    if not waiting.lease.valid(station.session.env.now()):
        raise _TryAgain("a slot was granted, but its lease had run out meanwhile")
    station.exit(waiting)
    return Grant(
        station, waiting.lease, waiting.who, slot, kv.mod_revision, letter=True, queue=queue
    )


def _leave(station: Station, waiting: Waiting) -> Procedure[Grant | None]:
    """LEAVE. A slot that was granted meanwhile is taken."""
    session, keys = station.session, station.keys
    txn = transactions.leave(keys, waiting.who, waiting.created)
    try:
        reply = yield from transact(session, txn)
    except Failure as failure:
        log.info("semaphore %s: left the line by ending the lease: %s", station.name, failure)
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
            log.debug("semaphore %s: the mark stays: %s", station.name, failure)
    return None


# ---------------------------------------------------------------- healing


def heal(station: Station, seen: Look | None = None) -> Procedure[None]:
    """FILL free slots with those in line, whoever should have done it."""
    session, keys, env = station.session, station.keys, station.session.env
    if seen is None:
        seen = yield from _look(station)
    while True:
        station.learn(seen.limit, seen.revision)
        if seen.limit is None:
            station.over(seen.revision)
            return
        step = decisions.next_fill(keys, seen)
        if step is None:
            return
        if isinstance(step, decisions.ReadAll):
            seen = yield from _look(station, queue=0)
            if not seen.queue:
                return
            continue
        txn = transactions.fill(
            keys, seen, step.slot, step.waiter, step.behind, env.wall(), surplus=step.surplus
        )
        reply = yield from transact(session, txn)
        if not reply.succeeded:
            seen = transactions.read_look(keys, reply, reply.revision)
        elif step.surplus or (not step.behind and not seen.complete):
            seen = yield from _look(station)
        else:
            filled = KeyValue(keys.slot(step.slot), b"", reply.revision, reply.revision)
            seen = seen._replace(slots=(*seen.slots, filled), queue=step.behind)


def _look(station: Station, queue: int = transactions.QUEUE_READ) -> Procedure[Look]:
    txn = Txn((), transactions.look(station.keys, queue))
    reply = yield from transact(station.session, txn)
    return transactions.read_look(station.keys, reply, reply.revision)


def reread(station: Station) -> Procedure[None]:
    """Read what the watches should have told to all local waiters, and heal."""
    reply = yield from transact(station.session, transactions.recheck(station.keys))
    seen = transactions.read_recheck(station.keys, reply)
    station.learn(seen.limit, seen.revision)
    if seen.limit is None:
        station.over(seen.revision)
        return
    granted = {kv.lease for kv in seen.letters}
    for letter in seen.letters:
        station.deliver(letter)
    for waiting in list(station.waiting.values()):
        if (
            0 < waiting.created <= seen.revision
            and waiting.who not in seen.waiting
            and waiting.lease.id not in granted
        ):
            waiting.box.put(OutOfLine("its key in etcd is gone"))
    yield from heal(station)


# ---------------------------------------------------------------- release


def release(grant: Grant) -> Procedure[bool]:
    """Give a slot back. True: etcd knows. False: it was lost before, or etcd can't be told now.

    Never raises for etcd's sake.
    """
    if grant.state != "held":
        return False
    station = grant.station
    keeper = station.session.keeper
    grant.state = "releasing"
    grant.detach()
    if not grant.lease.valid(station.session.env.now()):
        grant.state = "lost"
        grant.lost_reason = "its lease ran out before it was released"
        keeper.settle_later(grant.lease)
        return False
    try:
        there = yield from _give_back(grant)
    except Failure as failure:
        log.info("semaphore %s: releasing by ending the lease: %s", station.name, failure)
        grant.state = "released"
        return (yield from _release_by_revoking(grant))
    except BaseException:
        grant.state = "released"
        keeper.settle_later(grant.lease)
        raise
    if not there:
        grant.state = "lost"
        grant.lost_reason = "its key in etcd was gone when it was released"
        keeper.settle_later(grant.lease)
        return False
    grant.state = "released"
    station.favourite = grant.slot
    keeper.give_back(grant.lease)
    return True


def _release_by_revoking(grant: Grant) -> Procedure[bool]:
    keeper = grant.station.session.keeper
    keeper.retire(grant.lease)
    grace = grant.station.session.grace(keeper.env.now())
    try:
        yield from perform(RevokeLease(grant.lease.id, min(RPC_TIMEOUT, grace)))
    except LeaseNotFound:
        return True
    except BaseException as error:
        keeper.settle_id(grant.lease.id, grant.lease.ttl)
        if isinstance(error, Failure):
            return False
        raise
    return True


def _give_back(grant: Grant) -> Procedure[bool]:
    """DROP, PASS, CLEAR or RETIRE, whichever it takes. False: it was not ours any more."""
    station = grant.station
    session, keys, env = station.session, station.keys, station.session.env
    mine = grant.mine
    step: object
    if grant.queue and station.limit is not None:
        step = decisions.Pass(station.limit, grant.queue)
    elif grant.letter or station.waiting:
        seen = yield from _look(station)
        step = decisions.give_back(keys, mine, seen)
    else:
        step = None
    for _ in range(50):
        match step:
            case None:
                reply = yield from transact(session, transactions.drop(keys, mine))
                if reply.succeeded:
                    return True
                seen = transactions.read_look(keys, reply, reply.revision)
            case decisions.Gone():
                return False
            case decisions.Retire():
                reply = yield from transact(session, transactions.retire(keys, mine))
                return reply.succeeded
            case decisions.Clear(revision=revision):
                reply = yield from transact(session, transactions.clear(keys, mine, revision))
                if reply.succeeded:
                    return True
                seen = transactions.read_look(keys, reply, reply.revision)
            case decisions.Pass(limit=limit, queue=queue):
                depth = decisions.pass_depth(limit, queue)
                txn = transactions.pass_on(keys, mine, limit, queue, depth, env.wall())
                reply = yield from transact(session, txn)
                after = transactions.read_pass(keys, reply, depth)
                if after is None:
                    return True
                seen = after
            case decisions.ReadAll():
                seen = yield from _look(station, queue=0)
                if not seen.queue:
                    seen = seen._replace(complete=True)
            case _:
                raise AssertionError(f"no such step: {step}")
        station.learn(seen.limit, seen.revision)
        step = decisions.give_back(keys, mine, seen)
    raise NotApplied("the queue changed faster than a slot could be handed over")


# ---------------------------------------------------------------- the semaphore as a whole


def register(station: Station, max_leases: int) -> Procedure[Limit]:
    """REGISTER: the limit that is in force afterwards."""
    keys = station.keys
    reply = yield from read(station.session, transactions.register(keys, max_leases))
    if reply.succeeded:
        limit = Limit(max_leases, reply.revision, True, str(max_leases))
    else:
        limit = read_limit(transactions.as_range(reply.replies[0]).kvs[0])
    station.learn(limit, reply.revision)
    return limit


def resize(station: Station, max_leases: int) -> Procedure[Limit]:
    """RESIZE; brings the limit as it was before."""
    txn = transactions.resize(station.keys, max_leases)
    reply = yield from read(station.session, txn)
    if not reply.succeeded:
        station.learn(None, reply.revision)
        raise _closed(station)
    before = read_limit(transactions.as_range(reply.replies[0]).kvs[0])
    station.learn(Limit(max_leases, reply.revision, False, str(max_leases)), reply.revision)
    return before


class Closing(NamedTuple):
    """What CLOSE met. `known` False: there was nothing to close."""

    done: bool
    known: bool
    holders: tuple[str, ...]
    waiters: tuple[str, ...]


def close(station: Station, *, force: bool) -> Procedure[Closing]:
    """CLOSE. Without `force` a semaphore that is in use is left alone."""
    txn = transactions.close(station.keys, force=force)
    reply = yield from read(station.session, txn)
    slots, waiting = map(transactions.as_range, reply.replies[:2])
    holders, _ = read_holders(station.keys, slots.kvs, None)
    waiters, _ = read_waiters(station.keys, waiting.kvs)
    known = reply.succeeded or transactions.as_range(reply.replies[2]).count > 0
    if reply.succeeded:
        station.over(reply.revision)
    return Closing(
        done=reply.succeeded,
        known=known,
        holders=tuple(h.owner for h in holders),
        waiters=tuple(w.owner for w in waiters),
    )


def shutdown(session: Session, until: float) -> Procedure[None]:
    """Give everything back, as far as time allows; what is left ends by its TTL."""
    session.closed = True
    session.until = until
    session.keeper.closed = True
    session.keeper.box.put(None)
    for station in session.stations.values():
        for waiting in station.waiting.values():
            waiting.box.put(OutOfLine("its client was closed"))
        station.drop_watches()
    for grant in session.grants():
        if session.env.now() >= until:
            return
        grant.on_lost = None
        yield from release(grant)
    for lease in list(session.keeper.leases.values()):
        left = until - session.env.now()
        if left <= 0:
            return
        session.keeper.retire(lease)
        try:
            yield from perform(RevokeLease(lease.id, min(left, RPC_TIMEOUT)))
        except Failure:
            continue
