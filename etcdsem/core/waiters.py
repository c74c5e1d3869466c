"""The waiters of this client in one semaphore's queue, and which of them reconciles.

The first one is the leader. It alone reconciles and rereads for all of them, on its own schedule.
When it leaves, the next one takes over.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from etcdsem.core.commands import Event, Failure, KeyValue, Mailbox, Watch
from etcdsem.core.keys import ORDINARY, Demand
from etcdsem.core.leases import TtlLease
from etcdsem.core.transactions import Look

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from etcdsem.core.semaphore import SemaphoreState

WATCH_WAITER_AFTER = 3.0
"""Seconds for which a waiter must have waited before its key is watched."""

# ---------------------------------------------------------------- notes to waiters


class GrantMessage(NamedTuple):
    """A slot was granted, or the waiter was evicted from the queue."""

    kv: KeyValue


class ReconcileNote(NamedTuple):
    """For the leader: a slot was freed, or the limit has changed."""

    reread: bool
    """True if events may have been missed, so everything must be reread."""


class TooHeavy(NamedTuple):
    """The limit is lower than the waiter's weight."""


class Closed(NamedTuple):
    """The semaphore was closed at a revision; this concerns waiters that had joined before it."""

    revision: int


class AccessLost(NamedTuple):
    """etcd refuses the access that waiting needs."""

    error: Failure


class PlaceLost(NamedTuple):
    """The place in the queue is lost."""

    reason: str


# ---------------------------------------------------------------- waiters


class LocalWaiter:
    """One waiter. Its place in the queue is known once JOIN was answered."""

    __slots__ = ("box", "created", "demand", "lease", "since", "watch", "who")

    def __init__(
        self, lease: TtlLease, who: bytes, box: Mailbox, since: float, demand: Demand = ORDINARY
    ) -> None:
        self.demand = demand
        self.lease = lease
        self.since = since
        self.who = who
        self.box = box
        self.created = 0  # the waiter key's create revision
        self.watch: Watch | None = None

    def joined(self, created: int) -> None:
        """Record that it has been in the queue since that revision."""
        self.created = created

    def lost(self, reason: str) -> None:
        """Its lease has ended, and its place in the queue is lost with it."""
        self.box.put(PlaceLost(reason))


Reconciling: TypeAlias = Literal["idle", "due", "running", "again"]
"""Whether this client must reconcile the semaphore. `again`: a waiter is reconciling now, and it
will be due once more after that."""

_DUE: dict[Reconciling, Reconciling] = {
    "idle": "due",
    "due": "due",
    "running": "again",
    "again": "again",
}
_NOT_DUE: dict[Reconciling, Reconciling] = {
    "idle": "idle",
    "due": "idle",
    "running": "running",
    "again": "running",
}
_ENDED: dict[Reconciling, Reconciling] = {
    "idle": "idle",
    "due": "due",
    "running": "idle",
    "again": "due",
}


