"""Transactions as messages, there and back through a real etcd."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from etcdsem.core.commands import (
    Compare,
    Delete,
    DeleteReply,
    LeaseNotFound,
    Put,
    PutReply,
    Range,
    RangeReply,
    Refused,
    Txn,
    TxnReply,
)
from etcdsem.core.transactions import MAX_DEPTH
from etcdsem.etcd.connection import Connection
from etcdsem.etcd.settings import read_settings

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer


@pytest.fixture
def connection(any_etcd: EtcdServer) -> Iterator[Connection]:
    """A connection to each kind of etcd."""
    one = Connection(read_settings(any_etcd.endpoint))
    yield one
    one.close()


def key(name: str, rest: str = "") -> bytes:
    """A key of this test alone."""
    return f"/test/{name}/{rest}".encode()


def ranged(reply: object) -> RangeReply:
    """The answer to a range."""
    assert isinstance(reply, RangeReply)
    return reply


def test_all_operations(connection: Connection, name: str) -> None:
    """Put, range and delete, with their answers in order."""
    a, b, old = key(name, "a"), key(name, "b"), f"/old/{name}".encode()
    connection.transact(Txn((), (Put(old, b""),)), 5)
    reply = connection.transact(
        Txn(
            (Compare(a, "create", "=", 0),),
            (Put(b, b"2"), Put(a, b"\x001"), Range(key(name), key(name)[:-1] + b"0"), Delete(old)),
        ),
        5,
    )
    assert reply.succeeded
    put, _, found, deleted = reply.replies
    assert put == PutReply()
    assert [kv.key for kv in ranged(found).kvs] == [a, b]
    assert ranged(found).kvs[0].value == b"\x001"
    assert ranged(found).kvs[0].mod_revision == reply.revision
    assert deleted == DeleteReply(1)


def test_options_of_a_range(connection: Connection, name: str) -> None:
    """Oldest first, limit, keys only, count only; the count is that of all."""
    start, end = key(name), key(name)[:-1] + b"0"
    for rest in ("c", "a", "b"):
        connection.transact(Txn((), (Put(key(name, rest), b"value"),)), 5)
    reads = (
        Range(start, end, oldest_first=True, limit=2),
        Range(start, end, keys_only=True),
        Range(start, end, count_only=True),
    )
    oldest, keys, count = map(ranged, connection.transact(Txn((), reads), 5).replies)
    assert [kv.key for kv in oldest.kvs] == [key(name, "c"), key(name, "a")]
    assert oldest.count == 3
    assert (keys.kvs[0].key, keys.kvs[0].value) == (key(name, "a"), b"")
    assert (count.kvs, count.count) == ((), 3)


@pytest.mark.parametrize(
    ("compare", "holds"),
    [
        (("create", "=", 0), True),
        (("create", "<", 5), True),
        (("mod", "!=", 7), True),
        (("lease", "=", 0), True),
        (("version", "=", 0), True),
        (("create", ">", 0), False),
        (("mod", "=", 7), False),
    ],
)
@pytest.mark.parametrize("ranges", [False, True])
def test_comparisons_with_nothing(
    connection: Connection, name: str, compare: tuple[str, str, int], holds: bool, ranges: bool
) -> None:
    """An absent key, and an empty range, are compared as zeros; a zero is really sent."""
    target, op, number = compare
    end = key(name)[:-1] + b"0" if ranges else b""
    one = Compare(key(name), target, op, number, end)  # type: ignore[arg-type]
    reply = connection.transact(Txn((one,), (Range(b"x"),), ()), 5)
    assert reply.succeeded is holds


def test_a_range_comparison_must_hold_for_all(connection: Connection, name: str) -> None:
    """One key in the range is enough to fail it."""
    connection.transact(Txn((), (Put(key(name, "b"), b""),)), 5)
    start, end = key(name), key(name)[:-1] + b"0"
    assert not connection.transact(Txn((Compare(start, "create", "=", 0, end),), ()), 5).succeeded
    assert connection.transact(Txn((Compare(start, "create", ">", 0, end),), ()), 5).succeeded


def test_nesting_to_the_full_depth(connection: Connection, name: str) -> None:
    """As deep as we ever go: the innermost branch runs, and its answer can be read."""
    branch: tuple[Put | Txn, ...] = (Put(key(name, "inner"), b"reached"),)
    for level in range(MAX_DEPTH):
        never = Compare(key(name, str(level)), "create", ">", 0)
        branch = (Txn((never,), (Put(key(name, f"x{level}"), b""),), branch),)
    reply = connection.transact(Txn((Compare(key(name), "create", "=", 0),), branch), 5)
    for _ in range(MAX_DEPTH):
        inner = reply.replies[0]
        assert isinstance(inner, TxnReply)
        reply = inner
        assert not reply.succeeded
    assert reply.replies == (PutReply(),)


def test_leases_of_keys(connection: Connection, name: str) -> None:
    """A lease is attached, told, and required to exist; without one it is detached."""
    lease = abs(hash(name)) + 1
    with pytest.raises(LeaseNotFound):
        connection.transact(Txn((), (Put(key(name), b"", lease),)), 5)
    assert connection.grant(lease, 5, 5) == 5
    connection.transact(Txn((), (Put(key(name), b"", lease),)), 5)
    found = ranged(connection.transact(Txn((), (Range(key(name)),)), 5).replies[0])
    assert found.kvs[0].lease == lease
    assert 0 < connection.time_to_live(lease, 5) <= 5
    connection.revoke(lease, 5)
    assert connection.time_to_live(lease, 5) == -1
    assert ranged(connection.transact(Txn((), (Range(key(name)),)), 5).replies[0]).kvs == ()
    with pytest.raises(LeaseNotFound):
        connection.revoke(lease, 5)


def test_the_same_key_twice_is_refused(connection: Connection, name: str) -> None:
    """Etcd's rule; nothing is applied."""
    twice = Txn((), (Put(key(name), b"1"), Put(key(name), b"2")))
    with pytest.raises(Refused, match="duplicate"):
        connection.transact(twice, 5)
    assert ranged(connection.transact(Txn((), (Range(key(name)),)), 5).replies[0]).kvs == ()
