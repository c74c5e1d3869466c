"""Ctrl-C at any moment: a program ends promptly, and gives everything back.

The long version: `etcdsem dev -- python -m tests.processes.interrupts --number 100`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

import etcdsem
from etcdsem import Semaphore
from etcdsem.core.commands import NotApplied, Txn, TxnReply
from tests.helpers.history import assert_clean
from tests.helpers.slow import sample
from tests.processes import interrupts

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Interrupts the next release of a semaphore object at its transaction."""

    def interrupt(txn: Txn, timeout: float) -> TxnReply:
        raise KeyboardInterrupt

    def release(sem: Semaphore, **also: Callable[..., object]) -> None:
        driver = sem.client._driver
        with monkeypatch.context() as patch:
            for name, function in {"transact": interrupt, **also}.items():
                patch.setattr(driver.connection, name, function)
            with pytest.raises(KeyboardInterrupt):
                sem.release()

    return release


def test_an_interrupted_release_is_made_first(
    client: etcdsem.Client, name: str, interrupted: Callable[..., None]
) -> None:
    """Ctrl-C in the middle of a release comes out when the slot is free."""
    sem = Semaphore(1, name, client=client, lease_timeout=600)
    assert sem.acquire()
    interrupted(sem)
    assert client._driver.session.leases.revocations == 0
    assert sem.get_value() == 0


@pytest.mark.parametrize("mode", sample(interrupts.MODES))
def test_ctrl_c_ends_a_program(etcd: EtcdServer, name: str, mode: str) -> None:
    """Two programs at a time compete for one slot; each is interrupted once, and does not catch
    it. It ends within seconds, by that signal, and nothing of it is in etcd (the TTL is 600 s;
    giving back may last 2 s, which one may miss on a machine that is busy enough).
    """
    with etcdsem.connect(etcd.endpoint) as client:
        sem = Semaphore(1, name, client=client)
        left = 0
        for _ in range(4):
            for ended in interrupts.interrupt_two(etcd.env(), name, mode):
                assert ended.code == -2, ended.errors
                assert ended.seconds < 20, ended.errors
            status = sem.status(ttl=False)
            for holder in status.holders:
                left += 1
                client.evict(name, slot=holder.slot)
            assert status.waiters == ()
        assert left <= 1
        assert sem.acquire(timeout=0)  # which takes away the mark of who was interrupted in line
        sem.release()
    assert_clean(etcd, name)


def test_an_interrupted_release_is_settled_before_the_end(
    etcd: EtcdServer,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    interrupted: Callable[..., None],
) -> None:
    """If etcd does not answer then, the lease is ended beside the program's work; when the program
    ends first, then at its end.
    """
    with etcdsem.connect(etcd.endpoint) as other:
        watcher = Semaphore(1, name, client=other)
        client = etcdsem.connect(etcd.endpoint)
        sem = Semaphore(1, name, client=client, lease_timeout=600)
        assert sem.acquire()

        def too_late(function: object, name: str) -> None:
            raise RuntimeError("can't create new thread at interpreter shutdown")

        def away(lease_id: int, timeout: float) -> None:
            raise NotApplied("etcd is away")

        with monkeypatch.context() as patch:
            patch.setattr(client._driver._clock, "start", too_late)
            interrupted(sem, revoke=away)
        assert watcher.get_value() == 1
        client.close()
        assert watcher.get_value() == 0
    assert_clean(etcd, name)
