"""What is counted while a client works: plain numbers, added up where the events happen.

1. They are written under the client's lock, like all state of the core; each costs an addition.
2. They are read without it, from any thread: each number is right by itself, but two may be one
   step apart.
3. No number ever decreases except those of the current state (active, slots, pending, overbooked).
4. A lease is counted from the moment at which the program gets it. A slot that was held only on the
   way (by a caller that acquires several semaphores) does not count as granted.
5. A rate limit counts starts: each one that a program gets, and how long it waited for it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from etcdsem.model import Rate

WAIT_BUCKETS = (0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0)
"""Upper bounds in seconds, from an uncontended grant (a millisecond) to half a working day."""

REQUEST_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 4.0)
"""The same for one transaction: from a local etcd to the timeout of a request."""

OTHERS = ("", "(others)")
"""Collects the counts of semaphores that are no longer listed; no semaphore has that name."""

OTHER_RATES = ("", "(other rates)")
"""The same for rate limits."""

Key = tuple[str, str]
"""A semaphore: prefix and name."""


class Buckets:
    """How many observations fall below each bound, and the sum of all."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)  # the last one: above all bounds
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one observation."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def add(self, other: Buckets) -> None:
        """Add all observations of another histogram with the same bounds."""
        for place, number in enumerate(list(other.counts)):
            self.counts[place] += number
        self.total += other.total


class SemaphoreStats:
    """One semaphore, or one rate limit, as used by one client."""

    __slots__ = (
        "acquired",
        "active",
        "average_wait",
        "carried",
        "forfeited",
        "held",
        "losses",
        "max_leases",
        "overbooked",
        "paused",
        "pending",
        "rate",
        "refused",
        "released",
        "slots",
        "timeouts",
        "waited",
    )

    def __init__(self) -> None:
        self.max_leases: int | None = None  # as known here; None: unknown, or not a number
        self.carried: int | None = None  # the limit that the program itself carries
        self.paused = False  # as known here
        self.rate: Rate | None = None  # rate limits only: as last known
        self.active = 0  # leases held by this client; for a rate limit, blocks of starts
        self.slots = 0  # of those leases
        self.pending = 0  # calls of acquire in progress
        self.overbooked = 0  # leases that were lost, and that the program has not let go of
        self.acquired = 0  # leases; for a rate limit, starts
        self.released = 0  # by the program, in time
        self.timeouts = 0  # acquire gave up: full
        self.refused = 0  # acquire raised QueueFull
        self.losses = 0
        self.forfeited = 0  # starts of blocks that were not used in time
        self.average_wait = 0.0  # moving average over grants; as in Dask: (average + wait) / 2
        self.waited = Buckets(WAIT_BUCKETS)
        self.held = Buckets(WAIT_BUCKETS)

    def granted(self, wait: float) -> None:
        """Count a grant, after `wait` seconds."""
        self.acquired += 1
        self.average_wait = (self.average_wait + wait) / 2
        self.waited.observe(wait)

    def add(self, other: SemaphoreStats) -> None:
        """Add what another client counted."""
        self.add_past(other)
        self.active += other.active
        self.slots += other.slots
        self.pending += other.pending
        self.overbooked += other.overbooked
        if other.max_leases is not None:
            self.max_leases, self.paused = other.max_leases, other.paused
        if other.carried is not None:
            self.carried = other.carried

    def add_past(self, other: SemaphoreStats) -> None:
        """The same without the numbers of the current state, for a client that is closed."""
        seen = self.acquired + other.acquired
        if seen:
            weighted = self.average_wait * self.acquired + other.average_wait * other.acquired
            self.average_wait = weighted / seen
        self.acquired += other.acquired
        self.released += other.released
        self.timeouts += other.timeouts
        self.refused += other.refused
        self.losses += other.losses
        self.forfeited += other.forfeited
        self.rate = other.rate or self.rate
        self.waited.add(other.waited)
        self.held.add(other.held)


class ClientStats:
    """Everything that one client counts."""

    def __init__(self) -> None:
        self.semaphores: dict[Key, SemaphoreStats] = {}
        self.requests = {"done": 0, "not applied": 0, "unknown": 0, "refused": 0}
        """Transactions by outcome. For "unknown" ones it is not known whether etcd applied them;
        each was settled by revoking its lease."""
        self.latency = Buckets(REQUEST_BUCKETS)  # of those that were done
        self.renewals_late = 0  # how often a late renewal caused a switch to another connection

    def of(self, key: Key) -> SemaphoreStats:
        """The stats of a semaphore."""
        stats = self.semaphores.get(key)
        return stats if stats is not None else self.semaphores.setdefault(key, SemaphoreStats())

    def forget(self, key: Key) -> None:
        """Stop listing an unused semaphore; its counts are added to the others'."""
        stats = self.semaphores.pop(key, None)
        if stats is not None:
            self.of(_others(stats)).add_past(stats)

    def add(self, other: ClientStats, *, past: bool, most: int) -> None:
        """Add what another client counted, and list at most `most` semaphores."""
        for key, stats in list(other.semaphores.items()):
            listed = key in self.semaphores or len(self.semaphores) < most
            mine = self.of(key if listed else _others(stats))
            if past or not listed:
                mine.add_past(stats)
            else:
                mine.add(stats)
        for outcome, number in list(other.requests.items()):
            self.requests[outcome] += number
        self.latency.add(other.latency)
        self.renewals_late += other.renewals_late


def _others(stats: SemaphoreStats) -> Key:
    return OTHERS if stats.rate is None else OTHER_RATES
