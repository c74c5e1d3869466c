"""Each transaction does what it says, refuses what it must, and is harmless when it lands twice.

They run on a real etcd of each kind, through the connection alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from etcdsem.core import transactions as tx
from etcdsem.core.commands import Delete, KeyValue, LeaseNotFound, Put, Range, RangeReply, Txn
from etcdsem.core.keys import (
    ORDINARY,
    Demand,
    Identity,
    Limit,
    Queued,
    plain_start,
    read_eviction,
    read_limit,
    read_message,
    record,
    write_eviction,
)
from etcdsem.core.transactions import conditions
from tests.helpers.tables import ME, Table

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

TWO = Demand(weight=2)
EAGER = Demand(backfill=True)


def test_join_takes_what_is_free_and_then_waits(table: Table) -> None:
    """Two are held, the third waits, a try behind it gets nothing."""
    first, second = table.hold(), table.hold()
    assert {first.slot, second.slot} == {0, 1}
    assert second.token > first.token
    third = table.wait()
    assert table.look().queue == (third,)
    _, full = table.join(line=False)
    assert full == tx.TryFull(2, True, table.limit)


def test_join_never_overtakes(table: Table) -> None:
    """With somebody in line also a free slot is not taken past it."""
    first, _ = table.hold(), table.hold()
    table.wait()
    table.do(tx.retire(table.keys, first))
    _, result = table.join()
    assert isinstance(result, tx.Waiting)
    assert result.held == 1


def test_join_with_an_old_limit_waits(table: Table) -> None:
    """The limit has changed since: nothing is granted by the old one."""
    old = table.limit
    table.resize(1)
    table.limit = old
    _, result = table.join()
    assert isinstance(result, tx.Waiting)
    assert result.limit is not None
    assert result.limit.number == 1


def test_join_with_somebody_above_the_limit_waits(table: Table) -> None:
    """A slot above a lowered limit is held: nothing is granted until the count says so."""
    table.hold()
    high = table.hold()
    assert high.slot == 1
    table.resize(1)
    _, result = table.join()
    assert isinstance(result, tx.Waiting)


def test_join_of_several_slots_takes_all_or_none(table: Table) -> None:
    """One of the two slots is held, whichever: it waits, and the other stays free."""
    for held, free in ((0, 1), (1, 0)):
        lease = table.lease()
        table.do(Txn((), (Put(table.keys.slot(held), b"{}", lease),)))
        waiting, result = table.join(demand=TWO)
        assert isinstance(result, tx.Waiting)
        assert table.holders() == {held: lease}, f"slot {free} was taken"
        for one in (lease, waiting):
            table.connection.revoke(one, 5)
        table.do(tx.uncontend(table.keys, table.look().revision))


def test_join_after_close_writes_nothing(table: Table) -> None:
    """A closed semaphore gets no keys of those who come late."""
    table.do(tx.close(table.keys, force=True))
    _, result = table.join()
    assert result == tx.TryFull(0, False, None)
    reply = table.do(Txn((), (Range(table.keys.base, table.keys.base_end),))).replies[0]
    assert isinstance(reply, RangeReply)
    assert reply.kvs == ()


def test_join_after_its_lease_was_revoked_fails(table: Table) -> None:
    """The barrier: a JOIN that lands late finds no lease."""
    lease = table.lease()
    late = table.joining(lease)
    table.connection.revoke(lease, 5)
    with pytest.raises(LeaseNotFound):
        table.do(late)
    assert table.holders() == {}


def test_drop_and_its_echo(table: Table) -> None:
    """Given back once; the second time it is not ours, and the next holder is left alone."""
    mine = table.hold()
    assert table.do(tx.drop(table.keys, mine)).succeeded
    other = table.hold()
    again = table.do(tx.drop(table.keys, mine))
    assert not again.succeeded
    assert list(table.holders()) == [other.slot]


NOBODY = Queued(b"host.2.gone/0000000000000007", 7, 1, b"")

GivingBack = Callable[[Table, tx.HeldSlots, int], Txn]

WAYS: dict[str, GivingBack] = {
    "drop": lambda table, mine, now: tx.drop(table.keys, mine),
    "clear": lambda table, mine, now: tx.clear(table.keys, mine, now),
    "clear or pass": lambda table, mine, now: tx.clear(
        table.keys, mine, now, tx.pass_alone(table.keys, mine, table.limit, NOBODY, 0.0)
    ),
    "retire": lambda table, mine, now: tx.retire(table.keys, mine),
    "vacate": lambda table, mine, now: tx.vacate(table.keys, mine),
    "evict": lambda table, mine, now: tx.evict_slot(table.keys, mine.slots, mine.token, None),
}
"""All ways to give back one slot or several while nobody waits."""

ONE_SLOT_WAYS: dict[str, GivingBack] = {
    "batch": lambda table, mine, now: tx.batch(table.keys, table.limit, [mine], [[]], 0.0),
    "pass to nobody": lambda table, mine, now: tx.pass_all(
        table.keys, table.limit, [mine], (), now, 0.0
    ),
}
"""Those for one slot only."""


@pytest.mark.parametrize("way", [*WAYS, *ONE_SLOT_WAYS])
def test_giving_back_late_leaves_the_next_holder_alone(table: Table, way: str) -> None:
    """It was evicted, and its slot is another's by now: whichever way it takes, nothing changes."""
    mine = table.hold()
    assert table.do(tx.evict_slot(table.keys, (mine.slot,), mine.token, None)).succeeded
    other = table.hold()
    assert other.slot == mine.slot
    before = table.look()
    table.do({**WAYS, **ONE_SLOT_WAYS}[way](table, mine, before.revision))
    assert table.look() == before


