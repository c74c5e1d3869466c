"""Metrics of this process: what its clients count, as plain data, for Prometheus, as a text file.

    from etcdsem import metrics

    metrics.snapshot()              # plain data; needs nothing
    metrics.register()              # with prometheus_client: pip install 'etcdsem[metrics]'
    metrics.write_textfile(path)    # for node_exporter's textfile collector; needs nothing

1. Counting costs an addition in the core, under the lock that is held anyway; nothing is asked of
   etcd for it.
2. It covers all clients of the process, blocking and asyncio, also those that were closed. A
   forked child starts at zero.
3. The names are those of Dask's scheduler where it has one. ``namespace="dask"`` makes them the
   same to the letter.
4. What all users of a semaphore together hold is not known to one process: ask
   ``etcdsem exporter`` for that.
5. A rate limit has metrics of its own, which count starts, and none of a semaphore.
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
    """Upper bound, and how many observations were at most that; the last bound is infinite."""
    count: int
    sum: float


@dataclass(frozen=True)
class SemaphoreMetrics:
    """One semaphore, as this process uses it."""

    prefix: str
    name: str
    max_leases: int | None
    """The limit as it is known here; None if it is not (or was not asked for yet)."""
    limit_drift: int
    """The limit that this program was told, less the one in force; 0 if it was told none."""
    paused: bool | None
    """Has an operator paused it, as far as is known here (this process asks for nothing, so it
    hears of it when it acquires or waits)? None if the limit is not known."""
    active_leases: int
    """Leases that this process holds now."""
    active_slots: int
    """The slots of those leases: a lease of weight 3 holds 3."""
    pending_leases: int
    """Calls of `acquire` under way."""
    overbooked_leases: int
    """Leases that were lost and that the program has not let go of (by `release`, or the end of
    its ``with`` block): the limit may be exceeded by as many."""
    acquire_total: int
    release_total: int
    """Leases given back in time; with those lost and those active it makes `acquire_total`."""
    losses_total: int
    timeouts_total: int
    """Calls of `acquire` that gave up, since there was no room."""
    average_pending_lease_time_s: float
    """A moving average over grants, in their order, as Dask's: half of it is the last wait."""
    wait_seconds: Histogram
    """From the call of `acquire` to the grant."""
    held_seconds: Histogram
    """From the grant to the release, or the loss."""


@dataclass(frozen=True)
class RateLimitMetrics:
    """One rate limit, as this process uses it."""

    prefix: str
    name: str
    max_starts: int | None
    """Starts that are allowed in any window of the period, as it is known here; else None."""
    period_seconds: float | None
    """The period; None if it is not known."""
    paused: bool | None
    """As for a semaphore."""
    used_starts: int
    """Starts of this process that count now, in the running period. A block counts as a whole."""
    pending_starts: int
    """Calls of `acquire` under way."""
    starts_total: int
    """Starts that this process got."""
    timeouts_total: int
    """Calls of `acquire` that gave up, since there was none in time."""
    forfeited_total: int
    """Starts of blocks that were not used in time: if they are many, the block is too large."""
    losses_total: int
    """Slots that ended in etcd before their period was over (evicted, closed): for one period
    there may be more starts than the limit."""
    wait_seconds: Histogram
    """From the call of `acquire` to the start."""


@dataclass(frozen=True)
class EtcdMetrics:
    """The transactions of this process, and what became of them."""

    requests_total: Mapping[str, int]
    """By outcome: ``done``, ``not applied``, ``unknown`` (nobody can say whether etcd applied it;
    settled by revoking its lease), ``refused``."""
    request_seconds: Histogram
    """How long those took that were done."""
    renewals_late_total: int
    """Times that a lease's refresh was not answered in time, so another connection was taken."""


@dataclass(frozen=True)
class Snapshot:
    """All metrics of this process at one moment."""

    semaphores: tuple[SemaphoreMetrics, ...]
    rate_limits: tuple[RateLimitMetrics, ...]
    etcd: EtcdMetrics


def snapshot() -> Snapshot:
    """What the clients of this process have counted so far. May be called from any thread."""
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
    ("max_leases", "gauge", "Limit of the semaphore, as this process knows it."),
    ("limit_drift", "gauge", "Limit that this program was told, less the one in force."),
    ("paused", "gauge", "1 if an operator has paused it, as far as this process knows; else 0."),
    ("active_leases", "gauge", "Leases that this process holds now."),
    ("active_slots", "gauge", "Slots of those leases: a lease of weight 3 holds 3."),
    ("pending_leases", "gauge", "Calls of acquire under way in this process."),
    ("overbooked_leases", "gauge", "Leases lost that this program has not let go of."),
    ("acquire_total", "counter", "Leases granted to this process."),
    ("release_total", "counter", "Leases that this process gave back in time."),
    ("losses_total", "counter", "Leases that were lost: expired, revoked, evicted, closed."),
    ("timeouts_total", "counter", "Calls of acquire that gave up, since there was no room."),
    (
        "average_pending_lease_time_s",
        "gauge",
        "Moving average of the time from acquire to the grant, by order of grants.",
    ),
    ("wait_seconds", "histogram", "Time from the call of acquire to the grant."),
    ("held_seconds", "histogram", "Time from the grant to the release, or the loss."),
)

