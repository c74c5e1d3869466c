"""The model of etcd is verified: the same random operations on it and on real etcds.

Every answer, error, revision and watch event must be the same. Two things are deliberately not
compared: the order of keys with equal create revisions (Go's sort is not stable), and how many
seconds a lease has left (only whether it exists).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import Any, Literal

import pytest

from etcdsem.client_lock import ClientLock
from etcdsem.core.commands import (
    Compare,
    Delete,
    Event,
    Failure,
    KeyValue,
    LeaseExists,
    LeaseNotFound,
    Operation,
    Put,
    Range,
    RangeReply,
    Refused,
    Reply,
    Txn,
    TxnReply,
)
from etcdsem.core.watchbook import WatchHandle
from etcdsem.etcd import encode
from etcdsem.etcd.connection import Connection
from etcdsem.etcd.settings import read_settings
from etcdsem.etcd.stream_thread import ThreadStreams
from etcdsem.server import EtcdServer
from etcdsem.testing.history import ModelWatch
from etcdsem.testing.model import EtcdModel

KEYS = [b"k/%d" % number for number in range(7)] + [b"m", b"k"]
TARGETS: tuple[Literal["create", "mod", "version", "lease", "value"], ...] = (
    "create",
    "mod",
    "version",
    "lease",
    "value",
)
OPS: tuple[Literal["=", "!=", "<", ">"], ...] = ("=", "!=", "<", ">")
ENDS = [b"k/2", b"k/5", b"k0", b"n", b"\0"]
OPERATIONS = 10_000
"""Per etcd version. Each takes some milliseconds for etcd's own disk writes."""


class Generator:
    """Random operations, near the edges of what is stored."""

    def __init__(self, seed: int, model: EtcdModel) -> None:
        self.rng = Random(seed)
        self.model = model

    def key(self) -> bytes:
        return self.rng.choice(KEYS)

    def end(self) -> bytes:
        return self.rng.choice(ENDS) if self.rng.random() < 0.4 else b""

    def lease(self, *, missing: float = 0.1) -> int:
        leases = list(self.model.leases)
        if not leases or self.rng.random() < missing:
            return self.rng.randint(1, 9)
        return self.rng.choice(leases)

    def compare(self) -> Compare:
        rng, key = self.rng, self.key()
        target = rng.choice(TARGETS)
        kv = self.model.get(key)
        known = [0, 1, rng.randint(0, self.model.revision + 1)]
        if kv is not None:
            known += [kv.create_revision, kv.mod_revision, kv.mod_revision - 1, kv.lease]
        op, number, end = rng.choice(OPS), rng.choice(known), self.end()
        values = [b"", b"%d" % rng.randint(0, 99)] + ([kv.value] if kv is not None else [])
        return Compare(key, target, op, number, end, value=rng.choice(values))

    def operation(self, depth: int) -> Operation:
        rng = self.rng
        kind = rng.random()
        if kind < 0.35:
            lease = self.lease(missing=0.03) if rng.random() < 0.3 else 0
            return Put(self.key(), b"%d" % rng.randint(0, 99), lease)
        if kind < 0.5:
            return Delete(self.key(), self.end() if rng.random() < 0.3 else b"")
        if kind < 0.75 or depth == 0:
            return Range(
                self.key(),
                self.end(),
                limit=rng.choice((0, 0, 1, 2, 3)),
                oldest_first=rng.random() < 0.5,
                keys_only=rng.random() < 0.3,
                count_only=rng.random() < 0.2,
            )
        return self.txn(depth - 1)

    def branch(self, depth: int) -> tuple[Operation, ...]:
        return tuple(self.operation(depth) for _ in range(self.rng.choice((0, 1, 1, 2, 2, 3))))

    def txn(self, depth: int = 3) -> Txn:
        compares = tuple(self.compare() for _ in range(self.rng.choice((0, 1, 1, 2))))
        return Txn(compares, self.branch(depth), self.branch(depth))


class Both:
    """The model and a real etcd, given the same operations."""

    def __init__(self, connection: Connection) -> None:
        self.real = connection
        self.model = EtcdModel()
        self.count = 0

    def _same(self, model: Callable[[], Any], real: Callable[[], Any], what: object) -> Any:
        self.count += 1
        expected, got = _outcome(model), _outcome(real)
        assert got == expected, f"operation {self.count}, {what}: etcd gives {got}"
        return expected

    def transact(self, txn: Txn) -> Any:
        def real() -> TxnReply:
            # Not `Connection.transact`, which may send twice where that is right for the core.
            return encode.decode(self.real.call("txn", encode.encode(txn), 5.0))

        return self._same(
            lambda: _canonical(txn, self.model.transact(txn)),
            lambda: _canonical(txn, real()),
            txn,
        )

    def grant(self, lease: int, ttl: int) -> None:
        self._same(
            lambda: float(self.model.grant(lease, ttl)),
            lambda: self.real.grant(lease, ttl, 5.0),
            f"grant {lease} {ttl}",
        )

    def revoke(self, lease: int) -> None:
        self._same(
            lambda: self.model.revoke(lease),
            lambda: self.real.revoke(lease, 5.0),
            f"revoke {lease}",
        )

    def time_to_live(self, lease: int) -> None:
        self._same(
            lambda: self.model.time_to_live(lease) >= 0,
            lambda: self.real.time_to_live(lease, 5.0) >= 0,
            f"time to live {lease}",
        )

    def compact(self, revision: int) -> None:
        self.model.compact(revision)
        self.real.compact(revision, 5.0)


