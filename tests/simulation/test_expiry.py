"""Names that expire in the simulator, and seeded bugs.

More seeds: ``python -m tests.simulation.expiry --seeds 0:2000``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest

from etcdsem.core import limits, registration, transactions
from etcdsem.core.commands import Procedure, Txn
from etcdsem.core.keys import Keys
from etcdsem.core.name_lease import NameLease, NameLeases
from tests.helpers.slow import sample
from tests.simulation.expiry import run_expiry
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


def a_new_name_has_no_waiters(patch: Patch) -> None:
    """A name is registered again without the mark for the waiters that are still there."""
    right = transactions.register

    def register(keys: Keys, text: bytes, lease: int = 0) -> Txn:
        txn = right(keys, text, lease)
        return txn._replace(success=txn.success[:1])

    patch.setattr(transactions, "register", register)


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
    (a_new_name_has_no_waiters, 76, "was granted past"),
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
