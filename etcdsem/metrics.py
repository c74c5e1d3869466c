"""Metrics of this process: plain data, for Prometheus, or as a text file.

    from etcdsem import metrics

    metrics.snapshot()              # plain data; needs nothing
    metrics.register()              # with prometheus_client: pip install 'etcdsem[metrics]'
    metrics.write_textfile(path)    # for node_exporter's textfile collector; needs nothing

1. Counting costs one addition in the core, under a lock that is held anyway. It sends no requests
   to etcd.
2. The metrics cover all clients of the process, blocking and asyncio, including closed ones. A
   forked child starts at zero.
3. Names follow Dask's scheduler where it has an equivalent. ``namespace="dask"`` makes them
   identical.
4. A process does not know what all users of a semaphore together hold: use ``etcdsem exporter``
   for that.
5. A rate limit has its own metrics, which count starts, and none of a semaphore's.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from etcdsem.core.stats import OTHER_RATES, OTHERS, SemaphoreStats
from etcdsem.core.stats import Histogram as Counts
from etcdsem.process_stats import all_stats

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import CollectorRegistry

    from etcdsem.model import Rate

INSTALL = "pip install 'etcdsem[metrics]'"


# ---------------------------------------------------------------- plain data


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
        forfeited_total=stats.forfeited,
        losses_total=stats.losses,
        wait_seconds=_histogram(stats.waited),
    )


def _histogram(counts: Counts) -> Histogram:
    below = 0
    buckets = []
    for bound, number in zip((*counts.bounds, float("inf")), list(counts.counts), strict=True):
        below += number
        buckets.append((bound, below))
    return Histogram(tuple(buckets), below, counts.total)


# ---------------------------------------------------------------- families


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


# ---------------------------------------------------------------- Prometheus


class Collector:
    """A collector for prometheus_client: each scrape takes a snapshot."""

    def __init__(self, namespace: str = "") -> None:
        self._namespace = namespace

    def collect(self) -> Iterator[Metric]:
        """Return the current metrics."""
        return map(to_prometheus, families(snapshot(), namespace=self._namespace))

    def describe(self) -> Iterator[Metric]:
        """Return the metric names, so that a registry can reject duplicates."""
        return self.collect()


def register(registry: CollectorRegistry | None = None, *, namespace: str = "") -> Collector:
    """Register the metrics of this process, to be served with those of your program.

    Args:
        registry: a registry of prometheus_client; default: its default registry.
        namespace: prefix of each name, followed by an underscore.

    Returns:
        The collector, for ``unregister``.

    Raises:
        ModuleNotFoundError: prometheus_client is not installed; the message says how to install it.
        ValueError: the metrics are already registered there.
    """
    client = prometheus_client()
    collector = Collector(namespace)
    (registry or client.REGISTRY).register(collector)
    return collector


def prometheus_client() -> Any:
    """Import prometheus_client. Raises ModuleNotFoundError that says how to install it."""
    try:
        import prometheus_client as module
    except ModuleNotFoundError as error:
        if error.name != "prometheus_client":
            raise
        raise ModuleNotFoundError(
            f"metrics for Prometheus require the package prometheus-client: {INSTALL}",
            name=error.name,
        ) from None
    return module


def to_prometheus(family: Family) -> Metric:
    """Convert a family to a metric of prometheus_client."""
    from prometheus_client.metrics_core import Metric

    base = family.name.removesuffix("_total") if family.kind == "counter" else family.name
    metric = Metric(base, family.help, family.kind)
    for name, labels, value in _samples(family):
        metric.add_sample(name, labels, value)
    return metric


def _samples(family: Family) -> Iterator[tuple[str, dict[str, str], float]]:
    """Yield the series of a family: name, labels, value."""
    for labels, value in family.samples:
        if not isinstance(value, Histogram):
            yield family.name, dict(labels), float(value)
            continue
        for bound, number in value.buckets:
            shown = "+Inf" if bound == float("inf") else repr(bound)
            yield f"{family.name}_bucket", {**labels, "le": shown}, float(number)
        yield f"{family.name}_sum", dict(labels), value.sum
        yield f"{family.name}_count", dict(labels), float(value.count)


# ---------------------------------------------------------------- text files


def textfile(of: Iterable[Family]) -> str:
    """Format families in Prometheus' text format, for node_exporter's textfile collector."""
    lines = []
    for family in of:
        if not family.samples:
            continue
        lines.append(f"# HELP {family.name} {_escaped(family.help)}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        for name, labels, value in _samples(family):
            pairs = ",".join(
                f'{key}="{_escaped(text, quote=True)}"' for key, text in labels.items()
            )
            number = repr(int(value)) if value.is_integer() else repr(value)
            lines.append(f"{name}{{{pairs}}} {number}" if pairs else f"{name} {number}")
    return "".join(f"{line}\n" for line in lines)


def _escaped(text: str, *, quote: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quote else text


def write_textfile(
    path: str | os.PathLike[str],
    of: Iterable[Family] | None = None,
    *,
    namespace: str = "",
) -> None:
    """Write metrics to a file, for a job that ends before it can be scraped.

    The file is replaced atomically, so that node_exporter's textfile collector never reads half
    of it, and is readable by all users. The collector only reads names that end in ``.prom``.

    Args:
        path: path of the file. Its directory must exist.
        of: metrics to write; default: all metrics of this process.
        namespace: prefix of each name, for the default of `of`.

    Raises:
        OSError: the file cannot be written.
    """
    import tempfile  # here, since it imports many modules

    text = textfile(families(snapshot(), namespace=namespace) if of is None else of)
    path = os.fspath(path)
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path) or ".", prefix=".etcdsem-")
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
            os.fchmod(file.fileno(), 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


__all__ = [
    "Collector",
    "EtcdMetrics",
    "Family",
    "Histogram",
    "RateLimitMetrics",
    "SemaphoreMetrics",
    "Snapshot",
    "families",
    "register",
    "snapshot",
    "write_textfile",
]
