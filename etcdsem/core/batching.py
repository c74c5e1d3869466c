"""Group commit: threads or tasks of one client that take or give back together share transactions.

1. A caller that finds fewer than `LANES` requests in progress sends its own as usual, so a single
   caller pays nothing. Otherwise it joins the callers that wait. Nobody waits for a timer: when a
   request has returned, the first waiting caller sends for all of them.
2. While the queue is empty, callers that take and callers that give back are joined. The slots of
   such a batch are all different, so each part succeeds or fails by itself, and a batch, like each
   of its parts, is right whenever it lands. It does nothing while anybody is in the queue; then
   callers that hand over are joined instead (`transactions.pass_all`).
3. A caller that got nothing continues as if there had been no batch. So a batch decides nothing
   about being full, closed, or queued.
4. Each attempt has its own lease, as everywhere: if a batch's outcome is unknown, it is unknown for
   each part. A dead lease fails the whole batch definitely; then each caller continues alone.
5. Grants of one batch have the same token, and different slots.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Sequence
from enum import Enum
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar, cast

from etcdsem.core.commands import (
    Failure,
    LeaseNotFound,
    Mailbox,
    OutcomeUnknown,
    Procedure,
    Refused,
    Txn,
    TxnReply,
    Wait,
    perform,
)
from etcdsem.core.decisions import spread
from etcdsem.core.keys import Limit
from etcdsem.core.transactions import HeldSlots, Take

LANES = 2
"""Requests of a client to one semaphore that may be in progress before others are gathered."""

AT_MOST = 64
"""Maximum number of parts in a batch: etcd allows 128 operations in a transaction, and counts a
nested one together with those around it.
"""

PASSED_AT_MOST = 32
"""The same for hand-overs: each may delete two keys, one level down."""

W = TypeVar("W")
R = TypeVar("R")

Send = Callable[[Txn], Procedure[TxnReply]]
Batch = tuple[Txn, Callable[[TxnReply], "Sequence[R | None]"]]
"""A transaction for several callers, and what its answer means for each; None: nothing."""


class NotBatched(Enum):
    """A batch did nothing for this caller, which continues alone. It says nothing else."""

    NOT_BATCHED = "not batched"


NOT_BATCHED = NotBatched.NOT_BATCHED


class _Lead(NamedTuple):
    """Tells a caller that it is its turn to send for all that wait."""


class _Done(NamedTuple):
    """Tells a caller its result of the batch; None: continue alone."""

    result: object


class BatchPart(Generic[W]):
    """What one caller wants from a batch: to take a slot, or to give one back."""

    __slots__ = ("box", "sent", "what")

    def __init__(self, what: W, box: Mailbox) -> None:
        self.what = what
        self.box = box
        self.sent = False


class Group(Generic[W, R]):
    """Callers of one client that want something from one semaphore now: `W` is what they want, `R`
    the result.
    """

    def __init__(
        self, build: Callable[[Sequence[W]], Batch[R]], *, lanes: int = LANES, most: int = AT_MOST
    ) -> None:
        self.build = build
        self.lanes = lanes
        self.most = most
        self.under_way = 0
        self.waiting: list[BatchPart[W]] = []
        self.called: BatchPart[W] | None = None  # the caller that must send next
        self.sent = 0  # number of batches, for tests and statistics

    @property
    def busy(self) -> bool:
        """Must a new caller wait for others?"""
        return self.under_way >= self.lanes

    def next(self) -> None:
        """A request has returned: let another caller send."""
        if self.waiting and self.called is None and not self.busy:
            self.called = self.waiting[0]
            self.called.box.put(_Lead())

    def gather(self, part: BatchPart[W]) -> list[BatchPart[W]]:
        """The callers for which `part` sends: itself, and those that wait."""
        self.waiting.remove(part)
        parts = [part, *self.waiting[: self.most - 1]]
        del self.waiting[: self.most - 1]
        for one in parts:
            one.sent = True
        return parts


def alone(group: Group[Any, Any], request: Procedure[TxnReply]) -> Procedure[TxnReply]:
    """Send a caller's own request, counted as one in progress."""
    group.under_way += 1
    try:
        return (yield from request)
    finally:
        group.under_way -= 1
        group.next()


def together(
    group: Group[W, R], part: BatchPart[W], until: float, send: Send
) -> Procedure[R | NotBatched]:
    """Take part in a batch. Raises the failure of the batch's request."""
    group.waiting.append(part)
    try:
        while True:
            note = yield from perform(Wait(part.box, math.inf if part.sent else until))
            match note:
                case _Done(result):
                    return NOT_BATCHED if result is None else cast("R", result)
                case Failure():
                    raise note
                case _Lead():
                    group.called = None
                    first = yield from _lead(group, part, send)
                    return NOT_BATCHED if first is None else first
                case None if part.sent:
                    continue  # another caller has just sent for this one
                case _:
                    return NOT_BATCHED
    finally:
        if part in group.waiting:
            group.waiting.remove(part)
        if group.called is part:
            group.called = None
        group.next()


def _lead(group: Group[W, R], part: BatchPart[W], send: Send) -> Procedure[R | None]:
    parts = group.gather(part)
    if len(parts) == 1:
        return None  # nobody else is waiting any more
    others = parts[1:]
    try:
        txn, read = group.build([one.what for one in parts])
        group.sent += 1
        first, *results = read((yield from alone(group, send(txn))))
    except (LeaseNotFound, Refused):
        _tell(others, partial(_Done, None))  # one has a dead lease, or etcd rejects such a batch
        return None
    except Failure as failure:
        _tell(others, partial(type(failure), failure.detail, failure.endpoint))
        raise
    except BaseException:
        _tell(others, partial(OutcomeUnknown, "the caller that sent the batch was interrupted"))
        raise
    for one, result in zip(others, results, strict=True):
        one.box.put(_Done(result))
    return first


def _tell(parts: Iterable[BatchPart[W]], note: Callable[[], object]) -> None:
    for part in parts:
        part.box.put(note())


def deal(
    parts: Sequence[Take | HeldSlots],
    limit: Limit,
    recent: Iterable[int],
    held: Container[int],
    draw: float,
) -> list[list[int]]:
    """Slots to try for each part that takes one, all different; slots given back lately come first.

    Slots that this client holds, or gives back in the same batch, are left out.
    """
    takers = sum(isinstance(part, Take) for part in parts)
    room = limit.room
    wanted = min(takers * 3, AT_MOST)
    used = {part.slot for part in parts if isinstance(part, HeldSlots)}
    pool: list[int] = []
    for most, slots in ((takers, recent), (wanted, spread(room, draw))):
        for slot in slots:
            if len(pool) >= most:
                break
            if slot < room and slot not in held and slot not in used:
                used.add(slot)
                pool.append(slot)
    hands: list[list[int]] = [[] for _ in parts]
    takes = [hand for hand, part in zip(hands, parts, strict=True) if isinstance(part, Take)]
    for place, slot in enumerate(pool):
        takes[place % takers].append(slot)
    return hands
