"""What one client knows of itself, and its semaphores."""

from __future__ import annotations

import math

from etcdsem.core.commands import Env
from etcdsem.core.grants import Grant
from etcdsem.core.keys import Identity, lease_hex
from etcdsem.core.lease_manager import LeaseManager
from etcdsem.core.leases import TtlLease
from etcdsem.core.name_lease import NameLeases
from etcdsem.core.semaphore import SemaphoreState

FIRST_CONTACT = 10.0
"""Seconds for which a client that has never reached etcd tries to reach it."""

PATIENCE = 60.0
"""Seconds for which an acquire without a timeout retries while etcd is unavailable. Until this
client has reached etcd, `FIRST_CONTACT` applies instead."""

REREAD = (5.0, 15.0)
"""Seconds between two rereads of what watches should have reported: several etcd releases lose
delete events. Drawn at random each time, so that clients do not reread in step."""

FORGET_AFTER = 60.0
"""Seconds after which an unused semaphore may be forgotten if there are many."""

MOST_REMEMBERED = 1000
"""How many semaphores are always remembered."""


class Session:
    """The core's state for one client."""

    def __init__(self, env: Env, client: str) -> None:
        self.env = env
        self.client = client
        self._plain = Identity.of(client, None, {})  # the identity of most callers
        self.leases = LeaseManager(env)
        self.stats = self.leases.stats
        self.semaphores: dict[tuple[str, str], SemaphoreState] = {}
        self.losses = 0
        self.closed = False
        self.reread = REREAD
        self.first_contact = FIRST_CONTACT
        self.patience = PATIENCE
        self.leases.chores.append(self._tidy)
        self.names = NameLeases(self)

    def semaphore(self, prefix: str, name: str) -> SemaphoreState:
        """The state of a semaphore, created on first use."""
        key = (prefix, name)
        state = self.semaphores.get(key)
        if state is None:  # no lock: if several threads create it, all get the same one
            state = self.semaphores.setdefault(key, SemaphoreState(self, prefix, name))
        state.asked()
        return state

    @property
    def reached(self) -> bool:
        """Has etcd ever answered this client?"""
        return self.leases.last_contact > -math.inf

    @property
    def silence(self) -> float:
        """Seconds since etcd last answered this client; infinite if it never did."""
        return self.env.now() - self.leases.last_contact

    def next_reread(self) -> float:
        """When to reread what watches may have missed."""
        low, high = self.reread
        return self.env.now() + low + (high - low) * self.env.random()

    def grace(self, now: float) -> float:
        """Seconds that a request may last: unbounded until the client is closed."""
        return max(0.1, self.leases.until - now)

    def who(self, lease: TtlLease) -> bytes:
        """The part of a key that names a waiter or holder with this lease."""
        return f"{self.client}/{lease_hex(lease.id)}".encode()

    def identity(
        self, owner: str | None, labels: dict[str, str], max_hold: float | None = None
    ) -> Identity:
        """The identity that is stored for a caller."""
        if not owner and not labels and max_hold is None:
            return self._plain
        return Identity.of(self.client, owner, labels, max_hold=max_hold)

    def wake_heartbeat(self) -> None:
        """Wake the heartbeat, which may have something to do before it would wake by itself."""
        self.leases.box.put(None)

    def grants(self) -> list[Grant]:
        """All grants that are held."""
        return [grant for semaphore in self.semaphores.values() for grant in semaphore.grants]

    def _tidy(self, now: float) -> float:
        due = math.inf
        for key, semaphore in list(self.semaphores.items()):
            next_due = semaphore.tidy(now)
            due = min(due, next_due)
            idle = next_due == math.inf and semaphore.idle(now, FORGET_AFTER)
            idle = idle and (semaphore.name_lease is None or semaphore.name_lease.due() == math.inf)
            if idle and len(self.semaphores) > MOST_REMEMBERED:
                del self.semaphores[key]  # for programs that generate names as they run
                semaphore.expires_with(None)
                self.stats.forget(key)
        return due
