"""One etcd lease, and until when its owner may rely on it.

1. A lease is valid until *the send time of the last answered renewal, plus the TTL, less a
   margin*, by the local clock. etcd starts counting when a renewal arrives, so it cannot end the
   lease sooner. After that moment the lease is lost, whatever etcd says; lost is final.
2. A holder may set itself a bound (max_hold). The deadline is never later than the bound, whatever
   is renewed. The bound belongs to the grant, so a lease that returns to the pool has none.
3. A state is one word. Only these transitions exist:

       spare -> busy        take_lease()
       busy  -> spare       give_back(), after a definite outcome only
       busy  -> lost        lose(): deadline passed, or etcd or a watch says so
       busy  -> retired     revoke_later(), retire(), leave()
       spare -> gone        deadline passed while idle
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from etcdsem.core.commands import Mailbox
from etcdsem.model import duration_text

RPC_TIMEOUT = 4.0
"""Seconds for one call: long enough for an election (1 s by default), short enough to try another
member before a lease of 15 s is lost."""

TICK = 0.5
"""Seconds between two checks of the leases while there are any."""

COMPLAIN_EVERY = 60.0
"""Seconds between two log records about errors of the heartbeat."""

State = Literal["spare", "busy", "lost", "retired", "gone"]


def margin(ttl: float) -> float:
    """Seconds before etcd's own deadline at which a lease counts as lost.

    1 % allows for clocks that run at different rates, and a tenth of a second for reacting.
    """
    return 0.1 + 0.01 * ttl


class TtlLease:
    """One etcd lease of this client."""

    __slots__ = (
        "asked",
        "bound",
        "deadline",
        "elsewhere",
        "id",
        "idle_since",
        "max_hold",
        "on_lost",
        "overdue",
        "paused",
        "refresh",
        "sent",
        "state",
        "told",
        "ttl",
        "wanted",
    )

    def __init__(self, lease_id: int, wanted: int, ttl: float, sent: float) -> None:
        self.id = lease_id
        self.wanted = wanted  # the TTL that was requested; the pool is sorted by it
        self.ttl = ttl  # the TTL that etcd granted, which counts
        self.sent = sent  # when the last answered grant or renewal was sent
        self.max_hold = math.inf  # seconds for which the present grant may be held
        self.bound = math.inf  # when max_hold ends
        self.deadline = sent + ttl - margin(ttl)  # and not later than the bound
        self.asked: float | None = None  # when the renewal in progress was sent
        self.refresh = ttl / 3
        self.state: State = "busy"
        self.idle_since = sent
        self.paused = False  # the user paused the refresh (tests)
        self.on_lost: Callable[[str], None] | None = None
        self.elsewhere: Callable[[], tuple[float, float] | None] | None = None
        """Set if a keeper process renews it too: returns when the last answered renewal was sent,
        and the TTL in the answer."""
        self.told: Mailbox | None = None  # notified of the next renewal
        self.overdue = False  # its deadline was reported as passed: lost is final

    def valid(self, now: float) -> bool:
        """May its owner rely on it now?"""
        if self.state != "busy":
            return False
        if now >= self.deadline:
            self.catch_up()
            self.overdue = now >= self.deadline
        return not self.overdue

    def renewed(self, sent: float, ttl: float) -> None:
        """Record the answer to a renewal that was sent at `sent`."""
        if sent >= self.sent:
            self.sent = sent
            self.ttl = ttl
            self.deadline = min(sent + ttl - margin(ttl), self.bound)

    def bind(self, now: float, max_hold: float) -> None:
        """Record that it was granted at `now` and may be held for `max_hold` seconds (may be
        infinite).
        """
        self.max_hold, self.bound = max_hold, now + max_hold
        self.deadline = min(self.sent + self.ttl - margin(self.ttl), self.bound)

    def overrun(self, now: float) -> str:
        """The reason if it ended because it was held for too long; else empty."""
        if now < self.bound or self.deadline < self.bound:
            return ""
        return f"held longer than its max_hold of {duration_text(self.max_hold)}"

    def catch_up(self) -> None:
        """Take over what a keeper process has renewed. etcd has answered those renewals, so the
        lease was alive all the time, however late we check.
        """
        seen = self.elsewhere() if self.elsewhere is not None and not self.overdue else None
        if seen is not None:
            self.renewed(*seen)
