"""Acquire a slot, or several with one lease: TRY, or JOIN and wait.

1. One lease for each attempt. When the outcome of a write that carries it is unknown, the attempt
   is over and its lease is revoked until etcd says that it is gone; the next attempt has another.
2. A grant is given to the caller only while its lease is valid by the local clock.
3. Whatever interrupts an acquire (an exception thrown in at any yield) leaves the queue and gives
   back what may have been granted: revoking the attempt's lease does both.
4. `None` only ever means "full": if etcd was away all the time, that is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from etcdsem.core import decisions, transactions
from etcdsem.core.batching import NOT_BATCHED, NotBatched, Part, together
from etcdsem.core.commands import (
    AccessDenied,
    LeaseNotFound,
    NotApplied,
    Procedure,
    RevokeLease,
    Txn,
    perform,
)
from etcdsem.core.grants import Grant
from etcdsem.core.keys import ORDINARY, Identity, Limit, Wants
from etcdsem.core.lease_manager import take_lease
from etcdsem.core.leases import RPC_TIMEOUT, TtlLease
from etcdsem.core.limits import (
    check_kind,
    known_limit,
    learned,
    limit_read,
    refuse_too_heavy,
    refuse_wrong_kind,
    semaphore_closed,
    too_heavy,
)
from etcdsem.core.reconcile import look_with_limit, reconcile
from etcdsem.core.release import release
from etcdsem.core.retry import TryAgain, alone_in_group, retry_attempts, sender, sleep, transact
from etcdsem.core.semaphore import SemaphoreState
from etcdsem.core.session import Session
from etcdsem.core.transactions import Held
from etcdsem.core.wait import open_watches, wait_in_line
from etcdsem.core.waiters import LocalWaiter
from etcdsem.errors import EtcdSemError

STARVED = 0.8
"""Seconds for which an acquire waits for threads that could not be started."""


class AcquireRequest(NamedTuple):
    """What an acquire asks for: a lease of `ttl` seconds, refreshed every `refresh` seconds."""

    ttl: int
    refresh: float
    identity: Identity
    on_wait: Callable[[], object] | None = None
    """Called once it is known that we are in the queue."""
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


def acquire(
    semaphore: SemaphoreState, request: AcquireRequest, until: float, *, once: bool
) -> Procedure[Grant | None]:
    """A grant, or None if there was no room until `until` (`once`: right now).

    Raises SemaphoreClosed, WeightExceedsLimit, Evicted, EtcdUnavailable, or a Failure that is not
    worth another try.
    """
    stats, env = semaphore.stats, semaphore.session.env
    began = env.now()
    counted = not request.rate  # of a rate limit starts are counted, see `rates`
    stats.pending += counted
    stats.carried = request.carried
    try:
        grant = yield from retry_attempts(
            session=semaphore.session,
            what=f"acquire {semaphore.name!r}",
            attempt=lambda: attempt(semaphore, request, until, once=once),
            until=until,
            once=once,
        )
    finally:
        stats.pending -= counted
    if grant is None:
        stats.timeouts += counted
        return None
    try:  # whatever interrupts
        yield from refuse_starved(semaphore.session)
        check_kind(semaphore, rate=request.rate)  # it may have been closed and registered anew
        if counted:
            grant.count(env.now() - began)
        if request.max_hold is not None:
            grant.bind(request.max_hold)
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


def attempt(
    semaphore: SemaphoreState, request: AcquireRequest, until: float, *, once: bool
) -> Procedure[Grant | None]:
    """One attempt with one lease."""
    session = semaphore.session
    yield from known_limit(semaphore)
    yield from refuse_wrong_kind(semaphore, rate=request.rate, until=until)
    if too_heavy(semaphore, request.wants.weight):  # is that still so?
        learned(semaphore, (yield from transact(session, limit_read(semaphore), until)))
        refuse_too_heavy(semaphore, request.wants.weight)
    join = semaphore.watches.ready and not once
    lease = yield from take_lease(session.leases, request.ttl)
    lease.refresh = min(request.refresh, lease.ttl / 2)
    try:
        shared = yield from _take_together(semaphore, request, lease, until)
        if isinstance(shared, Grant):
            return shared
        if join:
            grant = yield from _join(semaphore, request, lease, until, look=False)
        else:
            grant = yield from _try_first(semaphore, request, lease, until, once=once)
        if grant is None:
            session.leases.give_back(lease)
        return grant
    except (NotApplied, AccessDenied):
        session.leases.give_back(lease)  # refused before anything was written
        raise
    except Exception:
        session.leases.revoke_later(lease)
        raise
    except BaseException:
        # Interrupted. Out of the line now, while the caller still waits for us.
        yield from withdraw(session, lease)
        raise


def _try_first(
    semaphore: SemaphoreState, request: AcquireRequest, lease: TtlLease, until: float, *, once: bool
) -> Procedure[Grant | None]:
    """TRY, and then JOIN unless `once`: setting the watches up takes time."""
    grant = yield from _try(semaphore, request, lease, until, thorough=once)
    if grant is not None or once:
        return grant
    if (yield from open_watches(semaphore, until)):
        return (yield from _join(semaphore, request, lease, until, look=True))
    # There is no time for the queue; is it really full?
    return (yield from _try(semaphore, request, lease, until, thorough=True))


def _take_together(
    semaphore: SemaphoreState, request: AcquireRequest, lease: TtlLease, until: float
) -> Procedure[Grant | NotBatched]:
    """A slot by a batch, if others of this client are at it too."""
    limit = semaphore.limit
    if limit is None or not semaphore.slots.may_share or request.wants.weight > 1:
        return NOT_BATCHED
    take = transactions.Take(lease.id, request.asking(limit))
    part: Part[transactions.Take | transactions.Mine] = Part(take, semaphore.session.env.mailbox())
    held = yield from together(semaphore.slots.group, part, until, sender(semaphore.session))
    if not isinstance(held, Held):
        return NOT_BATCHED
    return granted(semaphore, lease, semaphore.session.who(lease), held)


def withdraw(session: Session, lease: TtlLease) -> Procedure[None]:
    """End an attempt that was interrupted: out of the line, and back with what was granted."""
    for semaphore in list(session.semaphores.values()):
        if (grant := semaphore.grants.get(lease.id)) is not None:  # that nobody has got
            grant.detach()
    session.leases.retire(lease)
    try:
        yield from perform(RevokeLease(lease.id, 1.5))
    except LeaseNotFound:
        pass
    except BaseException:
        session.leases.revoke_id_later(lease.id, lease.ttl)


def granted(semaphore: SemaphoreState, lease: TtlLease, who: bytes, held: Held) -> Grant:
    """Publish a grant, if its lease is still good at this moment."""
    if not lease.valid(semaphore.session.env.now()):
        raise TryAgain("a slot was granted, but its lease had run out meanwhile")
    return publish(semaphore, lease, who, held)


def publish(semaphore: SemaphoreState, lease: TtlLease, who: bytes, held: Held) -> Grant:
    """The grant of a slot that was taken; its lease was found valid a moment ago."""
    semaphore.queue.set_contended(False)
    semaphore.queue.forget()
    return Grant(semaphore, lease, who, held.slot, held.token, letter=False, more=held.more)


def _try(
    semaphore: SemaphoreState,
    request: AcquireRequest,
    lease: TtlLease,
    until: float,
    *,
    thorough: bool,
) -> Procedure[Grant | None]:
    """TRY. None: not granted; if `thorough`, because it is full, or others are in the queue."""
    if request.wants.weight > 1:
        return (yield from _try_heavy(semaphore, request, lease, until, thorough=thorough))
    session, keys, env = semaphore.session, semaphore.keys, semaphore.session.env
    # The slots are chosen by one limit, and the transaction holds only while that one stands.
    limit = yield from known_limit(semaphore)
    slots = semaphore.slots.candidates(limit)
    counted_at = 0
    for _ in range(8):
        result = yield from _take_now(semaphore, request, lease, limit, slots, counted_at, until)
        if isinstance(result, Grant):
            return result
        semaphore.queue.set_contended(result.contended)
        if result.limit is None:
            raise semaphore_closed(semaphore)
        if not thorough or (result.held >= result.limit.room and not result.contended):
            return None
        # Not evidently full: a mark that nobody took away, a heal that is due, other slots.
        reply = yield from transact(session, Txn((), transactions.look(keys)), until)
        seen = transactions.read_look(keys, reply, reply.revision)
        semaphore.learn(seen.limit, seen.revision)
        if seen.limit is None:
            raise semaphore_closed(semaphore)
        limit = seen.limit
        if seen.contended and (seen.queue or not seen.complete):
            yield from reconcile(semaphore, seen, until=env.now() + RPC_TIMEOUT)
            yield from known_limit(semaphore)  # raises if it was closed meanwhile
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
    semaphore: SemaphoreState,
    request: AcquireRequest,
    lease: TtlLease,
    until: float,
    *,
    thorough: bool,
) -> Procedure[Grant | None]:
    """TRY for several slots: first a look which are free, then all of them or none."""
    session, keys, env = semaphore.session, semaphore.keys, semaphore.session.env
    weight = request.wants.weight
    for _ in range(8):
        seen, limit = yield from look_with_limit(semaphore, until)
        refuse_too_heavy(semaphore, weight)
        semaphore.queue.set_contended(seen.contended)
        if seen.contended and (seen.queue or not seen.complete):
            if thorough:
                yield from reconcile(semaphore, seen, until=env.now() + RPC_TIMEOUT)
                yield from known_limit(semaphore)  # raises if it was closed meanwhile
            return None
        free = decisions.free_together(keys, seen, weight)
        if free is None:
            return None
        slots, counted_at = free
        if seen.contended:
            yield from transact(session, transactions.uncontend(keys, seen.revision), until)
        result = yield from _take_now(semaphore, request, lease, limit, slots, counted_at, until)
        if isinstance(result, Grant):
            return result
    return None


def _take_now(
    semaphore: SemaphoreState,
    request: AcquireRequest,
    lease: TtlLease,
    limit: Limit,
    slots: Sequence[int],
    counted_at: int,
    until: float,
) -> Procedure[Grant | transactions.Full]:
    """TRY's transaction: the grant, or what stands in its way."""
    session, keys, wants = semaphore.session, semaphore.keys, request.wants
    who = session.who(lease)
    txn = transactions.join(
        keys,
        limit,
        slots,
        lease.id,
        who,
        request.asking(limit),
        session.env.wall(),
        stand_in_line=False,
        counted_at=counted_at,
        wants=wants,
    )
    reply = yield from alone_in_group(semaphore.session, semaphore.slots.group, txn, until)
    result = transactions.read_join(keys, reply, slots, stand_in_line=False, weight=wants.weight)
    if isinstance(result, Held):
        return granted(semaphore, lease, who, result)
    if not isinstance(result, transactions.Full):
        raise AssertionError(f"TRY stood in line: {result}")
    semaphore.learn(result.limit, reply.revision)
    return result


