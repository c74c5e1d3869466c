"""The simulator itself, and the seeds that CI runs through it.

More seeds: ``python -m tests.simulation --seeds 0:20000 -j 8``. A seed that ever failed stays in
`ONCE_FAILED`, with the bug that it found.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from dataclasses import replace
from typing import NamedTuple

import pytest

from etcdsem.core import acquire, inspection, release, wait, watches
from etcdsem.core.commands import Procedure, RangeReply, TxnReply
from etcdsem.core.grants import Grant
from etcdsem.core.keys import Identity
from etcdsem.core.request import AcquireRequest
from etcdsem.core.semaphore import SemaphoreState
from etcdsem.core.session import REREAD
from etcdsem.core.slot_audit import verify
from etcdsem.errors import Evicted
from tests.helpers.slow import sample
from tests.simulation.client import SimClient
from tests.simulation.options import Options
from tests.simulation.outcome import Outcome, report
from tests.simulation.runs import run_seed
from tests.simulation.world import CALM, PREFIX, World

SEEDS = range(100)
CHUNK = 10

QUIET = replace(
    Options.of(0),
    kinds=frozenset(),
    weather=CALM,
    semaphores=1,
    limit=1,
    ttl=10,
    refresh=3.0,
    tries=0.0,
    weights=(1,),
    priorities=(0,),
    eager=0.0,
    patience=(math.inf,),
    long=0.0,
    fault_time=30.0,
    calm_time=0.0,
    hold=0.02,
    idle=0.005,
    break_for_good=False,
    drift=0.0,
)
"""No faults, and everybody waits forever."""

ONCE_FAILED = (132, 374, 426, 2331, 2815, 3520, 4403, 4613, 6223, 14688)
"""Seeds that found bugs beyond `SEEDS`; the track record lists them."""

NON_VACUOUS = (
    "unknown outcomes",
    "late-applied writes",
    "lost requests",
    "lost replies",
    "lost leases",
    "lost delete events",
    "hand-overs under fault",
    "fills",
    "batches",
    "batches of hand-overs",
    "several at once",
    "several in one transaction",
    "leases of a shared object",
    "watch gaps",
    "watch streams cut",
    "renewal streams restarted",
    "compactions",
    "leader changes",
    "pauses",
    "crashes",
    "clock jumps",
    "partitions",
    "cancelled",
    "interrupted calls",
    "evicted holders",
    "resizes",
    "junk keys",
    "closes",
    "shutdowns",
    "times without space",
    "clients broken for good",
    "paused by operators",
    "paused in quiet times",
    "drained",
    "paused for a time",
    "refused by a full queue",
    "pauses that ended by themselves",
    "held for too long",
    "waiters turned away",
    "told that it is evicted",
)
"""What must have happened in all seeds together, or they show nothing."""

_total: Counter[str] = Counter()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("first", sample(range(0, len(SEEDS), CHUNK)))
def test_seeds(first: int) -> None:
    """No promise is broken by any seed."""
    for seed in SEEDS[first : first + CHUNK]:
        outcome = run_seed(seed)
        _total.update(outcome.counters)
        assert outcome.error is None, report(outcome)


@pytest.mark.parametrize("seed", sample(ONCE_FAILED))
def test_seed_that_once_failed(seed: int) -> None:
    """A bug that a seed has found stays fixed."""
    outcome = run_seed(seed)
    assert outcome.error is None, report(outcome)


@pytest.mark.slow
def test_seeds_were_not_empty() -> None:
    """Everything that can happen did happen in the seeds above."""
    if not _total:
        pytest.skip("the seeds were not run here")
    missing = [what for what in NON_VACUOUS if not _total[what]]
    assert not missing


def _trace(outcome: Outcome) -> str:
    return report(outcome, last=10**9)


@pytest.mark.parametrize("seed", sample([3, 4, 11]))
def test_same_seed_gives_same_trace(seed: int) -> None:
    """One integer determines everything: a failing run can be repeated exactly."""
    first, again = run_seed(seed, trace=True), run_seed(seed, trace=True)
    assert _trace(first) == _trace(again)
    assert first.counters == again.counters


def test_other_seed_gives_other_trace() -> None:
    """Another integer gives another run."""
    assert _trace(run_seed(3)) != _trace(run_seed(7))


def test_uncontended_cycle_costs_two_transactions() -> None:
    """An acquire is one transaction and a release is one, without an etcd lease for each."""
    counters = run_seed(1, options=replace(QUIET, clients=1, workers=1)).counters
    grants = counters["grants"]
    assert grants > 500
    assert counters["calls: Transact"] <= 2 * grants + 20
    assert counters["calls: GrantLease"] <= 20


@pytest.mark.parametrize(
    ("clients", "workers"),
    [
        (5, 10),
        pytest.param(5, 2, marks=pytest.mark.slow),
        pytest.param(20, 5, marks=pytest.mark.slow),
    ],
)
def test_contended_cycle_costs_the_same_however_many_wait(clients: int, workers: int) -> None:
    """A hand-over is a join, a pass and one watch event, whatever the number of waiters."""
    options = replace(QUIET, clients=clients, workers=workers)
    counters = run_seed(1, options=options).counters
    grants = counters["grants"]
    assert counters["hand-overs"] > 0.9 * grants
    assert counters["calls: Transact"] < 2.5 * grants
    assert counters["watch events"] < 2.0 * grants + 20 * clients


class Told(NamedTuple):
    """A world with one client, and the result of its acquire."""

    world: World
    client: SimClient
    station: SemaphoreState
    grants: list[Grant]
    errors: list[BaseException]


def acquiring(world: World | None = None, until: float = math.inf) -> Told:
    """A client acquires the only slot; nothing has happened yet. `until`: by the world's clock."""
    world = world or World(1)
    client = SimClient(world, len(world.clients))
    station = client.session.semaphore(PREFIX, "sem")
    if world.etcd.get(station.keys.max_leases) is None:
        world.etcd.put(station.keys.max_leases, b"1")
    told = Told(world, client, station, [], [])
    until += client.offset

    def done(grant: Grant | None, error: BaseException | None) -> None:
        if error is not None:
            told.errors.append(error)
        elif grant is not None:
            told.grants.append(grant)

    request = AcquireRequest(10, 3.0, Identity.of(client.id, None, {}))
    client.start(acquire.acquire(station, request, until, once=False), "worker", done)
    return told


