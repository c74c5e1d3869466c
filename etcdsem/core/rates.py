"""Rate limits: a limit on the permits in any window of a period.

1. A rate limit is a semaphore whose slots stand for permits (or blocks of permits). A slot is given
   back one period after its last start, and not earlier, whatever happens to the program that
   started.
2. While its owner is alive, it gives the slot back by its own clock: after the period, plus `DRIFT`
   of it for clocks that run at different rates. The slot goes to the next waiter, so no time is
   lost.
3. If its owner has died or ended, etcd ends the lease by the TTL. So a permit is handed out only
   while its lease has a period left, computed as for any lease (`leases`, 1). The lease is renewed
   before that if necessary, and never after.
4. Nobody revokes a lease whose start was handed out: a client that closes leaves it in etcd.
5. What was granted and not handed out (interrupted, the limit changed, no renewal in time) is given
   back at once, like any slot.
6. Permits of a block are used here without asking etcd, for a small part of the period
   (`spending`); the rest is forfeited. While a block is open for longer than an instant, the limit
   and its slot are watched, so that the client learns of a pause, another limit or an eviction.
7. etcd may end a lease early. So a permit is handed out only within `LATE` seconds of its record in
   etcd (`keys.permit`), which keeps the slot taken in that case. A client that takes a slot
   itself puts the record in the same transaction. A client that was granted one in the queue puts
   it before the permit is handed out, if the limit and the slot are still the same.
8. A start that costs several permits takes as many slots as it needs, with one lease: all at once,
   in its turn. 1 to 7 hold for each of them.
9. A start of several rate limits collects its slots in the order of the keys, so two never wait for
   each other; the order is the same for all, whatever happens to the limits. It keeps what it has,
   unspent, while it waits for the next. Everything is handed out at one moment, or given back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

from etcdsem.core import transactions
from etcdsem.core.acquire import acquire
from etcdsem.core.commands import (
    Mailbox,
    NotApplied,
    OutcomeUnknown,
    Procedure,
    Wait,
    perform,
)
from etcdsem.core.error_mapping import public_error
from etcdsem.core.grants import Grant
from etcdsem.core.keys import Identity, Limit
from etcdsem.core.keys.permit import LATE, need, spending
from etcdsem.core.lease_manager import freshen
from etcdsem.core.leases import margin
from etcdsem.core.limits import (
    learn_limit,
    learned,
    rate_of,
    refuse_too_heavy,
    slots_for,
    too_heavy,
)
from etcdsem.core.permits import Block, Started, pool_of
from etcdsem.core.release import release
from etcdsem.core.request import AcquireRequest
from etcdsem.core.retry import sleep, transact
from etcdsem.core.semaphore import SemaphoreState
from etcdsem.errors import EtcdSemError
from etcdsem.model import Rate

SLACK = 1.0
"""Seconds that a fresh lease has beyond what a permit needs."""

MIN_TTL = 3
"""Minimum TTL in seconds, so that a waiter's lease survives a short stall."""

ANSWERED_IN = 1.0
"""Minimum seconds that a request gets. A caller whose time ends earlier waits for the answer to the
request before it in the local queue: is there no permit, or is etcd unavailable?"""

RENEWAL = 2.0
"""Seconds that a renewal may take before a slot is given back unused."""


def lease_ttl(rate: Rate) -> int:
    """The TTL in seconds for a permit: what it needs, and little more, since it is wasted when its
    owner dies.
    """
    wanted = need(rate.period) + spending(rate) + SLACK
    ttl = math.ceil(wanted)
    while ttl - margin(ttl) < wanted:
        ttl += 1
    return max(MIN_TTL, ttl)


def permit_request(
    identity: Identity,
    on_wait: Callable[[], object] | None = None,
    max_waiting: int | None = None,
) -> AcquireRequest:
    """The request for a permit. Its TTL depends on the rate, which is read later."""
    return AcquireRequest(
        MIN_TTL, MIN_TTL / 3, identity, on_wait, rate=True, max_waiting=max_waiting
    )


# ---------------------------------------------------------------- a permit


class StartRequest(NamedTuple):
    """A start of one rate limit, which costs so many of its permits."""

    semaphore: SemaphoreState
    request: AcquireRequest
    cost: int = 1


def start(
    semaphore: SemaphoreState, request: AcquireRequest, until: float, *, once: bool, cost: int = 1
) -> Procedure[Started | None]:
    """A start, or None if `until` came first (`once`: right now).

    Raises what `acquire` raises, and WrongKind.
    """
    started = yield from start_all([StartRequest(semaphore, request, cost)], until, once=once)
    return started[0] if started is not None else None


def start_all(
    wanted: Sequence[StartRequest], until: float, *, once: bool
) -> Procedure[list[Started] | None]:
    """A start of each of several different rate limits at one moment, or of none; see 9."""
    env = wanted[0].semaphore.session.env
    turns = [_Progress(*one, env.now()) for one in wanted]
    for turn in turns:
        turn.semaphore.stats.pending += 1
    try:
        handed_out = yield from _start(
            sorted(turns, key=lambda turn: turn.semaphore.keys.base), until, once=once
        )
    except BaseException:  # interrupted, or closed: give back what was not handed out
        yield from _put_back(turns)
        raise
    finally:
        for turn in turns:
            turn.leave_line()
            turn.semaphore.stats.pending -= 1
    if not handed_out:
        for turn in turns:
            turn.semaphore.stats.timeouts += 1
        return None
    return [turn.started for turn in turns if turn.started is not None]


