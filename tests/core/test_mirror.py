"""What one who watches the keys can tell, event by event; no etcd, no clock."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest

from etcdsem.core.commands import Event, KeyValue
from etcdsem.core.keys import Keys
from etcdsem.core.mirror import LATE, PrefixView, SemaphoreView

ME = "host.12.abcd"
KEYS = Keys("/etcdsem", "x", ME)


def kv(key: bytes, revision: int, value: bytes = b"", lease: int = 0) -> KeyValue:
    return KeyValue(key, value, revision, revision, lease)


def put(key: bytes, revision: int, value: bytes = b"", lease: int = 0) -> Event:
    return Event("put", kv(key, revision, value, lease))


def delete(key: bytes, revision: int) -> Event:
    return Event("delete", kv(key, revision))


def hold(slot: int, revision: int, value: bytes = b"{}") -> Event:
    return put(KEYS.slot(slot), revision, value, lease=revision)


def who(lease: int) -> bytes:
    return KEYS.waiter(f"{ME}/{lease:016x}".encode())


def wait(lease: int, revision: int, value: bytes = b"{}") -> list[Event]:
    return [put(who(lease), revision, value, lease), put(KEYS.contended, revision, b"1")]


def view(*events: Event, limit: bytes = b"2") -> PrefixView:
    """One with a semaphore of limit 2, after these events."""
    one = PrefixView("/etcdsem")
    one.begin()
    one.load([kv(KEYS.max_leases, 1, limit)], 1, 100.0, 1000.0)
    one.apply(events, 100.0)
    return one


def line(one: PrefixView) -> SemaphoreView:
    return one.lines[b"x"]


def counts(one: PrefixView) -> tuple[int, int, int]:
    found = line(one)
    return found.acquired, found.released, found.lost


def test_grant_and_release() -> None:
    """A slot's key comes and goes."""
    one = view(hold(0, 2), hold(1, 3), delete(KEYS.slot(0), 4))
    assert counts(one) == (2, 1, 0)
    assert list(line(one).held) == [1]


def test_a_hand_over_is_a_release_and_a_grant() -> None:
    """PASS: the slot overwritten, the waiter gone, at one revision."""
    one = view(hold(0, 2), hold(1, 3), *wait(7, 4), hold(0, 5), delete(who(7), 5))
    assert counts(one) == (3, 1, 0)
    assert not line(one).waiting


def test_deleted_while_somebody_waits_is_lost() -> None:
    """The mark stays: nobody of ours gives a slot back so."""
    one = view(hold(0, 2), hold(1, 3), *wait(7, 4), delete(KEYS.slot(0), 5))
    assert counts(one) == (2, 0, 1)


def test_clear_is_a_release() -> None:
    """The mark goes at the same revision, whichever event comes first."""
    for last in ([0, 1], [1, 0]):
        events = (delete(KEYS.slot(0), 6), delete(KEYS.contended, 6))
        one = view(
            hold(0, 2), hold(1, 3), *wait(7, 4), delete(who(7), 5), *(events[i] for i in last)
        )
        assert counts(one) == (2, 1, 0)


def test_above_a_lowered_limit_is_a_release() -> None:
    """RETIRE: while there is surplus, slots go to nobody though somebody waits."""
    events = (hold(0, 2), hold(1, 3), *wait(7, 4), put(KEYS.max_leases, 5, b"1"))
    assert counts(view(*events, delete(KEYS.slot(1), 6))) == (2, 1, 0)
    assert counts(view(*events, delete(KEYS.slot(0), 6))) == (2, 1, 0)


def test_while_paused_a_slot_is_given_back_to_nobody() -> None:
    """RETIRE, though somebody waits; the number is kept, and holders are not beyond it."""
    pause = put(KEYS.max_leases, 5, b"2 paused by me since 2026-11-25T00:00:00.000Z")
    one = view(hold(0, 2), hold(1, 3), *wait(7, 4), pause)
    assert (line(one).room, line(one).overbooked) == (0, 0)
    one.apply([delete(KEYS.slot(1), 6)], 100.0)
    assert counts(one) == (2, 1, 0)
    one.apply([hold(1, 7)], 100.0)
    assert line(one).overbooked == 1, "nothing may be granted now"


def test_overwritten_by_hand_is_lost() -> None:
    """A slot's key without an etcd lease is nobody's."""
    one = view(hold(0, 2), put(KEYS.slot(0), 3, b"me"))
    assert counts(one) == (1, 0, 1)
    assert line(one).junk == {KEYS.slot(0)}


