"""Metric families: the plain data with the names, kinds and help texts that Prometheus shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from etcdsem.core.stats import OTHER_RATES, OTHERS
from etcdsem.metrics.data import Histogram, RateLimitMetrics, SemaphoreMetrics, Snapshot


@dataclass(frozen=True)
class Family:
    """One metric with all its series, as Prometheus sees it."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    help: str
    samples: Sequence[tuple[Mapping[str, str], float | Histogram]]


_Described: TypeAlias = tuple[tuple[str, Literal["gauge", "counter", "histogram"], str], ...]

_SEMAPHORES: _Described = (
    ("max_leases", "gauge", "Limit of the semaphore, as known to this process."),
    ("limit_drift", "gauge", "Limit that this program specifies, minus the one in force."),
    ("paused", "gauge", "1 if an operator has paused it, as far as this process knows, else 0."),
    ("active_leases", "gauge", "Leases that this process currently holds."),
    ("active_slots", "gauge", "Slots of those leases; a lease of weight 3 holds 3."),
    ("pending_leases", "gauge", "Calls of acquire in progress in this process."),
    ("overbooked_leases", "gauge", "Lost leases that this program has not yet let go of."),
    ("acquire_total", "counter", "Leases granted to this process."),
    ("release_total", "counter", "Leases that this process released in time."),
    ("losses_total", "counter", "Leases that were lost: expired, revoked, evicted or closed."),
    ("timeouts_total", "counter", "Calls of acquire that gave up because no slot was free."),
    ("refused_total", "counter", "Calls of acquire that were refused because too many waited."),
    (
        "average_pending_lease_time_s",
        "gauge",
        "Moving average over grants of the time from acquire to the grant.",
    ),
    ("wait_seconds", "histogram", "Time from the call of acquire to the grant."),
    ("held_seconds", "histogram", "Time from the grant to the release or the loss."),
)

_RATE_LIMITS: _Described = (
    ("max_starts", "gauge", "Starts allowed in any window of one period, as known here."),
    ("period_seconds", "gauge", "Period of the rate limit."),
    ("paused", "gauge", "1 if an operator has paused it, as far as this process knows, else 0."),
    ("used_starts", "gauge", "Starts of this process that count in the current period."),
    ("pending_starts", "gauge", "Calls of acquire in progress in this process."),
    ("starts_total", "counter", "Starts granted to this process."),
    ("timeouts_total", "counter", "Calls of acquire that gave up before a start was granted."),
    ("refused_total", "counter", "Calls of acquire that were refused because too many waited."),
    ("forfeited_total", "counter", "Starts of blocks that were not used in time."),
    ("losses_total", "counter", "Slots that ended in etcd before the end of their period."),
    ("wait_seconds", "histogram", "Time from the call of acquire to the start."),
)


def families(seen: Snapshot, *, namespace: str = "") -> list[Family]:
    """Convert a snapshot to metric families for Prometheus; `namespace` prefixes each name."""
    start = f"{namespace}_" if namespace else ""
    result = [
        *_described(f"{start}semaphore", _SEMAPHORES, seen.semaphores),
        *_described(f"{start}rate_limit", _RATE_LIMITS, seen.rate_limits),
    ]
    etcd = seen.etcd
    result += [
        Family(
            f"{start}semaphore_etcd_requests_total",
            "counter",
            "Transactions by outcome.",
            [({"outcome": key}, number) for key, number in etcd.requests_total.items()],
        ),
        Family(
            f"{start}semaphore_etcd_request_seconds",
            "histogram",
            "Duration of the transactions that were done.",
            [({}, etcd.request_seconds)],
        ),
        Family(
            f"{start}semaphore_renewals_late_total",
            "counter",
            "Lease refreshes not answered in time, so that another connection was used.",
            [({}, etcd.renewals_late_total)],
        ),
    ]
    return result


def _described(
    what: str, described: _Described, of: Sequence[SemaphoreMetrics | RateLimitMetrics]
) -> Iterator[Family]:
    for field, kind, text in described:
        samples = [
            ({"prefix": one.prefix, "name": one.name}, getattr(one, field))
            for one in of
            if getattr(one, field) is not None and not _only_counts(one, kind)
        ]
        yield Family(f"{what}_{field}", kind, text, samples)


def _only_counts(one: SemaphoreMetrics | RateLimitMetrics, kind: str) -> bool:
    """Whether it stands for semaphores that are no longer listed, which have no gauges."""
    return kind == "gauge" and (one.prefix, one.name) in (OTHERS, OTHER_RATES)


def series(family: Family) -> Iterator[tuple[str, dict[str, str], float]]:
    """Yield each series of a family: name, labels, value."""
    for labels, value in family.samples:
        if not isinstance(value, Histogram):
            yield family.name, dict(labels), float(value)
            continue
        for bound, number in value.buckets:
            shown = "+Inf" if bound == float("inf") else repr(bound)
            yield f"{family.name}_bucket", {**labels, "le": shown}, float(number)
        yield f"{family.name}_sum", dict(labels), value.sum
        yield f"{family.name}_count", dict(labels), float(value.count)