_RATE_LIMITS: _Described = (
    ("max_starts", "gauge", "Starts allowed in any window of the period, as this process knows."),
    ("period_seconds", "gauge", "The period."),
    ("paused", "gauge", "1 if an operator has paused it, as far as this process knows; else 0."),
    ("used_starts", "gauge", "Starts of this process that count in the running period."),
    ("pending_starts", "gauge", "Calls of acquire under way in this process."),
    ("starts_total", "counter", "Starts that this process got."),
    ("timeouts_total", "counter", "Calls of acquire that gave up, since there was no start."),
    ("forfeited_total", "counter", "Starts of blocks that were not used in time."),
    ("losses_total", "counter", "Slots that ended in etcd before their period was over."),
    ("wait_seconds", "histogram", "Time from the call of acquire to the start."),
)


def families(seen: Snapshot, *, namespace: str = "") -> list[Family]:
    """A snapshot as metrics for Prometheus; `namespace` goes before each name."""
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
            "Transactions, by what is known of their outcome.",
            [({"outcome": key}, number) for key, number in etcd.requests_total.items()],
        ),
        Family(
            f"{start}semaphore_etcd_request_seconds",
            "histogram",
            "Time that the transactions took that were done.",
            [({}, etcd.request_seconds)],
        ),
        Family(
            f"{start}semaphore_renewals_late_total",
            "counter",
            "Times that a refresh was not answered in time and another connection was taken.",
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
    """What is listed no more has no present."""
    return kind == "gauge" and (one.prefix, one.name) in (OTHERS, OTHER_RATES)


# ---------------------------------------------------------------- Prometheus


class Collector:
    """A collector for prometheus_client: each scrape takes a snapshot."""

    def __init__(self, namespace: str = "") -> None:
        self._namespace = namespace

    def collect(self) -> Iterator[Metric]:
        """The metrics now."""
        return map(to_prometheus, families(snapshot(), namespace=self._namespace))

    def describe(self) -> Iterator[Metric]:
        """The names, so that a registry refuses them twice."""
        return self.collect()


def register(registry: CollectorRegistry | None = None, *, namespace: str = "") -> Collector:
    """Have the metrics of this process served with those of your program.

    Args:
        registry: of prometheus_client; default: its own default registry.
        namespace: goes before each name, with an underscore.

    Returns:
        The collector, to ``unregister`` it.

    Raises:
        ModuleNotFoundError: prometheus_client is not installed; the message says how.
        ValueError: it was registered there already.
    """
    client = prometheus_client()
    collector = Collector(namespace)
    (registry or client.REGISTRY).register(collector)
    return collector


def prometheus_client() -> Any:
    """The module, or ModuleNotFoundError with what to do about it."""
    try:
        import prometheus_client as module
    except ModuleNotFoundError as error:
        if error.name != "prometheus_client":
            raise
        raise ModuleNotFoundError(
            f"metrics for Prometheus need the package prometheus-client: {INSTALL}",
            name=error.name,
        ) from None
    return module


def to_prometheus(family: Family) -> Metric:
    """A family in the terms of prometheus_client."""
    from prometheus_client.metrics_core import Metric

    base = family.name.removesuffix("_total") if family.kind == "counter" else family.name
    metric = Metric(base, family.help, family.kind)
    for name, labels, value in _samples(family):
        metric.add_sample(name, labels, value)
    return metric


def _samples(family: Family) -> Iterator[tuple[str, dict[str, str], float]]:
    """Each line of a family: name, labels, value."""
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
    """Families in Prometheus' text format, which node_exporter's textfile collector reads."""
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
    """Write metrics to a file, for a job that ends before anybody scrapes it.

    The file is replaced in one step, so that node_exporter's textfile collector never reads half
    of it; anybody may read it. It only reads names that end in ``.prom``.

    Args:
        path: of the file. Its directory must exist.
        of: what to write; default: all metrics of this process.
        namespace: goes before each name of the default.

    Raises:
        OSError: it cannot be written.
    """
    import tempfile  # here, since it loads much

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
