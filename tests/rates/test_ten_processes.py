"""Ten processes at one rate limit, kills among them, judged by a referee's own clock.

``--rate-seconds 120`` runs it for two minutes.
"""

from __future__ import annotations

import pytest

from etcdsem.model import Rate
from etcdsem.server import EtcdServer
from tests.rates.use import measure


def test_no_window_holds_more_and_the_rate_is_used(
    etcd: EtcdServer, name: str, request: pytest.FixtureRequest
) -> None:
    """Never above the limit; at least 95 % of it used, though a process is killed now and then."""
    seconds = request.config.getoption("--rate-seconds")
    rate = Rate(40, 5.0, 1)
    seen = measure(etcd, name, rate, seconds, processes=10, kill_every=seconds / 3)
    assert seen.killed >= 2
    assert seen.most <= rate.starts
    assert seen.use >= 0.95, seen
