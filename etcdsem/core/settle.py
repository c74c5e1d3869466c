"""What a start has really used: less than its cost, or more.

1. Less: permits go back to their slots, and slots that are wholly unused to the next waiters.
2. More: the rest is taken like any start, in the queue, in the background, so those who come later
   pay for it. It is lost if the program ends, or etcd is unavailable for long, before that.
"""

from __future__ import annotations

import logging
import math
from typing import NamedTuple

from etcdsem.core.commands import Failure, Procedure
from etcdsem.core.limits import learn_limit, rate_of
from etcdsem.core.permits import Started, pool_of
from etcdsem.core.rates import StartRequest, start
from etcdsem.errors import EtcdSemError
from etcdsem.validation import MAX_SLOTS


class Paid(NamedTuple):
    """What a start has of one rate limit."""

    wanted: StartRequest
    started: Started


def settle(paid: Paid, used: int) -> None:
    """Settle a start that has used so many permits. Does not wait for etcd."""
    semaphore, request, cost = paid.wanted
    if used < cost:
        pool_of(semaphore).settle(paid.started, cost - used)
    elif used > cost:
        rest = StartRequest(semaphore, request._replace(on_wait=None), used - cost)
        semaphore.session.env.spawn(_charge(rest), "charge")


def _charge(wanted: StartRequest) -> Procedure[None]:
    """Take the permits, at most as many at a time as a start may cost."""
    semaphore, request, rest = wanted
    try:
        while rest > 0:
            limit = semaphore.limit or (yield from learn_limit(semaphore))
            most = min(limit.number or 1, MAX_SLOTS) * rate_of(semaphore, limit).block
            cost = min(rest, most)
            yield from start(semaphore, request, math.inf, once=False, cost=cost)
            rest -= cost
    except (Failure, EtcdSemError) as error:
        semaphore.session.env.log(
            logging.WARNING,
            "rate limit %s: %d permits that were used beyond the cost are not charged: %s",
            semaphore.name,
            rest,
            error,
        )
