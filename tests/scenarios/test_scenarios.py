"""Every scenario on every stage."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.scenarios.scenarios import SCENARIOS, Stage
from tests.scenarios.stages import AioStage, SimStage, ThreadStage

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

every_scenario = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda one: one.__name__)


@every_scenario
@pytest.mark.parametrize("kind", [ThreadStage, AioStage], ids=["threads", "asyncio"])
def test_on_a_real_etcd(
    etcd: EtcdServer,
    name: str,
    kind: type[ThreadStage] | type[AioStage],
    scenario: Callable[[Stage], None],
) -> None:
    """Threads, and tasks of an event loop, before a real etcd; its history is judged."""
    stage = kind(etcd, name)
    scenario(stage)
    stage.end()


@every_scenario
@pytest.mark.parametrize("seed", range(10))
def test_on_the_simulator(seed: int, scenario: Callable[[Stage], None]) -> None:
    """The simulator, with the delays of ten seeds."""
    stage = SimStage(seed)
    scenario(stage)
    stage.end()
