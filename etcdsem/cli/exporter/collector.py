"""The metrics of ``etcdsem exporter``: the state of all semaphores below a prefix in etcd.

Without etcd they are ``etcdsem_up 0`` and the counters, but no gauges of semaphores. Rate limits
have metrics of their own. `prefix_mirror.py` describes how etcd is read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

from etcdsem.metrics import Family, to_prometheus
from etcdsem.prefix_mirror import PrefixMirror, SemaphoreView

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from etcdsem import Client

Value = Callable[[SemaphoreView, float], float | None]

_Families: TypeAlias = tuple[tuple[str, str, Value], ...]


def _is_paused(view: SemaphoreView, now: float) -> float:
    return view.limit is not None and view.limit.paused


def _paused_until(view: SemaphoreView, now: float) -> float | None:
    pause = view.limit.pause if view.limit is not None else None
    return pause.until.timestamp() if pause is not None and pause.until is not None else None


def _is_unreadable(view: SemaphoreView, now: float) -> float:
    return view.limit is not None and view.limit.number is None


def _is_overridden(view: SemaphoreView, now: float) -> float | None:
    if view.limit is None or view.applied is None:
        return None
    return view.limit.plain != view.applied


def _waiting(view: SemaphoreView, now: float) -> float:
    return len(view.waiting)


def _oldest_wait(view: SemaphoreView, now: float) -> float:
    return _oldest([one.since for one in list(view.waiting.values())], now)


def _oldest_hold(view: SemaphoreView, now: float) -> float:
    return _oldest([one.since for one in list(view.held.values())], now)


def _beyond(view: SemaphoreView, now: float) -> float | None:
    number = view.limit.number if view.limit else None
    return None if number is None else max(0, len(view.held) - number)


def _unrecognized(view: SemaphoreView, now: float) -> float:
    return len(view.junk)


_UNTIL = "Unix time at which a pause ends by itself. Missing if it is not paused, or until resumed."

_SEMAPHORE_NOW: _Families = (
    (
        "max_leases",
        "Limit of the semaphore. Missing if the stored value is not a number: then no lease is "
        "granted.",
        lambda view, now: view.limit.number if view.limit else None,
    ),
    (
        "limit_unreadable",
        "1 if the stored limit is not a number from 0 to 99999, else 0.",
        _is_unreadable,
    ),
    (
        "paused",
        "1 while it is paused and no lease is granted, else 0.",
        _is_paused,
    ),
    (
        "limit_overridden",
        "1 if the limit was changed since etcdsem apply set it, else 0. Missing if it never did.",
        _is_overridden,
    ),
    ("paused_until_timestamp_seconds", _UNTIL, _paused_until),
    ("active_leases", "Leases currently held.", lambda view, now: len(view.grants)),
    (
        "active_slots",
        "Slots currently held; a lease of weight 3 holds 3. The limit applies to slots.",
        lambda view, now: len(view.held),
    ),
    ("pending_leases", "Waiters currently in the queue.", _waiting),
    (
        "next_wants_slots",
        "Slots that the first waiter wants (its weight); 0 without waiters.",
        lambda view, now: view.next_wants,
    ),
    (
        "oldest_wait_seconds",
        "Longest time that a current waiter has waited; 0 without waiters.",
        _oldest_wait,
    ),
    (
        "oldest_hold_seconds",
        "Longest time that a current holder has held its lease; 0 without holders.",
        _oldest_hold,
    ),
    (
        "overbooked_leases",
        "Slots held beyond the limit, because it was lowered while they were held.",
        _beyond,
    ),
    (
        "limit_drift",
        "Holders and waiters whose program specifies a limit other than the one in force.",
        lambda view, now: view.drifting(),
    ),
    ("junk_keys", "Unrecognized keys; see etcdsem status.", _unrecognized),
)

_SEMAPHORE_COUNTED: _Families = (
    ("acquire_total", "Leases granted.", lambda view, now: view.acquired),
    (
        "release_total",
        "Leases released. Includes leases lost while nobody waited, which look the same in etcd.",
        lambda view, now: view.released,
    ),
    (
        "losses_total",
        "Leases known to have ended without a release: by expiry, revocation or eviction.",
        lambda view, now: view.lost,
    ),
    (
        "overbooked_total",
        "Slots granted beyond the limit in force. Must always be 0.",
        lambda view, now: view.overbooked,
    ),
)

_RATE_NOW: _Families = (
    (
        "max_starts",
        "Permits granted at most in any window of one period. Missing if the stored value is not "
        "a rate: then nothing is granted.",
        lambda view, now: view.limit.rate.starts if view.limit and view.limit.rate else None,
    ),
    (
        "period_seconds",
        "Period of the rate limit.",
        lambda view, now: view.limit.rate.period if view.limit and view.limit.rate else None,
    ),
    (
        "block_starts",
        "Permits that a client takes at a time; 1 without blocks.",
        lambda view, now: view.limit.rate.block if view.limit and view.limit.rate else None,
    ),
    ("unreadable", "1 if the stored value is not a rate, else 0.", _is_unreadable),
    ("paused", "1 while it is paused and nothing is granted, else 0.", _is_paused),
    ("paused_until_timestamp_seconds", _UNTIL, _paused_until),
    (
        "overridden",
        "1 if the rate was changed since etcdsem apply set it, else 0. Missing if it never did.",
        _is_overridden,
    ),
    (
        "used_starts",
        "Permits in the current period, which count against the limit. A block counts as a whole.",
        lambda view, now: _in_starts(view, len(view.held)),
    ),
    ("pending_starts", "Waiters currently in the queue (with blocks: clients).", _waiting),
    (
        "oldest_wait_seconds",
        "Longest time that a current waiter has waited; 0 without waiters.",
        _oldest_wait,
    ),
    (
        "overbooked_starts",
        "Permits in the current period beyond the limit, because it was lowered meanwhile.",
        lambda view, now: _in_starts(view, _beyond(view, now)),
    ),
    ("junk_keys", "Unrecognized keys; see etcdsem status.", _unrecognized),
)

_RATE_COUNTED: _Families = (
    (
        "starts_total",
        "Permits granted. A block counts as a whole, when it is granted.",
        lambda view, now: view.acquired,
    ),
    (
        "overbooked_total",
        "Permits granted beyond the limit in force. Must always be 0.",
        lambda view, now: _in_starts(view, view.overbooked),
    ),
)


def _in_starts(view: SemaphoreView, slots: float | None) -> float | None:
    return None if slots is None else slots * (view.rate.block if view.rate else 1)


def _oldest(since: Sequence[float], now: float) -> float:
    return max(0.0, now - min(since)) if since else 0.0


class SemaphoreCollector:
    """A collector for prometheus_client."""

    def __init__(self, client: Client) -> None:
        self.mirror = PrefixMirror(client)

    def up(self) -> bool:
        """Whether etcd answers and the local copy is complete."""
        return self.mirror.refresh()

    def collect(self) -> Iterator[Metric]:
        """Return the metrics for one scrape."""
        return map(to_prometheus, self.families())

    def describe(self) -> Iterator[Metric]:
        """Return nothing: describing would ask etcd, which may be unreachable at registration."""
        return iter(())

    def families(self) -> list[Family]:
        """Return the current metrics as plain data."""
        began = time.monotonic()
        up = self.mirror.refresh()
        seconds = time.monotonic() - began
        with self.mirror.semaphores() as (now, views):
            semaphores = [view for view in views if view.rate is None]
            rates = [view for view in views if view.rate is not None]
            found = [
                *self._of("semaphore", "gauge", _SEMAPHORE_NOW, semaphores if up else [], now),
                *self._of("semaphore", "counter", _SEMAPHORE_COUNTED, semaphores, now),
                *self._of("rate_limit", "gauge", _RATE_NOW, rates if up else [], now),
                *self._of("rate_limit", "counter", _RATE_COUNTED, rates, now),
            ]
        return [*self._own(up, seconds, len(semaphores), len(rates)), *found]

    def _own(self, up: bool, seconds: float, semaphores: int, rates: int) -> list[Family]:
        """The metrics of the exporter itself."""
        prefix = self.mirror.prefix
        return [
            Family("etcdsem_up", "gauge", "1 if etcd answered this scrape, else 0.", [({}, up)]),
            Family(
                "etcdsem_scrape_duration_seconds",
                "gauge",
                "Time this scrape waited for etcd.",
                [({}, seconds)],
            ),
            Family(
                "etcdsem_full_reads_total",
                "counter",
                "Full reads of all keys: at the start, and after events were missed.",
                [({}, self.mirror.full_reads)],
            ),
            Family(
                "etcdsem_semaphores",
                "gauge",
                "Semaphores below the prefix.",
                [({"prefix": prefix}, semaphores)] if up else [],
            ),
            Family(
                "etcdsem_rate_limits",
                "gauge",
                "Rate limits below the prefix.",
                [({"prefix": prefix}, rates)] if up else [],
            ),
        ]

    def _of(
        self,
        what: str,
        kind: Literal["gauge", "counter"],
        families: _Families,
        views: Sequence[SemaphoreView],
        now: float,
    ) -> Iterator[Family]:
        """Return the metrics of semaphores or of rate limits."""
        present = [(self._labels(view), view) for view in views]
        for name, text, value in families:
            yield Family(
                f"etcdsem_{what}_{name}",
                kind,
                text,
                [
                    (labels, float(number))
                    for labels, view in present
                    if (number := value(view, now)) is not None
                ],
            )

    def _labels(self, view: SemaphoreView) -> dict[str, str]:
        return {"prefix": self.mirror.prefix, "name": view.name}
