"""The pytest plug-in: the fixture `etcdsem_memory`.

pytest loads it in every project of an environment that has etcdsem. So the wheel installs it as a
separate module, ``_etcdsem_pytest`` (see pyproject.toml), and it imports etcdsem only when a test
uses the fixture.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from etcdsem.testing import Memory


@pytest.fixture
def etcdsem_memory() -> Iterator[Memory]:
    """An in-memory etcd that semaphores and rate limits without an explicit client use."""
    from etcdsem.testing import memory

    with memory() as etcd, etcd.default():
        yield etcd
