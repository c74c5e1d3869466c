"""Rate limits in the simulator: windows judged by the world's own clock, and seeded bugs.

More seeds: ``python -m tests.simulation --rates --seeds 0:5000 -j 8``.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from random import Random

import pytest

from etcdsem.core import permits, rates, release, transactions
from etcdsem.core.commands import Compare, Procedure, Txn
from etcdsem.core.grants import Grant
from etcdsem.core.keys import Keys, Limit, permit
from etcdsem.core.lease_manager import LeaseManager
from etcdsem.core.leases import TtlLease
from etcdsem.core.semaphore import SemaphoreState
from etcdsem.core.transactions import HeldSlots, conditions
from etcdsem.errors import EtcdUnavailable
from etcdsem.model import Rate
from etcdsem.validation import default_block
from tests.helpers.slow import sample
from tests.scenarios.rate_stages import SimRates
from tests.simulation.outcome import report
from tests.simulation.rates import OPEN, RateOptions, run_rate
from tests.simulation.world import CALM, Violation

SEEDS = range(60)
CHUNK = 10

SEEDS_WITH_COSTS = (181, 12, 34)
"""Some more, in which starts cost more than one permit."""

Patch = pytest.MonkeyPatch


@pytest.mark.parametrize("first", sample(range(0, 40, CHUNK)))
def test_no_window_holds_more_than_the_limit(first: int) -> None:
    """Crashes, pauses, lost messages, clock jumps, changes of limit, period and block, evictions,
    junk, closings: no window exceeds what it may hold, and if everybody wants starts, at least 95 %
    is used once there are no faults.
    """
    for seed in SEEDS[first : first + CHUNK]:
        outcome = run_rate(seed)
        assert outcome.error is None, report(outcome)
        assert outcome.counters["starts"] > 0


@pytest.mark.parametrize("seed", sample(SEEDS_WITH_COSTS))
def test_costs(seed: int) -> None:
    """The same with starts of up to the whole limit."""
    outcome = run_rate(seed)
    assert outcome.error is None, report(outcome)
    assert outcome.options.seed == seed
    assert RateOptions.of(seed).cost > 1
    assert outcome.counters["starts"] > 200


@pytest.mark.parametrize("seed", sample((4, 42, 75)))
def test_two_limits_at_once(seed: int) -> None:
    """Starts that take permits of two rate limits: no window of either holds more, and callers do
    not wait for each other.
    """
    outcome = run_rate(seed)
    assert outcome.error is None, report(outcome)
    assert RateOptions.of(seed).second is not None
    assert outcome.counters["starts"] > 250


@pytest.mark.parametrize("faulty", sample([False, True]))
def test_ten_minutes(faulty: bool) -> None:
    """Ten minutes: never above the limit; without faults, at least 95 % of it is used."""
    quiet = RateOptions.of(0)
    stormy = next(options for options in map(RateOptions.of, range(1, 99)) if _stormy(options))
    drawn = stormy if faulty else quiet
    faults = replace(drawn.faults, fault_time=300.0 if faulty else 0.0, calm_time=600.0, clients=5)
    still = replace(drawn, changes=False, reshapes=False, hungry=True, cost=1, second=None)
    options = replace(still, faults=faults, rate=Rate(10, 5.0, 1))
    outcome = run_rate(drawn.faults.seed, options=options)
    assert outcome.error is None, report(outcome)
    assert outcome.counters["use, in tenths of a percent"] >= 950


def test_the_seeds_are_not_empty() -> None:
    """The situations that the seeds must judge occur in them."""
    options = [RateOptions.of(seed) for seed in SEEDS]
    assert sum(one.reshapes for one in options) >= 5
    assert sum(one.hungry and bool(one.faults.kinds) for one in options) >= 5
    for kind in ("clock jump", "evict", "delete key", "junk", "close", "garbage limit", "crash"):
        assert sum(kind in one.faults.kinds for one in options) >= 5, kind
    assert sum(one.faults.drift == permit.DRIFT and one.rate.period >= 30 for one in options) >= 2


def _stormy(options: RateOptions) -> bool:
    return {"crash", "pause", "weather", "shutdown"} <= options.faults.kinds


@pytest.mark.slow
def test_ten_thousand_a_minute_cost_a_few_hundred_transactions() -> None:
    """Blocks: 10,000 starts in a minute cost less than 1,000 transactions."""
    rate = Rate(10000, 60.0, default_block(10000))
    drawn = RateOptions.of(0)
    faults = replace(drawn.faults, fault_time=0.0, calm_time=63.0, clients=3, workers=4)
    faults = replace(faults, ttl=rates.lease_ttl(rate))
    outcome = run_rate(0, options=replace(drawn, faults=faults, rate=rate, cost=1, second=None))
    assert outcome.error is None, report(outcome)
    minutes = outcome.counters["starts"] / 10000
    assert minutes >= 1.0
    assert outcome.counters["calls: Transact"] / minutes < 1000


def used_up(stage: SimRates) -> None:
    """Client 0 has known the limit for a while, and has no open block."""
    stage.resize(Rate(400, 3600.0, 10))
    for _ in range(10):
        assert stage.fate(stage.begin()) == "started"
    stage.a_moment()


@pytest.mark.parametrize("timeout", [0.00001, 0.0001, 0.001])
def test_a_timeout_shorter_than_a_request_is_no_etcd_that_is_away(timeout: float) -> None:
    """A caller whose time is up while its client still asks etcd waits for the answer."""
    for seed in range(10):
        stage = SimRates(seed)
        used_up(stage)
        first, second = stage.begin(timeout=5.0), stage.begin(timeout=timeout)
        assert stage.fate(first) == "started"
        assert stage.fate(second) in ("started", "none")
        stage.end()


def test_who_waits_behind_one_whom_etcd_does_not_answer_is_told() -> None:
    """The result is an error then and not "none", however short the timeout."""
    stage = SimRates(0)
    used_up(stage)
    stage.clients[0].link.up_until = 1000.0
    first, second = stage.begin(timeout=5.0), stage.begin(timeout=0.1)
    for asked in (second, first):
        with pytest.raises(EtcdUnavailable):
            stage.fate(asked)
    stage.world.dispose()


# ---------------------------------------------------------------- seeded bugs


def given_back_at_once(patch: Patch) -> None:
    """A slot is given back when the start is over, like that of a semaphore."""
    patch.setattr(permits.Block, "due", property(lambda block: block.last))


def _never_mind_what_is_left(patch: Patch) -> None:
    """Any valid lease is accepted for a start, however little of it is left."""

    def freshen(
        keeper: LeaseManager, lease: TtlLease, need: float, until: float
    ) -> Procedure[bool]:
        return lease.valid(keeper.env.now())
        yield

    def usable(block: permits.Block, station: SemaphoreState, now: float) -> bool:
        limit = station.limit
        holds = limit is not None and limit.revision == block.revision and block.grant.valid(now)
        return block.left > 0 and holds and now <= block.closes and not station.session.closed

    patch.setattr(permits.Block, "usable", usable)
    patch.setattr(rates, "freshen", freshen)


def records_are_over_at_once(patch: Patch) -> None:
    """A slot is free as soon as its lease has ended, whatever its permit's record says."""
    patch.setattr(permit.PermitRecord, "left", lambda record, wall: 0.0)


