"""What a station does with what it hears: on the etcd in memory, and step by step by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

import etcdsem.testing
from etcdsem import Semaphore
from etcdsem.core import procedures
from etcdsem.core.commands import AccessDenied, Event, KeyValue, Listener, Watch
from etcdsem.core.keys import ORDINARY, Limit, Queued, Wants
from etcdsem.core.leases import TtlLease
from etcdsem.core.station import (
    FORGET_AFTER,
    RECENT,
    WATCH_AFTER_LAST_WAITER,
    WATCH_HELD_AFTER,
    WATCH_WAITER_AFTER,
    Denied,
    Duty,
    Grant,
    Letter,
    Over,
    Session,
    Station,
    TooHeavy,
    Waiting,
    Watched,
)
from etcdsem.core.transactions import MAX_LISTED, Look
from tests.helpers.env import Clock


def test_watches_outlast_the_moment_before_their_first_waiter_is_in_line() -> None:
    """The heartbeat may tidy up between the watches' confirmation and the waiter's JOIN; later it
    closes watches that nobody came to use.
    """
    with etcdsem.testing.memory(autojump=0) as etcd:
        client = etcd.client()
        sem = Semaphore(1, "db", client=client)
        assert sem.acquire()  # the heartbeat beats while there is a lease
        station, engine = client.station("db"), client.engine
        assert engine.run(procedures.watch(station, math.inf))
        with engine.lock:
            due = station.tidy(engine.now())
        assert station.watching
        assert due <= engine.now() + WATCH_AFTER_LAST_WAITER
        etcd.advance(WATCH_AFTER_LAST_WAITER + 1)
        assert not station.watching


def test_who_was_served_does_not_come_back_into_line() -> None:
    """Threads open their letters in any order, so an older list may be learned after a newer one:
    it names those who were served meanwhile.
    """
    with etcdsem.testing.memory(autojump=0) as etcd:
        station = etcd.client().station("db")
        line = tuple(Queued(b"host.1.a/%016x" % n, n, 100 + n, b"") for n in range(4))
        station.served(line[1].created)  # a letter of a newer sender
        station.learn_line(line, line[-1].created)
        assert station.line == line[2:]
        station.forget_line()
        station.learn_line(line, 200)  # a look that was answered late
        assert station.line == line[2:]


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


def wait_in_line(
    station: Station, lease_id: int = 7, wants: Wants = ORDINARY
) -> tuple[Waiting, Box]:
    """A local waiter whose key was created at revision 50."""
    env = station.session.env
    lease, box = TtlLease(lease_id, 30, 30.0, env.now()), Box()
    waiting = Waiting(lease, station.session.who(lease), box, env.now(), wants)
    waiting.created = 50
    station.enter(waiting)
    return waiting, box


def hold(station: Station, slot: int = 0, lease_id: int = 5, token: int = 40) -> Grant:
    """A grant of this client."""
    lease = TtlLease(lease_id, 30, 30.0, station.session.env.now())
    station.session.keeper.adopt(lease)
    who = station.session.who(lease)
    return Grant(station, lease, who, slot, token, letter=False)


@pytest.fixture
def hand() -> Hand:
    """The world around the client."""
    return Hand()


@pytest.fixture
def station(hand: Hand) -> Station:
    """A semaphore with a limit of 2, with its watches up."""
    one = Session(hand, "host.1.a").station("/etcdsem", "db")
    one.learn(limit(2), 10)
    one.expect_watches(Box())
    for watch in hand.watches:
        watch.listener.created(20)
    assert one.watching
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


def test_a_line_that_is_too_long_is_known_up_to_the_last_that_is_kept(station: Station) -> None:
    """Else CLEAR would hold while those who were left out wait."""
    waiters = line(MAX_LISTED + 6)
    station.learn_line(waiters, 500)
    assert station.line == waiters[:MAX_LISTED]
    assert station.line_until == waiters[MAX_LISTED - 1].created
    station.learn_line(line(MAX_LISTED), 600)
    assert (len(station.line), station.line_until) == (MAX_LISTED, 600)


def test_old_news_of_the_line_is_left_aside(station: Station) -> None:
    """And so is a line with priorities: somebody may come to any place of it."""
    station.learn_line(line(3), 500)
    station.learn_line((), 499)
    assert station.line == line(3)
    station.served(102)
    assert station.line == line(3)[2:]
    seen = Look(600, limit(2), (), line(2), True, contended=True, waiting=2, priorities=7)
    station.saw_line(seen)
    assert (station.line, station.line_until) == ((), 0)


@pytest.mark.parametrize("which", ["grants", "leases", "limit", "waiter", "blocker"])
def test_after_a_gap_everything_is_read_again(station: Station, hand: Hand, which: str) -> None:
    """Whichever watch may have missed something."""
    waiting, box = wait_in_line(station)
    hand.time += WATCH_WAITER_AFTER
    station.tidy(hand.time)
    station.block(line(1)[0], 200)
    keys = station.keys
    watched = {
        "grants": keys.my_grants,
        "leases": keys.leases,
        "limit": keys.max_leases,
        "waiter": keys.waiter(waiting.who),
        "blocker": keys.waiter(line(1)[0].who),
    }
    assert box.notes == []
    hand.of(watched[which]).listener.gap("compacted")
    assert box.notes == [Duty(reread=True)]
    assert station.duty_due


def test_a_gap_of_the_watch_of_a_slot_has_it_verified(station: Station, hand: Hand) -> None:
    """It may have been deleted meanwhile."""
    hold(station)
    hand.time += WATCH_HELD_AFTER
    station.tidy(hand.time)
    assert "verify" not in hand.spawned
    hand.of(station.keys.slot(0)).listener.gap("compacted")
    assert hand.spawned[-1] == "verify"


@pytest.mark.parametrize("how", ["deleted", "overwritten"])
def test_an_eviction_is_told_at_once(station: Station, hand: Hand, how: str) -> None:
    """What happened up to the grant is old news; what came after it is an eviction."""
    grant = hold(station, token=40)
    told: list[Grant] = []
    grant.on_lost = told.append
    hand.time += WATCH_HELD_AFTER
    station.tidy(hand.time)
    watch = hand.of(station.keys.slot(0))
    assert watch.start == 41
    event = deleted if how == "deleted" else (lambda key, at: put(key, b"{}", at, 9))
    watch.listener.events([event(watch.key, 39), put(watch.key, b"{}", 40, 5)])
    assert grant.state == "held"
    watch.listener.events([event(watch.key, 41)])
    assert (grant.state, told) == ("lost", [grant])
    assert how in grant.lost_reason
    assert watch.cancelled
    assert station.held == {}
    assert station.grants == {}
    assert station.tally.active == 0


def test_the_end_of_a_waiters_key_is_a_reason_to_look(station: Station, hand: Hand) -> None:
    """Not a verdict: the letter may come on another way."""
    waiting, box = wait_in_line(station)
    hand.time += WATCH_WAITER_AFTER
    station.tidy(hand.time)
    watch = hand.of(station.keys.waiter(waiting.who))
    assert watch.start == 51
    watch.listener.events([deleted(watch.key, 60)])
    assert box.notes == [Duty(reread=True)]
    station.exit(waiting)
    assert watch.cancelled
    watch.listener.events([deleted(watch.key, 61)])
    assert len(box.notes) == 1


def test_a_freed_slot_calls_the_first_waiter(station: Station, hand: Hand) -> None:
    """And when that one leaves before it has looked, the next has the duty."""
    first, first_box = wait_in_line(station, 7)
    _, second_box = wait_in_line(station, 8)
    hand.of(station.keys.leases).listener.events([deleted(station.keys.slot(0), 60)])
    assert (first_box.notes, second_box.notes) == ([Duty(reread=False)], [])
    station.exit(first)
    assert second_box.notes == [Duty(reread=False)]
    assert station.duty_due


def test_news_that_is_no_duty_leaves_the_duty(station: Station, hand: Hand) -> None:
    """A slot was freed, and then the key of a waiter ended: there is still a slot to be seen to."""
    first, _ = wait_in_line(station, 7)
    hand.time += WATCH_WAITER_AFTER
    station.tidy(hand.time)
    hand.of(station.keys.leases).listener.events([deleted(station.keys.slot(0), 60)])
    hand.of(station.keys.waiter(first.who)).listener.events([deleted(b"", 61)])
    assert station.duty_due


def test_watches_stay_while_somebody_waits(station: Station, hand: Hand) -> None:
    """And for a while after the last waiter."""
    waiting, _ = wait_in_line(station)
    hand.time += 10 * WATCH_AFTER_LAST_WAITER
    station.tidy(hand.time)
    assert station.watching
    station.exit(waiting)
    hand.time += WATCH_AFTER_LAST_WAITER - 1.0
    station.tidy(hand.time)
    assert station.watching
    hand.time += 1.0
    station.tidy(hand.time)
    assert not station.watching


def test_stations_in_use_are_not_forgotten(hand: Hand) -> None:
    """Of a program that makes up names as it goes, those that it uses no more are."""
    session = Session(hand, "host.1.a")
    stations = [session.station("/etcdsem", f"s{number}") for number in range(1005)]
    stations[0].tally.pending = 1
    hold(stations[1])
    wait_in_line(stations[2])
    stations[3].tally.overbooked = 1
    hand.time += FORGET_AFTER + 1.0  # all watches are set up now: nothing else is due
    session._tidy(hand.time)
    assert {station.name for station in session.stations.values()} >= {"s0", "s1", "s2", "s3"}
    assert len(session.stations) <= 1000


def test_a_letter_goes_to_the_waiter_with_its_lease(station: Station, hand: Hand) -> None:
    """And to nobody else."""
    _, box = wait_in_line(station, 7)
    _, other = wait_in_line(station, 8)
    watch = hand.of(station.keys.my_grants)
    event = put(station.keys.letter(b"host.1.a/7"), b"slot 0", 60, lease=7)
    watch.listener.events([event])
    assert (box.notes, other.notes) == ([Letter(event.kv)], [])


def test_a_raised_limit_calls_the_first_waiter(station: Station, hand: Hand) -> None:
    """A lowered one doesn't, but tells who wants more than that; old news changes nothing."""
    _, box = wait_in_line(station, wants=Wants(weight=2))
    limits = hand.of(station.keys.max_leases).listener
    limits.events([put(station.keys.max_leases, b"3", 60)])
    assert box.notes == [Duty(reread=False)]
    limits.events([put(station.keys.max_leases, b"1", 70)])
    assert box.notes[1:] == [TooHeavy()]
    limits.events([put(station.keys.max_leases, b"0", 80)])
    assert len(box.notes) == 2, "0 is no limit to wait for less"
    station.learn(limit(9, 65), 90)
    assert station.limit is not None
    assert station.limit.number == 0


