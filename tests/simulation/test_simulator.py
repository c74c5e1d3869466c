"""The simulator itself, and the seeds that CI runs through it.

More seeds: ``python -m etcdsem.testing --seeds 0:20000 -j 8``. A seed that ever failed stays in
`ONCE_FAILED`, with the bug that it found.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest

from etcdsem.testing.faults import Options
from etcdsem.testing.runs import Outcome, report, run_seed
from etcdsem.testing.simulator import CALM

SEEDS = range(500)
CHUNK = 50

QUIET = replace(
    Options.of(0),
    kinds=frozenset(),
    weather=CALM,
    semaphores=1,
    limit=1,
    ttl=10,
    refresh=3.0,
    tries=0.0,
    patience=(math.inf,),
    long=0.0,
    fault_time=30.0,
    calm_time=0.0,
    hold=0.02,
    idle=0.005,
    break_for_good=False,
    drift=0.0,
)
"""No faults, and everybody waits for ever."""

NON_VACUOUS = (
    "unknown outcomes",
    "late-applied writes",
    "lost requests",
    "lost replies",
    "lost leases",
    "lost delete events",
    "hand-overs under fault",
    "fills",
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
)
"""What must have happened in the seeds together, or they show nothing."""

_total: Counter[str] = Counter()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("first", range(0, len(SEEDS), CHUNK))
def test_seeds(first: int) -> None:
    """No promise is broken by any seed."""
    for seed in SEEDS[first : first + CHUNK]:
        outcome = run_seed(seed)
        _total.update(outcome.counters)
        assert outcome.error is None, report(outcome)


def test_seeds_were_not_empty() -> None:
    """Everything that can happen did happen in the seeds above."""
    if not _total:
        pytest.skip("the seeds were not run here")
    missing = [what for what in NON_VACUOUS if not _total[what]]
    assert not missing


def _trace(outcome: Outcome) -> str:
    return report(outcome, last=10**9)


@pytest.mark.parametrize("seed", [3, 4, 11])
def test_same_seed_gives_same_trace(seed: int) -> None:
    """One integer decides everything: a failing run can be repeated to the letter."""
    first, again = run_seed(seed, trace=True), run_seed(seed, trace=True)
    assert _trace(first) == _trace(again)
    assert first.counters == again.counters


def test_other_seed_gives_other_trace() -> None:
    """And another integer decides otherwise."""
    assert _trace(run_seed(3)) != _trace(run_seed(4))


def test_uncontended_cycle_costs_two_transactions() -> None:
    """An acquire is one transaction, a release is one; with no etcd lease asked for each."""
    counters = run_seed(1, options=replace(QUIET, clients=1, workers=1)).counters
    grants = counters["grants"]
    assert grants > 500
    assert counters["calls: Transact"] <= 2 * grants + 20
    assert counters["calls: GrantLease"] <= 20


@pytest.mark.parametrize(("clients", "workers"), [(5, 2), (5, 10), (20, 5)])
def test_contended_cycle_costs_the_same_however_many_wait(clients: int, workers: int) -> None:
    """A hand-over is a join, a pass and one watch event, whatever the number of waiters."""
    options = replace(QUIET, clients=clients, workers=workers)
    counters = run_seed(1, options=options).counters
    grants = counters["grants"]
    assert counters["hand-overs"] > 0.9 * grants
    assert counters["calls: Transact"] < 2.5 * grants
    assert counters["watch events"] < 2.0 * grants + 20 * clients