def test_a_grant_beyond_the_limit_is_told() -> None:
    """It must never happen; after a lowered limit the same keys are no such grant."""
    assert line(view(hold(0, 2), hold(1, 3), hold(2, 4))).overbooked == 1
    lowered = view(hold(0, 2), hold(1, 3), put(KEYS.max_leases, 4, b"1"))
    assert line(lowered).overbooked == 0
    passed_on = view(hold(0, 2), hold(1, 3), put(KEYS.max_leases, 4, b"1"), hold(0, 5))
    assert line(passed_on).overbooked == 0


def test_junk_is_no_holder_and_no_waiter() -> None:
    """Names and leases that cannot be right are counted apart, until they are gone."""
    strange = (KEYS.leases + b"7", KEYS.slot(3), KEYS.waiters + b"me", who(9))
    one = view(*(put(key, 2 + place) for place, key in enumerate(strange)))
    assert line(one).junk == set(strange)
    assert not (line(one).held)
    assert not (line(one).waiting)
    one.apply([delete(key, 9) for key in strange], 100.0)
    assert not line(one).junk


def test_the_record_of_a_permit_is_no_holder_and_no_junk() -> None:
    """It stays behind where an owner has gone."""
    one = view(hold(1, 2), put(KEYS.permit(1), 2), limit=b"2/1m")
    one.apply([delete(KEYS.slot(1), 5)], 100.0)
    assert not line(one).held
    assert not line(one).junk
    one.expect(6, 2, 100.0)
    one.apply([hold(0, 7)], 100.0)
    assert one.state == "live"  # it is counted with the keys


def test_drift_is_what_a_program_carries() -> None:
    """Only who was told another number than the one in force; boolean nonsense is nobody."""
    carrying = b'{"carries_limit":5}'
    events = (hold(0, 2, carrying), hold(1, 3), *wait(7, 4, carrying))
    one = view(*events)
    assert line(one).drifting() == 2
    one.apply([put(KEYS.max_leases, 5, b"5")], 100.0)
    assert line(one).drifting() == 0
    assert line(view(hold(0, 2, b'{"carries_limit":true}'))).drifting() == 0


@pytest.mark.parametrize("text", [b"", b"abc", b"\xff", b"-1"])
def test_a_limit_that_is_no_number(text: bytes) -> None:
    """Known, but without room."""
    one = view(limit=text)
    assert line(one).limit is not None
    assert line(one).room == 0


def test_a_closed_semaphore_is_listed_no_more() -> None:
    """With its last key it goes, and so does its line."""
    one = view(hold(0, 2))
    one.apply([delete(KEYS.max_leases, 3), delete(KEYS.slot(0), 3)], 100.0)
    assert one.lines == {}


def test_keys_of_no_semaphore_are_left_aside() -> None:
    """Names that cannot be, the prefix itself."""
    one = view(put(b"/etcdsem/a b/leases/00000", 2), put(b"/etcdsem/", 3))
    assert set(one.lines) == {b"x"}


def test_times_are_by_the_watchers_clock_and_by_records_at_first() -> None:
    """What was there at the start has its record's age; nobody is younger than nothing."""
    one = PrefixView("/etcdsem")
    one.begin()
    old = b'{"since":"1970-01-01T00:16:00Z"}'  # 960 s
    future = b'{"acquired":"1970-01-01T01:00:00Z"}'
    one.load(
        [kv(who(7), 2, old, 7), kv(KEYS.slot(0), 3, future, 8), kv(KEYS.max_leases, 1, b"1")],
        *(3, 100.0, 1000.0),
    )
    assert line(one).waiting[who(7)].since == 60.0
    assert line(one).held[0].since == 100.0
    one.apply(wait(9, 4, old), 123.0)
    assert line(one).waiting[who(9)].since == 123.0


# ---------------------------------------------------------------- leases of several slots


def hold_all(slots: Iterable[int], revision: int, lease: int = 0) -> list[Event]:
    """A grant of several slots: one lease, one revision."""
    value = b'{"weight":3}'
    return [put(KEYS.slot(slot), revision, value, lease or revision) for slot in slots]


def give_back(slots: Iterable[int], revision: int) -> list[Event]:
    """All at once, while nobody waits; or by the end of the etcd lease."""
    return [delete(KEYS.slot(slot), revision) for slot in slots]


def test_a_lease_of_three_slots_is_one_lease_and_three_slots() -> None:
    """Held and given back: each counted as what it is."""
    one = view(*hold_all((0, 2, 3), 2), hold(1, 3), limit=b"5")
    assert (len(line(one).grants), len(line(one).held)) == (2, 4)
    assert counts(one) == (2, 0, 0)
    one.apply(give_back((0, 2, 3), 4), 123.0)
    assert (len(line(one).grants), list(line(one).held)) == (1, [1])
    assert counts(one) == (2, 1, 0)
    assert not line(one).ended


