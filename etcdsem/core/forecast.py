"""When a rate limit will have permits, as far as etcd shows it."""

from __future__ import annotations

import math
from dataclasses import replace

from etcdsem.core.keys.permit import need
from etcdsem.model import Status


def next_free(seen: Status, wall: float, cost: int = 1) -> float:
    """Estimated seconds until a new caller may get `cost` permits, from the times recorded in etcd
    and this machine's wall clock; infinite if it cannot.
    """
    if seen.pause is not None and seen.pause.until is not None:
        return max(seen.pause.left(wall), next_free(replace(seen, pause=None), wall, cost))
    rate = seen.rate
    slots = -(-cost // rate.block) if rate is not None else 0
    if rate is None or not seen.max_leases or slots > seen.max_leases:
        return math.inf
    after = need(rate.period)
    missing = slots + seen.held + sum(one.weight for one in seen.waiters) - seen.max_leases
    if missing <= 0:
        return 0.0
    left = sorted(
        holder.ttl or 0.0  # the record of a permit whose lease has ended
        if not holder.lease_id
        else min(after, max(0.0, holder.acquired_at.timestamp() + after - wall))
        for holder in seen.holders
        if holder.acquired_at is not None
    )
    rounds, place = divmod(missing - 1, seen.max_leases)
    return rounds * after + (left[place] if place < len(left) else after)