@pytest.mark.parametrize("taken", [0, 1])
@pytest.mark.parametrize("way", WAYS)
def test_giving_back_several_late_leaves_the_next_holder_alone(
    table: Table, way: str, taken: int
) -> None:
    """One of the two slots is another's by now: neither is deleted."""
    two = table.hold(TWO)
    table.do(Txn((), (Delete(table.keys.slot(two.slots[taken])),)))
    other = table.hold()
    assert other.slot == two.slots[taken]
    before = table.look()
    assert len(before.slots) == 2
    assert not table.do(WAYS[way](table, two, before.revision)).succeeded
    assert table.look() == before


def test_handing_over_late_leaves_the_next_holder_alone(table: Table) -> None:
    """The same for PASS, alone and together, while somebody waits."""
    mine, _ = table.hold(), table.hold()
    table.do(Txn((), (Delete(table.keys.slot(mine.slot)),)))
    assert table.hold().slot == mine.slot
    waiter = table.wait()
    before = table.look()
    table.do(tx.pass_on(table.keys, mine, table.limit, (waiter,), 1, 0.0))
    table.do(tx.pass_all(table.keys, table.limit, [mine], (waiter,), waiter.created, 0.0))
    assert table.look() == before


def test_drop_refuses_when_somebody_waits(table: Table) -> None:
    """It brings who that is."""
    mine, _ = table.hold(), table.hold()
    waiter = table.wait()
    reply = table.do(tx.drop(table.keys, mine))
    assert not reply.succeeded
    assert tx.read_look(table.keys, reply, reply.revision).queue == (waiter,)


def test_pass_and_its_echo(table: Table) -> None:
    """The first in line has the slot and the grant message; an echo changes nothing."""
    mine, _ = table.hold(), table.hold()
    first, second = table.wait(), table.wait()
    passing = tx.pass_on(table.keys, mine, table.limit, (first, second), 2, 0.0)
    reply = table.do(passing)
    assert tx.read_pass(table.keys, reply, (first, second)) == first
    assert table.holders()[mine.slot] == first.lease
    assert table.message(first) == ((mine.slot,), (second,))
    assert table.look().queue == (second,)
    assert isinstance(tx.read_pass(table.keys, table.do(passing), (first, second)), tx.Look)
    assert table.holders()[mine.slot] == first.lease
    assert table.look().queue == (second,)


