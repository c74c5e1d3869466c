"""Lets names expire that were registered for good, and deletes what is left of others.

etcd does not record when a name was last used. So a name that nobody uses now gets an etcd lease,
like a name that expires: whoever uses it from now on keeps it.

1. Names that somebody holds or waits for stay as they are, and so do rate limits whose permits
   count, and names whose limits were applied from a file: those are removed by removing them there.
2. Each name is one transaction, which compares that nobody has come since.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from etcdsem.core import transactions
from etcdsem.core.commands import KeyValue, Procedure, Range, Txn
from etcdsem.core.keys import Keys, permit_slot, read_limit, read_permit, write_unchanged
from etcdsem.core.registration import grant, revoke
from etcdsem.core.retry import read
from etcdsem.core.scan import READ_TOGETHER, keys_by_name
from etcdsem.core.session import Session
from etcdsem.model import Pruned


class _Idle(NamedTuple):
    """A name that nobody uses, at a revision: its keys, and the values of some of them."""

    keys: Keys
    limit: KeyValue | None
    records: bool
    revision: int


def prune(
    session: Session, prefix: str, idle: int, matches: Callable[[str], bool], *, dry_run: bool
) -> Procedure[Pruned]:
    """Let names expire after `idle` seconds, those that `matches` accepts."""
    expiring: list[str] = []
    removed: list[str] = []
    names = yield from _unused(session, prefix)
    some = sorted(name for name in names if matches(name))
    for first in range(0, len(some), READ_TOGETHER):
        together = [Keys(prefix, name, session.client) for name in some[first:][:READ_TOGETHER]]
        for one in (yield from _read(session, together)):
            done = dry_run or (yield from _expire(session, prefix, one, idle))
            if done:
                (removed if one.limit is None else expiring).append(one.keys.name)
    return Pruned(tuple(expiring), tuple(removed))


def _unused(session: Session, prefix: str) -> Procedure[set[str]]:
    """The names that nobody holds or waits for, and that no file has."""
    found = yield from keys_by_name(session, prefix)
    unused: set[str] = set()
    for name, kvs in found.items():
        base = Keys(prefix, name, session.client).base
        if all(_may_be_left(kv.key[len(base) :]) for kv in kvs):
            unused.add(name)
    return unused


def _may_be_left(key: bytes) -> bool:
    """Can a name that nobody uses have this key?"""
    return key in (b"max_leases", b"contended", b"priorities") or key.startswith(b"permits/")


def _read(session: Session, together: Sequence[Keys]) -> Procedure[list[_Idle]]:
    """Those that can expire."""
    asked: list[Range] = []
    for keys in together:
        asked += (Range(keys.max_leases), Range(keys.permits, keys.permits_end))
    reply = yield from read(session, Txn((), tuple(asked)))
    answers = [transactions.as_range(answer).kvs for answer in reply.replies]
    wall, found = session.env.wall(), list[_Idle]()
    for keys, limits, records in zip(together, answers[::2], answers[1::2], strict=True):
        limit = limits[0] if limits else None
        counts = any(not _is_over(keys, kv, wall) for kv in records)
        if not counts and (limit is None or not limit.lease):
            found.append(_Idle(keys, limit, bool(records), reply.revision))
    return found


def _is_over(keys: Keys, kv: KeyValue, wall: float) -> bool:
    permit = read_permit(kv)
    return permit_slot(keys, kv.key) is not None and (permit is None or permit.left(wall) <= 0)


def _expire(session: Session, prefix: str, one: _Idle, idle: int) -> Procedure[bool]:
    """EXPIRE, or SWEEP. False if somebody has come since."""
    keys, limit = one.keys, one.limit
    if limit is None:
        return (yield from read(session, transactions.sweep(keys, one.revision))).succeeded
    state = session.semaphore(prefix, keys.name)
    lease = yield from grant(state, idle)
    done = False
    try:
        txn = transactions.expire(
            keys,
            limit,
            write_unchanged(limit),
            lease.id,
            records=one.records,
            seen=one.revision,
        )
        reply = yield from read(session, txn)
        done = reply.succeeded or (yield from _has(session, keys, lease.id))
    finally:
        if not done:
            revoke(session, lease)
    return done


def _has(session: Session, keys: Keys, lease: int) -> Procedure[bool]:
    """Has the name this lease? Then the first answer was lost."""
    reply = yield from read(session, Txn((), (Range(keys.max_leases),)))
    return any(read_limit(kv).lease == lease for kv in transactions.as_range(reply.replies[0]).kvs)
