"""What an error says, and how much of the library's inside it shows."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

import pytest

import etcdsem
from etcdsem import Client, Semaphore, aio
from tests.helpers.event_loop import run

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

NOWHERE = "127.0.0.1:1"


def shown(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def test_a_traceback_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """One exception, and none of the core's frames; all of them with ETCDSEM_DEBUG."""
    with etcdsem.connect(NOWHERE, dial_timeout=0.2) as client:
        sem = Semaphore(1, "x", client=client, register=False)
        with pytest.raises(etcdsem.EtcdUnavailable) as caught:
            sem.acquire(timeout=0.2)
        assert shown(caught.value).count("Traceback") == 1
        assert "etcdsem/core" not in shown(caught.value)
        with pytest.raises(etcdsem.EtcdUnavailable) as caught:
            sem.status()
        assert shown(caught.value).count("Traceback") == 1
        monkeypatch.setenv("ETCDSEM_DEBUG", "1")
        with pytest.raises(etcdsem.EtcdUnavailable) as caught:
            sem.acquire(timeout=0.2)
        assert shown(caught.value).count("Traceback") > 1
        assert "etcdsem/core" in shown(caught.value)


def test_a_traceback_is_short_in_an_event_loop() -> None:
    async def main() -> None:
        async with aio.connect(NOWHERE, dial_timeout=0.2) as client:
            sem = aio.Semaphore(1, "x", client=client, register=False)
            with pytest.raises(etcdsem.EtcdUnavailable) as caught:
                await sem.acquire(timeout=0.2)
            assert shown(caught.value).count("Traceback") == 1
            assert "etcdsem/core" not in shown(caught.value)

    run(main())


def test_a_timeout_says_that_it_is_paused(client: Client, name: str) -> None:
    """By whom, and why, instead of that no lease was free."""
    sem = Semaphore(1, name, client=client, owner="alice")
    sem.pause(reason="upgrade")
    with (
        pytest.raises(etcdsem.AcquireTimeout, match=r"paused by alice since .* UTC \(upgrade\)"),
        sem.hold(0),
    ):
        pytest.fail("it is paused")
    with (
        pytest.raises(etcdsem.AcquireTimeout, match=rf"'{name}' prevented it: it is paused by"),
        etcdsem.hold_all(sem, timeout=0),
    ):
        pytest.fail("it is paused")
    sem.resume()
    sem.resize(0)
    with pytest.raises(etcdsem.AcquireTimeout, match="its limit is 0"), sem.hold("20ms"):
        pytest.fail("its limit is 0")


def test_a_timeout_has_a_unit(client: Client, name: str) -> None:
    sem = Semaphore(1, name, client=client)
    with sem:
        with pytest.raises(etcdsem.AcquireTimeout, match=r"was free within 0\.02s"), sem.hold(0.02):
            pytest.fail("it is full")
        with pytest.raises(etcdsem.AcquireTimeout, match="was free at once"), sem.hold(0):
            pytest.fail("it is full")


@pytest.mark.parametrize("text", ["5.0", "-1", "1e3", ""])
def test_registering_over_an_unreadable_limit(
    etcd: EtcdServer, client: Client, name: str, text: str
) -> None:
    """It would wait forever without a word."""
    etcd.etcdctl("put", "--", f"/etcdsem/{name}/max_leases", text)
    with pytest.raises(etcdsem.InconsistentLimit, match=f"etcdsem limit {name} 5") as caught:
        Semaphore(5, name, client=client)
    assert caught.value.registered is None
    client.resize(name, 5)
    with Semaphore(5, name, client=client):
        pass