def whoever_joins_ignores_records(patch: Patch) -> None:
    """A slot without a key in etcd is taken, whatever its permit's record says."""

    def free_slot(keys: Keys, _limit: Limit, slot: int, _over: object) -> tuple[Compare, ...]:
        return (conditions.slot_is_free(keys, slot),)

    for name in ("join", "batch"):
        module = sys.modules[f"etcdsem.core.transactions.{name}"]
        patch.setattr(module, "free_slot", free_slot)


def no_record_for_what_is_handed_over(patch: Patch) -> None:
    """Only who takes a slot by itself puts the record of a permit."""

    def record(station: SemaphoreState, grant: Grant, limit: Limit) -> Procedure[float]:
        return station.session.env.now()
        yield

    patch.setattr(rates, "_record", record)


def only_the_first_slot_is_recorded(patch: Patch) -> None:
    """Of a start that was granted several slots in the queue, one has a record."""
    right = transactions.record_permit

    def record(keys: Keys, limit: Limit, mine: HeldSlots, client: str, wall: float) -> Txn:
        return right(keys, limit, mine._replace(more=()), client, wall)

    patch.setattr(transactions, "record_permit", record)


def settling_gives_back_a_used_slot(patch: Patch) -> None:
    """A slot goes to the next waiter although one of its permits was used."""
    right = release.release_some

    def release_some(grant: Grant, count: int) -> Procedure[bool]:
        return right(grant, min(count + 1, len(grant.slots) - 1))

    patch.setattr(permits, "release_some", release_some)


