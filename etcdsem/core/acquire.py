"""Acquire a slot, or several with one lease: TRY, or JOIN and wait.

1. Each attempt uses one lease. If the outcome of a write that carries it is unknown, the attempt is
   over and the lease is revoked until etcd confirms that it is gone; the next attempt uses another.
2. A grant is returned to the caller only while its lease is valid by the local clock.
3. An interrupted acquire (an exception thrown in at any yield) leaves the queue and gives back
   whatever may have been granted: revoking the attempt's lease does both.
4. `None` always means "full". If etcd was unavailable all the time, an error is raised instead.
"""

from __future__ import annotations

from etcdsem.core import decisions, transactions
from etcdsem.core.batching import NOT_BATCHED, BatchPart, NotBatched, together
from etcdsem.core.commands import (
    AccessDenied,
    NotApplied,
    Procedure,
)
from etcdsem.core.grants import Grant
from etcdsem.core.keys import Limit
from etcdsem.core.lease_manager import end_interrupted, take_lease
from etcdsem.core.leases import TtlLease
from etcdsem.core.limits import (
    check_kind,
    keep_name,
    known_limit,
    learned,
    limit_read,
    queue_full,
    refuse_too_heavy,
    refuse_wrong_kind,
    semaphore_closed,
    too_heavy,
)
from etcdsem.core.linger import lingering_of
from etcdsem.core.reconcile import look_with_limit
from etcdsem.core.release import release
from etcdsem.core.request import AcquireRequest
from etcdsem.core.retry import alone_in_group, retry_attempts, sender, sleep, transact
from etcdsem.core.semaphore import SemaphoreState
from etcdsem.core.session import Session
from etcdsem.core.timed_pause import end_before_acquire, end_unnoticed
from etcdsem.core.transactions import Held, Look
from etcdsem.core.try_now import granted, try_now
from etcdsem.core.wait import leave_full_queue, open_watches, wait_in_queue
from etcdsem.core.waiters import LocalWaiter
from etcdsem.errors import EtcdSemError, QueueFull

STARVED = 0.8
"""Seconds for which an acquire retries when threads cannot be started."""


def acquire(
    semaphore: SemaphoreState, request: AcquireRequest, until: float, *, once: bool
) -> Procedure[Grant | None]:
    """Acquire a grant; None if there was no room until `until` (`once`: right now).

    Raises SemaphoreClosed, WeightExceedsLimit, Evicted, EtcdUnavailable, or a Failure that must not
    be retried.
    """
    stats = semaphore.stats
    began = semaphore.session.env.now()
    counted = not request.rate  # a rate limit counts starts instead; see `rates`
    stats.carried = request.carried
    grant = kept = lingering_of(semaphore).find(request) if request.linger else None
    if grant is None:
        stats.pending += counted
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
    try:  # give the grant back on any interruption
        if kept is not None:
            lingering_of(semaphore).hand_out(kept)
        yield from _deliver(grant, request, began)
    except BaseException:
        yield from release(grant)
        raise
    return grant


def _deliver(grant: Grant, request: AcquireRequest, began: float) -> Procedure[None]:
    """Prepare a grant for its caller, who asked for it at `began`; raises if it may not have it."""
    semaphore = grant.semaphore
    yield from refuse_starved(semaphore.session)
    check_kind(semaphore, rate=request.rate)  # it may have been closed and registered again
    if not request.rate:
        grant.count(semaphore.session.env.now() - began)
    if request.max_hold is not None:
        grant.bind(request.max_hold)
    if request.linger:
        grant.lingers = request


def refuse_starved(session: Session) -> Procedure[None]:
    """Raise EtcdSemError if a new lease would not be refreshed because threads cannot be started,
    after a few retries.
    """
    until = session.env.now() + STARVED
    while session.env.starved():
        if session.env.now() >= until:
            raise EtcdSemError(
                f"no lease was taken: etcdsem cannot start a thread ({session.env.starved()}), so "
                "the lease would not be refreshed. Raise this process's limit on threads (ulimit "
                "-u, the pod's pids limit) or on memory"
            )
        yield from sleep(session, STARVED / 8)


