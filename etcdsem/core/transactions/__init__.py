"""The protocol's transactions, and how their answers are read.

    JOIN / TRY  take a free slot, or join the queue (TRY: do not join)
    DROP        give a slot back; nobody waits
    PASS        hand it to the first of the known waiters that still waits; or several to several
    CLEAR       give it back; somebody waited, but the queue is empty
    RETIRE      give back a slot above the limit; nobody gets it
    VACATE      give back what does not fit the first waiter; a FILL follows
    ALL         take a slot of each of several semaphores, or none
    FILL        grant free slots to the first waiters, no matter who should have done it
    RECORD      put the record of a permit that is about to be handed out
    LEAVE       leave the queue; UNCONTEND if that emptied it
    EVICT       end one lease, by an operator
    REGISTER, RESIZE, PAUSE, RESUME, APPLY, CLOSE
    PENALIZE    pause until an etcd lease ends; UNPAUSE, by whoever finds that it has ended
    EXPIRE, SWEEP   let an unused name expire, or delete what is left of one

1. Each is right whenever it lands, however late: its conditions are checked then.
2. Never more than the limit: a slot changes from free to held only if the limit's revision is the
   known one, the slot is free and below the limit, and no slot above the limit is held; or (FILL
   with surplus) if the slots counted at a revision are fewer than the limit, and none has been
   created since.
3. Exact FIFO: a slot goes to a waiter only if the waiter's *create revision* is the known one.
   Checking mere presence would serve a waiter that left and came back at its former place.
   With priorities in use, the order is by priority first: then a grant succeeds only while nobody
   with a priority has joined since the queue was read (each of them puts the mark `priorities`),
   and a grant to a priority below 0 only while nobody has joined since.
   A lease of weight k is k slots that are taken, granted and given back together, in one
   transaction: they have the same token, and belong to the same etcd lease.
4. A held slot's key is never rewritten: its mod revision is the fencing token. A grant message (a
   "message") is put in the same transaction, so its mod revision is the same number.
5. Comparisons over a range that may be empty: etcd compares one absent key, all numbers 0.
6. Every operation that decides is a write, or a linearizable read: etcd answers a transaction
   without operations from local, possibly stale, state.
"""

from __future__ import annotations

from etcdsem.core.transactions.admin import (
    apply_limit,
    change_limit,
    close,
    end_timed_pause,
    evict_permit,
    evict_slot,
    evict_waiter,
    evicted,
    expire,
    limits_as_set,
    pause_read,
    penalize,
    register,
    snapshot,
    sweep,
    unchanged_since,
)
from etcdsem.core.transactions.batch import (
    Gave,
    Passed,
    Take,
    batch,
    pass_all,
    read_batch,
    read_pass_all,
)
from etcdsem.core.transactions.conditions import (
    COUNT_BY_NAME,
    MAX_DEPTH,
    MAX_LISTED,
    NO_RECORDS,
    QUEUE_READ,
    Held,
    HeldSlots,
    Look,
    PermitRecords,
    TryFull,
    Waiting,
    as_range,
    look,
    read_look,
)
from etcdsem.core.transactions.fill import fill, filled, uncontend
from etcdsem.core.transactions.give import (
    clear,
    drop,
    end_priorities,
    pass_alone,
    pass_on,
    read_clear,
    read_pass,
    read_vacate,
    retire,
    vacate,
)
from etcdsem.core.transactions.join import (
    Recheck,
    join,
    leave,
    read_join,
    read_leave,
    read_recheck,
    recheck,
)
from etcdsem.core.transactions.multi import SlotRequest, look_at_all, read_all_looks, take_all
from etcdsem.core.transactions.permit import clear_permits, read_record, record_permit

__all__ = [
    "COUNT_BY_NAME",
    "MAX_DEPTH",
    "MAX_LISTED",
    "NO_RECORDS",
    "QUEUE_READ",
    "Gave",
    "Held",
    "HeldSlots",
    "Look",
    "Passed",
    "PermitRecords",
    "Recheck",
    "SlotRequest",
    "Take",
    "TryFull",
    "Waiting",
    "apply_limit",
    "as_range",
    "batch",
    "change_limit",
    "clear",
    "clear_permits",
    "close",
    "drop",
    "end_priorities",
    "end_timed_pause",
    "evict_permit",
    "evict_slot",
    "evict_waiter",
    "evicted",
    "expire",
    "fill",
    "filled",
    "join",
    "leave",
    "limits_as_set",
    "look",
    "look_at_all",
    "pass_all",
    "pass_alone",
    "pass_on",
    "pause_read",
    "penalize",
    "read_all_looks",
    "read_batch",
    "read_clear",
    "read_join",
    "read_leave",
    "read_look",
    "read_pass",
    "read_pass_all",
    "read_recheck",
    "read_record",
    "read_vacate",
    "recheck",
    "record_permit",
    "register",
    "retire",
    "snapshot",
    "sweep",
    "take_all",
    "unchanged_since",
    "uncontend",
    "vacate",
]
