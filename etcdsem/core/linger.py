"""Slots that stay with this client for a moment after their release (`linger`).

1. The next acquire of this client that asks for the same takes such a slot without asking etcd. In
   etcd the slot stays held all the time, so no limit is exceeded, whatever happens.
2. A waiter anywhere ends it: the mark `contended` and the limit are watched, and any news, or a gap
   in it, gives all kept slots back. Without this watch nothing is kept.
3. A watch may be silent because the network is. So `MAX_TENURE` after etcd granted a slot, its next
   release is a real one, and waiters are served.
4. Only a slot that was granted while nobody waited is kept: after a hand-over others may wait.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from etcdsem.core.commands import Event, Failure, Procedure, Wait, perform
from etcdsem.core.grants import Grant
from etcdsem.core.listeners import CallbackListener, WatchGroup
from etcdsem.core.release import release
from etcdsem.core.request import AcquireRequest
from etcdsem.core.semaphore import SemaphoreState

MAX_TENURE = 1.0
"""Seconds from etcd's grant after which a slot is really given back."""

IDLE_TIME = 5.0
"""Seconds after the last use for which the watches stay open."""


class _Kept(NamedTuple):
    until: float
    request: AcquireRequest
    grant: Grant


class Lingering:
    """The kept slots of one semaphore, the one released last at the end."""

    def __init__(self, semaphore: SemaphoreState) -> None:
        self._semaphore = semaphore
        self._kept: list[_Kept] = []
        self._wakeup = semaphore.session.env.mailbox()
        self._watch: WatchGroup | None = None
        self._pending = 0  # watches that are not up yet
        self._running = False  # is there somebody who gives back in time?
        self._used = -math.inf
        self._wakes_at = math.inf  # when it looks again

    # -- the two ends of a cycle

    def keep(self, grant: Grant, request: AcquireRequest) -> bool:
        """Keep the slots of a grant that is being released; False: they must be given back."""
        semaphore = self._semaphore
        now = self._used = semaphore.session.env.now()
        if not self._may_keep(grant, now) or not self._listening(grant.token):
            return False
        grant.lease.bind(now, math.inf)
        slot, *more = grant.slots
        kept = Grant(
            semaphore,
            grant.lease,
            grant.who,
            slot,
            grant.token,
            has_message=False,
            more=tuple(more),
        )
        kept.granted_at = grant.granted_at
        until = now + request.linger
        self._kept.append(_Kept(until, request, kept))
        if until < self._wakes_at:
            self._wakeup.put(None)
        return True

    def _may_keep(self, grant: Grant, now: float) -> bool:
        return (
            self._fits(grant)
            and not grant.has_message
            and now < grant.granted_at + MAX_TENURE
            and not self._semaphore.session.closed
        )

    def _fits(self, grant: Grant) -> bool:
        """May it be used again, as far as this client knows: nobody waits, under the same limit?"""
        semaphore = self._semaphore
        return (
            not semaphore.queue.contended
            and not semaphore.waiters
            and semaphore.limit is not None
            and semaphore.limit.revision < grant.token
        )

    def find(self, request: AcquireRequest) -> Grant | None:
        """A kept slot that fits a request; it stays kept until `hand_out`."""
        now = self._semaphore.session.env.now()
        for kept in reversed(self._kept):
            usable = now < kept.until and kept.grant.valid(now) and self._fits(kept.grant)
            if usable and _alike(kept.request, request):
                return kept.grant
        return None

    def hand_out(self, grant: Grant) -> None:
        """A kept slot is used again."""
        self._kept = [kept for kept in self._kept if kept.grant is not grant]
        env = self._semaphore.session.env
        grant.since, grant.acquired_wall = env.now(), env.wall()

    # -- what ends it

    def _listening(self, token: int) -> bool:
        """Are the watches up? If not, set them up for the next time."""
        if self._watch is None:
            env, keys = self._semaphore.session.env, self._semaphore.keys
            self._pending = 2
            up, stop, refused = self._up, self.stop, self._refused
            queue = CallbackListener(self._queue_news, created=up, gap=stop, refused=refused)
            limit = CallbackListener(self._limit_news, created=up, gap=stop, refused=refused)
            self._watch = WatchGroup(
                [
                    env.watch(queue, keys.contended, start=token + 1, only="put"),
                    env.watch(limit, keys.max_leases, start=token + 1),
                ]
            )
            env.spawn(self.give_back_in_time(), "linger")
        return self._pending == 0 and self._running

    def _up(self) -> None:
        self._pending -= 1

    def _queue_news(self, _events: Sequence[Event]) -> None:
        self._semaphore.queue.set_contended(True)
        self.stop()

    def _limit_news(self, events: Sequence[Event]) -> None:
        self._semaphore.learn_from(events)
        self.stop()

    def _refused(self, _error: Failure) -> None:
        self._pending = 2  # it will not be up, so nothing is kept
        self.stop()

    def stop(self) -> None:
        """Give back everything now."""
        self._kept = [kept._replace(until=-math.inf) for kept in self._kept]
        self._wakeup.put(None)

    def give_back_in_time(self) -> Procedure[None]:
        """Give back what was not used again, and end the watches when they were idle for long."""
        session = self._semaphore.session
        self._running = True
        try:
            while not session.closed:
                now = session.env.now()
                over = next((kept for kept in self._kept if kept.until <= now), None)
                if over is not None:
                    self._kept.remove(over)
                    yield from release(over.grant)
                    continue
                due = min((kept.until for kept in self._kept), default=self._used + IDLE_TIME)
                if due <= now:
                    return
                self._wakes_at = due
                yield from perform(Wait(self._wakeup, due))
                self._wakes_at = -math.inf  # it is awake
        finally:
            self._running = False
            watch, self._watch = self._watch, None
            if watch is not None:
                watch.cancel()


def lingering_of(semaphore: SemaphoreState) -> Lingering:
    """The kept slots of a semaphore, created on first use."""
    if not isinstance(semaphore.lingering, Lingering):
        semaphore.lingering = Lingering(semaphore)
    return semaphore.lingering


def _alike(former: AcquireRequest, request: AcquireRequest) -> bool:
    """Would etcd's record be the same for both, and the lease alike?"""
    return _as_recorded(former) == _as_recorded(request)


def _as_recorded(request: AcquireRequest) -> AcquireRequest:
    return request._replace(on_wait=None, linger=0.0, max_waiting=None)
