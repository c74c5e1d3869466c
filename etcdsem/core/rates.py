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

import heapq
import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from etcdsem.core.acquire import AcquireRequest, acquire
from etcdsem.core.commands import Event, Failure, Mailbox, NotApplied, Procedure, Wait, perform
from etcdsem.core.grants import Grant
from etcdsem.core.keys import Identity, Limit, read_limit
from etcdsem.core.lease_manager import freshen
from etcdsem.core.leases import margin
from etcdsem.core.limits import learn_limit, wrong_kind
from etcdsem.core.listeners import CallbackListener, WatchGroup
from etcdsem.core.outward import public_error
from etcdsem.core.release import ReleaseResult, release
from etcdsem.core.retry import sleep
from etcdsem.core.semaphore import SemaphoreState
from etcdsem.errors import EtcdSemError
from etcdsem.model import Rate, Status

DRIFT = 0.001
"""How much of a period is added to it, for clocks that run at different rates..."""

GRAIN = 0.01
"""... and how many seconds, for what happens between a reading of the clock and the start."""

SPENDING = 0.05
"""The part of a period within which a block of starts must be used up."""

SLACK = 1.0
"""Seconds that a fresh lease has beyond what a start needs."""

MIN_TTL = 3
"""Seconds of TTL at least, so that a lease in line survives a short stall."""

LISTEN_AFTER = 0.3
"""Seconds for which a block must be open before its limit and its slot are watched. With demand it
is used up sooner, and would cost two watches."""

GIVERS = 8
"""How many slots a client gives back at a time."""

ANSWERED_IN = 1.0
"""Seconds that a request gets at least. Whose time is up before waits for the answer to the one
before it in the local line: is there no start, or no etcd?"""

RENEWAL = 2.0
"""Seconds that a renewal may take before a slot is given back unused."""


def need(period: float) -> float:
    """Seconds from a start until its slot is given back."""
    return period * (1.0 + DRIFT) + GRAIN


def spending(rate: Rate) -> float:
    """Seconds from a grant within which the starts of its block must be used."""
    return SPENDING * rate.period if rate.block > 1 else 0.0


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


class Started(NamedTuple):
    """A start was handed out at a moment (of `Env.now`), and had been waited for."""

    at: float
    waited: float
    left: int
    """How many starts of its block are left here."""


class Block:
    """A slot that was granted, and the starts that it stands for."""

    __slots__ = ("closes", "grant", "last", "left", "listens_at", "need", "revision")

    def __init__(self, grant: Grant, limit: Limit, rate: Rate, now: float) -> None:
        self.grant = grant
        self.listens_at = now + LISTEN_AFTER
        self.revision = limit.revision
        self.left = rate.block
        self.need = need(rate.period)
        self.closes = now + spending(rate) if rate.block > 1 else math.inf
        self.last = -math.inf

    def usable(self, semaphore: SemaphoreState, now: float) -> bool:
        """May a start of it be handed out now?"""
        return (
            self.left > 0
            and not semaphore.session.closed
            and now <= self.closes
            and semaphore.limit is not None
            and semaphore.limit.revision == self.revision
            and self.grant.valid(now)
            and self.grant.lease.deadline - now >= self.need
        )

    @property
    def due(self) -> float:
        """When the slot is to be given back: no start of it comes after that."""
        return self.last + self.need

    # -- while starts are left

    def listen(self, now: float) -> float:
        """Watch what may end it, if it has been open for long; gives when to ask again."""
        if self.grant.watch is not None or not self.left or self.closes < now:
            return math.inf
        if now < self.listens_at:
            return self.listens_at
        semaphore, keys = self.grant.semaphore, self.grant.semaphore.keys
        env = semaphore.session.env
        limits = CallbackListener(self._limit_news, gap=self._shut, refused=self._refused)
        slots = CallbackListener(self._slot_news, gap=self._shut, refused=self._refused)
        self.grant.watch = WatchGroup(
            [
                env.watch(limits, keys.max_leases, start=self.revision + 1),
                env.watch(slots, keys.slot(self.grant.slot), start=self.grant.token + 1),
            ]
        )
        return math.inf

    def hush(self) -> None:
        """It is used up: nobody need tell us anything."""
        if self.grant.watch is not None:
            self.grant.watch.cancel()
            self.grant.watch = None

    def _limit_news(self, events: Sequence[Event]) -> None:
        semaphore, kv = self.grant.semaphore, events[-1].kv
        limit = read_limit(kv) if events[-1].kind == "put" else None
        semaphore.learn(limit, kv.mod_revision)
        self._shut()

    def _slot_news(self, events: Sequence[Event]) -> None:
        kind = events[-1].kind
        self.grant.taken("deleted" if kind == "delete" else "overwritten")

    def _shut(self) -> None:
        """What is left is forfeited: another limit holds, or news may have been missed."""
        self.left = 0

    def _refused(self, _error: Failure) -> None:
        self._shut()


