"""The blocking library; its public names are those of `etcdsem`.

`bound`, `connect`, `multi`, `operator_calls`, `rate_limit` and `semaphore` are generated from the
modules of the same name in `etcdsem.aio` (tests/make_blocking.py). The rest is written by hand.
"""

from etcdsem.sync.client import Client, default_client, from_etcd3, swap_default_client
from etcdsem.sync.connect import connect
from etcdsem.sync.lease import Lease
from etcdsem.sync.multi import acquire_all, hold_all
from etcdsem.sync.rate_limit import Permit, RateLimit, RateLimits
from etcdsem.sync.semaphore import Semaphore

__all__ = [
    "Client",
    "Lease",
    "Permit",
    "RateLimit",
    "RateLimits",
    "Semaphore",
    "acquire_all",
    "connect",
    "default_client",
    "from_etcd3",
    "hold_all",
    "swap_default_client",
]