def test_pass_skips_who_has_gone(table: Table) -> None:
    """A stale list costs nothing but a skipped entry."""
    mine, _ = table.hold(), table.hold()
    gone, stays = table.wait(), table.wait()
    table.connection.revoke(gone.lease, 5)
    reply = table.do(tx.pass_on(table.keys, mine, table.limit, (gone, stays), 2, 0.0))
    assert tx.read_pass(table.keys, reply, (gone, stays)) == stays
    assert table.holders()[mine.slot] == stays.lease


def test_pass_does_not_serve_one_who_came_back_in_its_former_place(table: Table) -> None:
    """The create revision is compared, not mere presence: else FIFO would be broken."""
    mine, _ = table.hold(), table.hold()
    first, second = table.wait(), table.wait()
    assert tx.read_leave(table.do(tx.leave(table.keys, first.who, first.created)))[0]
    table.do(table.joining(first.lease))
    reply = table.do(tx.pass_on(table.keys, mine, table.limit, (first, second), 2, 0.0))
    assert tx.read_pass(table.keys, reply, (first, second)) == second
    assert table.holders()[mine.slot] == second.lease


def test_pass_to_nobody_brings_the_line(table: Table) -> None:
    """All that were known have gone: whoever is there now is told."""
    mine, _ = table.hold(), table.hold()
    gone, there = table.wait(), table.wait()
    table.connection.revoke(gone.lease, 5)
    reply = table.do(tx.pass_on(table.keys, mine, table.limit, (gone,), 1, 0.0))
    seen = tx.read_pass(table.keys, reply, (gone,))
    assert isinstance(seen, tx.Look)
    assert seen.queue == (there,)


@pytest.mark.parametrize("number", [1, 3])
def test_pass_with_an_old_limit_passes_nothing(table: Table, number: int) -> None:
    """The releaser looks again first."""
    mine, _ = table.hold(), table.hold()
    waiter = table.wait()
    old = table.limit
    table.resize(number)
    reply = table.do(tx.pass_on(table.keys, mine, old, (waiter,), 1, 0.0))
    assert isinstance(tx.read_pass(table.keys, reply, (waiter,)), tx.Look)
    assert table.look().queue == (waiter,)


@pytest.mark.parametrize("above", [1, 4])
def test_pass_with_somebody_above_the_limit_passes_nothing(table: Table, above: int) -> None:
    """The limit was lowered to 1: a slot at it, or above it, is held, so none may be granted."""
    table.resize(5)
    mine = table.hold()
    table.do(Txn((), (Put(table.keys.slot(above), b"{}", table.lease()),)))
    while len(table.holders()) < 5:
        table.hold()
    waiter = table.wait()
    for slot in set(table.holders()) - {mine.slot, above}:
        table.do(Txn((), (Delete(table.keys.slot(slot)),)))
    table.resize(1)
    held = table.holders()
    reply = table.do(tx.pass_on(table.keys, mine, table.limit, (waiter,), 1, 0.0))
    assert isinstance(tx.read_pass(table.keys, reply, (waiter,)), tx.Look)
    together = tx.pass_all(table.keys, table.limit, [mine], (waiter,), waiter.created, 0.0)
    reply = table.do(together)
    read = tx.read_pass_all(table.keys, reply, table.limit, [mine], (waiter,))
    assert isinstance(read, tx.Look)
    assert table.holders() == held
    assert table.look().queue == (waiter,)


def test_clear_only_while_nobody_came(table: Table) -> None:
    """The mark goes with the slot, unless somebody has come since."""
    mine, _ = table.hold(), table.hold()
    waiter = table.wait()
    table.do(tx.leave(table.keys, waiter.who, waiter.created))
    seen = table.look()
    assert seen.queue == ()
    late = table.wait()
    assert not table.do(tx.clear(table.keys, mine, seen.revision)).succeeded
    table.do(tx.leave(table.keys, late.who, late.created))
    assert table.do(tx.clear(table.keys, mine, table.look().revision)).succeeded
    assert not table.look().contended


EXPECTED_CASES: dict[str, tuple[Demand, ...]] = {
    "waits": (ORDINARY,),
    "waits with another": (ORDINARY, ORDINARY),
    "has left, another waits": (),
    "wants two slots": (Demand(weight=2),),
    "has a priority": (Demand(priority=1),),
}


