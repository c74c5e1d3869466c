"""The keys under ``<prefix>/<name>/`` in etcd, and how their values are written and read.

    max_leases               the limit, plain text: 5, 5 paused by ..., 100/1m (a rate limit);
                             attached to an etcd lease if the name expires (`name_lease`)
    max_leases_paused        exists during a timed pause; attached to the etcd lease that ends it
    leases/<slot>            a holder's record; attached to the holder's etcd lease
    permits/<slot>           the record of a permit (rate limits only)
    waiters/<client>/<lease> a waiter's record; attached to the waiter's etcd lease
    applied                  the limit that `etcdsem apply` set last
    contended                "1" while somebody waits, or waited since the last clear
    priorities               "1" while somebody with a priority waits, or waited since the last look
    grants/<client>/<lease>  the grant message that tells a waiter its slot, attached to
                             its etcd lease; or that it was evicted, attached to a lease that nobody
                             refreshes

1. Key names come from a small set that is reused: a dead name slows down every later read of its
   prefix until etcd is compacted.
2. What has no etcd lease of its own (permits, contended, priorities) has that of max_leases, if it
   has one, and so leaves with it.
3. A client's ID is ``<host>.<pid>.<random>``. It identifies the owner without a record, so the list
   of waiters that travels from holder to holder needs no records for most of them.
4. Anything that was put here by hand is read without raising: invalid keys are ignored and reported
   (`Junk`).
"""

from __future__ import annotations

from etcdsem.core.keys.layout import CARRIED, MAX_HOLD, MAX_MESSAGE, Keys, client_id, lease_hex
from etcdsem.core.keys.limit import (
    Limit,
    read_limit,
    write_paused,
    write_resized,
    write_resumed,
    write_unchanged,
)
from etcdsem.core.keys.listing import (
    permit_slot,
    read_holders,
    read_permits,
    read_waiters,
    slot_number,
)
from etcdsem.core.keys.permit import PermitRecord, read_permit, write_permit
from etcdsem.core.keys.queue import (
    Queued,
    addressee,
    read_eviction,
    read_message,
    read_queue,
    waits,
    write_eviction,
    write_list,
    write_message,
)
from etcdsem.core.keys.records import (
    ORDINARY,
    Demand,
    Identity,
    Stated,
    plain_start,
    record,
    stated,
)

__all__ = [
    "CARRIED",
    "MAX_HOLD",
    "MAX_MESSAGE",
    "ORDINARY",
    "Demand",
    "Identity",
    "Keys",
    "Limit",
    "PermitRecord",
    "Queued",
    "Stated",
    "addressee",
    "client_id",
    "lease_hex",
    "permit_slot",
    "plain_start",
    "read_eviction",
    "read_holders",
    "read_limit",
    "read_message",
    "read_permit",
    "read_permits",
    "read_queue",
    "read_waiters",
    "record",
    "slot_number",
    "stated",
    "waits",
    "write_eviction",
    "write_list",
    "write_message",
    "write_paused",
    "write_permit",
    "write_resized",
    "write_resumed",
    "write_unchanged",
]
