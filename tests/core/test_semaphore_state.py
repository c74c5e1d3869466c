"""What a semaphore does with what it hears: on the etcd in memory, and step by step by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

import etcdsem.testing
from etcdsem import Semaphore
from etcdsem.core import wait
from etcdsem.core.commands import AccessDenied, Event, KeyValue, Listener, Watch
from etcdsem.core.grants import WATCH_HELD_AFTER, Grant
from etcdsem.core.keys import ORDINARY, Demand, Limit, Queued
from etcdsem.core.leases import TtlLease
from etcdsem.core.semaphore import SemaphoreState
from etcdsem.core.session import FORGET_AFTER, Session
from etcdsem.core.slots import RECENT
from etcdsem.core.transactions import MAX_LISTED, Look
from etcdsem.core.waiters import (
    WATCH_WAITER_AFTER,
    AccessLost,
    Closed,
    GrantMessage,
    LocalWaiter,
    ReconcileNote,
    TooHeavy,
)
from etcdsem.core.watches import WATCH_AFTER_LAST_WAITER, WatchesReady
from tests.helpers.env import Clock


def test_watches_outlast_the_moment_before_their_first_waiter_is_in_line() -> None:
    """The heartbeat may tidy up between the watches' confirmation and the waiter's JOIN; later it
    closes watches that nobody came to use.
    """
    with etcdsem.testing.memory(autojump=0) as etcd:
        client = etcd.client()
        sem = Semaphore(1, "db", client=client)
        assert sem.acquire()  # the heartbeat beats while there is a lease
        semaphore, engine = client._state("db"), client._driver
        assert engine.run(wait.open_watches(semaphore, math.inf))
        with engine.lock:
            due = semaphore.tidy(engine.now())
        assert semaphore.watches.ready
        assert due <= engine.now() + WATCH_AFTER_LAST_WAITER
        etcd.advance(WATCH_AFTER_LAST_WAITER + 1)
        assert not semaphore.watches.ready


def test_who_was_served_does_not_come_back_into_line() -> None:
    """Threads open their messages in any order, so an older list may be learned after a newer one:
    it names those who were served meanwhile.
    """
    with etcdsem.testing.memory(autojump=0) as etcd:
        semaphore = etcd.client()._state("db")
        line = tuple(Queued(b"host.1.a/%016x" % n, n, 100 + n, b"") for n in range(4))
        semaphore.queue.served(line[1].created)  # a grant message of a newer sender
        semaphore.queue.learn(line, line[-1].created)
        assert semaphore.queue.waiters == line[2:]
        semaphore.queue.forget()
        semaphore.queue.learn(line, 200)  # a look that was answered late
        assert semaphore.queue.waiters == line[2:]


# ---------------------------------------------------------------- by hand, without any etcd


class Box:
    """A mailbox whose notes are looked at."""

    def __init__(self) -> None:
        self.notes: list[Any] = []

    def put(self, note: Any, /) -> None:
        self.notes.append(note)


class Asked:
    """A watch that was asked for."""

    def __init__(self, listener: Listener, key: bytes, end: bytes, start: int) -> None:
        self.listener = listener
        self.key, self.end, self.start = key, end, start
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Hand(Clock):
    """An `Env` whose time is set by hand, and that remembers which watches are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.watches: list[Asked] = []

    def watch(self, listener: Listener, key: bytes, end: bytes = b"", **more: Any) -> Watch:
        self.watches.append(Asked(listener, key, end, more.get("start", 0)))
        return self.watches[-1]

    def of(self, key: bytes) -> Asked:
        """The last watch on a key."""
        return next(watch for watch in reversed(self.watches) if watch.key == key)


def limit(number: int, revision: int = 10) -> Limit:
    """A limit in force."""
    return Limit(number, revision, registered=True, text=str(number))


def wait_in_queue(
    semaphore: SemaphoreState, lease_id: int = 7, demand: Demand = ORDINARY
) -> tuple[LocalWaiter, Box]:
    """A local waiter whose key was created at revision 50."""
    env = semaphore.session.env
    lease, box = TtlLease(lease_id, 30, 30.0, env.now()), Box()
    waiting = LocalWaiter(lease, semaphore.session.who(lease), box, env.now(), demand)
    waiting.created = 50
    semaphore.waiters.enter(waiting)
    return waiting, box


