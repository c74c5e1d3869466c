from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture
def seconds(request: pytest.FixtureRequest) -> float:
    """How long each program works."""
    given: float = request.config.getoption("--ordinary-seconds")
    return given


@pytest.fixture(autouse=True)
def _collect_afterwards() -> Iterator[None]:
    """What a failed test drops is collected after its report: a finalizer that raises while pytest
    parses the source makes Python 3.11's parser raise SystemError.
    """
    gc.collect()
    gc.disable()
    yield
    gc.enable()