def test_a_closed_semaphore_tells_all_waiters(station: Station, hand: Hand) -> None:
    """Unless it was registered again since."""
    _, box = wait_in_line(station)
    limits = hand.of(station.keys.max_leases).listener
    station.learn(limit(2, 80), 80)
    limits.events([deleted(station.keys.max_leases, 70)])
    station.learn(None, 75)
    assert box.notes == []
    assert station.limit is not None
    limits.events([deleted(station.keys.max_leases, 90)])
    assert box.notes == [Over(90)]
    assert station.limit is None


def test_refused_watches_tell_all_who_wait(station: Station, hand: Hand) -> None:
    """Etcd refuses our user: waiters, and those who expect the watches, get the reason."""
    _, box = wait_in_line(station)
    expecting = Box()
    station.expect_watches(expecting)
    error = AccessDenied("permission denied")
    hand.of(station.keys.leases).listener.refused(error)
    assert box.notes == [Denied(error)]
    assert expecting.notes == [Watched(error)]
    assert not station.watching
    assert all(watch.cancelled for watch in hand.watches)


def test_who_stands_in_the_way_is_watched(station: Station, hand: Hand) -> None:
    """One at a time, from the revision of the look on; when it leaves, somebody must look."""
    _, box = wait_in_line(station)
    first, second = line(2)
    station.block(first, 200)
    watch = hand.of(station.keys.waiter(first.who))
    assert watch.start == 201
    station.block(first, 210)
    station.block(None, 205)
    assert not watch.cancelled, "that was old news"
    watch.listener.events([deleted(watch.key, 220)])
    assert box.notes == [Duty(reread=False)]
    station.block(second, 230)
    assert watch.cancelled
    station.drop_watches()
    assert hand.of(station.keys.waiter(second.who)).cancelled