def attempt(
    semaphore: SemaphoreState, request: AcquireRequest, until: float, *, once: bool
) -> Procedure[Grant | None]:
    """One attempt with one lease."""
    session = semaphore.session
    yield from prepare(semaphore, until, once=once)
    yield from refuse_wrong_kind(semaphore, rate=request.rate, until=until)
    if too_heavy(semaphore, request.demand.weight):  # the known limit may be outdated
        learned(semaphore, (yield from transact(session, limit_read(semaphore), until)))
        refuse_too_heavy(semaphore, request.demand.weight)
    tries = once or request.max_waiting == 0
    join = semaphore.watches.ready and not tries
    lease = yield from take_lease(session.leases, request.ttl)
    lease.refresh = min(request.refresh, lease.ttl / 2)
    try:
        shared = yield from _take_together(semaphore, request, lease, until)
        if isinstance(shared, Grant):
            return shared
        if join:
            grant = yield from _join(semaphore, request, lease, until, look=False)
        else:
            grant = yield from _try_first(semaphore, request, lease, until, once=tries)
        if grant is None and tries and not once:
            raise queue_full(semaphore, 0)
        if grant is None:
            session.leases.give_back(lease)
        return grant
    except (NotApplied, AccessDenied, QueueFull):
        session.leases.give_back(lease)  # nothing was written, or it has left the queue
        raise
    except Exception:
        session.leases.revoke_later(lease)
        raise
    except BaseException:
        # Interrupted: leave the queue now, while the caller still waits for this procedure.
        yield from withdraw(session, lease)
        raise


def prepare(semaphore: SemaphoreState, until: float, *, once: bool) -> Procedure[None]:
    """What must be so before an attempt: the limit is known, the name stays, and a timed pause that
    is over was ended.
    """
    if semaphore.limit is None:
        yield from known_limit(semaphore)
    if semaphore.name_lease is not None:
        yield from keep_name(semaphore, until)
    if semaphore.limit is not None and semaphore.limit.after_pause:
        yield from end_before_acquire(semaphore, until, once=once)


def _try_first(
    semaphore: SemaphoreState, request: AcquireRequest, lease: TtlLease, until: float, *, once: bool
) -> Procedure[Grant | None]:
    """TRY first, since setting up watches takes time; then JOIN unless `once`."""
    known = semaphore.limit
    grant = yield from try_now(semaphore, request, lease, until, thorough=once)
    if once and grant is None and (yield from end_unnoticed(semaphore, known, until)):
        return (yield from try_now(semaphore, request, lease, until, thorough=True))
    if grant is not None or once:
        return grant
    if (yield from open_watches(semaphore, until)):
        return (yield from _join(semaphore, request, lease, until, look=True))
    # There is no time for the queue; check whether it is really full.
    return (yield from try_now(semaphore, request, lease, until, thorough=True))


def _take_together(
    semaphore: SemaphoreState, request: AcquireRequest, lease: TtlLease, until: float
) -> Procedure[Grant | NotBatched]:
    """Take a slot in a shared batch if other callers of this client are active too."""
    limit = semaphore.limit
    if limit is None or not semaphore.slots.may_share or request.demand.weight > 1:
        return NOT_BATCHED
    take = transactions.Take(lease.id, request.asking(limit))
    part: BatchPart[transactions.Take | transactions.HeldSlots] = BatchPart(
        take, semaphore.session.env.mailbox()
    )
    held = yield from together(semaphore.slots.group, part, until, sender(semaphore.session))
    if not isinstance(held, Held):
        return NOT_BATCHED
    return granted(semaphore, lease, semaphore.session.who(lease), held)


def withdraw(session: Session, lease: TtlLease) -> Procedure[None]:
    """End an interrupted attempt: leave the queue and give back anything that was granted."""
    for semaphore in list(session.semaphores.values()):
        if (grant := semaphore.grants.get(lease.id)) is not None:  # never delivered to the caller
            grant.detach()
    yield from end_interrupted(session.leases, lease)


