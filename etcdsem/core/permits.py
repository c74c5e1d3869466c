"""The permits of a rate limit that one client has, and when their slots are given back.

`rates` lists the rules.
"""

from __future__ import annotations

import heapq
import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from etcdsem.core.commands import Event, Failure, Mailbox, Procedure, Wait, perform
from etcdsem.core.grants import Grant
from etcdsem.core.keys import Limit
from etcdsem.core.keys.permit import LATE, need, spending
from etcdsem.core.limits import queue_full
from etcdsem.core.listeners import CallbackListener, WatchGroup
from etcdsem.core.release import release, release_some
from etcdsem.core.release_steps import ReleaseResult
from etcdsem.core.request import AcquireRequest
from etcdsem.core.semaphore import SemaphoreState
from etcdsem.model import Rate

LISTEN_AFTER = 0.3
"""Seconds for which a block must be open before its limit and its slot are watched. Under load it
is used up sooner, and the two watches would be wasted."""

MAX_RELEASERS = 8
"""How many slots a client gives back concurrently."""


class Started(NamedTuple):
    """A start that was handed out at a time on `Env.now`, after `waited` seconds."""

    at: float
    waited: float
    left: int
    """How many permits of its block this client has left."""
    parts: tuple[tuple[Block, int], ...]
    """The blocks whose permits it has, and how many of each."""


class Block:
    """The granted slots of one lease, and the permits that they stand for. `recorded`: when the
    record that is in etcd was made, or before.
    """

    __slots__ = (
        "closes",
        "grant",
        "last",
        "left",
        "listens_at",
        "need",
        "recorded",
        "revision",
        "size",
    )

    def __init__(self, grant: Grant, limit: Limit, rate: Rate, now: float, recorded: float) -> None:
        self.grant = grant
        self.listens_at = now + LISTEN_AFTER
        self.revision = limit.revision
        self.size = rate.block  # permits of a slot
        self.left = rate.block * len(grant.slots)
        self.need = need(rate.period)
        self.recorded = recorded
        latest = recorded + LATE
        self.closes = min(now, latest) + spending(rate) if rate.block > 1 else latest
        self.last = -math.inf

    def usable(self, semaphore: SemaphoreState, now: float) -> bool:
        """May one of its permits be handed out now?"""
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
        """When the slots must be given back: none of their permits is later than `last`."""
        return self.last + self.need

    # -- while starts are left

    def listen(self, now: float) -> float:
        """Watch what may end it, if it has been open for long. Returns when to call again."""
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
        """Stop watching: it is used up."""
        if self.grant.watch is not None:
            self.grant.watch.cancel()
            self.grant.watch = None

    def _limit_news(self, events: Sequence[Event]) -> None:
        self.grant.semaphore.learn_from(events)
        self._shut()

    def _slot_news(self, events: Sequence[Event]) -> None:
        kind = events[-1].kind
        self.grant.taken("deleted" if kind == "delete" else "overwritten")

    def _shut(self) -> None:
        """Forfeit what is left: the limit has changed, or news may have been missed."""
        self.left = 0

    def _refused(self, _error: Failure) -> None:
        self._shut()


