"""Several semaphores at once: all or nothing, without deadlock, on each etcd and both surfaces."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any

import pytest

import etcdsem
import etcdsem.testing
from etcdsem import aio
from etcdsem.core import multi
from etcdsem.core.commands import Command, OutcomeUnknown, Transact
from etcdsem.errors import (
    AcquireTimeout,
    EtcdSemError,
    EtcdUnavailable,
    InvalidSetting,
    LeaseLost,
    SemaphoreClosed,
    WrongKind,
)
from etcdsem.model import MAX_SEMAPHORES
from etcdsem.server import EtcdServer
from tests.helpers.event_loop import run, until
from tests.helpers.history import assert_clean
from tests.helpers.meddling import Hit, Saboteur
from tests.helpers.waiting import eventually

Pair = tuple[etcdsem.Semaphore, etcdsem.Semaphore]


@pytest.fixture
def pair(client: etcdsem.Client, name: str) -> Pair:
    """Two semaphores of limits 2 and 1."""
    return (
        etcdsem.Semaphore(2, f"{name}-a", client=client),
        etcdsem.Semaphore(1, f"{name}-b", client=client),
    )


@pytest.fixture
def other(etcd: EtcdServer, pair: Pair) -> Iterator[Pair]:
    """The same two, of another client."""
    with etcdsem.connect(etcd.endpoint) as one:
        a, b = pair
        yield etcdsem.Semaphore(2, a.name, client=one), etcdsem.Semaphore(1, b.name, client=one)


def begin(function: Callable[[], Any]) -> Future[Any]:
    """Do something in a thread of its own."""
    outcome: Future[Any] = Future()

    def work() -> None:
        try:
            outcome.set_result(function())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return outcome


def waiting(*semaphores: etcdsem.Semaphore) -> list[int]:
    return [len(one.status(ttl=False).waiters) for one in semaphores]


def held(*semaphores: etcdsem.Semaphore) -> list[int]:
    return [one.get_value() for one in semaphores]


# ---------------------------------------------------------------- where all are free


def test_all_are_granted_in_one_transaction(any_etcd: EtcdServer, pair: Pair) -> None:
    """Same fencing token, an etcd lease for each, listed by each semaphore."""
    a, b = pair
    leases = etcdsem.acquire_all(b, a)
    assert leases is not None
    assert [one.name for one in leases] == [b.name, a.name]
    assert leases[0].fencing_token == leases[1].fencing_token
    assert leases[0].id != leases[1].id
    assert (b.leases, a.leases) == ((leases[0],), (leases[1],))
    assert held(a, b) == [1, 1]
    assert leases[0].release()
    assert leases[1].valid
    assert held(a, b) == [1, 0]
    assert a.release()
    assert held(a, b) == [0, 0]
    for one in pair:
        assert_clean(any_etcd, one.name)


@pytest.mark.parametrize("full", [0, 1])
def test_none_is_taken_where_one_is_full(
    any_etcd: EtcdServer, pair: Pair, other: Pair, full: int
) -> None:
    """Tried once, or for a while: None, and nothing is held or waited for of any."""
    taken = [other[full].acquire() for _ in range(pair[full].max_leases or 0)]
    assert all(taken)
    before = held(*pair)
    assert etcdsem.acquire_all(*pair, timeout=0) is None
    assert etcdsem.acquire_all(*pair, timeout=0.3) is None
    assert held(*pair) == before
    assert waiting(*pair) == [0, 0]
    other[full].release()
    leases = etcdsem.acquire_all(*pair, timeout=0)
    assert leases is not None
    for one in leases:
        one.release()


def test_nobody_is_overtaken(pair: Pair, other: Pair) -> None:
    """Room in all of them is not enough: who stands in line comes first."""
    a, b = pair
    with other[1].hold():
        first = begin(b.acquire_lease)
        eventually(lambda: waiting(b) == [1])
        assert etcdsem.acquire_all(a, b, timeout=0) is None
    assert first.result(20).release()
    assert held(a, b) == [0, 0]


def test_a_mark_left_behind_is_no_line(client: etcdsem.Client, any_etcd: EtcdServer) -> None:
    """`contended` of a line that has gone does not keep anybody out."""
    a, b = (etcdsem.Semaphore(1, client=client) for _ in range(2))
    any_etcd.etcdctl("put", f"/etcdsem/{b.name}/contended", "1")
    leases = etcdsem.acquire_all(a, b, timeout=0)
    assert leases is not None
    for one in leases:
        one.release()


def test_as_many_as_fit_into_one_transaction(client: etcdsem.Client, any_etcd: EtcdServer) -> None:
    """The bound, and a failing look at all of them, are within what etcd takes."""
    many = [etcdsem.Semaphore(1, client=client) for _ in range(MAX_SEMAPHORES)]
    with etcdsem.hold_all(*many) as leases:
        assert len({one.fencing_token for one in leases}) == 1
        assert etcdsem.acquire_all(*many, timeout=0) is None
    assert held(*many) == [0] * MAX_SEMAPHORES
    one_more = etcdsem.Semaphore(1, client=client)
    with pytest.raises(InvalidSetting, match="takes 1 to 8"):
        etcdsem.acquire_all(*many, one_more)


# ---------------------------------------------------------------- what cannot be


def test_bad_input(pair: Pair, other: Pair) -> None:
    """Each is refused with a message that says what to do; nothing is taken."""
    a, b = pair
    with pytest.raises(InvalidSetting, match="given twice"):
        etcdsem.acquire_all(a, a)
    with pytest.raises(InvalidSetting, match="the same client"):
        etcdsem.acquire_all(a, other[1])
    with pytest.raises(InvalidSetting, match="not 0"):
        etcdsem.acquire_all()
    with pytest.raises(TypeError, match="pass a timeout by name"):
        etcdsem.acquire_all(a, b, 5)  # type: ignore[arg-type]
    with pytest.raises(InvalidSetting):
        etcdsem.acquire_all(a, b, timeout=-1)
    assert held(a, b) == [0, 0]


@pytest.mark.parametrize("what", [{"weight": 2}, {"priority": 5}, {"backfill": True}])
def test_what_is_not_taken_together(pair: Pair, what: dict[str, Any]) -> None:
    """Weights, priorities, eager ones: refused at once, with what to do instead."""
    message = rf"do not support {next(iter(what))}="
    with pytest.raises(InvalidSetting, match=message):
        etcdsem.acquire_all(*pair, **what)
    with pytest.raises(InvalidSetting, match=message), etcdsem.hold_all(*pair, **what):
        pytest.fail("it was held")
    with pytest.raises(InvalidSetting, match=message):
        aio.hold_all(**what)

    async def in_a_loop() -> None:
        await aio.acquire_all(**what)

    with pytest.raises(InvalidSetting, match=message):
        run(in_a_loop())
    assert held(*pair) == [0, 0]


def test_a_rate_limit_is_no_semaphore(client: etcdsem.Client, pair: Pair, name: str) -> None:
    """WrongKind names it, and nothing is held of the others."""
    etcdsem.RateLimit(f"{name}-r", 5, "1m", client=client)
    rate = etcdsem.Semaphore(5, f"{name}-r", client=client, register=False)
    with pytest.raises(WrongKind, match=rate.name):
        etcdsem.acquire_all(pair[0], rate, timeout=0)
    assert held(pair[0]) == [0]


def test_closed_names_which(pair: Pair, other: Pair) -> None:
    """Before it, and while waiting in line; nothing is held of the others then."""
    a, b = pair
    with other[1].hold():
        outcome = begin(lambda: etcdsem.acquire_all(a, b))
        eventually(lambda: waiting(b) == [1])
        with contextlib.suppress(EtcdSemError):
            other[1].close()
        with pytest.raises(SemaphoreClosed, match=b.name):
            outcome.result(20)
        other[1].raise_on_loss = False
    with pytest.raises(SemaphoreClosed, match=b.name):
        etcdsem.acquire_all(a, b)
    assert held(a) == [0]


def test_etcd_away_is_an_error(etcd_binary: str) -> None:
    """Not None: that only ever means full."""
    with etcdsem.server.start(binary=etcd_binary) as one, etcdsem.connect(one.endpoint) as client:
        a, b = (etcdsem.Semaphore(1, client=client) for _ in range(2))
        one.stop()
        with pytest.raises(EtcdUnavailable, match=a.name):
            etcdsem.acquire_all(a, b, timeout=0.5)


# ---------------------------------------------------------------- waiting


def test_it_waits_while_it_holds_nothing(any_etcd: EtcdServer, pair: Pair, other: Pair) -> None:
    """In one line only; and `on_wait` says in which."""
    a, b = pair
    lines: list[str] = []
    held_by_other = other[1].acquire_lease()
    assert held_by_other is not None
    outcome = begin(lambda: etcdsem.acquire_all(a, b, on_wait=lines.append))
    eventually(lambda: waiting(b) == [1])
    assert (held(a), waiting(a)) == ([0], [0])
    assert lines == [b.name]
    held_by_other.release()
    leases = outcome.result(20)
    assert held(a, b) == [1, 1]
    for one in leases:
        assert one.release()
    for semaphore in pair:
        assert_clean(any_etcd, semaphore.name)


def test_the_line_moves_on_where_the_other_is_full(
    any_etcd: EtcdServer, pair: Pair, other: Pair
) -> None:
    """Granted at one and not at the other, it passes the slot on, and waits at the other."""
    a, b = pair
    two = [other[0].acquire_lease() for _ in range(2)]
    its = other[1].acquire_lease()
    assert its is not None
    outcome = begin(lambda: etcdsem.acquire_all(b, a))
    eventually(lambda: waiting(b) == [1])
    behind = begin(other[1].acquire_lease)
    eventually(lambda: waiting(b) == [2])
    its.release()
    next_one = behind.result(20)  # at once, though a is full still
    eventually(lambda: waiting(a, b) == [1, 0])
    assert not outcome.done()
    for lease in two:
        assert lease is not None
        lease.release()
    eventually(lambda: waiting(a, b) == [0, 1])
    next_one.release()
    for lease in outcome.result(20):
        assert lease.release()
    for semaphore in pair:
        assert_clean(any_etcd, semaphore.name)


def release(lease: etcdsem.Lease | None) -> None:
    assert lease is not None
    assert lease.release()


def test_who_was_crowded_out_waits_in_order_while_holding(
    any_etcd: EtcdServer, client: etcdsem.Client, name: str
) -> None:
    """After three rounds it stands in line at one while it holds the one before it."""
    a, b = (etcdsem.Semaphore(1, f"{name}-{letter}", client=client) for letter in "ab")
    with etcdsem.connect(any_etcd.endpoint) as blocker:
        blocking = {one: etcdsem.Semaphore(1, one.name, client=blocker) for one in (a, b)}
        taken = {one: blocking[one].acquire_lease(20) for one in (a, b)}

        def crowd_out(one: etcdsem.Semaphore) -> None:
            """It is granted one of them, and has to pass it on to the blocker again."""
            eventually(lambda: waiting(one) == [1])
            behind = begin(lambda: blocking[one].acquire_lease(20))
            eventually(lambda: waiting(one) == [2])
            release(taken[one])
            taken[one] = behind.result(20)

        outcome = begin(lambda: etcdsem.acquire_all(b, a))
        for number in range(multi.ROUNDS):
            crowd_out(a if number % 2 else b)
        eventually(lambda: waiting(a, b) == [1, 0])
        release(taken[a])
        eventually(lambda: waiting(a, b) == [0, 1])
        assert [one.client for one in a.holders()] == [client.id]
        assert not outcome.done()
        release(taken[b])
        for lease in outcome.result(20):
            release(lease)
    for semaphore in (a, b):
        assert_clean(any_etcd, semaphore.name)


# ---------------------------------------------------------------- blocks, losses


def test_a_block_holds_all_and_names_what_was_lost(pair: Pair) -> None:
    """LeaseLost at its end names the lost one; the others are given back all the same."""
    a, b = pair
    lost: list[str] = []
    a.on_lost = lambda lease: lost.append(lease.name)
    with pytest.raises(LeaseLost, match=a.name) as caught, etcdsem.hold_all(a, b) as (la, lb):
        a.client.evict(a.name, slot=la.slot)
        assert la.lost.wait(20)
        assert lb.valid
    assert b.name not in str(caught.value)
    eventually(lambda: lost == [a.name])
    assert held(a, b) == [0, 0]
    with pytest.raises(ZeroDivisionError), etcdsem.hold_all(a, b):
        raise ZeroDivisionError
    assert held(a, b) == [0, 0]


def test_a_block_without_room_says_which_is_full(pair: Pair, other: Pair) -> None:
    """AcquireTimeout, and the body does not run."""
    block = etcdsem.hold_all(*pair, timeout=0.1)
    with (
        other[1].hold(),
        pytest.raises(AcquireTimeout, match=f"'{pair[1].name}' prevented it: it had no free lease"),
        block,
    ):
        pytest.fail("no room")


# ---------------------------------------------------------------- interrupted


@pytest.mark.parametrize("full", ["none", "b", "by turns"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("kind", ["interrupted", "unknown"])
def test_nothing_is_left_behind(
    etcd: EtcdServer, name: str, monkeypatch: pytest.MonkeyPatch, full: str, after: bool, kind: str
) -> None:
    """Hit at each step in turn, also where it waits while it holds: no key of it stays."""
    if full == "by turns":  # at once in the order of names: it holds a while it waits for b
        monkeypatch.setattr(multi, "ROUNDS", 0)
    hits = 0
    with etcdsem.connect(etcd.endpoint) as holder:
        theirs = [etcdsem.Semaphore(1, f"{name}-{one}", client=holder) for one in "ab"]
        if full != "none":
            theirs[1].acquire()
        before = held(*theirs)
        for step in range(1, 14):
            with etcdsem.connect(etcd.endpoint) as client:
                pair = [etcdsem.Semaphore(1, one.name, client=client) for one in theirs]
                error = Hit() if kind == "interrupted" else OutcomeUnknown("sabotage")
                saboteur = Saboteur(client, step, error, after=after)
                with contextlib.suppress(Hit, EtcdUnavailable):
                    leases = etcdsem.acquire_all(*pair, timeout=5 if full == "none" else 0.15)
                    for one in leases or ():
                        one.release()
                saboteur.disarm()
                hits += saboteur.hit
                for lease in (*pair[0].leases, *pair[1].leases):
                    lease.release()
                session = client._driver.session
                eventually(partial(lambda leases: leases.revocations == 0, session.leases))
                assert not session.grants()
                eventually(lambda: held(*theirs) == before and waiting(*theirs) == [0, 0])
        if full != "none":
            theirs[1].release()
    for semaphore in theirs:
        assert_clean(etcd, semaphore.name)
    assert hits >= 3, "hardly a step was hit"


# ---------------------------------------------------------------- philosophers

TURNS = 20


def test_dining_philosophers(any_etcd: EtcdServer, name: str) -> None:
    """Five forks, five threads with a client each, left fork first: all get their turns."""
    forks = [f"{name}-{number}" for number in range(5)]
    eating = [0] * 5
    failures: list[str] = []

    def dine(place: int) -> int:
        with etcdsem.connect(any_etcd.endpoint) as mine:
            left, right = (
                etcdsem.Semaphore(1, forks[number % 5], client=mine)
                for number in (place, place + 1)
            )
            for _ in range(TURNS):
                with etcdsem.hold_all(left, right, timeout=60):
                    eating[place] += 1
                    if eating[place - 1] or eating[(place + 1) % 5]:
                        failures.append(f"{place} eats beside a neighbour: {eating}")
                    eating[place] -= 1
        return TURNS

    dinners = [begin(partial(dine, place)) for place in range(5)]
    assert [dinner.result(120) for dinner in dinners] == [TURNS] * 5
    assert not failures
    for fork in forks:
        assert_clean(any_etcd, fork)


# ---------------------------------------------------------------- asyncio


def test_in_asyncio(any_etcd: EtcdServer, name: str) -> None:
    """The same there: all or none, in one line, cancelled, and blocks."""

    async def main() -> None:
        async with aio.connect(any_etcd.endpoint) as mine:
            a, b = (aio.Semaphore(1, f"{name}-{one}", client=mine) for one in "ab")
            async with aio.hold_all(a, b) as leases:
                assert [one.name for one in leases] == [a.name, b.name]
                assert await aio.acquire_all(a, b, timeout=0) is None
                assert await aio.acquire_all(a, b, timeout=0.1) is None
                task = asyncio.create_task(aio.acquire_all(a, b))
                await _until_waiting(a, 1)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert await a.waiters() == await b.waiters() == ()
                task = asyncio.create_task(aio.acquire_all(b, a))
                await _until_waiting(b, 1)
            taken = await task
            assert taken is not None
            assert (await a.get_value(), await b.get_value()) == (1, 1)
            for one in taken:
                assert await one.release()
            with pytest.raises(InvalidSetting, match="given twice"):
                await aio.acquire_all(a, a)
            with pytest.raises(TypeError):
                aio_all: Any = aio.acquire_all
                await aio_all(a, 3)

    run(main())
    for one in "ab":
        assert_clean(any_etcd, f"{name}-{one}")


async def _until_waiting(semaphore: aio.Semaphore, number: int) -> None:
    async def waiting() -> bool:
        return len(await semaphore.waiters()) == number

    await until(waiting)


def test_philosophers_in_asyncio(any_etcd: EtcdServer, name: str) -> None:
    """Five tasks of one client, and five of another, at five forks."""

    async def dine(mine: aio.Client, place: int) -> None:
        left, right = (
            aio.Semaphore(1, f"{name}-{number % 5}", client=mine) for number in (place, place + 1)
        )
        for _ in range(TURNS // 2):
            async with aio.hold_all(left, right, timeout=60):
                await asyncio.sleep(0)

    async def main() -> None:
        async with aio.connect(any_etcd.endpoint) as one, aio.connect(any_etcd.endpoint) as two:
            await asyncio.gather(*(dine(mine, place) for mine in (one, two) for place in range(5)))

    run(main(), seconds=120)
    for number in range(5):
        assert_clean(any_etcd, f"{name}-{number}")


# ---------------------------------------------------------------- in memory


def test_in_memory() -> None:
    """`etcdsem.testing` has it too, since nothing there is implemented twice."""
    with etcdsem.testing.memory() as etcd:
        mine, others = etcd.client(), etcd.client()
        a, b = (etcdsem.Semaphore(1, one, client=mine) for one in "ab")
        theirs = etcdsem.Semaphore(1, "b", client=others)
        with etcdsem.hold_all(a, b):
            assert theirs.acquire(timeout=0) is False
        with theirs:
            assert etcdsem.acquire_all(a, b, timeout="30s") is None
            assert etcd.now >= 30
            assert a.acquire(timeout=0)


class StandsStill:
    """At the n-th reading of the clock after ALL was answered, 100 s have passed."""

    def __init__(self, client: etcdsem.Client, readings: int) -> None:
        engine = client._driver
        self._now, self._perform = engine.now, engine._perform
        self._left = readings
        self._thread = threading.get_ident()
        self._answered = False
        engine.now = self.now  # type: ignore[method-assign]
        engine._perform = self.perform  # type: ignore[method-assign]

    @property
    def passed(self) -> bool:
        return self._left <= 0

    def now(self) -> float:
        if self._answered and threading.get_ident() == self._thread:
            self._left -= 1
        return self._now() + (100.0 if self.passed else 0.0)

    def perform(self, command: Command[Any]) -> object:
        result = self._perform(command)
        if isinstance(command, Transact) and len(command.txn.success) == 2:
            self._answered = True
        return result


@pytest.mark.parametrize("readings", range(1, 6))
def test_a_process_that_stands_still_while_they_are_granted(readings: int) -> None:
    """It has all of them or none, and knows of no grant that it does not have."""
    with etcdsem.testing.memory() as etcd:
        mine = etcd.client()
        a, b = (etcdsem.Semaphore(1, one, client=mine) for one in "ab")
        still = StandsStill(mine, readings)
        leases = etcdsem.acquire_all(a, b)
        assert still.passed
        assert leases is not None
        assert set(mine._driver.session.grants()) == {one._grant for one in leases}
        for lease in leases:
            lease.release()
        assert not mine._driver.session.grants()