def test_the_same_etcd_lease_twice_is_two_leases() -> None:
    """Etcd leases are used again; two grants of one revision are two as well."""
    one = view(*hold_all((0, 1), 2, lease=7), *give_back((0, 1), 3), *hold_all((0, 1), 4, 7))
    assert counts(one) == (2, 1, 0)
    batch = view(put(KEYS.slot(0), 2, b"{}", 7), put(KEYS.slot(1), 2, b"{}", 8))
    assert (counts(batch), len(line(batch).grants)) == ((2, 0, 0), 2)


def test_a_lease_that_is_lost_is_one_loss() -> None:
    """All of its slots go with the etcd lease, while somebody waits."""
    one = view(*hold_all((0, 1, 2), 2), *wait(7, 3), *give_back((0, 1, 2), 4), limit=b"3")
    assert counts(one) == (1, 0, 1)


def test_a_lease_ends_with_the_first_of_its_slots() -> None:
    """One is deleted by hand: a loss; what its holder gives back then is nothing more."""
    one = view(*hold_all((0, 1, 2), 2), *wait(7, 3), delete(KEYS.slot(1), 4), limit=b"3")
    assert counts(one) == (1, 0, 1)
    assert (len(line(one).grants), sorted(line(one).held)) == (1, [0, 2])
    one.apply([*give_back((0, 2), 5), put(KEYS.contended, 5, b"1")], 123.0)
    assert counts(one) == (1, 0, 1)
    assert not line(one).grants


def test_slots_handed_over_to_several() -> None:
    """A lease of two goes to two of one slot each: one release, two grants."""
    one = view(*hold_all((0, 1), 2), *wait(7, 3), *wait(8, 4))
    one.apply([put(KEYS.slot(0), 5, b"{}", 7), delete(who(7), 5)], 100.0)
    one.apply([put(KEYS.slot(1), 6, b"{}", 8), delete(who(8), 6)], 100.0)
    assert counts(one) == (3, 1, 0)
    assert len(line(one).grants) == 2


def test_slots_given_back_to_nobody_are_no_loss() -> None:
    """VACATE: somebody wants more; the mark is put again at the same revision."""
    one = view(hold(0, 2), hold(1, 3), *wait(7, 4, b'{"weight":2}'))
    one.apply([delete(KEYS.slot(0), 5), put(KEYS.contended, 5, b"1")], 100.0)
    assert counts(one) == (2, 1, 0)


def test_what_the_first_in_line_wants() -> None:
    """By priority, then in the order in which they came."""
    assert line(view()).next_wants == 0
    one = view(*wait(7, 2, b'{"weight":3}'), *wait(8, 3, b'{"weight":2}'), *wait(9, 4))
    assert line(one).next_wants == 3
    one.apply(wait(10, 5, b'{"weight":4,"priority":1}'), 100.0)
    assert line(one).next_wants == 4
    one.apply([delete(who(10), 6), delete(who(7), 6)], 100.0)
    assert line(one).next_wants == 2


def test_a_big_grant_beyond_the_limit_is_told_in_slots() -> None:
    """It must never happen."""
    assert line(view(hold(0, 2), *hold_all((1, 2), 3))).overbooked == 1
    assert line(view(*hold_all((0, 1, 2), 3))).overbooked == 1


def test_how_long_a_lease_of_several_slots_is_held() -> None:
    """As long as each of its slots; after a gap still since the grant."""
    one = view(limit=b"5")
    one.apply(hold_all((0, 1, 2), 2), 150.0)
    one.apply([hold(3, 3)], 160.0)
    assert [line(one).held[slot].since for slot in range(4)] == [150.0, 150.0, 150.0, 160.0]
    one.lost()
    one.begin()
    one.load(snapshot(hold_all((0, 1, 2), 2)), 9, 300.0, 1000.0)
    assert {held.since for held in line(one).held.values()} == {150.0}
    assert counts(one) == (2, 1, 0)


def test_after_a_gap_leases_are_compared() -> None:
    """One of a lease's slots has gone meanwhile: it has ended, and is counted once."""
    one = view(*hold_all((0, 1), 2), *hold_all((2, 3), 3), limit=b"5")
    one.lost()
    one.begin()
    one.load(snapshot([hold_all((0, 1), 2)[0], *hold_all((2, 3, 4), 6)]), 7, 300.0, 1000.0)
    assert counts(one) == (3, 2, 0)
    one.apply(give_back((0,), 8), 300.0)
    assert counts(one) == (3, 2, 0)
    one.apply(give_back((2, 3, 4), 9), 300.0)
    assert counts(one) == (3, 3, 0)


# ---------------------------------------------------------------- rate limits