class PermitPool:
    """The permits of one rate limit that one client has in use."""

    def __init__(self, semaphore: SemaphoreState) -> None:
        self.semaphore = semaphore
        self.open: Block | None = None  # with permits left
        self.line: deque[Mailbox] = deque()  # callers that wait for a permit of a block, in order
        self.used: list[tuple[float, int, Block]] = []  # a heap of what to give back, and when
        self.spared: deque[Block] = deque()  # with slots that were not used after all
        self.releasers = 0
        self.wakeup = semaphore.session.env.mailbox()  # wakes the releaser
        self._count = 0

    def has(self, cost: int, fresh: Block | None, now: float) -> bool:
        """Can so many permits be handed out now, of the open block and of `fresh`?"""
        return bool(self._sources(cost, fresh, now))

    def _sources(self, cost: int, fresh: Block | None, now: float) -> list[Block]:
        """The blocks that have so many permits, the open one first; empty if they lack them."""
        blocks = [block for block in (self.open, fresh) if block is not None]
        usable = [block for block in blocks if block.usable(self.semaphore, now)]
        if self.open is not None and self.open not in usable:
            self.open.hush()
            self.open = None
        enough = sum(block.left for block in usable) >= cost and usable[-1:] == blocks[-1:]
        return usable if enough else []

    def take(self, cost: int, fresh: Block | None, now: float, began: float) -> Started:
        """Take permits that `has` has found at the same moment. What was left of the open block
        goes first, but `fresh` is used in any case.
        """
        sources = self._sources(cost, fresh, now)
        if not sources:
            raise AssertionError(f"{cost} permits were taken of blocks that have fewer")
        parts: list[tuple[Block, int]] = []
        for block in sources:
            wanted = cost - sum(count for _, count in parts)
            count = wanted if block is sources[-1] else min(block.left, wanted - 1)
            if count:
                self._use(block, count, now)
                parts.append((block, count))
        self.open = next((one for one in reversed(sources) if one.left and one.size > 1), None)
        return Started(now, now - began, self.open.left if self.open else 0, tuple(parts))

    def _use(self, block: Block, count: int, now: float) -> None:
        """Hand out permits of a block."""
        first = block.last == -math.inf
        block.left -= count
        block.last = now
        block.grant.spent = True
        block.grant.lease.paused = True
        if not block.left:
            block.hush()
        if first:
            block.grant.on_lost = self._lost(block)
            self._count += 1
            heapq.heappush(self.used, (block.due, self._count, block))
            if self.releasers == 0:
                self.add_releaser()
            elif self.used[0][2] is block or (
                block.left and self.used[0][0] > block.listens_at < block.closes
            ):
                self.wakeup.put(None)

    def settle(self, started: Started, unused: int) -> None:
        """Give back permits of a start that were not used: slots that are wholly unused now go to
        the next waiter at once; the rest of a block stays open while it may be used.
        """
        for block, count in reversed(started.parts):
            back = min(count, unused)
            unused -= back
            block.left += back
            if block.left >= block.size:
                self.spared.append(block)
            elif self.open is None and back:
                self.open = block
        if self.spared and self.releasers == 0:
            self.add_releaser()
        else:
            self.wakeup.put(None)

    def _lost(self, block: Block) -> Callable[[Grant], None]:
        def lost(grant: Grant) -> None:
            grant.let_go()
            if self.semaphore.session.env.now() < block.due:
                self.semaphore.stats.losses += 1
                _warn(grant)

        return lost

    def add_releaser(self) -> None:
        """Start a procedure that gives slots back when they are due."""
        self.releasers += 1
        self.semaphore.session.env.spawn(_give_back_in_time(self), "giver")

    def wake_releaser(self) -> None:
        """Called when the client is being closed."""
        self.wakeup.put(None)

    def bounded(self, request: AcquireRequest) -> AcquireRequest:
        """The request of a caller that joins the local queue. Raises QueueFull if too many wait
        there; behind others, it has its place in etcd's queue by the first of them.
        """
        if request.max_waiting is None or not self.line:
            return request
        if len(self.line) >= request.max_waiting:
            raise queue_full(self.semaphore, request.max_waiting)
        return request._replace(max_waiting=None)

    def wake_first(self) -> None:
        """Wake the first in the local queue: it is its turn."""
        if self.line:
            self.line[0].put(None)


def _warn(grant: Grant) -> None:
    grant.semaphore.session.env.log(
        logging.WARNING,
        "rate limit %s: slot %d ended in etcd too early (%s); for one period there may be more "
        "permits than the limit",
        grant.semaphore.name,
        grant.slot,
        grant.lost_reason,
    )


def _give_back_in_time(permits: PermitPool) -> Procedure[None]:
    """Give back what is due, until nothing is left. Several of these may run concurrently."""
    session = permits.semaphore.session
    env = session.env
    try:
        while permits.used and not session.closed:
            if permits.spared:
                yield from _give_back_spared(permits.spared.popleft())
                continue
            now = env.now()
            due, count, block = permits.used[0]
            if block.due > due:  # another permit was handed out since
                heapq.heapreplace(permits.used, (block.due, count, block))
                continue
            if now < due:
                if permits.releasers > 1:
                    return
                if permits.open is not None:
                    due = min(due, permits.open.listen(now))
                yield from perform(Wait(permits.wakeup, due))
                continue
            heapq.heappop(permits.used)
            permits.semaphore.stats.forfeited += block.left
            if permits.used and permits.used[0][0] <= now and permits.releasers < MAX_RELEASERS:
                permits.add_releaser()
            grant = block.grant
            if grant.state != "held":
                continue
            grant.on_lost = None
            released = yield from release(grant)
            if released is not ReleaseResult.RELEASED and grant.lost_reason:
                env.log(
                    logging.INFO, "rate limit %s: %s", permits.semaphore.name, grant.lost_reason
                )
    finally:
        permits.releasers -= 1


def _give_back_spared(block: Block) -> Procedure[None]:
    """Give back the slots of a block that are wholly unused."""
    grant = block.grant
    count, block.left = divmod(block.left, block.size)
    if grant.state != "held" or not count:
        return
    if count == len(grant.slots):
        block.hush()
        grant.on_lost = None
        yield from release(grant)
    else:  # if that fails, they are given back with the others
        yield from release_some(grant, count)


def pool_of(semaphore: SemaphoreState) -> PermitPool:
    """The permits of a rate limit, created on first use."""
    if not isinstance(semaphore.permits, PermitPool):
        semaphore.permits = PermitPool(semaphore)
    return semaphore.permits