def _canonical(txn: Txn, reply: TxnReply) -> TxnReply:
    """Normalize keys with equal create revisions, which come in any order and are cut anywhere."""
    operations = txn.success if reply.succeeded else txn.failure
    return reply._replace(replies=tuple(map(_canonical_reply, operations, reply.replies)))


def _canonical_reply(operation: Operation, reply: Reply) -> Reply:
    if isinstance(operation, Txn) and isinstance(reply, TxnReply):
        return _canonical(operation, reply)
    if not (isinstance(operation, Range) and operation.oldest_first and reply.kvs):  # type: ignore[union-attr]
        return reply
    assert isinstance(reply, RangeReply)
    kvs = sorted(reply.kvs, key=lambda kv: (kv.create_revision, kv.key))
    assert [kv.create_revision for kv in kvs] == [kv.create_revision for kv in reply.kvs]
    if len(kvs) < reply.count:
        last = kvs[-1].create_revision
        kvs = [kv if kv.create_revision != last else KeyValue(b"", b"", last, 0) for kv in kvs]
    return reply._replace(kvs=tuple(kvs))


def _outcome(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except (LeaseNotFound, LeaseExists) as failure:
        return type(failure)
    except Refused as failure:
        return _reason(failure)
    except Failure as failure:
        return repr(failure)


def _reason(failure: Failure) -> str:
    """Etcd's own words, without what our connection adds."""
    text = str(failure)
    return text[text.index("etcdserver:") :] if "etcdserver:" in text else text


@pytest.fixture
def both(any_fresh_etcd: EtcdServer) -> Iterator[Both]:
    """A model and an etcd, both empty."""
    connection = Connection(read_settings(any_fresh_etcd.endpoint))
    yield Both(connection)
    connection.close()


def _step(both: Both, generator: Generator) -> None:
    kind = generator.rng.random()
    if kind < 0.06:
        ttl = generator.rng.choice((600, 601, 9_000_000_001))
        both.grant(generator.rng.randint(1, 9), ttl)
    elif kind < 0.09:
        both.revoke(generator.lease())
    elif kind < 0.1:
        both.time_to_live(generator.lease())
    else:
        both.transact(generator.txn())


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(4))
def test_same_answers(both: Both, seed: int) -> None:
    """Random transactions, grants and revocations give the same answers, errors and revisions."""
    generator = Generator(seed, both.model)
    for _ in range(OPERATIONS // 4):
        _step(both, generator)
    everything = Txn((), (Range(b"\0", b"\0"),))
    both.transact(everything)


def test_refusals(both: Both) -> None:
    """Etcd's special rules: too many operations, duplicate keys, empty keys, missing leases."""
    both.transact(Txn((), tuple(Put(b"%d" % n, b"") for n in range(128))))
    both.transact(Txn((), tuple(Put(b"%d" % n, b"") for n in range(129))))
    both.transact(Txn((Compare(b"a", "create", "=", 0),) * 129, ()))
    inner = Txn((), tuple(Put(b"%d" % n, b"") for n in range(127)))
    both.transact(Txn((), (inner,)))
    both.transact(Txn((), (inner, Put(b"x", b""))))
    put = Put(b"k", b"")
    for branches in (
        ((put, put), ()),
        ((put, Delete(b"a", b"z")), ()),
        ((Txn((), (put,), (put,)),), ()),
        ((put, Txn((), (put,), ())), ()),
        ((Txn((), (put,)), Txn((), (put,))), ()),
        ((Txn((), (put,)), Txn((), (Delete(b"k"),))), ()),
        ((Txn((), (Delete(b"k"),)), Txn((), (put,))), ()),
        ((Txn((), (Delete(b"k"),)), put), ()),
        ((Txn((), (put, Delete(b"k"))),), ()),
        ((Txn((), (), (Delete(b"k"), put)),), ()),
        ((Txn((), (Delete(b"k"),)), Txn((), (Delete(b"k"),))), ()),
        ((Txn((), (put,), (Delete(b"k"),)),), ()),
        ((Txn((), (Delete(b"k"), Txn((), (put,)))),), ()),
        ((Txn((), (put,), (Txn((), (Delete(b"k"),)),)),), ()),
        ((put,), (put,)),
        ((Put(b"", b""),), ()),
        ((Put(b"k", b"", lease=77),), ()),
        ((), (Put(b"k", b"", lease=77),)),
        ((put, Txn((), (Put(b"l", b"", lease=77),))), ()),
    ):
        both.transact(Txn((), *branches))
    both.transact(Txn((Compare(b"", "create", "=", 0),), ()))


def test_empty_range_compares_as_one_absent_key(both: Both) -> None:
    """All numbers of an empty range are 0; otherwise all keys must satisfy the comparison."""
    both.transact(Txn((), (Put(b"k/1", b""),)))
    both.transact(Txn((), (Put(b"k/2", b""),)))
    for key, end in ((b"a", b"b"), (b"k/", b"k0"), (b"k/2", b"k0"), (b"k0", b"k/"), (b"k/1", b"")):
        for target in TARGETS:
            for op in OPS:
                for number in (0, 1, 2, 3):
                    both.transact(Txn((Compare(key, target, op, number, end),), ()))


# ---------------------------------------------------------------- watches


class Told:
    """What a watch of either kind has reported."""

    def __init__(self) -> None:
        self.list: list[Event] = []
        self.gaps = 0
        self.ready = threading.Event()
        self.news: queue.SimpleQueue[None] = queue.SimpleQueue()

    def created(self, revision: int) -> None:
        self.ready.set()

    def events(self, events: Sequence[Event]) -> None:
        self.list += events
        self.news.put(None)

    def gap(self, reason: str) -> None:
        self.gaps += 1
        self.news.put(None)

    def compacted(self, revision: int) -> None:
        self.gaps += 1

    def refused(self, error: Failure) -> None:
        raise AssertionError(error)

    def wait_for(self, events: int, gaps: int) -> None:
        """Wait until that much was reported."""
        while len(self.list) < events or self.gaps < gaps:
            self.news.get(timeout=5.0)


class Watched:
    """One watch on both the model and etcd."""

    def __init__(
        self, both: Both, stream: ThreadStreams, key: bytes, end: bytes, **how: Any
    ) -> None:
        self.what = (key, end, how)
        self.expected, self.got = Told(), Told()
        self.real: WatchHandle = stream.watch(self.got, key, end, **how)
        assert self.got.ready.wait(5.0)
        self.model: ModelWatch = both.model.watch(self.expected, key, end, **how)
        both.model.advance(both.model.now + 0.2)

    def compare(self) -> None:
        """Check that both have reported the same."""
        try:
            self.got.wait_for(len(self.expected.list), self.expected.gaps)
        except queue.Empty:
            pass
        assert self.got.list == self.expected.list, self.what
        assert self.got.gaps == self.expected.gaps, self.what

    def cancel(self) -> None:
        self.real.cancel()
        self.model.cancel()


@contextmanager
def _watch_stream(both: Both) -> Iterator[ThreadStreams]:
    stream = ThreadStreams(both.real, ClientLock(), lambda lease, ttl: None)
    yield stream
    stream.close()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(3))