def test_a_rate_limits_slots_are_starts() -> None:
    """Counted when they are granted; a block as a whole."""
    one = view(hold(0, 2), hold(1, 3), delete(KEYS.slot(0), 4), hold(0, 5), limit=b"2/1m")
    assert line(one).rate is not None
    assert (line(one).acquired, len(line(one).held)) == (3, 2)
    blocks = view(hold(0, 2), hold(1, 3), limit=b"1000/1m/50")
    assert (line(blocks).acquired, line(blocks).room) == (100, 20)


def test_a_rate_that_cannot_be_read_is_one_still() -> None:
    """Until something else can be read, also after a gap: then it is that, and counts anew."""
    one = view(hold(0, 2), put(KEYS.max_leases, 3, b"soon"), limit=b"2/1m")
    assert line(one).rate is not None
    one.lost()
    one.begin()
    one.load([kv(KEYS.max_leases, 3, b"soon"), kv(KEYS.slot(0), 2, b"{}", 2)], 4, 100.0, 1000.0)
    assert line(one).rate is not None
    assert line(one).acquired == 1
    one.apply([put(KEYS.max_leases, 5, b"7")], 100.0)
    assert (line(one).rate, line(one).acquired) == (None, 0)
    one.lost()
    one.begin()
    one.load([kv(KEYS.max_leases, 6, b"2/1m")], 7, 100.0, 1000.0)
    assert line(one).rate is not None
    assert line(one).acquired == 0


# ---------------------------------------------------------------- the picture is complete


def snapshot(events: Iterable[Event]) -> Sequence[KeyValue]:
    """The keys after events."""
    keys: dict[bytes, KeyValue] = {KEYS.max_leases: kv(KEYS.max_leases, 1, b"2")}
    for event in events:
        if event.kind == "put":
            keys[event.kv.key] = event.kv
        else:
            keys.pop(event.kv.key, None)
    return list(keys.values())


def test_events_during_the_snapshot_wait_for_it() -> None:
    """Those it contains are left aside, later ones are applied."""
    one = PrefixView("/etcdsem")
    events = [hold(0, 2), hold(1, 3), delete(KEYS.slot(1), 4)]
    one.apply(events, 100.0)  # before anything was read: dropped
    one.begin()
    one.apply(events, 100.0)
    one.load(snapshot(events[:2]), 3, 100.0, 1000.0)
    assert list(line(one).held) == [0]
    assert counts(one) == (0, 1, 0)
    one.apply(events, 100.0)  # told again
    assert counts(one) == (0, 1, 0)


def test_a_lost_event_is_found_by_counting() -> None:
    """By the next event after the count, or by a count long after if there is none."""
    for later in (True, False):
        one = view(hold(0, 2), hold(1, 3))
        one.expect(4, 2, 100.0)  # a delete at 4 was never told
        one.expect(4, 2, 100.0 + LATE - 0.1)
        meanwhile = one.state  # it may be under way
        if later:
            one.apply([hold(0, 5)], 100.0)
        else:
            one.expect(4, 2, 100.0 + LATE)
        assert (meanwhile, one.state) == ("live", "stale")


def test_a_right_count_changes_nothing() -> None:
    """Neither does one that comes late, nor many while the events are under way."""
    one = view(hold(0, 2), hold(1, 3))
    one.expect(3, 3, 100.0)
    for more in range(4, 9):
        one.expect(more, 3, 101.0)
    one.apply([delete(KEYS.slot(1), 4)], 102.0)
    one.expect(3, 3, 103.0)
    one.expect(4, 2, 104.0)
    one.expect(4, 2, 104.0 + LATE)
    assert one.state == "live"


def test_after_a_gap_the_difference_is_counted() -> None:
    """At least so much has happened; who is still there has been there since."""
    one = view(hold(0, 2), hold(1, 3))
    one.lost()
    one.apply([delete(KEYS.slot(0), 4)], 200.0)
    one.begin()
    one.load(snapshot([hold(0, 6), hold(1, 3)]), 7, 300.0, 1000.0)
    assert counts(one) == (3, 1, 0)
    assert (line(one).held[1].since, line(one).held[0].since) == (100.0, 300.0)


def test_a_snapshot_that_could_not_be_read() -> None:
    """Stale again, and nothing is kept waiting."""
    one = view()
    one.begin()
    one.apply([hold(0, 2)], 100.0)
    one.abandon()
    assert one.state == "stale"
    one.begin()
    one.load(snapshot([]), 3, 100.0, 1000.0)
    assert not line(one).held


def test_events_that_are_missed_during_the_snapshot() -> None:
    """They may be later than it, so it does not count."""
    one = view(hold(0, 2))
    one.lost()
    one.begin()
    one.lost()
    one.load(snapshot([]), 3, 100.0, 1000.0)
    assert one.state == "stale"
    assert line(one).held
