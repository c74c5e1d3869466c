"""The catalogue of bad inputs: names, limits, durations, and keys that somebody made by hand."""

from __future__ import annotations

import gc
import logging
import math
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

import etcdsem
from etcdsem import Client, Semaphore, model, validation
from tests.helpers.history import assert_clean

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer


class Index:
    """An integer type that is not int, as NumPy's."""

    def __index__(self) -> int:
        return 3


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "/",
        "/a",
        "a/",
        "a//b",
        "a/b",
        "a b",
        "a\0b",
        "é",
        "e\u0301",
        "\ud800",
        "a\n",
        "x" * 129,
        "x" * 2_000_000,
        b"bytes",
        7,
    ],
)
def test_names_that_cannot_be(client: Client, bad: Any) -> None:
    """A name that could reach into other keys is refused, with what is allowed."""
    with pytest.raises(ValueError, match=r"name") as caught:
        Semaphore(1, bad, client=client)
    assert isinstance(caught.value, etcdsem.InvalidName)
    assert len(str(caught.value)) < 300


def test_no_name_is_inside_another(client: Client, name: str) -> None:
    """Names that begin alike have nothing to do with each other."""
    one, two = Semaphore(1, name, client=client), Semaphore(1, name + "b", client=client)
    dotted = Semaphore(1, name + ".b", client=client)
    with one, two, dotted:
        assert (one.get_value(), two.get_value(), dotted.get_value()) == (1, 1, 1)
    one.close()
    assert two.acquire(timeout=0)
    two.release()


@pytest.mark.parametrize("bad", [0, -1, True, False, 2.0, "2", 2**63, 100_000, math.nan, [1]])
def test_limits_that_cannot_be(client: Client, name: str, bad: Any) -> None:
    """A limit is a whole number from 1 to 99999; nothing is registered otherwise."""
    with pytest.raises(ValueError, match="whole number"):
        Semaphore(bad, name, client=client)
    with pytest.raises(etcdsem.SemaphoreClosed):
        client.status(name)


def test_integer_types_are_limits(client: Client, name: str) -> None:
    """Whatever Python takes for an index is a limit."""
    assert Semaphore(Index(), name, client=client).max_leases == 3  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (1, 1.0),
        (0.25, 0.25),
        ("250ms", 0.25),
        ("1m30s", 90.0),
        ("5 minutes", 300.0),
        ("1.5 hours", 5400.0),
        ("200 milliseconds", 0.2),
        ("2 Days", 172800.0),
        ("1.5", 1.5),
        (" 2h ", 7200.0),
        ("30 s", 30.0),
        (timedelta(minutes=1), 60.0),
        (0, 0.0),
    ],
)
def test_durations(given: model.Duration, expected: float) -> None:
    """Seconds, strings and timedelta mean the same everywhere."""
    assert validation.seconds(given) == pytest.approx(expected)


@pytest.mark.parametrize("bad", ["", "soon", "5 parsecs", math.nan, "nan", None, True, [], "1m30"])
def test_durations_that_cannot_be(bad: Any) -> None:
    """What is no duration is refused, with an example of one."""
    with pytest.raises(etcdsem.InvalidSetting, match="1m30s"):
        validation.seconds(bad)


@pytest.mark.parametrize("bad", [-1, "-1s", timedelta(seconds=-1)])
def test_negative_timeouts(client: Client, name: str, bad: model.Duration) -> None:
    """A negative timeout is a mistake, not a try."""
    with pytest.raises(ValueError, match="negative"):
        Semaphore(1, name, client=client).acquire(timeout=bad)


@pytest.mark.parametrize("big", [math.inf, 1e300, 10**400, "1e300"])
def test_enormous_timeouts_wait_for_ever(client: Client, name: str, big: Any) -> None:
    """A timeout beyond all bounds works like none (or is refused), and never overflows."""
    sem = Semaphore(1, name, client=client)
    try:
        assert sem.acquire(timeout=big)
    except etcdsem.InvalidSetting:
        return
    sem.release()