def hold(semaphore: SemaphoreState, slot: int = 0, lease_id: int = 5, token: int = 40) -> Grant:
    """A grant of this client."""
    lease = TtlLease(lease_id, 30, 30.0, semaphore.session.env.now())
    semaphore.session.leases.adopt(lease)
    who = semaphore.session.who(lease)
    return Grant(semaphore, lease, who, slot, token, has_message=False)


@pytest.fixture
def hand() -> Hand:
    """The world around the client."""
    return Hand()


@pytest.fixture
def semaphore(hand: Hand) -> SemaphoreState:
    """A semaphore with a limit of 2, with its watches up."""
    one = Session(hand, "host.1.a").semaphore("/etcdsem", "db")
    one.learn(limit(2), 10)
    one.watches.expect(Box())
    for watch in hand.watches:
        watch.listener.created(20)
    assert one.watches.ready
    return one


def put(key: bytes, value: bytes, revision: int, lease: int = 0) -> Event:
    """What a watch tells of a key that was put."""
    return Event("put", KeyValue(key, value, revision, revision, lease))


def deleted(key: bytes, revision: int) -> Event:
    """The same of one that was deleted."""
    return Event("delete", KeyValue(key, b"", 0, revision))


def line(count: int) -> tuple[Queued, ...]:
    """So many waiters, which came at the revisions 101, 102, ..."""
    return tuple(
        Queued(f"host.2.b/{n:016x}".encode(), n, 100 + n, b"") for n in range(1, count + 1)
    )


def test_a_line_that_is_too_long_is_known_up_to_the_last_that_is_kept(
    semaphore: SemaphoreState,
) -> None:
    """Else CLEAR would hold while those who were left out wait."""
    waiters = line(MAX_LISTED + 6)
    semaphore.queue.learn(waiters, 500)
    assert semaphore.queue.waiters == waiters[:MAX_LISTED]
    assert semaphore.queue.until == waiters[MAX_LISTED - 1].created
    semaphore.queue.learn(line(MAX_LISTED), 600)
    assert (len(semaphore.queue.waiters), semaphore.queue.until) == (MAX_LISTED, 600)


def test_old_news_of_the_line_is_left_aside(semaphore: SemaphoreState) -> None:
    """And so is a line with priorities: somebody may come to any place of it."""
    semaphore.queue.learn(line(3), 500)
    semaphore.queue.learn((), 499)
    assert semaphore.queue.waiters == line(3)
    semaphore.queue.served(102)
    assert semaphore.queue.waiters == line(3)[2:]
    seen = Look(600, limit(2), (), line(2), True, contended=True, waiting=2, priorities=7)
    semaphore.queue.saw(seen)
    assert (semaphore.queue.waiters, semaphore.queue.until) == ((), 0)


@pytest.mark.parametrize("which", ["grants", "leases", "limit", "waiter", "blocker"])
def test_after_a_gap_everything_is_read_again(
    semaphore: SemaphoreState, hand: Hand, which: str
) -> None:
    """Whichever watch may have missed something."""
    waiting, box = wait_in_queue(semaphore)
    hand.time += WATCH_WAITER_AFTER
    semaphore.tidy(hand.time)
    semaphore.watches.watch_blocker(line(1)[0], 200)
    keys = semaphore.keys
    watched = {
        "grants": keys.my_grants,
        "leases": keys.leases,
        "limit": keys.max_leases,
        "waiter": keys.waiter(waiting.who),
        "blocker": keys.waiter(line(1)[0].who),
    }
    assert box.notes == []
    hand.of(watched[which]).listener.gap("compacted")
    assert box.notes == [ReconcileNote(reread=True)]
    assert semaphore.waiters.reconcile_due