def _join(
    semaphore: SemaphoreState, request: AcquireRequest, lease: TtlLease, until: float, *, look: bool
) -> Procedure[Grant | None]:
    """JOIN, and wait if that put us in the queue. `look`: a count may not show all the room."""
    env, who = semaphore.session.env, semaphore.session.who(lease)
    weight = request.demand.weight
    limit, slots, seen = yield from _slots_to_try(semaphore, weight, until, look=look)
    txn = transactions.join(
        semaphore.keys,
        limit,
        slots,
        lease.id,
        who,
        request.asking(limit),
        env.wall(),
        queue_up=True,
        demand=request.demand,
        count=request.max_waiting is not None,
        seen=seen,
    )
    waiter = LocalWaiter(lease, who, env.mailbox(), env.now(), request.demand)
    semaphore.waiters.enter(waiter)  # before JOIN: the grant message may overtake JOIN's answer
    lease.on_lost = waiter.lost
    try:
        reply = yield from alone_in_group(semaphore.session, semaphore.slots.group, txn, until)
        del txn  # thousands may wait for long, so free everything that is no longer needed
        result = transactions.read_join(semaphore.keys, reply, slots, queue_up=True, weight=weight)
        if isinstance(result, Held):
            return granted(semaphore, lease, who, result)
        if isinstance(result, transactions.TryFull):
            semaphore.learn(None, reply.revision)
            raise semaphore_closed(semaphore)
        room = _queued(semaphore, waiter, result, reply.revision) or look
        over = request.max_waiting is not None and result.waiting > request.max_waiting
        del reply, result, slots, seen
        return (yield from _stay(semaphore, waiter, request, until, room=room, over=over))
    finally:
        semaphore.waiters.exit(waiter)
        if lease.on_lost is not None and lease.id not in semaphore.grants:
            lease.on_lost = None


def _stay(
    semaphore: SemaphoreState,
    waiter: LocalWaiter,
    request: AcquireRequest,
    until: float,
    *,
    room: bool,
    over: bool,
) -> Procedure[Grant | None]:
    """Wait in the queue; or leave it at once, if more wait than may (`over`)."""
    if over and request.max_waiting is not None:
        return (yield from leave_full_queue(semaphore, waiter, request.max_waiting))
    if request.on_wait is not None:
        semaphore.session.env.call(request.on_wait, "on_wait")
    return (yield from wait_in_queue(semaphore, waiter, until, room=room))


def _queued(
    semaphore: SemaphoreState, waiter: LocalWaiter, result: transactions.Waiting, revision: int
) -> bool:
    """Record that JOIN has put us in the queue. True if there was room nevertheless."""
    semaphore.queue.set_contended(True)
    waiter.joined(result.created)
    limit = result.limit
    semaphore.learn(limit, revision)
    if limit is not None and limit.after_pause:
        return True  # it may be over, and perhaps nobody has noticed
    return limit is not None and result.held + waiter.demand.weight <= limit.room


def _slots_to_try(
    semaphore: SemaphoreState, weight: int, until: float, *, look: bool
) -> Procedure[tuple[Limit, list[int], Look | None]]:
    """Slots for JOIN to try, and the limit and the look that were used to choose them."""
    limit = yield from known_limit(semaphore)
    if weight == 1:
        return limit, semaphore.slots.candidates(limit), None
    if look:
        return limit, [], None  # TRY has just failed, and a look follows soon
    return (yield from _choose_together(semaphore, weight, until))


def _choose_together(
    semaphore: SemaphoreState, weight: int, until: float
) -> Procedure[tuple[Limit, list[int], Look]]:
    """Free slots for a JOIN that needs several, and what they were chosen by. The list is empty if
    the caller will have to wait in the queue.
    """
    seen, limit = yield from look_with_limit(semaphore, until)
    refuse_too_heavy(semaphore, weight)
    free = decisions.free_together(semaphore.keys, seen, weight)
    if free is None or free[1] or seen.contended:
        return limit, [], seen
    return limit, free[0], seen
