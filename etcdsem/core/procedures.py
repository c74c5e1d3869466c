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
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

from etcdsem.core import decisions, transactions
from etcdsem.core.batching import Part, alone, together
from etcdsem.core.commands import (
    AccessDenied,
    Failure,
    KeyValue,
    LeaseNotFound,
    Misconfigured,
    NoSpace,
    NotApplied,
    OutcomeUnknown,
    Procedure,
    Refused,
    RevokeLease,
    Transact,
    Txn,
    TxnReply,
    Wait,
    perform,
)
from etcdsem.core.keys import (
    ORDINARY,
    Identity,
    Limit,
    Wants,
    read_eviction,
    read_holders,
    read_letter,
    read_limit,
    read_waiters,
)
from etcdsem.core.leases import RPC_TIMEOUT, TtlLease, take
from etcdsem.core.outward import public_error
from etcdsem.core.station import (
    Denied,
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
from etcdsem.core.transactions import MAX_DEPTH, Held, Look
from etcdsem.errors import (
    EtcdSemError,
    Evicted,
    SemaphoreClosed,
    WeightExceedsLimit,
    WrongKind,
)
from etcdsem.model import CloseResult, Rate, duration_text

T = TypeVar("T")

PATIENCE = 60.0
"""Seconds that etcd may be away before an acquire without a timeout gives up. When this client
has never reached it, `Session.first_contact` holds."""

RELEASE_PATIENCE = 5.0
"""Seconds that etcd may be away before a release leaves the slot to the TTL."""

READ_PATIENCE = 10.0
"""Seconds that etcd may be away before a question gives up. At first contact as above."""


STARVED = 0.8
"""Seconds for which an acquire waits for threads that could not be started."""


class Order(NamedTuple):
    """What an acquire asks for: a lease of `ttl` seconds, refreshed every `refresh` seconds."""

    ttl: int
    refresh: float
    identity: Identity
    on_wait: Callable[[], object] | None = None
    """Called once it is known that we are in line."""
    carried: int | None = None
    """The limit that the program was told; shown in etcd if it is not the one in force."""
    wants: Wants = ORDINARY
    """How many slots the lease shall hold, and who is passed meanwhile."""
    max_hold: float | None = None
    """Seconds after which the lease ends, counted from the grant."""
    rate: bool = False
    """It is for a start of a rate limit, see `rates`."""

    def asking(self, limit: Limit) -> Identity:
        """Who asks, and for what, as it is written into etcd."""
        return self.identity.carrying(self.carried, limit).wanting(self.wants)


class TryAgain(Exception):
    """This attempt is over without an outcome. `full`: it was in line, so there was no room."""

    def __init__(self, why: str, *, full: bool = False) -> None:
        super().__init__(why)
        self.full = full


def transact(session: Session, txn: Txn, until: float = math.inf) -> Procedure[TxnReply]:
    """One transaction. Towards the caller's deadline it gets at least a second (at first contact
    no more than that allows).
    """
    now = session.env.now()
    timeout = max(1.0, min(RPC_TIMEOUT, until - now))
    if not session.reached:
        timeout = min(timeout, session.first_contact)
    tallies = session.tallies
    try:
        reply = yield from perform(Transact(txn, min(timeout, session.grace(now))))
    except BaseException as error:
        tallies.requests[_outcome(error)] += 1
        raise
    session.keeper.last_contact = answered = session.env.now()
    tallies.requests["done"] += 1
    tallies.latency.observe(answered - now)
    return reply


def _outcome(error: BaseException) -> str:
    """How the tallies name what came of a transaction that failed."""
    match error:
        case NotApplied():
            return "not applied"
        case Refused():
            return "refused"
    return "unknown"  # an interruption, too


def read(session: Session, txn: Txn, *, once: bool = False) -> Procedure[TxnReply]:
    """A transaction that only reads (or is right when applied twice): tried again for a while.

    `once`: not if it may have been applied.
    """
    first = not session.reached
    until = session.env.now() + (session.first_contact if first else READ_PATIENCE)
    pause = 0.05
    while True:
        try:
            return (yield from transact(session, txn, until))
        except (NotApplied, OutcomeUnknown) as failure:
            last = min(until, session.keeper.until)  # the client may have been closed meanwhile
            if _hopeless(session, failure) or session.env.now() + pause >= last:
                raise
            if once and isinstance(failure, OutcomeUnknown):
                raise
        yield from sleep(session, pause * (0.5 + session.env.random()))
        pause = min(2 * pause, 1.0)


def _hopeless(session: Session, failure: Failure) -> bool:
    """Not worth another try: it may last until somebody mends it, and waiting would hide it."""
    if isinstance(failure, Misconfigured):
        return not session.reached  # else the settings were right before
    return isinstance(failure, NoSpace)


def sleep(session: Session, seconds: float) -> Procedure[None]:
    """Nothing for a while."""
    yield from perform(Wait(session.env.mailbox(), session.env.now() + seconds))


def closed(station: Station) -> SemaphoreClosed:
    """The error for a semaphore that etcd does not know."""
    return SemaphoreClosed(
        f"semaphore {station.name!r} is not known: it was closed, or never registered "
        f"(there is no key {station.keys.max_leases.decode()})"
    )


def _too_heavy(station: Station, weight: int) -> bool:
    """Is more wanted than the limit has, as far as is known? 0, or paused, is no limit to wait for
    less.
    """
    return station.limit is not None and weight > station.limit.room > 0


def _refuse_too_heavy(station: Station, weight: int) -> None:
    if _too_heavy(station, weight):
        room = station.limit.room if station.limit else 0
        raise WeightExceedsLimit(
            f"semaphore {station.name!r}: a lease of weight {weight} is wanted, and the limit is "
            f"{room}: it would never come. Ask for {room} at most, or raise the limit: etcdsem "
            f"limit {station.name} {weight}"
        )


def wrong_kind(station: Station, limit: Limit, *, rate: bool) -> WrongKind | None:
    """The error, if this is no limit of the wanted kind."""
    if limit.number is None or (limit.rate is not None) == rate:
        return None
    if rate:
        return WrongKind(
            f"{station.name!r} is a semaphore (its limit is {limit.text!r}), and a rate limit of "
            f"that name is wanted: take another name, or use etcdsem.Semaphore (etcdsem run "
            f"--limit, etcdsem limit {station.name})"
        )
    return WrongKind(
        f"{station.name!r} is a rate limit ({limit.text!r}), and a semaphore of that name is "
        f"wanted: take another name, or use etcdsem.RateLimit (etcdsem run --rate, etcdsem rate "
        f"{station.name})"
    )


def check_kind(station: Station, *, rate: bool) -> None:
    """Raise WrongKind if what was just read is of the other kind."""
    wrong = None if station.limit is None else wrong_kind(station, station.limit, rate=rate)
    if wrong is not None:
        raise wrong


def _known_wrong(station: Station, order: Order) -> WrongKind | None:
    limit = station.limit
    return None if limit is None else wrong_kind(station, limit, rate=order.rate)


def refuse_wrong_kind(station: Station, order: Order, until: float) -> Procedure[None]:
    """Raise WrongKind if it is a semaphore where a rate limit is wanted, or the other way round."""
    if _known_wrong(station, order) is None:
        return
    reply = yield from transact(station.session, _limit_read(station), until)  # is it still?
    wrong = wrong_kind(station, _learned(station, reply), rate=order.rate)
    if wrong is not None:
        raise wrong


# ---------------------------------------------------------------- acquire


def acquire(station: Station, order: Order, until: float, *, once: bool) -> Procedure[Grant | None]:
    """A grant, or None if there was no room until `until` (`once`: right now).

    Raises SemaphoreClosed, WeightExceedsLimit, Evicted, EtcdUnavailable, or a Failure that is not
    worth another try.
    """
    tally, env = station.tally, station.session.env
    began = env.now()
    counted = not order.rate  # of a rate limit starts are counted, see `rates`
    tally.pending += counted
    tally.carried = order.carried
    try:
        grant = yield from persist(
            session=station.session,
            what=f"acquire {station.name!r}",
            attempt=lambda: attempt(station, order, until, once=once),
            until=until,
            once=once,
        )
    finally:
        tally.pending -= counted
    if grant is None:
        tally.timeouts += counted
        return None
    try:  # whatever interrupts
        yield from refuse_starved(station.session)
        wrong = _known_wrong(station, order)
        if wrong is not None:
            raise wrong  # it was closed, and registered as another kind, meanwhile
        if counted:
            grant.count(env.now() - began)
        if order.max_hold is not None:
            grant.bind(order.max_hold)
    except BaseException:
        yield from release(grant)
        raise
    return grant


def refuse_starved(session: Session) -> Procedure[None]:
    """Raise if a lease that is handed out now would not be refreshed: threads cannot be started,
    after another try or two.
    """
    until = session.env.now() + STARVED
    while session.env.starved():
        if session.env.now() >= until:
            raise EtcdSemError(
                f"no lease was taken: etcdsem cannot start a thread ({session.env.starved()}), so "
                "nothing would refresh it. Raise this process's limit on threads (ulimit -u, the "
                "pod's pids limit) or on memory"
            )
        yield from sleep(session, STARVED / 8)


def persist(
    session: Session,
    what: str,
    attempt: Callable[[], Procedure[T | None]],
    until: float,
    *,
    once: bool,
    seen_full: bool = False,
) -> Procedure[T | None]:
    """One attempt after the other, until there is an outcome; None: there was no room.

    `what` says in an error what was tried; `seen_full`: it was full before.
    """
    env = session.env
    began = env.now()
    late = False
    pause = 0.02
    while True:
        if session.closed:
            raise EtcdSemError(f"{what}: its client was closed")
        try:
            outcome = yield from attempt()
            if outcome is not None or once or env.now() >= until:
                return outcome
            seen_full = True
            continue
        except (TryAgain, LeaseNotFound) as again:
            # LeaseNotFound: etcd has ended a lease of the pool. Definite; another will do.
            if session.closed:
                continue
            env.log(logging.WARNING, "%s: %s; trying again", what, again)
            seen_full = seen_full or (isinstance(again, TryAgain) and again.full)
            if env.now() >= until:
                if seen_full:
                    return None
                if late:
                    raise public_error(NotApplied(str(again)), what) from again
                late = True  # one more, since this says nothing about being full
            wait = 0.01 * env.random()
        except (NoSpace, NotApplied, OutcomeUnknown) as failure:
            now = env.now()
            heard = session.keeper.last_contact
            away = now - max(heard, began)
            patience = PATIENCE if session.reached else session.first_contact
            if _hopeless(session, failure):
                raise
            if once or now + pause >= until or (until == math.inf and away >= patience):
                if seen_full and now + pause >= until:
                    return None
                raise public_error(failure, what) from failure
            wait = pause * (0.5 + env.random())
            pause = min(2 * pause, 1.0)
        if wait:
            yield from sleep(session, min(wait, max(0.0, until - env.now())))


def attempt(station: Station, order: Order, until: float, *, once: bool) -> Procedure[Grant | None]:
    """One attempt with one lease."""
    session = station.session
    yield from known_limit(station)
    yield from refuse_wrong_kind(station, order, until)
    if _too_heavy(station, order.wants.weight):  # is that still so?
        _learned(station, (yield from transact(session, _limit_read(station), until)))
        _refuse_too_heavy(station, order.wants.weight)
    watching = station.watching
    lease = yield from take(session.keeper, order.ttl)
    lease.refresh = min(order.refresh, lease.ttl / 2)
    try:
        grant = yield from _take_together(station, order, lease, until)
        if grant is not None:
            return grant
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
        yield from withdraw(session, lease)
        raise


def _take_together(
    station: Station, order: Order, lease: TtlLease, until: float
) -> Procedure[Grant | None]:
    """A slot by a batch, if others of this client are at it too. None says nothing."""
    limit = station.limit
    if limit is None or not station.may_share or order.wants.weight > 1:
        return None
    take = transactions.Take(lease.id, order.asking(limit))
    part: Part[transactions.Take | transactions.Mine] = Part(take, station.session.env.mailbox())
    held = yield from together(station.group, part, until, _sender(station))
    if not isinstance(held, Held):
        return None
    return granted(station, lease, station.session.who(lease), held)


def _sender(station: Station) -> Callable[[Txn], Procedure[TxnReply]]:
    return partial(transact, station.session)


def _alone(station: Station, txn: Txn, until: float = math.inf) -> Procedure[TxnReply]:
    """A transaction of one's own, while which others may gather."""
    return alone(station.group, transact(station.session, txn, until))


def withdraw(session: Session, lease: TtlLease) -> Procedure[None]:
    """End an attempt that was interrupted: out of the line, and back with what was granted."""
    for station in list(session.stations.values()):
        if (grant := station.grants.get(lease.id)) is not None:  # that nobody has got
            grant.detach()
    session.keeper.retire(lease)
    try:
        yield from perform(RevokeLease(lease.id, 1.5))
    except LeaseNotFound:
        pass
    except BaseException:
        session.keeper.settle_id(lease.id, lease.ttl)


def learn_limit(station: Station) -> Procedure[Limit]:
    """Read the limit, tried again for a while; raises SemaphoreClosed if there is none."""
    return _learned(station, (yield from read(station.session, _limit_read(station))))


def _limit_read(station: Station) -> Txn:
    return Txn((), transactions.look(station.keys, queue=1)[:1])


def _learned(station: Station, reply: TxnReply) -> Limit:
    kvs = transactions.as_range(reply.replies[0]).kvs
    station.learn(read_limit(kvs[0]) if kvs else None, reply.revision)
    if station.limit is None:
        raise closed(station)
    return station.limit


def known_limit(station: Station) -> Procedure[Limit]:
    """The limit as far as is known. Only a read says that there is none: what a watch told of a
    closing may be old, and the semaphore registered again since. Read once: its callers try again.
    """
    return station.limit or _learned(
        station, (yield from transact(station.session, _limit_read(station)))
    )


def granted(station: Station, lease: TtlLease, who: bytes, held: Held) -> Grant:
    """Publish a grant, if its lease is still good at this moment."""
    if not lease.valid(station.session.env.now()):
        raise TryAgain("a slot was granted, but its lease had run out meanwhile")
    return publish(station, lease, who, held)


def publish(station: Station, lease: TtlLease, who: bytes, held: Held) -> Grant:
    """The grant of a slot that was taken; its lease was found valid a moment ago."""
    station.contended = False
    station.forget_line()
    return Grant(station, lease, who, held.slot, held.token, letter=False, more=held.more)


def _try(
    station: Station, order: Order, lease: TtlLease, until: float, *, thorough: bool
) -> Procedure[Grant | None]:
    """TRY. If `thorough`, None means that it is full, or that others are in line."""
    if order.wants.weight > 1:
        return (yield from _try_heavy(station, order, lease, until, thorough=thorough))
    session, keys, env = station.session, station.keys, station.session.env
    # The slots are chosen by one limit, and the transaction holds only while that one stands.
    limit = yield from known_limit(station)
    slots = station.candidates(limit)
    counted_at = 0
    for _ in range(8):
        result = yield from _take_now(station, order, lease, limit, slots, counted_at, until)
        if isinstance(result, Grant):
            return result
        station.contended = result.contended
        if result.limit is None:
            raise closed(station)
        if not thorough or (result.held >= result.limit.room and not result.contended):
            return None
        # Not evidently full: a mark that nobody took away, a heal that is due, other slots.
        reply = yield from transact(session, Txn((), transactions.look(keys)), until)
        seen = transactions.read_look(keys, reply, reply.revision)
        station.learn(seen.limit, seen.revision)
        if seen.limit is None:
            raise closed(station)
        limit = seen.limit
        if seen.contended and (seen.queue or not seen.complete):
            yield from heal(station, seen, until=env.now() + RPC_TIMEOUT)
            yield from known_limit(station)  # raises if it was closed meanwhile
            return None
        slots, counted_at = decisions.room_seen(keys, seen)
        if counted_at:
            slots = slots[:1]
        if not slots:
            return None
        if seen.contended:
            yield from transact(session, transactions.uncontend(keys, seen.revision), until)
    return None


def _try_heavy(
    station: Station, order: Order, lease: TtlLease, until: float, *, thorough: bool
) -> Procedure[Grant | None]:
    """TRY for several slots: first a look which are free, then all of them or none."""
    session, keys, env = station.session, station.keys, station.session.env
    weight = order.wants.weight
    for _ in range(8):
        seen, limit = yield from _looked(station, until)
        _refuse_too_heavy(station, weight)
        station.contended = seen.contended
        if seen.contended and (seen.queue or not seen.complete):
            if thorough:
                yield from heal(station, seen, until=env.now() + RPC_TIMEOUT)
                yield from known_limit(station)  # raises if it was closed meanwhile
            return None
        free = decisions.free_together(keys, seen, weight)
        if free is None:
            return None
        slots, counted_at = free
        if seen.contended:
            yield from transact(session, transactions.uncontend(keys, seen.revision), until)
        result = yield from _take_now(station, order, lease, limit, slots, counted_at, until)
        if isinstance(result, Grant):
            return result
    return None


def _take_now(
    station: Station,
    order: Order,
    lease: TtlLease,
    limit: Limit,
    slots: Sequence[int],
    counted_at: int,
    until: float,
) -> Procedure[Grant | transactions.Full]:
    """TRY's transaction: the grant, or what stands in its way."""
    session, keys, wants = station.session, station.keys, order.wants
    who = session.who(lease)
    txn = transactions.join(
        keys,
        limit,
        slots,
        lease.id,
        who,
        order.asking(limit),
        session.env.wall(),
        stand_in_line=False,
        counted_at=counted_at,
        wants=wants,
    )
    reply = yield from _alone(station, txn, until)
    result = transactions.read_join(keys, reply, slots, stand_in_line=False, weight=wants.weight)
    if isinstance(result, Held):
        return granted(station, lease, who, result)
    if not isinstance(result, transactions.Full):
        raise AssertionError(f"TRY stood in line: {result}")
    station.learn(result.limit, reply.revision)
    return result


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
    starved = env.starved()
    raise NotApplied(f"no watch could be set up in time{starved and f' ({starved})'}")


def _join(
    station: Station, order: Order, lease: TtlLease, until: float, *, look: bool
) -> Procedure[Grant | None]:
    """JOIN, and wait if that put us in line. `look`: for room that a count would not show."""
    session, env = station.session, station.session.env
    who, weight = session.who(lease), order.wants.weight
    limit = yield from known_limit(station)
    if weight == 1:
        slots = station.candidates(limit)
    elif look:
        slots = []  # just tried, and looked for in a moment
    else:
        limit, slots = yield from _choose_together(station, weight, until)
    txn = transactions.join(
        station.keys,
        limit,
        slots,
        lease.id,
        who,
        order.asking(limit),
        env.wall(),
        stand_in_line=True,
        wants=order.wants,
    )
    waiting = Waiting(lease, who, env.mailbox(), env.now(), order.wants)
    station.enter(waiting)  # before JOIN: the letter may be faster than JOIN's answer
    lease.on_lost = waiting.lost
    try:
        reply = yield from _alone(station, txn, until)
        del txn  # thousands may wait, and for long: nothing is kept that is not needed then
        result = transactions.read_join(
            station.keys, reply, slots, stand_in_line=True, weight=weight
        )
        if isinstance(result, Held):
            return granted(station, lease, who, result)
        if isinstance(result, transactions.Full):
            station.learn(None, reply.revision)
            raise closed(station)
        station.contended = True
        waiting.created = result.created
        station.learn(result.limit, reply.revision)
        room = look or (result.limit is not None and result.held + weight <= result.limit.room)
        if order.on_wait is not None:
            env.call(order.on_wait, "on_wait")
        del reply, result, slots
        return (yield from _wait(station, waiting, until, room=room))
    finally:
        station.exit(waiting)
        if lease.on_lost is not None and lease.id not in station.grants:
            lease.on_lost = None


def _choose_together(
    station: Station, weight: int, until: float
) -> Procedure[tuple[Limit, list[int]]]:
    """Free slots for a JOIN that wants several, and the limit they were chosen by; none if it will
    have to stand in line.
    """
    seen, limit = yield from _looked(station, until)
    _refuse_too_heavy(station, weight)
    free = decisions.free_together(station.keys, seen, weight)
    if free is None or free[1] or seen.contended:
        return limit, []
    return limit, free[0]


# ---------------------------------------------------------------- waiting


def _wait(
    station: Station, waiting: Waiting, until: float, *, room: bool
) -> Procedure[Grant | None]:
    """In line, until granted or until it is time to go."""
    session, env = station.session, station.session.env
    heal_at = env.now() if room else math.inf
    reread_at = session.next_reread()
    if station.on_duty(waiting) and station.duty_due:
        heal_at = env.now()
    while True:
        if _too_heavy(station, waiting.wants.weight):
            grant = yield from _leave(station, waiting)
            if grant is not None:
                return grant  # the limit was lowered after that
            _refuse_too_heavy(station, waiting.wants.weight)
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
                raise closed(station)
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
                elif not (yield from _heal_for_all(station, until)):
                    heal_at = env.now() + 0.3 + env.random()
            case None if now >= reread_at:
                reread_at = session.next_reread()
                if not (yield from _tried(reread(station, until), station)):
                    reread_at = env.now() + 0.3 + env.random()
            case _:
                pass


def _tried(work: Procedure[None], station: Station) -> Procedure[bool]:
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


def _heal_for_all(station: Station, until: float) -> Procedure[bool]:
    """Heal, one of this client's waiters at a time: thousands would only be in each other's way."""
    station.healing, station.duty_due = True, False
    try:
        done = yield from _tried(_heal_or_reread(station, until), station)
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


# ---------------------------------------------------------------- healing


def _heal_or_reread(station: Station, until: float) -> Procedure[None]:
    """Heal. A waiter of ours for whom there is room, and who is out of line, must be told to join
    again: a watch of its own tells it only later, and a slot would be idle until then.
    """
    seen = yield from _look(station)
    if decisions.room_for_more(station.keys, seen) and station.misses(seen):
        yield from reread(station, until)
    else:
        yield from heal(station, seen, until=until)


def heal(station: Station, seen: Look | None = None, *, until: float = math.inf) -> Procedure[None]:
    """FILL free slots with those in line, whoever should have done it.

    Who does it for all has a deadline of its own: after `until` it is the next one's duty.
    """
    session, keys, env = station.session, station.keys, station.session.env
    if seen is None:
        seen = yield from _look(station)
    most = MAX_DEPTH
    while True:
        if env.now() >= until:
            station.duty_due = True
            return
        station.learn(seen.limit, seen.revision)
        station.crowd = decisions.clients_in_line(seen)
        if seen.limit is None:
            station.over(seen.revision)
            return
        step = decisions.next_fill(keys, seen, most, eager=station.eager)
        if step is None or isinstance(step, decisions.Blocked):
            station.block(step.head if step else None, seen.revision)
            return
        if isinstance(step, decisions.ReadAll):
            seen = yield from _look(station, queue=0)
            if not seen.queue:
                return
            continue
        txn = transactions.fill(
            keys,
            seen,
            step.pairs,
            step.behind,
            env.wall(),
            surplus=step.surplus,
            last=step.last,
            passed=step.passed,
        )
        reply = yield from transact(session, txn)
        most = MAX_DEPTH if reply.succeeded else 1  # else one who leaves could spoil it for ever
        if not reply.succeeded:
            seen = transactions.read_look(keys, reply, reply.revision)
        elif step.last:
            return
        elif step.surplus or not step.behind:
            seen = yield from _look(station)
        else:
            now = reply.revision
            slots = (slot for slots, _ in step.pairs for slot in slots)
            filled = tuple(KeyValue(keys.slot(slot), b"", now, now) for slot in slots)
            seen = seen._replace(slots=(*seen.slots, *filled), queue=step.behind)
            if transactions.end_priorities(seen.priorities, step.behind):
                seen = seen._replace(priorities=0)


def _look(
    station: Station, queue: int = transactions.QUEUE_READ, *, until: float = math.inf
) -> Procedure[Look]:
    txn = Txn((), transactions.look(station.keys, queue))
    reply = yield from transact(station.session, txn, until)
    seen = transactions.read_look(station.keys, reply, reply.revision)
    station.saw_line(seen)
    return seen


def _looked(station: Station, until: float) -> Procedure[tuple[Look, Limit]]:
    """A look, and the limit that it saw; raises SemaphoreClosed if there is none."""
    seen = yield from _look(station, until=until)
    station.learn(seen.limit, seen.revision)
    if seen.limit is None:
        raise closed(station)
    return seen, seen.limit


def reread(station: Station, until: float) -> Procedure[None]:
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
    yield from heal(station, until=until)


# ---------------------------------------------------------------- release


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
    return (yield from together(station.group, part, math.inf, _sender(station))) is not None


def _pass_together(station: Station, mine: transactions.Mine) -> Procedure[bool | Look | None]:
    """Hand a slot over by a batch. None says nothing, a Look that nothing was handed over."""
    part: Part[transactions.Mine] = Part(mine, station.session.env.mailbox())
    return (yield from together(station.passing, part, math.inf, _sender(station)))


def _passing(station: Station, txn: Txn) -> Procedure[TxnReply]:
    """A transaction that hands over one slot, while which others may gather."""
    return alone(station.passing, transact(station.session, txn))


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
                reply = yield from _alone(station, transactions.drop(keys, mine))
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
                seen = yield from _look(station, queue=0)
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
            yield from heal(station, seen, until=until)
    except Failure as failure:
        station.session.env.log(
            logging.INFO, "semaphore %s: others will serve the line: %s", station.name, failure
        )


# ---------------------------------------------------------------- the semaphore as a whole


def register(station: Station, wanted: int | Rate) -> Procedure[Limit]:
    """REGISTER: the limit that is in force afterwards."""
    keys, text = station.keys, str(wanted).encode()
    reply = yield from read(station.session, transactions.register(keys, text))
    if reply.succeeded:
        now = reply.revision
        limit = read_limit(KeyValue(keys.max_leases, text, now, now))
    else:
        limit = read_limit(transactions.as_range(reply.replies[0]).kvs[0])
    station.learn(limit, reply.revision)
    return limit


def close(station: Station, *, force: bool, rate: bool | None = None) -> Procedure[CloseResult]:
    """CLOSE. Without `force` a semaphore that is in use is left alone.

    `rate`: which kind it must be, else WrongKind; None: either.
    """
    if rate is not None:
        reply = yield from read(station.session, _limit_read(station))
        kvs = transactions.as_range(reply.replies[0]).kvs
        wrong = wrong_kind(station, read_limit(kvs[0]), rate=rate) if kvs else None
        if wrong is not None:
            raise wrong
    txn = transactions.close(station.keys, force=force)
    reply = yield from read(station.session, txn)
    slots, waiting = map(transactions.as_range, reply.replies[:2])
    holders, _ = read_holders(station.keys, slots.kvs, None)
    waiters, _ = read_waiters(station.keys, waiting.kvs)
    known = reply.succeeded or transactions.as_range(reply.replies[2]).count > 0
    if reply.succeeded:
        station.over(reply.revision)
    return CloseResult(
        done=reply.succeeded,
        known=known,
        holders=tuple(h.owner for h in holders),
        waiters=tuple(w.owner for w in waiters),
    )


def shutdown(session: Session, until: float) -> Procedure[None]:
    """Give everything back, as far as time allows; what is left ends by its TTL.

    So do the starts of a rate limit that were handed out, and must not be given back yet.
    """
    session.closed = True
    session.keeper.until = until
    session.keeper.closed = True
    session.keeper.box.put(None)
    for station in session.stations.values():
        for waiting in station.waiting.values():
            waiting.box.put(OutOfLine("its client was closed"))
        station.drop_watches()
        if station.purse is not None:
            station.purse.wake_giver()
    for grant in session.grants():
        if session.env.now() >= until:
            return
        grant.on_lost = None
        if grant.spent:
            grant.leave()
        else:
            yield from release(grant)
    # First those whose revocation is under way beside us: the process may end before it is done,
    # and such a lease may be that of a slot.
    keeper = session.keeper
    for lease_id in (*keeper.unsettled, *keeper.leases):
        left = until - session.env.now()
        if left <= 0:
            return
        if lease_id in keeper.leases:
            keeper.retire(keeper.leases[lease_id])
        try:
            yield from perform(RevokeLease(lease_id, min(left, RPC_TIMEOUT)))
        except LeaseNotFound:
            keeper.ended.add(lease_id)
        except Failure:
            continue
        else:
            keeper.ended.add(lease_id)
