"""What this client holds of one semaphore.

A grant is held, releasing, released or lost; lost is final and told once.
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
from etcdsem.core.transactions import Mine
from etcdsem.model import duration_text, warning_ahead

if TYPE_CHECKING:
    from etcdsem.core.semaphore import SemaphoreState

WATCH_HELD_AFTER = 0.3
"""Seconds for which a slot must be held before its key is watched for eviction. Shorter ones
would cost a watch each, and are over before anybody could evict them."""

GrantState: TypeAlias = Literal["held", "releasing", "released", "lost"]


class Grant:
    """A slot that was granted to this client, or several with one lease.

    Those with one lease come and go together: if one of them is taken, all are lost.
    """

    __slots__ = (
        "acquired_wall",
        "counted",
        "lease",
        "letter",
        "limit",
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
        letter: bool,
        more: tuple[int, ...] = (),
    ) -> None:
        self.semaphore = semaphore
        self.lease = lease
        self.who = who
        self.slot = slot
        self.slots = (slot, *more)
        self.token = token
        self.letter = letter
        self.limit = (semaphore.limit.number or 0) if semaphore.limit else 0
        self.since = semaphore.session.env.now()
        self.acquired_wall = semaphore.session.env.wall()
        self.state: GrantState = "held"
        self.lost_reason = ""
        self.counted = False  # the program has got it, so what becomes of it is counted
        self.overbooked = False  # lost, and the program has not let go of it
        self.on_lost: Callable[[Grant], None] | None = None
        self.watch: Watch | None = None
        self.warn_at = math.inf  # when its end by max_hold is near
        self.spent = False  # a start of a rate limit, handed out: not to be given back yet
        lease.on_lost = self.lost
        semaphore.grants.add(self)

    @property
    def mine(self) -> Mine:
        """What a transaction needs to give it back."""
        return Mine(self.slot, self.token, self.who, self.letter, self.slots[1:])

    def valid(self, now: float) -> bool:
        """Is it held, and its lease not past its deadline?"""
        return self.state == "held" and self.lease.valid(now)

    def count(self, waited: float) -> None:
        """The program gets it, after `waited` seconds."""
        self.counted = True
        stats = self.semaphore.stats
        stats.granted(waited)
        if self.state == "lost":  # on the way
            stats.losses += 1
            stats.held.observe(self.semaphore.session.env.now() - self.since)

    def bind(self, max_hold: float) -> None:
        """Hold it no longer than that, counted from the grant."""
        self.lease.bind(self.since, max_hold)
        self.warn_at = self.lease.bound - warning_ahead(max_hold)
        if max_hold <= 2 * TICK:
            self.semaphore.session.wake_heartbeat()

    def warn(self, now: float) -> None:
        """Its end by max_hold is near."""
        self.warn_at = math.inf
        self.semaphore.session.env.log(
            logging.WARNING,
            "semaphore %s: the lease of slot %d (fencing token %d) has been held for %s, and ends "
            "in %s: its max_hold is %s",
            self.semaphore.name,
            self.slot,
            self.token,
            duration_text(round(now - self.since, 1)),
            duration_text(round(max(0.0, self.lease.bound - now), 1)),
            duration_text(self.lease.max_hold),
        )

    def watch_keys(self) -> None:
        """From now on its eviction is noticed at once."""
        semaphore = self.semaphore
        listener = CallbackListener(self._judge, gap=semaphore.grants.verify)
        watches = [
            semaphore.session.env.watch(listener, semaphore.keys.slot(slot), start=self.token + 1)
            for slot in self.slots
        ]
        self.watch = watches[0] if len(watches) == 1 else WatchGroup(watches)

    def _judge(self, events: Sequence[Event]) -> None:
        for event in events:
            if event.kv.mod_revision > self.token:
                self.taken("deleted" if event.kind == "delete" else "overwritten")

    # -- its end

    def lost(self, reason: str) -> None:
        """The lease is over before it was released."""
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
        """Its key in etcd was seen deleted or overwritten."""
        if self.state == "held":
            reason = f"its key in etcd was {how} (evicted by hand, or closed)"
            self.semaphore.session.leases.lose(self.lease, reason)

    def count_lost(self, reason: str) -> None:
        """From now on it is lost, and has always been told so."""
        self.state = "lost"
        self.lost_reason = reason
        self.semaphore.session.losses += 1
        self.semaphore.stats.losses += self.counted

    def release_begins(self) -> None:
        """From now on nobody may rely on it."""
        self.state = "releasing"
        self.detach()

    def given_back(self) -> None:
        """From now on it is free, or somebody else's."""
        self.state = "released"
        self.semaphore.stats.released += self.counted

    def leave(self) -> None:
        """Rely on it no more, and leave it in etcd until its TTL is over."""
        self.state = "released"
        self.detach()
        self.semaphore.session.leases.leave(self.lease)

    def let_go(self) -> None:
        """The program knows that it is lost, and acts upon it no more."""
        if self.overbooked:
            self.overbooked = False
            self.semaphore.stats.overbooked -= 1

    def detach(self) -> None:
        """Watched and listed no more."""
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
        self.by_slot: dict[int, Grant] = {}  # nobody here need try those
        self._verify_at = math.inf  # when the slots that are held are read again

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
        """It is held. First it is listed: `remove` then undoes the rest, whatever interrupts."""
        stats, weight = self._semaphore.stats, len(grant.slots)
        self._by_lease[grant.lease.id] = grant
        stats.active += 1
        stats.slots += weight
        for slot in grant.slots:
            self._semaphore.slots.taken(slot)
            self.by_slot[slot] = grant

    def remove(self, grant: Grant) -> None:
        """It is held no more."""
        stats = self._semaphore.stats
        if self._by_lease.pop(grant.lease.id, None) is None:
            return
        stats.active -= 1
        stats.slots -= len(grant.slots)
        if grant.counted:
            stats.held.observe(self._semaphore.session.env.now() - grant.since)
        for slot in grant.slots:
            if self.by_slot.get(slot) is grant:  # else it was taken by hand, and granted again
                del self.by_slot[slot]

    # -- chores of the heartbeat

    def tidy(self, now: float) -> float:
        """Warn of a max_hold that is near, and watch what has been held for long."""
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
        """Read from time to time what is held for long; gives the next time."""
        if not any(grant.watch is not None for grant in self):
            self._verify_at = math.inf
        elif now >= self._verify_at:
            self.verify()
        elif self._verify_at == math.inf:
            self._verify_at = self._semaphore.session.next_reread()
        return self._verify_at

    def verify(self) -> None:
        """Read now what is held."""
        session = self._semaphore.session
        self._verify_at = session.next_reread()
        session.env.spawn(verify(self._semaphore), "verify")
