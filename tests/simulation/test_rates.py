"""Rate limits in the simulator: windows judged by the world's own clock, and seeded bugs.

More seeds: ``python -m etcdsem.testing --rates --seeds 0:5000 -j 8``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest

from etcdsem.core import rates
from etcdsem.core.commands import Procedure
from etcdsem.core.leases import Keeper, TtlLease
from etcdsem.core.station import Grant
from etcdsem.model import Rate, default_block
from etcdsem.testing.rates import RateOptions, run_rate
from etcdsem.testing.runs import report
from etcdsem.testing.simulator import Violation

SEEDS = range(60)

Patch = pytest.MonkeyPatch


@pytest.mark.parametrize("first", range(0, len(SEEDS), 20))
def test_no_window_holds_more_than_the_limit(first: int) -> None:
    """Crashes, pauses, lost messages, changes of the limit: the windows hold what they may."""
    for seed in SEEDS[first : first + 20]:
        outcome = run_rate(seed)
        assert outcome.error is None, report(outcome)
        assert outcome.counters["starts"] > 0


@pytest.mark.parametrize("faulty", [False, True])
def test_ten_minutes(faulty: bool) -> None:
    """10 minutes: never above the limit; without faults, at least 95 % of it is used."""
    quiet = RateOptions.of(0)
    stormy = next(options for options in map(RateOptions.of, range(1, 99)) if _stormy(options))
    drawn = stormy if faulty else quiet
    faults = replace(drawn.faults, fault_time=300.0 if faulty else 0.0, calm_time=600.0, clients=5)
    options = replace(drawn, faults=faults, rate=Rate(10, 5.0, 1), hungry=True, changes=False)
    outcome = run_rate(drawn.faults.seed, options=options)
    assert outcome.error is None, report(outcome)
    assert outcome.counters["use, in tenths of a percent"] >= 950


def _stormy(options: RateOptions) -> bool:
    return {"crash", "pause", "weather", "shutdown"} <= options.faults.kinds


def test_ten_thousand_a_minute_cost_a_few_hundred_transactions() -> None:
    """Blocks: 10,000 starts in a minute for less than 1,000 transactions."""
    rate = Rate(10000, 60.0, default_block(10000))
    drawn = RateOptions.of(0)
    faults = replace(drawn.faults, fault_time=0.0, calm_time=125.0, clients=3, workers=4)
    faults = replace(faults, ttl=rates.lease_ttl(rate))
    outcome = run_rate(0, options=replace(drawn, faults=faults, rate=rate))
    assert outcome.error is None, report(outcome)
    minutes = outcome.counters["starts"] / 10000
    assert minutes >= 2.0
    assert outcome.counters["calls: Transact"] / minutes < 1000


# ---------------------------------------------------------------- seeded bugs


def given_back_at_once(patch: Patch) -> None:
    """A slot is given back when the start is over, as that of a semaphore is."""
    patch.setattr(rates.Block, "due", property(lambda block: block.last))


def without_the_deadline_check(patch: Patch) -> None:
    """A start is handed out with whatever is left of its lease."""

    def freshen(keeper: Keeper, lease: TtlLease, need: float, until: float) -> Procedure[bool]:
        return lease.valid(keeper.env.now())
        yield

    patch.setattr(rates, "freshen", freshen)
    patch.setattr(
        rates.Block, "usable", lambda block, station, now: block.left > 0 and now <= block.closes
    )


def closing_gives_everything_back(patch: Patch) -> None:
    """A client that is closed ends the leases of starts, too."""

    def leave(grant: Grant) -> None:
        grant.state = "released"
        grant.detach()
        grant.station.session.keeper.settle_later(grant.lease)

    patch.setattr(Grant, "leave", leave)


def a_block_is_good_for_ever(patch: Patch) -> None:
    """The starts of a block are used as long as there are any, without a look at its lease."""
    patch.setattr(rates.Block, "usable", lambda block, station, now: block.left > 0)
    patch.setattr(rates.Block, "due", property(lambda block: block.grant.since + block.need))


def no_drift(patch: Patch) -> None:
    """Every clock runs as the referee's does."""
    patch.setattr(rates, "need", lambda period: period * (1.0 - rates.DRIFT))


BUGS: list[tuple[Callable[[Patch], None], range]] = [
    (given_back_at_once, range(40)),
    (without_the_deadline_check, range(200)),
    (closing_gives_everything_back, range(200)),
    (a_block_is_good_for_ever, range(200)),
    (no_drift, range(40)),
]


@pytest.mark.parametrize(("bug", "seeds"), BUGS, ids=[bug.__name__ for bug, _ in BUGS])
def test_seeded_bugs_are_found(
    bug: Callable[[Patch], None], seeds: range, monkeypatch: Patch
) -> None:
    """Each is found by the windows."""
    bug(monkeypatch)
    for seed in seeds:
        outcome = run_rate(seed)
        if isinstance(outcome.error, Violation) and "starts within" in str(outcome.error):
            print(f"{bug.__name__} found by seed {seed}: {outcome.error}")
            return
    pytest.fail(f"no seed of {seeds} finds {bug.__name__}")


# ---------------------------------------------------------------- the arithmetic


def test_a_lease_lasts_for_what_a_start_needs() -> None:
    """For any period: the TTL covers a start and its block, and not much more."""
    rng = Random(1)
    for _ in range(500):
        period = math.exp(rng.uniform(math.log(0.01), math.log(100_000.0)))
        rate = Rate(100, period, rng.choice((1, 10)))
        ttl = rates.lease_ttl(rate)
        lease = TtlLease(1, ttl, float(ttl), 0.0)
        assert lease.deadline >= rates.need(period) + rates.spending(rate)
        assert ttl <= max(rates.MIN_TTL, 1.08 * period + 3)


def test_default_blocks() -> None:
    """One at a time up to 256 starts; above that never more than 256 slots."""
    assert [default_block(n) for n in (1, 256, 257, 10000)] == [1, 1, 2, 40]
