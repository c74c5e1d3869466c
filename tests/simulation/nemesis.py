"""What goes wrong in a run, and when, drawn from its seed.

The `Nemesis` causes the faults of the run's `Options` until `fault_time`. `heal` ends them, and
leaves the clients that are broken for good as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.simulation.operators import Operators
from tests.simulation.options import KINDS, VERBS, Options
from tests.simulation.world import CALM

if TYPE_CHECKING:
    from etcdsem.core.commands import Event
    from tests.simulation.checks import Checker
    from tests.simulation.client import SimClient
    from tests.simulation.world import World


class Nemesis(Operators):
    """Causes faults."""

    def __init__(
        self,
        world: World,
        options: Options,
        checkers: list[Checker],
        add_client: Callable[[], object],
    ) -> None:
        super().__init__(world, options, checkers, add_client)
        self.kinds = [
            kind for kind in (*KINDS, *VERBS) if kind in options.kinds and kind != "weather"
        ]
        world.weather = options.weather
        world.etcd.loses = self._loses
        self._deaf_until = 0.0
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
        """A link becomes slow, and then fails for a while."""
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

    # -- faults that are allowed in quiet times too

    def disturb(self) -> None:
        """Crash or evict a holder: what is freed must be used again soon."""
        world, rng = self.world, self.world.rng
        if "operate" in self.options.kinds and rng.random() < 0.4:
            self._pause_briefly()
            return
        if "penalize" in self.options.kinds and rng.random() < 0.4:
            self._penalize()
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
        """Fix a limit that admits nobody (a resize may have landed late), else no work is done."""
        for checker in self.checkers:
            stuck = checker.limit == 0 and not checker.timed
            if stuck and self.world.now >= self._resumed_soon:
                self._put(checker.keys.max_leases, self._usual())

    # -- the end

    def clean(self) -> None:
        """Remove everything that operators have put there."""
        self._remove_junk()

    def heal(self) -> None:
        """End all faults."""
        world, rng = self.world, self.world.rng
        self.stopped = True
        world.trace("faults end")
        world.weather = CALM
        self._deaf_until = 0.0
        world.no_space = False
        self._elect()
        self._remove_junk(harmless=rng.random() < 0.5)
        if "junk" in self.options.kinds and rng.random() < 0.5:
            self._put(self._checker().keys.leases + b"1", b"junk")  # it stays, and is harmless
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