def test_the_slot_given_back_last_is_tried_first(station: Station) -> None:
    """Once; and none that this client holds is tried."""
    station.learn(limit(200, 11), 11)
    hold(station, slot=3)
    station.freed(150)
    station.freed(90)
    assert station.candidates(limit(200))[0] == 90
    assert station.candidates(limit(200))[0] == 150
    assert all(3 not in station.candidates(limit(5)) for _ in range(20))
    for slot in range(RECENT + 10):
        station.freed(slot)
    assert len(station.recent) == RECENT
    assert next(iter(station.recent)) == 10


def test_what_is_held_for_long_is_verified_now_and_then(station: Station, hand: Hand) -> None:
    """Several etcd releases lose events, so what is watched is read again after 5 to 15 s."""
    hold(station)
    hand.time += WATCH_HELD_AFTER
    station.tidy(hand.time)
    due = station.tidy(hand.time)
    assert due <= hand.time + 15.0
    hand.time = due - 0.01
    station.tidy(hand.time)
    assert "verify" not in hand.spawned
    hand.time = due
    station.tidy(hand.time)
    assert hand.spawned.count("verify") == 1


def test_a_lost_grant_counts_until_the_program_lets_go(station: Station) -> None:
    """Overbooked: once, however often it is told, and however often it lets go."""
    grant = hold(station)
    grant.count(1.0)
    grant.lost("its lease is over")
    grant.lost("again")
    assert (station.tally.losses, station.tally.overbooked, station.session.losses) == (1, 1, 1)
    grant.let_go()
    grant.let_go()
    assert station.tally.overbooked == 0