@pytest.mark.parametrize("case", EXPECTED_CASES)
def test_clear_passes_to_the_expected_waiter_only_if_it_waits_alone(
    table: Table, case: str
) -> None:
    """Whenever it joined, but not if its record says more than who it is."""
    mine, _ = table.hold(), table.hold()
    first = table.wait()
    before = table.look()
    table.do(tx.leave(table.keys, first.who, first.created))
    for demand in EXPECTED_CASES[case]:
        again = first.lease not in {queued.lease for queued in table.look().queue}
        table.do(table.joining(first.lease if again else table.lease(), demand=demand))
    if case == "has left, another waits":
        table.wait()
    alone = tx.pass_alone(table.keys, mine, table.limit, first, 0.0)
    reply = table.do(tx.clear(table.keys, mine, before.revision, alone))
    assert not reply.succeeded
    passed = tx.read_clear(table.keys, reply, otherwise=True)
    assert (passed is True) == (case == "waits")
    assert (table.holders()[mine.slot] == first.lease) == (case == "waits")
    if isinstance(passed, tx.Look):
        assert len(passed.queue) == max(1, len(EXPECTED_CASES[case]))
        assert table.look() == passed
    else:
        assert table.message(first) == ((mine.slot,), ())
        assert table.look().queue == ()
        assert table.mark()


@pytest.mark.parametrize("labels", [{}, {"team": "a"}])
def test_only_records_without_extras_begin_like_that(labels: dict[str, str]) -> None:
    """Labels, owners and requests stand before the time."""
    who = Identity.of("host.1.test", None, labels)
    value = record(who.client, who.extras, 7, "since", 0.0)
    start = plain_start(who.client, 7, "since")
    assert (start < value < start + b":") == (not labels)


def test_fill_and_its_guards(table: Table) -> None:
    """A free slot for the first in line; not if anything it was based on has changed."""
    mine, other = table.hold(), table.hold()
    waiter, behind = table.wait(), table.wait()
    table.do(tx.retire(table.keys, mine))
    seen = table.look()
    filling = tx.fill(
        table.keys, seen, [((mine.slot,), waiter)], (behind,), 0.0, surplus=False, last=False
    )
    taken = tx.fill(table.keys, seen, [((other.slot,), waiter)], (), 0.0, surplus=False, last=False)
    assert not table.do(taken).succeeded
    stale = waiter._replace(created=waiter.created - 1)
    assert not table.do(
        tx.fill(table.keys, seen, [((mine.slot,), stale)], (), 0.0, surplus=False, last=False)
    ).succeeded
    assert table.do(filling).succeeded
    assert table.message(waiter) == ((mine.slot,), (behind,))
    assert not table.do(filling).succeeded
    assert table.look().queue == (behind,)


def test_fill_several_at_once(table: Table) -> None:
    """All of them or nobody; and the mark goes with the last in line, if nobody has come since."""
    mine, other = table.hold(), table.hold()
    first, second = table.wait(), table.wait()
    for one in (mine, other):
        table.do(tx.retire(table.keys, one))
    seen = table.look()
    pairs = [((mine.slot,), first), ((other.slot,), second)]
    filling = tx.fill(table.keys, seen, pairs, (), 0.0, surplus=False, last=True)
    wrong = [pairs[0], ((other.slot,), second._replace(created=second.created - 1))]
    spoilt = tx.fill(table.keys, seen, wrong, (), 0.0, surplus=False, last=True)
    assert not table.do(spoilt).succeeded
    assert table.holders() == {}
    third = table.wait()
    assert table.do(filling).succeeded
    assert table.holders() == {mine.slot: first.lease, other.slot: second.lease}
    seen = table.look()
    assert seen.queue == (third,)
    assert seen.contended, "somebody has come since"
    table.do(Txn((), (Delete(table.keys.slot(mine.slot)),)))
    seen = table.look()
    last = tx.fill(table.keys, seen, [((mine.slot,), third)], (), 0.0, surplus=False, last=True)
    assert table.do(last).succeeded
    assert not table.look().contended


