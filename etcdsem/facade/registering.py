"""How a semaphore and a rate limit are registered, and checked against what is registered."""

from __future__ import annotations

from etcdsem.core.commands import Procedure
from etcdsem.core.keys import Limit
from etcdsem.core.limits import learn_limit, rate_of, wrong_kind
from etcdsem.core.registration import Registration, register
from etcdsem.core.semaphore import SemaphoreState
from etcdsem.errors import InconsistentLimit
from etcdsem.model import Rate


def register_limit(
    state: SemaphoreState, max_leases: int | None, expires: int
) -> Procedure[Registration | None]:
    """Register a semaphore if it is new, else check that its limit is the same. `max_leases` None:
    it must be registered.
    """
    if max_leases is None:
        limit = yield from learn_limit(state)
    else:
        limit = yield from register(state, max_leases, expires)
    wrong = wrong_kind(state, limit, rate=False)
    if wrong is not None:
        raise wrong
    if max_leases is None:
        return None
    if limit.number is None:
        raise InconsistentLimit(
            f"semaphore {state.name!r}: its limit in etcd reads {limit.text!r}, which is not a "
            "number from 0 to 99999, so no lease would be granted. Fix it for everybody: "
            f"etcdsem limit {state.name} {max_leases}",
            given=max_leases,
            registered=None,
        )
    if limit.registered and limit.number is not None and limit.number != max_leases:
        raise InconsistentLimit(
            f"Inconsistent max leases: {max_leases}, expected: {limit.number} "
            f"(semaphore {state.name!r}: {limit.number} is registered; give that, or change it "
            f"for everybody: etcdsem limit {state.name} {max_leases})",
            given=max_leases,
            registered=limit.number,
        )
    return registration(max_leases, expires, limit)


def registration(wanted: int | Rate, expires: int, limit: Limit) -> Registration | None:
    """What to register again once the name has expired; None if it stays."""
    if not expires:
        return None
    found = Registration(wanted, expires)
    found.lease = limit.lease
    return found


def register_rate(
    state: SemaphoreState, wanted: Rate, expires: int, *, any_block: bool
) -> Procedure[Registration | None]:
    """Register the rate if it is new, else check that it is the same."""
    limit = yield from register(state, wanted, expires)
    rate = rate_of(state, limit)
    same = rate == wanted or (any_block and rate[:2] == wanted[:2])
    if limit.registered and not same:
        raise InconsistentLimit(
            f"Inconsistent rate: {wanted}, expected: {rate} (rate limit {state.name!r}: {rate} "
            f"is registered; give that, or change it for everybody: etcdsem rate {state.name} "
            f"{wanted})",
            given=wanted.starts,
            registered=rate.starts,
        )
    return registration(wanted, expires, limit)
