"""Seeded bugs, each of which the simulator must find within the seeds that CI runs.

A check that no bug has ever triggered may check nothing. So each bug here, of a kind that real
clients of etcd and ZooKeeper had, is put into the core or its driver, and the run must fail.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from etcdsem.core import admin, decisions, linger, multi, retry, transactions
from etcdsem.core.commands import (
    Compare,
    KeyValue,
    OutcomeUnknown,
    Procedure,
    Transact,
    Txn,
    TxnReply,
    Wait,
    perform,
)
from etcdsem.core.keys import Keys, Limit, Queued, read_limit
from etcdsem.core.lease_manager import LeaseManager
from etcdsem.core.leases import TtlLease, margin
from etcdsem.core.linger import Lingering
from etcdsem.core.session import Session
from etcdsem.core.transactions import HeldSlots, SlotRequest, conditions, give
from etcdsem.core.transactions import admin as transactions_admin
from etcdsem.core.waiters import Waiters
from etcdsem.core.watchbook import WatchHandle
from etcdsem.core.watches import Watches
from tests.scenarios.scenarios import a_big_one_that_leaves
from tests.scenarios.stages import SimStage
from tests.simulation import checks
from tests.simulation.client import SimClient
from tests.simulation.options import PASSING, SEVERAL, Options
from tests.simulation.runs import run_seed
from tests.simulation.shared import SharedObject
from tests.simulation.test_simulator import QUIET
from tests.simulation.test_state_machine import SemaphoreMachine
from tests.simulation.world import Violation

SEEDS = range(200)
"""Without a bug nothing is found in these (`python -m tests.simulation --seeds 0:200`). CI runs
half of them.

The first seed that finds each is in docs/simulation.md, and shown by
``python -m pytest -rP tests/simulation/test_negative_controls.py | grep "found by"``.
"""

PENALIZING = [seed for seed in range(200) if "penalize" in Options.of(seed).kinds]
LINGERING = [seed for seed in range(200) if Options.of(seed).linger]

FIRST: dict[str, Sequence[int]] = {
    "deadline_counts_from_receipt": range(8, 200, 10),
    "several_pass_to_any": range(5, 200, 10),
    "several_in_any_order": range(SEVERAL, 200, 10),
    "several_take_what_is_free": range(SEVERAL, 200, 10),
    "eager_ones_pass_who_has_left": range(PASSING, 200, 20),
    "holders_stand_in_line": range(PASSING, 200, 20),
    "a_kept_slot_passes_waiters": LINGERING,
    "a_slot_stays_for_ever": (20, *LINGERING),
    "a_kept_slot_is_given_twice": LINGERING,
    "a_timed_pause_is_ended_early": PENALIZING,
    "nobody_notices_the_end": PENALIZING,
    "trust_only_the_watch": (17,),
    "no_watch_on_deletes": (14,),
    "no_priorities_guard": (10,),
    "below_zero_is_like_any": (10,),
    "a_drain_believes_its_watch": (12,),
    "a_bound_stays_with_the_lease": (14,),
    "a_renewal_forgets_the_bound": (14,),
    "chosen_before": (9,),
    "no_count_guard_with_surplus": (11,),
    "the_expected_one_passes_others": (5,),
}
"""The seeds to try first: for a bug that has its own theme those with that theme (`Options.of`),
and for one that takes long to find the seed that found it."""

LATE = {
    "trust_only_the_watch",
    "no_watch_on_deletes",
    "no_count_guard_with_surplus",
    "no_surplus_guard",
    "no_priorities_guard",
    "grant_with_a_dead_lease",
    "a_renewal_forgets_the_bound",
    "a_bound_stays_with_the_lease",
    "a_drain_believes_its_watch",
    "chosen_before",
    "below_zero_is_like_any",
    "several_in_any_order",
    "holders_stand_in_line",
}
"""Bugs that take longest to find: tested with `--all`."""

Patch = pytest.MonkeyPatch


def everywhere(patch: Patch, function: Callable[..., Any], by: Callable[..., Any]) -> None:
    """Replace a function in each module that has imported it."""
    name = function.__name__
    for module in list(sys.modules.values()):
        if getattr(module, name, None) is function:
            patch.setattr(module, name, by)


def chosen_before(patch: Patch) -> None:
    """`release` chooses the lease first, and begins to give it back in another step."""

    def releasing(shared: SharedObject, engine: object) -> Procedure[bool | None]:
        lease = shared._oldest()
        client = shared.client
        yield from perform(Wait(client.mailbox(), client.now() + 0.01 * client.random()))
        return (yield from lease._releasing())

    patch.setattr(SharedObject, "_releasing", releasing)


def repeat_on_unavailable(patch: Patch) -> None:
    """A write whose outcome is unknown is simply sent again."""

    def transact(session: Session, txn: Any, until: float = math.inf) -> Procedure[TxnReply]:
        for _ in range(3):
            try:
                return (yield from perform(Transact(txn, 2.0)))
            except OutcomeUnknown:
                continue
        return (yield from perform(Transact(txn, 2.0)))

    everywhere(patch, retry.transact, transact)


def no_revoke_barrier(patch: Patch) -> None:
    """A lease that was part of a write with an unknown outcome goes back to the pool."""

    def revoke_later(keeper: LeaseManager, lease: TtlLease) -> None:
        if keeper.closed:
            keeper.retire(lease)
        else:
            keeper.give_back(lease)

    patch.setattr(LeaseManager, "revoke_later", revoke_later)


def trust_only_the_watch(patch: Patch) -> None:
    """No waiter ever rereads what a watch may not have reported."""
    patch.setattr(Session, "next_reread", lambda session: math.inf)


def deadline_counts_from_receipt(patch: Patch) -> None:
    """A renewal's answer is considered as fresh as the moment at which it was read."""
    right = LeaseManager.renewed

    def renewed(keeper: LeaseManager, lease_id: int, ttl: float) -> None:
        lease = keeper.live.get(lease_id)
        asked = lease is not None and lease.asked is not None
        right(keeper, lease_id, ttl)
        if lease is not None and asked and lease.id in keeper.live and ttl > 0:
            lease.deadline = keeper.env.now() + ttl - margin(ttl)

    patch.setattr(LeaseManager, "renewed", renewed)