def _join(
    semaphore: SemaphoreState, request: AcquireRequest, lease: TtlLease, until: float, *, look: bool
) -> Procedure[Grant | None]:
    """JOIN, and wait if that put us in line. `look`: for room that a count would not show."""
    session, env = semaphore.session, semaphore.session.env
    who, weight = session.who(lease), request.wants.weight
    limit = yield from known_limit(semaphore)
    if weight == 1:
        slots = semaphore.slots.candidates(limit)
    elif look:
        slots = []  # just tried, and looked for in a moment
    else:
        limit, slots = yield from _choose_together(semaphore, weight, until)
    txn = transactions.join(
        semaphore.keys,
        limit,
        slots,
        lease.id,
        who,
        request.asking(limit),
        env.wall(),
        stand_in_line=True,
        wants=request.wants,
    )
    waiter = LocalWaiter(lease, who, env.mailbox(), env.now(), request.wants)
    semaphore.waiters.enter(waiter)  # before JOIN: the letter may be faster than JOIN's answer
    lease.on_lost = waiter.lost
    try:
        reply = yield from alone_in_group(semaphore.session, semaphore.slots.group, txn, until)
        del txn  # thousands may wait, and for long: nothing is kept that is not needed then
        result = transactions.read_join(
            semaphore.keys, reply, slots, stand_in_line=True, weight=weight
        )
        if isinstance(result, Held):
            return granted(semaphore, lease, who, result)
        if isinstance(result, transactions.Full):
            semaphore.learn(None, reply.revision)
            raise semaphore_closed(semaphore)
        semaphore.queue.set_contended(True)
        waiter.joined(result.created)
        semaphore.learn(result.limit, reply.revision)
        room = look or (result.limit is not None and result.held + weight <= result.limit.room)
        if request.on_wait is not None:
            env.call(request.on_wait, "on_wait")
        del reply, result, slots
        return (yield from wait_in_line(semaphore, waiter, until, room=room))
    finally:
        semaphore.waiters.exit(waiter)
        if lease.on_lost is not None and lease.id not in semaphore.grants:
            lease.on_lost = None


def _choose_together(
    semaphore: SemaphoreState, weight: int, until: float
) -> Procedure[tuple[Limit, list[int]]]:
    """Free slots for a JOIN that wants several, and the limit they were chosen by; none if it will
    have to stand in line.
    """
    seen, limit = yield from look_with_limit(semaphore, until)
    refuse_too_heavy(semaphore, weight)
    free = decisions.free_together(semaphore.keys, seen, weight)
    if free is None or free[1] or seen.contended:
        return limit, []
    return limit, free[0]
