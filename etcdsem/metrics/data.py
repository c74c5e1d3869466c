"""The metrics of this process as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from etcdsem.core.stats import Buckets, SemaphoreStats
from etcdsem.process_stats import all_stats

if TYPE_CHECKING:
    from etcdsem.model import Rate


@dataclass(frozen=True)
class Histogram:
    """Observations in seconds."""

    buckets: tuple[tuple[float, int], ...]
    """Upper bounds, each with the number of observations up to it; the last is infinite."""
    count: int
    sum: float


@dataclass(frozen=True)
class SemaphoreMetrics:
    """One semaphore, as this process uses it."""

    prefix: str
    name: str
    max_leases: int | None
    """The limit as known to this process; None if it is not known (yet)."""
    limit_drift: int
    """The limit that this program specifies, minus the one in force; 0 if it specifies none."""
    paused: bool | None
    """Whether an operator has paused it, as far as this process knows; None if the limit is not
    known. The process learns of a pause only when it acquires or waits."""
    active_leases: int
    """Leases that this process currently holds."""
    active_slots: int
    """The slots of those leases; a lease of weight 3 holds 3."""
    pending_leases: int
    """Calls of `acquire` in progress."""
    overbooked_leases: int
    """Leases that were lost but that the program has not yet let go of (by `release`, or the end of
    its ``with`` block). The limit may be exceeded by this number."""
    acquire_total: int
    release_total: int
    """Leases released in time; together with lost and active ones they add up to
    `acquire_total`."""
    losses_total: int
    timeouts_total: int
    """Calls of `acquire` that gave up because no slot was free."""
    refused_total: int
    """Calls of `acquire` that raised `QueueFull`."""
    average_pending_lease_time_s: float
    """A moving average over grants, as in Dask: the last wait has a weight of one half."""
    wait_seconds: Histogram
    """Time from the call of `acquire` to the grant."""
    held_seconds: Histogram
    """Time from the grant to the release or the loss."""


@dataclass(frozen=True)
class RateLimitMetrics:
    """One rate limit, as this process uses it."""

    prefix: str
    name: str
    max_starts: int | None
    """Starts allowed in any window of one period, as known to this process, else None."""
    period_seconds: float | None
    """The period; None if it is not known."""
    paused: bool | None
    """As for a semaphore."""
    used_starts: int
    """Starts of this process that count in the current period. A block counts as a whole."""
    pending_starts: int
    """Calls of `acquire` in progress."""
    starts_total: int
    """Starts granted to this process."""
    timeouts_total: int
    """Calls of `acquire` that gave up because no start was granted in time."""
    refused_total: int
    """Calls of `acquire` that raised `QueueFull`."""
    forfeited_total: int
    """Starts of blocks that were not used in time; if there are many, the block is too large."""
    losses_total: int
    """Slots that ended in etcd before the end of their period (evicted, closed): starts may exceed
    the limit during one period."""
    wait_seconds: Histogram
    """Time from the call of `acquire` to the start."""


@dataclass(frozen=True)
class EtcdMetrics:
    """The transactions of this process, and their outcomes."""

    requests_total: Mapping[str, int]
    """Number by outcome: ``done``, ``not applied``, ``unknown`` (it cannot be known whether etcd
    applied it; resolved by revoking its lease), ``refused``."""
    request_seconds: Histogram
    """Duration of the transactions that were done."""
    renewals_late_total: int
    """Lease refreshes that were not answered in time, so that another connection was used."""


@dataclass(frozen=True)
class Snapshot:
    """All metrics of this process at one moment."""

    semaphores: tuple[SemaphoreMetrics, ...]
    rate_limits: tuple[RateLimitMetrics, ...]
    etcd: EtcdMetrics


def snapshot() -> Snapshot:
    """Return the current metrics of all clients of this process. May be called from any thread."""
    stats = all_stats()
    counted = sorted(stats.semaphores.items(), key=lambda pair: pair[0])
    return Snapshot(
        semaphores=tuple(_semaphore(*key, stats) for key, stats in counted if stats.rate is None),
        rate_limits=tuple(
            _rate_limit(*key, stats, stats.rate) for key, stats in counted if stats.rate
        ),
        etcd=EtcdMetrics(
            requests_total=dict(stats.requests),
            request_seconds=_histogram(stats.latency),
            renewals_late_total=stats.renewals_late,
        ),
    )


def _semaphore(prefix: str, name: str, stats: SemaphoreStats) -> SemaphoreMetrics:
    drift = 0
    if stats.carried is not None and stats.max_leases is not None:
        drift = stats.carried - stats.max_leases
    return SemaphoreMetrics(
        prefix=prefix,
        name=name,
        max_leases=stats.max_leases,
        limit_drift=drift,
        paused=None if stats.max_leases is None else stats.paused,
        active_leases=stats.active,
        active_slots=stats.slots,
        pending_leases=stats.pending,
        overbooked_leases=stats.overbooked,
        acquire_total=stats.acquired,
        release_total=stats.released,
        losses_total=stats.losses,
        timeouts_total=stats.timeouts,
        refused_total=stats.refused,
        average_pending_lease_time_s=stats.average_wait,
        wait_seconds=_histogram(stats.waited),
        held_seconds=_histogram(stats.held),
    )


def _rate_limit(prefix: str, name: str, stats: SemaphoreStats, rate: Rate) -> RateLimitMetrics:
    known = stats.max_leases is not None
    return RateLimitMetrics(
        prefix=prefix,
        name=name,
        max_starts=rate.starts if known else None,
        period_seconds=rate.period if known else None,
        paused=stats.paused if known else None,
        used_starts=rate.block * stats.active,
        pending_starts=stats.pending,
        starts_total=stats.acquired,
        timeouts_total=stats.timeouts,
        refused_total=stats.refused,
        forfeited_total=stats.forfeited,
        losses_total=stats.losses,
        wait_seconds=_histogram(stats.waited),
    )


def _histogram(counts: Buckets) -> Histogram:
    below = 0
    buckets = []
    for bound, number in zip((*counts.bounds, float("inf")), list(counts.counts), strict=True):
        below += number
        buckets.append((bound, below))
    return Histogram(tuple(buckets), below, counts.total)