def test_a_slot_that_was_granted_again_stays_listed(station: Station) -> None:
    """Evicted by hand and granted to another thread of this client, before the first has noticed:
    the end of the first grant does not make its slot look free.
    """
    evicted = hold(station, slot=0, lease_id=5, token=40)
    again = hold(station, slot=0, lease_id=6, token=60)
    evicted.detach()
    assert station.held == {0: again}
    again.detach()
    assert station.held == {}


def test_a_grant_that_was_bound_is_warned_of_once(station: Station, hand: Hand) -> None:
    """The heartbeat asks to be called when the end by max_hold is near."""
    grant = hold(station)
    grant.bind(100.0)
    assert grant.lease.bound == hand.time + 100.0
    assert hand.time < grant.warn_at < hand.time + 100.0
    warn_at = grant.warn_at
    grant.watch = Asked(hand.watches[0].listener, b"", b"", 0)
    station.tidy(hand.time)
    assert station.tidy(warn_at - 6.0) <= warn_at
    assert grant.warn_at == warn_at
    station.tidy(warn_at)
    assert grant.warn_at == math.inf


def test_threads_get_the_same_station(hand: Hand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that use a new name at the same moment: what one holds, the other's client knows."""
    session = Session(hand, "host.1.a")
    made: list[Station] = []
    make = Station.__init__

    def meet(station: Station, *arguments: Any) -> None:
        """Another thread comes while the first one's station is made."""
        make(station, *arguments)
        made.append(station)
        if len(made) == 1:
            made.append(session.station("/etcdsem", "db"))

    monkeypatch.setattr(Station, "__init__", meet)
    assert session.station("/etcdsem", "db") is made[-1]
    assert list(session.stations.values()) == [made[-1]]