def handed_out_on_a_short_lease(patch: Patch) -> None:
    """Whether the lease of a start has a period left is not checked before it is handed out."""
    records_are_over_at_once(patch)  # else its record would hide it
    _never_mind_what_is_left(patch)


def kept_alive_while_its_owner_lives(patch: Patch) -> None:
    """The lease of a start is as short as any, and refreshed until the period is over; so it lasts
    only as long as its owner lives.
    """
    records_are_over_at_once(patch)
    right = permits.PermitPool._use

    def use(pool: permits.PermitPool, block: permits.Block, count: int, now: float) -> None:
        right(pool, block, count, now)
        block.grant.lease.paused = False

    _never_mind_what_is_left(patch)
    patch.setattr(permits.PermitPool, "_use", use)
    patch.setattr(rates, "margin", lambda ttl: -math.inf)  # accept any lease
    patch.setattr(rates, "lease_ttl", lambda rate: rates.MIN_TTL)


def closing_gives_everything_back(patch: Patch) -> None:
    """A client that is closed ends the leases of starts, too."""
    records_are_over_at_once(patch)

    def leave(grant: Grant) -> None:
        grant.state = "released"
        grant.detach()
        grant.semaphore.session.leases.revoke_later(grant.lease)

    patch.setattr(Grant, "leave", leave)


def a_block_is_good_for_ever(patch: Patch) -> None:
    """The starts of a block are used while its limit is in force, without checking the time."""

    def usable(block: permits.Block, station: SemaphoreState, now: float) -> bool:
        limit = station.limit
        holds = limit is not None and limit.revision == block.revision
        return block.left > 0 and holds and not station.session.closed

    patch.setattr(permits.Block, "usable", usable)


def a_block_is_due_from_its_first_start(patch: Patch) -> None:
    """A block is given back one period after it was opened, whenever its starts were made."""
    patch.setattr(permits.Block, "due", property(lambda block: block.grant.since + block.need))


def a_block_outlives_its_limit(patch: Patch) -> None:
    """Whether a block's limit is still in force is not checked."""
    right = permits.Block.usable

    def usable(block: permits.Block, station: SemaphoreState, now: float) -> bool:
        if station.limit is not None and block.left:
            block.revision, kept = station.limit.revision, block.revision
            try:
                return right(block, station, now)
            finally:
                block.revision = kept
        return right(block, station, now)

    patch.setattr(permits.Block, "usable", usable)
    patch.setattr(permits.Block, "_shut", lambda block: None)


def an_open_block_hears_nothing(patch: Patch) -> None:
    """The rest of a block is used, whatever has happened to the limit or its slot."""
    patch.setattr(permits.Block, "listen", lambda block, now: math.inf)


def no_margin_for_drift(patch: Patch) -> None:
    """Every clock is assumed to run at the same rate as etcd's."""
    for module in (permits, rates):
        patch.setattr(module, "need", lambda period: period + permit.GRAIN)


