"""The referee notices two holders of one slot; what etcd does is counted separately."""

from __future__ import annotations

import pytest

from tests.chaos.elections import StaleLeader
from tests.chaos.referee import ECHO, Belief, Referee


def two_in_one_slot(at: float) -> Referee:
    """One client that still works at that moment, and another that is granted the slot then."""
    referee = Referee()
    for token, start, last in ((7, at - 2.0, at + 1.0), (9, at, at + 0.5)):
        belief = Belief("sem", 2, token, f"{token:x}", "w", token, start, last, ended=True)
        referee.beliefs["sem", 2, token] = belief
    return referee


def test_two_believed_in_one_slot() -> None:
    """That is wrong."""
    referee = two_in_one_slot(100.0)
    assert len(referee.judge()) == 1
    assert not referee.counters


@pytest.mark.parametrize(("end", "wrong"), [(101.0, 0), (96.0, 0), (99.9 - ECHO, 1)])
def test_a_leader_that_stood_still(end: float, wrong: int) -> None:
    """Etcd is excused, on any version, and only around that time."""
    referee = two_in_one_slot(100.0)
    referee.stale_leaders.append(StaleLeader("m1", end - 3.0, end))
    assert len(referee.judge()) == wrong
    assert referee.counters["slots given away early by etcd (#15247)"] == 1 - wrong


def test_who_stood_still_since_the_grant() -> None:
    """A process that is suspended between its grant and its report reports late, with an invalid
    lease: it never believed that it had the slot.
    """

    def told(*, valid: bool) -> list[str]:
        referee = Referee()
        for token, at, sure in ((7, 105.0, valid), (9, 103.0, True)):
            one = {"semaphore": "sem", "slot": 2, "token": token, "lease": f"{token:x}"}
            referee.hear({"op": "begin", "who": "w", "pid": token, "t": at, "valid": sure, **one})
        return referee.judge()

    assert told(valid=False) == []
    assert len(told(valid=True)) == 1
