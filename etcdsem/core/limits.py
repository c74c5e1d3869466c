"""Reads the limit of a semaphore, and checks requests against it.

A weight above the limit and a limit of the other kind become errors only after a read, since the
known limit may be outdated.
"""

from __future__ import annotations

import math

from etcdsem.core import transactions
from etcdsem.core.commands import Procedure, Txn, TxnReply
from etcdsem.core.keys import Limit, read_limit
from etcdsem.core.name_lease import SOON, secure
from etcdsem.core.retry import read, sleep, transact
from etcdsem.core.semaphore import SemaphoreState
from etcdsem.errors import (
    EtcdSemError,
    QueueFull,
    SemaphoreClosed,
    WeightExceedsLimit,
    WrongKind,
)
from etcdsem.model import Rate, duration_text
from etcdsem.validation import MAX_SLOTS


def semaphore_closed(semaphore: SemaphoreState) -> SemaphoreClosed:
    """The error for a semaphore that is not registered in etcd."""
    return SemaphoreClosed(
        f"semaphore {semaphore.name!r} is not known: it was closed, has expired, or was never "
        f"registered (there is no key {semaphore.keys.max_leases.decode()})"
    )


def queue_full(semaphore: SemaphoreState, most: int) -> QueueFull:
    """The error for a caller that is not let into the queue, which is counted."""
    semaphore.stats.refused += 1
    what = f"{most} or more callers are waiting" if most else "it is full"
    return QueueFull(
        f"{semaphore.name!r}: {what}, and max_waiting is {most}; to see who holds and who waits: "
        f"etcdsem status {semaphore.name}"
    )


def learn_known(semaphore: SemaphoreState, limit: Limit | None, revision: int) -> Limit:
    """Learn the limit that was read at a revision; raises SemaphoreClosed if it is missing."""
    semaphore.learn(limit, revision)
    if limit is None:
        raise semaphore_closed(semaphore)
    return limit


def is_rate(limit: Limit | None) -> bool:
    """Is it known to be a rate limit?"""
    return limit is not None and limit.rate is not None


def too_heavy(semaphore: SemaphoreState, weight: int) -> bool:
    """Does `weight` exceed the known limit? A limit of 0, or a pause, is worth waiting for."""
    return semaphore.limit is not None and weight > semaphore.limit.room > 0


def refuse_too_heavy(semaphore: SemaphoreState, weight: int) -> None:
    """Raise WeightExceedsLimit if `weight` exceeds the known limit."""
    if semaphore.limit is not None and too_heavy(semaphore, weight):
        room, rate = semaphore.limit.room, semaphore.limit.rate
        if rate is not None:
            raise WeightExceedsLimit(
                f"rate limit {semaphore.name!r}: the cost takes {weight} blocks of {rate.block} "
                f"permits, and {rate} has {room}, so it could never be granted. Request at most "
                f"{room * rate.block}, or raise the limit: etcdsem rate {semaphore.name} RATE"
            )
        raise WeightExceedsLimit(
            f"semaphore {semaphore.name!r}: weight {weight} exceeds the limit of {room} and could "
            f"never be granted. Request at most {room}, or raise the limit: etcdsem limit "
            f"{semaphore.name} {weight}"
        )


def wrong_kind(semaphore: SemaphoreState, limit: Limit, *, rate: bool) -> WrongKind | None:
    """The error if the limit is of the other kind, else None."""
    if limit.number is None or (limit.rate is not None) == rate:
        return None
    if rate:
        return WrongKind(
            f"{semaphore.name!r} is a semaphore (its limit is {limit.text!r}), not a rate limit: "
            "choose another name, or use etcdsem.Semaphore (etcdsem run --limit, etcdsem limit "
            f"{semaphore.name})"
        )
    return WrongKind(
        f"{semaphore.name!r} is a rate limit ({limit.text!r}), not a semaphore: choose another "
        "name, or use etcdsem.RateLimit (etcdsem run --rate, etcdsem rate "
        f"{semaphore.name})"
    )


def rate_of(semaphore: SemaphoreState, limit: Limit) -> Rate:
    """The rate of a limit; raises WrongKind or EtcdSemError if it has none."""
    wrong = wrong_kind(semaphore, limit, rate=True)
    if wrong is not None:
        raise wrong
    if limit.rate is None:
        raise EtcdSemError(
            f"rate limit {semaphore.name!r}: its limit in etcd reads {limit.text!r}, so no "
            f"permit is granted; fix it: etcdsem rate {semaphore.name} 100/1m"
        )
    return limit.rate


