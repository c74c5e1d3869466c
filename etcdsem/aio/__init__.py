"""The asyncio library, with the names and signatures of the blocking one.

1. A client belongs to the event loop that first used it, and raises WrongEventLoop in another one.
   Thousands of tasks share its one watch stream and its one keepalive stream.
2. A cancelled task leaves nothing behind: its place in the queue is given up, and a lease that was
   granted is given back, before the cancellation comes out.
3. When the loop ends, everything is given back within 2 seconds.
4. A loop that was blocked for longer than a lease lasts finds the lease lost: a lease is judged by
   the clock, and never renewed after its deadline.
"""

from etcdsem.aio.client import Client, default_client, swap_default_client
from etcdsem.aio.connect import connect
from etcdsem.aio.lease import Lease, Lost
from etcdsem.aio.multi import acquire_all, hold_all
from etcdsem.aio.rate_limit import Permit, RateLimit, RateLimits
from etcdsem.aio.semaphore import Semaphore

__all__ = [
    "Client",
    "Lease",
    "Lost",
    "Permit",
    "RateLimit",
    "RateLimits",
    "Semaphore",
    "acquire_all",
    "connect",
    "default_client",
    "hold_all",
    "swap_default_client",
]
