"""FILL: grant free slots to waiters, no matter which client should have done so.

Waiters also reread what their watches may have missed, and repair what other clients left undone.
"""

from __future__ import annotations

import math

from etcdsem.core import decisions, transactions
from etcdsem.core.commands import KeyValue, Procedure, Txn, TxnReply
from etcdsem.core.keys import Keys, Limit
from etcdsem.core.limits import is_rate, learn_known
from etcdsem.core.retry import transact
from etcdsem.core.semaphore import SemaphoreState
from etcdsem.core.timed_pause import end_timed_pause
from etcdsem.core.transactions import MAX_DEPTH, Look
from etcdsem.core.waiters import PlaceLost


def reconcile_or_recheck(semaphore: SemaphoreState, until: float) -> Procedure[None]:
    """Reconcile. If there is room but a waiter of ours is no longer in the queue, recheck instead,
    which tells it to join again. Its own watch would tell it only later, and a slot would stay idle
    until then.
    """
    seen = yield from look(semaphore)
    if decisions.room_for_more(semaphore.keys, seen) and semaphore.waiters.misses(seen):
        yield from recheck(semaphore, until)
    else:
        yield from reconcile(semaphore, seen, until=until)


def reconcile(
    semaphore: SemaphoreState, seen: Look | None = None, *, until: float = math.inf
) -> Procedure[None]:
    """FILL free slots from the queue, no matter which client should have done it.

    A waiter that reconciles for all has a deadline: after `until` the next one takes over.
    """
    keys, env = semaphore.keys, semaphore.session.env
    seen = yield from _current(semaphore, seen)
    most = MAX_DEPTH
    while True:
        if env.now() >= until:
            semaphore.waiters.request_reconcile()
            return
        semaphore.learn(seen.limit, seen.revision)
        semaphore.waiters.saw_clients(decisions.waiting_clients(seen))
        if seen.limit is None:
            semaphore.closed(seen.revision)
            return
        step = decisions.next_fill(keys, seen, most, eager=semaphore.waiters.backfilling)
        if step is None or isinstance(step, decisions.Blocked):
            _await_room(semaphore, step, seen)
            return
        if isinstance(step, decisions.ReadAll):
            seen = yield from look(semaphore, queue=0)
            if not seen.queue:
                return
            continue
        reply = yield from _fill(semaphore, seen, step)
        most = MAX_DEPTH if reply.succeeded else 1  # else one leaving waiter could fail each FILL
        if not reply.succeeded:
            seen = transactions.read_look(keys, reply, reply.revision, env.wall())
            seen = yield from _current(semaphore, seen)
        elif step.last:
            return
        elif step.surplus or not step.behind:
            seen = yield from look(semaphore)
        else:
            seen = _filled(keys, seen, step, reply.revision)


def _current(semaphore: SemaphoreState, seen: Look | None) -> Procedure[Look]:
    """A look that shows, for a rate limit, the records of permits too. A timed pause that is over
    has been ended before it. If it shows that a waiter of ours has lost its place, the leader
    rereads, which lets it join again.
    """
    if seen is not None and semaphore.waiters.misses(seen):
        semaphore.waiters.wake_leader(reread=True, due=False)
    if seen is None or (seen.records is None and is_rate(seen.limit)):
        seen = yield from look(semaphore)
    semaphore.learn(seen.limit, seen.revision)
    timed = seen.limit is not None and seen.limit.after_pause != b""
    if timed and (yield from end_timed_pause(semaphore)):
        seen = yield from look(semaphore)
    return seen


def _await_room(semaphore: SemaphoreState, step: decisions.Blocked | None, seen: Look) -> None:
    """Nothing can be granted now. Reconcile again when a permit's record is over: nothing happens
    in etcd then.
    """
    semaphore.watches.watch_blocker(step.head if step else None, seen.revision)
    wait = decisions.unblocked_in(seen)
    if wait < math.inf:
        wait += decisions.healing_window(semaphore.waiters.clients) * semaphore.session.env.random()
    semaphore.waiters.reconcile_in(wait)


def _fill(semaphore: SemaphoreState, seen: Look, step: decisions.Fill) -> Procedure[TxnReply]:
    """FILL, and tell the waiters of this client among those that were granted slots."""
    txn = transactions.fill(
        semaphore.keys,
        seen,
        step.pairs,
        step.behind,
        semaphore.session.env.wall(),
        surplus=step.surplus,
        last=step.last,
        passed=step.passed,
    )
    reply = yield from transact(semaphore.session, txn)
    for slots, waiter in step.pairs if reply.succeeded else ():
        semaphore.watches.handed_over(waiter, slots, reply.revision)
    return reply


def _filled(keys: Keys, seen: Look, step: decisions.Fill, revision: int) -> Look:
    """What a look would show after this FILL."""
    slots = transactions.filled(step.pairs)
    filled = tuple(KeyValue(keys.slot(slot), b"", revision, revision) for slot in slots)
    seen = seen._replace(slots=(*seen.slots, *filled), queue=step.behind)
    if seen.records is not None:
        cleared, _ = transactions.clear_permits(keys, seen.records.over, slots)
        gone = {*cleared, *slots}
        over = {slot: mod for slot, mod in seen.records.over.items() if slot not in gone}
        seen = seen._replace(records=seen.records._replace(over=over))
    if transactions.end_priorities(seen.priorities, step.behind):
        return seen._replace(priorities=0)
    return seen


def look(
    semaphore: SemaphoreState, queue: int = transactions.QUEUE_READ, *, until: float = math.inf
) -> Procedure[Look]:
    """Read the slots, the limit and the front of the queue at one revision (`queue` 0: all)."""
    session, keys = semaphore.session, semaphore.keys
    records = is_rate(semaphore.limit)
    while True:
        txn = Txn((), transactions.look(keys, queue, records=records))
        reply = yield from transact(session, txn, until)
        seen = transactions.read_look(keys, reply, reply.revision, session.env.wall())
        if records or not is_rate(seen.limit):
            semaphore.queue.saw(seen)
            return seen
        records = True  # it is a rate limit, which was not known


def look_with_limit(semaphore: SemaphoreState, until: float) -> Procedure[tuple[Look, Limit]]:
    """A look, and the limit that it saw; raises SemaphoreClosed if there is no limit."""
    seen = yield from look(semaphore, until=until)
    return seen, learn_known(semaphore, seen.limit, seen.revision)


def recheck(semaphore: SemaphoreState, until: float) -> Procedure[None]:
    """Read what the watches should have told the local waiters, tell them, and reconcile."""
    reply = yield from transact(semaphore.session, transactions.recheck(semaphore.keys))
    seen = transactions.read_recheck(semaphore.keys, reply)
    semaphore.learn(seen.limit, seen.revision)
    if seen.limit is None:
        semaphore.closed(seen.revision)
        return
    granted = {kv.lease for kv in seen.messages}
    for message in seen.messages:
        semaphore.watches.deliver(message)
    for waiting in list(semaphore.waiters):
        if (
            0 < waiting.created <= seen.revision
            and waiting.who not in seen.waiting
            and waiting.lease.id not in granted
        ):
            waiting.box.put(PlaceLost("its key in etcd is gone"))
    yield from reconcile(semaphore, until=until)
