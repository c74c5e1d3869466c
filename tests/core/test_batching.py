"""Batches: each part holds or fails by itself, and who got nothing goes on alone."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

import etcdsem
from etcdsem.core import transactions as tx
from etcdsem.core.batching import PASSED_AT_MOST, deal
from etcdsem.core.commands import LeaseNotFound
from etcdsem.core.keys import Limit, Queued
from tests.helpers.costs import counted, spent
from tests.helpers.history import judge, read_history
from tests.helpers.tables import ME, Table

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer


def limit(room: int) -> Limit:
    """A limit."""
    return Limit(room, 7, registered=True, text=str(room))


def give(slot: int) -> tx.HeldSlots:
    """A slot that is given back."""
    return tx.HeldSlots(slot, 5, b"me", has_message=False)


@pytest.mark.parametrize("seed", range(20))
def test_slots_are_dealt_once(seed: int) -> None:
    """No slot is tried by two, nor while it is held or given back; the recent ones come first."""
    rng = random.Random(seed)
    room = rng.choice((1, 2, 5, 40, 500))
    held = set(rng.sample(range(room), rng.randrange(room)))
    parts: list[tx.Take | tx.HeldSlots] = [tx.Take(n, ME) for n in range(rng.randrange(1, 30))]
    gives = [give(slot) for slot in list(held)[:3]]
    recent = [slot for slot in range(room) if slot not in held][: rng.randrange(4)]
    hands = deal([*parts, *gives], limit(room), recent, held, rng.random())
    dealt = [slot for hand in hands for slot in hand]
    assert len(dealt) == len(set(dealt)) == min(3 * len(parts), 64, room - len(held))
    assert not set(dealt) & held
    assert all(hand == [] for hand in hands[len(parts) :])
    assert [hand[0] for hand in hands[: len(recent)] if hand] == recent[: len(parts)]


def run(table: Table, parts: list[tx.Take | tx.HeldSlots], hands: list[list[int]]) -> list[object]:
    """What a batch comes to for each part."""
    reply = table.do(tx.batch(table.keys, table.limit, parts, hands, 0.0))
    return list(tx.read_batch(reply, parts, hands))


GAVE = tx.Gave()


def test_a_batch_takes_and_gives(table: Table) -> None:
    """One gives back, one takes another slot; the token is the batch's revision."""
    mine = table.hold()
    other = 1 - mine.slot
    lease = table.lease()
    gave, took = run(table, [mine, tx.Take(lease, ME)], [[], [other]])
    assert gave == GAVE
    assert took == tx.Held(other, table.look().revision)
    assert table.holders() == {other: lease}


def test_parts_fail_alone(table: Table) -> None:
    """A slot that is not mine any more, and one that is taken, stop nobody else."""
    mine = table.hold()
    stale = mine._replace(token=mine.token - 1)
    lease, unlucky = table.lease(), table.lease()
    other = 1 - mine.slot
    results = run(
        table,
        [stale, tx.Take(unlucky, ME), tx.Take(lease, ME), tx.Take(table.lease(), ME)],
        [[], [mine.slot], [other], []],
    )
    revision = table.look().revision
    assert results == [None, None, tx.Held(other, revision), None]
    assert table.holders()[other] == lease


def test_a_batch_does_nothing_while_somebody_waits(table: Table) -> None:
    """Neither overtaken nor passed over: who gives back alone hands over."""
    mine, _ = table.hold(), table.hold()
    table.wait()
    before = table.look()
    assert run(table, [mine, tx.Take(table.lease(), ME)], [[], []]) == [None] * 2
    assert table.look() == before


def test_a_batch_by_an_old_limit_takes_nothing(table: Table) -> None:
    """The limit was lowered since: what is given back is, but nothing is taken."""
    mine = table.hold()
    old = table.limit
    table.resize(1)
    table.limit = old
    parts: list[tx.Take | tx.HeldSlots] = [mine, tx.Take(table.lease(), ME)]
    assert run(table, parts, [[], [1 - mine.slot]]) == [GAVE, None]
    assert table.holders() == {}


def test_a_batch_with_somebody_above_the_limit_takes_nothing(table: Table) -> None:
    """While a slot above a lowered limit is held, nothing is granted."""
    table.resize(4)
    table.limit = table.limit._replace(number=4)
    high = [table.hold() for _ in range(4)]
    table.resize(1)
    top = max(mine.slot for mine in high)
    for mine in high:
        if mine.slot != top:
            table.do(tx.retire(table.keys, mine))
    assert run(table, [tx.Take(table.lease(), ME)], [[0]]) == [None]