def test_same_events(both: Both, seed: int) -> None:
    """Watches on keys and ranges, filtered, from past, present and future, report the same."""
    generator = Generator(100 + seed, both.model)
    rng = generator.rng
    watches: list[Watched] = []
    with _watch_stream(both) as stream:
        for _ in range(12):
            for _ in range(40):
                _step(both, generator)
            for watch in watches:
                watch.compare()
            for _ in range(3):
                revision = both.model.revision
                oldest = both.model.compacted + 1
                start = rng.choice((0, 0, revision, revision + 1, rng.randint(oldest, revision)))
                only = rng.choice((None, None, "put", "delete"))
                key, end = generator.key(), generator.end()
                if end != b"\0" and end <= key:
                    end = b""  # etcd refuses to watch an empty range
                watches.append(Watched(both, stream, key, end, start=start, only=only))
            for watch in watches:
                watch.compare()
            if rng.random() < 0.3 and both.model.revision > both.model.compacted:
                both.compact(rng.randint(both.model.compacted + 1, both.model.revision))
            if len(watches) > 20:
                watches.pop(0).cancel()
        for watch in watches:
            watch.compare()


@pytest.mark.parametrize("back", [0, 1, 2, 5])
def test_watch_from_compacted_revision(both: Both, back: int) -> None:
    """A watch from the compacted revision sees everything; one from before it has a gap."""
    for number in range(10):
        both.transact(Txn((), (Put(b"k/1", b"%d" % number),)))
    compacted = both.model.revision - 3
    both.compact(compacted)
    with _watch_stream(both) as stream:
        watch = Watched(both, stream, b"k/1", b"", start=compacted - back)
        watch.compare()
        assert watch.expected.gaps == (1 if back else 0)


def test_expired_lease(both: Both) -> None:
    """A TTL of 1 s becomes 2 s; the keys are deleted in one revision within a tick and a half."""
    both.grant(5, 1)
    both.transact(Txn((), (Put(b"k/2", b"", 5), Put(b"k/1", b"", 5), Put(b"k/3", b""))))
    with _watch_stream(both) as stream:
        watch = Watched(both, stream, b"k/", b"k0", start=0, only="delete")
        both.model.advance(both.model.now + 1.7)
        assert both.model.get(b"k/1") is not None
        both.model.advance(both.model.now + 2.5)
        watch.compare()
        assert [event.kv.key for event in watch.expected.list] == [b"k/1", b"k/2"]
    both.transact(Txn((), (Range(b"k/", b"k0"),)))
    both.time_to_live(5)
