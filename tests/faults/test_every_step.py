"""Interruptions and failures at every single step of acquire and release leave nothing behind.

The procedures say what they want done one command at a time, so each command can be hit: before
it was done, or after (the answer is lost, and the driver can't know whether it was applied).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import etcdsem
from etcdsem import Semaphore
from etcdsem.core.commands import OutcomeUnknown
from tests.helpers.history import judge, read_history
from tests.helpers.meddling import Hit, Saboteur
from tests.helpers.waiting import eventually

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

STEPS = 12


def use(sem: Semaphore, *, full: bool) -> None:
    """One cycle; with `full` somebody else holds the only slot, so the line is joined and left."""
    try:
        if sem.acquire(timeout=0.15 if full else 5):
            sem.release()
    except (Hit, etcdsem.EtcdUnavailable):
        pass


@pytest.mark.parametrize("full", [False, True], ids=["free", "full"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("kind", ["interrupted", "unknown"])
def test_nothing_is_left_behind(
    any_etcd: EtcdServer, name: str, full: bool, after: bool, kind: str
) -> None:
    """Hit at each step in turn: no key and no etcd lease stays, and the limit is never exceeded."""
    hits = 0
    with etcdsem.connect(any_etcd.endpoint) as holder:
        other = Semaphore(1, name, client=holder)
        if full:
            other.acquire()
        held = other.get_value()
        for step in range(1, STEPS):
            with etcdsem.connect(any_etcd.endpoint) as client:
                sem = Semaphore(1, name, client=client)
                error = Hit() if kind == "interrupted" else OutcomeUnknown("sabotage")
                saboteur = Saboteur(client, step, error, after=after)
                use(sem, full=full)
                saboteur.disarm()
                hits += saboteur.hit
                for lease in sem.leases:
                    lease.release()
                # What is settled in the background may take a moment; nothing may be in the way.
                eventually(lambda: client._driver.session.leases.revocations == 0)
                eventually(lambda: other.get_value() == held and not other.waiters())
                if not full:
                    assert other.acquire(timeout=10)
                    other.release()
        if full:
            other.release()
    verdict = judge(read_history(any_etcd, name), name)
    assert not verdict.wrong, verdict.wrong[:5]
    left = {key.removeprefix(f"/etcdsem/{name}/") for key in verdict.left}
    assert left <= {"max_leases", "contended"}
    assert hits >= 2, "no step was hit"
