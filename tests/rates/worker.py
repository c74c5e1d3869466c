"""A process that starts as often as it may: ``python -m tests.rates.worker NAME RATE PORT EARLY
COST [SECOND]``.

Each start costs from 1 to COST permits. At each it sends one datagram to the referee, at once:
between which moments it was.
"""

from __future__ import annotations

import os
import random
import socket
import sys
from unittest import mock

from etcdsem.clock import boot_time
from etcdsem.core import permits
from tests.rates.use import STAMP, limit_of


def main(name: str, text: str, port: str, early: str, cost: str, *second: str) -> None:
    """Until it is killed."""
    if float(early):  # a bug that the referee must see
        mock.patch.object(permits, "need", lambda period: period - float(early)).start()
    limit = limit_of(name, text, *second)
    wire = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    wire.connect(("127.0.0.1", int(port)))
    rng = random.Random(os.getpid())
    while True:
        wanted = rng.randint(1, int(cost))
        before = boot_time()
        start = limit.acquire(cost=wanted)
        after = boot_time()
        if start is not None:
            wire.send(STAMP.pack(before + start.waited, after, wanted, before))


if __name__ == "__main__":
    main(*sys.argv[1:])
