"""An in-memory etcd: pure, deterministic, single-threaded; time is passed in.

1. Its answers (replies, revisions, errors, events) are those of etcd; `tests/simulation/
   test_model_against_etcd.py` compares the two. It omits what the core does not use: reads at old
   revisions, value comparisons, prev_kv, authentication.
2. All comparisons of a transaction, nested ones included, see the state before it; ranges see what
   the operations before them wrote. A transaction that changes nothing keeps the revision; any
   other increments it.
3. Nothing happens by itself: `advance(now)` runs what etcd's loops would have done by then (the
   collection of expired leases every 500 ms, late watchers every 100 ms); `next_time()` says when
   calling it makes sense.
4. An expired lease that is not collected yet is as good as any other, but it cannot be renewed: the
   answer to a renewal waits until it is gone. A new leader gives all leases their full TTL again.
5. A watch that starts in the past is served by the 100 ms loop, and is cancelled there if its
   history was compacted.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable
from typing import Any

from etcdsem.core.commands import (
    Compare,
    Delete,
    DeleteReply,
    Event,
    KeyValue,
    LeaseExists,
    LeaseNotFound,
    Put,
    PutReply,
    Range,
    RangeReply,
    Refused,
    Reply,
    Txn,
    TxnReply,
)
from etcdsem.testing.history import END_OF_KEYS, Revision, WatchableHistory
from etcdsem.testing.txn_rules import check_intervals, check_operations

MAX_TTL = 9_000_000_000

LEASE_TICK = 0.5
"""Seconds between two searches of the leader for expired leases (lessor.go, `runLoop`)."""

LEASE_TOO_LARGE = "etcdserver: too large lease TTL"


class _Record:
    """A stored key."""

    __slots__ = ("kv", "version")

    def __init__(self, kv: KeyValue, version: int) -> None:
        self.kv = kv
        self.version = version


class _Lease:
    """A lease as known to the leader. `pending`: renewals that came too late, unanswered."""

    __slots__ = ("expiry", "id", "keys", "pending", "ttl")

    def __init__(self, lease_id: int, ttl: int, expiry: float) -> None:
        self.id = lease_id
        self.ttl = ttl
        self.expiry = expiry
        self.keys: set[bytes] = set()
        self.pending: list[Callable[[int], None]] = []


class EtcdModel(WatchableHistory):
    """An etcd cluster as seen by its clients, at a time that only `advance` moves."""

    def __init__(self, *, now: float = 0.0, min_ttl: int = 2, election: float = 1.0) -> None:
        super().__init__(now)
        self.min_ttl = min_ttl
        self.election = election
        self.leading = True
        """False while there is no leader; no lease is collected then."""
        self.revokes_per_tick = 500
        """Maximum number of expired leases that are collected at a time (lessor.go)."""
        self.leases: dict[int, _Lease] = {}
        self._records: dict[bytes, _Record] = {}
        self._keys: list[bytes] = []  # sorted
        self._changes: list[Event] = []  # of the transaction in progress
        self._ticks = math.floor(now / LEASE_TICK) + 1  # the next tick of the lease loop

    # -- keys

    def get(self, key: bytes) -> KeyValue | None:
        """One key, read without a transaction."""
        record = self._records.get(key)
        return record.kv if record else None

    def keys(self, key: bytes = b"\0", end: bytes = END_OF_KEYS) -> list[KeyValue]:
        """The keys of a range, read without a transaction."""
        return [self._records[name].kv for name in self._names(key, end)]

    def transact(self, txn: Txn) -> TxnReply:
        """Perform a transaction. Raises Refused or LeaseNotFound if nothing was applied."""
        check_operations(txn)
        check_intervals(txn.success)
        check_intervals(txn.failure)
        path: list[bool] = []
        self._choose(txn, path)
        self._check_leases(txn, iter(path))
        self._changes = []
        reply = self._apply(txn, iter(path))
        self._commit()
        return reply._replace(revision=self.revision)

    def put(self, key: bytes, value: bytes, lease: int = 0) -> None:
        """Write one key."""
        self.transact(Txn((), (Put(key, value, lease),)))

    def delete(self, key: bytes, end: bytes = b"") -> None:
        """Delete one key, or a range."""
        self.transact(Txn((), (Delete(key, end),)))

    def _names(self, key: bytes, end: bytes) -> list[bytes]:
        if not end:
            return [key] if key in self._records else []
        first = bisect_left(self._keys, key)
        last = len(self._keys) if end == END_OF_KEYS else bisect_left(self._keys, end)
        return self._keys[first:last]

    def _choose(self, txn: Txn, path: list[bool]) -> None:
        """Record which branches run, in the order in which `_apply` visits the transactions."""
        holds = all(map(self._holds, txn.compare))
        path.append(holds)
        for operation in txn.success if holds else txn.failure:
            if isinstance(operation, Txn):
                self._choose(operation, path)

    def _holds(self, compare: Compare) -> bool:
        operator = _OPERATORS[compare.op]
        records = [self._records[name] for name in self._names(compare.key, compare.end)]
        if compare.target == "value":
            if not records:
                return False
            return all(operator(record.kv.value, compare.value) for record in records)
        numbers = [_number(record, compare.target) for record in records] or [0]
        return all(operator(number, compare.number) for number in numbers)

    def _check_leases(self, txn: Txn, path: Iterable[bool]) -> None:
        steps = iter(path)

        def check(level: Txn) -> None:
            for operation in level.success if next(steps) else level.failure:
                if isinstance(operation, Txn):
                    check(operation)
                elif (
                    isinstance(operation, Put)
                    and operation.lease
                    and operation.lease not in self.leases
                ):
                    raise LeaseNotFound("etcdserver: requested lease not found")

        check(txn)

    def _apply(self, txn: Txn, path: Iterable[bool]) -> TxnReply:
        steps = iter(path)
        succeeded = next(steps)
        replies: list[Reply] = []
        for operation in txn.success if succeeded else txn.failure:
            if isinstance(operation, Range):
                replies.append(self._range(operation))
            elif isinstance(operation, Put):
                self._put(operation)
                replies.append(PutReply())
            elif isinstance(operation, Delete):
                names = self._names(operation.key, operation.end)
                for name in names:
                    self._delete(name)
                replies.append(DeleteReply(len(names)))
            else:
                replies.append(self._apply(operation, steps))
        return TxnReply(succeeded, 0, tuple(replies))

    def _range(self, asked: Range) -> RangeReply:
        names = self._names(asked.key, asked.end)
        if asked.count_only:
            return RangeReply((), len(names))
        kvs = [self._records[name].kv for name in names]
        if asked.oldest_first:
            kvs.sort(key=_created)
        if asked.limit:
            kvs = kvs[: asked.limit]
        if asked.keys_only:
            kvs = [kv._replace(value=b"") for kv in kvs]
        return RangeReply(tuple(kvs), len(names))

    def _put(self, put: Put) -> None:
        revision = self.revision + 1
        old = self._records.get(put.key)
        if old is None:
            insort(self._keys, put.key)
            record = _Record(KeyValue(put.key, put.value, revision, revision, put.lease), 1)
        else:
            created = old.kv.create_revision
            record = _Record(
                KeyValue(put.key, put.value, created, revision, put.lease), old.version + 1
            )
            if old.kv.lease:
                self.leases[old.kv.lease].keys.discard(put.key)
        if put.lease:
            self.leases[put.lease].keys.add(put.key)
        self._records[put.key] = record
        self._changes.append(Event("put", record.kv))

    def _delete(self, key: bytes) -> None:
        old = self._records.pop(key)
        del self._keys[bisect_left(self._keys, key)]
        if old.kv.lease:
            self.leases[old.kv.lease].keys.discard(key)
        self._changes.append(Event("delete", KeyValue(key, b"", 0, self.revision + 1)))

    def _commit(self) -> None:
        if not self._changes:
            return
        self.revision += 1
        revision = Revision(self.revision, tuple(self._changes))
        self._changes = []
        self._publish(revision)

    # -- leases

    def grant(self, lease_id: int, ttl: int) -> int:
        """Create a lease; returns the TTL in force."""
        if ttl > MAX_TTL:
            raise Refused(LEASE_TOO_LARGE)
        if lease_id in self.leases:
            raise LeaseExists("etcdserver: lease already exists")
        ttl = max(ttl, self.min_ttl)
        self.leases[lease_id] = _Lease(lease_id, ttl, self.now + ttl)
        return ttl

    def revoke(self, lease_id: int) -> None:
        """End a lease, and delete its keys in one revision."""
        lease = self.leases.get(lease_id)
        if lease is None:
            raise LeaseNotFound("etcdserver: requested lease not found")
        self._changes = []
        for key in sorted(lease.keys):
            self._delete(key)
        del self.leases[lease_id]
        self._commit()
        for answer in lease.pending:
            answer(0)

    def keep_alive(self, lease_id: int, answer: Callable[[int], None]) -> None:
        """Renew a lease: `answer` gets its TTL, or 0 if it does not exist.

        For a lease that has expired but is not collected yet, the answer comes when it is.
        """
        lease = self.leases.get(lease_id)
        if lease is None:
            answer(0)
        elif self.now >= lease.expiry or not self.leading:
            lease.pending.append(answer)
        else:
            lease.expiry = self.now + lease.ttl
            answer(lease.ttl)

    def time_to_live(self, lease_id: int) -> int:
        """The whole seconds that a lease has left; -1 if it does not exist."""
        lease = self.leases.get(lease_id)
        return int(lease.expiry - self.now) if lease else -1

    def lose_leader(self) -> None:
        """Lose the leader: no lease ends until `elect`."""
        self.leading = False

    def elect(self) -> None:
        """Elect a leader: every lease gets its whole TTL again, plus an election timeout."""
        self.leading = True
        for lease in list(self.leases.values()):
            lease.expiry = self.now + lease.ttl + self.election
            pending, lease.pending = lease.pending, []
            for answer in pending:
                self.keep_alive(lease.id, answer)

    # -- time

    def next_time(self) -> float:
        """When `advance` may have something to do next, as far as is known now."""
        lease_tick = self._ticks * LEASE_TICK if self.leases else math.inf
        return min(lease_tick, self._catch_up_at)

    def advance(self, now: float) -> None:
        """Let time pass, and do what etcd does by itself in that time."""
        while True:
            tick = self._ticks * LEASE_TICK
            due = min(tick, self._catch_up_at)
            if due > now:
                break
            self.now = due
            if due == self._catch_up_at:
                self._catch_up_at = math.inf
                self._catch_up()
            if due == tick:
                self._ticks += 1
                if self.leading:
                    self._collect()
        self.now = max(self.now, now)

    def _collect(self) -> None:
        expired = [lease for lease in self.leases.values() if lease.expiry <= self.now]
        expired.sort(key=lambda lease: lease.expiry)
        for lease in expired[: self.revokes_per_tick]:
            self.revoke(lease.id)


def _number(record: _Record, target: str) -> int:
    kv = record.kv
    numbers = {"create": kv.create_revision, "mod": kv.mod_revision, "lease": kv.lease}
    return record.version if target == "version" else numbers[target]


_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "=": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    ">": lambda a, b: a > b,
}


def _created(kv: KeyValue) -> int:
    return kv.create_revision
