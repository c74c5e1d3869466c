"""Several semaphores at once: a slot of each, or none. The rules:

1. If all are free and no queue has a waiter, one transaction takes them all.
2. Otherwise the caller waits in the queue of one full semaphore, and holds nothing meanwhile.
   When granted there, it tries all others in one transaction. If one of those is full, it gives its
   slot to the next waiter, and continues at the full one.
3. After `ROUNDS` of that, to prevent starvation: it acquires one semaphore after the other in key
   order, and waits in each queue while it holds those before. This cannot deadlock, since only
   this request ever waits while holding, and always in that order.
4. Each slot has its own etcd lease, so each is released, evicted or lost by itself. An observer of
   one semaphore sees no difference.
5. A set is complete when all its leases are valid at one moment. If one is lost before that, the
   rest is given back, and the procedure starts over.
6. Any interruption gives back the slots in `hand`, which lists each from the moment of its grant.
7. Each semaphore counts it once: one wait, and one grant, or one timeout. Slots that were held only
   on the way are not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from etcdsem.core import decisions, transactions
from etcdsem.core.acquire import attempt, prepare, refuse_starved, withdraw
from etcdsem.core.commands import AccessDenied, NotApplied, Procedure, Txn
from etcdsem.core.grants import Grant
from etcdsem.core.keys import Limit
from etcdsem.core.lease_manager import take_lease
from etcdsem.core.leases import RPC_TIMEOUT, TtlLease
from etcdsem.core.limits import known_limit, learn_known, refuse_wrong_kind, wrong_kind
from etcdsem.core.reconcile import reconcile
from etcdsem.core.release import release
from etcdsem.core.request import AcquireRequest
from etcdsem.core.retry import TryAgain, retry_attempts, transact
from etcdsem.core.semaphore import SemaphoreState
from etcdsem.core.session import Session
from etcdsem.core.timed_pause import end_timed_pause
from etcdsem.core.transactions import Held, Look, SlotRequest
from etcdsem.core.try_now import publish
from etcdsem.model import MAX_SEMAPHORES

ROUNDS = 3
"""Turns in queues after which the caller waits in one queue while holding others."""

TRIES = 8
"""Maximum number of consecutive transactions that fail although there is room, because others were
faster."""


class SemaphoreRequest(NamedTuple):
    """A slot of one semaphore, and the parameters of its lease."""

    semaphore: SemaphoreState
    request: AcquireRequest


class NoRoom(NamedTuple):
    """There was no room in this one, or others were waiting for it."""

    part: SemaphoreRequest


class Taken(NamedTuple):
    """A grant of each; or `full` says which one had none."""

    grants: list[Grant]
    full: NoRoom | None = None


def acquire_all(parts: Sequence[SemaphoreRequest], until: float, *, once: bool) -> Procedure[Taken]:
    """A grant of each, in the order given; or which one was full at `until` (`once`: right now).

    All semaphores must be different, and of one session. Raises what `acquire` raises.
    """
    if not 1 <= len(parts) <= MAX_SEMAPHORES or len({part.semaphore for part in parts}) < len(
        parts
    ):
        raise AssertionError(f"not several different semaphores: {parts}")
    env = parts[0].semaphore.session.env
    began = env.now()
    hand: list[Grant] = []
    for semaphore, request in parts:
        semaphore.stats.pending += 1
        semaphore.stats.carried = request.carried
    try:
        try:
            full = yield from _take_all(parts, until, hand, once=once)
        finally:
            for part in parts:
                part.semaphore.stats.pending -= 1
        if full is None:
            yield from refuse_starved(parts[0].semaphore.session)
        for grant in hand:
            grant.count(env.now() - began)
        places = {part.semaphore: place for place, part in enumerate(parts)}
        taken = Taken(sorted(hand, key=lambda grant: places[grant.semaphore]), full)
    except BaseException:
        yield from _put_back(hand)
        raise
    if full is not None:
        for part in parts:
            part.semaphore.stats.timeouts += 1
    return taken


def _take_all(
    parts: Sequence[SemaphoreRequest], until: float, hand: list[Grant], *, once: bool
) -> Procedure[NoRoom | None]:
    """Put all of them into `hand`; else return which one was full, with `hand` empty."""
    full = yield from _free_ones(parts, until, hand, once=once)
    if full is None or once:
        return full
    for _ in range(ROUNDS if len(parts) > 1 else 0):
        if not (yield from _stand(full.part, until, hand)):
            return full
        others = [part for part in parts if part is not full.part]
        blocked = yield from _free_ones(others, until, hand, once=False, seen=full)
        if blocked is None and _all_valid(hand):
            return None
        yield from _put_back(hand)
        full = blocked or full
    while True:
        for part in sorted(parts, key=_in_order):
            if not (yield from _stand(part, until, hand)):
                yield from _put_back(hand)
                return NoRoom(part)
            if not _all_valid(hand):
                break
        else:
            return None
        yield from _put_back(hand)


def _in_order(part: SemaphoreRequest) -> bytes:
    return part.semaphore.keys.base


def _all_valid(hand: list[Grant]) -> bool:
    return all(grant.valid(grant.semaphore.session.env.now()) for grant in hand)


def _put_back(hand: list[Grant]) -> Procedure[None]:
    """Give everything in `hand` back, to the next waiters. Interruptions are raised at the end."""
    interruption: BaseException | None = None
    while hand:
        try:
            yield from release(hand[-1])
        except BaseException as error:
            interruption = error
        finally:
            hand.pop()
    if interruption is not None:
        raise interruption


def _stand(part: SemaphoreRequest, until: float, hand: list[Grant]) -> Procedure[bool]:
    """Wait in one queue like any other waiter; False if it was full until then."""
    semaphore, request = part

    what = f"acquire {semaphore.name!r}"
    grant = yield from retry_attempts(
        semaphore.session,
        what,
        lambda: attempt(semaphore, request, until, once=False),
        until,
        once=False,
        seen_full=True,
    )
    if grant is None:
        return False
    hand.append(grant)
    if request.max_hold is not None:
        grant.bind(request.max_hold)
    # In the meantime it may have been closed, and registered as a rate limit.
    yield from refuse_wrong_kind(semaphore, rate=request.rate, until=until)
    return True


def _free_ones(
    parts: Sequence[SemaphoreRequest],
    until: float,
    hand: list[Grant],
    *,
    once: bool,
    seen: NoRoom | None = None,
) -> Procedure[NoRoom | None]:
    """Put all of these into `hand` without waiting, or return the one that prevents it.

    `seen`: the one that prevented it before.
    """
    session = parts[0].semaphore.session

    what = f"acquire {', '.join(repr(part.semaphore.name) for part in parts)}"
    taken = yield from retry_attempts(
        session,
        what,
        lambda: _attempt(session, parts, until, once=once),
        until,
        once=once,
        seen_full=seen is not None,
    )
    if taken is None:
        return seen  # etcd was unavailable at the end, and it was full before
    if taken.full is not None:
        return taken.full
    hand += taken.grants
    for part, grant in zip(parts, taken.grants, strict=True):
        if part.request.max_hold is not None:
            grant.bind(part.request.max_hold)
    return None


def _attempt(
    session: Session, parts: Sequence[SemaphoreRequest], until: float, *, once: bool
) -> Procedure[Taken | None]:
    """One attempt, with one lease for each."""
    for part in parts:
        yield from prepare(part.semaphore, until, once=once)
        yield from refuse_wrong_kind(part.semaphore, rate=part.request.rate, until=until)
    leases: list[TtlLease] = []
    try:
        for _, request in parts:
            lease = yield from take_lease(session.leases, request.ttl)
            leases.append(lease)
            lease.refresh = min(request.refresh, lease.ttl / 2)
        taken = yield from _take_at_once(session, parts, leases, until, once=once)
    except (NotApplied, AccessDenied):
        for lease in leases:
            session.leases.give_back(lease)  # nothing was written
        raise
    except Exception:
        for lease in leases:
            session.leases.revoke_later(lease)
        raise
    except BaseException:
        for lease in leases:
            yield from withdraw(session, lease)
        raise
    if taken.full is not None:
        for lease in leases:
            session.leases.give_back(lease)
    return taken


def _take_at_once(
    session: Session,
    parts: Sequence[SemaphoreRequest],
    leases: Sequence[TtlLease],
    until: float,
    *,
    once: bool,
) -> Procedure[Taken]:
    """ALL, until it succeeds or one of them prevents it."""
    several = [part.semaphore.keys for part in parts]
    choices = yield from _first_choices(parts)
    for _ in range(TRIES):
        if choices is None:
            txn = Txn((), transactions.look_at_all(several))
        else:
            txn = transactions.take_all(_slot_requests(parts, leases, choices), session.env.wall())
        reply = yield from transact(session, txn, until)
        if choices is not None and reply.succeeded:
            return Taken(_granted(session, parts, leases, choices, reply.revision))
        choices = []
        for part, seen in zip(parts, transactions.read_all_looks(several, reply), strict=True):
            choice = _choice(part, seen)
            if choice is None:
                paused = once and seen.limit is not None and seen.limit.after_pause
                if paused and (yield from end_timed_pause(part.semaphore, until)):
                    raise TryAgain("a pause is over, which nobody had noticed")
                if once and seen.contended and seen.limit is not None and seen.limit.room:
                    # As for a single one: perhaps it is not full, but a heal is due.
                    yield from reconcile(part.semaphore, until=session.env.now() + RPC_TIMEOUT)
                return Taken([], NoRoom(part))
            choices.append(choice)
            if seen.contended:
                mark = transactions.uncontend(part.semaphore.keys, seen.revision)
                yield from transact(session, mark, until)
    return Taken([], NoRoom(parts[0]))


class _Choice(NamedTuple):
    """The slot to take, and the limit used to choose it; see `SlotRequest`."""

    limit: Limit
    slot: int
    counted_at: int = 0


def _first_choices(parts: Sequence[SemaphoreRequest]) -> Procedure[list[_Choice] | None]:
    """A slot of each, chosen without a look; None if one has no room as far as is known."""
    choices: list[_Choice] = []
    for part in parts:
        limit = yield from known_limit(part.semaphore)
        if limit.room == 0:
            return None
        slots = part.semaphore.slots.candidates(limit)
        choices.append(_Choice(limit, slots[0] if slots else 0))
    return choices


def _choice(part: SemaphoreRequest, seen: Look) -> _Choice | None:
    """A free slot after a look; None if no slot is free, or somebody waits."""
    semaphore = part.semaphore
    semaphore.queue.set_contended(seen.contended)
    limit = learn_known(semaphore, seen.limit, seen.revision)
    wrong = wrong_kind(semaphore, limit, rate=part.request.rate)
    if wrong is not None:
        raise wrong
    if seen.has_waiters:
        return None
    free, counted_at = decisions.room_seen(semaphore.keys, seen)
    if not free:
        return None
    place = 0 if counted_at else int(semaphore.session.env.random() * len(free))
    return _Choice(limit, free[place], counted_at)


def _slot_requests(
    parts: Sequence[SemaphoreRequest], leases: Sequence[TtlLease], choices: Sequence[_Choice]
) -> list[SlotRequest]:
    return [
        SlotRequest(
            keys=part.semaphore.keys,
            limit=choice.limit,
            slot=choice.slot,
            lease=lease.id,
            identity=part.request.asking(choice.limit),
            counted_at=choice.counted_at,
        )
        for part, lease, choice in zip(parts, leases, choices, strict=True)
    ]


def _granted(
    session: Session,
    parts: Sequence[SemaphoreRequest],
    leases: Sequence[TtlLease],
    choices: Sequence[_Choice],
    revision: int,
) -> list[Grant]:
    """Publish the grants if all leases are still valid at this moment: all of them or none."""
    now = session.env.now()
    if not all(lease.valid(now) for lease in leases):
        raise TryAgain("slots were granted, but a lease had expired in the meantime")
    return [
        publish(part.semaphore, lease, session.who(lease), Held(choice.slot, revision))
        for part, lease, choice in zip(parts, leases, choices, strict=True)
    ]
