from __future__ import annotations

import pytest


@pytest.fixture
def seconds(request: pytest.FixtureRequest) -> float:
    """How long each program works."""
    given: float = request.config.getoption("--ordinary-seconds")
    return given