@pytest.mark.parametrize("bad", [0, 1, -5, 0.5, math.nan, math.inf, 9_000_000_001, "x"])
def test_lease_timeouts_that_cannot_be(client: Client, name: str, bad: Any) -> None:
    """Etcd would silently raise a small one and refuse a large one; so they are refused here."""
    with pytest.raises(etcdsem.InvalidSetting):
        Semaphore(1, name, client=client, lease_timeout=bad)


@pytest.mark.parametrize("bad", [0, -1, 30, 29.9, "1h"])
def test_refresh_intervals_that_do_not_fit(client: Client, name: str, bad: Any) -> None:
    """A refresh must come before the lease ends."""
    with pytest.raises(etcdsem.InvalidSetting, match="refresh"):
        Semaphore(1, name, client=client, lease_timeout=30, refresh_interval=bad)


@pytest.mark.parametrize(
    "labels",
    [
        {"": "x"},
        {"a b": "x"},
        {"a": "line\nbreak"},
        {"a": "\x1b[31m"},
        {"a": "x" * 254},
        {"a": 5},
        {5: "a"},
        {"a": "\ud800"},
        {f"k{i}": "v" for i in range(17)},
    ],
)
def test_labels_that_cannot_be(client: Client, name: str, labels: Any) -> None:
    """Labels are short printable text, since they end up in terminals."""
    with pytest.raises(etcdsem.InvalidSetting, match="label"):
        Semaphore(1, name, client=client, labels=labels)


@pytest.mark.parametrize("bad", ["", "x", "/", "//", "/a//b", "/a b", "/a/\0"])
def test_prefixes_that_cannot_be(client: Client, name: str, bad: str) -> None:
    """A prefix is a path."""
    with pytest.raises(etcdsem.InvalidSetting, match="prefix"):
        Semaphore(1, name, client=client, prefix=bad)


# ---------------------------------------------------------------- keys made by hand


@pytest.mark.parametrize(
    ("text", "limit"), [(" 3 ", 3), ("3\n", 3), ("0", 0), ("007", 7), ("99999", 99999)]
)
def test_limits_put_by_hand(
    etcd: EtcdServer, client: Client, name: str, text: str, limit: int
) -> None:
    """Space around the number is forgiven."""
    etcd.etcdctl("put", f"/etcdsem/{name}/max_leases", text)
    assert client.limit(name) == limit