def test_fill_by_count_only_if_none_was_created_since(table: Table) -> None:
    """With somebody above the limit the count decides, and it must still be true."""
    table.resize(5)
    for _ in range(5):
        mine = table.hold()
    waiter = table.wait()
    table.resize(3)
    for slot in (0, 1, 2):
        table.do(Txn((), (Delete(table.keys.slot(slot)),)))
    seen = table.look()
    assert (len(seen.slots), mine.slot) == (2, 4)
    lease = table.lease()
    table.do(Txn((), (Put(table.keys.slot(2), b"{}", lease),)))
    stale = tx.fill(table.keys, seen, [((0,), waiter)], (), 0.0, surplus=True, last=False)
    assert not table.do(stale).succeeded, "three are held now: none may be granted"
    table.do(Txn((), (Delete(table.keys.slot(2)),)))
    again = tx.fill(table.keys, table.look(), [((0,), waiter)], (), 0.0, surplus=True, last=False)
    assert table.do(again).succeeded


@pytest.fixture
def blocked(table: Table) -> tuple[tx.HeldSlots, Queued, Queued]:
    """Both slots are held; a big one waits, and an eager one behind it. One slot becomes free:
    which one that was, the big one, the eager one.
    """
    mine, _ = table.hold(), table.hold()
    big, eager = table.wait(TWO), table.wait(EAGER)
    assert table.do(tx.vacate(table.keys, mine)).succeeded
    return mine, big, eager


def passing(table: Table, seen: tx.Look, blocked: tuple[tx.HeldSlots, Queued, Queued]) -> Txn:
    """FILL for the eager one, that passes the big one."""
    mine, big, eager = blocked
    pairs = [((mine.slot,), eager)]
    return tx.fill(table.keys, seen, pairs, (), 0.0, surplus=False, last=False, passed=big)


def test_vacate_frees_the_slot_and_brings_the_line(table: Table) -> None:
    """Nobody gets it; the mark is put again, and whoever waits is in what it brings."""
    mine, other = table.hold(), table.hold()
    big, eager = table.wait(TWO), table.wait(EAGER)
    mark = table.mark()
    reply = table.do(tx.vacate(table.keys, mine))
    seen = tx.read_vacate(table.keys, reply)
    assert seen is not None
    assert seen.queue == (big, eager)
    assert [one.demand for one in seen.queue] == [TWO, EAGER]
    assert (seen.revision, seen.contended, seen.complete) == (reply.revision, True, True)
    assert len(seen.slots) == 1
    assert list(table.holders()) == [other.slot]
    assert mark < table.mark() == reply.revision, "put by this very transaction"
    assert table.message(big) is table.message(eager) is None


def test_vacate_all_slots_of_a_lease_or_none(table: Table) -> None:
    """One of them was taken away: the other stays for whoever sees to that."""
    two = table.hold(TWO)
    assert len(two.slots) == 2
    table.wait()
    table.do(Txn((), (Delete(table.keys.slot(two.more[0])),)))
    mark = table.mark()
    assert tx.read_vacate(table.keys, table.do(tx.vacate(table.keys, two))) is None
    assert list(table.holders()) == [two.slot]
    assert table.mark() == mark
    table.do(tx.retire(table.keys, two._replace(more=())))
    assert table.holders() == {}


def test_vacate_once(table: Table) -> None:
    """Landing again it is not ours any more: whoever has the slot since is left alone."""
    mine, _ = table.hold(), table.hold()
    waiter = table.wait()
    vacating = tx.vacate(table.keys, mine)
    seen = tx.read_vacate(table.keys, table.do(vacating))
    assert seen is not None
    pairs = [((mine.slot,), waiter)]
    filling = tx.fill(table.keys, seen, pairs, (), 0.0, surplus=False, last=True)
    assert table.do(filling).succeeded
    holders = table.holders()
    assert holders[mine.slot] == waiter.lease
    assert tx.read_vacate(table.keys, table.do(vacating)) is None
    assert table.holders() == holders


