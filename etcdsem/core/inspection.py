"""What people ask: who holds, who waits, which semaphores there are; and eviction by hand."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from etcdsem.core import transactions
from etcdsem.core.commands import (
    AccessDenied,
    Failure,
    KeyValue,
    LeaseTimeToLive,
    Procedure,
    Range,
    Txn,
    perform,
)
from etcdsem.core.keys import (
    Keys,
    lease_hex,
    read_holders,
    read_limit,
    read_waiters,
    slot_number,
)
from etcdsem.core.leases import RPC_TIMEOUT
from etcdsem.core.procedures import read
from etcdsem.core.station import Session, Station
from etcdsem.errors import EtcdSemError, InvalidSetting, SemaphoreClosed
from etcdsem.model import Holder, Junk, Overview, Status, Waiter, check_name


class _Kvs(tuple[tuple[KeyValue, ...], tuple[KeyValue, ...]]):
    """The keys of the slots and of the waiters."""

    __slots__ = ()


def _snapshot(station: Station) -> Procedure[tuple[Status, _Kvs]]:
    keys = station.keys
    reply = yield from read(station.session, transactions.snapshot(keys))
    limits, slots, waiting = map(transactions.as_range, reply.replies)
    if not limits.kvs:
        station.learn(None, reply.revision)
        raise SemaphoreClosed(
            f"semaphore {station.name!r} is not known: there is no key {keys.max_leases.decode()}"
        )
    limit = read_limit(limits.kvs[0])
    station.learn(limit, reply.revision)
    holders, strange = read_holders(keys, slots.kvs, limit)
    waiters, stranger = read_waiters(keys, waiting.kvs)
    junk = strange + stranger
    if limit.number is None:
        reason = f"reads {limit.text!r}, which is no number from 0 to 99999; nothing is granted"
        junk.insert(0, Junk(keys.max_leases.decode(), reason))
    status = Status(
        name=station.name,
        max_leases=limit.number,
        holders=tuple(holders),
        waiters=tuple(waiters),
        junk=tuple(junk),
        revision=reply.revision,
    )
    return status, _Kvs((slots.kvs, waiting.kvs))


def status(station: Station, *, ttl: bool) -> Procedure[Status]:
    """One semaphore at one revision. `ttl`: also ask how long each lease has left."""
    seen, _ = yield from _snapshot(station)
    if not ttl:
        return seen
    holders = []
    for holder in seen.holders:
        left = yield from _time_left(holder.lease_id)
        holders.append(replace(holder, ttl=left))
    waiters = []
    for waiter in seen.waiters:
        left = yield from _time_left(waiter.lease_id)
        waiters.append(replace(waiter, ttl=left))
    return replace(seen, holders=tuple(holders), waiters=tuple(waiters))


def held(station: Station) -> Procedure[int]:
    """How many leases are held now, by anyone."""
    keys = station.keys
    scan = (Range(keys.leases, keys.leases_end, keys_only=True), Range(keys.max_leases))
    reply = yield from read(station.session, Txn((), scan))
    slots, limits = map(transactions.as_range, reply.replies)
    if not limits.kvs:
        station.learn(None, reply.revision)
        raise SemaphoreClosed(f"semaphore {station.name!r} is not known to etcd")
    return len(read_holders(keys, slots.kvs, None)[0])


def _time_left(lease: str) -> Procedure[float | None]:
    try:
        left = yield from perform(LeaseTimeToLive(int(lease, 16), RPC_TIMEOUT))
    except AccessDenied:
        return None  # a role that may only read the keys
    except Failure:
        return None
    return max(0.0, left)


def evict(
    station: Station, *, slot: int | None = None, lease: str | None = None
) -> Procedure[Holder | Waiter | Junk]:
    """End exactly one holder's or waiter's lease, by slot or by lease id (hex)."""
    seen, (slots, waiting) = yield from _snapshot(station)
    keys = station.keys
    wanted = _lease_number(lease) if lease is not None else None
    for kv in slots:
        number = slot_number(keys, kv.key)
        if number is None or (number != slot if slot is not None else kv.lease != wanted):
            continue
        who = _letter_of(seen.holders, number)
        txn = transactions.evict_slot(keys, number, kv.mod_revision, who)
        if (yield from read(station.session, txn)).succeeded:
            return next(
                (h for h in seen.holders if h.slot == number),
                Junk(kv.key.decode(), "had no etcd lease"),
            )
        raise EtcdSemError(
            f"semaphore {station.name!r}: slot {number} changed hands just now; nobody was evicted"
        )
    for kv in waiting if slot is None else ():
        if kv.lease != wanted:
            continue
        path = kv.key[len(keys.waiters) :]
        txn = transactions.evict_waiter(keys, path, kv.create_revision)
        if (yield from read(station.session, txn)).succeeded:
            return next(w for w in seen.waiters if w.lease_id == lease_hex(kv.lease))
        raise EtcdSemError(
            f"semaphore {station.name!r}: that waiter has left or was granted just now; "
            "nobody was evicted"
        )
    what = f"slot {slot}" if slot is not None else f"lease {lease}"
    raise InvalidSetting(f"semaphore {station.name!r}: nobody holds {what}; see etcdsem status")


def _letter_of(holders: Iterable[Holder], slot: int) -> bytes | None:
    for holder in holders:
        if holder.slot == slot and holder.client:
            return f"{holder.client}/{holder.lease_id}".encode()
    return None


def _lease_number(lease: str) -> int:
    try:
        return int(lease, 16)
    except ValueError:
        raise InvalidSetting(
            f"{lease!r} is no lease: give it in hex, as etcdsem status and etcdctl lease list do"
        ) from None


def overview(session: Session, prefix: str) -> Procedure[list[Overview]]:
    """All semaphores below a prefix, in the order of their names."""
    start = f"{prefix}/".encode()
    scan = Range(start, start[:-1] + b"0", keys_only=True)
    reply = yield from read(session, Txn((), (scan,)))
    found: dict[str, list[KeyValue]] = {}
    for kv in transactions.as_range(reply.replies[0]).kvs:
        name = kv.key[len(start) :].split(b"/")[0].decode("utf-8", "replace")
        found.setdefault(name, []).append(kv)
    lines = []
    for name, kvs in found.items():
        line = yield from _line(session, prefix, name, kvs)
        if line is not None:
            lines.append(line)
    return lines


def _line(
    session: Session, prefix: str, name: str, kvs: list[KeyValue]
) -> Procedure[Overview | None]:
    try:
        keys = Keys(prefix, check_name(name), session.client)
    except ValueError:
        return None  # no semaphore could have that name
    holders, bad = read_holders(keys, (kv for kv in kvs if kv.key.startswith(keys.leases)), None)
    waiters, worse = read_waiters(keys, (kv for kv in kvs if kv.key.startswith(keys.waiters)))
    if not any(kv.key == keys.max_leases for kv in kvs):
        if not (holders or waiters):
            return None
        limit = None
    else:
        reply = yield from read(session, Txn((), (Range(keys.max_leases),)))
        stored = transactions.as_range(reply.replies[0]).kvs
        limit = read_limit(stored[0]).number if stored else None
    return Overview(name, limit, len(holders), len(waiters), len(bad) + len(worse))