def presence_instead_of_create_revision(patch: Patch) -> None:
    """PASS and FILL only check whether the waiter's key exists."""

    def waits(keys: Keys, waiter: Queued) -> Compare:
        return Compare(keys.waiter(waiter.who), "create", ">", 0)

    everywhere(patch, conditions.still_waits, waits)


def no_watch_on_deletes(patch: Patch) -> None:
    """Nobody is told of freed slots."""
    right = SimClient.watch

    def watch(
        client: SimClient, listener: Any, key: bytes, end: bytes = b"", **how: Any
    ) -> WatchHandle:
        deaf = how.get("only") == "delete"
        return right(client, _Deaf(listener) if deaf else listener, key, end, **how)

    patch.setattr(SimClient, "watch", watch)


class _Deaf:
    def __init__(self, listener: Any) -> None:
        self.created = listener.created
        self.gap = listener.gap
        self.refused = listener.refused

    def events(self, events: object) -> None:
        pass


def no_count_guard_with_surplus(patch: Patch) -> None:
    """FILL takes any free slot below the limit, although slots above it are held."""
    patch.setattr(decisions, "held_count", lambda keys, seen: 0)


def no_surplus_guard(patch: Patch) -> None:
    """JOIN and PASS do not check whether a slot above the limit is held."""
    always = Compare(b"/nothing", "create", "=", 0)
    everywhere(patch, conditions.no_surplus, lambda keys, limit: always)


def stale_limit(patch: Patch) -> None:
    """Nothing checks whether the limit is still the one that was read."""
    always = Compare(b"/nothing", "create", "=", 0)
    everywhere(patch, conditions.limit_is, lambda keys, limit: always)


def overtaking(patch: Patch) -> None:
    """JOIN takes a free slot although others are in the queue."""
    always = Compare(b"/nothing", "create", "=", 0)
    everywhere(patch, conditions.uncontended, lambda keys: always)