def test_vacate_takes_the_grant_message_along(table: Table) -> None:
    """Of a slot that came with one."""
    mine, _ = table.hold(), table.hold()
    waiter = table.wait()
    reply = table.do(tx.pass_on(table.keys, mine, table.limit, (waiter,), 1, 0.0))
    assert tx.read_pass(table.keys, reply, (waiter,)) == waiter
    assert table.message(waiter) == ((mine.slot,), ())
    handed = tx.HeldSlots(mine.slot, reply.revision, waiter.who, has_message=True)
    assert table.do(tx.vacate(table.keys, handed)).succeeded
    assert table.message(waiter) is None
    assert mine.slot not in table.holders()


def test_an_eager_one_passes_a_big_one(
    table: Table, blocked: tuple[tx.HeldSlots, Queued, Queued]
) -> None:
    """It gets the slot, the big one keeps its place; once."""
    mine, big, eager = blocked
    filling = passing(table, table.look(), blocked)
    assert table.do(filling).succeeded
    assert table.holders()[mine.slot] == eager.lease
    assert table.message(eager) == ((mine.slot,), ())
    assert table.look().queue == (big,)
    assert not table.do(filling).succeeded
    assert table.look().queue == (big,)


def test_who_is_passed_must_be_there(
    table: Table, blocked: tuple[tx.HeldSlots, Queued, Queued]
) -> None:
    """It has left: what was decided about it does not hold, and the line is brought."""
    _, big, eager = blocked
    seen = table.look()
    table.connection.revoke(big.lease, 5)
    held = table.holders()
    reply = table.do(passing(table, seen, blocked))
    assert not reply.succeeded
    assert tx.read_look(table.keys, reply, reply.revision).queue == (eager,)
    assert table.holders() == held
    assert table.message(eager) is None


def test_who_is_passed_must_stand_where_it_stood(
    table: Table, blocked: tuple[tx.HeldSlots, Queued, Queued]
) -> None:
    """It has left and come back: that is another place in line, behind the eager one."""
    _, big, eager = blocked
    seen = table.look()
    table.do(tx.leave(table.keys, big.who, big.created))
    table.do(table.joining(big.lease, demand=TWO))
    assert not table.do(passing(table, seen, blocked)).succeeded
    assert [one.who for one in table.look().queue] == [eager.who, big.who]


@pytest.mark.parametrize("number", [1, 3])
def test_nobody_is_passed_by_an_old_limit(
    table: Table, blocked: tuple[tx.HeldSlots, Queued, Queued], number: int
) -> None:
    """Lowered there may be no room, raised the big one may have it."""
    seen = table.look()
    table.resize(number)
    held = table.holders()
    assert not table.do(passing(table, seen, blocked)).succeeded
    assert table.holders() == held
    assert len(table.look().queue) == 2


def test_a_pause_keeps_the_eager_out(
    table: Table, blocked: tuple[tx.HeldSlots, Queued, Queued]
) -> None:
    """It changes the limit's key, so what was under way grants nothing."""
    seen = table.look()
    paused = tx.change_limit(table.keys, table.limit.revision, b"2 paused")
    assert table.do(paused).succeeded
    assert not table.do(passing(table, seen, blocked)).succeeded
    assert len(table.holders()) == 1


def test_a_timed_pause_ends_with_its_key(table: Table) -> None:
    """UNPAUSE does nothing while the key is there, or after another change; it keeps the mark of a
    registered limit. PENALIZE replaces the key's lease.
    """
    text = b"2 paused by me since 2026-11-25T09:30:00.000Z until 2026-11-25T09:31:00.000Z "

    def penalize() -> tuple[int, Limit]:
        lease = table.lease()
        reply = table.do(tx.penalize(table.keys, table.limit, text, lease))
        assert reply.succeeded
        kv = KeyValue(table.keys.max_leases, text, 1, reply.revision)
        table.limit = read_limit(kv)
        return lease, table.limit

    first, early = penalize()
    second, limit = penalize()
    assert limit.after_pause == b"2 "
    table.connection.revoke(first, 10)
    assert not table.do(tx.end_timed_pause(table.keys, limit)).succeeded
    table.connection.revoke(second, 10)
    assert not table.do(tx.end_timed_pause(table.keys, early)).succeeded
    assert table.do(tx.end_timed_pause(table.keys, limit)).succeeded
    assert not table.do(tx.end_timed_pause(table.keys, limit)).succeeded
    after = table.look().limit
    assert after is not None
    assert (after.room, after.registered) == (2, True)


