"""Leases by the local clock: when they are renewed, when lost, and that lost is final."""

from __future__ import annotations

from typing import Any

import pytest

from etcdsem.core.commands import (
    Failure,
    LeaseNotFound,
    OutcomeUnknown,
    Procedure,
    RevokeLease,
    Wait,
)
from etcdsem.core.lease_manager import LeaseManager, revoke_until_gone
from etcdsem.core.leases import TtlLease, margin
from tests.helpers.env import Clock


@pytest.fixture
def clock() -> Clock:
    """The time."""
    return Clock()


@pytest.fixture
def keeper(clock: Clock) -> LeaseManager:
    """A keeper of leases."""
    return LeaseManager(clock)


def held(keeper: LeaseManager, clock: Clock, ttl: float = 30.0) -> tuple[TtlLease, list[str]]:
    """A lease in use, and what its user was told."""
    lease = TtlLease(5, int(ttl), ttl, clock.time)
    told: list[str] = []
    lease.on_lost = told.append
    keeper.adopt(lease)
    return lease, told


def test_the_deadline_counts_from_the_sending(keeper: LeaseManager, clock: Clock) -> None:
    """A renewal that was sent at t and answered later is good until t + TTL, less a margin."""
    lease, _ = held(keeper, clock)
    clock.time += 11
    keeper.beat(clock.time)
    sent = clock.time
    assert clock.renewed == [5]
    clock.time += 2
    keeper.renewed(5, 30.0)
    assert lease.deadline == pytest.approx(sent + 30 - margin(30))


@pytest.mark.parametrize("ttl", [2.0, 5.0, 30.0, 600.0, 86_400.0])
def test_a_slow_clock_loses_it_before_etcd_does(clock: Clock, ttl: float) -> None:
    """A clock that runs 1 % slower than etcd's: a tenth of a second is left to act upon it."""
    lease = TtlLease(5, int(ttl), ttl, clock.time)
    passed = (lease.deadline - clock.time) / 0.99  # by etcd's clock
    assert ttl / 2 < passed < ttl - 0.1


def test_one_renewal_at_a_time(keeper: LeaseManager, clock: Clock) -> None:
    """Nothing is asked twice while an answer is due; then another connection is taken."""
    held(keeper, clock)
    clock.time += 10
    keeper.beat(clock.time)
    clock.time += 4
    keeper.beat(clock.time)
    assert clock.renewed == [5]
    clock.time += 2
    keeper.beat(clock.time)
    assert clock.restarts == 1
    keeper.beat(clock.time)
    assert clock.renewed == [5, 5]


def test_lost_at_the_deadline_once_and_for_all(keeper: LeaseManager, clock: Clock) -> None:
    """At the deadline it is lost, told once, settled, and never renewed or used again."""
    lease, told = held(keeper, clock)
    clock.time = lease.deadline
    assert not lease.valid(clock.time)
    keeper.beat(clock.time)
    keeper.beat(clock.time)
    keeper.renewed(5, 30.0)
    keeper.give_back(lease)
    assert len(told) == 1
    assert lease.state == "lost"
    assert clock.renewed == []
    assert clock.spawned.count("settle") == 1
    assert keeper.take_spare(30) is None


def test_an_answer_after_the_deadline_is_too_late(keeper: LeaseManager, clock: Clock) -> None:
    """Also if etcd says that the lease lives: the user may have been told otherwise."""
    lease, told = held(keeper, clock)
    clock.time += 20
    keeper.beat(clock.time)
    clock.time = lease.deadline
    keeper.renewed(5, 30.0)
    assert lease.state == "lost"
    assert len(told) == 1


def test_etcd_says_that_it_is_gone(keeper: LeaseManager, clock: Clock) -> None:
    """A TTL of 0 in the answer."""
    lease, told = held(keeper, clock)
    clock.time += 10
    keeper.beat(clock.time)
    keeper.renewed(5, 0.0)
    assert lease.state == "lost"
    assert "revoked" in told[0]


