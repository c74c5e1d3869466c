"""Queries (holders, waiters, the list of semaphores), and eviction by an operator."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain, repeat
from typing import NamedTuple

from etcdsem.core import transactions
from etcdsem.core.commands import (
    AccessDenied,
    Failure,
    KeyValue,
    LeasesTimeToLive,
    Procedure,
    Range,
    Txn,
    perform,
)
from etcdsem.core.keys import (
    Keys,
    lease_hex,
    permit_slot,
    read_holders,
    read_limit,
    read_permits,
    read_queue,
    read_waiters,
    slot_number,
    waits,
    write_eviction,
)
from etcdsem.core.lease_manager import take_lease
from etcdsem.core.leases import RPC_TIMEOUT
from etcdsem.core.limits import is_rate
from etcdsem.core.retry import read
from etcdsem.core.scan import READ_TOGETHER, keys_by_name
from etcdsem.core.semaphore import SemaphoreState
from etcdsem.core.session import Session
from etcdsem.errors import EtcdSemError, InvalidSetting, NobodyThere, SemaphoreClosed
from etcdsem.model import Holder, Junk, Overview, Status, Waiter

WAITERS_ASKED = 256
"""For how many waiters etcd is asked how long their lease has left. etcd answers for one lease per
request, and 5,000 of them take 2 s even with many in progress at once; nobody reads so many."""

EVICTION_TTL = 60
"""Seconds for which a waiter can read that it was evicted: several times as long as a watch may be
silent before it rereads."""


class _Kvs(NamedTuple):
    """The keys of the slots, and those of the waiters."""

    slots: tuple[KeyValue, ...]
    waiters: tuple[KeyValue, ...]


def _snapshot(semaphore: SemaphoreState) -> Procedure[tuple[Status, _Kvs]]:
    keys = semaphore.keys
    records = is_rate(semaphore.limit)
    reply = yield from read(semaphore.session, transactions.snapshot(keys, records=records))
    limits, slots, waiting, *permits = map(transactions.as_range, reply.replies)
    if not limits.kvs:
        semaphore.learn(None, reply.revision)
        raise SemaphoreClosed(
            f"semaphore {semaphore.name!r} is not known: there is no key {keys.max_leases.decode()}"
        )
    limit = read_limit(limits.kvs[0])
    semaphore.learn(limit, reply.revision)
    if is_rate(limit) and not records and is_rate(semaphore.limit):
        return (yield from _snapshot(semaphore))
    holders, strange = read_holders(keys, slots.kvs, limit)
    waiters, stranger = read_waiters(keys, waiting.kvs)
    if is_rate(limit) and permits:
        holders += _without_lease(semaphore, slots.kvs, permits[0].kvs)
        holders.sort(key=lambda one: one.slot)
    junk = strange + stranger
    if limit.number is None:
        reason = f"reads {limit.text!r}, which is not a number from 0 to 99999; nothing is granted"
        junk.insert(0, Junk(keys.max_leases.decode(), reason, keys.max_leases))
    status = Status(
        name=semaphore.name,
        max_leases=limit.number,
        holders=tuple(holders),
        waiters=tuple(waiters),
        junk=tuple(junk),
        revision=reply.revision,
        pause=limit.pause,
        rate=limit.rate,
    )
    return status, _Kvs(slots.kvs, waiting.kvs)


def _without_lease(
    semaphore: SemaphoreState, slots: Iterable[KeyValue], permits: Iterable[KeyValue]
) -> list[Holder]:
    """The owners of permits whose lease has ended early."""
    held = {slot_number(semaphore.keys, kv.key) for kv in slots}
    found = read_permits(semaphore.keys, permits, semaphore.session.env.wall())
    return [holder for slot, holder in found.items() if slot not in held]


def status(semaphore: SemaphoreState, *, ttl: bool) -> Procedure[Status]:
    """One semaphore at one revision. `ttl`: also query the remaining time of all holders' leases
    and of the first `WAITERS_ASKED` waiters'.
    """
    seen, _ = yield from _snapshot(semaphore)
    seen = replace(seen, applied=(yield from _applied(semaphore)))
    if not ttl:
        return seen
    name_lease = semaphore.limit.lease if semaphore.limit is not None else 0
    ids = [lease_hex(name_lease)] if name_lease else []
    ids += [holder.lease_id for holder in seen.holders if holder.lease_id]
    ids += [waiter.lease_id for waiter in seen.waiters[:WAITERS_ASKED]]
    left = chain((yield from _time_left(ids)), repeat(None))
    return replace(
        seen,
        expires_in=next(left) if name_lease else None,
        holders=tuple(
            replace(holder, ttl=next(left)) if holder.lease_id else holder
            for holder in seen.holders
        ),
        waiters=tuple(replace(waiter, ttl=next(left)) for waiter in seen.waiters),
    )


def _applied(semaphore: SemaphoreState) -> Procedure[str | None]:
    """What `etcdsem apply` set last; None also for a role that may not read it."""
    asked = Txn((), (Range(semaphore.keys.applied),))
    try:
        reply = yield from read(semaphore.session, asked)
    except AccessDenied:
        return None
    kvs = transactions.as_range(reply.replies[0]).kvs
    return read_limit(kvs[0]).plain if kvs else None


def held(semaphore: SemaphoreState) -> Procedure[int]:
    """Number of slots that are currently held, by anyone."""
    keys = semaphore.keys
    scan = (Range(keys.leases, keys.leases_end, keys_only=True), Range(keys.max_leases))
    reply = yield from read(semaphore.session, Txn((), scan))
    slots, limits = map(transactions.as_range, reply.replies)
    if not limits.kvs:
        semaphore.learn(None, reply.revision)
        raise SemaphoreClosed(f"semaphore {semaphore.name!r} is not known to etcd")
    semaphore.learn(read_limit(limits.kvs[0]), reply.revision)
    return len(read_holders(keys, slots.kvs, None)[0])


def _time_left(ids: Sequence[str]) -> Procedure[list[float | None]]:
    """The seconds left, as answered within RPC_TIMEOUT for all together; None if unknown."""
    if not ids:
        return []
    try:
        left = yield from perform(LeasesTimeToLive(tuple(int(one, 16) for one in ids), RPC_TIMEOUT))
    except Failure:
        return [None] * len(ids)  # for example a role that may only read the keys
    return [None if one is None else max(0.0, one) for one in left]


def evict(
    semaphore: SemaphoreState, by: str, *, slot: int | None = None, lease: str | None = None
) -> Procedure[Holder | Waiter | Junk]:
    """Evict exactly one holder or waiter, by slot or by lease ID (hex). A waiter learns `by` whom.
    Raises NobodyThere if nobody has it, EtcdSemError if it changed hands in the meantime.
    """
    seen, (slots, waiting) = yield from _snapshot(semaphore)
    keys = semaphore.keys
    wanted = _lease_number(lease) if lease is not None else None
    for kv in slots:
        number = slot_number(keys, kv.key)
        if number is None or (number != slot if slot is not None else kv.lease != wanted):
            continue
        return (yield from _evict_holder(semaphore, seen, slots, kv, number))
    for holder in seen.holders:
        if holder.slot == slot and not holder.lease_id:
            return (yield from _evict_permit(semaphore, holder))
    for kv in waiting if slot is None else ():
        if kv.lease == wanted and waits(keys, kv):
            yield from _evict_waiter(semaphore, kv, by)
            return next(w for w in seen.waiters if w.lease_id == lease_hex(kv.lease))
    what = f"slot {slot}" if slot is not None else f"lease {lease}"
    raise NobodyThere(f"semaphore {semaphore.name!r}: {what} is not in use; see etcdsem status")


def _evict_holder(
    semaphore: SemaphoreState, seen: Status, slots: Sequence[KeyValue], kv: KeyValue, number: int
) -> Procedure[Holder | Junk]:
    """Delete all slots of the lease that holds slot `number` with this key."""
    keys = semaphore.keys
    mine = [number]
    if kv.lease:  # all slots of one lease end together
        together = (one for one in slots if one.lease == kv.lease)
        mine = [
            slot
            for one in together
            if one.mod_revision == kv.mod_revision
            and (slot := slot_number(keys, one.key)) is not None
        ]
    who = _message_owner(seen.holders, number)
    permit = seen.rate is not None
    txn = transactions.evict_slot(keys, mine, kv.mod_revision, who, permit=permit)
    if not (yield from read(semaphore.session, txn)).succeeded:
        raise _just_changed(semaphore, number)
    return next(
        (h for h in seen.holders if h.slot == number),
        Junk(kv.key.decode(), "had no etcd lease", kv.key),
    )


def _just_changed(semaphore: SemaphoreState, slot: int) -> EtcdSemError:
    return EtcdSemError(
        f"semaphore {semaphore.name!r}: slot {slot} has just changed hands; nobody was evicted"
    )


def _evict_permit(semaphore: SemaphoreState, holder: Holder) -> Procedure[Holder]:
    """Delete the record of a permit whose lease has ended early."""
    txn = transactions.evict_permit(semaphore.keys, holder.slot, holder.fencing_token)
    if (yield from read(semaphore.session, txn)).succeeded:
        return holder
    raise _just_changed(semaphore, holder.slot)


def _evict_waiter(semaphore: SemaphoreState, kv: KeyValue, by: str) -> Procedure[None]:
    session, keys = semaphore.session, semaphore.keys
    lease = yield from take_lease(session.leases, EVICTION_TTL)
    session.leases.leave(lease)  # the message disappears with it
    message = write_eviction(by, session.env.wall())
    path = kv.key[len(keys.waiters) :]
    txn = transactions.evict_waiter(keys, path, kv.create_revision, message, lease.id)
    if not transactions.evicted((yield from read(session, txn)), lease.id):
        raise EtcdSemError(
            f"semaphore {semaphore.name!r}: the waiter has just left or been granted; "
            "nobody was evicted"
        )


def _message_owner(holders: Iterable[Holder], slot: int) -> bytes | None:
    for holder in holders:
        if holder.slot == slot and holder.client:
            return f"{holder.client}/{holder.lease_id}".encode()
    return None


def _lease_number(lease: str) -> int:
    try:
        return int(lease, 16)
    except ValueError:
        raise InvalidSetting(
            f"invalid lease ID {lease!r}: expected hex, as printed by `etcdsem status`"
        ) from None


def overview(session: Session, prefix: str) -> Procedure[list[Overview]]:
    """All semaphores under a prefix, sorted by name.

    It scans the keys alone, and then reads, for many semaphores at a time, the limits and the
    records of the first waiters.
    """
    found = yield from keys_by_name(session, prefix)
    sketches = [_sketch(prefix, name, session.client, kvs) for name, kvs in found.items()]
    known = [sketch for sketch in sketches if sketch is not None]
    lines: list[Overview] = []
    for first in range(0, len(known), READ_TOGETHER):
        some = known[first : first + READ_TOGETHER]
        asked = [Range(key) for sketch in some for key in (sketch.keys.max_leases, sketch.first)]
        reply = yield from read(session, Txn((), tuple(asked)))
        answers = [transactions.as_range(answer).kvs for answer in reply.replies]
        lines += map(_line, some, answers[::2], answers[1::2])
    for place, sketch in enumerate(known):
        if sketch.orphans and lines[place].rate is not None:
            blocked = yield from _blocked(session, sketch)
            lines[place] = replace(lines[place], held=sketch.held + blocked)
    yield from _add_applied(session, known, lines)
    return lines


def _add_applied(
    session: Session, known: Sequence[_Sketch], lines: list[Overview]
) -> Procedure[None]:
    """Add what `etcdsem apply` set last, where it did."""
    places = [place for place, sketch in enumerate(known) if sketch.applied]
    for first in range(0, len(places), 2 * READ_TOGETHER):
        some = places[first : first + 2 * READ_TOGETHER]
        asked = tuple(Range(known[place].keys.applied) for place in some)
        reply = yield from read(session, Txn((), asked))
        for place, answer in zip(some, reply.replies, strict=True):
            for kv in transactions.as_range(answer).kvs:
                lines[place] = replace(lines[place], applied=read_limit(kv).plain)


def _blocked(session: Session, sketch: _Sketch) -> Procedure[int]:
    """How many slots only the records of permits keep taken."""
    permits = Range(sketch.keys.permits, sketch.keys.permits_end)
    reply = yield from read(session, Txn((), (permits,)))
    kvs = transactions.as_range(reply.replies[0]).kvs
    return len(read_permits(sketch.keys, kvs, session.env.wall()).keys() & sketch.orphans)


class _Sketch(NamedTuple):
    """What the keys alone show of a semaphore."""

    keys: Keys
    held: int
    waiting: int
    first: bytes
    """The key of the first waiter, or the limit's key if nobody waits."""
    junk: int
    orphans: frozenset[int]
    """Slots that have the record of a permit and no holder: a lease has ended before its owner."""
    applied: bool
    """Has `etcdsem apply` set its limit?"""


