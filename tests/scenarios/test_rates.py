"""Every scenario of rate limits on every stage."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.scenarios.rate_stages import (
    AioRates,
    AioRatesInMemory,
    AioRatesReal,
    SimRates,
    ThreadRates,
    real_threads,
    threads_in_memory,
)
from tests.scenarios.rates import RATE_SCENARIOS, RateStage

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

every_scenario = pytest.mark.parametrize("scenario", RATE_SCENARIOS, ids=lambda one: one.__name__)

STAGES: dict[str, Callable[[EtcdServer, str], ThreadRates | AioRates]] = {
    "threads": real_threads,
    "asyncio": AioRatesReal,
    "threads-in-memory": threads_in_memory,
    "asyncio-in-memory": AioRatesInMemory,
}


@every_scenario
@pytest.mark.parametrize("kind", STAGES)
def test_rates(
    etcd: EtcdServer, name: str, kind: str, scenario: Callable[[RateStage], None]
) -> None:
    """Threads, and tasks of an event loop, before a real etcd and before the one in memory."""
    stage = STAGES[kind](etcd, name)
    scenario(stage)
    stage.end()


@every_scenario
@pytest.mark.parametrize("seed", range(10))
def test_rates_on_the_simulator(seed: int, scenario: Callable[[RateStage], None]) -> None:
    """The simulator, with the delays of ten seeds."""
    stage = SimRates(seed)
    scenario(stage)
    stage.end()
