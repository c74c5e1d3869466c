"""What ``etcdsem exporter`` serves: all that lies below a prefix, as etcd has it.

Without etcd it says ``etcdsem_up 0``, and nothing of the semaphores but what was counted. A rate
limit has metrics of its own. `prefix_mirror.py` says how etcd is asked.
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


def _is_paused(line: SemaphoreView, now: float) -> float:
    return line.limit is not None and line.limit.paused


def _is_unreadable(line: SemaphoreView, now: float) -> float:
    return line.limit is not None and line.limit.number is None


def _waiting(line: SemaphoreView, now: float) -> float:
    return len(line.waiting)


def _oldest_wait(line: SemaphoreView, now: float) -> float:
    return _oldest([one.since for one in list(line.waiting.values())], now)


def _oldest_hold(line: SemaphoreView, now: float) -> float:
    return _oldest([one.since for one in list(line.held.values())], now)


def _beyond(line: SemaphoreView, now: float) -> float | None:
    number = line.limit.number if line.limit else None
    return None if number is None else max(0, len(line.held) - number)


def _junk(line: SemaphoreView, now: float) -> float:
    return len(line.junk)


_SEMAPHORE_NOW: _Families = (
    (
        "max_leases",
        "Limit of the semaphore. Missing if what is stored is no number: then nothing is granted.",
        lambda line, now: line.limit.number if line.limit else None,
    ),
    (
        "limit_unreadable",
        "1 if what is stored as the limit is no number from 0 to 99999, else 0.",
        _is_unreadable,
    ),
    (
        "paused",
        "1 while an operator has paused it: then nothing is granted; else 0.",
        _is_paused,
    ),
    ("active_leases", "Leases that are held now.", lambda line, now: len(line.grants)),
    (
        "active_slots",
        "Slots that are held now: a lease of weight 3 holds 3. The limit bounds them.",
        lambda line, now: len(line.held),
    ),
    ("pending_leases", "How many wait in line now.", _waiting),
    (
        "next_wants_slots",
        "Slots that the first in line wants, its weight; 0 if nobody waits.",
        lambda line, now: line.next_wants,
    ),
    (
        "oldest_wait_seconds",
        "How long the one has waited who waits longest; 0 if nobody does.",
        _oldest_wait,
    ),
    (
        "oldest_hold_seconds",
        "How long the one has held who holds longest; 0 if nobody does.",
        _oldest_hold,
    ),
    (
        "overbooked_leases",
        "Slots held beyond the limit. The limit was lowered while they were held.",
        _beyond,
    ),
    (
        "limit_drift",
        "Holders and waiters whose program carries another limit than the one in force.",
        lambda line, now: line.drifting(),
    ),
    ("junk_keys", "Keys that etcdsem cannot have written; see etcdsem status.", _junk),
)

_SEMAPHORE_COUNTED: _Families = (
    ("acquire_total", "Leases granted.", lambda line, now: line.acquired),
    (
        "release_total",
        "Leases given back. Those that were lost while nobody waited look alike and are included.",
        lambda line, now: line.released,
    ),
    (
        "losses_total",
        "Leases that surely ended without being given back: by expiry, revocation or eviction.",
        lambda line, now: line.lost,
    ),
    (
        "overbooked_total",
        "Slots granted beyond the limit that was in force. There must be none, ever.",
        lambda line, now: line.overbooked,
    ),
)

_RATE_NOW: _Families = (
    (
        "max_starts",
        "Starts that are allowed in any window of the period. Missing if what is stored is no "
        "rate: then nothing starts.",
        lambda line, now: line.limit.rate.starts if line.limit and line.limit.rate else None,
    ),
    (
        "period_seconds",
        "The period.",
        lambda line, now: line.limit.rate.period if line.limit and line.limit.rate else None,
    ),
    (
        "block_starts",
        "How many starts a client takes at a time; 1: each by itself.",
        lambda line, now: line.limit.rate.block if line.limit and line.limit.rate else None,
    ),
    ("unreadable", "1 if what is stored is no rate, else 0.", _is_unreadable),
    ("paused", "1 while an operator has paused it: then nothing starts; else 0.", _is_paused),
    (
        "used_starts",
        "Starts of the running period, which count against the limit. A block counts as a whole.",
        lambda line, now: _in_starts(line, len(line.held)),
    ),
    ("pending_starts", "How many wait in line now (with blocks: clients).", _waiting),
    (
        "oldest_wait_seconds",
        "How long the one has waited who waits longest; 0 if nobody does.",
        _oldest_wait,
    ),
    (
        "overbooked_starts",
        "Starts of the running period beyond the limit, which was lowered meanwhile.",
        lambda line, now: _in_starts(line, _beyond(line, now)),
    ),
    ("junk_keys", "Keys that etcdsem cannot have written; see etcdsem status.", _junk),
)

_RATE_COUNTED: _Families = (
    (
        "starts_total",
        "Starts granted. A block counts as a whole, when it is granted.",
        lambda line, now: line.acquired,
    ),
    (
        "overbooked_total",
        "Starts granted beyond the limit that was in force. There must be none, ever.",
        lambda line, now: _in_starts(line, line.overbooked),
    ),
)


def _in_starts(line: SemaphoreView, slots: float | None) -> float | None:
    return None if slots is None else slots * (line.rate.block if line.rate else 1)


def _oldest(since: Sequence[float], now: float) -> float:
    return max(0.0, now - min(since)) if since else 0.0


class SemaphoreCollector:
    """A collector for prometheus_client."""

    def __init__(self, client: Client) -> None:
        self._mirror = PrefixMirror(client)

    def up(self) -> bool:
        """Does etcd answer, and is the copy complete?"""
        return self._mirror.refresh()

    def collect(self) -> Iterator[Metric]:
        """One scrape."""
        return map(to_prometheus, self.families())

    def describe(self) -> Iterator[Metric]:
        """Nothing: to describe is to ask etcd, which may be away when this is registered."""
        return iter(())

    def families(self) -> list[Family]:
        """All metrics now."""
        began = time.monotonic()
        up = self._mirror.refresh()
        seconds = time.monotonic() - began
        with self._mirror.semaphores() as (now, lines):
            semaphores = [line for line in lines if line.rate is None]
            rates = [line for line in lines if line.rate is not None]
            found = [
                *self._of("semaphore", "gauge", _SEMAPHORE_NOW, semaphores if up else [], now),
                *self._of("semaphore", "counter", _SEMAPHORE_COUNTED, semaphores, now),
                *self._of("rate_limit", "gauge", _RATE_NOW, rates if up else [], now),
                *self._of("rate_limit", "counter", _RATE_COUNTED, rates, now),
            ]
        return [*self._own(up, seconds, len(semaphores), len(rates)), *found]

    def _own(self, up: bool, seconds: float, semaphores: int, rates: int) -> list[Family]:
        """The metrics of the exporter itself."""
        prefix = self._mirror.prefix
        return [
            Family("etcdsem_up", "gauge", "1 if etcd answered this scrape, else 0.", [({}, up)]),
            Family(
                "etcdsem_scrape_duration_seconds",
                "gauge",
                "How long this scrape waited for etcd.",
                [({}, seconds)],
            ),
            Family(
                "etcdsem_full_reads_total",
                "counter",
                "Times that all keys were read: at the start, and after events were missed.",
                [({}, self._mirror.full_reads)],
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
        lines: Sequence[SemaphoreView],
        now: float,
    ) -> Iterator[Family]:
        """The metrics of semaphores, or of rate limits."""
        present = [(self._labels(line), line) for line in lines]
        for name, text, value in families:
            yield Family(
                f"etcdsem_{what}_{name}",
                kind,
                text,
                [
                    (labels, float(number))
                    for labels, line in present
                    if (number := value(line, now)) is not None
                ],
            )

    def _labels(self, line: SemaphoreView) -> dict[str, str]:
        return {"prefix": self._mirror.prefix, "name": line.name}
