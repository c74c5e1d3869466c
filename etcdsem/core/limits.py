"""The limit of a semaphore: read, and checked against what is asked for.

A weight above the limit and a limit of the other kind are errors only after a read: what is known
may be old.
"""

from __future__ import annotations

from etcdsem.core import transactions
from etcdsem.core.commands import Procedure, Txn, TxnReply
from etcdsem.core.keys import Limit, read_limit
from etcdsem.core.retry import read, transact
from etcdsem.core.station import Station
from etcdsem.errors import SemaphoreClosed, WeightExceedsLimit, WrongKind


def semaphore_closed(station: Station) -> SemaphoreClosed:
    """The error for a semaphore that etcd does not know."""
    return SemaphoreClosed(
        f"semaphore {station.name!r} is not known: it was closed, or never registered "
        f"(there is no key {station.keys.max_leases.decode()})"
    )


def too_heavy(station: Station, weight: int) -> bool:
    """Is more wanted than the limit has, as far as is known? 0, or paused, is no limit to wait for
    less.
    """
    return station.limit is not None and weight > station.limit.room > 0


def refuse_too_heavy(station: Station, weight: int) -> None:
    """Raise WeightExceedsLimit if it is."""
    if too_heavy(station, weight):
        room = station.limit.room if station.limit else 0
        raise WeightExceedsLimit(
            f"semaphore {station.name!r}: a lease of weight {weight} is wanted, and the limit is "
            f"{room}: it would never come. Ask for {room} at most, or raise the limit: etcdsem "
            f"limit {station.name} {weight}"
        )


def wrong_kind(station: Station, limit: Limit, *, rate: bool) -> WrongKind | None:
    """The error, if this is no limit of the wanted kind."""
    if limit.number is None or (limit.rate is not None) == rate:
        return None
    if rate:
        return WrongKind(
            f"{station.name!r} is a semaphore (its limit is {limit.text!r}), and a rate limit of "
            f"that name is wanted: take another name, or use etcdsem.Semaphore (etcdsem run "
            f"--limit, etcdsem limit {station.name})"
        )
    return WrongKind(
        f"{station.name!r} is a rate limit ({limit.text!r}), and a semaphore of that name is "
        f"wanted: take another name, or use etcdsem.RateLimit (etcdsem run --rate, etcdsem rate "
        f"{station.name})"
    )


def check_kind(station: Station, *, rate: bool) -> None:
    """Raise WrongKind if what was just read is of the other kind."""
    wrong = None if station.limit is None else wrong_kind(station, station.limit, rate=rate)
    if wrong is not None:
        raise wrong


def refuse_wrong_kind(station: Station, *, rate: bool, until: float) -> Procedure[None]:
    """Raise WrongKind if it is a semaphore where a rate limit is wanted, or the other way round."""
    if station.limit is None or wrong_kind(station, station.limit, rate=rate) is None:
        return
    reply = yield from transact(station.session, limit_read(station), until)  # is it still?
    wrong = wrong_kind(station, learned(station, reply), rate=rate)
    if wrong is not None:
        raise wrong


def learn_limit(station: Station) -> Procedure[Limit]:
    """Read the limit, tried again for a while; raises SemaphoreClosed if there is none."""
    return learned(station, (yield from read(station.session, limit_read(station))))


def limit_read(station: Station) -> Txn:
    """What reads the limit alone."""
    return Txn((), transactions.look(station.keys, queue=1)[:1])


def learned(station: Station, reply: TxnReply) -> Limit:
    """The limit in the answer to `limit_read`; raises SemaphoreClosed if there is none."""
    kvs = transactions.as_range(reply.replies[0]).kvs
    station.learn(read_limit(kvs[0]) if kvs else None, reply.revision)
    if station.limit is None:
        raise semaphore_closed(station)
    return station.limit


def known_limit(station: Station) -> Procedure[Limit]:
    """The limit as far as is known. Only a read says that there is none: what a watch told of a
    closing may be old, and the semaphore registered again since. Read once: its callers try again.
    """
    return station.limit or learned(
        station, (yield from transact(station.session, limit_read(station)))
    )
