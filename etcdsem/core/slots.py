"""Which slots to try, and the transactions that several callers of this client share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from etcdsem.core.batching import PASSED_AT_MOST, Batch, Group, deal
from etcdsem.core.commands import TxnReply
from etcdsem.core.decisions import candidates, light, without_holders
from etcdsem.core.keys import Limit
from etcdsem.core.transactions import (
    Gave,
    Held,
    HeldSlots,
    Look,
    Take,
    batch,
    pass_all,
    read_batch,
    read_pass_all,
)

if TYPE_CHECKING:
    from etcdsem.core.semaphore import SemaphoreState

RECENT = 256
"""How many recently given back slots are remembered."""

_NO_LIMIT = Limit(0, 0, registered=False, text="")
"""Used if the semaphore was closed in the meantime: nothing is taken or handed over."""


class Slots:
    """The slots of one semaphore."""

    def __init__(self, semaphore: SemaphoreState) -> None:
        self._semaphore = semaphore
        self._recent: dict[int, None] = {}  # given back lately and likely free, oldest first
        self.group = Group(self._batch)  # callers that take or give back while the queue is empty
        # Hand-overs run one after the other, else they would try the same waiters.
        self.passing: Group[HeldSlots, bool | Look] = Group(
            self._pass_all, lanes=1, most=PASSED_AT_MOST
        )

    def freed(self, slot: int) -> None:
        """Record that this client has given the slot back; it is tried first next time."""
        self._recent.pop(slot, None)
        self._recent[slot] = None
        if len(self._recent) > RECENT:
            del self._recent[next(iter(self._recent))]

    def taken(self, slot: int) -> None:
        """Record that the slot is held."""
        self._recent.pop(slot, None)

    def candidates(self, limit: Limit) -> list[int]:
        """The slots to try now. A caller consumes the slot given back last; the next caller does
        not get it.
        """
        held = self._semaphore.grants.by_slot
        favourite = self._recent.popitem()[0] if self._recent else None
        alone = favourite is not None and not self.group.busy and 4 * len(held) <= limit.room
        few = alone or self._semaphore.queue.contended
        return candidates(limit, favourite, self._semaphore.session.env.random(), held, few=few)

    @property
    def may_share(self) -> bool:
        """Is it worthwhile to share a transaction with other callers of this client?"""
        return self.group.busy and not self._semaphore.queue.contended

    def _batch(self, parts: Sequence[Take | HeldSlots]) -> Batch[Held | Gave]:
        """One transaction for several callers that take or give back."""
        semaphore = self._semaphore
        env, limit = semaphore.session.env, semaphore.limit or _NO_LIMIT
        hands = deal(parts, limit, reversed(self._recent), semaphore.grants.by_slot, env.random())
        for hand in hands:
            for slot in hand:
                self._recent.pop(slot, None)

        def read(reply: TxnReply) -> Sequence[Held | Gave | None]:
            semaphore.queue.set_contended(not reply.succeeded)
            return read_batch(reply, parts, hands)

        return batch(semaphore.keys, limit, parts, hands, env.wall()), read

    def _pass_all(self, mines: Sequence[HeldSlots]) -> Batch[bool | Look]:
        """One transaction for several callers that hand over to waiters."""
        semaphore, queue = self._semaphore, self._semaphore.queue
        waiters, until = light(without_holders(queue.waiters, mines), queue.until)
        limit = semaphore.limit or _NO_LIMIT

        def read(reply: TxnReply) -> Sequence[bool | Look | None]:
            came_to = read_pass_all(semaphore.keys, reply, limit, mines, waiters)
            if isinstance(came_to, Look):
                return [came_to] * len(mines)
            queue.served(came_to.served)
            for mine, waiter, done in zip(mines, came_to.waiters, came_to.done, strict=False):
                if done:
                    semaphore.watches.handed_over(waiter, mine.slots, reply.revision)
            if came_to.line is not None:
                queue.learn(*came_to.line)
            if came_to.cleared:
                queue.set_contended(False)
            return [True if done else None for done in came_to.done]

        wall = semaphore.session.env.wall()
        return pass_all(semaphore.keys, limit, mines, waiters, until, wall), read
