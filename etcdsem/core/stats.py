"""What is counted while a client works: plain numbers, added up where the events pass.

1. Written under the client's lock, like all state of the core; a number costs an addition.
2. Read without it, from any thread: each number is right by itself, two may be a step apart.
3. Nothing here is ever taken down but what says "now" (active, slots, pending, overbooked).
4. What becomes of a lease is counted from the moment at which the program gets it. A slot that was
   had on the way (by one who wants several semaphores) is nothing that it was granted.
5. A rate limit is counted in starts: each that a program gets, and how long it waited for it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from etcdsem.model import Rate

WAIT_BUCKETS = (0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0)
"""Upper bounds in seconds, from an uncontended grant (a millisecond) to half a working day."""

REQUEST_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 4.0)
"""The same for one transaction: from a local etcd to the deadline of a request."""

OTHERS = ("", "(others)")
"""Where the counts of semaphores go that are not listed any more; no semaphore has that name."""

OTHER_RATES = ("", "(other rates)")
"""The same for rate limits."""

Key = tuple[str, str]
"""A semaphore: prefix and name."""


class Histogram:
    """How many observations lie below each bound, and what all add up to."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)  # the last: above all bounds
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def add(self, other: Histogram) -> None:
        """Count all that another has seen; it has the same bounds."""
        for place, number in enumerate(list(other.counts)):
            self.counts[place] += number
        self.total += other.total


class SemaphoreStats:
    """One semaphore, or one rate limit, as one client uses it."""

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
        "released",
        "slots",
        "timeouts",
        "waited",
    )

    def __init__(self) -> None:
        self.max_leases: int | None = None  # as it is known here; None: not known, or no number
        self.carried: int | None = None  # the limit that the program itself was told
        self.paused = False  # as it is known here
        self.rate: Rate | None = None  # of a rate limit, as it was known last
        self.active = 0  # leases held by this client; of a rate limit, blocks of starts
        self.slots = 0  # of those leases
        self.pending = 0  # calls of acquire under way
        self.overbooked = 0  # leases lost, and not let go of by the program
        self.acquired = 0  # leases; of a rate limit, starts
        self.released = 0  # by the program, in time
        self.timeouts = 0  # acquire gave up: full
        self.losses = 0
        self.forfeited = 0  # starts of blocks that were not used in time
        self.average_wait = 0.0  # moving, over grants; as in Dask: (average + wait) / 2
        self.waited = Histogram(WAIT_BUCKETS)
        self.held = Histogram(WAIT_BUCKETS)

    def granted(self, wait: float) -> None:
        """An acquire has come to a grant, after `wait` seconds."""
        self.acquired += 1
        self.average_wait = (self.average_wait + wait) / 2
        self.waited.observe(wait)

    def add(self, other: SemaphoreStats) -> None:
        """Count what another client counted."""
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
        """The same, but for what says "now": that client is no more."""
        seen = self.acquired + other.acquired
        if seen:
            weighted = self.average_wait * self.acquired + other.average_wait * other.acquired
            self.average_wait = weighted / seen
        self.acquired += other.acquired
        self.released += other.released
        self.timeouts += other.timeouts
        self.losses += other.losses
        self.forfeited += other.forfeited
        self.rate = other.rate or self.rate
        self.waited.add(other.waited)
        self.held.add(other.held)


class ClientStats:
    """All that one client counts."""

    def __init__(self) -> None:
        self.semaphores: dict[Key, SemaphoreStats] = {}
        self.requests = {"done": 0, "not applied": 0, "unknown": 0, "refused": 0}
        """Transactions by their outcome. Of "unknown" ones nobody can say whether etcd applied
        them; each was settled by revoking its lease."""
        self.latency = Histogram(REQUEST_BUCKETS)  # of those that were done
        self.renewals_late = 0  # a renewal was not answered in time: another connection was taken

    def of(self, key: Key) -> SemaphoreStats:
        """The stats of a semaphore."""
        stats = self.semaphores.get(key)
        return stats if stats is not None else self.semaphores.setdefault(key, SemaphoreStats())

    def forget(self, key: Key) -> None:
        """A semaphore that is in use no more is listed no more; what it counted goes to others."""
        stats = self.semaphores.pop(key, None)
        if stats is not None:
            self.of(_others(stats)).add_past(stats)

    def add(self, other: ClientStats, *, past: bool, most: int) -> None:
        """Count what another client counted, and list `most` semaphores."""
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
