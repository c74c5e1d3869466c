"""The state of one semaphore as seen by one client.

Nothing here suspends or talks to etcd. Procedures and watches change this state step by step while
they hold the client's lock.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from etcdsem.core.commands import Event
from etcdsem.core.grants import Grant, Grants
from etcdsem.core.keys import Keys, Limit, read_limit
from etcdsem.core.name_lease import NameLease
from etcdsem.core.queue_view import QueueView
from etcdsem.core.request import AcquireRequest
from etcdsem.core.slots import Slots
from etcdsem.core.waiters import Closed, PlaceLost, TooHeavy, Waiters
from etcdsem.core.watches import Watches

if TYPE_CHECKING:
    from etcdsem.core.session import Session


class Permits(Protocol):
    """The starts of a rate limit that this client has; see `rates`."""

    def wake_releaser(self) -> None:
        """Called when the client is being closed: nothing is given back any more."""


class KeptSlots(Protocol):
    """The slots that stay here after their release; see `linger`."""

    def keep(self, grant: Grant, request: AcquireRequest) -> bool:
        """Keep the slots of a grant that is being released; False: they must be given back."""

    def stop(self) -> None:
        """Give back everything now."""


class SemaphoreState:
    """The limit of one semaphore, and this client's knowledge, grants and waiters."""

    def __init__(self, session: Session, prefix: str, name: str) -> None:
        self.session = session
        self.prefix = prefix
        self.keys = Keys(prefix, name, session.client)
        self.stats = session.stats.of((prefix, name))
        self.limit: Limit | None = None
        self.asked_at = 0.0  # when this state was last requested; the caller may be about to use it
        self.queue = QueueView()
        self.grants = Grants(self)
        self.slots = Slots(self)
        self.waiters = Waiters(self)
        self.watches = Watches(self)
        self.permits: Permits | None = None  # rate limits only: the starts that are in use here
        self.lingering: KeptSlots | None = None  # only if a caller uses `linger`
        self.name_lease: NameLease | None = None  # with which the name expires, if it does

    @property
    def name(self) -> str:
        """The semaphore's name."""
        return self.keys.name

    def asked(self) -> None:
        """Record that a caller is about to use this semaphore."""
        self.asked_at = self.session.env.now()

    def learn(self, limit: Limit | None, at: int) -> None:
        """Record the limit as read at revision `at`; outdated news is ignored."""
        if limit is None:
            if self.limit is None or self.limit.revision <= at:
                self.limit = self.stats.max_leases = None
            return
        if self.limit is not None and limit.revision <= self.limit.revision:
            return
        if limit.number is None:
            self.session.env.log(
                logging.ERROR,
                "semaphore %s: its limit in etcd reads %r, which is not a number from 0 to "
                "99999; no lease will be granted until it is fixed, e.g. with: etcdctl put %s 5",
                self.name,
                limit.text,
                self.keys.max_leases.decode(),
            )
        if limit.after_pause:
            self.watches.follow_pause(at)
        else:
            self.watches.forget_pause()
        raised = self.limit is not None and limit.room > self.limit.room
        self.limit = limit
        if limit.lease != (self.name_lease.id if self.name_lease is not None else 0):
            self.expires_with(NameLease(self, limit.lease) if limit.lease else None)
        self.stats.max_leases, self.stats.paused = limit.number, limit.paused
        if limit.number is not None:
            self.stats.rate = limit.rate
        if raised:
            self.waiters.wake_leader(reread=False)
        for waiter in self.waiters:
            if waiter.demand.weight > limit.room > 0:
                waiter.box.put(TooHeavy())

    def expires_with(self, lease: NameLease | None) -> None:
        """Record the lease with which the name expires. It is remembered when the name is gone."""
        if self.name_lease is not None:
            self.session.names.remove(self.name_lease)
        self.name_lease = lease
        if lease is not None:
            self.session.names.add(lease)

    def learn_from(self, events: Sequence[Event]) -> None:
        """Record what a watch on the limit says."""
        kv = events[-1].kv
        self.learn(read_limit(kv) if events[-1].kind == "put" else None, kv.mod_revision)

    def closed(self, revision: int) -> None:
        """Record that the semaphore was gone at this revision, and notify all waiters."""
        self.learn(None, revision)
        self.waiters.tell(Closed(revision))

    def client_closed(self) -> None:
        """The client is being closed: notify everybody that waits for something."""
        for waiting in self.waiters:
            waiting.box.put(PlaceLost("its client was closed"))
        self.watches.drop()
        if self.permits is not None:
            self.permits.wake_releaser()
        if self.lingering is not None:
            self.lingering.stop()

    # -- chores of the heartbeat

    def tidy(self, now: float) -> float:
        """Watch what has been held or waited for long, and drop unneeded watches. Returns the time
        of the next chore.
        """
        due = min(self.grants.tidy(now), self.waiters.tidy(now), self.grants.verify_in_time(now))
        return min(due, self.watches.tidy(now))

    def idle(self, now: float, after: float) -> bool:
        """Has it been unused for `after` seconds, with no holder or waiter in this client?"""
        stats = self.stats
        busy = self.grants or self.waiters or stats.pending or stats.overbooked
        return not busy and now > self.asked_at + after