def test_a_big_one_gets_all_or_nothing(
    table: Table, blocked: tuple[tx.HeldSlots, Queued, Queued]
) -> None:
    """FILL for two slots of which one is held: neither; when both are free: both."""
    mine, big, _eager = blocked
    (other,) = table.holders()
    slots = (mine.slot, other)

    def filling(seen: tx.Look) -> Txn:
        return tx.fill(table.keys, seen, [(slots, big)], (), 0.0, surplus=False, last=False)

    assert not table.do(filling(table.look())).succeeded
    assert list(table.holders()) == [other]
    table.do(Txn((), (Delete(table.keys.slot(other)),)))
    assert table.do(filling(table.look())).succeeded
    assert table.holders() == dict.fromkeys(slots, big.lease)
    assert table.message(big) == (slots, ())


def test_leave_both_ways(table: Table) -> None:
    """Gone from the line; or granted meanwhile, and then the grant message is brought."""
    mine, _ = table.hold(), table.hold()
    leaver, stays = table.wait(), table.wait()
    reply = table.do(tx.leave(table.keys, leaver.who, leaver.created))
    left, message, waiting = tx.read_leave(reply)
    assert (left, message, waiting) == (True, None, 1)
    table.do(tx.pass_on(table.keys, mine, table.limit, (stays,), 1, 0.0))
    left, message, _ = tx.read_leave(table.do(tx.leave(table.keys, stays.who, stays.created)))
    assert not left
    assert message is not None
    assert read_message(message.value) == ((mine.slot,), ())


def test_evict_exactly_one(table: Table) -> None:
    """Only the grant that was seen; whoever has the slot since is left alone."""
    mine = table.hold()
    table.do(tx.drop(table.keys, mine))
    other = table.hold()
    assert other.slot == mine.slot
    assert not table.do(tx.evict_slot(table.keys, (mine.slot,), mine.token, None)).succeeded
    assert table.do(tx.evict_slot(table.keys, (mine.slot,), other.token, None)).succeeded


def test_evict_exactly_one_waiter(table: Table) -> None:
    """The stay in line that was seen, once; its grant message says so also if it was sent twice."""
    table.hold(), table.hold()
    waiter, note, later = table.wait(), table.lease(), table.lease()
    message = write_eviction("alice", 0.0)
    former = tx.evict_waiter(table.keys, waiter.who, waiter.created - 1, message, note)
    assert not tx.evicted(table.do(former), note)
    evict = tx.evict_waiter(table.keys, waiter.who, waiter.created, message, note)
    for _ in range(2):
        assert tx.evicted(table.do(evict), note)
    assert table.look().queue == ()
    again = tx.evict_waiter(table.keys, waiter.who, waiter.created, message, later)
    assert not tx.evicted(table.do(again), later)
    left, kv, _ = tx.read_leave(table.do(tx.leave(table.keys, waiter.who, waiter.created)))
    assert not left
    assert kv is not None
    assert read_eviction(kv.value) == "by alice at 1970-01-01T00:00:00.000Z"
    assert read_message(kv.value) is None


def test_close_spares_what_is_in_use(table: Table) -> None:
    """Without force only an unused semaphore goes."""
    mine = table.hold()
    assert not table.do(tx.close(table.keys, force=False)).succeeded
    assert table.holders() == {mine.slot: int(mine.who[-16:], 16)}
    table.do(tx.drop(table.keys, mine))
    assert table.do(tx.close(table.keys, force=False)).succeeded


def test_slots_above_the_limit_are_never_asked_for(table: Table) -> None:
    """Nothing in JOIN itself says "below the limit", so its builder does."""
    with pytest.raises(AssertionError, match="limit"):
        tx.join(table.keys, table.limit, [2], 1, b"", ME, 0.0, queue_up=True)


# ---------------------------------------------------------------- of several semaphores


@pytest.fixture
def second(any_etcd: EtcdServer, name: str) -> Iterator[Table]:
    """Another semaphore with a limit of 2."""
    one = Table(any_etcd, f"{name}.second", 2)
    yield one
    one.connection.close()


