"""The fixture `etcd` for tests on the in-memory etcd."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import etcdsem.testing
from etcdsem.testing.inmemory import Memory


@pytest.fixture
def etcd() -> Iterator[Memory]:
    """An in-memory etcd; its time moves only when a test says so, or its main thread waits."""
    with etcdsem.testing.memory() as one:
        yield one
