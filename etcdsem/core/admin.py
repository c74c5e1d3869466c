"""What is changed in a semaphore that is in use: its limit, and whether it grants leases.

1. Both are stored in one key, ``max_leases``, and every grant compares its mod revision. So a pause
   also stops grants that are in progress, and needs no other guard.
2. The key is written only if it is unchanged since it was read: a resize keeps a pause, and a
   resume keeps a resize.
3. If a write was applied but its answer was lost, it is recognized by its text when it is reread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from etcdsem.core import transactions
from etcdsem.core.backoff import Backoff
from etcdsem.core.commands import (
    Event,
    Failure,
    KeyValue,
    LeaseNotFound,
    LeasesTimeToLive,
    Mailbox,
    NotApplied,
    OutcomeUnknown,
    Procedure,
    Range,
    Txn,
    TxnReply,
    Wait,
    Watch,
    perform,
)
from etcdsem.core.keys import (
    Limit,
    read_limit,
    slot_number,
    write_paused,
    write_resized,
    write_resumed,
)
from etcdsem.core.lease_manager import grant_lease
from etcdsem.core.leases import RPC_TIMEOUT, TtlLease
from etcdsem.core.limits import learn_known, semaphore_closed, wrong_kind
from etcdsem.core.listeners import CallbackListener
from etcdsem.core.retry import out_of_patience, patiently, read, sleep, transact
from etcdsem.core.semaphore import SemaphoreState
from etcdsem.core.session import Session
from etcdsem.errors import EtcdSemError, EtcdUnavailable, InvalidSetting
from etcdsem.model import Rate
from etcdsem.validation import MAX_LIMIT


class Change(NamedTuple):
    """The limit before and after. `changed` False means that nothing was written."""

    before: Limit
    after: Limit
    changed: bool


def resize(semaphore: SemaphoreState, wanted: int | Rate) -> Procedure[Change]:
    """RESIZE: set another number or rate; a pause stays. A semaphore cannot become a rate limit, or
    the other way round.
    """

    def resized(kv: KeyValue) -> bytes:
        _of_kind(semaphore, kv, isinstance(wanted, Rate))
        return write_resized(kv, wanted)

    return (yield from _rewrite(semaphore, resized))


def change_by(semaphore: SemaphoreState, difference: int) -> Procedure[Change]:
    """RESIZE by a difference from the number that is stored when it is written. A pause stays.

    Raises:
        InvalidSetting: the sum is not a valid limit; nothing was changed.
        EtcdUnavailable: etcd's answer was lost and the limit has changed; it is unknown whether
            this call changed it or somebody else did.
    """

    def changed(kv: KeyValue) -> bytes:
        number = _of_kind(semaphore, kv, rate=False).number
        if number is None:
            raise _unreadable(semaphore, kv, "so it cannot be changed by a difference")
        if not 0 <= number + difference <= MAX_LIMIT:
            raise InvalidSetting(
                f"semaphore {semaphore.name!r}: the limit is {number}; {difference:+} would make "
                f"it {number + difference}, but it must be from 0 to {MAX_LIMIT}. Nothing was "
                "changed"
            )
        return write_resized(kv, number + difference)

    return (yield from _rewrite(semaphore, changed, once=True))


def _unreadable(semaphore: SemaphoreState, kv: KeyValue, so: str) -> EtcdSemError:
    return EtcdSemError(
        f"semaphore {semaphore.name!r}: its limit reads {read_limit(kv).text!r}, {so}; set one "
        f"first: etcdsem limit {semaphore.name} N"
    )


def pause(
    semaphore: SemaphoreState, by: str, reason: str | None, *, rate: bool | None = None
) -> Procedure[Change]:
    """PAUSE: grant no lease until the semaphore is resumed. A paused one is left unchanged, unless
    its pause ends by itself.

    `rate`: whether it must be a rate limit, else WrongKind is raised; None accepts both kinds.
    """
    since = semaphore.session.env.wall()

    def paused(kv: KeyValue) -> bytes | None:
        limit = _pausable(semaphore, kv, rate)
        endless = limit.paused and not limit.after_pause
        return None if endless else write_paused(kv, by, since, reason)

    return (yield from _rewrite(semaphore, paused))


def _pausable(semaphore: SemaphoreState, kv: KeyValue, rate: bool | None) -> Limit:
    limit = _of_kind(semaphore, kv, rate)
    if limit.number is None:
        raise _unreadable(semaphore, kv, "so nothing is granted, and there is nothing to pause")
    return limit


def resume(semaphore: SemaphoreState, *, rate: bool | None = None) -> Procedure[Change]:
    """RESUME: serve waiters again as far as there is room. `rate` as for `pause`."""

    def resumed(kv: KeyValue) -> bytes | None:
        return write_resumed(kv) if _of_kind(semaphore, kv, rate).paused else None

    return (yield from _rewrite(semaphore, resumed))


def _of_kind(semaphore: SemaphoreState, kv: KeyValue, rate: bool | None) -> Limit:
    limit = read_limit(kv)
    wrong = None if rate is None else wrong_kind(semaphore, limit, rate=rate)
    if wrong is not None:
        raise wrong
    return limit


def _rewrite(
    semaphore: SemaphoreState, text: Callable[[KeyValue], bytes | None], *, once: bool = False
) -> Procedure[Change]:
    """Replace the limit with what `text` returns for the stored key (None: leave it unchanged).
    `once`: applying the write twice would be wrong.
    """
    keys, session = semaphore.keys, semaphore.session
    reply = yield from read(session, Txn((), (Range(keys.max_leases),)))
    before: KeyValue | None = None
    written: bytes | None = None
    while True:
        found = transactions.as_range(reply.replies[0]).kvs
        learn_known(semaphore, read_limit(found[0]) if found else None, reply.revision)
        kv = found[0]
        if before is not None and kv.value == written and not once:
            return Change(read_limit(before), read_limit(kv), changed=True)
        before, written = kv, text(kv)
        if written is None:
            return Change(read_limit(kv), read_limit(kv), changed=False)
        stays = read_limit(kv._replace(value=written)).after_pause
        timed = bool(read_limit(kv).after_pause and not stays)
        txn = transactions.change_limit(keys, kv.mod_revision, written, kv.lease, timed=timed)
        try:
            reply = yield from read(session, txn, once=once)
        except OutcomeUnknown as unknown:
            if not once:
                raise
            reply = yield from read(session, txn)  # at most one of the two writes is applied
            if not reply.succeeded:
                raise _untold(semaphore, kv, reply) from unknown
        if reply.succeeded:
            after = read_limit(kv._replace(value=written, mod_revision=reply.revision))
            semaphore.learn(after, reply.revision)
            return Change(read_limit(before), after, changed=True)


def _untold(semaphore: SemaphoreState, before: KeyValue, reply: TxnReply) -> EtcdSemError:
    """The error for a write whose answer was lost, after which the limit had changed."""
    found = transactions.as_range(reply.replies[0]).kvs
    semaphore.learn(read_limit(found[0]) if found else None, reply.revision)
    if not found:
        return semaphore_closed(semaphore)
    return EtcdUnavailable(
        f"semaphore {semaphore.name!r}: etcd's answer was lost. The limit was "
        f"{read_limit(before).number} and is now {read_limit(found[0]).number}; it is not known "
        "whether this change is part of that. Check the limit before you try again"
    )


# ---------------------------------------------------------------- a pause that ends by itself


def penalize(
    semaphore: SemaphoreState,
    by: str,
    wanted: float,
    reason: str | None,
    *,
    rate: bool | None = None,
) -> Procedure[Change]:
    """PENALIZE: grant no lease for `wanted` seconds from now. etcd ends this, when the lease of the
    key `max_leases_paused` does. A pause that lasts at least as long is left unchanged. `rate` as
    for `pause`.
    """
    keys, session, env = semaphore.keys, semaphore.session, semaphore.session.env
    ends = env.now() + wanted
    lease: TtlLease | None = None
    reply = yield from read(session, transactions.pause_read(keys))
    while True:
        kvs, marks = (transactions.as_range(one).kvs for one in reply.replies)
        learn_known(semaphore, read_limit(kvs[0]) if kvs else None, reply.revision)
        before = _pausable(semaphore, kvs[0], rate)
        if lease is not None and any(mark.lease == lease.id for mark in marks):
            return Change(before, before, changed=True)  # it was written, and the answer was lost
        if env.now() + (yield from _lasts(session, before, marks)) >= ends:
            if lease is not None:
                session.leases.revoke_id_later(lease.id, lease.ttl)
            return Change(before, before, changed=False)
        if lease is None:
            lease = yield from _unrenewed_lease(session, ends - env.now())
        until = env.wall() + lease.sent + lease.ttl - env.now()
        text = write_paused(kvs[0], by, env.wall(), reason, until)
        txn = transactions.penalize(keys, before, text, lease.id)
        try:
            reply = yield from read(session, txn)
        except LeaseNotFound:  # it was too short for this, or etcd ended it early
            lease, reply = None, (yield from read(session, transactions.pause_read(keys)))
            continue
        if reply.succeeded:
            after = read_limit(kvs[0]._replace(value=text, mod_revision=reply.revision))
            semaphore.learn(after, reply.revision)
            return Change(before, after, changed=True)


def _lasts(session: Session, limit: Limit, marks: Sequence[KeyValue]) -> Procedure[float]:
    """Seconds that a pause lasts at least: etcd answers in whole seconds, rounded down. `marks`:
    the key of a timed pause, if it is there.
    """
    if not limit.paused or (limit.after_pause and not marks):
        return 0.0
    if not limit.after_pause or not marks[0].lease:
        return math.inf
    ask = LeasesTimeToLive((marks[0].lease,), RPC_TIMEOUT)
    (left,) = yield from patiently(session, lambda _until: perform(ask))
    return max(0.0, left or 0.0)


def _unrenewed_lease(session: Session, wanted: float) -> Procedure[TtlLease]:
    """A lease that ends no earlier than after `wanted` seconds, and that nobody renews."""
    ttl = max(1, math.ceil(wanted))
    lease = yield from patiently(session, lambda _until: grant_lease(session.leases, ttl))
    session.leases.leave(lease)
    return lease


# ---------------------------------------------------------------- drain


def drain(
    semaphore: SemaphoreState,
    by: str,
    reason: str | None,
    until: float,
    on_wait: Callable[[], object] | None = None,
    *,
    rate: bool | None = None,
) -> Procedure[bool]:
    """PAUSE, and wait until no lease is held. False if some still are at `until`; it stays paused.
    `rate` as for `pause`.

    `on_wait` is called if there are holders after the pause. Watches report the released slots;
    what they may miss is reread from time to time.
    """
    yield from pause(semaphore, by, reason, rate=rate)
    env = semaphore.session.env
    box = env.mailbox()
    watches: list[Watch] = []
    try:
        while True:
            now = env.now()
            revision, held = yield from _holding_patiently(semaphore, until)
            if not held:
                return True
            if now >= until:
                return False
            if not watches:
                watches = _watch(semaphore, box, revision + 1)
                if on_wait is not None:
                    env.call(on_wait, "on_wait")
            yield from _freed(box, held, min(until, semaphore.session.next_reread()))
    finally:
        for watch in watches:
            watch.cancel()


def _holding_patiently(
    semaphore: SemaphoreState, until: float
) -> Procedure[tuple[int, set[bytes]]]:
    """Read the held slots; if etcd is unavailable, retry for a while."""
    session, backoff = semaphore.session, Backoff(0.1, 1.0)
    began = session.env.now()
    while True:
        if session.closed:
            raise EtcdSemError(f"semaphore {semaphore.name!r}: its client was closed")
        try:
            return (yield from _holding(semaphore, until))
        except (NotApplied, OutcomeUnknown):
            ends = session.env.now() + backoff.pause >= until
            if ends or out_of_patience(session, began):
                raise
        yield from sleep(session, backoff.take(session.env.random()))


def _holding(semaphore: SemaphoreState, until: float) -> Procedure[tuple[int, set[bytes]]]:
    """The held slots, at a revision at which the semaphore is paused."""
    keys = semaphore.keys
    slots = Range(keys.leases, keys.leases_end, keys_only=True)
    txn = Txn((), (Range(keys.max_leases), slots))
    reply = yield from transact(semaphore.session, txn, until)
    limits, found = map(transactions.as_range, reply.replies)
    stored = read_limit(limits.kvs[0]) if limits.kvs else None
    limit = learn_known(semaphore, stored, reply.revision)
    held = {
        kv.key for kv in found.kvs if kv.lease and slot_number(keys, kv.key) is not None
    }  # a key that was put there by hand is nobody's lease
    if not limit.paused:
        raise EtcdSemError(
            f"semaphore {semaphore.name!r} was resumed while it was being drained; "
            f"{len(held)} leases are held now"
        )
    return reply.revision, held


def _freed(box: Mailbox, held: set[bytes], until: float) -> Procedure[None]:
    """Wait until nobody holds as far as the watches tell, or until a reread is due."""
    while held:
        note = yield from perform(Wait(box, until))
        match note:
            case Failure():
                raise note
            case bytes():
                held.discard(note)
            case _:
                return


def _watch(semaphore: SemaphoreState, box: Mailbox, start: int) -> list[Watch]:
    """Watch for released slots and changes of the limit from a revision on; notes go to `box`."""
    keys, env = semaphore.keys, semaphore.session.env

    def freed(events: Sequence[Event]) -> None:
        for event in events:
            box.put(event.kv.key)

    def look_again() -> None:
        box.put(None)

    return [
        env.watch(
            CallbackListener(freed, gap=look_again, refused=box.put),
            keys.leases,
            keys.leases_end,
            start=start,
            only="delete",
        ),
        env.watch(
            CallbackListener(lambda events: look_again(), gap=look_again, refused=box.put),
            keys.max_leases,
            start=start,
        ),
    ]
