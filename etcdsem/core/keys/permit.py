"""The record of a permit, which shows until when a slot of a rate limit is taken if its etcd lease
ends too early.

1. etcd may end a live lease: a leader that was stopped and resumes revokes leases that others have
   renewed meanwhile. So a slot is free only if its key is gone *and* its record's time is over.
2. The record's time is judged by the clock of whoever takes the slot. A time in the future means
   that two clocks disagree; such a record is ignored, so that a wrong clock cannot block a slot for
   long.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from etcdsem.core.commands import KeyValue
from etcdsem.core.keys.records import dump, load_record
from etcdsem.core.keys.values import moment_of, text_of, timestamp
from etcdsem.model import Rate

DRIFT = 0.001
"""The fraction of a period that is added to it, for clocks that run at different rates..."""

GRAIN = 0.01
"""... and the seconds that are added, for what happens between a clock reading and the permit."""

SPENDING = 0.05
"""The fraction of a period within which a block of permits must be used up."""

LATE = 1.0
"""Seconds from the time in a permit's record within which the permit must be handed out."""

SKEW = 1.0
"""Seconds by which the time in a record may lie in the future."""


def need(period: float) -> float:
    """Seconds from a permit until its slot is given back."""
    return period * (1.0 + DRIFT) + GRAIN


def spending(rate: Rate) -> float:
    """Seconds from a grant within which the permits of its block must be used."""
    return SPENDING * rate.period if rate.block > 1 else 0.0


class PermitRecord(NamedTuple):
    """Who took a permit when, and for how long its slot stays taken."""

    client: str
    since: float
    """By the wall clock of its writer."""
    seconds: float

    def left(self, wall: float) -> float:
        """Seconds for which its slot must not be taken, by another wall clock; 0.0 if it is over
        or not credible.
        """
        return 0.0 if self.since > wall + SKEW else max(0.0, self.since + self.seconds - wall)


def write_permit(client: str, rate: Rate, wall: float) -> bytes:
    """The record of a permit, or of a block of permits."""
    seconds = round(LATE + spending(rate) + need(rate.period), 3)
    return dump({"client": client, "acquired": timestamp(wall), "seconds": seconds})


def read_permit(kv: KeyValue) -> PermitRecord | None:
    """The record in a key's value; None if it cannot be read, and then it counts for nothing."""
    fields = load_record(kv.value)
    since, seconds = moment_of(fields, "acquired"), fields.get("seconds")
    if since is None or isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return None
    if not 0 < seconds < math.inf:
        return None
    return PermitRecord(text_of(fields.get("client")), since.timestamp(), seconds)
