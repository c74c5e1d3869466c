"""A semaphore object that several simulated threads share: `acquire` and `release`, no ``with``.

1. The bookkeeping is the library's own (`BaseSemaphore`): which leases an object has, and which one
   a `release` gives back.
2. A thread may be suspended between any two steps. So some releases begin a moment after the call.
3. A release gives back any lease of the object, not necessarily the caller's. At the end as many
   must have been given back as were taken.
"""

from __future__ import annotations

from typing import Any, cast

from etcdsem.core.commands import Procedure, Wait, perform
from etcdsem.core.grants import Grant
from etcdsem.drivers.base import Driver
from etcdsem.facade.lease import BaseLease
from etcdsem.facade.semaphore import BaseSemaphore
from tests.simulation.checks import Checker
from tests.simulation.client import SimClient


class _Flag:
    """The event of a lost lease."""

    def __init__(self) -> None:
        self._set = False

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True


class SharedLease(BaseLease):
    """A lease of a shared object."""

    def __init__(self, shared: SharedObject, grant: Grant) -> None:
        self._event = _Flag()
        self._checker = shared.checker
        super().__init__(shared, shared.engine, grant)

    def _releasing(self) -> Procedure[bool]:
        self._checker.ended(self._grant)  # nobody relies on it from now on
        return super()._releasing()

    def _on_lost(self, grant: Grant) -> None:
        pass  # the worker is told in another way


class SharedObject(BaseSemaphore[SharedLease]):
    """The object that the threads of one client share."""

    def __init__(self, client: SimClient, name: str, checker: Checker) -> None:
        settings: dict[str, Any] = dict.fromkeys(
            (
                "lease_timeout",
                "refresh_interval",
                "on_lost",
                "labels",
                "prefix",
                "owner",
                "rate",
                "linger",
                "max_waiting",
            )
        )
        super().__init__(None, name, raise_on_loss=False, max_hold=None, **settings)
        self.client = client
        self.checker = checker
        self.engine = cast("Driver", client)

    def take(self, grant: Grant) -> None:
        """Add a lease that `acquire` has returned to some thread."""
        self._list(grant, lambda one: SharedLease(self, one))

    def release(self) -> Procedure[bool | None]:
        """A thread calls `release`."""
        rng, box = self.client.world.rng, self.client.mailbox()
        if rng.random() < 0.3:
            try:
                yield from perform(Wait(box, self.client.now() + 0.01 * rng.random()))
            except BaseException:
                yield from self._releasing(self.engine)
                raise
        return (yield from self._releasing(self.engine))


__all__ = ["SharedObject"]
