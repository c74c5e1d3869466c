"""Seeded bugs, each of which the simulator must find within the seeds that CI runs.

A check that no bug has ever tripped may check nothing. So each bug here, of a kind that real
clients of etcd and ZooKeeper had, is put into the core or its driver, and the run must fail.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from etcdsem.core import decisions, procedures, transactions
from etcdsem.core.commands import Compare, OutcomeUnknown, Procedure, Transact, TxnReply, perform
from etcdsem.core.keys import Keys, Queued
from etcdsem.core.leases import Keeper, TtlLease, margin
from etcdsem.core.station import Session
from etcdsem.testing.runs import run_seed
from etcdsem.testing.simulator import SimClient, SimWatch, Violation
from tests.simulation.test_state_machine import SemaphoreMachine

SEEDS = range(200)

FIRST = {"trust_only_the_watch": (357,)}
"""Seeds to try first, for a bug that only few seeds find."""
"""CI runs more than these without a bug, so each bug is found within what CI runs."""

Patch = pytest.MonkeyPatch


def repeat_on_unavailable(patch: Patch) -> None:
    """A write whose outcome is unknown is simply sent again."""

    def transact(session: Session, txn: Any, until: float = math.inf) -> Procedure[TxnReply]:
        for _ in range(3):
            try:
                return (yield from perform(Transact(txn, 2.0)))
            except OutcomeUnknown:
                continue
        return (yield from perform(Transact(txn, 2.0)))

    patch.setattr(procedures, "transact", transact)


def no_revoke_barrier(patch: Patch) -> None:
    """A lease whose part in a write is uncertain goes back to the pool."""

    def settle_later(keeper: Keeper, lease: TtlLease) -> None:
        if keeper.closed:
            keeper.retire(lease)
        else:
            keeper.give_back(lease)

    patch.setattr(Keeper, "settle_later", settle_later)


def trust_only_the_watch(patch: Patch) -> None:
    """No waiter ever reads again what a watch may not have told."""
    patch.setattr(procedures, "_next_reread", lambda station: math.inf)


def deadline_counts_from_receipt(patch: Patch) -> None:
    """A renewal's answer is taken to be as fresh as the moment it was read."""
    right = Keeper.renewed

    def renewed(keeper: Keeper, lease_id: int, ttl: float) -> None:
        lease = keeper.leases.get(lease_id)
        asked = lease is not None and lease.asked is not None
        right(keeper, lease_id, ttl)
        if lease is not None and asked and lease.id in keeper.leases and ttl > 0:
            lease.deadline = keeper.env.now() + ttl - margin(ttl)

    patch.setattr(Keeper, "renewed", renewed)


def presence_instead_of_create_revision(patch: Patch) -> None:
    """PASS and FILL only ask whether the waiter's key is there."""

    def waits(keys: Keys, waiter: Queued) -> Compare:
        return Compare(keys.waiter(waiter.who), "create", ">", 0)

    patch.setattr(transactions, "_waits", waits)


def no_watch_on_deletes(patch: Patch) -> None:
    """Nobody hears of freed slots."""
    right = SimClient.watch

    def watch(
        client: SimClient, listener: Any, key: bytes, end: bytes = b"", **how: Any
    ) -> SimWatch:
        watch = right(client, listener, key, end, **how)
        if how.get("only") == "delete":
            watch.listener = _Deaf(listener)
        return watch

    patch.setattr(SimClient, "watch", watch)


class _Deaf:
    def __init__(self, listener: Any) -> None:
        self.created = listener.created
        self.gap = listener.gap
        self.refused = listener.refused

    def events(self, events: object) -> None:
        pass


def no_count_guard_with_surplus(patch: Patch) -> None:
    """FILL takes any free slot below the limit, whoever holds above it."""
    patch.setattr(decisions, "held_count", lambda keys, seen: 0)


def no_surplus_guard(patch: Patch) -> None:
    """JOIN and PASS don't ask whether somebody holds above the limit."""
    always = Compare(b"/nothing", "create", "=", 0)
    patch.setattr(transactions, "_no_surplus", lambda keys, limit: always)


def stale_limit(patch: Patch) -> None:
    """Nothing asks whether the limit is still the one that was read."""
    always = Compare(b"/nothing", "create", "=", 0)
    patch.setattr(transactions, "_limit_is", lambda keys, limit: always)


def overtaking(patch: Patch) -> None:
    """JOIN takes a free slot although others stand in line."""
    always = Compare(b"/nothing", "create", "=", 0)
    patch.setattr(transactions, "_uncontended", lambda keys: always)


def grant_with_a_dead_lease(patch: Patch) -> None:
    """Whether the lease is still good is not asked when a grant is handed to its caller."""

    def valid(lease: TtlLease, now: float) -> bool:
        return lease.state == "busy"

    patch.setattr(TtlLease, "valid", valid)


BUGS: list[tuple[Callable[[Patch], None], str]] = [
    (repeat_on_unavailable, "holds another slot already|pool|nobody has it|not FIFO"),
    (no_revoke_barrier, "pool|holds another slot already|nobody has it"),
    (trust_only_the_watch, "a slot was free for|is stuck"),
    (deadline_counts_from_receipt, "still relied on it|etcd has None"),
    (presence_instead_of_create_revision, "not FIFO"),
    (no_watch_on_deletes, "a slot was free for"),
    (no_count_guard_with_surplus, "held, the limit is"),
    (no_surplus_guard, "held, the limit is"),
    (stale_limit, "the limit is"),
    (overtaking, "was granted past"),
    (grant_with_a_dead_lease, "still relied on it|has run out"),
]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("bug", "broken"), BUGS, ids=lambda value: getattr(value, "__name__", ""))
def test_bug_is_found(bug: Callable[[Patch], None], broken: str, monkeypatch: Patch) -> None:
    """The bug breaks the promise that it should break, and a check says so."""
    bug(monkeypatch)
    for seed in (*FIRST.get(bug.__name__, ()), *SEEDS):
        error = run_seed(seed).error
        if error is not None:
            print(f"found by seed {seed}: {error}")
            assert re.search(broken, str(error))
            return
    pytest.fail(f"{bug.__name__} was not found in {len(SEEDS)} seeds")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("bug", [stale_limit, overtaking], ids=lambda bug: bug.__name__)
def test_state_machine_finds_it_too(bug: Callable[[Patch], None], monkeypatch: Patch) -> None:
    """The hypothesis state machine, which tells a shorter story, sees bugs as well."""
    bug(monkeypatch)
    story = settings(SemaphoreMachine.TestCase.settings, max_examples=400, phases=[Phase.generate])
    with pytest.raises((Violation, ExceptionGroup)):
        run_state_machine_as_test(SemaphoreMachine, settings=story)