def test_a_gap_of_the_watch_of_a_slot_has_it_verified(
    semaphore: SemaphoreState, hand: Hand
) -> None:
    """It may have been deleted meanwhile."""
    hold(semaphore)
    hand.time += WATCH_HELD_AFTER
    semaphore.tidy(hand.time)
    assert "verify" not in hand.spawned
    hand.of(semaphore.keys.slot(0)).listener.gap("compacted")
    assert hand.spawned[-1] == "verify"


@pytest.mark.parametrize("how", ["deleted", "overwritten"])
def test_an_eviction_is_told_at_once(semaphore: SemaphoreState, hand: Hand, how: str) -> None:
    """What happened up to the grant is old news; what came after it is an eviction."""
    grant = hold(semaphore, token=40)
    told: list[Grant] = []
    grant.on_lost = told.append
    hand.time += WATCH_HELD_AFTER
    semaphore.tidy(hand.time)
    watch = hand.of(semaphore.keys.slot(0))
    assert watch.start == 41
    event = deleted if how == "deleted" else (lambda key, at: put(key, b"{}", at, 9))
    watch.listener.events([event(watch.key, 39), put(watch.key, b"{}", 40, 5)])
    assert grant.state == "held"
    watch.listener.events([event(watch.key, 41)])
    assert (grant.state, told) == ("lost", [grant])
    assert how in grant.lost_reason
    assert watch.cancelled
    assert semaphore.grants.by_slot == {}
    assert not semaphore.grants
    assert semaphore.stats.active == 0


def test_the_end_of_a_waiters_key_is_a_reason_to_look(
    semaphore: SemaphoreState, hand: Hand
) -> None:
    """Not a verdict: the grant message may come on another way."""
    waiting, box = wait_in_queue(semaphore)
    hand.time += WATCH_WAITER_AFTER
    semaphore.tidy(hand.time)
    watch = hand.of(semaphore.keys.waiter(waiting.who))
    assert watch.start == 51
    watch.listener.events([deleted(watch.key, 60)])
    assert box.notes == [ReconcileNote(reread=True)]
    semaphore.waiters.exit(waiting)
    assert watch.cancelled
    watch.listener.events([deleted(watch.key, 61)])
    assert len(box.notes) == 1


def test_a_freed_slot_calls_the_first_waiter(semaphore: SemaphoreState, hand: Hand) -> None:
    """And when that one leaves before it has looked, the next has the duty."""
    first, first_box = wait_in_queue(semaphore, 7)
    _, second_box = wait_in_queue(semaphore, 8)
    hand.of(semaphore.keys.leases).listener.events([deleted(semaphore.keys.slot(0), 60)])
    assert (first_box.notes, second_box.notes) == ([ReconcileNote(reread=False)], [])
    semaphore.waiters.exit(first)
    assert second_box.notes == [ReconcileNote(reread=False)]
    assert semaphore.waiters.reconcile_due


def test_news_that_is_no_duty_leaves_the_duty(semaphore: SemaphoreState, hand: Hand) -> None:
    """A slot was freed, and then the key of a waiter ended: there is still a slot to be seen to."""
    first, _ = wait_in_queue(semaphore, 7)
    hand.time += WATCH_WAITER_AFTER
    semaphore.tidy(hand.time)
    hand.of(semaphore.keys.leases).listener.events([deleted(semaphore.keys.slot(0), 60)])
    hand.of(semaphore.keys.waiter(first.who)).listener.events([deleted(b"", 61)])
    assert semaphore.waiters.reconcile_due


def test_watches_stay_while_somebody_waits(semaphore: SemaphoreState, hand: Hand) -> None:
    """And for a while after the last waiter."""
    waiting, _ = wait_in_queue(semaphore)
    hand.time += 10 * WATCH_AFTER_LAST_WAITER
    semaphore.tidy(hand.time)
    assert semaphore.watches.ready
    semaphore.waiters.exit(waiting)
    hand.time += WATCH_AFTER_LAST_WAITER - 1.0
    semaphore.tidy(hand.time)
    assert semaphore.watches.ready
    hand.time += 1.0
    semaphore.tidy(hand.time)
    assert not semaphore.watches.ready


