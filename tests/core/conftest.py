"""Fixtures for tests of the core."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.helpers.tables import Table

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer


@pytest.fixture
def table(any_etcd: EtcdServer, name: str) -> Iterator[Table]:
    """A semaphore with a limit of 2."""
    one = Table(any_etcd, name, 2)
    yield one
    one.connection.close()
