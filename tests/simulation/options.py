"""What a run is like: its clients, its network and its kinds of faults, drawn from its seed.

Kinds of faults are enabled or disabled for a whole run (swarm testing: a run with few kinds reaches
deeper than one with all).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from random import Random
from typing import TYPE_CHECKING

from tests.simulation.world import CALM, Weather

if TYPE_CHECKING:
    pass

KINDS = (
    "weather",
    "pause",
    "crash",
    "partition",
    "slow link",
    "fading link",
    "cut streams",
    "new leader",
    "no quorum",
    "compaction",
    "resize",
    "garbage limit",
    "evict",
    "delete key",
    "junk",
    "clock jump",
    "cancel",
    "lost deletes",
    "no space",
    "close",
    "shutdown",
)

VERBS = ("operate", "turn away", "penalize")
"""Further kinds, drawn from separate streams: operators that pause, drain and resume, and that
evict waiters; programs that pause for a time.
"""


SEVERAL = 7
"""In seeds that end with this digit some callers acquire several semaphores at once."""


PASSING = 9
"""Of the seeds that end with this digit, every second one has heavy waiters that leave while eager
ones are about to pass them."""


@dataclass(frozen=True)
class Options:
    """One run, as drawn from its seed."""

    seed: int
    kinds: frozenset[str]
    clients: int
    workers: int
    semaphores: int
    limit: int
    ttl: int
    refresh: float
    hold: float
    """Mean seconds of work under a slot."""
    idle: float
    """Mean seconds between two acquires of a worker."""
    tries: float
    """The fraction of acquires that try once."""
    long: float
    """The fraction of acquires that are held for several TTLs."""
    patience: tuple[float, ...]
    """Timeouts of the other acquires: one is drawn, and a random part of it taken."""
    every: float
    """Mean seconds between two faults."""
    fault_time: float
    calm_time: float
    break_for_good: bool
    """Whether some clients are never healed; the others must still make progress."""
    drift: float
    """The maximum deviation of the clients' clock rates from etcd's."""
    weather: Weather = field(default=CALM)
    reread: tuple[float, float] = (5.0, 15.0)
    lanes: int = 2
    """Requests of a client that may be in progress before others are gathered."""
    max_hold: float | None = None
    """Half of the acquires hold no longer than that; None: there is no bound."""
    weights: tuple[int, ...] = (1,)
    """The weights from which one is drawn for an acquire."""
    several: float = 0.0
    """The fraction of acquires that take a slot of each of two or three semaphores."""
    priorities: tuple[int, ...] = (0,)
    """The priorities from which one is drawn."""
    eager: float = 0.0
    """The fraction of acquires that are eager."""
    linger: float = 0.0
    """Seconds for which half of the acquires let a released slot stay with their client."""
    max_waiting: int | None = None
    """How many callers may wait; None: any number."""
    shared: bool = False
    """Most workers of a client share one semaphore object, and release any lease of it."""

    @classmethod
    def of(cls, seed: int) -> Options:
        """Draw them from a seed; some seeds have themes that chance would produce too rarely."""
        shared = Random(f"what they share, {seed}").random() < 0.2
        options = replace(cls._themed(seed), shared=shared)
        options = options._penalizing(Random(f"who penalizes, {seed}"))
        options = options._lingering(Random(f"who lingers, {seed}"))
        bounded = Random(f"how many may wait, {seed}")
        most = bounded.choice((0, 1, 2, 4)) if bounded.random() < 0.1 else None
        return replace(options, max_waiting=most)

    def _lingering(self, rng: Random) -> Options:
        """The same options, in some runs with callers that come again so soon that slots stay."""
        if self.seed % 10 in (5, 8) or rng.random() >= 0.25:
            return self
        linger = rng.choice((0.02, 0.1, 0.5))
        weights = (1,) if rng.random() < 0.7 else self.weights
        hold, idle = min(self.hold, 0.1), min(self.idle, linger / 4)
        return replace(
            self, linger=linger, idle=idle, hold=hold, long=0.0, weights=weights, fault_time=10.0
        )

    def _penalizing(self, rng: Random) -> Options:
        """The same options, in some runs with programs that pause for a time."""
        if self.seed % 10 in (5, 8) or self.seed % 20 == PASSING or rng.random() >= 0.15:
            return self
        return replace(self, kinds=self.kinds | {"penalize"})

    @classmethod
    def _themed(cls, seed: int) -> Options:
        options = cls._drawn(seed)
        demand = Random(f"what they want, {seed}")
        if seed % 10 == 5:
            return options._crowd(demand)
        if seed % 10 == SEVERAL:
            # Several at once of few slots: callers crowd each other out, and wait while holding.
            return replace(
                options,
                clients=min(options.clients + 1, 4),
                workers=min(options.workers + 1, 4),
                semaphores=3,
                limit=demand.choice((1, 1, 2)),
                hold=min(options.hold, 0.2),
                several=demand.choice((0.4, 0.7, 1.0)),
            )
        if seed % 20 == PASSING:
            return options._passing(demand)
        if seed % 10 != 8:
            return options._wanting(demand)
        # Long holds behind a failing network: a late deadline would keep relying on a lost lease.
        return replace(
            options,
            kinds=frozenset({"fading link"}),
            weather=CALM,
            clients=5,
            workers=2,
            limit=4,
            ttl=3,
            refresh=1.0,
            long=0.8,
            every=1.0,
        )

    def _crowd(self, rng: Random) -> Options:
        """Many callers in few programs: they hand over together."""
        crowd = replace(
            self,
            clients=2,
            workers=8,
            semaphores=1,
            limit=6,
            hold=0.02,
            idle=0.04,
            long=0.0,
            weather=self.weather._replace(latency=0.02),
            fault_time=4.0,
            calm_time=2.0,
        )
        return replace(crowd, weights=(1,) * 19 + (2,)) if rng.random() < 0.3 else crowd

    def _passing(self, rng: Random) -> Options:
        """Heavy waiters leave the queue while eager ones are about to pass them."""
        return replace(
            self,
            kinds=frozenset({"cancel"}),
            weather=CALM._replace(latency=rng.choice((0.02, 0.05, 0.05))),
            clients=3,
            workers=4,
            semaphores=1,
            limit=4,
            hold=0.3,
            idle=0.1,
            tries=0.05,
            long=0.0,
            patience=(0.5, 3.0, math.inf),
            every=0.3,
            break_for_good=False,
            max_hold=None,
            weights=(1, 1, 1, 2, 4),
            eager=0.4,
        )

    def _wanting(self, rng: Random) -> Options:
        """The same options, in some runs with different requests; drawn from a separate stream."""
        options = self
        if self.limit > 1 and rng.random() < 0.5:
            most = min(self.limit + rng.choice((0, 0, 1)), 6)
            weights = (1, *(rng.randint(1, most) for _ in range(3)))
            options = replace(self, weights=weights, eager=rng.choice((0.0, 0.0, 0.2, 0.5)))
        if rng.random() < 0.3:
            some = ((0, 0, 0, 5), (0, 5, 10), (-5, 0, 0, 0), (-5, 0, 5, 100))
            options = replace(options, priorities=rng.choice(some))
        return options

    def _operated(self, rng: Random) -> Options:
        """The same options, in some runs with operators that pause, or with bounded leases."""
        if self.seed % 10 in (5, 8):
            return self  # these have a theme
        kinds = self.kinds | {"operate"} if rng.random() < 0.3 else self.kinds
        max_hold = self.hold * rng.choice((0.5, 2.0, 5.0)) if rng.random() < 0.2 else None
        if self.several and max_hold is not None:
            max_hold = 3.0  # it also counts while one waits for the others
        if rng.random() < 0.2:
            kinds |= {"turn away"}
        return replace(self, kinds=kinds, max_hold=max_hold)

    @classmethod
    def _drawn(cls, seed: int) -> Options:
        rng = Random(seed * 2 + 1)  # another stream than the world's
        share = rng.choice((0.0, 0.2, 0.2, 0.5, 0.8))
        kinds = frozenset(kind for kind in KINDS if rng.random() < share)
        weather = _weather(rng)
        ttl = rng.choice((2, 2, 3, 5, 10))
        drawn = cls(
            seed=seed,
            kinds=kinds,
            clients=rng.choice((1, 2, 3, 4, 5)),
            workers=rng.choice((1, 2, 3, 5)),
            semaphores=rng.choice((1, 1, 2)),
            limit=rng.choice((1, 1, 2, 3, 4)),
            ttl=ttl,
            refresh=ttl / rng.choice((3, 3, 4)),
            hold=rng.choice((0.02, 0.2, 1.0, 3.0)),
            idle=rng.choice((0.005, 0.1, 0.5)),
            long=0.03,
            patience=rng.choice(
                ((0.02, 3.0, 3.0, math.inf, math.inf), (3.0, math.inf, math.inf), (math.inf,))
            ),
            tries=rng.choice((0.1, 0.1, 0.5)),
            every=rng.choice((0.3, 1.0, 3.0)),
            fault_time=rng.choice((15.0, 25.0, 40.0)),
            calm_time=20.0,
            break_for_good=rng.random() < 0.3,
            drift=rng.choice((0.0, 0.005, 0.009)),
            weather=weather if "weather" in kinds else CALM,
            reread=rng.choice(((5.0, 15.0), (1.0, 3.0))),
            lanes=rng.choice((1, 1, 2)),
        )
        drawn = drawn._operated(Random(f"who operates, {seed}"))
        if rng.random() >= 0.1:
            return drawn
        return drawn._roomy(rng)

    def _roomy(self, rng: Random) -> Options:
        """Many callers in few processes, with room for most of them: they share transactions."""
        return replace(
            self,
            clients=rng.choice((1, 2)),
            workers=8,
            limit=rng.choice((6, 12, 20)),
            idle=rng.choice((0.01, 0.1)),
            hold=rng.choice((0.01, 0.1)),
            fault_time=8.0,
            calm_time=5.0,
        )


def _weather(rng: Random) -> Weather:
    worst = rng.choice((0.01, 0.05, 0.2))
    return Weather(
        lose_request=rng.random() * worst * rng.choice((0, 1)),
        lose_reply=rng.random() * worst * rng.choice((0, 1)),
        late=rng.random() * worst * rng.choice((0, 1)),
        refuse=rng.random() * worst * rng.choice((0, 1)),
        overload=rng.random() * worst * rng.choice((0, 1)),
        broken=rng.random() * worst * rng.choice((0, 1)),
        stall=rng.random() * 0.02 * rng.choice((0, 1)),
        latency=rng.choice((0.0005, 0.003, 0.02, 0.1)),
    )