def test_semaphores_in_use_are_not_forgotten(hand: Hand) -> None:
    """Of a program that makes up names as it goes, those that it uses no more are."""
    session = Session(hand, "host.1.a")
    states = [session.semaphore("/etcdsem", f"s{number}") for number in range(1005)]
    states[0].stats.pending = 1
    hold(states[1])
    wait_in_queue(states[2])
    states[3].stats.overbooked = 1
    hand.time += FORGET_AFTER + 1.0  # all watches are set up now: nothing else is due
    session._tidy(hand.time)
    assert {semaphore.name for semaphore in session.semaphores.values()} >= {"s0", "s1", "s2", "s3"}
    assert len(session.semaphores) <= 1000


def test_a_message_goes_to_the_waiter_with_its_lease(semaphore: SemaphoreState, hand: Hand) -> None:
    """And to nobody else."""
    _, box = wait_in_queue(semaphore, 7)
    _, other = wait_in_queue(semaphore, 8)
    watch = hand.of(semaphore.keys.my_grants)
    event = put(semaphore.keys.message(b"host.1.a/7"), b"slot 0", 60, lease=7)
    watch.listener.events([event])
    assert (box.notes, other.notes) == ([GrantMessage(event.kv)], [])


def test_a_raised_limit_calls_the_first_waiter(semaphore: SemaphoreState, hand: Hand) -> None:
    """A lowered one doesn't, but tells who wants more than that; old news changes nothing."""
    _, box = wait_in_queue(semaphore, demand=Demand(weight=2))
    limits = hand.of(semaphore.keys.max_leases).listener
    limits.events([put(semaphore.keys.max_leases, b"3", 60)])
    assert box.notes == [ReconcileNote(reread=False)]
    limits.events([put(semaphore.keys.max_leases, b"1", 70)])
    assert box.notes[1:] == [TooHeavy()]
    limits.events([put(semaphore.keys.max_leases, b"0", 80)])
    assert len(box.notes) == 2, "0 is no limit to wait for less"
    semaphore.learn(limit(9, 65), 90)
    assert semaphore.limit is not None
    assert semaphore.limit.number == 0


def test_a_closed_semaphore_tells_all_waiters(semaphore: SemaphoreState, hand: Hand) -> None:
    """Unless it was registered again since."""
    _, box = wait_in_queue(semaphore)
    limits = hand.of(semaphore.keys.max_leases).listener
    semaphore.learn(limit(2, 80), 80)
    limits.events([deleted(semaphore.keys.max_leases, 70)])
    semaphore.learn(None, 75)
    assert box.notes == []
    assert semaphore.limit is not None
    limits.events([deleted(semaphore.keys.max_leases, 90)])
    assert box.notes == [Closed(90)]
    assert semaphore.limit is None


def test_refused_watches_tell_all_who_wait(semaphore: SemaphoreState, hand: Hand) -> None:
    """Etcd refuses our user: waiters, and those who expect the watches, get the reason."""
    _, box = wait_in_queue(semaphore)
    expecting = Box()
    semaphore.watches.expect(expecting)
    error = AccessDenied("permission denied")
    hand.of(semaphore.keys.leases).listener.refused(error)
    assert box.notes == [AccessLost(error)]
    assert expecting.notes == [WatchesReady(error)]
    assert not semaphore.watches.ready
    assert all(watch.cancelled for watch in hand.watches)


def test_who_stands_in_the_way_is_watched(semaphore: SemaphoreState, hand: Hand) -> None:
    """One at a time, from the revision of the look on; when it leaves, somebody must look."""
    _, box = wait_in_queue(semaphore)
    first, second = line(2)
    semaphore.watches.watch_blocker(first, 200)
    watch = hand.of(semaphore.keys.waiter(first.who))
    assert watch.start == 201
    semaphore.watches.watch_blocker(first, 210)
    semaphore.watches.watch_blocker(None, 205)
    assert not watch.cancelled, "that was old news"
    watch.listener.events([deleted(watch.key, 220)])
    assert box.notes == [ReconcileNote(reread=False)]
    semaphore.watches.watch_blocker(second, 230)
    assert watch.cancelled
    semaphore.watches.drop()
    assert hand.of(semaphore.keys.waiter(second.who)).cancelled


