"""What a semaphore does, told once, for every driver of the core.

A scenario is a function of a `Stage`. On the stage, attempts to acquire are made by clients; the
stage knows how to begin one, to wait for what becomes of it, and to act upon it. Each stage ends
by judging what etcd recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

from etcdsem.core.keys import ORDINARY, Demand

Fate = Literal["granted", "full", "closed", "cancelled", "too heavy"]


class Attempt(Protocol):
    """One attempt to acquire, by somebody."""

    @property
    def slot(self) -> int: ...
    @property
    def slots(self) -> tuple[int, ...]: ...
    @property
    def token(self) -> int: ...


class Stage(Protocol):
    """Where a scenario is played. The semaphore is registered with a limit; clients: 0, 1."""

    def begin(
        self, *, client: int = 0, timeout: float | None = None, demand: Demand = ORDINARY
    ) -> Attempt:
        """Somebody begins to acquire; back when that is decided, or they stand in line."""

    def fate(self, attempt: Attempt) -> Fate:
        """Wait for what becomes of it."""

    def pending(self, attempt: Attempt) -> bool:
        """Is it undecided, as far as can be seen now?"""

    def release(self, attempt: Attempt) -> bool: ...
    def cancel(self, attempt: Attempt) -> None: ...
    def wait_lost(self, attempt: Attempt) -> None:
        """Wait until its holder was told that the lease is lost."""

    def valid(self, attempt: Attempt) -> bool: ...
    def resize(self, limit: int) -> None: ...
    def pause(self) -> bool: ...
    def penalize(self, seconds: float) -> bool: ...
    def resume(self) -> bool: ...
    def evict(self, slot: int) -> None: ...
    def close(self) -> None: ...
    def held(self) -> int: ...
    def waiting(self) -> int: ...


def uncontended(stage: Stage) -> None:
    """As many as the limit hold, each another slot; tokens grow; all is given back."""
    three = [stage.begin(client=number % 2) for number in range(3)]
    assert [stage.fate(one) for one in three] == ["granted"] * 3
    assert {one.slot for one in three} == {0, 1, 2}
    assert [one.token for one in three] == sorted(one.token for one in three)
    assert stage.held() == 3
    assert all(stage.release(one) for one in three)
    assert stage.held() == 0


def contended_in_order(stage: Stage) -> None:
    """First in, first out, across clients, one for each release."""
    line = [stage.begin(client=number % 2) for number in range(9)]
    for place, one in enumerate(line):
        assert stage.fate(one) == "granted"
        later = line[place + 3 :]
        assert all(stage.pending(other) for other in later)
        assert stage.waiting() == len(later)
        assert stage.release(one)
    assert stage.held() == 0


def timeout_means_full(stage: Stage) -> None:
    """Without room the answer is "full", at once or after a while; the line is left."""
    three = [stage.begin() for _ in range(3)]
    assert stage.fate(stage.begin(timeout=0)) == "full"
    assert stage.fate(stage.begin(client=1, timeout=0)) == "full"
    assert stage.fate(stage.begin(client=1, timeout=0.2)) == "full"
    assert stage.waiting() == 0
    assert all(stage.release(one) for one in three)
    last = stage.begin(client=1, timeout=0)
    assert stage.fate(last) == "granted"
    stage.release(last)


def a_raised_limit_wakes(stage: Stage) -> None:
    """New room goes to the first in line; a lowered limit evicts nobody, and lets nobody in."""
    line = [stage.begin(client=number % 2) for number in range(6)]
    stage.resize(5)
    assert [stage.fate(one) for one in line[:5]] == ["granted"] * 5
    assert stage.pending(line[5])
    stage.resize(2)
    for one in line[:3]:
        assert stage.release(one)
    assert stage.held() == 2
    assert stage.pending(line[5])
    assert stage.valid(line[3])
    assert stage.release(line[3])
    assert stage.fate(line[5]) == "granted"
    stage.release(line[4])
    stage.release(line[5])


def paused_and_resumed(stage: Stage) -> None:
    """While paused nobody gets in, and slots that are given back stay free; a resize keeps the
    pause. Resumed, those who wait are served in order.
    """
    line = [stage.begin(client=number % 2) for number in range(5)]
    assert stage.pause()
    assert not stage.pause()
    assert stage.release(line[0])
    assert stage.held() == 2
    line.append(stage.begin(client=1))
    stage.resize(4)
    assert stage.fate(stage.begin(timeout=0)) == "full"
    assert stage.fate(stage.begin(client=1, timeout=0.2)) == "full"
    assert all(stage.pending(one) for one in line[3:])
    assert all(stage.valid(one) for one in line[1:3])
    assert stage.held() == 2
    assert stage.resume()
    assert not stage.resume()
    assert [stage.fate(one) for one in line[3:5]] == ["granted"] * 2
    assert stage.pending(line[5])
    assert stage.release(line[1])
    assert stage.fate(line[5]) == "granted"
    for one in line[2:]:
        assert stage.release(one)
    assert stage.held() == 0


def paused_for_a_time(stage: Stage) -> None:
    """A pause that ends by itself: nobody gets in meanwhile, and then those who wait are served,
    without anybody's help. A shorter one changes nothing; a longer one, or one without an end,
    replaces it.
    """
    line = [stage.begin(client=number % 2) for number in range(5)]
    assert stage.penalize(1.0)
    assert stage.penalize(5.0)
    assert not stage.penalize(1.0)
    assert stage.release(line[0])
    assert stage.release(line[1])
    assert stage.fate(stage.begin(client=1, timeout=0)) == "full"
    assert all(stage.pending(one) for one in line[3:])
    assert [stage.fate(one) for one in line[3:]] == ["granted"] * 2
    assert not stage.resume()
    assert stage.penalize(60.0)
    assert stage.pause()
    assert not stage.penalize(90.0)
    assert stage.resume()
    for one in line[2:]:
        assert stage.release(one)
    assert stage.penalize(60.0)
    assert stage.fate(stage.begin(timeout=0)) == "full"
    assert stage.resume()
    last = stage.begin(timeout=0)
    assert stage.fate(last) == "granted"
    assert stage.release(last)


def an_evicted_holder_is_told(stage: Stage) -> None:
    """Its lease is lost, the slot goes on; giving it back later takes nothing from the next."""
    three = [stage.begin() for _ in range(3)]
    fourth = stage.begin(client=1)
    stage.evict(three[1].slot)
    assert stage.fate(fourth) == "granted"
    assert fourth.slot == three[1].slot
    stage.wait_lost(three[1])
    assert not stage.valid(three[1])
    assert stage.release(three[1]) is False
    assert stage.held() == 3
    assert stage.valid(fourth)
    for one in (three[0], three[2], fourth):
        assert stage.release(one)


def closing_wakes_the_line(stage: Stage) -> None:
    """Who waits is told at once; who holds loses the lease."""
    holders = [stage.begin() for _ in range(3)]
    waiters = [stage.begin(client=number % 2) for number in range(4)]
    stage.close()
    assert [stage.fate(one) for one in waiters] == ["closed"] * 4
    for one in holders:
        stage.wait_lost(one)
        assert stage.release(one) is False
    assert stage.fate(stage.begin(client=1)) == "closed"


def releasing_twice(stage: Stage) -> None:
    """A second release of the same lease adds no room."""
    three = [stage.begin() for _ in range(3)]
    assert stage.release(three[0])
    assert stage.release(three[0]) is False
    again = stage.begin(timeout=0)
    assert stage.fate(again) == "granted"
    assert stage.fate(stage.begin(timeout=0)) == "full"
    for one in (*three[1:], again):
        assert stage.release(one)


def cancelled_in_line(stage: Stage) -> None:
    """Who is cancelled leaves the line; who stands behind is served in turn."""
    three = [stage.begin() for _ in range(3)]
    line = [stage.begin(client=number % 2) for number in range(4)]
    stage.cancel(line[0])
    stage.cancel(line[2])
    assert stage.fate(line[0]) == "cancelled"
    assert stage.fate(line[2]) == "cancelled"
    assert stage.waiting() == 2
    assert stage.release(three[0])
    assert stage.fate(line[1]) == "granted"
    assert stage.pending(line[3])
    assert stage.release(three[1])
    assert stage.fate(line[3]) == "granted"
    for one in (three[2], line[1], line[3]):
        assert stage.release(one)


def a_big_one_in_its_turn(stage: Stage) -> None:
    """All or nothing, not passed by small ones, with room enough for it at last."""
    three = [stage.begin(client=number % 2) for number in range(3)]
    assert all(stage.fate(one) == "granted" for one in three)
    big = stage.begin(client=1, demand=Demand(weight=2))
    small = stage.begin()
    assert stage.release(three[0])
    assert stage.held() == 2
    assert stage.pending(big)
    assert stage.pending(small)
    assert stage.fate(stage.begin(timeout=0)) == "full"
    assert stage.release(three[1])
    assert stage.fate(big) == "granted"
    assert set(big.slots) == {three[0].slot, three[1].slot}
    assert stage.pending(small)
    assert stage.release(big)
    assert stage.fate(small) == "granted"
    assert stage.release(small)
    assert stage.release(three[2])
    assert stage.held() == 0


def a_big_one_that_leaves(stage: Stage) -> None:
    """Who stands behind it is served at once, though no slot is freed."""
    two = [stage.begin() for _ in range(2)]
    big = stage.begin(client=1, demand=Demand(weight=3))
    small = stage.begin()
    assert stage.pending(small)
    stage.cancel(big)
    assert stage.fate(big) == "cancelled"
    assert stage.fate(small) == "granted"
    for one in (*two, small):
        assert stage.release(one)


def big_ones_in_turn(stage: Stage) -> None:
    """Many want more than half of the slots, or all of them: one after the other has them."""
    line = [stage.begin(client=n % 2, demand=Demand(weight=2 + n % 2)) for n in range(6)]
    for place, one in enumerate(line):
        assert stage.fate(one) == "granted"
        assert len(one.slots) == 2 + place % 2
        assert all(stage.pending(other) for other in line[place + 1 :])
        assert stage.release(one)
    assert stage.held() == 0


def more_than_the_limit(stage: Stage) -> None:
    """It is refused at once, and after a shrink."""
    assert stage.fate(stage.begin(demand=Demand(weight=4), timeout=5)) == "too heavy"
    one = stage.begin()
    assert stage.fate(one) == "granted"
    big = stage.begin(client=1, demand=Demand(weight=3))
    assert stage.pending(big)
    stage.resize(2)
    assert stage.fate(big) == "too heavy"
    assert stage.release(one)
    assert stage.waiting() == 0


def eager_ones_pass(stage: Stage) -> None:
    """One that is eager takes what a big one in front of it leaves free; others don't."""
    two = [stage.begin(), stage.begin()]
    big = stage.begin(client=1, demand=Demand(weight=3))
    patient = stage.begin()
    eager = stage.begin(client=1, demand=Demand(backfill=True))
    assert stage.fate(eager) == "granted"
    assert stage.pending(big)
    assert stage.pending(patient)
    for one in (*two, eager):
        assert stage.release(one)
    assert stage.fate(big) == "granted"
    assert stage.release(big)
    assert stage.fate(patient) == "granted"
    assert stage.release(patient)


def the_highest_first(stage: Stage) -> None:
    """By priority, then by who came first."""
    three = [stage.begin() for _ in range(3)]
    wanted = [0, -1, 7, 0, 7]
    line = [stage.begin(client=n % 2, demand=Demand(priority=p)) for n, p in enumerate(wanted)]
    order = [line[place] for place in (2, 4, 0, 3, 1)]
    held = list(three)
    for place, one in enumerate(order):
        assert stage.release(held.pop(0))
        assert stage.fate(one) == "granted"
        assert all(stage.pending(other) for other in order[place + 1 :])
        held.append(one)
    for one in held:
        assert stage.release(one)
    assert stage.held() == 0


SCENARIOS: tuple[Callable[[Stage], None], ...] = (
    uncontended,
    contended_in_order,
    timeout_means_full,
    a_raised_limit_wakes,
    paused_and_resumed,
    paused_for_a_time,
    an_evicted_holder_is_told,
    closing_wakes_the_line,
    releasing_twice,
    cancelled_in_line,
    a_big_one_in_its_turn,
    a_big_one_that_leaves,
    big_ones_in_turn,
    more_than_the_limit,
    eager_ones_pass,
    the_highest_first,
)

LIMIT = 3
"""With which each scenario begins."""
