"""`Lease`: what a thread gets for a slot."""

from __future__ import annotations

import threading

from etcdsem.drivers.threads import ThreadDriver
from etcdsem.facade.lease import BaseLease


class Lease(BaseLease):
    """One or several slots of a semaphore, held by this process.

    It is refreshed in the background until it is released or lost. Lost is final.
    """

    _driver: ThreadDriver
    _event: threading.Event | None = None

    @property
    def lost(self) -> threading.Event:
        """Set once the lease is lost (expired, revoked, evicted, or the semaphore was closed)."""
        if self._event is not None:
            return self._event
        # Few programs look at it, and an event costs more than the rest of a lease.
        event: threading.Event = self.__dict__.setdefault("_event", threading.Event())
        return event  # of several threads that come here at once, all get the same

    def release(self) -> bool:
        """Give it back.

        Returns:
            True if etcd confirmed it. False if the lease was lost or etcd did not. False too in a
            finalizer or signal handler that interrupts etcdsem in this thread: then another thread
            gives it back a moment later.
        """
        if not self._here:
            return False
        if not self._driver.interrupted:
            return self._driver.run(self._releasing())
        self._semaphore._forget(self)
        self._driver.run_later(self._releasing())
        return False

    def _end(self) -> None:
        if not self._here:
            return
        if self._driver.interrupted:
            self.release()
        else:
            self._driver.run(self._ending())


__all__ = ["Lease"]
