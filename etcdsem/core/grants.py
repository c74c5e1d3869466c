"""The grants of one semaphore that this client holds.

A grant is held, releasing, released or lost. Lost is final and reported once.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

from etcdsem.core.commands import Event, Watch
from etcdsem.core.leases import TICK, TtlLease
from etcdsem.core.listeners import CallbackListener, WatchGroup
from etcdsem.core.slot_audit import verify
from etcdsem.core.transactions import HeldSlots
from etcdsem.model import duration_text
from etcdsem.validation import MAX_WEIGHT, warning_ahead

if TYPE_CHECKING:
    from etcdsem.core.request import AcquireRequest
    from etcdsem.core.semaphore import SemaphoreState

WATCH_HELD_AFTER = 0.3
"""Seconds for which a slot must be held before its key is watched for eviction. A watch for each
shorter hold would be costly, and it would be over before anybody could evict it."""

GrantState: TypeAlias = Literal["held", "releasing", "released", "lost"]


class Grant:
    """A slot that was granted to this client, or several slots with one lease.

    Slots of one lease are granted and released together; if one is taken away, all are lost.
    """

    __slots__ = (
        "acquired_wall",
        "counted",
        "granted_at",
        "has_message",
        "lease",
        "limit",
        "lingers",
        "lost_reason",
        "on_lost",
        "overbooked",
        "semaphore",
        "since",
        "slot",
        "slots",
        "spent",
        "state",
        "token",
        "warn_at",
        "watch",
        "who",
    )

    def __init__(
        self,
        semaphore: SemaphoreState,
        lease: TtlLease,
        who: bytes,
        slot: int,
        token: int,
        *,
        has_message: bool,
        more: tuple[int, ...] = (),
    ) -> None:
        self.semaphore = semaphore
        self.lease = lease
        self.who = who
        self.slot = slot
        self.slots = (slot, *more)
        self.token = token
        self.has_message = has_message
        self.limit = (semaphore.limit.number or 0) if semaphore.limit else 0
        self.since = self.granted_at = semaphore.session.env.now()
        self.acquired_wall = semaphore.session.env.wall()
        self.state: GrantState = "held"
        self.lost_reason = ""
        self.counted = False  # delivered to the program, so its end is counted in the statistics
        self.overbooked = False  # lost, but the program has not let go of it yet
        self.on_lost: Callable[[Grant], None] | None = None
        self.watch: Watch | None = None
        self.warn_at = math.inf  # when to warn that max_hold ends soon
        self.lingers: AcquireRequest | None = None  # set if it may stay here after its release
        self.spent = False  # a rate limit's start that was handed out: must not be given back yet
        lease.on_lost = self.lost
        semaphore.grants.add(self)

    @property
    def held_slots(self) -> HeldSlots:
        """What a transaction needs to give this grant back."""
        return HeldSlots(
            self.slot,
            self.token,
            self.who,
            self.has_message,
            self.slots[1:],
            permit=self.semaphore.permits is not None,
        )

    def valid(self, now: float) -> bool:
        """Is it held, and is its lease before its deadline?"""
        return self.state == "held" and self.lease.valid(now)

    def count(self, waited: float) -> None:
        """Count it as delivered to the program, after `waited` seconds."""
        self.counted = True
        stats = self.semaphore.stats
        stats.granted(waited)
        if self.state == "lost":  # lost before it was delivered
            stats.losses += 1
            stats.held.observe(self.semaphore.session.env.now() - self.since)

    def bind(self, max_hold: float) -> None:
        """Limit the hold to `max_hold` seconds from the grant."""
        self.lease.bind(self.since, max_hold)
        self.warn_at = self.lease.bound - warning_ahead(max_hold)
        if max_hold <= 2 * TICK:
            self.semaphore.session.wake_heartbeat()

    def warn(self, now: float) -> None:
        """Log a warning that max_hold ends soon."""
        self.warn_at = math.inf
        self.semaphore.session.env.log(
            logging.WARNING,
            "semaphore %s: the lease of slot %d (fencing token %d) has been held for %s and ends "
            "in %s: its max_hold is %s",
            self.semaphore.name,
            self.slot,
            self.token,
            duration_text(round(now - self.since, 1)),
            duration_text(round(max(0.0, self.lease.bound - now), 1)),
            duration_text(self.lease.max_hold),
        )

    def watch_keys(self) -> None:
        """Watch its keys, so that an eviction is noticed at once."""
        semaphore, keys = self.semaphore, self.semaphore.keys
        watch, start = semaphore.session.env.watch, self.token + 1
        listener = CallbackListener(self._judge, gap=semaphore.grants.verify)
        if len(self.slots) > MAX_WEIGHT:  # too many for a watch each
            self.watch = watch(listener, keys.leases, keys.leases_end, start=start)
            return
        watches = [watch(listener, keys.slot(slot), start=start) for slot in self.slots]
        self.watch = watches[0] if len(watches) == 1 else WatchGroup(watches)

    def _judge(self, events: Sequence[Event]) -> None:
        mine = set(map(self.semaphore.keys.slot, self.slots))
        for event in events:
            if event.kv.mod_revision > self.token and event.kv.key in mine:
                self.taken("deleted" if event.kind == "delete" else "overwritten")

    # -- its end

    def lost(self, reason: str) -> None:
        """The lease ended before it was released."""
        if self.state != "held":
            return
        self.detach()
        self.count_lost(reason)
        self.semaphore.stats.overbooked += 1
        self.overbooked = True
        tell, self.on_lost = self.on_lost, None
        if tell is not None:
            tell(self)

    def taken(self, how: str) -> None:
        """Its key in etcd was deleted or overwritten."""
        if self.state == "held":
            reason = f"its key in etcd was {how} (evicted by hand, or closed)"
            self.semaphore.session.leases.lose(self.lease, reason)

    def count_lost(self, reason: str) -> None:
        """Mark it as lost, and count the loss."""
        self.state = "lost"
        self.lost_reason = reason
        self.semaphore.session.losses += 1
        self.semaphore.stats.losses += self.counted

    def release_begins(self) -> None:
        """Mark it as being released: nobody may rely on it any more."""
        self.state = "releasing"
        self.detach()

    def given_back(self) -> None:
        """Mark it as released."""
        self.state = "released"
        self.semaphore.stats.released += self.counted

    def keep(self, slots: tuple[int, ...]) -> None:
        """Some of its slots were given back, and these are left."""
        for slot in set(self.slots) - set(slots):
            self.semaphore.grants.unlist(self, slot)
            self.semaphore.slots.freed(slot)
        self.slots = slots

    def leave(self) -> None:
        """Stop relying on it, and leave it in etcd until its TTL expires."""
        self.state = "released"
        self.detach()
        self.semaphore.session.leases.leave(self.lease)

    def let_go(self) -> None:
        """The program has noticed the loss and no longer relies on the grant."""
        if self.overbooked:
            self.overbooked = False
            self.semaphore.stats.overbooked -= 1

    def detach(self) -> None:
        """Stop watching and listing it."""
        self.semaphore.grants.remove(self)
        self.lease.on_lost = None
        if self.watch is not None:
            self.watch.cancel()
            self.watch = None


class Grants:
    """The grants of one semaphore."""

    def __init__(self, semaphore: SemaphoreState) -> None:
        self._semaphore = semaphore
        self._by_lease: dict[int, Grant] = {}
        self.by_slot: dict[int, Grant] = {}  # slots that this client need not try
        self._verify_at = math.inf  # when the held slots are read again

    def __iter__(self) -> Iterator[Grant]:
        return iter(self._by_lease.values())

    def __len__(self) -> int:
        return len(self._by_lease)

    def __contains__(self, lease_id: int) -> bool:
        return lease_id in self._by_lease

    def get(self, lease_id: int) -> Grant | None:
        """The grant with this lease."""
        return self._by_lease.get(lease_id)

    def add(self, grant: Grant) -> None:
        """List a grant. It is listed first, so that `remove` undoes the rest on interruption."""
        stats, weight = self._semaphore.stats, len(grant.slots)
        self._by_lease[grant.lease.id] = grant
        stats.active += 1
        stats.slots += weight
        for slot in grant.slots:
            self._semaphore.slots.taken(slot)
            self.by_slot[slot] = grant

    def remove(self, grant: Grant) -> None:
        """Unlist a grant."""
        stats = self._semaphore.stats
        if self._by_lease.pop(grant.lease.id, None) is None:
            return
        stats.active -= 1
        stats.slots -= len(grant.slots)
        if grant.counted:
            stats.held.observe(self._semaphore.session.env.now() - grant.since)
        for slot in grant.slots:
            self._unlist_slot(grant, slot)

    def unlist(self, grant: Grant, slot: int) -> None:
        """Unlist one slot of a grant that keeps others."""
        if grant.lease.id in self:
            self._semaphore.stats.slots -= 1
        self._unlist_slot(grant, slot)

    def _unlist_slot(self, grant: Grant, slot: int) -> None:
        if self.by_slot.get(slot) is grant:  # else it was evicted, and granted again
            del self.by_slot[slot]

    # -- chores of the heartbeat

    def tidy(self, now: float) -> float:
        """Warn of a max_hold that ends soon, and watch what has been held for long. Returns the
        time of the next chore.
        """
        due = math.inf
        for grant in list(self):
            if grant.warn_at < math.inf:
                if now >= grant.warn_at:
                    grant.warn(now)
                else:
                    due = min(due, grant.warn_at)
            if grant.watch is None and grant.state == "held" and not grant.spent:
                if now >= grant.since + WATCH_HELD_AFTER:
                    grant.watch_keys()
                else:
                    due = min(due, grant.since + WATCH_HELD_AFTER)
        return due

    def verify_in_time(self, now: float) -> float:
        """Reread long-held slots from time to time. Returns the next time."""
        if not any(grant.watch is not None for grant in self):
            self._verify_at = math.inf
        elif now >= self._verify_at:
            self.verify()
        elif self._verify_at == math.inf:
            self._verify_at = self._semaphore.session.next_reread()
        return self._verify_at

    def verify(self) -> None:
        """Reread the held slots now."""
        session = self._semaphore.session
        self._verify_at = session.next_reread()
        session.env.spawn(verify(self._semaphore), "verify")
