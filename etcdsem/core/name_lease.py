"""The etcd leases with which names expire, and how their users keep them.

1. The limit of a name that expires is attached to an etcd lease. Whoever uses the name refreshes
   that lease: while it holds or waits, and once after its last use. So a name leaves etcd when
   nobody has used it for the lease's TTL, and never before, as far as its users reach etcd.
2. A client knows nothing of the lease of a name that somebody else registered. It asks etcd how
   long it has left before it renews it: etcd answers the renewal of a lease that has expired only
   when the lease is gone, and until then holds up all other renewals on the stream.
3. What else lies under the name without a lease of its own (marks, records of permits) is put with
   the name's lease, and goes with it.
4. If it ends in use nevertheless (its users were cut off for that long), the slots stay: they have
   their own leases, and count as before once the name is registered again (`registration`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from etcdsem.core.commands import Failure, LeasesTimeToLive, Mailbox, Procedure, Wait, perform
from etcdsem.core.leases import RPC_TIMEOUT, margin

if TYPE_CHECKING:
    from etcdsem.core.semaphore import SemaphoreState
    from etcdsem.core.session import Session

MOST_BETWEEN = 60.0
"""Seconds between two refreshes, at most; a quarter of the TTL if that is less."""

PATIENCE = 5.0
"""Seconds after which a refresh, or a question to etcd, that was not answered is repeated."""

SOON = 2 * PATIENCE
"""Seconds that a lease must have left when a caller acquires, so that the heartbeat has time to
refresh it."""

ENDING = 1
"""Whole seconds before its end, as etcd counts them, from which a lease is not renewed any
more: see 2. If it ends in use then, its users register the name again."""


class NameLease:
    """The lease of one name, as one client sees it."""

    __slots__ = ("asked", "good_until", "id", "refreshed", "semaphore", "told", "ttl", "used")

    def __init__(self, semaphore: SemaphoreState, lease_id: int) -> None:
        self.semaphore = semaphore
        self.id = lease_id
        self.ttl = math.inf  # once known, what etcd granted
        self.good_until = -math.inf  # until then it has certainly not expired; -inf: unknown
        self.refreshed = -math.inf  # when the last answered refresh was sent
        self.used = -math.inf  # when this client last acquired from the name
        self.asked = -math.inf  # when etcd was last asked about it
        self.told: Mailbox | None = None  # notified of the next answer

    def known(self, sent: float, ttl: float, left: float) -> None:
        """Record that it had `left` seconds when a request was sent at `sent`."""
        self.ttl = ttl
        self.good_until = sent + left - margin(left)

    def renewed(self, ttl: float) -> None:
        """Record etcd's answer to a refresh; a `ttl` of 0 or less means that the lease is gone."""
        if ttl > 0:
            self.known(self.asked, ttl, ttl)
            self.refreshed = self.asked
        else:
            self.good_until = -math.inf
        if self.told is not None:
            self.told.put(None)

    def due(self) -> float:
        """When to refresh it; infinite if this client does not use the name."""
        limit = self.semaphore.limit
        if limit is None or limit.lease != self.id:
            return math.inf  # the name is gone, or does not expire any more
        in_use = bool(self.semaphore.grants or self.semaphore.waiters)
        if not in_use and self.used <= self.refreshed:
            return math.inf
        due = self.refreshed + min(self.ttl / 4, MOST_BETWEEN)
        return max(due, self.asked + PATIENCE) if self.asked > self.refreshed else due


class NameLeases:
    """The leases of all names that this client has seen, and that expire."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._leases: dict[int, NameLease] = {}
        self._asking = False
        session.leases.chores.append(self.refresh)

    def add(self, lease: NameLease) -> None:
        """Keep the name while this client uses it."""
        self._leases[lease.id] = lease
        self._session.leases.others[lease.id] = lease.renewed

    def remove(self, lease: NameLease) -> None:
        """Forget the lease."""
        self._leases.pop(lease.id, None)
        self._session.leases.others.pop(lease.id, None)

    def refresh(self, now: float) -> float:
        """Refresh the leases that are due. Returns when to look again."""
        again, unknown = math.inf, []
        for lease in list(self._leases.values()):
            due = lease.due()
            if due > now:
                again = min(again, due)
                continue
            again = min(again, now + PATIENCE)
            if now < lease.good_until:
                self._renew(lease)
            else:
                unknown.append(lease)
        if unknown and not self._asking:
            self._asking = True
            self._session.env.spawn(self._ask(unknown), "name leases")
        return again

    def _renew(self, lease: NameLease) -> None:
        lease.asked = self._session.env.now()
        self._session.env.renew(lease.id)

    def _ask(self, some: Sequence[NameLease]) -> Procedure[None]:
        """Ask how long these leases have left, and refresh those that have enough."""
        sent = self._session.env.now()
        for lease in some:
            lease.asked = sent
        try:
            ids = tuple(lease.id for lease in some)
            answers = yield from perform(LeasesTimeToLive(ids, RPC_TIMEOUT))
        except Failure:
            return  # they are asked about again
        finally:
            self._asking = False
        for lease, left in zip(some, answers, strict=True):
            if left is not None and left > ENDING:
                lease.known(sent, lease.ttl, left)
                self._renew(lease)


def secure(semaphore: SemaphoreState, lease: NameLease) -> Procedure[bool]:
    """Before a caller acquires: make sure that the name stays. A lease that is unknown, or has
    little time left, is refreshed now. False: it is gone, or too late for that.
    """
    env = semaphore.session.env
    sent = lease.used = env.now()
    if sent + min(SOON, lease.ttl / 2) < lease.good_until:
        return True
    left = yield from _time_left(lease.id)
    if left is None:
        return True  # etcd does not say; the heartbeat asks again
    if left <= ENDING:
        return False
    lease.known(sent, lease.ttl, left)
    box = lease.told = env.mailbox()
    lease.asked = env.now()
    env.renew(lease.id)
    yield from perform(Wait(box, env.now() + 1.0))
    return True


def has_ended(lease_id: int) -> Procedure[bool]:
    """Is the lease gone, as far as etcd says?"""
    left = yield from _time_left(lease_id)
    return left is not None and left < 0


def _time_left(lease_id: int) -> Procedure[float | None]:
    """The whole seconds that the lease has left, -1 if it is gone; None if etcd does not say."""
    try:
        (left,) = yield from perform(LeasesTimeToLive((lease_id,), RPC_TIMEOUT))
    except Failure:
        return None
    return left
