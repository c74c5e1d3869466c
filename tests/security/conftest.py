"""The etcd that the module-wide servers run."""

from __future__ import annotations

import pytest

from tests.conftest import chosen


@pytest.fixture(scope="session")
def module_binary(request: pytest.FixtureRequest) -> str:
    """The etcd program of the first kind."""
    return next(iter(chosen(request.config).values()))