def mark_cleared_over_the_waiting(patch: Patch) -> None:
    """Clearing the mark, or giving back when no waiter is known, does not check for newcomers."""
    always = Compare(b"/nothing", "create", "=", 0)
    everywhere(patch, conditions.none_waits_since, lambda keys, revision: always)


def the_expected_one_passes_others(patch: Patch) -> None:
    """A release hands over to the waiter that it expects, although others wait too."""

    def waits(keys: Keys, waiter: Queued) -> tuple[Compare, ...]:
        return (Compare(keys.waiter(waiter.who), "create", ">", 0),)

    everywhere(patch, conditions.waits_alone, waits)


def several_pass_to_any(patch: Patch) -> None:
    """Hand-overs in a batch serve the known waiters in any order."""
    right = transactions.pass_all

    def pass_all(
        keys: Keys, limit: Limit, mines: Sequence[HeldSlots], line: Sequence[Queued], *rest: Any
    ) -> Txn:
        return right(keys, limit, mines, line[::-1], *rest)

    everywhere(patch, transactions.pass_all, pass_all)


def several_in_any_order(patch: Patch) -> None:
    """Half of the clients that wait while holding take their semaphores in the opposite order."""
    right = multi._in_order

    def in_order(part: multi.SemaphoreRequest) -> bytes:
        client = part.semaphore.session.env
        turned = isinstance(client, SimClient) and client.number % 2
        return bytes(255 - byte for byte in right(part)) if turned else right(part)

    patch.setattr(multi, "_in_order", in_order)


def several_take_what_is_free(patch: Patch) -> None:
    """Of several semaphores the free slots are taken, and all are believed to be."""
    right = transactions.take_all

    def take_all(wishes: Sequence[SlotRequest], wall: float) -> Txn:
        parts = [right([wish], wall) for wish in wishes]
        return Txn((), tuple(Txn(part.compare, part.success) for part in parts))

    everywhere(patch, transactions.take_all, take_all)


def grant_with_a_dead_lease(patch: Patch) -> None:
    """Whether the lease is still valid is not checked when a grant is returned to its caller."""

    def valid(lease: TtlLease, now: float) -> bool:
        return lease.state == "busy"

    patch.setattr(TtlLease, "valid", valid)


def passing_a_heavy_head(patch: Patch) -> None:
    """PASS skips waiters that need more than one slot."""
    right = decisions.hand_over

    def hand_over(mine: HeldSlots, limit: Limit, queue: tuple[Queued, ...], *seen: int) -> Any:
        light = tuple(queued for queued in queue if queued.weight == 1)
        return right(mine, limit, light or queue, *seen)

    patch.setattr(decisions, "hand_over", hand_over)


def part_of_a_weight(patch: Patch) -> None:
    """FILL grants what is free to a waiter that needs more."""
    right = give.give_to

    def first(keys: Keys, slots: Sequence[int], *rest: Any) -> Any:
        return right(keys, slots[:1], *rest)

    everywhere(patch, give.give_to, first)


def no_watch_on_the_head(patch: Patch) -> None:
    """Nobody is told when a waiter that needed more than was free has left the queue."""
    patch.setattr(Watches, "watch_blocker", lambda watches, head, at: None)


def no_priorities_guard(patch: Patch) -> None:
    """PASS and FILL do not check whether a waiter with a priority has joined."""
    always = Compare(b"/nothing", "create", "=", 0)
    everywhere(patch, conditions.priorities_are, lambda keys, revision: always)


def below_zero_is_like_any(patch: Patch) -> None:
    """A waiter with a priority below 0 is served regardless of who has joined since the look."""
    everywhere(patch, conditions.may_be_next, lambda keys, waiter, seen: ())


def eager_ones_pass_who_has_left(patch: Patch) -> None:
    """FILL lets eager waiters pass a heavy one without checking that it still waits."""
    right = transactions.fill

    def fill(*args: Any, passed: Queued | None = None, **how: Any) -> Txn:
        return right(*args, passed=None, **how)

    everywhere(patch, transactions.fill, fill)


