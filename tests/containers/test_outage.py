"""An outage of etcd costs a Job's pods time, and not the Job."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.containers.outage import Plan, problems, run
from tests.helpers.docker_etcd import engine_or_skip


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_outage_in_the_middle_of_a_job(tmp_path: Path) -> None:
    """Longer than leases last: holders end with 70 and are tried again while etcd is still away;
    they and the waiters wait for it.
    """
    engine_or_skip()
    plan = Plan(pods=5, limit=2, seconds=12, work=8, lease_timeout="9s", back_off=1)
    outcome = run(plan, tmp_path)
    assert problems(plan, outcome) == []
    assert 1 <= outcome.codes.count(70) <= plan.limit, outcome
