"""What a rate limit does, told once, for every driver of the core.

A scenario is a function of a `RateStage`, which each driver has its own kind of: threads and
asyncio before a real etcd, the same two before the etcd in memory, and the simulator. Most periods
are an hour, so that nothing depends on how fast a machine is; how far apart two starts were is
only said as "at most".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

from etcdsem.model import Rate

RateFate = Literal["started", "none", "closed"]

HOUR = 3600.0


class Asked(Protocol):
    """Somebody asks for a start."""


class RateStage(Protocol):
    """Where a scenario is played. The rate limit is registered with 3 starts an hour."""

    def begin(self, *, client: int = 0, timeout: float | None = None) -> Asked:
        """Somebody asks for a start; back when that is decided, or they stand in line. Clients:
        0, 1.
        """

    def fate(self, asked: Asked) -> RateFate:
        """Wait for what becomes of it."""

    def pending(self, asked: Asked) -> bool:
        """Is it undecided, as far as can be seen now?"""

    def apart(self, first: Asked, second: Asked) -> float:
        """How many seconds the one was started after the other, at most."""

    def retry_after(self, client: int) -> float:
        """What a try that gets no start says."""

    def resize(self, rate: Rate) -> None: ...
    def pause(self) -> bool: ...
    def penalize(self, seconds: float) -> bool: ...
    def resume(self) -> bool: ...
    def evict(self, slot: int) -> None: ...
    def a_moment(self) -> None:
        """Let some hundredths of a second pass."""

    def leave(self, client: int) -> None:
        """A client is closed."""

    def close(self) -> None: ...
    def held(self) -> int: ...
    def waiting(self) -> int: ...


def as_many_as_the_limit(stage: RateStage) -> None:
    """Three start, from whichever client; then nobody does, and is told when to come back."""
    three = [stage.begin(client=number % 2) for number in range(3)]
    assert [stage.fate(one) for one in three] == ["started"] * 3
    assert stage.held() == 3
    assert stage.fate(stage.begin(timeout=0)) == "none"
    assert stage.fate(stage.begin(client=1, timeout=0.2)) == "none"
    assert stage.waiting() == 0
    for client in (0, 1):
        assert 0.5 * HOUR < stage.retry_after(client) < 1.01 * HOUR


def first_come_first_served(stage: RateStage) -> None:
    """Each start that there is more goes to the first in line, across clients."""
    for number in range(3):
        assert stage.fate(stage.begin(client=number % 2)) == "started"
    line = [stage.begin(client=number % 2) for number in range(5)]
    for place, one in enumerate(line):
        assert stage.waiting() == len(line) - place
        stage.resize(Rate(4 + place, HOUR, 1))
        assert stage.fate(one) == "started"
        assert all(stage.pending(other) for other in line[place + 1 :])


def a_period_apart(stage: RateStage) -> None:
    """With two starts in a period, each is at least a period after the last but one."""
    stage.resize(Rate(2, 0.5, 1))
    line = [stage.begin(client=number % 2) for number in range(8)]
    assert [stage.fate(one) for one in line] == ["started"] * 8
    for first, third in zip(line, line[2:], strict=False):
        assert stage.apart(first, third) >= 0.5


def a_raised_limit_lets_start(stage: RateStage) -> None:
    """It holds at once for who waits; a lowered one takes no start back, and gives none."""
    line = [stage.begin(client=number % 2) for number in range(5)]
    stage.resize(Rate(4, HOUR, 1))
    assert [stage.fate(one) for one in line[:4]] == ["started"] * 4
    stage.resize(Rate(2, HOUR, 1))
    assert stage.pending(line[4])
    assert stage.held() == 4
    assert stage.fate(stage.begin(client=1, timeout=0)) == "none"
    stage.resize(Rate(5, HOUR, 1))
    assert stage.fate(line[4]) == "started"


def another_period(stage: RateStage) -> None:
    """Starts already made count for the period in which they were made; those made later for
    theirs.
    """
    three = [stage.begin(client=number % 2) for number in range(3)]
    assert [stage.fate(one) for one in three] == ["started"] * 3
    stage.resize(Rate(3, 0.5, 1))
    assert stage.fate(stage.begin(timeout=0.7)) == "none"
    stage.resize(Rate(4, 0.5, 1))
    line = [stage.begin(client=number % 2) for number in range(3)]
    assert [stage.fate(one) for one in line] == ["started"] * 3
    assert stage.apart(line[0], line[1]) >= 0.5
    assert stage.apart(line[1], line[2]) >= 0.5
    assert stage.held() >= 3


def a_longer_period(stage: RateStage) -> None:
    """A client that has not heard of it gets a start with a lease that lasts for it, at once."""
    assert stage.fate(stage.begin()) == "started"
    stage.resize(Rate(3, 2 * HOUR, 1))
    assert stage.fate(stage.begin(timeout=0)) == "started"
    stage.resize(Rate(4, 3 * HOUR, 2))
    assert stage.fate(stage.begin(timeout=0)) == "none"  # two slots, and both are taken
    stage.resize(Rate(6, 3 * HOUR, 2))
    assert [stage.fate(stage.begin(timeout=0)) for _ in range(3)] == ["started", "started", "none"]


def blocks_of_a_client(stage: RateStage) -> None:
    """A block's starts are its client's; the other takes a block of its own, and then there is
    none for anybody.
    """
    stage.resize(Rate(20, HOUR, 5))
    for client in (0, 1):
        for number in range(10):
            assert stage.fate(stage.begin(client=client)) == "started"
            assert stage.held() == 2 * client + 1 + number // 5
    assert stage.fate(stage.begin(timeout=0)) == "none"
    assert stage.fate(stage.begin(client=1, timeout=0.2)) == "none"


def paused_and_resumed(stage: RateStage) -> None:
    """Paused, nobody starts, not even from a block that somebody has open; resumed, who waits is
    served.
    """
    stage.resize(Rate(100_000, HOUR, 50_000))
    assert stage.fate(stage.begin()) == "started"
    assert stage.pause()
    assert not stage.pause()
    tries = 1
    while stage.fate(stage.begin(timeout=0)) == "started":  # until it has heard of that
        tries += 1
        assert tries < 1000, "the block's client does not hear of the pause"
        stage.a_moment()
    waits = stage.begin(client=1)
    assert stage.pending(waits)
    assert stage.resume()
    assert not stage.resume()
    assert stage.fate(waits) == "started"
    assert stage.held() == 2


def paused_for_a_time(stage: RateStage) -> None:
    """The same by itself: nobody starts for that time, not even from a block that somebody has
    open, and who waits is served when it is over.
    """
    stage.resize(Rate(100_000, HOUR, 50_000))
    assert stage.fate(stage.begin()) == "started"
    assert stage.penalize(5.0)
    assert not stage.penalize(1.0)
    tries = 1
    while stage.fate(stage.begin(timeout=0)) == "started":  # until it has heard of that
        tries += 1
        assert tries < 1000, "the block's client does not hear of the pause"
        stage.a_moment()
    assert 0 < stage.retry_after(1) <= 5.0
    waits = stage.begin(client=1)
    assert stage.pending(waits)
    assert stage.fate(waits) == "started"
    assert not stage.resume()
    assert stage.held() == 2


def an_evicted_start_is_forgotten(stage: RateStage) -> None:
    """Its slot goes to the next in line at once; nothing more is started from its block."""
    three = [stage.begin() for _ in range(3)]
    assert [stage.fate(one) for one in three] == ["started"] * 3
    waits = stage.begin(client=1)
    assert stage.pending(waits)
    stage.evict(1)
    assert stage.fate(waits) == "started"
    assert stage.held() == 3
    assert stage.fate(stage.begin(timeout=0)) == "none"
    stage.resize(Rate(200_000, HOUR, 50_000))
    block = stage.begin()
    assert stage.fate(block) == "started"
    assert stage.held() == 4
    stage.evict(3)
    tries = 0
    while stage.held() == 3:  # what is left of the block is used, until its owner has heard of it
        assert stage.fate(stage.begin(timeout=0)) == "started"
        tries += 1
        assert tries < 1000, "the block's client does not hear of the eviction"
        stage.a_moment()


def who_leaves_keeps_its_starts(stage: RateStage) -> None:
    """A client that is closed gives no start back; etcd does, when the period is over."""
    stage.resize(Rate(2, 1.0, 1))
    two = [stage.begin() for _ in range(2)]
    assert [stage.fate(one) for one in two] == ["started"] * 2
    stage.leave(0)
    line = [stage.begin(client=1) for _ in range(2)]
    assert [stage.fate(one) for one in line] == ["started"] * 2
    assert stage.apart(two[0], line[0]) >= 1.0
    assert stage.apart(two[1], line[1]) >= 1.0


def closing_wakes_the_line(stage: RateStage) -> None:
    """Who waits is told at once; who comes, too."""
    for _ in range(3):
        assert stage.fate(stage.begin()) == "started"
    line = [stage.begin(client=number % 2) for number in range(4)]
    stage.close()
    assert [stage.fate(one) for one in line] == ["closed"] * 4
    assert stage.fate(stage.begin(client=1)) == "closed"


RATE_SCENARIOS: tuple[Callable[[RateStage], None], ...] = (
    as_many_as_the_limit,
    first_come_first_served,
    a_period_apart,
    a_raised_limit_lets_start,
    another_period,
    a_longer_period,
    blocks_of_a_client,
    paused_and_resumed,
    paused_for_a_time,
    an_evicted_start_is_forgotten,
    who_leaves_keeps_its_starts,
    closing_wakes_the_line,
)

FIRST_RATE = Rate(3, HOUR, 1)
"""With which each scenario begins."""
