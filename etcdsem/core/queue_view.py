"""What this client knows of a semaphore's queue. Hints only: transactions check them."""

from __future__ import annotations

from etcdsem.core.keys import Queued
from etcdsem.core.transactions import MAX_LISTED, Look


class QueueView:
    """The queue, as far as it is known."""

    def __init__(self) -> None:
        self.contended = False  # is anybody in the queue?
        self.waiters: tuple[Queued, ...] = ()  # all who came up to `until`, in order
        self.until = 0  # a revision; 0: nothing is known
        self._served_until = 0  # who came up to this revision has left the queue

    def set_contended(self, contended: bool) -> None:
        """A transaction has told whether anybody is in the queue."""
        self.contended = contended

    def learn(self, waiters: tuple[Queued, ...], until: int) -> None:
        """Who waits, of all who came up to a revision. A later revision is more recent news, since
        everybody joins at the end. The list may name some who were served meanwhile: threads read
        their messages and replies in any order.
        """
        if until < self.until:
            return
        if len(waiters) > MAX_LISTED:
            waiters = waiters[:MAX_LISTED]
            until = waiters[-1].created
        self.waiters, self.until = waiters, until
        self.served(self._served_until)

    def saw(self, seen: Look) -> None:
        """The same from a look. With priorities in use nothing is remembered, since a newcomer may
        take any place.
        """
        if seen.priorities:
            self.forget()
        else:
            self.learn(seen.queue, seen.until)

    def forget(self) -> None:
        """What is known is of no use any more."""
        self.waiters, self.until = (), 0

    def served(self, created: int) -> None:
        """The waiter that joined at this revision was served, and so were all before it."""
        self._served_until = max(self._served_until, created)
        gone = 0
        for queued in self.waiters:
            if queued.created > self._served_until:
                break
            gone += 1
        if gone:
            self.waiters = self.waiters[gone:]
