"""``etcdsem check``: what no retry can help ends with its code, and nothing is left behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from etcdsem import Client, Semaphore
from tests.cli.driver import keys, ran

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer


def test_it_registers_and_takes_nothing(etcd: EtcdServer, name: str) -> None:
    """As `hold` would with this limit; the semaphore is empty afterwards."""
    done = ran(etcd, "check", name, "--limit", "3")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{name}: leases can be acquired, limit 3\n"
    assert keys(etcd, name) == ["max_leases"]
    assert ran(etcd, "check", name).returncode == 0


@pytest.mark.parametrize("limit", [(), ("--limit", "2")])
def test_what_will_not_do(etcd: EtcdServer, client: Client, name: str, limit: list[str]) -> None:
    """Another limit; no limit at all; a bad name; no etcd."""
    assert ran(etcd, "check", f"{name}.x").returncode == 78
    Semaphore(3, name, client=client)
    assert ran(etcd, "check", name, *limit).returncode == (78 if limit else 0)
    assert ran(etcd, "check", "a/b", *limit).returncode == 64


def test_a_full_or_paused_semaphore_is_no_failure(
    etcd: EtcdServer, client: Client, name: str
) -> None:
    with Semaphore(1, name, client=client):
        client.pause(name)
        assert ran(etcd, "check", name, "-l", "1").returncode == 0