class _Progress:
    """How far a start has come with one of its rate limits."""

    def __init__(
        self, semaphore: SemaphoreState, request: AcquireRequest, cost: int, began: float
    ) -> None:
        self.semaphore, self.request, self.cost, self.began = semaphore, request, cost, began
        self.permits = pool_of(semaphore)
        self.box: Mailbox | None = None  # in the local queue for blocks
        self.grant: Grant | None = None
        self.recorded = -math.inf  # the permit's record in etcd is not older
        self.block: Block | None = None  # of the grant, if it was found usable
        self.started: Started | None = None

    def has_permits(self, now: float) -> bool:
        """Can it be handed out now?"""
        if self.grant is None and self.box is None:
            return False  # what is left of a block belongs to the first in the local queue
        return self.permits.has(self.cost, self.block, now)

    def take(self, now: float) -> None:
        """Hand it out: from the open block if that has enough, although it has slots of its own."""
        spared = self.box is not None and self.permits.has(self.cost, None, now)
        block = None if spared else self.block
        self.started = self.permits.take(self.cost, block, now, self.began)
        self.semaphore.stats.granted(self.started.waited)

    def needs_own(self, later: Sequence[_Progress]) -> bool:
        """Would an open block close while it waits for the limits that come later?"""
        block, now = self.permits.open, self.semaphore.session.env.now()
        periods = [
            one.semaphore.limit.rate.period
            for one in later
            if one.semaphore.queue.contended and one.semaphore.limit and one.semaphore.limit.rate
        ]
        return block is not None and block.closes < now + 2 * max(periods, default=-math.inf)

    def slots(self, limit: Limit) -> int:
        """How many slots it takes; raises what `rate_of` and `_slots_for` raise."""
        return slots_for(self.semaphore, rate_of(self.semaphore, limit), self.cost)

    def leave_line(self) -> None:
        """Make way for the next one in the local queue."""
        if self.box is not None:
            self.permits.line.remove(self.box)
            self.permits.wake_first()
            self.box = None


def _start(turns: Sequence[_Progress], until: float, *, once: bool) -> Procedure[bool]:
    """Collect the permits, and hand all of them out at one moment; False if `until` came first."""
    env = turns[0].semaphore.session.env
    if len(turns) > 1:
        yield from _refuse_too_dear(turns)
    while True:
        for place, turn in enumerate(turns):
            if turn.grant is not None or turn.has_permits(env.now()):
                continue
            # It must not wait for this one with what comes later in the order.
            yield from _put_back(turns[place + 1 :])
            if not (yield from _obtain(turn, turns[place + 1 :], until, once=once)):
                yield from _put_back(turns)
                return False
        failed = yield from _prepare(turns)
        now = env.now()  # read once: a suspension here is judged by it
        if failed is None and all(turn.has_permits(now) for turn in turns):
            for turn in turns:
                turn.take(now)
            yield from _put_back(turns)  # what an open block has spared
            return True
        if failed == "stale" and (once or now >= until):
            raise _away(turns[0].semaphore, "a lease could not be renewed in time")
        yield from sleep(turns[0].semaphore.session, 0.02 * env.random())


def _refuse_too_dear(turns: Sequence[_Progress]) -> Procedure[None]:
    """Raise WeightExceedsLimit if one of the costs exceeds its limit, before waiting for others."""
    for turn in turns:
        limit = turn.semaphore.limit or (yield from learn_limit(turn.semaphore))
        if too_heavy(turn.semaphore, turn.slots(limit)):
            limit = yield from learn_limit(turn.semaphore)  # what is known may be outdated
            refuse_too_heavy(turn.semaphore, turn.slots(limit))


def _put_back(turns: Iterable[_Progress]) -> Procedure[None]:
    """Give back what was granted and not handed out. Interruptions are raised at the end."""
    interruption: BaseException | None = None
    for turn in turns:
        turn.leave_line()
        grant, turn.grant = turn.grant, None
        if grant is not None and not grant.spent:
            try:
                yield from release(grant)
            except BaseException as error:
                interruption = error
    if interruption is not None:
        raise interruption