BUGS: list[tuple[Callable[[Patch], None], Iterable[int]]] = [
    (given_back_at_once, SEEDS),
    (records_are_over_at_once, SEEDS),
    (whoever_joins_ignores_records, SEEDS[46:]),
    (no_record_for_what_is_handed_over, SEEDS),
    (only_the_first_slot_is_recorded, SEEDS_WITH_COSTS),
    (settling_gives_back_a_used_slot, SEEDS_WITH_COSTS),
    (handed_out_on_a_short_lease, SEEDS),
    (kept_alive_while_its_owner_lives, SEEDS),
    (closing_gives_everything_back, SEEDS),
    (no_margin_for_drift, SEEDS),
    (a_block_is_good_for_ever, SEEDS),
    (a_block_is_due_from_its_first_start, SEEDS),
    (a_block_outlives_its_limit, SEEDS[OPEN::10]),
    (an_open_block_hears_nothing, SEEDS[OPEN::10]),
]
"""Each removes one guard, and is found within the seeds in which nothing is found without it.
Which one finds it first: ``python -m pytest -rP tests/simulation/test_rates.py | grep "found by"``.
"""


RECORDS = (
    records_are_over_at_once,
    whoever_joins_ignores_records,
    no_record_for_what_is_handed_over,
    only_the_first_slot_is_recorded,
)
"""Bugs that matter if leases end early. The others must be found without that."""

LATE = {
    "a_block_is_good_for_ever",
    "whoever_joins_ignores_records",
    "closing_gives_everything_back",
    "no_margin_for_drift",
}
"""Bugs that take longest to find: tested with `--all`."""


@pytest.mark.parametrize(
    ("bug", "seeds"),
    [pytest.param(*one, marks=pytest.mark.slow if one[0].__name__ in LATE else ()) for one in BUGS],
    ids=[bug.__name__ for bug, _ in BUGS],
)
def test_seeded_bugs_are_found(
    bug: Callable[[Patch], None], seeds: Iterable[int], monkeypatch: Patch
) -> None:
    """Each bug is found by the windows."""
    bug(monkeypatch)
    for seed in seeds:
        options = RateOptions.of(seed)
        error = run_rate(
            seed, options=replace(options, early=options.early and bug in RECORDS)
        ).error
        if isinstance(error, Violation) and re.search("start.* (within|under)", str(error)):
            print(f"{bug.__name__} found by seed {seed}: {error}")
            return
    pytest.fail(f"no seed of {seeds} finds {bug.__name__}")


def test_refreshing_holds_until_its_owner_is_gone(monkeypatch: Patch) -> None:
    """The bug that matters on crashes is found with crashes, and not without them."""
    kept_alive_while_its_owner_lives(monkeypatch)
    assert _violations(frozenset()) == 0
    assert _violations(frozenset({"crash"})) > 0


def _violations(kinds: frozenset[str]) -> int:
    """How many of some runs, in which everybody wants starts, break the promise."""
    found = 0
    for seed in range(1, 6):
        drawn = RateOptions.of(seed)
        faults = replace(drawn.faults, kinds=kinds, weather=CALM, every=1.0, fault_time=60.0)
        faults = replace(faults, patience=(math.inf,), tries=0.0)
        still = replace(
            drawn, changes=False, reshapes=False, hungry=True, early=False, cost=1, second=None
        )
        error = run_rate(seed, options=replace(still, faults=faults, rate=Rate(5, 10.0, 1))).error
        assert error is None or "starts within" in str(error), error
        found += error is not None
    return found


# ---------------------------------------------------------------- the arithmetic


def test_a_lease_lasts_for_what_a_start_needs() -> None:
    """For any period: the TTL covers a start and its block, and little more."""
    rng = Random(1)
    for _ in range(500):
        period = math.exp(rng.uniform(math.log(0.01), math.log(100_000.0)))
        rate = Rate(100, period, rng.choice((1, 10)))
        ttl = rates.lease_ttl(rate)
        lease = TtlLease(1, ttl, float(ttl), 0.0)
        assert lease.deadline >= permit.need(period) + permit.spending(rate)
        assert ttl <= max(rates.MIN_TTL, 1.08 * period + 3)


def test_default_blocks() -> None:
    """One start per block up to 256 starts; above that never more than 256 slots."""
    assert [default_block(n) for n in (1, 256, 257, 10000)] == [1, 1, 2, 40]