class Waiters:
    """The local waiters, in order of arrival."""

    def __init__(self, semaphore: SemaphoreState) -> None:
        self._semaphore = semaphore
        self._by_lease: dict[int, LocalWaiter] = {}
        self.quiet_since = -math.inf  # when the last one left
        self.clients = 0  # how many clients were waiting at this client's last look
        self._reconciling: Reconciling = "idle"
        self.reconcile_at = math.inf  # when a slot becomes free without an event in etcd

    def __iter__(self) -> Iterator[LocalWaiter]:
        return iter(list(self._by_lease.values()))

    def __len__(self) -> int:
        return len(self._by_lease)

    def __contains__(self, waiter: LocalWaiter) -> bool:
        return waiter.lease.id in self._by_lease

    def get(self, lease_id: int) -> LocalWaiter | None:
        """The waiter with this lease."""
        return self._by_lease.get(lease_id)

    @property
    def backfilling(self) -> bool:
        """Is one of them eager? Then the whole queue must be searched for waiters to backfill."""
        return any(waiter.demand.backfill for waiter in self._by_lease.values())

    def enter(self, waiter: LocalWaiter) -> None:
        """Add a waiter that is about to join the queue."""
        self._by_lease[waiter.lease.id] = waiter

    def exit(self, waiter: LocalWaiter) -> None:
        """Remove a waiter that has left the queue, granted or not. Another may become leader."""
        first = self.leads(waiter)
        if self._by_lease.pop(waiter.lease.id, None) is None:
            return
        if waiter.watch is not None:
            waiter.watch.cancel()
            waiter.watch = None
        if not self._by_lease:
            self.mark_quiet()
            self._reconciling = _NOT_DUE[self._reconciling]
        elif first:
            self.wake_leader(reread=False, due=self.reconcile_due)

    def mark_quiet(self) -> None:
        """Record that nobody waits from now on."""
        self.quiet_since = self._semaphore.session.env.now()

    def misses(self, seen: Look) -> bool:
        """Was one of them in the queue before this look, and is no longer? Then it was granted a
        slot, or its key was deleted.
        """
        queue = {queued.who for queued in seen.queue}
        return any(
            0 < waiter.created <= seen.revision and waiter.who not in queue
            for waiter in self._by_lease.values()
        )

    def tell(self, note: TooHeavy | Closed | AccessLost | PlaceLost) -> None:
        """Put a note into every waiter's mailbox."""
        for waiter in self._by_lease.values():
            waiter.box.put(note)

    # -- reconciling

    def leads(self, waiter: LocalWaiter) -> bool:
        """Is this the one that reconciles for all waiters of this client?"""
        return next(iter(self._by_lease.values()), None) is waiter

    def wake_leader(self, *, reread: bool, due: bool = True) -> None:
        """Wake the leader because something may have to be reconciled."""
        leader = next(iter(self._by_lease.values()), None)
        if leader is not None:
            if due:
                self.request_reconcile()
            leader.box.put(ReconcileNote(reread))

    @property
    def reconcile_due(self) -> bool:
        """Is it due, and not yet begun by any waiter of this client?"""
        return self._reconciling in ("due", "again")

    @property
    def reconciling(self) -> bool:
        """Is a waiter of this client reconciling now?"""
        return self._reconciling in ("running", "again")

    def request_reconcile(self) -> None:
        """Mark it as due (once more)."""
        self._reconciling = _DUE[self._reconciling]

    def reconcile_in(self, seconds: float) -> None:
        """Have the leader reconcile after some seconds (inf: not), whatever happens in etcd."""
        self.reconcile_at = self._semaphore.session.env.now() + seconds

    def begin_reconcile(self) -> None:
        """Mark it as running."""
        self._reconciling = "running"

    def end_reconcile(self) -> None:
        """Mark it as ended, successfully or not."""
        self._reconciling = _ENDED[self._reconciling]
        if self.reconcile_due:
            self.wake_leader(reread=False)

    def saw_clients(self, clients: int) -> None:
        """Record how many clients wait."""
        self.clients = clients

    # -- chores of the heartbeat

    def tidy(self, now: float) -> float:
        """Watch the keys of long waiters. Returns the time of the next chore."""
        due = math.inf
        for waiter in self:
            if waiter.watch is None and waiter.created:
                if now >= waiter.since + WATCH_WAITER_AFTER:
                    waiter.watch = self._watch(waiter)
                else:
                    due = min(due, waiter.since + WATCH_WAITER_AFTER)
        return due

    def _watch(self, waiter: LocalWaiter) -> Watch:
        semaphore = self._semaphore
        return semaphore.session.env.watch(
            _WaiterListener(self, waiter),
            semaphore.keys.waiter(waiter.who),
            start=waiter.created + 1,
            only="delete",
        )


class _WaiterListener:
    """Listens for the deletion of a waiter's key. Kept small, since there may be thousands.

    The key is deleted when a slot is granted, too; the grant message then has the same revision,
    and may arrive on another watch. So the deletion is a reason to reread, not a verdict.
    """

    __slots__ = ("_waiter", "_waiters")

    def __init__(self, waiters: Waiters, waiter: LocalWaiter) -> None:
        self._waiters = waiters
        self._waiter = waiter

    def created(self, revision: int) -> None:
        pass

    def events(self, events: Sequence[Event]) -> None:
        if self._waiter in self._waiters:
            self._waiters.wake_leader(reread=True, due=False)

    def gap(self, reason: str) -> None:
        self._waiters.wake_leader(reread=True)

    def refused(self, error: Failure) -> None:
        pass
