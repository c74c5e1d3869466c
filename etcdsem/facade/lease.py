"""What the two leases share: their properties, which need no request to etcd, and the release."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

from etcdsem.core.commands import Procedure
from etcdsem.core.grants import Grant
from etcdsem.core.keys import lease_hex
from etcdsem.core.release import release
from etcdsem.core.release_steps import ReleaseResult
from etcdsem.drivers.base import Driver
from etcdsem.errors import LeaseLost


class EventLike(Protocol):
    """A `threading.Event` or an `asyncio.Event`."""

    def is_set(self) -> bool: ...
    def set(self) -> None: ...


Owner = Literal["nobody", "caller", "block"]
OWNERS: tuple[Owner, ...] = ("nobody", "caller", "block")
"""Who releases a lease: nobody in particular after `acquire`, the caller of `acquire_lease`, or a
``with`` block. `Semaphore.release` takes them in this order."""


class Issuer(Protocol):
    """What a lease needs of the semaphore object that holds it."""

    on_lost: Callable[[Any], object] | None
    raise_on_loss: bool

    def _forget(self, lease: BaseLease) -> bool: ...
    def _owner_shown(self) -> str: ...


class BaseLease:
    """A lease as both libraries see it."""

    owner: Owner = "nobody"
    _package = "etcdsem"
    _event: EventLike | None = None

    def __init__(self, semaphore: Issuer, driver: Driver, grant: Grant) -> None:
        self._semaphore = semaphore
        self._driver = driver
        self._grant = grant
        self._max_hold = grant.lease.max_hold  # the etcd lease forgets it when it is given back
        grant.on_lost = self._on_lost
        if driver.helper is not None:
            driver.helper.hand_over(grant.lease)

    def __repr__(self) -> str:
        state = self._grant.state if self._here else "of the parent process"
        return f"<{self._package}.Lease of {self.name!r}, {self._slots_shown()}, {state}>"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError(
            "a lease cannot be copied or pickled: it belongs to the process that acquired it. Send "
            "the semaphore instead, and the fencing token to the service that checks it."
        )

    @property
    def lost(self) -> EventLike:
        """Set once the lease is lost."""
        raise NotImplementedError

    @property
    def _here(self) -> bool:
        return self._driver.here

    @property
    def _held(self) -> bool:
        """Whether this process must still give it back."""
        return self._grant.state == "held" and self._here

    @property
    def name(self) -> str:
        """The semaphore's name."""
        return self._grant.semaphore.name

    @property
    def slot(self) -> int:
        """Its slot, 0 to limit - 1. No two valid leases have the same."""
        return self._grant.slot

    @property
    def slots(self) -> tuple[int, ...]:
        """All slots that this lease holds, as many as its weight; `slot` is the first."""
        return self._grant.slots

    @property
    def weight(self) -> int:
        """The number of slots that it holds."""
        return len(self._grant.slots)

    def _slots_shown(self) -> str:
        if self.weight == 1:
            return f"slot {self.slot}"
        return f"slots {', '.join(map(str, self.slots))}"

    @property
    def fencing_token(self) -> int:
        """A number that grows with every grant of this semaphore (etcd's revision)."""
        return self._grant.token

    @property
    def id(self) -> str:
        """The ID of the etcd lease, in hex as ``etcdctl lease list`` prints it."""
        return lease_hex(self._grant.lease.id)

    @property
    def limit(self) -> int:
        """The limit when this lease was granted."""
        return self._grant.limit

    @property
    def ttl(self) -> float:
        """Seconds after the last refresh when etcd frees the slot."""
        return self._grant.lease.ttl

    @property
    def acquired_at(self) -> datetime:
        """When it was granted, by this machine's wall clock."""
        return datetime.fromtimestamp(self._grant.acquired_wall, UTC)

    @property
    def remaining(self) -> float:
        """Seconds until it counts as lost unless it is refreshed; 0 if it is not held."""
        if not self.valid:
            return 0.0
        return max(0.0, self._grant.lease.deadline - self._driver.now())

    @property
    def max_hold(self) -> float | None:
        """Maximum seconds from the grant to its end; None: no maximum."""
        max_hold = self._max_hold
        return None if max_hold == math.inf else max_hold

    @property
    def hold_remaining(self) -> float | None:
        """Seconds until `max_hold` ends it; None: no maximum."""
        if self.max_hold is None:
            return None
        grant = self._grant
        return max(0.0, grant.since + self._max_hold - self._driver.now()) if self._here else 0.0

    @property
    def valid(self) -> bool:
        """Whether it is held and not expired by the local clock. Needs no network."""
        return self._here and self._grant.valid(self._driver.now())

    @property
    def lost_reason(self) -> str:
        """Why it was lost; empty if it was not."""
        grant = self._grant
        if grant.state == "held" and self._here:
            return grant.lease.overrun(self._driver.now())
        return grant.lost_reason

    def check(self) -> None:
        """Raise LeaseLost unless the lease is valid."""
        if not self.valid:
            raise LeaseLost(self._describe_loss())

    def _take_back(self) -> None:
        if self._driver.helper is not None:
            self._driver.helper.take_back(self._grant.lease)

    def _releasing(self) -> Procedure[bool]:
        self._semaphore._forget(self)
        grant = self._grant
        self._take_back()
        known = grant.state == "lost"
        outcome = yield from release(grant)
        if grant.state != "lost":
            return outcome is ReleaseResult.RELEASED
        if not known:  # only the release has found out
            self._on_lost(grant)
        self._driver.log(
            logging.WARNING,
            "semaphore %s: %s not released, because its lease was lost before: %s",
            self.name,
            f"{self._slots_shown()} {'was' if self.weight == 1 else 'were'}",
            grant.lost_reason,
        )
        return False

    def _ending(self) -> Procedure[None]:
        """End a block that raised no exception."""
        lost = self._grant.state != "released" and not self.valid
        yield from self._releasing()
        lost = (
            lost
            or self._grant.state == "lost"
            or (self._event is not None and self._event.is_set())
        )
        if lost and self._semaphore.raise_on_loss:
            raise LeaseLost(self._describe_loss())

    def _on_lost(self, grant: Grant) -> None:
        self._take_back()
        self._driver.after(self.lost.set)  # before `on_lost`, which may check it
        on_lost = self._semaphore.on_lost
        if on_lost is not None:
            self._driver.call(lambda: on_lost(self), "on-lost")
        self._driver.log(
            logging.CRITICAL,
            "%s Another process may hold the slot now, so this process may exceed the limit.",
            self._describe_loss(),
        )

    def _describe_loss(self) -> str:
        grant = self._grant
        if not self._here:
            return f"semaphore {self.name!r}: the lease belongs to the parent process."
        if grant.state in ("released", "releasing"):
            return f"semaphore {self.name!r}: the lease of {self._slots_shown()} was released."
        reason = self.lost_reason or "its deadline has passed by the local clock"
        return (
            f"semaphore {self.name!r}: {self._semaphore._owner_shown()} lost the lease of "
            f"{self._slots_shown()} (fencing token {self.fencing_token}): {reason}."
        )
