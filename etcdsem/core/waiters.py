"""The waiters of this client in one semaphore's queue, and which of them reconciles.

The first one is the leader. It alone reconciles and reads again, for all of them, in its own time.
When it leaves, the next one takes over.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from etcdsem.core.commands import Event, Failure, KeyValue, Mailbox, Watch
from etcdsem.core.keys import ORDINARY, Wants
from etcdsem.core.leases import TtlLease
from etcdsem.core.transactions import Look

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from etcdsem.core.semaphore import SemaphoreState

WATCH_WAITER_AFTER = 3.0
"""Seconds that a waiter must have waited before its key is watched."""

# ---------------------------------------------------------------- notes to waiters


class GrantMessage(NamedTuple):
    """A slot was granted; or the waiter was evicted from the queue."""

    kv: KeyValue


class ReconcileNote(NamedTuple):
    """To the leader: a slot was freed, or the limit has changed."""

    reread: bool
    """True: events may have been missed, so read everything again."""


class TooHeavy(NamedTuple):
    """The limit is lower than what is waited for."""


class Closed(NamedTuple):
    """The semaphore was closed at a revision; this concerns those who had joined before it."""

    revision: int


class AccessLost(NamedTuple):
    """etcd refuses our user what waiting needs."""

    error: Failure


class PlaceLost(NamedTuple):
    """The place in the queue is lost."""

    reason: str


# ---------------------------------------------------------------- waiters


class LocalWaiter:
    """One waiter. Its place in the queue is known once JOIN was answered."""

    __slots__ = ("box", "created", "lease", "since", "wants", "watch", "who")

    def __init__(
        self, lease: TtlLease, who: bytes, box: Mailbox, since: float, wants: Wants = ORDINARY
    ) -> None:
        self.wants = wants
        self.lease = lease
        self.since = since
        self.who = who
        self.box = box
        self.created = 0  # the waiter key's create revision
        self.watch: Watch | None = None

    def joined(self, created: int) -> None:
        """It is in the queue since that revision."""
        self.created = created

    def lost(self, reason: str) -> None:
        """Its lease is over, and the place in the queue with it."""
        self.box.put(PlaceLost(reason))


Reconciling: TypeAlias = Literal["idle", "due", "running", "again"]
"""Is the semaphore to be reconciled for this client? `again`: a waiter is at it, and it will be due
once more after that."""

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
    """The local waiters, in the order in which they came."""

    def __init__(self, semaphore: SemaphoreState) -> None:
        self._semaphore = semaphore
        self._by_lease: dict[int, LocalWaiter] = {}
        self.quiet_since = -math.inf  # when the last one left
        self.clients = 0  # how many clients waited when this one looked last
        self._reconciling: Reconciling = "idle"

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
        """Is one of them eager? The whole queue must be searched for those who pass others."""
        return any(waiter.wants.eager for waiter in self._by_lease.values())

    def enter(self, waiter: LocalWaiter) -> None:
        """It is about to join the queue."""
        self._by_lease[waiter.lease.id] = waiter

    def exit(self, waiter: LocalWaiter) -> None:
        """It has left the queue, granted or not; another may be the leader now."""
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
        """Nobody waits from now on."""
        self.quiet_since = self._semaphore.session.env.now()

    def misses(self, seen: Look) -> bool:
        """Was one of them in the queue before this look, and is not any more? Then it was granted
        a slot, or somebody has deleted its key.
        """
        queue = {queued.who for queued in seen.queue}
        return any(
            0 < waiter.created <= seen.revision and waiter.who not in queue
            for waiter in self._by_lease.values()
        )

    def tell(self, note: TooHeavy | Closed | AccessLost | PlaceLost) -> None:
        """Put a note into every mailbox."""
        for waiter in self._by_lease.values():
            waiter.box.put(note)

    # -- reconciling

    def leads(self, waiter: LocalWaiter) -> bool:
        """Does this one reconcile for all waiters of this client?"""
        return next(iter(self._by_lease.values()), None) is waiter

    def wake_leader(self, *, reread: bool, due: bool = True) -> None:
        """Something may have to be reconciled."""
        leader = next(iter(self._by_lease.values()), None)
        if leader is not None:
            if due:
                self.request_reconcile()
            leader.box.put(ReconcileNote(reread))

    @property
    def reconcile_due(self) -> bool:
        """Has nobody of this client begun it yet?"""
        return self._reconciling in ("due", "again")

    @property
    def reconciling(self) -> bool:
        """Is one of them at it?"""
        return self._reconciling in ("running", "again")

    def request_reconcile(self) -> None:
        """It is due (once more)."""
        self._reconciling = _DUE[self._reconciling]

    def begin_reconcile(self) -> None:
        """One of them does it now."""
        self._reconciling = "running"

    def end_reconcile(self) -> None:
        """It has ended, however."""
        self._reconciling = _ENDED[self._reconciling]
        if self.reconcile_due:
            self.wake_leader(reread=False)

    def saw_clients(self, clients: int) -> None:
        """So many clients wait."""
        self.clients = clients

    # -- chores of the heartbeat

    def tidy(self, now: float) -> float:
        """Watch the keys of those who have waited for long; gives the time of the next chore."""
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
    """Listens for the end of a waiter's key; small, since there may be thousands.

    The key is deleted when a slot is granted, too; the message then has the same revision, and may
    arrive on another watch. So this is a reason to look, not a verdict.
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
