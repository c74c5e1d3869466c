"""Runs of semaphores whose names expire: ``python -m tests.simulation.expiry --seeds 0:200``.

Callers come, stay away for longer than the names stay without users, and come back, with faults and
then without. The checks of any semaphore (`checks`) hold, and besides them:

1. A name leaves etcd only if no client without a fault holds or waits, and none has acquired for
   nearly as long as the name stays.
2. Nobody learns of that: whoever comes next registers the name again. A waiter or holder is never
   told that the semaphore was closed.
3. At the end, some time after the last use, no key is left: no limit, no mark.

In some runs etcd ends the lease of a name in use, as after a long outage: then only 2 and 3 are
judged, and that nobody holds a slot too many.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import TYPE_CHECKING

from etcdsem.core import acquire, multi
from etcdsem.core.commands import Procedure
from etcdsem.core.name_lease import PATIENCE
from etcdsem.core.registration import Registration, register, registered
from tests.simulation.options import Options
from tests.simulation.outcome import Outcome, play, report
from tests.simulation.runs import Run
from tests.simulation.world import CALM, PREFIX

if TYPE_CHECKING:
    from etcdsem.core.request import AcquireRequest
    from etcdsem.core.semaphore import SemaphoreState
    from etcdsem.testing.history import Revision
    from tests.simulation.client import SimClient

EXPIRES = 20
"""Seconds for which the names stay without users."""

SURELY = EXPIRES - EXPIRES / 4 - PATIENCE - 1.0
"""Seconds after its last use for which a name is there in any case."""

HARMLESS = ("crash", "cut streams", "compaction", "cancel", "shutdown", "new leader", "evict")
"""Faults that keep no client from refreshing a name."""


@dataclass(frozen=True)
class ExpiryOptions:
    """One run, as drawn from its seed."""

    faults: Options
    ends_early: bool

    @classmethod
    def of(cls, seed: int) -> ExpiryOptions:
        """Draw them from a seed."""
        rng = Random(f"what expires, {seed}")
        kinds = frozenset(kind for kind in HARMLESS if rng.random() < 0.4)
        weights = rng.choice(((1,), (1,), (1, 1, 2)))
        faults = replace(
            Options.of(seed),
            kinds=kinds,
            clients=rng.choice((1, 2, 4)),
            workers=rng.choice((1, 2)),
            semaphores=rng.choice((1, 2)),
            limit=rng.choice((1, 2)),
            hold=rng.choice((0.5, 5.0)),
            idle=rng.choice((2.0, EXPIRES, 2 * EXPIRES)),
            long=rng.choice((0.0, 0.3)),
            every=3.0,
            fault_time=120.0,
            calm_time=60.0,
            break_for_good=False,
            weather=CALM,
            max_hold=None,
            weights=weights,
            several=0.0,
            priorities=rng.choice(((0,), (0, 0, 5))),
            eager=0.0,
            linger=rng.choice((0.0, 0.0, 0.5)),
            shared=False,
        )
        if max(weights) > faults.limit:
            faults = replace(faults, limit=max(weights))
        return cls(faults, ends_early=rng.random() < 0.3)


class ExpiryRun(Run):
    """One world in which names expire."""

    def __init__(self, chosen: ExpiryOptions, *, trace: bool = False) -> None:
        super().__init__(chosen.faults, trace=trace)
        self.chosen = chosen
        self.known: dict[SemaphoreState, Registration] = {}
        self.uses: dict[str, list[tuple[float, SimClient]]] = {name: [] for name in self.checkers}
        self.nemesis.let_in = lambda: None  # type: ignore[method-assign]
        for checker in self.checkers.values():
            key = checker.keys.max_leases
            self.world.operate("no name yet", partial(self.world.etcd.delete, key))
        self.world.etcd.observers.append(self._judge)
        if chosen.ends_early:
            self.world.after(self.world.rng.random() * EXPIRES, self._end_early)

    def _taking(
        self,
        stations: list[SemaphoreState],
        request: AcquireRequest,
        until: float,
        *,
        once: bool,
    ) -> Procedure[multi.Taken]:
        (station,) = stations
        if station not in self.known:
            known = Registration(self.options.limit, EXPIRES)
            known.lease = (yield from register(station, self.options.limit, EXPIRES)).lease
            self.known[station] = known
        grant = yield from registered(
            [(station, self.known[station])],
            lambda: acquire.acquire(station, request, until, once=once),
        )
        if grant is None:
            return multi.Taken([], multi.NoRoom(multi.SemaphoreRequest(station, request)))
        client = next(one for one in self.world.clients if one.session is station.session)
        self.uses[station.name] = [(self.world.now, client), *self.uses[station.name][:20]]
        return multi.Taken([grant])

    def _end_early(self) -> None:
        """End the lease of a name."""
        world = self.world
        if not self.nemesis.stopped:
            world.after(world.rng.expovariate(1 / EXPIRES), self._end_early)
        stored = world.etcd.get(self.nemesis._checker().keys.max_leases)
        if stored is not None and stored.lease:
            world.counters["names that end early"] += 1
            world.operate("end a name", lambda: world.etcd.revoke(stored.lease))

    def _judge(self, revision: Revision) -> None:
        for event in revision.events:
            for name, checker in self.checkers.items():
                if event.kind == "delete" and event.kv.key == checker.keys.max_leases:
                    self._judge_end(name)

    def _judge_end(self, name: str) -> None:
        world = self.world
        if world.by_operator:
            return
        world.counters["names that expired"] += 1
        fine = [one for one in world.clients if one.fine and not one.session.closed]
        for client in fine:
            station = client.session.semaphores.get((PREFIX, name))
            if station is not None and (station.grants or station.waiters):
                world.fail(f"{name} has expired, and client {client.number} holds or waits")
        for moment, client in self.uses[name]:
            if client in fine and world.now < moment + SURELY:
                world.fail(f"{name} has expired {world.now - moment:.1f} s after its use")

    def _look_for(self, seconds: float) -> None:
        super()._look_for(1000.0 if self.stopping else seconds)  # somebody may stay away for long

    def go(self) -> None:
        """Run to the end; raises the first violation."""
        super().go()
        world = self.world
        if world.counters["told that it is closed"]:
            raise AssertionError("somebody was told that a name that had expired was closed")
        world.run(world.now + 2 * EXPIRES)
        left = [kv.key for kv in world.etcd.keys(f"{PREFIX}/".encode(), f"{PREFIX}0".encode())]
        if left:
            raise AssertionError(f"at the end there is still {left}")


def run_expiry(seed: int, *, trace: bool = False) -> Outcome:
    """Run one seed. Every run of the same seed is exactly the same."""
    chosen = ExpiryOptions.of(seed)
    return play(chosen.faults, lambda: ExpiryRun(chosen, trace=trace))


def main() -> None:
    """Run many seeds, and report those that fail."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0:100", metavar="FIRST:END")
    first, end = map(int, parser.parse_args().seeds.split(":"))
    total, failed = dict.fromkeys(("names that expired", "names that end early", "grants"), 0), 0
    for seed in range(first, end):
        outcome = run_expiry(seed)
        for what in total:
            total[what] += outcome.counters[what]
        if outcome.error is not None:
            failed += 1
            print(report(outcome))
    print(f"{end - first} seeds, {failed} failed; {total}")
    raise SystemExit(failed > 0)


if __name__ == "__main__":
    main()
