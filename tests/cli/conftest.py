"""What the tests of the command line start, and end whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

import etcdsem
from tests.cli.crowded import fill
from tests.cli.driver import Cli, Console

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer


@pytest.fixture
def start() -> Iterator[Callable[..., Cli]]:
    """Start ``etcdsem <arguments>``: ``start(etcd, ...)``."""
    started: list[Cli] = []

    def one(*arguments: object, **options: object) -> Cli:
        started.append(Cli(*arguments, **options))  # type: ignore[arg-type]
        return started[-1]

    yield one
    for cli in started:
        cli.kill()


@pytest.fixture
def console() -> Iterator[Callable[..., Console]]:
    """Start a program on a terminal: ``console(etcd, ...)``."""
    started: list[Console] = []

    def one(*arguments: object, **options: object) -> Console:
        started.append(Console(*arguments, **options))  # type: ignore[arg-type]
        return started[-1]

    yield one
    for each in started:
        each.close()


@pytest.fixture
def crowded(fresh_etcd: EtcdServer) -> Iterator[EtcdServer]:
    """An etcd with semaphores of each kind and state; see `crowded.py`."""
    with etcdsem.connect(fresh_etcd.endpoint) as client:
        fill(fresh_etcd, client)
        yield fresh_etcd