def _obtain(
    turn: _Progress, later: Sequence[_Progress], until: float, *, once: bool
) -> Procedure[bool]:
    """Wait for slots, unless a block that is open here has enough and stays open until there are
    permits of the `later` limits; False if `until` came first.
    """
    semaphore = turn.semaphore
    env = semaphore.session.env
    limit = semaphore.limit
    if limit is None or limit.rate is None:  # unknown, or known as the other kind: read it again
        limit = yield from learn_limit(semaphore)
    rate = rate_of(semaphore, limit)
    if rate.block > 1:
        patience = yield from _come_first(turn, until, once=once)
        if patience is None:
            return False
        if turn.has_permits(env.now()) and not turn.needs_own(later):
            return True
        if patience > until:
            if semaphore.session.leases.last_contact < turn.began:
                raise _away(semaphore, "etcd did not answer in time")
            return False
        limit = semaphore.limit or (yield from learn_limit(semaphore))
        rate = rate_of(semaphore, limit)
    ttl = lease_ttl(rate)
    demand = turn.request.demand._replace(weight=slots_for(semaphore, rate, turn.cost))
    timed = turn.request._replace(ttl=ttl, refresh=ttl / 3, demand=demand)
    asked = env.now()
    grant = yield from acquire(semaphore, timed, until, once=once)
    if grant is None:
        return False
    # Who takes a slot itself puts the record with it, and whoever hands one over does not.
    turn.grant, turn.block = grant, None
    turn.recorded = -math.inf if grant.has_message else asked
    return True


def _come_first(turn: _Progress, until: float, *, once: bool) -> Procedure[float | None]:
    """Wait until it is the first in the local queue; None if `until` came first, else the time
    until which it has waited for etcd's answer to the request of the one before.
    """
    permits, semaphore, began = turn.permits, turn.semaphore, turn.began
    env = semaphore.session.env
    if turn.box is None:
        if once and permits.line:
            return None
        turn.request = permits.bounded(turn.request)
        turn.box = env.mailbox()
        permits.line.append(turn.box)
    box, patience = turn.box, until
    while permits.line[0] is not box:
        note = yield from perform(Wait(box, patience))
        if permits.line[0] is box or note is not None or env.now() < patience:
            continue
        if semaphore.waiters or semaphore.session.leases.last_contact >= began:
            return None
        if patience >= began + ANSWERED_IN:
            raise _away(semaphore, "etcd did not answer in time")
        patience = began + ANSWERED_IN
    return patience


def _away(semaphore: SemaphoreState, why: str) -> BaseException:
    return public_error(NotApplied(why), f"acquire {semaphore.name!r}")


def _prepare(turns: Sequence[_Progress]) -> Procedure[Literal["changed", "stale"] | None]:
    """Make all grants usable now. Returns why one cannot be used; it was given back."""
    for turn in turns:
        if turn.grant is None:
            continue
        block = yield from _usable(turn.semaphore, turn.grant, turn.recorded, turn.cost)
        if isinstance(block, Block):
            turn.block, turn.recorded = block, block.recorded
            continue
        grant, turn.grant, turn.block = turn.grant, None, None
        yield from release(grant)
        return block
    return None


def _usable(
    semaphore: SemaphoreState, grant: Grant, recorded: float, cost: int = 1
) -> Procedure[Block | Literal["changed", "stale"]]:
    """The block of a grant if it can be used for a start; "changed" if the limit or the slots have
    changed since, "stale" if its lease or its record could not be renewed.

    `recorded`: the permit's record in etcd is not older than that; -inf: it has none yet.
    """
    session = semaphore.session
    while True:
        limit = semaphore.limit or (yield from learn_limit(semaphore))
        if limit.revision >= grant.token or limit.paused or limit.rate is None:
            return "changed"
        rate = limit.rate
        wanted = need(rate.period) + spending(rate)
        if wanted > grant.lease.ttl - margin(grant.lease.ttl):
            return "changed"  # the lease was made for another period
        if len(grant.slots) != slots_for(semaphore, rate, cost):
            return "changed"  # another block was in force when they were requested
        within = session.env.now() + RENEWAL
        if not (yield from freshen(session.leases, grant.lease, wanted, within)):
            return "stale"
        now = session.env.now()
        if now > recorded + LATE / 2:
            result = yield from _record(semaphore, grant, limit)
            now = session.env.now()
            if not isinstance(result, float):
                if result == "changed" and semaphore.limit is not limit:
                    continue  # this client has learned late of a limit that is older than the grant
                return result
            recorded = result
        if semaphore.limit is None or semaphore.limit.revision != limit.revision:
            continue
        if session.closed:
            raise EtcdSemError(f"rate limit {semaphore.name!r}: its client was closed")
        return Block(grant, limit, rate, now, recorded)


def _record(
    semaphore: SemaphoreState, grant: Grant, limit: Limit
) -> Procedure[float | Literal["changed", "stale"]]:
    """Put the permit's record, and return a moment before its time: permits may be handed out until
    `LATE` after it. "changed": the slot or the limit has changed; "stale": etcd did not answer.

    If the outcome is unknown, the same transaction is sent again. Another one, with a later time,
    could be followed by this one.
    """
    session, env = semaphore.session, semaphore.session.env
    began = env.now()
    txn = transactions.record_permit(
        semaphore.keys, limit, grant.held_slots, session.client, env.wall()
    )
    while True:
        try:
            reply = yield from transact(session, txn, began + LATE)
        except (NotApplied, OutcomeUnknown):
            if env.now() > began + LATE / 2 or session.closed:
                return "stale"
            yield from sleep(session, 0.1 * env.random())
            continue
        answer = transactions.read_record(reply)
        if answer.succeeded:
            return began
        learned(semaphore, answer)
        return "changed"