@pytest.mark.parametrize(
    "text", ["", "abc", "-1", "1e3", "٣", "1" * 31, "\x00\xff", '{"limit": 5}', "3.0", "100000"]
)
def test_unreadable_limits_grant_nothing(
    etcd: EtcdServer, client: Client, name: str, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What is no number grants nothing, is reported, and is mended by one put."""
    sem = Semaphore(2, name, client=client)
    with sem:
        pass
    key = f"/etcdsem/{name}/max_leases"
    if text == "\x00\xff":
        text = "\x01\x7f"  # a NUL can't be given to a command
    etcd.etcdctl("put", "--", key, text)
    assert sem.acquire(timeout=0) is False
    assert client.limit(name) is None
    status = client.status(name)
    assert status.max_leases is None
    assert any(junk.key == key for junk in status.junk)
    assert any(entry.levelno == logging.ERROR for entry in caplog.records)
    etcd.etcdctl("put", key, "2")
    assert sem.acquire(timeout=10)
    assert sem.release()


def test_a_limit_that_vanishes_closes(etcd: EtcdServer, client: Client, name: str) -> None:
    """Without a limit the semaphore is not known."""
    sem = Semaphore(1, name, client=client)
    etcd.etcdctl("del", f"/etcdsem/{name}/max_leases")
    with pytest.raises(etcdsem.SemaphoreClosed):
        sem.acquire(timeout=0)


def test_junk_is_reported_and_never_a_grant(etcd: EtcdServer, client: Client, name: str) -> None:
    """Strange keys are named, count for nothing, and stand in nobody's way but their own slot's."""
    sem = Semaphore(2, name, client=client)
    base = f"/etcdsem/{name}"
    strange = [
        f"{base}/leases/abc",
        f"{base}/leases/7",
        f"{base}/leases/-0001",
        f"{base}/leases/00000/sub",
        f"{base}/waiters/nobody",
        f"{base}/waiters/a.1.b/xyz",
        f"{base}/waiters/a.1.b/0000000000000001",
    ]
    for key in strange:
        etcd.etcdctl("put", key, "{garbage")
    etcd.etcdctl("put", f"/etcdsem/{name}", "the prefix itself")
    etcd.etcdctl("put", f"{base}/grants/whatever", "slot 0")
    etcd.etcdctl("put", f"{base}/unheard-of", "?")
    status = client.status(name)
    assert sorted(junk.key for junk in status.junk) == sorted(strange)
    assert status.held == 0
    assert status.waiters == ()
    assert sem.acquire(timeout=10)
    assert sem.acquire(timeout=10)
    assert sem.acquire(timeout=0) is False
    assert sem.get_value() == 2
    assert sem.release()
    assert sem.acquire(timeout=10)
    sem.release()
    sem.release()


def test_a_slot_without_a_lease_is_not_free(etcd: EtcdServer, client: Client, name: str) -> None:
    """A hand-made holder without a lease blocks its slot; evict removes it."""
    sem = Semaphore(2, name, client=client)
    etcd.etcdctl("put", f"/etcdsem/{name}/leases/00001", "me")
    with sem.hold(timeout=5) as lease:
        assert lease.slot == 0
        assert sem.acquire(timeout=0) is False
    client.evict(name, slot=1)
    assert sem.acquire(timeout=0)
    assert sem.acquire(timeout=0)
    sem.release()
    sem.release()
    assert_clean_but_for_hand_made(etcd, name)


def assert_clean_but_for_hand_made(etcd: EtcdServer, name: str) -> None:
    """Nothing is left but the limit."""
    keys = etcd.etcdctl("get", "--prefix", "--keys-only", f"/etcdsem/{name}/").split()
    assert set(keys) <= {f"/etcdsem/{name}/max_leases"}


def test_holders_beyond_the_limit_by_hand(etcd: EtcdServer, client: Client, name: str) -> None:
    """Two holders put beyond the limit are reported; nothing is granted on top of them."""
    sem = Semaphore(2, name, client=client)
    granted = etcd.etcdctl("lease", "grant", "60").split()[1]
    for slot in (7, 8):
        key = f"/etcdsem/{name}/leases/{slot:05}"
        etcd.etcdctl("put", f"--lease={granted}", key, '{"owner":"by hand"}')
    assert sem.acquire(timeout=0) is False
    assert [holder.over_limit for holder in sem.holders()] == [True, True]
    etcd.etcdctl("lease", "revoke", granted)
    assert sem.acquire(timeout=10)
    sem.release()


def test_many_junk_waiters_hold_nobody_up(etcd: EtcdServer, client: Client, name: str) -> None:
    """A page full of junk in front of the line is read past."""
    sem = Semaphore(1, name, client=client)
    for number in range(40):
        etcd.etcdctl("put", f"/etcdsem/{name}/waiters/junk{number:03}", "x")
    sem.acquire()
    granted: list[bool] = []
    thread = threading.Thread(target=lambda: granted.append(sem.acquire(timeout=20)))
    thread.start()
    while not sem.waiters():
        pass
    sem.release()
    thread.join(20)
    assert granted == [True]
    sem.release()


def test_records_of_others_are_read_without_harm(
    etcd: EtcdServer, client: Client, name: str
) -> None:
    """A holder's record may be any bytes, of any shape and size."""
    sem = Semaphore(9, name, client=client)
    granted = etcd.etcdctl("lease", "grant", "60").split()[1]
    values = ["", "[]", "null", '{"pid": "x"}', '{"labels": 5, "acquired": 7}', "[" * 5000]
    for slot, value in enumerate(values):
        etcd.etcdctl("put", f"--lease={granted}", f"/etcdsem/{name}/leases/{slot:05}", value)
    gc.collect()  # what other tests have left is not to be finalized deep in a recursion
    assert len(sem.holders()) == len(values)
    etcd.etcdctl("lease", "revoke", granted)
    assert_clean(etcd, name)