class InLine(NamedTuple):
    """A world in which the only slot is held, and another client waits."""

    world: World
    holder: Told
    waiter: Told

    @property
    def key(self) -> bytes:
        """The waiter's key."""
        keys = self.waiter.station.keys
        (kv,) = self.world.etcd.keys(keys.waiters, keys.waiters_end)
        return kv.key

    def evict(self) -> None:
        """Evict the waiter as an operator, with a separate client."""
        station = SimClient(self.world, 9).session.semaphore(PREFIX, "sem")
        lease = self.key[-16:].decode()
        station.session.env.spawn(_nobody(inspection.evict(station, "alice", lease=lease)), "evict")


def _nobody(evicting: Procedure[object]) -> Procedure[None]:
    yield from evicting


def in_line(until: float = math.inf) -> InLine:
    """One client holds and another has begun to wait."""
    holder = acquiring()
    holder.world.run(1.0)
    waiter = acquiring(holder.world, until)
    holder.world.run(1.5)
    return InLine(holder.world, holder, waiter)


@pytest.mark.parametrize("silent", [False, True])
def test_a_waiter_is_told_that_it_was_evicted(silent: bool) -> None:
    """At once by its watch; if that is silent, when it rereads."""
    line = in_line()
    if silent:
        line.world.etcd.loses = lambda event: True
    line.evict()
    line.world.run(2.5)
    if silent:
        assert not line.waiter.errors
        line.world.run(2.5 + REREAD[1])
    (error,) = line.waiter.errors
    assert isinstance(error, Evicted)
    assert "evicted from the queue by alice at " in str(error)


def test_who_leaves_the_line_is_told_that_it_was_evicted() -> None:
    """Its time is up before any watch has told it: LEAVE finds the grant message."""
    line = in_line(until=3.0)
    line.world.etcd.loses = lambda event: True
    line.evict()
    line.world.run(2.9)
    assert not line.waiter.errors
    line.world.run(3.5)
    (error,) = line.waiter.errors
    assert isinstance(error, Evicted)


def test_a_program_that_knows_no_eviction_joins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """An older one ignores the message, notices that its key is gone, and is served in the end."""
    monkeypatch.setattr(wait, "read_eviction", lambda value: None)
    monkeypatch.setattr(watches, "addressee", lambda keys, message: 0)
    line = in_line()
    former = line.key
    line.evict()
    line.world.run(2.5 + REREAD[1])
    assert line.key != former
    (grant,) = line.holder.grants
    line.holder.client.start(release.release(grant), "release", lambda done, error: None)
    line.world.run(line.world.now + 1.0)
    assert not line.waiter.errors
    assert line.waiter.grants


def test_who_was_put_out_of_line_by_hand_takes_what_is_freed() -> None:
    """Its key was deleted so early that no watch is on it: when a slot is freed it looks, sees room
    and an empty queue, and joins again.
    """
    line = in_line()
    line.world.operate("del", lambda: line.world.etcd.delete(line.key))
    (grant,) = line.holder.grants
    line.holder.client.start(release.release(grant), "release", lambda done, error: None)
    line.world.run(2.0)
    assert line.waiter.grants
    assert not line.waiter.errors


def test_holder_learns_of_an_eviction_that_no_watch_told() -> None:
    """Delete events get lost in several etcd releases; long-held slots are reread."""
    told = acquiring()
    told.world.run(1.0)
    (grant,) = told.grants
    told.world.etcd.loses = lambda event: event.kind == "delete"
    told.world.etcd.delete(told.station.keys.slot(grant.slot))
    told.world.run(2.0)
    assert grant in told.client.session.grants()
    told.world.run(2.0 + REREAD[1])
    assert not told.client.session.grants()
    assert "deleted" in grant.lost_reason


def test_a_stale_read_takes_no_slot_away() -> None:
    """Several etcd releases can answer a read with a state from before the grant."""
    told = acquiring()
    told.world.run(1.0)
    (grant,) = told.grants
    nothing = (RangeReply((), 0),)
    for revision, held in ((grant.token - 1, True), (grant.token, False)):
        reading = verify(told.station)
        next(reading)
        with contextlib.suppress(StopIteration):
            reading.send(TxnReply(True, revision, nothing))
        assert (grant in told.client.session.grants()) is held


def test_old_news_of_a_closing_does_not_end_an_acquire() -> None:
    """A lagging watch reports a closing; the semaphore was registered again long ago."""
    told = acquiring()
    while told.station.limit is None:
        told.world.run(told.world.now + 0.0002)
    assert not told.grants  # its etcd lease is not granted yet
    told.station.closed(told.world.etcd.revision)
    told.world.run(1.0)
    assert not told.errors
    assert [grant.slot for grant in told.grants] == [0]
