# Generated from etcdsem/aio/multi.py by tests/make_blocking.py: edit that file.
"""`acquire_all` and `hold_all`: several semaphores at once."""

from __future__ import annotations

from collections.abc import Callable

from etcdsem.facade import multi
from etcdsem.model import Duration
from etcdsem.sync.blocks import HoldAllBlock, leases_of_all
from etcdsem.sync.lease import Lease
from etcdsem.sync.semaphore import Semaphore


def acquire_all(
    *semaphores: Semaphore,
    timeout: Duration | None = None,
    on_wait: Callable[[str], object] | None = None,
    weight: int = 1,
    priority: int = 0,
    backfill: bool = False,
) -> tuple[Lease, ...] | None:
    """Wait for a lease of each of several semaphores: all of them or none.

    If all have room, it is one transaction. A waiter is in one queue at a time and holds nothing
    meanwhile. After losing its place to others three times it queues while holding, in the order
    of the semaphores' prefixes and names, so there is no deadlock (docs/several.md). Each lease
    is an ordinary one: it is released, evicted or lost by itself.

    Args:
        semaphores: 1 to 8, all different, of the same client.
        timeout: for all together: seconds, ``"1m30s"`` or a timedelta. None waits forever, 0 tries
            once.
        on_wait: called with the name of each semaphore in whose queue the call waits.
        weight: must be 1.
        priority: must be 0.
        backfill: must be False (docs/several.md says why).

    Returns:
        The leases, in the order of the semaphores; None if the timeout came first.

    Raises:
        InvalidSetting: the semaphores cannot be taken together, or an argument is invalid.
        SemaphoreClosed: one of them is not registered (any more); the message names it.
        EtcdUnavailable: etcd was unreachable, as for `Semaphore.acquire`.
    """
    multi.refuse_demand(weight, priority, backfill)
    return leases_of_all(semaphores, timeout, on_wait)


def hold_all(
    *semaphores: Semaphore,
    timeout: Duration | None = None,
    weight: int = 1,
    priority: int = 0,
    backfill: bool = False,
) -> HoldAllBlock:
    """Hold a lease of each of several semaphores for the length of a ``with`` block, which
    gives the leases in the order of the semaphores. Arguments as for `acquire_all`. It is also a
    decorator.

    Raises:
        AcquireTimeout: the timeout came first; the body did not run.
        LeaseLost: at the end of the block, if a lease was lost meanwhile (see `raise_on_loss`).
    """
    multi.refuse_demand(weight, priority, backfill)
    return HoldAllBlock(semaphores, timeout)


__all__ = ["acquire_all", "hold_all"]
