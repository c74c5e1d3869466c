"""The watches of one semaphore.

They are set up before anybody joins the queue, and stay for a while after the last local waiter has
left. Their events are hints: transactions check them, and the leader rereads from time to time what
they may have missed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from etcdsem.core.commands import Event, Failure, KeyValue, Mailbox, Watch
from etcdsem.core.keys import Queued, addressee, read_limit, write_message
from etcdsem.core.listeners import CallbackListener
from etcdsem.core.waiters import AccessLost, GrantMessage

if TYPE_CHECKING:
    from etcdsem.core.semaphore import SemaphoreState

WATCH_AFTER_LAST_WAITER = 30.0
"""Seconds for which a semaphore's watches outlive its last local waiter."""


class WatchesReady(NamedTuple):
    """The watches are up, or `error` says why they cannot be."""

    error: Failure | None


class Watches:
    """The watches on grant messages, freed slots, and the limit."""

    def __init__(self, semaphore: SemaphoreState) -> None:
        self._semaphore = semaphore
        self._watches: list[Watch] = []
        self._pending = 0  # watches not yet created
        self._expecting: list[Mailbox] = []
        self._blocker: tuple[Queued, Watch] | None = None  # see watch_blocker()
        self._blocker_at = 0  # the revision at which the blocker was seen
        self._pause: Watch | None = None  # on the key of a timed pause

    @property
    def ready(self) -> bool:
        """Are all watches up?"""
        return bool(self._watches) and self._pending == 0

    def expect(self, box: Mailbox) -> None:
        """Set the watches up if necessary; `box` gets a `WatchesReady` when they are up."""
        self._expecting.append(box)
        if self._watches:
            return
        keys, env = self._semaphore.keys, self._semaphore.session.env
        self._pending = 3

        def listener(events: Callable[[Sequence[Event]], None]) -> CallbackListener:
            return CallbackListener(
                events, created=self._created, gap=self._gap, refused=self._refused
            )

        self._watches = [
            env.watch(listener(self._messages), keys.my_grants, keys.my_grants_end, only="put"),
            env.watch(listener(self._freed), keys.leases, keys.leases_end, only="delete"),
            env.watch(listener(self._limits), keys.max_leases),
        ]

    def drop(self) -> None:
        """Cancel all watches."""
        watches, self._watches = self._watches, []
        self._pending = 0
        if self._blocker is not None:
            watches.append(self._blocker[1])
            self._blocker = None
        self.forget_pause()
        for watch in watches:
            watch.cancel()

    def watch_blocker(self, head: Queued | None, at: int) -> None:
        """Watch the first waiter's key because at revision `at` there was room, but not enough for
        it. If it leaves, the waiters behind it may have room, but no slot is freed then. None:
        nobody is blocking.
        """
        if at < self._blocker_at:
            return
        self._blocker_at = at
        if self._blocker is not None:
            if head is not None and self._blocker[0].created == head.created:
                return
            self._blocker[1].cancel()
            self._blocker = None
        semaphore = self._semaphore
        if head is not None and semaphore.waiters:
            key = semaphore.keys.waiter(head.who)
            listener = CallbackListener(self._freed, gap=self._gap)
            watch = semaphore.session.env.watch(listener, key, start=at + 1, only="delete")
            self._blocker = head, watch

    def follow_pause(self, at: int) -> None:
        """Watch the key of the timed pause that is in force, which was there at revision `at`: when
        it is deleted, the pause is over.
        """
        semaphore = self._semaphore
        if self._pause is None and semaphore.waiters:
            listener = CallbackListener(self._freed, gap=self._gap)
            env, key, since = semaphore.session.env, semaphore.keys.paused, at + 1
            self._pause = env.watch(listener, key, start=since, only="delete")

    def forget_pause(self) -> None:
        """There is no timed pause any more."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None

    def deliver(self, kv: KeyValue) -> None:
        """Pass a grant message to its waiter, which decides whether it is outdated."""
        waiters = self._semaphore.waiters
        waiter = waiters.get(kv.lease) or waiters.get(addressee(self._semaphore.keys, kv.key))
        if waiter is not None:
            waiter.box.put(GrantMessage(kv))

    def handed_over(self, waiter: Queued, slots: Sequence[int], revision: int) -> None:
        """Tell a waiter of this client that it was granted slots, if it is one: this client has
        granted them itself, at that revision. The event of its grant message comes later, and is
        ignored.
        """
        if self._semaphore.waiters.get(waiter.lease) is not None:
            key = self._semaphore.keys.message(waiter.who)
            self.deliver(KeyValue(key, write_message(slots, ()), revision, revision, waiter.lease))

    def tidy(self, now: float) -> float:
        """Drop the watches if they are no longer needed. Returns when that will be due."""
        waiters = self._semaphore.waiters
        if not self._watches or waiters or self._expecting:
            return math.inf
        if now >= waiters.quiet_since + WATCH_AFTER_LAST_WAITER:
            self.drop()
            return math.inf
        return waiters.quiet_since + WATCH_AFTER_LAST_WAITER

    # -- what they say

    def _created(self) -> None:
        self._pending -= 1
        if self._pending == 0:
            self._tell_ready(None)

    def _refused(self, error: Failure) -> None:
        self.drop()
        self._tell_ready(error)
        self._semaphore.waiters.tell(AccessLost(error))

    def _tell_ready(self, error: Failure | None) -> None:
        self._semaphore.waiters.mark_quiet()  # whoever expects them is not queued yet
        self._semaphore.session.wake_heartbeat()
        expecting, self._expecting = self._expecting, []
        for box in expecting:
            box.put(WatchesReady(error))

    def _gap(self) -> None:
        self._semaphore.waiters.wake_leader(reread=True)

    def _messages(self, events: Sequence[Event]) -> None:
        for event in events:
            if event.kind == "put":
                self.deliver(event.kv)

    def _freed(self, events: Sequence[Event]) -> None:
        self._semaphore.waiters.wake_leader(reread=False)

    def _limits(self, events: Sequence[Event]) -> None:
        semaphore, kv = self._semaphore, events[-1].kv
        if events[-1].kind == "put":
            semaphore.learn(read_limit(kv), kv.mod_revision)
        elif semaphore.limit is None or kv.mod_revision >= semaphore.limit.revision:
            semaphore.closed(kv.mod_revision)  # else outdated: it was registered again
