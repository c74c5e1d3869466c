"""Starts of rate limits, as reported to the referee, and their judgement.

1. A worker reports each start at once. The referee stamps it by its own clock, `told`: it was
   handed out before that. And it was handed out no earlier than `low`: when its caller asked, plus
   the seconds that `acquire` says it has waited. All are CLOCK_BOOTTIME, which all processes of a
   machine share.
2. So if for more than `limit` starts the last `told` comes less than a period after the first
   `low`, they were certainly handed out within one period (as in tests/rates/use.py). There is no
   margin and no false alarm: a worker that was suspended between its start and its report is late,
   which excuses it. The median delay of the reports is printed: slots that are given back early by
   less than that go unnoticed.
"""

from __future__ import annotations

import bisect
import json
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from etcdsem.model import Rate
from tests.helpers.history import Change
from tests.rates.use import Span, most_in_a_window


class Start(NamedTuple):
    """A start that was handed out."""

    name: str
    who: str
    client: str
    """The client ID in etcd's keys; empty if unknown."""
    low: float
    told: float

    def __str__(self) -> str:
        return f"{self.who} {self.low:.3f}"


def too_many(starts: Sequence[Start], rate: Rate) -> list[list[Start]]:
    """Each set of more starts than the limit that were handed out within one period."""
    ordered = sorted(starts, key=lambda one: one.low)
    lows = [one.low for one in ordered]
    found: list[list[Start]] = []
    for place, first in enumerate(ordered):
        until = first.low + rate.period
        end = bisect.bisect_left(lows, until)
        within = [one for one in ordered[place:end] if one.told < until]
        if len(within) > rate.starts:
            found.append(within)
    return found


def most(starts: Sequence[Start], rate: Rate) -> int:
    """The largest number that was certainly in one window of the period."""
    return most_in_a_window([Span(one.low, one.told) for one in starts], rate.period)


def blur(starts: Sequence[Start]) -> int:
    """The median delay of the reports in microseconds."""
    return round(1e6 * statistics.median(one.told - one.low for one in starts)) if starts else 0


def unrecorded(starts: Sequence[Start], rate: Rate, changes: Sequence[Change]) -> list[str]:
    """Clients that have reported more starts than etcd's history has granted to them."""
    granted: Counter[str] = Counter()
    for change in changes:
        if change.kind == "put" and "/leases/" in change.key:
            granted[_client(change)] += rate.block
    told = Counter(one.client for one in starts if one.client)
    wrong = [
        f"client {client} told of {number} starts, and was granted {granted[client]}"
        for client, number in told.items()
        if number > granted[client]
    ]
    if len(starts) > granted.total():
        wrong.append(f"{len(starts)} starts were told of, and {granted.total()} granted")
    return wrong


def _client(change: Change) -> str:
    client: str = json.loads(change.value)["client"]
    return client
