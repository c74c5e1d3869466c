"""Decisions over what was seen."""

from __future__ import annotations

import pytest

from etcdsem.core import decisions
from etcdsem.core.commands import KeyValue
from etcdsem.core.decisions import FEW
from etcdsem.core.keys import Keys, Limit, Queued
from etcdsem.core.transactions import MAX_DEPTH, HeldSlots, Look

KEYS = Keys("/etcdsem", "x", "host.1.a")
MINE = HeldSlots(1, 50, b"host.1.a/0", has_message=False)
FIRST = Queued(b"host.2.b/0000000000000002", 2, 60, b"")
SECOND = Queued(b"host.3.c/0000000000000003", 3, 61, b"")


def limit(number: int | None) -> Limit:
    """A limit in force."""
    return Limit(number, 10, registered=True, text=str(number))


def look(
    number: int | None,
    slots: dict[int, int],
    queue: tuple[Queued, ...] = (),
    *,
    complete: bool = True,
    junk: tuple[bytes, ...] = (),
    priorities: int = 0,
) -> Look:
    """What was seen at revision 100: slots with their tokens."""
    keys = [KeyValue(KEYS.slot(slot), b"", token, token, 9) for slot, token in slots.items()]
    keys += [KeyValue(KEYS.leases + name, b"", 5, 5) for name in junk]
    return Look(
        100, limit(number), tuple(keys), queue, complete, contended=True, priorities=priorities
    )


@pytest.mark.parametrize("draw", [0.0, 0.5, 0.999])
@pytest.mark.parametrize("room", [1, 3, 16, 100])
def test_candidates(room: int, draw: float) -> None:
    """Different slots below the limit: few where that is likely enough, else sixteen at most,
    all of them where there are few.
    """
    for favourite, few in ((2, True), (2, False), (None, True)):
        slots = decisions.candidates(limit(room), favourite, draw, {1}, few=few)
        known = favourite is not None and favourite < room
        others = room - (room > 1)
        assert len(slots) == len(set(slots)) == min(others, FEW if few else MAX_DEPTH)
        assert all(0 <= slot < room and slot != 1 for slot in slots)
        assert favourite == slots[0] or not known
    assert decisions.candidates(limit(None), None, draw, (), few=True) == []
    assert decisions.candidates(limit(0), 0, draw, (), few=True) == []


@pytest.mark.parametrize(
    ("seen", "step"),
    [
        (look(3, {0: 40}), decisions.Gone()),
        (look(3, {1: 51}), decisions.Gone()),
        (look(1, {1: 50}, (FIRST,)), decisions.Retire()),
        (look(2, {0: 40, 1: 50, 7: 45}, (FIRST,)), decisions.Retire()),
        # The first slot above the limit is surplus too: etcd would refuse a PASS for ever.
        (look(2, {1: 50, 2: 45}, (FIRST,)), decisions.Retire()),
        (look(None, {1: 50}, (FIRST,)), decisions.Retire()),
        (look(2, {1: 50}, (FIRST, SECOND)), decisions.Pass(limit(2), (FIRST, SECOND), 0, 100)),
        (look(2, {1: 50}), decisions.Clear(100)),
        (look(2, {1: 50}, complete=False), decisions.ReadAll()),
        # With priorities in use the first of the line may be behind the part that was read.
        (
            look(2, {1: 50}, (FIRST, SECOND), complete=False, priorities=70),
            decisions.ReadAll(),
        ),
        (
            look(2, {1: 50}, (FIRST, SECOND), priorities=70),
            decisions.Pass(limit(2), (FIRST, SECOND), 70, 100),
        ),
    ],
)
def test_how_to_give_back(seen: Look, step: object) -> None:
    """Not mine, above the limit, somebody waits, nobody waits, or not known."""
    assert decisions.give_back(KEYS, MINE, seen) == step