def take_both(table: Table, second: Table, slots: tuple[int, int] = (0, 0)) -> bool:
    """ALL of both semaphores. True: both slots were taken; False: nothing has changed."""
    tables = (table, second)
    before = [one.holders() for one in tables]
    wishes = [
        tx.SlotRequest(one.keys, one.limit, slot, one.lease(), ME)
        for one, slot in zip(tables, slots, strict=True)
    ]
    reply = table.do(tx.take_all(wishes, 0.0))
    taken = [
        {**held, wish.slot: wish.lease} if reply.succeeded else held
        for held, wish in zip(before, wishes, strict=True)
    ]
    assert [one.holders() for one in tables] == taken
    return reply.succeeded


def test_several_at_once(table: Table, second: Table) -> None:
    """All that are free; then nothing, since one of them is held."""
    assert take_both(table, second)
    assert not take_both(table, second, (1, 0))
    assert not take_both(table, second, (0, 1))
    assert take_both(table, second, (1, 1))


def test_several_at_once_overtake_nobody(table: Table, second: Table) -> None:
    """Somebody waits at one of them, and there is a free slot: it is not for those who come."""
    mine, _ = second.hold(), second.hold()
    second.wait()
    second.do(tx.retire(second.keys, mine))
    assert not take_both(table, second, (0, mine.slot))
    assert not take_both(second, table, (mine.slot, 0))


def test_several_at_once_by_an_old_limit(table: Table, second: Table) -> None:
    """The limit of one was changed since it was read, or somebody holds a slot above it."""
    old = second.limit
    second.resize(1)
    new, second.limit = second.limit, old
    assert not take_both(table, second)
    second.limit = new
    second.do(Txn((), (Put(second.keys.slot(1), b"{}", second.lease()),)))
    assert not take_both(table, second)


# ---------------------------------------------------------------- names that expire


def test_expire_leaves_alone_what_is_used(table: Table) -> None:
    """A name is attached to a lease only while nobody holds or waits; its marks go then."""

    def expire(lease: int) -> bool:
        (kv,) = tx.as_range(table.do(Txn((), (Range(table.keys.max_leases),))).replies[0]).kvs
        txn = tx.expire(table.keys, kv, kv.value, lease, records=False, seen=0)
        return table.do(txn).succeeded

    holding = [table.hold() for _ in range(table.limit.room)]
    assert not expire(table.lease())
    table.wait()
    for mine in holding:
        table.do(tx.retire(table.keys, mine))
    assert not expire(table.lease())
    (waiter,) = table.look().queue
    table.do(tx.leave(table.keys, waiter.who, waiter.created))
    assert table.mark()
    lease = table.lease()
    assert expire(lease)
    assert not table.mark()
    limit = table.look().limit
    assert limit is not None
    assert limit.lease == lease


def test_a_mark_has_the_lease_that_the_name_has(table: Table) -> None:
    """With another lease, which may be gone, the mark is put without one."""
    lease, other = table.lease(), table.lease()
    for attached in (0, lease):
        revision = table.look().limit
        assert revision is not None
        table.do(tx.change_limit(table.keys, revision.revision, b"1", attached))
        for known in (lease, other):
            table.do(Txn((), (conditions.mark(table.keys, table.keys.contended, known),)))
            (kv,) = tx.as_range(table.do(Txn((), (Range(table.keys.contended),))).replies[0]).kvs
            assert kv.lease == (known if known == attached else 0)


def test_a_name_that_is_registered_again_has_its_mark(table: Table) -> None:
    """Its lease has ended in use: waiters are still there, and nobody may pass them."""
    lease = table.lease()
    for waiting in (False, True):
        if waiting:
            table.do(tx.register(table.keys, b"1"))
            limit = table.look().limit
            assert limit is not None
            table.limit = limit
            table.hold()
            table.wait()
        gone = (Delete(table.keys.max_leases), Delete(table.keys.contended))
        table.do(Txn((), gone))
        assert table.do(tx.register(table.keys, b"1", lease)).succeeded
        assert bool(table.mark()) == waiting
        table.do(Txn((), (Delete(table.keys.max_leases),)))
