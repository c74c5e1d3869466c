"""Names that expire in the simulator, and seeded bugs.

More seeds: ``python -m tests.simulation.expiry --seeds 0:2000``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest

from etcdsem.core import limits, registration
from etcdsem.core.commands import Procedure
from etcdsem.core.name_lease import NameLease, NameLeases
from tests.helpers.slow import sample
from tests.simulation.expiry import run_expiring_rate, run_expiry
from tests.simulation.outcome import report

SEEDS = range(100)
CHUNK = 25

Patch = pytest.MonkeyPatch


@pytest.mark.parametrize("first", sample(range(0, len(SEEDS), CHUNK)))
def test_names_leave_only_without_users(first: int) -> None:
    """The checks of `expiry`, and that there was something to check."""
    expired = early = 0
    for seed in range(first, first + CHUNK):
        outcome = run_expiry(seed)
        assert outcome.error is None, report(outcome)
        expired += outcome.counters["names that expired"]
        early += outcome.counters["names that end early"]
    assert expired > CHUNK
    assert early > CHUNK / 2


@pytest.mark.parametrize("first", sample(range(15, 75, 15)))
def test_rate_limits_that_expire(first: int) -> None:
    """They stay while they are used, and their records count, which have the lease of the name."""
    early = 0
    for seed in range(first, first + 15):
        outcome = run_expiring_rate(seed)
        if outcome is not None:
            assert outcome.error is None, report(outcome)
            early += outcome.counters["leases that end early"]
    assert early


def test_a_waiter_whose_key_was_deleted_before_a_fill() -> None:
    """The FILL fails, and the look that it returns shows that the waiter has lost its place."""
    outcome = run_expiry(217)
    assert outcome.error is None, report(outcome)


def nobody_refreshes(patch: Patch) -> None:
    """The heartbeat leaves the leases of names alone."""
    patch.setattr(NameLeases, "refresh", lambda leases, now: math.inf)


def who_holds_does_not_count(patch: Patch) -> None:
    """Only calls of acquire use a name."""
    right = NameLease.due
    patch.setattr(
        NameLease,
        "due",
        lambda lease: right(lease) if lease.used > lease.refreshed else math.inf,
    )


def who_comes_last_relies_on_the_heartbeat(patch: Patch) -> None:
    """A caller does not care how long the lease has left."""

    def secure(semaphore: object, lease: NameLease) -> Procedure[bool]:
        yield from ()
        lease.used = lease.semaphore.session.env.now()
        return True

    patch.setattr(limits, "secure", secure)


def what_has_expired_was_closed(patch: Patch) -> None:
    """Nobody registers a name again."""

    def has_ended(lease: int) -> Procedure[bool]:
        yield from ()
        return False

    patch.setattr(registration, "has_ended", has_ended)


BUGS: list[tuple[Callable[[Patch], None], int, str]] = [
    (nobody_refreshes, 8, "has expired"),
    (who_holds_does_not_count, 59, "holds or waits"),
    (who_comes_last_relies_on_the_heartbeat, 1, "has expired"),
    (what_has_expired_was_closed, 1, "was closed"),
]


@pytest.mark.parametrize(
    ("bug", "seed", "broken"),
    BUGS,
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_bug_is_found(
    bug: Callable[[Patch], None], seed: int, broken: str, monkeypatch: Patch
) -> None:
    """The bug breaks the promise that it should break, and a check reports that. `seed`: with which
    it was found.
    """
    bug(monkeypatch)
    for one in (seed, *SEEDS):
        error = run_expiry(one).error
        if error is not None:
            print(f"{bug.__name__} found by seed {one}: {error}")
            assert re.search(broken, str(error))
            return
    pytest.fail(f"{bug.__name__} was not found in {len(SEEDS)} seeds")