def pause_is_not_heeded(patch: Patch) -> None:
    """A client reads `5 paused` as 5."""
    patch.setattr(Limit, "room", property(lambda limit: limit.number or 0))
    patch.setattr(checks, "read_limit", _as_it_should_be)


def _as_it_should_be(kv: KeyValue) -> Any:
    limit = read_limit(kv)
    room = 0 if limit.paused else limit.number or 0
    return SimpleNamespace(
        number=limit.number, paused=limit.paused, room=room, after_pause=limit.after_pause
    )


def a_drain_believes_its_watch(patch: Patch) -> None:
    """A drain never rereads what it has read once, and treats a gap in its watch as empty."""

    def freed(box: Any, held: set[bytes], until: float) -> Procedure[None]:
        yield from perform(Wait(box, until))

    right = admin._holding

    def holding(station: Any, until: float) -> Procedure[tuple[int, set[bytes]]]:
        revision, held = yield from right(station, until)
        if seen.get(station):
            return revision, set()
        seen[station] = True
        return revision, held

    seen: dict[Any, bool] = {}
    patch.setattr(admin, "_freed", freed)
    patch.setattr(admin, "_holding", holding)


def a_bound_stays_with_the_lease(patch: Patch) -> None:
    """A lease that returns to the pool keeps the max_hold of its previous grant."""
    right = TtlLease.bind

    def bind(lease: TtlLease, now: float, max_hold: float) -> None:
        if max_hold < math.inf:
            right(lease, now, max_hold)

    patch.setattr(TtlLease, "bind", bind)


def a_renewal_forgets_the_bound(patch: Patch) -> None:
    """The deadline after a renewal is that of the TTL, regardless of the holder's bound."""

    def renewed(lease: TtlLease, sent: float, ttl: float) -> None:
        lease.sent, lease.ttl = sent, ttl
        lease.deadline = sent + ttl - margin(ttl)

    patch.setattr(TtlLease, "renewed", renewed)


def holders_stand_in_line(patch: Patch) -> None:
    """A hand-over uses the queue as it was learned, though it may list the one that hands over: a
    message would be put and deleted in one transaction.
    """
    everywhere(patch, decisions.without_holders, lambda line, mines: line)


def a_kept_slot_passes_waiters(patch: Patch) -> None:
    """A client uses the slots that stay with it again although others wait."""
    patch.setattr(Lingering, "_fits", lambda kept, grant: True)
    patch.setattr(Lingering, "_queue_news", lambda kept, events: None)


def a_slot_stays_for_ever(patch: Patch) -> None:
    """A slot that stays with its client is never really given back while it is used."""
    patch.setattr(linger, "MAX_TENURE", math.inf)


def a_kept_slot_is_given_twice(patch: Patch) -> None:
    """A slot that is used again still counts as kept."""
    patch.setattr(Lingering, "hand_out", lambda kept, grant: None)


def a_timed_pause_is_ended_early(patch: Patch) -> None:
    """Whoever finds a timed pause ends it, without checking whether its key is gone."""

    def end(keys: Keys, limit: Limit) -> Txn:
        txn = transactions_admin.end_timed_pause(keys, limit)
        return txn._replace(compare=txn.compare[:1])

    patch.setattr(transactions, "end_timed_pause", end)


def nobody_notices_the_end(patch: Patch) -> None:
    """No waiter notices that a timed pause is over."""
    patch.setattr(Watches, "follow_pause", lambda watches, at: None)


