"""What goes wrong in a run, and when: all of it drawn from the run's seed.

`Options` are drawn once. Kinds of faults are switched on and off for a whole run (swarm testing:
a run with few kinds reaches deeper than one with all). The `Nemesis` then lets them happen until
`fault_time`; `heal` ends them, and leaves the clients that are broken for good as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import TYPE_CHECKING

from etcdsem.core.keys import write_eviction
from etcdsem.core.transactions import close, evict_waiter
from tests.simulation.world import CALM, Weather

if TYPE_CHECKING:
    from etcdsem.core.commands import Event, KeyValue
    from etcdsem.core.keys import Keys
    from tests.simulation.checks import Checker
    from tests.simulation.client import SimClient
    from tests.simulation.world import World

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

VERBS = ("operate", "turn away")
"""More of them, drawn from a stream of their own: operators who pause, drain and resume, and who
evict waiters.
"""


SEVERAL = 7
"""Of the seeds that end with this digit some callers take several semaphores at once."""


PASSING = 9
"""Of the seeds that end with this digit, every second has big ones that leave while eager ones are
about to pass them."""


@dataclass(frozen=True)
class Options:
    """One run, as its seed wants it."""

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
    """The share of acquires that try once."""
    long: float
    """The share of acquires that are held for some TTLs."""
    patience: tuple[float, ...]
    """Timeouts of the others: one is drawn, and a random part of it taken."""
    every: float
    """Mean seconds between two faults."""
    fault_time: float
    calm_time: float
    break_for_good: bool
    """Liveness with a broken rest: some clients are not healed."""
    drift: float
    """How far the rates of the clients' clocks may be from etcd's."""
    weather: Weather = field(default=CALM)
    reread: tuple[float, float] = (5.0, 15.0)
    lanes: int = 2
    """Requests of a client that may be under way before others share one."""
    max_hold: float | None = None
    """Half of the acquires hold no longer than that; None: nobody has a bound."""
    weights: tuple[int, ...] = (1,)
    """How many slots an acquire wants: one of these."""
    several: float = 0.0
    """The share of acquires that want a slot of each of two or three semaphores."""
    priorities: tuple[int, ...] = (0,)
    """Its priority: one of these."""
    eager: float = 0.0
    """The share of acquires that are eager."""
    shared: bool = False
    """Most workers of a client share one semaphore object, and release some lease of it."""

    @classmethod
    def of(cls, seed: int) -> Options:
        """Draw them from a seed; some have themes, to which chance comes too seldom."""
        shared = Random(f"what they share, {seed}").random() < 0.2
        return replace(cls._themed(seed), shared=shared)

    @classmethod
    def _themed(cls, seed: int) -> Options:
        options = cls._drawn(seed)
        wants = Random(f"what they want, {seed}")
        if seed % 10 == 5:
            # A crowd in few programs: those who hand over do it together.
            crowd = replace(
                options,
                clients=2,
                workers=8,
                semaphores=1,
                limit=6,
                hold=0.02,
                idle=0.04,
                long=0.0,
                weather=options.weather._replace(latency=0.02),
                fault_time=4.0,
                calm_time=2.0,
            )
            return replace(crowd, weights=(1,) * 19 + (2,)) if wants.random() < 0.3 else crowd
        if seed % 10 == SEVERAL:
            # Several at once of few slots: they crowd each other out, and wait while they hold.
            return replace(
                options,
                clients=min(options.clients + 1, 4),
                workers=min(options.workers + 1, 4),
                semaphores=3,
                limit=wants.choice((1, 1, 2)),
                hold=min(options.hold, 0.2),
                several=wants.choice((0.4, 0.7, 1.0)),
            )
        if seed % 20 == PASSING:
            return replace(
                options,
                kinds=frozenset({"cancel"}),
                weather=CALM._replace(latency=wants.choice((0.02, 0.05, 0.05))),
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
        if seed % 10 != 8:
            return options._wanting(wants)
        # Long holds behind a network that fades: whoever reckons too late relies on the dead.
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

    def _wanting(self, rng: Random) -> Options:
        """The same; in some runs not everybody wants the same. Drawn from a stream of its own."""
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
        """The same; in some runs operators pause and resume, in some leases have a bound."""
        if self.seed % 10 in (5, 8):
            return self  # they have a theme
        kinds = self.kinds | {"operate"} if rng.random() < 0.3 else self.kinds
        max_hold = self.hold * rng.choice((0.5, 2.0, 5.0)) if rng.random() < 0.2 else None
        if self.several and max_hold is not None:
            max_hold = 3.0  # it counts while one waits for the others, too
        if rng.random() < 0.2:
            kinds |= {"turn away"}
        return replace(self, kinds=kinds, max_hold=max_hold)

    @classmethod
    def _drawn(cls, seed: int) -> Options:
        rng = Random(seed * 2 + 1)  # another stream than the world's
        share = rng.choice((0.0, 0.2, 0.2, 0.5, 0.8))
        kinds = frozenset(kind for kind in KINDS if rng.random() < share)
        worst = rng.choice((0.01, 0.05, 0.2))
        weather = Weather(
            lose_request=rng.random() * worst * rng.choice((0, 1)),
            lose_reply=rng.random() * worst * rng.choice((0, 1)),
            late=rng.random() * worst * rng.choice((0, 1)),
            refuse=rng.random() * worst * rng.choice((0, 1)),
            overload=rng.random() * worst * rng.choice((0, 1)),
            broken=rng.random() * worst * rng.choice((0, 1)),
            stall=rng.random() * 0.02 * rng.choice((0, 1)),
            latency=rng.choice((0.0005, 0.003, 0.02, 0.1)),
        )
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
        # A crowd in few processes, and room for most of it: they share transactions.
        return replace(
            drawn,
            clients=rng.choice((1, 2)),
            workers=8,
            limit=rng.choice((6, 12, 20)),
            idle=rng.choice((0.01, 0.1)),
            hold=rng.choice((0.01, 0.1)),
            fault_time=8.0,
            calm_time=5.0,
        )


class Nemesis:
    """Lets faults happen."""

    def __init__(
        self,
        world: World,
        options: Options,
        checkers: list[Checker],
        add_client: Callable[[], object],
    ) -> None:
        self.world = world
        self.options = options
        self.checkers = checkers
        self.add_client = add_client
        self.stopped = False
        self.kinds = [
            kind for kind in (*KINDS, *VERBS) if kind in options.kinds and kind != "weather"
        ]
        world.weather = options.weather
        world.etcd.loses = self._loses
        self._deaf_until = 0.0
        self._resumed_soon = 0.0  # until then somebody means to resume what he has paused
        if self.kinds:
            self._later()

    def _later(self) -> None:
        self.world.after(self.world.rng.expovariate(1 / self.options.every), self._strike)

    def _strike(self) -> None:
        if self.stopped:
            return
        kind = self.world.rng.choice(self.kinds)
        getattr(self, "_" + kind.replace(" ", "_"))()
        self._later()

    def _loses(self, event: Event) -> bool:
        lost = event.kind == "delete" and self.world.now < self._deaf_until
        if lost:
            self.world.counters["lost delete events"] += 1
        return lost

    def _client(self) -> SimClient | None:
        clients = [client for client in self.world.clients if client.fine]
        holders = [client for client in clients if client.session.grants()]
        if holders and self.world.rng.random() < 0.5:
            clients = holders  # where it hurts
        return self.world.rng.choice(clients) if clients else None

    def _checker(self) -> Checker:
        return self.world.rng.choice(self.checkers)

    # -- clients

    def _pause(self) -> None:
        client = self._client()
        if client is None:
            return
        rng, ttl = self.world.rng, self.options.ttl
        client.pause()
        self.world.after(rng.choice((0.01, ttl / 3, ttl * 3)) * rng.random(), client.resume)

    def _crash(self) -> None:
        client = self._client()
        if client is None:
            return
        client.crash()
        self.world.after(self.world.rng.random() * 5.0, self._replace)

    def _replace(self) -> None:
        self.add_client()

    def _shutdown(self) -> None:
        client = self._client()
        if client is None or client.session.closed:
            return
        self.world.counters["shutdowns"] += 1
        client.shut_down(self.world.rng.choice((0.5, 2.0, 10.0)))
        self.world.after(12.0, client.crash)
        self.world.after(self.world.rng.random() * 5.0, self._replace)

    def _clock_jump(self) -> None:
        client = self._client()
        if client is not None:
            client.jump(self.world.rng.random() * self.options.ttl * 2)

    def _cancel(self) -> None:
        client = self._client()
        if client is not None:
            client.interrupt_somebody()

    # -- the network

    def _partition(self) -> None:
        client = self._client()
        if client is None:
            return
        world, rng, link = self.world, self.world.rng, client.link
        until = world.now + rng.choice((0.2, 1.0, 3.0)) * self.options.ttl * rng.random()
        link.drops = rng.random() < 0.5
        ways = rng.choice(("up", "down", "both"))
        client.trace("is cut off", ways, "until", until, "drops", link.drops)
        if ways != "down":
            link.up_until = max(link.up_until, until)
        if ways != "up":
            link.down_until = max(link.down_until, until)
        world.counters["partitions"] += 1

    def _slow_link(self) -> None:
        client = self._client()
        if client is not None:
            client.trace("has a slow link")
            client.link.slow = self.world.rng.choice((0.3, 1.0, 3.0))
            client.link.slow_until = self.world.now + self.world.rng.random() * 10.0

    def _fading_link(self) -> None:
        """A link gets slow, and then dies for a while."""
        client = self._client()
        if client is None:
            return
        rng, link = self.world.rng, client.link
        client.trace("has a fading link")
        link.slow = 1.0
        link.slow_until = self.world.now + self.options.ttl * (0.5 + rng.random())
        self.world.at(link.slow_until, self._die, client, link.slow_until)

    def _die(self, client: SimClient, moment: float) -> None:
        link = client.link
        if self.stopped or link.slow_until != moment:
            return
        link.drops = self.world.rng.random() < 0.5
        link.up_until = moment + self.options.ttl * (0.5 + 2 * self.world.rng.random())
        client.trace("is cut off until", link.up_until)
        self.world.counters["partitions"] += 1

    def _cut_streams(self) -> None:
        client = self._client()
        if client is None:
            return
        which = self.world.rng.choice(("watch", "renew", "both"))
        if which != "renew":
            client.watches.cut()
        if which != "watch":
            client.renewals.cut()

    # -- etcd

    def _new_leader(self) -> None:
        self._leaderless(self.world.rng.random())

    def _no_quorum(self) -> None:
        self._leaderless(self.world.rng.random() * self.options.ttl * 2)

    def _leaderless(self, seconds: float) -> None:
        world = self.world
        if not world.etcd.leading:
            return
        world.lose_leader()
        world.after(seconds, self._elect)

    def _elect(self) -> None:
        if not self.world.etcd.leading:
            self.world.elect()

    def _compaction(self) -> None:
        etcd = self.world.etcd
        back = self.world.rng.choice((0, 0, 3, 20))
        if etcd.revision - back > etcd.compacted:
            self.world.counters["compactions"] += 1
            self.world.operate("compact", lambda: etcd.compact(etcd.revision - back))

    def _lost_deletes(self) -> None:
        self._deaf_until = self.world.now + self.world.rng.random() * 5.0

    def _no_space(self) -> None:
        self.world.trace("etcd", "has no space")
        self.world.no_space = True
        self.world.counters["times without space"] += 1
        self.world.after(self.world.rng.random() * 3.0, self._space)

    def _space(self) -> None:
        self.world.no_space = False

    # -- people

    def _put(self, key: bytes, value: bytes) -> None:
        self.world.operate(f"put {key!r} {value!r}", lambda: self.world.etcd.put(key, value))

    def _resize(self) -> None:
        rng = self.world.rng
        number = rng.choice((0, 1, 1, 2, 3, 4, 6))
        keys = self._checker().keys
        self.world.counters["resizes"] += 1
        client = self._client()
        if client is None or rng.random() < 0.5:
            self._put(keys.max_leases, b"%d" % number)
        else:
            client.resize(keys.name, number)

    def _operate(self) -> None:
        """Somebody pauses it, or drains it, and somebody resumes it, and may die at that."""
        rng = self.world.rng
        keys = self._checker().keys
        client = self._client()
        self.world.counters["paused by operators"] += 1
        if client is None or rng.random() < 0.3:
            self._by_hand(keys.max_leases, b" paused")
        elif rng.random() < 0.3:
            client.drain_semaphore(keys.name, rng.choice((1.0, 5.0, math.inf)))
        else:
            client.pause_semaphore(keys.name)
        self.world.after(rng.random() * rng.choice((0.1, 1.0, 5.0)), self._resume_it, keys)

    def _by_hand(self, key: bytes, rest: bytes) -> None:
        stored = self.world.etcd.get(key)
        if stored is not None:
            self._put(key, stored.value.split(b" ")[0] + rest)

    def _resume_it(self, keys: Keys) -> None:
        rng = self.world.rng
        client = self._client()
        if self.stopped:
            return  # `heal` sees to it
        if client is None or rng.random() < 0.3:
            self._by_hand(keys.max_leases, b"")
            return
        client.resume_semaphore(keys.name)
        if "crash" in self.options.kinds and rng.random() < 0.2:
            self.world.after(rng.random() * 0.01, client.crash)
            self.world.after(rng.random() * 5.0, self._replace)

    def _pause_briefly(self) -> None:
        """In quiet times: then what has become free meanwhile must be used again soon."""
        world, keys = self.world, self._checker().keys
        fine = [one for one in world.clients if one.fine and not one.session.closed]
        if not fine or world.now < self._resumed_soon:
            return
        client, back = world.rng.choice(fine), world.rng.random() * 2.0
        client.pause_semaphore(keys.name)
        world.after(back, client.resume_semaphore, keys.name)
        self._resumed_soon = world.now + back + 1.0
        world.counters["paused in quiet times"] += 1

    def _garbage_limit(self) -> None:
        key = self._checker().keys.max_leases
        good = self.world.etcd.get(key)
        self._put(key, self.world.rng.choice((b"", b"abc", b"-1", b"1e3", b"\xd9\xa3", b"9" * 30)))
        self.world.after(self.world.rng.random() * 3.0, self._mend, key, self._mended(good))

    def _mended(self, good: KeyValue | None) -> bytes:
        """What somebody writes who finds garbage."""
        return good.value if good and good.value.isdigit() else b"2"

    def _mend(self, key: bytes, value: bytes) -> None:
        if not self.stopped:
            self._put(key, value)

    def _evict(self) -> None:
        world, checker = self.world, self._checker()
        kvs = [kv for kv in (*checker.slots.values(), *checker.waiters.values()) if kv.lease]
        if kvs:
            kv = world.rng.choice(kvs)
            world.counters["evictions"] += 1
            world.operate(f"revoke lease of {kv.key!r}", lambda: world.etcd.revoke(kv.lease))

    def _turn_away(self) -> None:
        """Somebody evicts a waiter."""
        world, checker = self.world, self._checker()
        if checker.waiters:
            kv = world.rng.choice(list(checker.waiters.values()))
            world.counters["waiters turned away"] += 1
            world.operate(f"evict {kv.key!r}", lambda: self._evict_waiter(checker.keys, kv))

    def _evict_waiter(self, keys: Keys, kv: KeyValue) -> None:
        etcd, lease = self.world.etcd, self.world.rng.getrandbits(62) + 1
        etcd.grant(lease, 5)
        letter = write_eviction("operator", 1.7e9 + self.world.now)
        who = kv.key[len(keys.waiters) :]
        etcd.transact(evict_waiter(keys, who, kv.create_revision, letter, lease))

    def _delete_key(self) -> None:
        checker = self._checker()
        keys = [*checker.slots, *checker.waiters]
        if keys:
            self.world.counters["evictions"] += 1
            self._delete(self.world.rng.choice(keys))

    def _junk(self) -> None:
        keys, rng = self._checker().keys, self.world.rng
        names = (
            keys.leases + b"00000",
            keys.leases + b"00001",
            keys.leases + b"00099",
            keys.leases + b"1",
            keys.leases + b"abc",
            keys.waiters + b"somebody",
            keys.waiters + b"host.1.abc/0000000000000001",
            keys.base + b"other",
        )
        key = rng.choice(names)
        if key in self._checker().slots and rng.random() < 0.5:
            return
        self._put(key, rng.choice((b"", b"junk", b'{"owner": 3}')))
        self.world.counters["junk keys"] += 1
        self.world.after(rng.random() * 5.0, self._tire_of_junk)

    def _tire_of_junk(self) -> None:
        if not self.stopped:
            self._remove_junk()

    def _remove_junk(self, *, harmless: bool = True) -> None:
        """Take away what was put by hand. What blocks no slot may stay: it is in nobody's way."""
        for checker in self.checkers:
            keys = checker.keys
            for kv in self.world.etcd.keys(keys.base, keys.base_end):
                if kv.lease or kv.key in (keys.max_leases, keys.contended, keys.priorities):
                    continue
                if harmless or kv.key in checker.slots:
                    self._delete(kv.key)

    def _delete(self, key: bytes) -> None:
        self.world.operate(f"del {key!r}", lambda: self.world.etcd.delete(key))

    def _close(self) -> None:
        world, keys = self.world, self._checker().keys
        world.counters["closes"] += 1
        world.operate("close", lambda: world.etcd.transact(close(keys, force=True)))
        again = world.rng.random() * world.rng.choice((0.01, 3.0))
        world.after(again, self._register, keys.max_leases)

    def _register(self, key: bytes) -> None:
        if self.world.etcd.get(key) is None:
            self._put(key, self._usual())

    def _usual(self) -> bytes:
        """The limit with which the run began."""
        return b"%d" % self.options.limit

    # -- what may happen in quiet times too

    def disturb(self) -> None:
        """A holder crashes, or is evicted: what is freed must be used again soon."""
        world, rng = self.world, self.world.rng
        if "operate" in self.options.kinds and rng.random() < 0.4:
            self._pause_briefly()
            return
        if "turn away" in self.options.kinds and rng.random() < 0.4:
            self._turn_away()
            return
        if "lost deletes" in self.options.kinds and rng.random() < 0.5:
            self._deaf_until = world.now + self.options.ttl + 1.0
        clients = [client for client in world.clients if client.fine and not client.session.closed]
        if rng.random() < 0.5 and len(clients) > 1:
            rng.choice(clients[:-1]).crash()
        elif rng.random() < 0.5:
            self._evict()
        else:
            self._delete_key()

    def let_in(self) -> None:
        """A limit that lets nobody in (a resize may have landed late) ends the run's work."""
        for checker in self.checkers:
            if checker.limit == 0 and self.world.now >= self._resumed_soon:
                self._put(checker.keys.max_leases, self._usual())

    # -- the end

    def clean(self) -> None:
        """Take away all that people have put there."""
        self._remove_junk()

    def heal(self) -> None:
        """No faults from now on."""
        world, rng = self.world, self.world.rng
        self.stopped = True
        world.trace("faults end")
        world.weather = CALM
        self._deaf_until = 0.0
        world.no_space = False
        self._elect()
        self._remove_junk(harmless=rng.random() < 0.5)
        if "junk" in self.options.kinds and rng.random() < 0.5:
            self._put(self._checker().keys.leases + b"1", b"junk")  # it stays, in nobody's way
        self.let_in()
        alive = [client for client in world.clients if not client.crashed]
        for client in alive:
            if self.options.break_for_good and rng.random() < 0.3 and client is not alive[-1]:
                client.broken = True
                world.counters["clients broken for good"] += 1
                how = rng.choice(("pause", "up", "down", "both"))
                if how == "pause":
                    client.pause()
                    continue
                client.link.drops = True
                if how != "down":
                    client.link.up_until = float("inf")
                if how != "up":
                    client.link.down_until = float("inf")
                client.resume()
            else:
                client.link.up_until = client.link.down_until = client.link.slow_until = world.now
                client.resume()