def _sketch(prefix: str, name: str, client: str, kvs: list[KeyValue]) -> _Sketch | None:
    keys = Keys(prefix, name, client)
    holders, bad = read_holders(keys, (kv for kv in kvs if kv.key.startswith(keys.leases)), None)
    line = [kv for kv in kvs if kv.key.startswith(keys.waiters)]
    line.sort(key=lambda kv: kv.create_revision)
    waiters, worse = read_waiters(keys, line)
    if not (holders or waiters or any(kv.key == keys.max_leases for kv in kvs)):
        return None
    first = read_queue(keys, line)[:1]
    key = keys.waiters + first[0].who if first else keys.max_leases
    records = (permit_slot(keys, kv.key) for kv in kvs if kv.key.startswith(keys.permits))
    held = {holder.slot for holder in holders}
    orphans = frozenset(slot for slot in records if slot is not None and slot not in held)
    applied = any(kv.key == keys.applied for kv in kvs)
    return _Sketch(keys, len(holders), len(waiters), key, len(bad) + len(worse), orphans, applied)


def _line(sketch: _Sketch, limits: tuple[KeyValue, ...], first: tuple[KeyValue, ...]) -> Overview:
    waiters = read_waiters(sketch.keys, first)[0] if sketch.waiting else []
    limit = read_limit(limits[0]) if limits else None
    return Overview(
        name=sketch.keys.name,
        max_leases=limit.number if limit else None,
        held=sketch.held,
        waiting=sketch.waiting,
        junk=sketch.junk,
        waiting_since=waiters[0].since if waiters else None,
        pause=limit.pause if limit else None,
        rate=limit.rate if limit else None,
        expires=bool(limit and limit.lease),
    )