def test_a_dead_lease_fails_all_of_it(table: Table) -> None:
    """Definitely, and nothing is applied: then all go on alone."""
    mine = table.hold()
    dead = table.lease()
    table.connection.revoke(dead, 10)
    with pytest.raises(LeaseNotFound):
        run(table, [mine, tx.Take(dead, ME)], [[], [1 - mine.slot]])
    assert table.look().slots[0].mod_revision == mine.token


def test_the_largest_batch_is_taken(any_etcd: EtcdServer, name: str) -> None:
    """Sixty-four parts are within etcd's 128 operations, all levels together."""
    wide = Table(any_etcd, name, 300)
    parts: list[tx.Take | tx.HeldSlots] = [tx.Take(wide.lease(), ME) for _ in range(64)]
    hands = deal(parts, wide.limit, (), set(), 0.5)
    assert all(
        isinstance(took, tx.Held)
        for took in tx.read_batch(
            wide.do(tx.batch(wide.keys, wide.limit, parts, hands, 0.0)), parts, hands
        )
    )
    assert len(wide.holders()) == 64
    wide.connection.close()


def hand_over(
    table: Table, mines: list[tx.HeldSlots], line: tuple[Queued, ...], until: int
) -> tx.Passed | tx.Look:
    """What PASS of several comes to."""
    reply = table.do(tx.pass_all(table.keys, table.limit, mines, line, until, 0.0))
    return tx.read_pass_all(table.keys, reply, table.limit, mines, line)


@pytest.fixture
def wide(any_etcd: EtcdServer, name: str) -> Iterator[Table]:
    """A semaphore with a limit of 4."""
    one = Table(any_etcd, name, 4)
    yield one
    one.connection.close()


def test_several_pass_to_several(wide: Table) -> None:
    """Each of the first in line has a slot and a grant message, which lists those behind."""
    mines = [wide.hold() for _ in range(4)][:2]
    first, second, third = (wide.wait() for _ in range(3))
    passed = hand_over(wide, mines, (first, second, third), third.created)
    assert passed == tx.Passed(
        (True, True), (first, second), cleared=False, served=second.created, line=None
    )
    assert [wide.holders()[mine.slot] for mine in mines] == [first.lease, second.lease]
    assert wide.message(first) == ((mines[0].slot,), (third,))
    assert wide.message(second) == ((mines[1].slot,), (third,))
    assert wide.look().queue == (third,)


def test_who_has_gone_leaves_his_slot_where_it_is(wide: Table) -> None:
    """All others of the first so many get one; the reply says who waits behind them."""
    mines = [wide.hold() for _ in range(4)][:3]
    first, gone, third, last = (wide.wait() for _ in range(4))
    wide.connection.revoke(gone.lease, 5)
    passed = hand_over(wide, mines, (first, gone, third), third.created)
    assert isinstance(passed, tx.Passed)
    assert passed.done == (True, False, True)
    assert passed.line == ((last,), wide.look().revision)
    slots = {mine.slot: wide.holders()[mine.slot] for mine in mines}
    assert slots[mines[0].slot] == first.lease
    assert slots[mines[2].slot] == third.lease
    assert slots[mines[1].slot] not in (first.lease, third.lease, last.lease)


@pytest.mark.parametrize("served", [1, 2, 3, 4])
def test_others_have_served_the_first(wide: Table, served: int) -> None:
    """The slots go to those behind them, in the same transaction, as far as the line is tried."""
    mines = [wide.hold() for _ in range(4)]
    line = tuple(wide.wait() for _ in range(6))
    for waiter in line[:served]:
        wide.connection.revoke(waiter.lease, 5)
    passed = hand_over(wide, mines[:2], line, line[-1].created)
    assert isinstance(passed, tx.Passed)
    assert passed.done == (True, True)
    assert passed.served == line[served + 1].created
    assert wide.look().queue == line[served + 2 :]
    leases = {mine.slot: wide.holders()[mine.slot] for mine in mines[:2]}
    assert list(leases.values()) == [one.lease for one in line[served : served + 2]]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 12])
def test_all_of_the_line_was_served(any_etcd: EtcdServer, name: str, count: int) -> None:
    """Then the slots are given back, since nobody has joined since."""
    wide = Table(any_etcd, name, 20)
    mines = [wide.hold() for _ in range(20)][:count]
    line = tuple(wide.wait() for _ in range(3))
    for waiter in line:
        wide.connection.revoke(waiter.lease, 5)
    passed = hand_over(wide, mines, line, line[-1].created)
    assert isinstance(passed, tx.Passed)
    assert passed.line == ((), wide.look().revision)
    assert len(wide.holders()) == 20 - sum(passed.done)  # a slot that is not passed stays
    assert all(passed.done) == (count <= 4)
    assert passed.served == line[-1].created
    wide.connection.close()


