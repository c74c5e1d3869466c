"""Threads that acquire leases, and the outcome."""

from __future__ import annotations

import threading

from etcdsem import Lease, Semaphore
from tests.helpers.waiting import eventually


class Waiters:
    """Threads that wait for a semaphore, and the outcome."""

    def __init__(self, sem: Semaphore, count: int, timeout: float | None = 30.0) -> None:
        self.sem = sem
        self.granted: list[int] = []
        self.errors: list[BaseException] = []
        self.leases: list[Lease] = []
        self.threads = []
        for number in range(count):
            before = len(sem.waiters())
            thread = threading.Thread(target=self._wait, args=(number, timeout), daemon=True)
            thread.start()
            self.threads.append(thread)
            eventually(lambda before=before: len(sem.waiters()) > before)  # type: ignore[misc]

    def _wait(self, number: int, timeout: float | None) -> None:
        try:
            lease = self.sem.acquire_lease(timeout)
        except BaseException as error:
            self.errors.append(error)
            return
        if lease is not None:
            self.granted.append(number)
            self.leases.append(lease)

    def join(self) -> None:
        """Wait until all have ended."""
        for thread in self.threads:
            thread.join(20)
            assert not thread.is_alive()


class Asking:
    """A caller that acquires a lease in a separate thread."""

    def __init__(self, sem: Semaphore, **how: object) -> None:
        self.lease: Lease | None = None
        self.error: BaseException | None = None
        self.sem = sem
        self.how = how
        before = len(sem.waiters())
        self.thread = threading.Thread(target=self._ask, daemon=True)
        self.thread.start()
        eventually(lambda: not self.thread.is_alive() or len(sem.waiters()) > before)

    def _ask(self) -> None:
        try:
            self.lease = self.sem.acquire_lease(**self.how)  # type: ignore[arg-type]
        except BaseException as error:
            self.error = error

    @property
    def waits(self) -> bool:
        """Is it still undecided?"""
        return self.thread.is_alive()

    def get(self) -> Lease:
        """Wait for the lease."""
        self.thread.join(20)
        assert self.lease is not None, self.error
        return self.lease


def take(sem: Semaphore, weight: int = 1) -> Lease:
    """Acquire a lease without waiting."""
    lease = sem.acquire_lease(0, weight=weight)
    assert lease is not None
    return lease
