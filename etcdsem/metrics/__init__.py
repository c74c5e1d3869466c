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

from etcdsem.metrics.data import (
    EtcdMetrics,
    Histogram,
    RateLimitMetrics,
    SemaphoreMetrics,
    Snapshot,
    snapshot,
)
from etcdsem.metrics.family import Family, families
from etcdsem.metrics.prometheus import Collector, register
from etcdsem.metrics.prometheus import prometheus_client as prometheus_client  # not in __all__:
from etcdsem.metrics.prometheus import to_prometheus as to_prometheus  # for `etcdsem exporter`
from etcdsem.metrics.text import textfile as textfile
from etcdsem.metrics.text import write_textfile

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