def test_a_holder_does_not_stand_in_line() -> None:
    """An entry of who gives back is older than its grant: it is passed over, or the line is asked
    for.
    """
    own = Queued(MINE.who, 1, 30, b"")
    step = decisions.hand_over(MINE, limit(2), (own, FIRST))
    assert step == decisions.Pass(limit(2), (FIRST,))
    assert decisions.hand_over(MINE, limit(2), (own,)) == decisions.Ask()
    heavy = own._replace(extras=b'{"weight":2}')
    assert decisions.hand_over(MINE, limit(2), (heavy, FIRST)) == step


@pytest.mark.parametrize(
    ("seen", "step"),
    [
        (
            look(2, {0: 1}, (FIRST, SECOND)),
            decisions.Fill((((1,), FIRST),), (SECOND,), False, False),
        ),
        (
            look(3, {0: 1}, (FIRST, SECOND)),
            decisions.Fill((((1,), FIRST), ((2,), SECOND)), (), False, True),
        ),
        (
            look(3, {0: 1}, (FIRST, SECOND), complete=False),
            decisions.Fill((((1,), FIRST), ((2,), SECOND)), (), False, False),
        ),
        (
            look(3, {5: 1}, (FIRST, SECOND)),
            decisions.Fill((((0,), FIRST),), (SECOND,), True, False),
        ),
        (look(2, {0: 1, 1: 2}, (FIRST,)), None),
        (look(2, {0: 1}), None),
        (look(2, {0: 1}, complete=False), decisions.ReadAll()),
        (look(0, {}, (FIRST,)), None),
        (look(None, {}, (FIRST,)), None),
        # Slots above a lowered limit: only the count can tell whether there is room.
        (look(2, {5: 1}, (FIRST,)), decisions.Fill((((0,), FIRST),), (), True, True)),
        (look(2, {2: 1}, (FIRST,)), decisions.Fill((((0,), FIRST),), (), True, True)),
        (look(2, {5: 1, 6: 2}, (FIRST,)), None),
        (look(2, {0: 1, 6: 2}, (FIRST,)), None),
        (look(2, {0: 1}, (FIRST,), complete=False, priorities=70), decisions.ReadAll()),
        # Junk that sorts above the limit is no grant; junk in a slot's place is not free.
        (
            look(2, {}, (FIRST,), junk=(b"7", b"9")),
            decisions.Fill((((0,), FIRST),), (), True, True),
        ),
        (
            look(2, {}, (FIRST,), junk=(b"00000",)),
            decisions.Fill((((1,), FIRST),), (), False, True),
        ),
    ],
)
def test_what_to_fill(seen: Look, step: object) -> None:
    """The first free slot for the first in line, where there is room."""
    assert decisions.next_fill(KEYS, seen) == step


def test_free_slots_are_few() -> None:
    """Sixteen at most, also where thousands are free."""
    assert decisions.free_slots(KEYS, look(9999, {0: 1, 2: 1})) == [1, *range(3, 18)]


def test_a_crowd_spreads_out() -> None:
    """Few clients look at once; of many, the more there are, the wider they spread, up to a bound;
    the first of them comes as early as if they were few.
    """
    queue = tuple(
        Queued(f"host.{n % 10}.x/{n:016x}".encode(), n, 60 + n, b"") for n in range(1, 21)
    )
    assert decisions.waiting_clients(look(1, {})) == 0
    assert decisions.waiting_clients(look(1, {}, queue)) == 10
    behind = look(1, {}, queue, complete=False)._replace(waiting=200)
    assert decisions.waiting_clients(behind) == 100
    assert decisions.healing_window(0) == decisions.healing_window(1) == decisions.HEAL_DELAY
    for clients in (10, 100, 400):
        expected_first = decisions.healing_window(clients) / clients
        assert expected_first <= decisions.HEAL_DELAY / 2
    assert decisions.healing_window(100) == pytest.approx(0.5)
    assert decisions.healing_window(100_000) == decisions.LONGEST_HEAL_DELAY


@pytest.mark.parametrize("draw", [0.0, 0.5, 0.999])
@pytest.mark.parametrize("room", [0, 1, 2, 7, 64])
def test_spread_gives_each_slot_once(room: int, draw: float) -> None:
    """In random strides, and none where there is no room (several threads at a limit of 0)."""
    assert sorted(decisions.spread(room, draw)) == list(range(room))
