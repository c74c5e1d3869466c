"""The referee notices too many starts in a period: alone, and in a run with a seeded fault."""

from __future__ import annotations

import random

import pytest

from etcdsem.model import Rate
from tests.chaos import worker
from tests.chaos.clusters import on_this_machine
from tests.chaos.conductor import RATES, Chaos
from tests.chaos.elections import StaleLeader
from tests.chaos.referee import Referee
from tests.chaos.starts import Start, too_many, unrecorded
from tests.helpers.history import Change
from tests.record import BROKEN

LIMIT = Rate(3, 2.0, 1)


def start(low: float, late: float = 0.001, client: str = "c") -> Start:
    """A start that was reported a moment after it was handed out."""
    return Start("rate", "w", client, low, low + late)


@pytest.mark.parametrize(
    ("starts", "found"),
    [
        ([start(0.0), start(0.1), start(0.2), start(2.01)], 0),
        ([start(0.0), start(0.1), start(0.2), start(1.99)], 1),
        ([start(0.0), start(0.1), start(0.2), start(1.9995)], 0),  # reported after the period
        # The second was suspended, so its start may have been long before its report.
        ([start(0.0), start(0.1, late=2.05), start(0.2), start(2.01), start(2.02)], 0),
        ([start(0.0), start(0.1, late=1.8), start(0.2), start(1.5)], 1),
        ([start(5.0), start(1.0), start(5.1), start(5.2), start(5.3)], 1),  # in any order
    ],
)
def test_too_many_for_certain(starts: list[Start], found: int) -> None:
    """More than the limit within one period, whatever happened between start and report."""
    assert len(too_many(starts, LIMIT)) == found
    referee = Referee()
    with referee:
        referee.starts["rate"] = starts
        assert len(referee.judge_starts("rate", LIMIT)) == found


def test_a_stale_leader_is_no_excuse() -> None:
    """Etcd ends leases early then; a rate holds nevertheless."""
    with Referee() as referee:
        referee.starts["rate"] = [start(50.0 + 0.1 * number) for number in range(4)]
        referee.stale_leaders.append(StaleLeader("m1", 40.0, 50.0))
        assert len(referee.judge_starts("rate", LIMIT)) == 1


def test_a_start_that_etcd_has_not_granted() -> None:
    """Only as many starts are allowed as blocks were put for a client."""
    value = b'{"client":"c"}'
    granted = [Change(7, "put", "/etcdsem/rate/leases/00000", value, 7, 1)]
    assert not unrecorded([start(1.0)], LIMIT, granted)
    assert not unrecorded([start(1.0), start(1.1)], Rate(4, 2.0, 2), granted)
    assert len(unrecorded([start(1.0, client="d")], LIMIT, granted)) == 1
    assert len(unrecorded([start(1.0), start(1.1)], LIMIT, granted)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("control", [worker.TOO_EARLY, worker.LAWLESS])
def test_a_fault_in_the_workers_is_found(etcd_binary: str, control: str) -> None:
    """Negative controls on a real cluster: slots are given back after 0.6 periods, or starts are
    taken without asking.
    """
    with on_this_machine(etcd_binary) as cluster:
        seed = random.SystemRandom().randrange(1000)
        report = Chaos(cluster, seconds=6.0, seed=seed, control=control).run()
    broken = [one for one in report.wrong if BROKEN in one]
    assert any(f"{name}: " in one and "starts within" in one for one in broken for name in RATES)
    if control == worker.LAWLESS:
        assert any("was granted" in one for one in broken)
