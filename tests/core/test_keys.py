"""What lies in etcd, written and read."""

from __future__ import annotations

import json

import pytest

from etcdsem.core.commands import KeyValue
from etcdsem.core.keys import (
    MAX_MESSAGE,
    Identity,
    Keys,
    Queued,
    client_id,
    read_holders,
    read_limit,
    read_message,
    read_queue,
    read_waiters,
    record,
    slot_number,
    stated,
    write_list,
    write_message,
)
from etcdsem.model import Rate

ME = "host.12.abcd"
KEYS = Keys("/etcdsem", "x", ME)


def kv(key: bytes, value: bytes = b"", revision: int = 5, lease: int = 0) -> KeyValue:
    """A key in etcd."""
    return KeyValue(key, value, revision, revision, lease)


def waiter(lease: int, created: int, value: bytes = b"{}") -> KeyValue:
    """A waiter's key."""
    return kv(KEYS.waiter(f"{ME}/{lease:016x}".encode()), value, created, lease)


def test_ranges_hold_what_they_should() -> None:
    """Slots are in their range at any limit; another semaphore's keys are in none."""
    for slot in (0, 7, 99_998):
        assert KEYS.leases <= KEYS.slot(slot) < KEYS.leases_end
    assert KEYS.slot(99_999) < KEYS.leases_end
    assert KEYS.base <= KEYS.max_leases < KEYS.base_end
    for other in ("x.y", "xx", "x-"):
        assert not KEYS.base <= Keys("/etcdsem", other, ME).max_leases < KEYS.base_end


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *((b"5", 5), (b" 3\n", 3), (b"0", 0), (b"99999", 99999), (b"100000", None), (b"", None)),
        *((b"-1", None), (b"1e3", None), ("٣".encode(), None), (b"1" * 50, None), (b"\xff", None)),
    ],
)
def test_limits(text: bytes, number: int | None) -> None:
    """A plain number, spaces forgiven."""
    assert read_limit(kv(KEYS.max_leases, text)).number == number


@pytest.mark.parametrize(
    ("text", "number", "room", "rate"),
    [
        (b"5 paused", 5, 0, None),
        (b"5 paused by alice@ops since 2026-11-25, for a move", 5, 0, None),
        (b"100/1m", 100, 100, Rate(100, 60.0, 1)),
        (b"10000/1m/50", 200, 200, Rate(10000, 60.0, 50)),
        (b"7/1.5", 7, 7, Rate(7, 1.5, 1)),
        (b"100/250ms paused", 100, 0, Rate(100, 0.25, 1)),
        (b"5 pausedly", None, 0, None),
        (b"5 halted", None, 0, None),
        (b"paused", None, 0, None),
        (b"5/", None, 0, None),
        (b"5/0s", None, 0, None),
        (b"5/-1s", None, 0, None),
        (b"5/inf", None, 0, None),
        (b"5/1m/0", None, 0, None),
        (b"5/1m/x", None, 0, None),
        (b"5/1m/1/1", None, 0, None),
        (b"5/1\xffm", None, 0, None),
        (b"999999/1m", None, 0, None),
        (b"999999/1m/100", 9999, 9999, Rate(999999, 60.0, 100)),
    ],
)
def test_paused_limits_and_rates(
    text: bytes, number: int | None, room: int, rate: Rate | None
) -> None:
    """A pause keeps the number; a rate has as many slots as blocks; the rest is no limit."""
    limit = read_limit(kv(KEYS.max_leases, text))
    assert (limit.number, limit.room, limit.rate) == (number, room, rate)
    assert limit.paused == (number is not None and b" paused" in text)


def test_registered_means_never_written_again() -> None:
    """A limit is as registered while its create and mod revisions are equal."""
    assert read_limit(KeyValue(KEYS.max_leases, b"1", 4, 4)).registered
    assert not read_limit(KeyValue(KEYS.max_leases, b"1", 4, 9)).registered


def test_client_ids_are_safe_in_keys() -> None:
    """Strange host names give ids that can be told apart again."""
    made = client_id("wéb.example/π" * 10, 7, "ab12")
    host, pid, unique = made.rsplit(".", 2)
    assert (pid, unique) == ("7", "ab12")
    assert host.isascii()
    assert len(host) == 63
    who = f"{made}/{1:016x}".encode()
    message = write_message((0,), write_list([Queued(who, 1, 2, b"")]))
    assert read_message(message) is not None