def test_the_slot_given_back_last_is_tried_first(semaphore: SemaphoreState) -> None:
    """Once; and none that this client holds is tried."""
    semaphore.learn(limit(200, 11), 11)
    hold(semaphore, slot=3)
    semaphore.slots.freed(150)
    semaphore.slots.freed(90)
    assert semaphore.slots.candidates(limit(200))[0] == 90
    assert semaphore.slots.candidates(limit(200))[0] == 150
    assert all(3 not in semaphore.slots.candidates(limit(5)) for _ in range(20))
    for slot in range(RECENT + 10):
        semaphore.slots.freed(slot)
    assert len(semaphore.slots._recent) == RECENT
    assert next(iter(semaphore.slots._recent)) == 10


def test_what_is_held_for_long_is_verified_now_and_then(
    semaphore: SemaphoreState, hand: Hand
) -> None:
    """Several etcd releases lose events, so what is watched is read again after 5 to 15 s."""
    hold(semaphore)
    hand.time += WATCH_HELD_AFTER
    semaphore.tidy(hand.time)
    due = semaphore.tidy(hand.time)
    assert due <= hand.time + 15.0
    hand.time = due - 0.01
    semaphore.tidy(hand.time)
    assert "verify" not in hand.spawned
    hand.time = due
    semaphore.tidy(hand.time)
    assert hand.spawned.count("verify") == 1


def test_a_lost_grant_counts_until_the_program_lets_go(semaphore: SemaphoreState) -> None:
    """Overbooked: once, however often it is told, and however often it lets go."""
    grant = hold(semaphore)
    grant.count(1.0)
    grant.lost("its lease is over")
    grant.lost("again")
    assert (semaphore.stats.losses, semaphore.stats.overbooked, semaphore.session.losses) == (
        1,
        1,
        1,
    )
    grant.let_go()
    grant.let_go()
    assert semaphore.stats.overbooked == 0


def test_a_slot_that_was_granted_again_stays_listed(semaphore: SemaphoreState) -> None:
    """Evicted by hand and granted to another thread of this client, before the first has noticed:
    the end of the first grant does not make its slot look free.
    """
    evicted = hold(semaphore, slot=0, lease_id=5, token=40)
    again = hold(semaphore, slot=0, lease_id=6, token=60)
    evicted.detach()
    assert semaphore.grants.by_slot == {0: again}
    again.detach()
    assert semaphore.grants.by_slot == {}


def test_a_grant_that_was_bound_is_warned_of_once(semaphore: SemaphoreState, hand: Hand) -> None:
    """The heartbeat asks to be called when the end by max_hold is near."""
    grant = hold(semaphore)
    grant.bind(100.0)
    assert grant.lease.bound == hand.time + 100.0
    assert hand.time < grant.warn_at < hand.time + 100.0
    warn_at = grant.warn_at
    grant.watch = Asked(hand.watches[0].listener, b"", b"", 0)
    semaphore.tidy(hand.time)
    assert semaphore.tidy(warn_at - 6.0) <= warn_at
    assert grant.warn_at == warn_at
    semaphore.tidy(warn_at)
    assert grant.warn_at == math.inf


def test_threads_get_the_same_state(hand: Hand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that use a new name at the same moment: what one holds, the other's client knows."""
    session = Session(hand, "host.1.a")
    made: list[SemaphoreState] = []
    make = SemaphoreState.__init__

    def meet(semaphore: SemaphoreState, *arguments: Any) -> None:
        """Another thread comes while the first one's semaphore is made."""
        make(semaphore, *arguments)
        made.append(semaphore)
        if len(made) == 1:
            made.append(session.semaphore("/etcdsem", "db"))

    monkeypatch.setattr(SemaphoreState, "__init__", meet)
    assert session.semaphore("/etcdsem", "db") is made[-1]
    assert list(session.semaphores.values()) == [made[-1]]
