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
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from etcdsem.core import transactions
from etcdsem.core.acquire import acquire
from etcdsem.core.commands import NotApplied, OutcomeUnknown, Procedure, Wait, perform
from etcdsem.core.error_mapping import public_error
from etcdsem.core.grants import Grant
from etcdsem.core.keys import Identity, Limit
from etcdsem.core.keys.permit import LATE, need, spending
from etcdsem.core.lease_manager import freshen
from etcdsem.core.leases import margin
from etcdsem.core.limits import learn_limit, learned, queue_full, wrong_kind
from etcdsem.core.permits import Block, PermitPool, Started, pool_of
from etcdsem.core.release import release
from etcdsem.core.request import AcquireRequest
from etcdsem.core.retry import sleep, transact
from etcdsem.core.semaphore import SemaphoreState
from etcdsem.errors import EtcdSemError
from etcdsem.model import Rate, Status

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


def next_free(seen: Status, wall: float) -> float:
    """Estimated seconds until a new caller may get a permit, from the times recorded in etcd and
    this machine's wall clock.
    """
    rate = seen.rate
    if rate is None or not seen.max_leases:
        return math.inf
    if seen.pause is not None and seen.pause.until is not None:
        return max(seen.pause.left(wall), next_free(replace(seen, pause=None), wall))
    after = need(rate.period)
    free = seen.max_leases - seen.held - len(seen.waiters)
    if free > 0:
        return 0.0
    left = sorted(
        holder.ttl or 0.0  # the record of a permit whose lease has ended
        if not holder.lease_id
        else min(after, max(0.0, holder.acquired_at.timestamp() + after - wall))
        for holder in seen.holders
        if holder.acquired_at is not None
    )
    rounds, place = divmod(-free, seen.max_leases)
    return rounds * after + (left[place] if place < len(left) else after)


# ---------------------------------------------------------------- a permit


def rate_of(semaphore: SemaphoreState, limit: Limit) -> Rate:
    """The rate of a limit; raises WrongKind or EtcdSemError if it has none."""
    wrong = wrong_kind(semaphore, limit, rate=True)
    if wrong is not None:
        raise wrong
    if limit.rate is None:
        raise EtcdSemError(
            f"rate limit {semaphore.name!r}: its limit in etcd reads {limit.text!r}, so no "
            f"permit is granted; fix it: etcdsem rate {semaphore.name} 100/1m"
        )
    return limit.rate


def start(
    semaphore: SemaphoreState, request: AcquireRequest, until: float, *, once: bool
) -> Procedure[Started | None]:
    """A permit, or None if `until` came first (`once`: right now).

    Raises what `acquire` raises, and WrongKind.
    """
    stats = semaphore.stats
    stats.pending += 1
    try:
        started = yield from _start(semaphore, request, until, once=once)
    finally:
        stats.pending -= 1
    if started is None:
        stats.timeouts += 1
    else:
        stats.granted(started.waited)
    return started


def _start(
    semaphore: SemaphoreState, request: AcquireRequest, until: float, *, once: bool
) -> Procedure[Started | None]:
    session, permits = semaphore.session, pool_of(semaphore)
    began = session.env.now()
    limit = semaphore.limit
    if limit is None or limit.rate is None:  # unknown, or known as the other kind: read it again
        limit = yield from learn_limit(semaphore)
    if rate_of(semaphore, limit).block > 1:
        return (yield from _start_of_block(permits, request, until, began, once=once))
    return (yield from _fetch(permits, request, until, began, once=once))


def _start_of_block(
    permits: PermitPool, request: AcquireRequest, until: float, began: float, *, once: bool
) -> Procedure[Started | None]:
    """A start of a block: the first in the local queue uses the open block, or fetches another."""
    semaphore = permits.semaphore
    env = semaphore.session.env
    if once and permits.line:
        return None
    if permits.line and request.max_waiting is not None:
        if len(permits.line) >= request.max_waiting:
            raise queue_full(semaphore, request.max_waiting)
        request = request._replace(max_waiting=None)  # it has a place, behind others of this client
    box = env.mailbox()
    permits.line.append(box)
    patience = until
    try:
        while permits.line[0] is not box:
            note = yield from perform(Wait(box, patience))
            if permits.line[0] is box or note is not None or env.now() < patience:
                continue
            if semaphore.waiters or semaphore.session.leases.last_contact >= began:
                return None
            if patience >= began + ANSWERED_IN:
                raise _away(semaphore, "etcd did not answer in time")
            patience = began + ANSWERED_IN
        started = permits.take(began)
        if started is not None:
            return started
        if patience > until:
            if semaphore.session.leases.last_contact < began:
                raise _away(semaphore, "etcd did not answer in time")
            return None
        return (yield from _fetch(permits, request, until, began, once=once))
    finally:
        permits.line.remove(box)
        permits.wake_first()


def _away(semaphore: SemaphoreState, why: str) -> BaseException:
    return public_error(NotApplied(why), f"acquire {semaphore.name!r}")


def _fetch(
    permits: PermitPool, request: AcquireRequest, until: float, began: float, *, once: bool
) -> Procedure[Started | None]:
    """A permit of a slot that is acquired in etcd, or None."""
    semaphore = permits.semaphore
    env = semaphore.session.env
    limit = semaphore.limit
    while True:
        if limit is None:
            limit = yield from learn_limit(semaphore)
        ttl = lease_ttl(rate_of(semaphore, limit))
        timed = request._replace(ttl=ttl, refresh=ttl / 3)
        asked = env.now()
        grant = yield from acquire(semaphore, timed, until, once=once)
        if grant is None:
            return None
        try:  # who takes a slot itself puts the record with it, and whoever hands one over does not
            recorded = -math.inf if grant.has_message else asked
            block = yield from _usable(semaphore, grant, recorded)
        except BaseException:  # interrupted, or closed: nothing was handed out
            yield from release(grant)
            raise
        if isinstance(block, Block):
            started = permits.take_from(block, began)
            if started is not None:
                return started
            block = "stale"  # this process was suspended after the block was found usable
        yield from release(grant)
        limit = semaphore.limit
        if block == "stale" and (once or env.now() >= until):
            raise _away(semaphore, "a lease could not be renewed in time")
        yield from sleep(semaphore.session, 0.02 * env.random())


def _usable(
    semaphore: SemaphoreState, grant: Grant, recorded: float
) -> Procedure[Block | Literal["changed", "stale"]]:
    """The block of a grant if it can be used; "changed" if the limit or the slot has changed since,
    "stale" if its lease or its record could not be renewed.

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
        semaphore.keys, limit, grant.slot, grant.token, session.client, env.wall()
    )
    while True:
        try:
            reply = yield from transact(session, txn, began + LATE)
        except (NotApplied, OutcomeUnknown):
            if env.now() > began + LATE / 2 or session.closed:
                return "stale"
            yield from sleep(session, 0.1 * env.random())
            continue
        if reply.succeeded:
            return began
        learned(semaphore, reply)
        return "changed"
