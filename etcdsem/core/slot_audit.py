"""Rereads held slots, to notice losses that a watch did not report.

1. Several etcd releases lose delete events, and a compaction may happen while a watch is
   interrupted. So long-held slots are reread from time to time, and whenever their watch has a gap.
2. Only a read at the grant's revision or later counts: etcd before 3.4.42 and 3.5.28 can
   answer with an older state after a pause (#20418), in which the slot was not granted yet.
3. A failed read says nothing: the lease's own deadline still applies.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from etcdsem.core.commands import Failure, Procedure, Range, RangeReply, Transact, Txn, perform
from etcdsem.core.leases import RPC_TIMEOUT

if TYPE_CHECKING:
    from etcdsem.core.grants import Grant
    from etcdsem.core.semaphore import SemaphoreState

AT_A_TIME = 64
"""Slots per read; etcd allows 128 operations in a transaction."""


def verify(semaphore: SemaphoreState) -> Procedure[None]:
    """Reread the slots that have been held for long, and report those that were lost."""
    held = [
        (grant, slot)
        for grant in semaphore.grants
        if grant.watch is not None
        for slot in grant.slots
    ]
    for first in range(0, len(held), AT_A_TIME):
        some = held[first : first + AT_A_TIME]
        try:
            yield from _verify(semaphore, some)
        except Failure as failure:
            semaphore.session.env.log(
                logging.INFO,
                "semaphore %s: held slots could not be verified: %s",
                semaphore.name,
                failure,
            )
            return


def _verify(semaphore: SemaphoreState, held: list[tuple[Grant, int]]) -> Procedure[None]:
    slots = tuple(Range(semaphore.keys.slot(slot), keys_only=True) for _, slot in held)
    reply = yield from perform(Transact(Txn((), slots), RPC_TIMEOUT))
    for (grant, _), found in zip(held, reply.replies, strict=True):
        if not isinstance(found, RangeReply):
            raise AssertionError(f"expected etcd's answer to a range, not {found!r}")
        if reply.revision < grant.token:
            continue
        if not any(kv.mod_revision == grant.token for kv in found.kvs):
            grant.taken("overwritten" if found.kvs else "deleted")