def test_records_say_who() -> None:
    """One line of JSON; owner and labels only where they were given."""
    plain = json.loads(record(ME, b"", 255, "since", 0.0))
    assert plain == {
        "owner": "host:12",
        "host": "host",
        "pid": 12,
        "client": ME,
        "lease": "00000000000000ff",
        "since": "1970-01-01T00:00:00.000Z",
    }
    identity = Identity.of(ME, "me", {"job": 'a "b"\nc'})
    rich = record(ME, identity.extras, 255, "acquired", 0.0)
    assert b"\n" not in rich
    holders, junk = read_holders(KEYS, [kv(KEYS.slot(1), rich, 9, 255)], None)
    assert not junk
    assert (holders[0].owner, holders[0].labels, holders[0].fencing_token) == (
        "me",
        {"job": 'a "b"\nc'},
        9,
    )


def test_a_grant_message_carries_the_line() -> None:
    """What is written is read again, owner and labels too."""
    identity = Identity.of(ME, "me", {"a": "b"})
    value = record(ME, identity.extras, 1, "since", 0.0)
    queue = read_queue(KEYS, [waiter(1, 3, value), waiter(2, 4)])
    assert queue[0].extras == identity.extras
    message = write_message((7,), write_list(queue))
    assert read_message(message) == read_message(message, 3) == ((7,), queue)
    assert read_message(message, 4) == ((7,), ())  # known already
    assert read_message(write_message((3, 0, 99998), write_list(queue))) == ((3, 0, 99998), queue)


def test_a_long_grant_message_is_cut() -> None:
    """A list of large records is cut at 4 KiB, and what is left is the line's head."""
    queue = [Queued(f"{ME}/{n:016x}".encode(), n, n, b"x" * 1000) for n in range(1, 40)]
    message = write_message((0,), write_list(queue))
    assert len(message) < MAX_MESSAGE + 1200
    read = read_message(message)
    assert read is not None
    assert list(read[1]) == queue[: len(read[1])]


@pytest.mark.parametrize(
    "value", [b"", b"slot", b"slot x", b"{}", b"slot 1\nnobody", b"slot 1\na.1.b/1 x", b"\xff\x00"]
)
def test_messages_of_others_are_no_messages(value: bytes) -> None:
    """What nobody of ours wrote is not read as a grant."""
    assert read_message(value) is None


def test_waiters_that_cannot_be_are_named() -> None:
    """No lease, a foreign lease, a strange name: junk, with the reason."""
    good = waiter(7, 3)
    bad = [
        good._replace(lease=0),
        good._replace(lease=8),
        kv(KEYS.waiters + b"somebody", lease=1),
        kv(KEYS.waiters + b"a.1.b/7", lease=7),
    ]
    waiters, junk = read_waiters(KEYS, [good, *bad])
    assert [one.lease_id for one in waiters] == [f"{7:016x}"]
    assert len(junk) == len(bad)
    assert read_queue(KEYS, bad) == ()


@pytest.mark.parametrize(
    ("rest", "slot"),
    [(b"00007", 7), (b"7", None), (b"-0001", None), (b"00000/x", None), (b"", None)],
)
def test_slots_have_five_digits(rest: bytes, slot: int | None) -> None:
    """Anything else is no slot."""
    assert slot_number(KEYS, KEYS.leases + rest) == slot


def test_a_limit_that_a_program_carries_is_said_where_it_differs() -> None:
    """In the record, on the way through the queue, and only then."""
    five = read_limit(kv(KEYS.max_leases, b"5"))
    plain = Identity.of(ME, None, {})
    assert plain.carrying(5, five) is plain.carrying(None, five) is plain
    other = Identity.of(ME, "me", {"a": "b"}).carrying(3, five)
    written = record(other.client, other.extras, 7, "since", 0.0)
    assert stated(kv(b"k", written)).carried == 3
    (queued,) = read_queue(KEYS, [waiter(7, 5, written)])
    granted = record(queued.client, queued.extras, 7, "acquired", 0.0)
    assert stated(kv(b"k", granted)).carried == 3
    assert json.loads(granted)["owner"] == "me"
