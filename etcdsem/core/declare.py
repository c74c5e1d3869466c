"""Limits as code: the limits that should be in etcd, compared with those that are, and set.

1. A plan is read, shown, and then carried out name by name. Each name is one transaction, which
   compares the revisions that the plan saw: what has changed since is left alone, and reported.
2. The key ``applied`` has what was last applied, so that a change by hand stays visible, and names
   that were removed from the file differ from those that were never in it.
3. A name in the file stays: if it had an etcd lease, with which it would expire, it loses it.
4. Only names with that key are removed, and only while nobody holds or waits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from etcdsem.core import lifecycle, transactions
from etcdsem.core.commands import Compare, KeyValue, Procedure, Txn
from etcdsem.core.keys import Keys, Limit, read_limit, write_resized, write_unchanged
from etcdsem.core.limits import wrong_kind
from etcdsem.core.retry import read
from etcdsem.core.scan import READ_TOGETHER, keys_by_name
from etcdsem.core.session import Session
from etcdsem.model import LimitChange, LimitRefusal, Rate

Found: TypeAlias = tuple[tuple[KeyValue, ...], tuple[KeyValue, ...]]
"""The limit and what was last applied, each none or one key."""


def plan(
    session: Session, prefix: str, wanted: Mapping[str, int | Rate], *, prune: bool
) -> Procedure[list[LimitChange]]:
    """What must change, by name. Raises WrongKind if a name is of the other kind."""
    unwanted = (yield from _applied_names(session, prefix)) - wanted.keys() if prune else set()
    names = sorted((*wanted, *unwanted))
    changes: list[LimitChange] = []
    for first in range(0, len(names), READ_TOGETHER):
        some = [Keys(prefix, name, session.client) for name in names[first:][:READ_TOGETHER]]
        asked = [one for keys in some for one in transactions.limits_as_set(keys)]
        reply = yield from read(session, Txn((), tuple(asked)))
        kvs = [transactions.as_range(answer).kvs for answer in reply.replies]
        for keys, found in zip(some, zip(kvs[::2], kvs[1::2], strict=True), strict=True):
            change = _compare(session, prefix, keys, wanted.get(keys.name), found)
            changes += [] if change is None else [change]
    return changes


def _applied_names(session: Session, prefix: str) -> Procedure[set[str]]:
    found = yield from keys_by_name(session, prefix)
    return {
        name
        for name, kvs in found.items()
        if any(kv.key == Keys(prefix, name, session.client).applied for kv in kvs)
    }


def _compare(
    session: Session, prefix: str, keys: Keys, wanted: int | Rate | None, found: Found
) -> LimitChange | None:
    limits, applied = found
    live = read_limit(limits[0]) if limits else None
    if live is not None and wanted is not None:
        _refuse_other_kind(session, prefix, keys.name, live, wanted)
    change = LimitChange(
        name=keys.name,
        live=None if live is None else live.plain,
        applied=read_limit(applied[0]).plain if applied else None,
        wanted=None if wanted is None else str(wanted),
        raw=limits[0].value if limits else b"",
        revision=limits[0].mod_revision if limits else 0,
        created=limits[0].create_revision if limits else 0,
        applied_revision=applied[0].mod_revision if applied else 0,
        expires=live is not None and live.lease != 0,
    )
    agrees = change.live == change.applied == change.wanted
    return None if agrees and not change.expires else change


def _refuse_other_kind(
    session: Session, prefix: str, name: str, live: Limit, wanted: int | Rate
) -> None:
    state = session.semaphore(prefix, name)
    wrong = wrong_kind(state, live, rate=isinstance(wanted, Rate))
    if wrong is not None:
        raise wrong


def carry_out(
    session: Session, prefix: str, changes: Sequence[LimitChange]
) -> Procedure[list[LimitRefusal]]:
    """Make the changes of a plan; returns those that were not made."""
    refused: list[LimitRefusal] = []
    for change in changes:
        make = _remove if change.wanted is None else _set
        reason = yield from make(session, prefix, change)
        refused += [LimitRefusal(change, reason)] if reason else []
    return refused


_CHANGED = "it has changed since it was compared with etcd: apply again"


def _seen(keys: Keys, change: LimitChange) -> tuple[Compare, Compare]:
    return transactions.unchanged_since(keys, change.revision, change.applied_revision)


def _set(session: Session, prefix: str, change: LimitChange) -> Procedure[str]:
    """APPLY. Returns why it was not done; empty if it was."""
    keys, text = Keys(prefix, change.name, session.client), (change.wanted or "").encode()
    value: bytes | None = text
    if change.revision:
        stored = KeyValue(keys.max_leases, change.raw, change.created, change.revision)
        value = write_resized(stored, text.decode())
        if change.live == change.wanted:
            value = write_unchanged(stored) if change.expires else None
    reply = yield from read(
        session, transactions.apply_limit(keys, _seen(keys, change), value, text)
    )
    if reply.succeeded:
        return ""
    limits, applied = (transactions.as_range(answer).kvs for answer in reply.replies)
    stays = change.raw if value is None else value
    ours = [kv.value for kv in (*limits, *applied)] == [stays, text]  # its answer was lost
    return "" if ours else _CHANGED


def _remove(session: Session, prefix: str, change: LimitChange) -> Procedure[str]:
    """CLOSE, if nobody uses it. Returns why it was not done; empty if it was."""
    state = session.semaphore(prefix, change.name)
    closing = yield from lifecycle.close(state, force=False, seen=_seen(state.keys, change))
    if closing.done or not closing.known:
        return ""
    if closing.holders or closing.waiters:
        return f"it is in use ({len(closing.holders)} held, {len(closing.waiters)} waiting)"
    return _CHANGED