def slots_for(semaphore: SemaphoreState, rate: Rate, cost: int) -> int:
    """How many slots a start takes; raises WeightExceedsLimit for more than any start may."""
    slots = -(-cost // rate.block)
    if slots > MAX_SLOTS:
        raise WeightExceedsLimit(
            f"rate limit {semaphore.name!r}: a cost of {cost} takes {slots} blocks of {rate.block} "
            f"permits; a start can take {MAX_SLOTS}. Choose larger blocks: "
            f"etcdsem rate {semaphore.name} N/PERIOD/BLOCK"
        )
    return slots


def check_kind(semaphore: SemaphoreState, *, rate: bool) -> None:
    """Raise WrongKind if the limit that was just read is of the other kind."""
    wrong = None if semaphore.limit is None else wrong_kind(semaphore, semaphore.limit, rate=rate)
    if wrong is not None:
        raise wrong


def refuse_wrong_kind(semaphore: SemaphoreState, *, rate: bool, until: float) -> Procedure[None]:
    """Raise WrongKind if this is a semaphore and a rate limit is wanted, or the other way round."""
    if semaphore.limit is None or wrong_kind(semaphore, semaphore.limit, rate=rate) is None:
        return
    reply = yield from transact(semaphore.session, limit_read(semaphore), until)  # read it again
    wrong = wrong_kind(semaphore, learned(semaphore, reply), rate=rate)
    if wrong is not None:
        raise wrong


def learn_limit(semaphore: SemaphoreState) -> Procedure[Limit]:
    """Read the limit, retrying for a while; raises SemaphoreClosed if it is missing."""
    return learned(semaphore, (yield from read(semaphore.session, limit_read(semaphore))))


def limit_read(semaphore: SemaphoreState) -> Txn:
    """A transaction that reads only the limit."""
    return Txn((), transactions.look(semaphore.keys, queue=1)[:1])


def learned(semaphore: SemaphoreState, reply: TxnReply) -> Limit:
    """Learn the limit in the answer to `limit_read`; raises SemaphoreClosed if it is missing."""
    kvs = transactions.as_range(reply.replies[0]).kvs
    semaphore.learn(read_limit(kvs[0]) if kvs else None, reply.revision)
    if semaphore.limit is None:
        raise semaphore_closed(semaphore)
    return semaphore.limit


def known_limit(semaphore: SemaphoreState) -> Procedure[Limit]:
    """The known limit, read once if unknown (callers try again). Only a read shows that there is no
    limit: what a watch reported of a closing may be outdated, and the semaphore registered again.
    """
    return semaphore.limit or learned(
        semaphore, (yield from transact(semaphore.session, limit_read(semaphore)))
    )


def keep_name(semaphore: SemaphoreState, until: float) -> Procedure[None]:
    """If the name expires, make sure that it stays for a caller that acquires. If its lease has
    ended, or is about to, wait until the name is gone; then SemaphoreClosed is raised.
    """
    session = semaphore.session
    end = session.env.now() + SOON
    while (lease := semaphore.name_lease) is not None:
        if (yield from secure(semaphore, lease)) or session.env.now() >= end:
            return
        learned(semaphore, (yield from transact(session, limit_read(semaphore), until)))
        if semaphore.name_lease is lease:
            yield from sleep(session, 0.25)


def why_full(limit: Limit | None, name: str, wall: float) -> str:
    """Why no lease can be granted at the time of day `wall`: a pause, a limit of 0, or one that
    cannot be read. Empty if leases can be granted.
    """
    if limit is None or limit.room:
        return ""
    if limit.pause is not None:
        left = limit.pause.left(wall)
        ends = f", {duration_text(math.ceil(left))} left" if left < math.inf else ""
        return f"it is {limit.pause}{ends}; to resume: etcdsem resume {name}"
    if limit.number is None:
        return f"its limit in etcd reads {limit.text!r}; to fix it: etcdsem limit {name} 5"
    return f"its limit is 0, which grants nothing; to raise it: etcdsem limit {name} 5"
