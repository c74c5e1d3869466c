"""Metrics for prometheus_client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from etcdsem.metrics.data import snapshot
from etcdsem.metrics.family import Family, families, series

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import CollectorRegistry

INSTALL = "pip install 'etcdsem[metrics]'"


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
    for name, labels, value in series(family):
        metric.add_sample(name, labels, value)
    return metric
