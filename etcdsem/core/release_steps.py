"""The steps of a release: the transaction of each, and what its reply means.

`decisions` says which step comes next, `release` takes them.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple

from etcdsem.core import transactions
from etcdsem.core.batching import Group
from etcdsem.core.commands import Txn, TxnReply
from etcdsem.core.decisions import Ask, Clear, Drop, Pass, ReadAll, Retire, Vacate, pass_depth
from etcdsem.core.semaphore import SemaphoreState
from etcdsem.core.transactions import HeldSlots, Look


class ReleaseResult(Enum):
    """The outcome of a release."""

    RELEASED = "released"
    NOT_OURS = "not ours"
    """The lease had ended, or the slot had been taken away before."""
    UNCONFIRMED = "unconfirmed"
    """etcd did not confirm it; the slot becomes free at the latest when the lease's TTL expires."""


class Vacated(NamedTuple):
    """The slots were given back; others can be served from this look."""

    seen: Look


class Step(NamedTuple):
    """How one of the steps of `decisions` is carried out."""

    build: Callable[[SemaphoreState, HeldSlots, Any], Txn]
    read: Callable[[SemaphoreState, HeldSlots, Any, TxnReply], ReleaseResult | Vacated | Look]
    """A Look means that nothing was given back, and shows why."""
    group: Callable[[SemaphoreState], Group[Any, Any]] | None = None
    """The group in which other callers of this client may gather in the meantime."""


# Each builder gets the semaphore's state, what to give back, and the step.


def _drop(semaphore: SemaphoreState, held: HeldSlots, _step: Drop) -> Txn:
    return transactions.drop(semaphore.keys, held)


def _ask(semaphore: SemaphoreState, _held: HeldSlots, _step: Ask) -> Txn:
    return Txn((), transactions.look(semaphore.keys))


def _ask_all(semaphore: SemaphoreState, _held: HeldSlots, _step: ReadAll) -> Txn:
    return Txn((), transactions.look(semaphore.keys, 0))


def _clear(semaphore: SemaphoreState, held: HeldSlots, step: Clear) -> Txn:
    keys, otherwise = semaphore.keys, None
    if step.otherwise is not None:
        limit, waiter = step.otherwise
        otherwise = transactions.pass_alone(keys, held, limit, waiter, semaphore.session.env.wall())
    return transactions.clear(keys, held, step.revision, otherwise)


def _retire(semaphore: SemaphoreState, held: HeldSlots, _step: Retire) -> Txn:
    return transactions.retire(semaphore.keys, held)


def _vacate(semaphore: SemaphoreState, held: HeldSlots, _step: Vacate) -> Txn:
    limit = semaphore.limit
    return transactions.vacate(semaphore.keys, held, limit.lease if limit is not None else 0)


def _pass(semaphore: SemaphoreState, held: HeldSlots, step: Pass) -> Txn:
    return transactions.pass_on(
        semaphore.keys,
        held,
        step.limit,
        step.queue,
        pass_depth(step.limit, step.queue),
        semaphore.session.env.wall(),
        priorities=step.priorities,
        seen=step.seen,
    )


# Each reader gets the same, and the reply.


def _look(semaphore: SemaphoreState, _held: HeldSlots, _step: object, reply: TxnReply) -> Look:
    return transactions.read_look(semaphore.keys, reply, reply.revision)


def _looked_at_all(
    semaphore: SemaphoreState, held: HeldSlots, step: ReadAll, reply: TxnReply
) -> Look:
    seen = _look(semaphore, held, step, reply)
    return seen if seen.queue else seen._replace(complete=True)


def _dropped(
    semaphore: SemaphoreState, held: HeldSlots, step: Drop, reply: TxnReply
) -> ReleaseResult | Look:
    """DROP succeeds only while nobody waits."""
    semaphore.queue.set_contended(not reply.succeeded)
    return ReleaseResult.RELEASED if reply.succeeded else _look(semaphore, held, step, reply)


def _cleared(
    semaphore: SemaphoreState, held: HeldSlots, step: Clear, reply: TxnReply
) -> ReleaseResult | Look:
    """CLEAR, too; else the slot may have gone to the one waiter that was expected."""
    queue = semaphore.queue
    queue.set_contended(not reply.succeeded)
    if reply.succeeded:
        return ReleaseResult.RELEASED
    otherwise = step.otherwise
    passed = transactions.read_clear(semaphore.keys, reply, otherwise=otherwise is not None)
    if isinstance(passed, Look):
        queue.expect(None)
        return passed
    queue.learn((), reply.revision)
    if otherwise is not None:
        semaphore.watches.handed_over(otherwise.waiter, held.slots, reply.revision)
    return ReleaseResult.RELEASED


def _retired(
    _semaphore: SemaphoreState, _held: HeldSlots, _step: Retire, reply: TxnReply
) -> ReleaseResult:
    return ReleaseResult.RELEASED if reply.succeeded else ReleaseResult.NOT_OURS


def _vacated(
    semaphore: SemaphoreState, _held: HeldSlots, _step: Vacate, reply: TxnReply
) -> ReleaseResult | Vacated:
    seen = transactions.read_vacate(semaphore.keys, reply)
    return ReleaseResult.NOT_OURS if seen is None else Vacated(seen)


def _passed(
    semaphore: SemaphoreState, held: HeldSlots, step: Pass, reply: TxnReply
) -> ReleaseResult | Look:
    tried = step.queue[: pass_depth(step.limit, step.queue)]
    after = transactions.read_pass(semaphore.keys, reply, tried)
    if isinstance(after, Look):
        semaphore.queue.forget()  # the waiters that we knew have left
        return after
    if not step.priorities:
        semaphore.queue.served(after.created)
    semaphore.queue.passed_to(after)
    semaphore.watches.handed_over(after, held.slots, reply.revision)
    return ReleaseResult.RELEASED


def _sharing(semaphore: SemaphoreState) -> Group[Any, Any]:
    return semaphore.slots.group


def _passing(semaphore: SemaphoreState) -> Group[Any, Any]:
    return semaphore.slots.passing


STEPS: dict[type, Step] = {
    Drop: Step(_drop, _dropped, _sharing),
    Ask: Step(_ask, _look, _passing),
    Clear: Step(_clear, _cleared, _passing),
    Pass: Step(_pass, _passed, _passing),
    Retire: Step(_retire, _retired),
    Vacate: Step(_vacate, _vacated),
    ReadAll: Step(_ask_all, _looked_at_all),
}
"""How each step is carried out. `Gone` is missing because it needs no transaction."""
