"""Rate limits: at most so many starts in any window of a period.

1. A rate limit is a semaphore whose slots stand for starts (or blocks of starts). A slot is given
   back one period after its last start, and not earlier, whatever happens to whoever started.
2. If its owner lives, it gives the slot back, by its own clock: the period, and `DRIFT` of it for
   clocks that run at different rates. That goes to the next in line, so no time is lost.
3. If its owner has died, or has ended, etcd ends its lease by the TTL. So a start is handed out
   only while its lease has a period left, reckoned as for any lease (`leases`, 1); the lease is
   renewed before that if need be, and never after.
4. Nobody revokes a lease with a start that was handed out: a client that closes lets go of it.
5. What was granted and not handed out (interrupted, the limit changed, no renewal in time) is given
   back at once, as any slot.
6. Starts of a block are used here without asking etcd, for a small part of the period (`spending`);
   what is left then is forfeited. While a block is open for longer than an instant, the limit and
   its slot are watched, so that a pause, another limit or an eviction is heard of.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from etcdsem.core.acquire import acquire
from etcdsem.core.commands import NotApplied, Procedure, Wait, perform
from etcdsem.core.error_mapping import public_error
from etcdsem.core.grants import Grant
from etcdsem.core.keys import Identity, Limit
from etcdsem.core.lease_manager import freshen
from etcdsem.core.leases import margin
from etcdsem.core.limits import learn_limit, wrong_kind
from etcdsem.core.permits import Block, PermitPool, Started, need, pool_of, spending
from etcdsem.core.release import release
from etcdsem.core.request import AcquireRequest
from etcdsem.core.retry import sleep
from etcdsem.core.semaphore import SemaphoreState
from etcdsem.errors import EtcdSemError
from etcdsem.model import Rate, Status

SLACK = 1.0
"""Seconds that a fresh lease has beyond what a start needs."""

MIN_TTL = 3
"""Seconds of TTL at least, so that a lease in line survives a short stall."""

ANSWERED_IN = 1.0
"""Seconds that a request gets at least. Whose time is up before waits for the answer to the one
before it in the local line: is there no start, or no etcd?"""

RENEWAL = 2.0
"""Seconds that a renewal may take before a slot is given back unused."""


def lease_ttl(rate: Rate) -> int:
    """The TTL for a start: what it needs, and not much more, for it is lost when its owner dies."""
    wanted = need(rate.period) + spending(rate) + SLACK
    ttl = math.ceil(wanted)
    while ttl - margin(ttl) < wanted:
        ttl += 1
    return max(MIN_TTL, ttl)


def permit_request(
    identity: Identity, on_wait: Callable[[], object] | None = None
) -> AcquireRequest:
    """Who wants a start. The TTL depends on the rate, which is read later."""
    return AcquireRequest(MIN_TTL, MIN_TTL / 3, identity, on_wait, rate=True)


def next_free(seen: Status, wall: float) -> float:
    """Seconds until there may be a start for who comes now: an estimate, by the times that were
    noted in etcd and this machine's wall clock.
    """
    rate = seen.rate
    if rate is None or not seen.max_leases:
        return math.inf
    after = need(rate.period)
    free = seen.max_leases - seen.held - len(seen.waiters)
    if free > 0:
        return 0.0
    left = sorted(
        min(after, max(0.0, holder.acquired_at.timestamp() + after - wall))
        for holder in seen.holders
        if holder.acquired_at is not None
    )
    rounds, place = divmod(-free, seen.max_leases)
    return rounds * after + (left[place] if place < len(left) else after)


# ---------------------------------------------------------------- a start


def rate_of(semaphore: SemaphoreState, limit: Limit) -> Rate:
    """The rate of a limit; raises if it has none."""
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
    """A start, or None if there was none until `until` (`once`: right now).

    Raises what `acquire` does, and WrongKind.
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
    if limit is None or limit.rate is None:  # unknown; or is it still another kind?
        limit = yield from learn_limit(semaphore)
    if rate_of(semaphore, limit).block > 1:
        return (yield from _start_of_block(permits, request, until, began, once=once))
    return (yield from _fetch(permits, request, until, began, once=once))


def _start_of_block(
    permits: PermitPool, request: AcquireRequest, until: float, began: float, *, once: bool
) -> Procedure[Started | None]:
    """A start of a block: who is first in the local line uses what is open, or fetches another."""
    semaphore = permits.semaphore
    env = semaphore.session.env
    if once and permits.line:
        return None
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
    """A start of a slot that is asked for in etcd, or None if there was none."""
    semaphore = permits.semaphore
    env = semaphore.session.env
    limit = semaphore.limit
    while True:
        if limit is None:
            limit = yield from learn_limit(semaphore)
        ttl = lease_ttl(rate_of(semaphore, limit))
        timed = request._replace(ttl=ttl, refresh=ttl / 3)
        grant = yield from acquire(semaphore, timed, until, once=once)
        if grant is None:
            return None
        try:
            block = yield from _usable(semaphore, grant)
        except BaseException:  # interrupted, or closed: nothing was handed out
            yield from release(grant)
            raise
        if isinstance(block, Block):
            started = permits.take_from(block, began)
            if started is not None:
                return started
            block = "stale"  # this process stood still since it was found usable
        yield from release(grant)
        limit = semaphore.limit
        if block == "stale" and (once or env.now() >= until):
            raise _away(semaphore, "a lease could not be renewed in time")
        yield from sleep(semaphore.session, 0.02 * env.random())


def _usable(
    semaphore: SemaphoreState, grant: Grant
) -> Procedure[Block | Literal["changed", "stale"]]:
    """The block of a grant, if it can be used: else the limit has changed since, or its lease could
    not be renewed.
    """
    session = semaphore.session
    # Who was granted from the line does not know by which limit: it may have changed meanwhile.
    if grant.letter or semaphore.limit is None:
        limit = yield from learn_limit(semaphore)
    else:
        limit = semaphore.limit
    if limit.revision >= grant.token or limit.paused or limit.rate is None:
        return "changed"
    rate = limit.rate
    wanted = need(rate.period) + spending(rate)
    if wanted > grant.lease.ttl - margin(grant.lease.ttl):
        return "changed"  # it was made for another period
    within = session.env.now() + RENEWAL
    if not (yield from freshen(session.leases, grant.lease, wanted, within)):
        return "stale"
    if semaphore.limit is None or semaphore.limit.revision != limit.revision:
        return "changed"
    if session.closed:
        raise EtcdSemError(f"rate limit {semaphore.name!r}: its client was closed")
    return Block(grant, limit, rate, session.env.now())
