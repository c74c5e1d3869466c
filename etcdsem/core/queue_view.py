"""What this client knows of a semaphore's queue. These are hints; transactions check them."""

from __future__ import annotations

from etcdsem.core.keys import Queued
from etcdsem.core.transactions import MAX_LISTED, Look


class QueueView:
    """The known part of the queue."""

    def __init__(self) -> None:
        self.contended = False  # is anybody in the queue?
        self.waiters: tuple[Queued, ...] = ()  # all that joined up to `until`, in order
        self.until = 0  # a revision; 0: nothing is known
        self.expected: Queued | None = None  # who probably joins next, while nobody else does
        self._passed_to = b""
        self._served_until = 0  # waiters that joined up to this revision have left the queue

    def set_contended(self, contended: bool) -> None:
        """Record whether anybody is in the queue, as a transaction has shown."""
        self.contended = contended

    def learn(self, waiters: tuple[Queued, ...], until: int) -> None:
        """Record all waiters that joined up to a revision. A later revision is more recent news,
        since everybody joins at the end. The list may name waiters that were served in the
        meantime: threads read their messages and replies in any order.
        """
        if until < self.until:
            return
        if len(waiters) > MAX_LISTED:
            waiters = waiters[:MAX_LISTED]
            until = waiters[-1].created
        self.waiters, self.until = waiters, until
        self.served(self._served_until)

    def saw(self, seen: Look) -> None:
        """Learn from a look. While priorities are in use nothing is remembered, since a newcomer
        may take any place.
        """
        if seen.priorities:
            self.forget()
        else:
            self.learn(seen.queue, seen.until)

    def forget(self) -> None:
        """Forget what is known."""
        self.waiters, self.until = (), 0

    def passed_to(self, waiter: Queued) -> None:
        """Record who was handed a slot. If it is the same one as the last time, two programs take
        turns: then the next release can hand over to it without asking who waits.
        """
        again = waiter.who == self._passed_to and not waiter.extras
        self.expect(waiter if again else None)
        self._passed_to = waiter.who

    def expect(self, waiter: Queued | None) -> None:
        """Record who probably joins next; None: unknown."""
        self.expected = waiter

    def served(self, created: int) -> None:
        """Record that the waiter that joined at this revision and all before it were served."""
        self._served_until = max(self._served_until, created)
        gone = 0
        for queued in self.waiters:
            if queued.created > self._served_until:
                break
            gone += 1
        if gone:
            self.waiters = self.waiters[gone:]
