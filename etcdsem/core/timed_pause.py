"""A pause that ends by itself, without anybody's help: what a shared back-off is.

1. ``max_leases`` says it, like any pause, so every grant that is under way fails when it lands. The
   text also says until when, for people.
2. The key ``max_leases_paused`` lives as long as the pause: its etcd lease is never renewed. So
   etcd's clock counts, and no other.
3. Once the key is gone, the first client that notices writes the limit back: in an acquire, or for
   a waiter, whose watch reports the key's end. The transaction compares both keys, so no late one
   ends another pause, or one that was made longer. Users who may not write ``max_leases`` wait
   until another client has done it.
4. The longest pause wins, and one without an end is the longest.
"""

from __future__ import annotations

import math

from etcdsem.core import transactions
from etcdsem.core.commands import AccessDenied, KeyValue, Procedure
from etcdsem.core.keys import Limit, read_limit
from etcdsem.core.limits import known_limit
from etcdsem.core.retry import transact
from etcdsem.core.semaphore import SemaphoreState


def end_timed_pause(semaphore: SemaphoreState, until: float = math.inf) -> Procedure[bool]:
    """End the known timed pause if it is over; False if it is not."""
    session, keys = semaphore.session, semaphore.keys
    while (limit := semaphore.limit) is not None and limit.after_pause:
        try:
            reply = yield from transact(session, transactions.end_timed_pause(keys, limit), until)
        except AccessDenied:
            return False  # this user may not change the limit; another client will
        if reply.succeeded:
            written = KeyValue(keys.max_leases, limit.after_pause, 0, reply.revision, limit.lease)
            semaphore.learn(read_limit(written), reply.revision)
            continue
        found = transactions.as_range(reply.replies[0]).kvs
        semaphore.learn(read_limit(found[0]) if found else None, reply.revision)
        if semaphore.limit is limit:
            semaphore.watches.follow_pause(reply.revision)
            return False
    return True


def end_before_acquire(semaphore: SemaphoreState, until: float, *, once: bool) -> Procedure[None]:
    """End a timed pause that is over, for a caller that is about to acquire. It need not, if it may
    wait and others do: then they notice the end.
    """
    limit = yield from known_limit(semaphore)
    if limit.after_pause and (once or not semaphore.waiters):
        yield from end_timed_pause(semaphore, until)


def end_unnoticed(semaphore: SemaphoreState, known: Limit | None, until: float) -> Procedure[bool]:
    """End a timed pause that is over, and had begun without this client's knowledge: it knew the
    limit `known`. False if nothing was ended.
    """
    limit = semaphore.limit
    if limit is None or limit is known or not limit.after_pause:
        return False
    return (yield from end_timed_pause(semaphore, until))