def test_if_one_slot_is_not_ours_nothing_is_passed(wide: Table) -> None:
    """Else one who stands behind could be served, and who stands before him not."""
    mines = [wide.hold() for _ in range(4)][:2]
    first, second = wide.wait(), wide.wait()
    mines[0] = mines[0]._replace(token=mines[0].token - 1)
    seen = hand_over(wide, mines, (first, second), second.created)
    assert isinstance(seen, tx.Look)
    assert seen.queue == (first, second)


def test_one_slot_of_two_grants_is_passed_by_neither(wide: Table) -> None:
    """It was taken by hand, and granted to the same client again: nothing is passed, and etcd is
    not asked to put its key twice.
    """
    mines = [wide.hold() for _ in range(4)][:1]
    mines.append(mines[0]._replace(token=mines[0].token - 1, who=b"host.1.test/taken"))
    first, second = wide.wait(), wide.wait()
    seen = hand_over(wide, mines, (first, second), second.created)
    assert isinstance(seen, tx.Look)
    assert seen.queue == (first, second)


def test_more_slots_than_waiters_are_given_back(wide: Table) -> None:
    """And the mark goes, since nobody waits any more."""
    mines = [wide.hold() for _ in range(4)][:3]
    first = wide.wait()
    passed = hand_over(wide, mines, (first,), first.created)
    assert passed == tx.Passed(
        (True, True, True),
        (first,),
        cleared=True,
        served=first.created,
        line=((), wide.look().revision),
    )
    assert len(wide.holders()) == 2
    assert not wide.look().contended


def test_they_are_kept_for_who_has_come_since(wide: Table) -> None:
    """Who came after the line was read is served from the next list."""
    mines = [wide.hold() for _ in range(4)][:3]
    first, late = wide.wait(), wide.wait()
    passed = hand_over(wide, mines, (first,), first.created)
    assert passed == tx.Passed(
        (True, False, False),
        (first,),
        cleared=False,
        served=first.created,
        line=((late,), wide.look().revision),
    )
    assert len(wide.holders()) == 4
    assert wide.look().contended


def test_the_largest_hand_over_is_taken(any_etcd: EtcdServer, name: str) -> None:
    """Thirty-two slots, each with a grant message, are within etcd's 128 operations."""
    wide = Table(any_etcd, name, 33)
    mines = [wide.hold() for _ in range(33)]
    line = tuple(wide.wait() for _ in range(32))
    given = mines[:PASSED_AT_MOST]
    passed = hand_over(wide, given, line, line[-1].created)
    end = line[-1].created
    none = (), wide.look().revision
    assert passed == tx.Passed((True,) * 32, line, cleared=False, served=end, line=none)
    token = wide.look().slots[0].mod_revision
    again = [
        mine._replace(token=token, who=waiter.who, has_message=True)
        for mine, waiter in zip(given, line, strict=True)
    ]
    passed = hand_over(wide, again, (), end)
    none = (), wide.look().revision
    assert passed == tx.Passed((True,) * 32, (), cleared=True, served=0, line=none)
    assert list(wide.holders()) == [mines[32].slot]
    wide.connection.close()


def test_threads_share_transactions(any_etcd: EtcdServer, name: str) -> None:
    """Many threads with room for all cost far less than two transactions a cycle, and no more
    than the limit is ever held.
    """
    count, cycles = 24, 40
    with etcdsem.connect(any_etcd.endpoint) as client:
        sem = etcdsem.Semaphore(count, name, client=client)
        barrier = threading.Barrier(count + 1)

        def work() -> None:
            with sem:
                barrier.wait(60)  # everybody has an etcd lease
            barrier.wait(60)
            for _ in range(cycles):
                with sem:
                    pass

        threads = [threading.Thread(target=work) for _ in range(count)]
        for thread in threads:
            thread.start()
        barrier.wait(60)
        before = counted(client)
        barrier.wait(60)
        for thread in threads:
            thread.join(60)
        cost = spent(client, before)
    print(f"{count * cycles} cycles of {count} threads: {cost}")
    assert cost["txn"] < count * cycles
    verdict = judge(read_history(any_etcd, name), name)
    assert verdict.wrong == []
    assert verdict.grants >= count * cycles