BUGS: list[tuple[Callable[[Patch], None], str]] = [
    # Retrying takes time, too, so it may first be noticed by a late return; or by a caller whose
    # second JOIN queued a lease that holds a slot already, and that waits forever.
    (repeat_on_unavailable, "holds another slot|pool|nobody has it|not FIFO|came back|is stuck"),
    (no_revoke_barrier, "pool|holds another slot already|nobody has it|not FIFO"),
    (trust_only_the_watch, "a slot was free for|is stuck"),
    (deadline_counts_from_receipt, "still relied on it|etcd has None"),
    (presence_instead_of_create_revision, "not FIFO"),
    (no_watch_on_deletes, "a slot was free for"),
    (no_count_guard_with_surplus, "held, the limit is"),
    (no_surplus_guard, "held, the limit is"),
    (stale_limit, "the limit is"),
    (overtaking, "was granted past"),
    (mark_cleared_over_the_waiting, "was granted past"),
    (the_expected_one_passes_others, "not FIFO"),
    (several_pass_to_any, "not FIFO|was given .*, etcd has"),
    (several_in_any_order, "is stuck"),
    (several_take_what_is_free, "was given .*, etcd has"),
    (passing_a_heavy_head, "not FIFO"),
    (part_of_a_weight, "slots were granted to a lease of weight"),
    (no_priorities_guard, "not FIFO"),
    (below_zero_is_like_any, "not FIFO"),
    (eager_ones_pass_who_has_left, "not FIFO"),
    (grant_with_a_dead_lease, "still relied on it|has expired"),
    (pause_is_not_heeded, "the limit is 0"),
    (a_drain_believes_its_watch, "told that it is drained"),
    (a_bound_stays_with_the_lease, "for its max_hold, which was not over"),
    (a_renewal_forgets_the_bound, "beyond its max_hold|held still"),
    (holders_stand_in_line, "duplicate key"),
    (chosen_before, "released as often as acquired|is stuck"),
    (a_kept_slot_passes_waiters, "again past"),
    (a_slot_stays_for_ever, "s after its grant|again past"),
    (a_kept_slot_is_given_twice, "while it relies on it"),
    (a_timed_pause_is_ended_early, "its time is not over"),
    (nobody_notices_the_end, "a slot was free for"),
]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("bug", "broken"),
    [pytest.param(*one, marks=pytest.mark.slow if one[0].__name__ in LATE else ()) for one in BUGS],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_bug_is_found(bug: Callable[[Patch], None], broken: str, monkeypatch: Patch) -> None:
    """The bug breaks the promise that it should break, and a check reports that."""
    bug(monkeypatch)
    for seed in (*FIRST.get(bug.__name__, ()), *SEEDS):
        error = run_seed(seed).error
        if error is not None:
            print(f"{bug.__name__} found by seed {seed}: {error}")
            assert re.search(broken, str(error))
            return
    pytest.fail(f"{bug.__name__} was not found in {len(SEEDS)} seeds")


def test_a_scenario_finds_it(monkeypatch: Patch) -> None:
    """Nobody releases or joins: only the watch on the head's key shows that it has left."""
    stage = SimStage(0)
    a_big_one_that_leaves(stage)
    stage.end()
    no_watch_on_the_head(monkeypatch)
    stage = SimStage(0)
    with pytest.raises(AssertionError, match="did not come about in time"):
        a_big_one_that_leaves(stage)
    stage.world.dispose()


@pytest.mark.slow
def test_who_waits_out_of_line_is_found(monkeypatch: Patch) -> None:
    """Nobody misses a waiter whose key was deleted by hand. Others in the queue would take what is
    freed, so few wait in these runs; without the bug they break nothing.
    """
    few = replace(QUIET, kinds=frozenset({"delete key"}), clients=1, workers=3, every=0.3)
    few = replace(few, hold=1.0, idle=1.0, fault_time=2.0, calm_time=200.0)
    seeds = [replace(few, seed=seed) for seed in range(3, 8)]
    assert [run_seed(one.seed, options=one).error for one in seeds] == [None] * len(seeds)
    monkeypatch.setattr(Waiters, "misses", lambda waiters, seen: False)
    errors = [str(run_seed(one.seed, options=one).error) for one in seeds]
    assert any("waits out of the queue, and there is room" in error for error in errors), errors


@pytest.mark.timeout(600)
@pytest.mark.parametrize("bug", [stale_limit, overtaking], ids=lambda bug: bug.__name__)
def test_state_machine_finds_it_too(bug: Callable[[Patch], None], monkeypatch: Patch) -> None:
    """The hypothesis state machine, which produces shorter examples, finds bugs as well."""
    bug(monkeypatch)
    story = settings(SemaphoreMachine.TestCase.settings, max_examples=400, phases=[Phase.generate])
    with pytest.raises((Violation, ExceptionGroup)):
        run_state_machine_as_test(SemaphoreMachine, settings=story)