def test_spares_are_used_again_while_they_are_fresh(keeper: LeaseManager, clock: Clock) -> None:
    """A spare that is old stays in the pool, is renewed, and is good again; idle ones expire."""
    lease, _ = held(keeper, clock)
    keeper.give_back(lease)
    assert keeper.take_spare(30) is lease
    keeper.give_back(lease)
    clock.time += 22
    assert keeper.take_spare(30) is None
    keeper.beat(clock.time)
    keeper.renewed(5, 30.0)
    assert keeper.take_spare(30) is lease
    keeper.give_back(lease)
    for _ in range(40):
        clock.time += 5
        keeper.beat(clock.time)
        keeper.renewed(5, 30.0)
    assert lease.state == "gone"
    assert keeper.live == {}
    assert keeper.take_spare(30) is None


def test_a_retired_spare_is_in_the_pool_no_more(keeper: LeaseManager, clock: Clock) -> None:
    """What is to be revoked cannot be taken."""
    lease, _ = held(keeper, clock)
    keeper.give_back(lease)
    keeper.retire(lease)
    assert keeper.take_spare(30) is None


def drive(procedure: Procedure[None], clock: Clock, answers: list[Failure | None]) -> int:
    """Answer revocations in turn, let waits pass; gives how many there were."""
    revoked = 0
    step: Any = None
    try:
        command = next(procedure)
        while True:
            if isinstance(command, RevokeLease):
                step = answers[min(revoked, len(answers) - 1)]
                revoked += 1
                command = procedure.throw(step) if step is not None else procedure.send(None)
            else:
                assert isinstance(command, Wait)
                clock.time = command.until
                command = procedure.send(None)
    except StopIteration:
        return revoked


@pytest.mark.parametrize("last", [None, LeaseNotFound("gone")])
def test_settling_goes_on_until_etcd_says_so(clock: Clock, last: Failure | None) -> None:
    """Unknown outcomes are asked again; OK and "not found" end it."""
    assert (
        drive(revoke_until_gone(clock, 5, 30.0), clock, [OutcomeUnknown(), OutcomeUnknown(), last])
        == 3
    )


def test_settling_ends_when_the_ttl_has_passed(clock: Clock) -> None:
    """After that nobody keeps the lease, so etcd ends it."""
    began = clock.time
    assert drive(revoke_until_gone(clock, 5, 30.0), clock, [OutcomeUnknown()]) > 5
    assert 30 <= clock.time - began < 40


# ---------------------------------------------------------------- max_hold


def test_a_bound_ends_it_however_often_it_is_renewed(keeper: LeaseManager, clock: Clock) -> None:
    """The deadline is never later than the bound, and the reason says why."""
    lease, told = held(keeper, clock)
    lease.bind(clock.time, 40.0)
    clock.time += 25.0
    keeper.beat(clock.time)
    keeper.renewed(5, 30.0)
    assert lease.deadline == lease.bound == 1040.0
    clock.time = 1039.9
    assert lease.valid(clock.time)
    assert keeper.beat(clock.time) == 1040.0
    clock.time = 1040.0
    assert not lease.valid(clock.time)
    keeper.beat(clock.time)
    assert told == ["held longer than its max_hold of 40s"]
    assert clock.spawned[-1] == "settle"


def test_a_bound_beyond_the_lease_changes_nothing(keeper: LeaseManager, clock: Clock) -> None:
    """A lease that is not refreshed ends by its TTL, and says so."""
    lease, told = held(keeper, clock)
    lease.bind(clock.time, 3600.0)
    clock.time += 30.0
    keeper.beat(clock.time)
    assert len(told) == 1
    assert "no renewal was answered" in told[0]


def test_a_pooled_lease_has_no_bound(keeper: LeaseManager, clock: Clock) -> None:
    """The bound belongs to the grant: the next user of the etcd lease has its own, or none."""
    lease, told = held(keeper, clock)
    lease.bind(clock.time, 10.0)
    clock.time += 5.0
    keeper.give_back(lease)
    assert keeper.take_spare(30) is lease
    lease.on_lost = told.append
    clock.time += 15.0
    assert lease.valid(clock.time)
    keeper.beat(clock.time)
    assert told == []