class Purse:
    """The starts of one rate limit that one client has in use."""

    def __init__(self, semaphore: SemaphoreState) -> None:
        self.semaphore = semaphore
        self.open: Block | None = None  # with starts left
        self.line: deque[Mailbox] = deque()  # who waits for a start of a block, in order
        self.used: list[tuple[float, int, Block]] = []  # a heap: what is to be given back, when
        self.givers = 0
        self.bell = semaphore.session.env.mailbox()  # wakes the giver
        self._count = 0

    def hand_out(self, block: Block, began: float) -> Started | None:
        """A start of a block; None if it cannot be used (any more)."""
        now = self.semaphore.session.env.now()  # read once: who stands still here is judged by it
        if not block.usable(self.semaphore, now):
            return None
        first = block.last == -math.inf
        block.left -= 1
        block.last = now
        block.grant.spent = True
        block.grant.lease.paused = True
        self.open = block if block.left else None
        if not block.left:
            block.hush()
        if first:
            block.grant.on_lost = self._lost(block)
            self._count += 1
            heapq.heappush(self.used, (block.due, self._count, block))
            if self.givers == 0:
                self.add_giver()
            elif self.used[0][2] is block or (
                block.left and self.used[0][0] > block.listens_at < block.closes
            ):
                self.bell.put(None)
        return Started(now, now - began, block.left)

    def take(self, began: float) -> Started | None:
        """A start of the block that is open here, if there is one."""
        block = self.open
        if block is None:
            return None
        started = self.hand_out(block, began)
        if started is None:
            block.hush()
            self.open = None
        return started

    def _lost(self, block: Block) -> Callable[[Grant], None]:
        def lost(grant: Grant) -> None:
            grant.let_go()
            if self.semaphore.session.env.now() < block.due:
                self.semaphore.tally.losses += 1
                _warn(grant)

        return lost

    def add_giver(self) -> None:
        """Have slots given back when they are due."""
        self.givers += 1
        self.semaphore.session.env.spawn(_give_back_in_time(self), "giver")

    def wake_giver(self) -> None:
        """The client is being closed."""
        self.bell.put(None)

    def wake_first(self) -> None:
        """It is the turn of the first in the local line."""
        if self.line:
            self.line[0].put(None)


def _warn(grant: Grant) -> None:
    grant.semaphore.session.env.log(
        logging.WARNING,
        "rate limit %s: slot %d ended in etcd before its time (%s); for one period there may be "
        "more starts than the limit",
        grant.semaphore.name,
        grant.slot,
        grant.lost_reason,
    )


def _give_back_in_time(purse: Purse) -> Procedure[None]:
    """Give back what is due, until there is nothing more. A few may be at it."""
    session = purse.semaphore.session
    env = session.env
    try:
        while purse.used and not session.closed:
            now = env.now()
            due, count, block = purse.used[0]
            if block.due > due:  # a start was handed out since
                heapq.heapreplace(purse.used, (block.due, count, block))
                continue
            if now < due:
                if purse.givers > 1:
                    return
                if purse.open is not None:
                    due = min(due, purse.open.listen(now))
                yield from perform(Wait(purse.bell, due))
                continue
            heapq.heappop(purse.used)
            purse.semaphore.tally.forfeited += block.left
            if purse.used and purse.used[0][0] <= now and purse.givers < GIVERS:
                purse.add_giver()
            grant = block.grant
            if grant.state != "held":
                continue
            grant.on_lost = None
            released = yield from release(grant)
            if released is not ReleaseResult.RELEASED and grant.lost_reason:
                env.log(logging.INFO, "rate limit %s: %s", purse.semaphore.name, grant.lost_reason)
    finally:
        purse.givers -= 1


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


def purse_of(semaphore: SemaphoreState) -> Purse:
    """The purse of a rate limit."""
    if not isinstance(semaphore.purse, Purse):
        semaphore.purse = Purse(semaphore)
    return semaphore.purse


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
    tally = semaphore.tally
    tally.pending += 1
    try:
        started = yield from _start(semaphore, request, until, once=once)
    finally:
        tally.pending -= 1
    if started is None:
        tally.timeouts += 1
    else:
        tally.granted(started.waited)
    return started


def _start(
    semaphore: SemaphoreState, request: AcquireRequest, until: float, *, once: bool
) -> Procedure[Started | None]:
    session, purse = semaphore.session, purse_of(semaphore)
    began = session.env.now()
    limit = semaphore.limit
    if limit is None or limit.rate is None:  # unknown; or is it still another kind?
        limit = yield from learn_limit(semaphore)
    if rate_of(semaphore, limit).block > 1:
        return (yield from _start_of_block(purse, request, until, began, once=once))
    return (yield from _fetch(purse, request, until, began, once=once))


def _start_of_block(
    purse: Purse, request: AcquireRequest, until: float, began: float, *, once: bool
) -> Procedure[Started | None]:
    """A start of a block: who is first in the local line uses what is open, or fetches another."""
    semaphore = purse.semaphore
    env = semaphore.session.env
    if once and purse.line:
        return None
    box = env.mailbox()
    purse.line.append(box)
    patience = until
    try:
        while purse.line[0] is not box:
            note = yield from perform(Wait(box, patience))
            if purse.line[0] is box or note is not None or env.now() < patience:
                continue
            if semaphore.waiters or semaphore.session.leases.last_contact >= began:
                return None
            if patience >= began + ANSWERED_IN:
                raise _away(semaphore, "etcd did not answer in time")
            patience = began + ANSWERED_IN
        started = purse.take(began)
        if started is not None:
            return started
        if patience > until:
            if semaphore.session.leases.last_contact < began:
                raise _away(semaphore, "etcd did not answer in time")
            return None
        return (yield from _fetch(purse, request, until, began, once=once))
    finally:
        purse.line.remove(box)
        purse.wake_first()


def _away(semaphore: SemaphoreState, why: str) -> BaseException:
    return public_error(NotApplied(why), f"acquire {semaphore.name!r}")


def _fetch(
    purse: Purse, request: AcquireRequest, until: float, began: float, *, once: bool
) -> Procedure[Started | None]:
    """A start of a slot that is asked for in etcd, or None if there was none."""
    semaphore = purse.semaphore
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
            started = purse.hand_out(block, began)
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
