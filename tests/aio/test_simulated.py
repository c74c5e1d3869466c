"""The asyncio driver obeys the core's contract: simulated faults, judged by the same checkers."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections import Counter

import pytest

from tests.aio.simulated import AioRun, options

SEEDS = range(8)


def test_seeds(caplog: pytest.LogCaptureFixture) -> None:
    """No violation on any seed; and everything that should go wrong does."""
    caplog.set_level(logging.CRITICAL + 1, "etcdsem")
    seen: Counter[str] = Counter()
    for seed in SEEDS:
        run = AioRun(options(seed))
        try:
            run.go()
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        finally:
            run.world.dispose()
        seen += run.world.counters
    for what in (
        "grants",
        "hand-overs",
        "unknown outcomes",
        "interrupted calls",
        "cancelled",
        "cancelled again",
        "lost replies",
        "late requests",
        "shutdowns",
        "watch streams cut",
        "lost leases",
    ):
        assert seen[what] > 0, f"never happened: {what}"


@pytest.mark.parametrize(
    ("driver", "seeds"),
    [("take_unknown_for_refused", "14 23 26"), ("leave_the_procedure", "5 7 10")],
)
def test_a_wrong_driver_is_found(driver: str, seeds: str) -> None:
    """Drivers with a bug violate something on one of a few seeds. In a process of its own, for
    what they leave about.
    """
    command = [sys.executable, "-m", "tests.aio.wrong_drivers", driver, *seeds.split()]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=120
    )
    assert done.stdout.startswith("found: "), done.stdout
