"""TRY: take free slots now, or none; and how a grant is made from what a transaction took."""

from __future__ import annotations

from collections.abc import Sequence

from etcdsem.core import decisions, transactions
from etcdsem.core.commands import Procedure, Txn
from etcdsem.core.grants import Grant
from etcdsem.core.keys import Limit
from etcdsem.core.leases import RPC_TIMEOUT, TtlLease
from etcdsem.core.limits import (
    is_rate,
    known_limit,
    learn_known,
    refuse_too_heavy,
    semaphore_closed,
)
from etcdsem.core.reconcile import look_with_limit, reconcile
from etcdsem.core.request import AcquireRequest
from etcdsem.core.retry import TryAgain, alone_in_group, transact
from etcdsem.core.semaphore import SemaphoreState
from etcdsem.core.transactions import Held, Look


def granted(semaphore: SemaphoreState, lease: TtlLease, who: bytes, held: Held) -> Grant:
    """Publish a grant if its lease is still valid at this moment, else raise TryAgain."""
    if not lease.valid(semaphore.session.env.now()):
        raise TryAgain("a slot was granted, but the lease had expired in the meantime")
    return publish(semaphore, lease, who, held)


def publish(semaphore: SemaphoreState, lease: TtlLease, who: bytes, held: Held) -> Grant:
    """The grant of a slot that was taken; its lease was found valid a moment ago."""
    semaphore.queue.set_contended(False)
    semaphore.queue.forget()
    return Grant(semaphore, lease, who, held.slot, held.token, has_message=False, more=held.more)


def try_now(
    semaphore: SemaphoreState,
    request: AcquireRequest,
    lease: TtlLease,
    until: float,
    *,
    thorough: bool,
) -> Procedure[Grant | None]:
    """TRY. None: not granted; if `thorough`, because it is full, or others are in the queue."""
    if request.demand.weight > 1:
        return (yield from _try_heavy(semaphore, request, lease, until, thorough=thorough))
    # The slots are chosen by one limit, and the transaction succeeds only while it is unchanged.
    limit = yield from known_limit(semaphore)
    slots = semaphore.slots.candidates(limit)
    seen, counted_at = None, 0
    for _ in range(8):
        result = yield from _take_now(
            semaphore, request, lease, limit, slots, counted_at, until, seen
        )
        if isinstance(result, Grant):
            return result
        semaphore.queue.set_contended(result.contended)
        if result.limit is None:
            raise semaphore_closed(semaphore)
        full = result.held >= result.limit.room and not result.contended
        if full or not (thorough or _hindered(result)):
            return None
        # Not evidently full: perhaps a leftover mark, a heal that is due, or other free slots.
        seen, limit = yield from _look_now(semaphore, until, records=request.rate)
        if seen.has_waiters:
            yield from _serve_waiters(semaphore, seen)
            return None
        slots, counted_at = _choose(semaphore, seen)
        if not slots:
            return None
        if seen.contended:
            uncontend = transactions.uncontend(semaphore.keys, seen.revision)
            yield from transact(semaphore.session, uncontend, until)
    return None


def _choose(semaphore: SemaphoreState, seen: Look) -> tuple[list[int], int]:
    """The slots to try after a look, as by `room_seen`. Where there are records of permits whose
    time is over, few: those of the other slots are deleted by the way.
    """
    slots, counted_at = decisions.room_seen(semaphore.keys, seen)
    if counted_at:
        return slots[:1], counted_at
    return slots[: decisions.FEW] if seen.records and seen.records.over else slots, counted_at


def _look_now(
    semaphore: SemaphoreState, until: float, *, records: bool
) -> Procedure[tuple[Look, Limit]]:
    session, keys = semaphore.session, semaphore.keys
    txn = Txn((), transactions.look(keys, records=records))
    reply = yield from transact(session, txn, until)
    seen = transactions.read_look(keys, reply, reply.revision, session.env.wall())
    return seen, learn_known(semaphore, seen.limit, seen.revision)


def _hindered(full: transactions.TryFull) -> bool:
    """May free slots have records of permits whose time is over? They do if programs end before
    their permits do.
    """
    return is_rate(full.limit) and not full.contended


def _serve_waiters(semaphore: SemaphoreState, seen: Look) -> Procedure[None]:
    """Serve the waiters, who come first; raises SemaphoreClosed if it was closed meanwhile."""
    yield from reconcile(semaphore, seen, until=semaphore.session.env.now() + RPC_TIMEOUT)
    yield from known_limit(semaphore)


def _try_heavy(
    semaphore: SemaphoreState,
    request: AcquireRequest,
    lease: TtlLease,
    until: float,
    *,
    thorough: bool,
) -> Procedure[Grant | None]:
    """TRY for several slots: first look which are free, then take all of them or none."""
    session, keys = semaphore.session, semaphore.keys
    weight = request.demand.weight
    for _ in range(8):
        seen, limit = yield from look_with_limit(semaphore, until)
        refuse_too_heavy(semaphore, weight)
        semaphore.queue.set_contended(seen.contended)
        if seen.has_waiters:
            if thorough:
                yield from _serve_waiters(semaphore, seen)
            return None
        free = decisions.free_together(keys, seen, weight)
        if free is None:
            return None
        slots, counted_at = free
        if seen.contended:
            yield from transact(session, transactions.uncontend(keys, seen.revision), until)
        result = yield from _take_now(
            semaphore, request, lease, limit, slots, counted_at, until, seen
        )
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
    seen: Look | None,
) -> Procedure[Grant | transactions.TryFull]:
    """TRY's transaction: the grant, or why nothing was granted. `seen`: what the slots were chosen
    by, if by a look.
    """
    session, keys, demand = semaphore.session, semaphore.keys, request.demand
    who = session.who(lease)
    txn = transactions.join(
        keys,
        limit,
        slots,
        lease.id,
        who,
        request.asking(limit),
        session.env.wall(),
        queue_up=False,
        counted_at=counted_at,
        demand=demand,
        seen=seen,
    )
    reply = yield from alone_in_group(semaphore.session, semaphore.slots.group, txn, until)
    result = transactions.read_join(keys, reply, slots, queue_up=False, weight=demand.weight)
    if isinstance(result, Held):
        return granted(semaphore, lease, who, result)
    if not isinstance(result, transactions.TryFull):
        raise AssertionError(f"TRY joined the queue: {result}")
    semaphore.learn(result.limit, reply.revision)
    return result
