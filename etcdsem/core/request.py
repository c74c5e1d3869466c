"""What an acquire asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from etcdsem.core.keys import ORDINARY, Identity, Limit, Wants


class AcquireRequest(NamedTuple):
    """What an acquire asks for: a lease of `ttl` seconds, refreshed every `refresh` seconds."""

    ttl: int
    refresh: float
    identity: Identity
    on_wait: Callable[[], object] | None = None
    """Called once it is known that we are in the queue."""
    carried: int | None = None
    """The limit that the program was told; shown in etcd if it is not the one in force."""
    wants: Wants = ORDINARY
    """How many slots the lease shall hold, and who is passed meanwhile."""
    max_hold: float | None = None
    """Seconds after which the lease ends, counted from the grant."""
    rate: bool = False
    """It is for a start of a rate limit, see `rates`."""

    def asking(self, limit: Limit) -> Identity:
        """Who asks, and for what, as it is written into etcd."""
        return self.identity.carrying(self.carried, limit).wanting(self.wants)
