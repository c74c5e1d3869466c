"""The parameters of an acquire."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from etcdsem.core.keys import ORDINARY, Demand, Identity, Limit


class AcquireRequest(NamedTuple):
    """The parameters of an acquire: a lease of `ttl` seconds, refreshed every `refresh` seconds."""

    ttl: int
    refresh: float
    identity: Identity
    on_wait: Callable[[], object] | None = None
    """Called once the caller is in the queue."""
    carried: int | None = None
    """The limit that the program carries; stored in its record if it is not the one in force."""
    demand: Demand = ORDINARY
    """How many slots the lease must hold, and its place in the queue."""
    max_hold: float | None = None
    """Seconds after the grant at which the lease ends."""
    linger: float = 0.0
    """Seconds for which the slot may stay with this client after its release."""
    rate: bool = False
    """True for a start of a rate limit; see `rates`."""
    max_waiting: int | None = None
    """How many callers may wait, this one included; None: any number. It is refused beyond."""

    def asking(self, limit: Limit) -> Identity:
        """The identity and requirements as they are written to etcd."""
        return self.identity.carrying(self.carried, limit).demanding(self.demand)
