"""Under faults, the counts of clients and of an observer agree with what really happened."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest

from etcdsem.core.commands import Event, Txn, TxnReply
from etcdsem.core.keys import slot_number
from etcdsem.core.mirror import PrefixView, SemaphoreView
from etcdsem.testing.history import Revision
from tests.helpers.slow import sample
from tests.simulation.options import Options
from tests.simulation.runs import Run
from tests.simulation.world import PREFIX, World

SEEDS = (0, 5, 7, 15, 24, 25)


class Watcher:
    """A view that sees every event at once, and how each slot really ended."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.census = PrefixView(PREFIX)
        self.census.begin()
        self.census.load(world.etcd.keys(), world.etcd.revision, 0.0, 0.0)
        self.given_back = False  # a client's transaction is in progress
        self.really = Counter[tuple[str, str]]()
        """By semaphore: leases granted; slots given back by a client's transaction, and slots that
        ended otherwise.
        """
        self._grants: set[tuple[str, int, int]] = set()
        self.told_lost_when_given_back: list[str] = []
        world.etcd.observers.append(self.revision)
        transact = world.etcd.transact

        def watched(txn: Txn) -> TxnReply:
            self.given_back = not world.by_operator
            try:
                return transact(txn)
            finally:
                self.given_back = False

        world.etcd.transact = watched  # type: ignore[method-assign]

    def revision(self, revision: Revision) -> None:
        before = {name: line.lost for name, line in self.census.lines.items()}
        for event in revision.events:
            self._note(event)
        self.census.apply(revision.events, self.world.now)
        if not self.given_back:
            return
        for name, line in self.census.lines.items():
            if line.lost > before.get(name, 0):
                self.told_lost_when_given_back.append(name.decode())

    def _note(self, event: Event) -> None:
        line: SemaphoreView | None = self.census._line(event.kv.key)
        if line is None or not event.kv.key.startswith(line.keys.leases):
            return
        if slot_number(line.keys, event.kv.key) is not None:
            grant = (line.name, event.kv.lease, event.kv.mod_revision)
            if event.kind == "put" and grant in self._grants:
                return  # another slot of the same lease
            self._grants.add(grant)
            kind = "put" if event.kind == "put" else "back" if self.given_back else "ended"
            self.really[line.name, kind] += 1


@pytest.mark.parametrize("seed", sample(SEEDS, 2))
def test_counts_are_right(seed: int) -> None:
    """Clients: granted = given back + lost + held. The watcher: every grant; and what it counts as
    lost was not given back.
    """
    counted(seed)


@pytest.mark.slow
def test_the_seeds_show_losses() -> None:
    """The seeds contain losses, else the other test would show nothing."""
    totals = sum(map(counted, SEEDS), Counter[str]())
    assert totals["lost, says the watcher"] > 0
    assert totals["lost, say clients"] > 0


@cache
def counted(seed: int) -> Counter[str]:
    """Run a seed, check the counts, and return the losses."""
    options = Options.of(seed)
    run = Run(options)
    watcher = Watcher(run.world)
    run.go()
    run.world.dispose()
    totals = Counter[str]()
    for client in run.world.clients:
        for stats in client.session.stats.semaphores.values():
            assert stats.acquired == stats.released + stats.losses + stats.active, options
            assert stats.acquired == sum(stats.waited.counts)
            assert stats.released + stats.losses == sum(stats.held.counts)
            totals["lost, say clients"] += stats.losses
            if client.fine:
                assert (stats.pending, stats.overbooked, stats.active) == (0, 0, 0)
    for line in watcher.census.lines.values():
        totals["lost, says the watcher"] += line.lost
        assert not line.held, options
        assert line.acquired == line.released + line.lost
        assert line.lost <= watcher.really[line.name, "ended"]
        if not options.kinds & {"close", "junk"}:  # counts restart; slots are put by hand
            assert line.acquired == watcher.really[line.name, "put"]
            assert line.overbooked == 0
    if not options.kinds & {"resize", "garbage limit"}:
        assert watcher.told_lost_when_given_back == []
    return totals
