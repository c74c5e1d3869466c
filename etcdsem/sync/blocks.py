"""How leases are acquired and released: one by one, and by ``with`` blocks.

An interruption (Ctrl-C, a signal handler that raises) may come at any byte code. Until a lease has
reached the caller, somebody here knows it and gives it back.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

from etcdsem.core.grants import Grant
from etcdsem.core.keys import ORDINARY, Demand
from etcdsem.facade import multi
from etcdsem.facade.decorators import Decorator
from etcdsem.facade.semaphore import BaseSemaphore
from etcdsem.model import Duration
from etcdsem.sync.bound import Bound
from etcdsem.sync.lease import Lease
from etcdsem.validation import timeout_seconds


class LeasingSemaphore(Decorator, Bound, BaseSemaphore[Lease]):
    """The part of a semaphore that acquires and releases."""

    def _acquired(self, timeout: Duration | None, demand: Demand) -> bool:
        taken: list[Lease] = []
        try:
            self._acquire(timeout, None, taken.append, demand)
            return bool(taken)
        except BaseException:
            for lease in taken:  # interrupted after the grant
                lease.release()
            raise

    def _acquired_lease(
        self, timeout: Duration | None, on_wait: Callable[[], object] | None, demand: Demand
    ) -> Lease | None:
        taken: list[Lease] = []

        def keep(lease: Lease) -> None:
            lease.owner = "caller"
            taken.append(lease)

        try:
            return self._acquire(timeout, on_wait, keep, demand)
        except BaseException:
            for lease in taken:  # interrupted after the grant
                lease.release()
            raise

    def _acquire(
        self,
        timeout: Duration | None,
        on_wait: Callable[[], object] | None,
        keep: Callable[[Lease], object],
        demand: Demand,
    ) -> Lease | None:
        """`keep` gets the lease in the step in which it is granted. If an interruption comes later,
        the caller gives it back.
        """
        limit = timeout_seconds(timeout)
        client = self.client
        driver = client._driver

        def lease_of(grant: Grant) -> Lease:
            lease = Lease(self, driver, grant)
            keep(lease)
            return lease

        state = client._state(self.name, self._prefix)
        acquiring = self._acquiring(state, limit, on_wait, lease_of, demand=demand)
        return client._run(acquiring, f"acquire {self.name!r}")

    def _release_oldest(self) -> bool:
        while True:
            lease = self._oldest()
            if not lease._driver.interrupted:
                done = lease._driver.run(self._releasing(lease._driver))
                if done is not None:
                    return done
            elif self._forget(lease):
                lease._driver.run_later(lease._releasing())
                return False

    def __enter__(self) -> Self:
        held = HoldBlock(self, None, ORDINARY)
        held.__enter__()
        self._blocks.enter(held, sys._getframe(1), threading.current_thread())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        held: HoldBlock = self._blocks.leave(sys._getframe(1), threading.current_thread())
        held.__exit__(kind, error, traceback)


class HoldBlock(Decorator, AbstractContextManager[Lease, None]):
    """The block of ``with semaphore.hold()``. A block that is dropped without having been left,
    because of an interruption, gives its lease back.
    """

    _lease: Lease | None = None

    def __init__(
        self, semaphore: LeasingSemaphore, timeout: Duration | None, demand: Demand
    ) -> None:
        self._semaphore = semaphore
        self._timeout = timeout
        self._wants = demand
        self._entered = False

    def _block(self) -> Self:
        return type(self)(self._semaphore, self._timeout, self._wants)

    def __enter__(self) -> Lease:
        if self._entered:
            raise RuntimeError("this block was already entered: call hold() for each")
        self._entered = True
        try:
            lease = self._semaphore._acquire(self._timeout, None, self._keep, self._wants)
            if lease is None:
                raise self._semaphore._no_lease(self._semaphore._state(), self._timeout)
            return lease
        except BaseException:
            self.__del__()  # interrupted after the grant
            raise

    def _keep(self, lease: Lease) -> None:
        lease.owner = "block"
        self._lease = lease

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._lease is not None:
            try:
                if kind is None:
                    self._lease._end()
                else:
                    self._lease.release()
            except BaseException:
                self.__del__()  # interrupted before it was given back
                raise

    def __del__(self) -> None:
        if self._lease is not None and self._lease._held:
            self._lease.release()


class HoldAllBlock(Decorator, AbstractContextManager[tuple[Lease, ...], None]):
    """The block of ``with hold_all(...)``; see `HoldBlock`."""

    _leases: tuple[Lease, ...] = ()

    def __init__(self, semaphores: tuple[LeasingSemaphore, ...], timeout: Duration | None) -> None:
        self._semaphores = semaphores
        self._timeout = timeout
        self._entered = False

    def _block(self) -> Self:
        return type(self)(self._semaphores, self._timeout)

    def __enter__(self) -> tuple[Lease, ...]:
        if self._entered:
            raise RuntimeError("this block was already entered: call hold_all() for each")
        self._entered = True
        try:
            taken = _acquire_all(self._semaphores, self._timeout, None, self._keep)
            if isinstance(taken, str):
                raise multi.not_all(taken, self._semaphores, self._timeout)
            return taken
        except BaseException:
            self.__del__()  # interrupted after the grant
            raise

    def _keep(self, leases: tuple[Lease, ...]) -> None:
        for lease in leases:
            lease.owner = "block"
        self._leases = leases

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._end(quietly=kind is not None)
        except BaseException:
            self.__del__()  # interrupted before they were given back
            raise

    def __del__(self) -> None:
        if any(lease._held for lease in self._leases):
            self._end(quietly=True)

    def _end(self, *, quietly: bool) -> None:
        leases = self._leases
        if not leases or not leases[0]._here:
            return
        if not leases[0]._driver.interrupted:
            leases[0]._driver.run(multi.ending(leases, quietly=quietly))
        else:
            for lease in leases:
                lease.release()


def leases_of_all(
    semaphores: tuple[LeasingSemaphore, ...],
    timeout: Duration | None,
    on_wait: Callable[[str], object] | None,
) -> tuple[Lease, ...] | None:
    """A lease of each; None if the timeout came first."""
    granted: list[Lease] = []
    try:
        taken = _acquire_all(semaphores, timeout, on_wait, granted.extend)
    except BaseException:
        for lease in granted:  # interrupted after the grant
            lease.release()
        raise
    return None if isinstance(taken, str) else taken


def _acquire_all(
    semaphores: tuple[LeasingSemaphore, ...],
    timeout: Duration | None,
    on_wait: Callable[[str], object] | None,
    keep: Callable[[tuple[Lease, ...]], object],
) -> tuple[Lease, ...] | str:
    parts = multi.parts_of(semaphores, LeasingSemaphore, Lease)
    limit = timeout_seconds(timeout)
    acquiring = multi.acquiring(parts, limit, on_wait, keep)
    return semaphores[0].client._run(acquiring, f"acquire {multi.named(semaphores)}")


__all__ = ["HoldAllBlock", "HoldBlock", "LeasingSemaphore", "leases_of_all"]
