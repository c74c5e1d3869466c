"""Group commit: threads or tasks of one client that take or give back together share transactions.

1. Who finds fewer than `LANES` requests under way sends its own as ever, so whoever is alone pays
   nothing. Who finds more joins those who wait, and nobody waits on a timer: when a request has
   come back, the first of those who wait sends for all of them.
2. While nobody stands in line, those who take and those who give back are joined. The slots of
   such a batch are all different, so each part holds or fails by itself, and a batch is right
   whenever it lands, as each of its parts is. It does nothing at all while anybody stands in line.
   While somebody does, those who hand over are joined (`transactions.pass_all`).
3. Who got nothing goes on as if there had been no batch. So a batch decides nothing about being
   full, closed, or in line.
4. One lease for each attempt, as everywhere: if a batch's outcome is unknown, it is unknown for
   each part. A dead lease fails the whole batch, definitely: then all go on alone.
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
from etcdsem.core.transactions import Mine, Take

LANES = 2
"""Requests of a client to one semaphore that may be under way before others are gathered."""

AT_MOST = 64
"""Parts of a batch: etcd takes 128 operations in a transaction, a nested one with those around it.
"""

PASSED_AT_MOST = 32
"""The same where several hand over: each may have two keys to delete, one level down."""

W = TypeVar("W")
R = TypeVar("R")

Send = Callable[[Txn], Procedure[TxnReply]]
Batch = tuple[Txn, Callable[[TxnReply], "Sequence[R | None]"]]
"""A transaction for several, and what its answer means for each of them; None: nothing."""


class NotBatched(Enum):
    """A batch did nothing for this caller, who goes on alone. This says nothing else."""

    NOT_BATCHED = "not batched"


NOT_BATCHED = NotBatched.NOT_BATCHED


class _Lead(NamedTuple):
    """It is your turn to send for all who wait."""


class _Done(NamedTuple):
    """What the batch came to for you; None: go on alone."""

    result: object


class Part(Generic[W]):
    """What one caller wants of a batch: a slot, or to give one back."""

    __slots__ = ("box", "sent", "what")

    def __init__(self, what: W, box: Mailbox) -> None:
        self.what = what
        self.box = box
        self.sent = False


class Group(Generic[W, R]):
    """Those of one client who want something of one semaphore now: `W` is what, `R` what it comes
    to.
    """

    def __init__(
        self, build: Callable[[Sequence[W]], Batch[R]], *, lanes: int = LANES, most: int = AT_MOST
    ) -> None:
        self.build = build
        self.lanes = lanes
        self.most = most
        self.under_way = 0
        self.waiting: list[Part[W]] = []
        self.called: Part[W] | None = None  # who was told to send
        self.sent = 0  # batches, for whoever counts

    @property
    def busy(self) -> bool:
        """Must one who comes now wait for others?"""
        return self.under_way >= self.lanes

    def next(self) -> None:
        """A request has come back: somebody else may send."""
        if self.waiting and self.called is None and not self.busy:
            self.called = self.waiting[0]
            self.called.box.put(_Lead())

    def gather(self, part: Part[W]) -> list[Part[W]]:
        """Those for whom `part` sends: itself, and who waits."""
        self.waiting.remove(part)
        parts = [part, *self.waiting[: self.most - 1]]
        del self.waiting[: self.most - 1]
        for one in parts:
            one.sent = True
        return parts


def alone(group: Group[Any, Any], request: Procedure[TxnReply]) -> Procedure[TxnReply]:
    """Send a request of one's own, as one of those under way."""
    group.under_way += 1
    try:
        return (yield from request)
    finally:
        group.under_way -= 1
        group.next()


def together(
    group: Group[W, R], part: Part[W], until: float, send: Send
) -> Procedure[R | NotBatched]:
    """Have it done in a batch. Raises what the batch's request came to."""
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
                    continue  # it was sent for us just now
                case _:
                    return NOT_BATCHED
    finally:
        if part in group.waiting:
            group.waiting.remove(part)
        if group.called is part:
            group.called = None
        group.next()


def _lead(group: Group[W, R], part: Part[W], send: Send) -> Procedure[R | None]:
    parts = group.gather(part)
    if len(parts) == 1:
        return None  # nobody else is there any more
    others = parts[1:]
    try:
        txn, read = group.build([one.what for one in parts])
        group.sent += 1
        first, *results = read((yield from alone(group, send(txn))))
    except (LeaseNotFound, Refused):
        _tell(others, partial(_Done, None))  # one has a dead lease, or etcd takes no such batch
        return None
    except Failure as failure:
        _tell(others, partial(type(failure), failure.detail, failure.endpoint))
        raise
    except BaseException:
        _tell(others, partial(OutcomeUnknown, "the caller who sent it for all was interrupted"))
        raise
    for one, result in zip(others, results, strict=True):
        one.box.put(_Done(result))
    return first


def _tell(parts: Iterable[Part[W]], note: Callable[[], object]) -> None:
    for part in parts:
        part.box.put(note())


def deal(
    parts: Sequence[Take | Mine],
    limit: Limit,
    recent: Iterable[int],
    held: Container[int],
    draw: float,
) -> list[list[int]]:
    """Slots to try for each part that takes one, all different: first those given back lately.

    Slots that this client holds, or gives back in the same batch, are left out.
    """
    takers = sum(isinstance(part, Take) for part in parts)
    room = limit.room
    wanted = min(takers * 3, AT_MOST)
    used = {part.slot for part in parts if isinstance(part, Mine)}
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
