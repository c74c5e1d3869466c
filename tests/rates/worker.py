"""A process that starts as often as it may: ``python -m tests.rates.worker NAME RATE PORT EARLY``.

At each start it sends one datagram to the referee, at once: between which moments it was.
"""

from __future__ import annotations

import socket
import sys
from unittest import mock

from etcdsem import RateLimit
from etcdsem.clock import boot_time
from etcdsem.core import permits
from etcdsem.validation import read_rate
from tests.rates.use import STAMP


def main(name: str, text: str, port: str, early: str) -> None:
    """Until it is killed."""
    if float(early):  # a bug that the referee must see
        mock.patch.object(permits, "need", lambda period: period - float(early)).start()
    rate = read_rate(text)
    limit = RateLimit(name, rate.starts, rate.period, block=rate.block)
    wire = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    wire.connect(("127.0.0.1", int(port)))
    while True:
        before = boot_time()
        start = limit.acquire()
        after = boot_time()
        if start is not None:
            wire.send(STAMP.pack(before + start.waited, after))


if __name__ == "__main__":
    main(*sys.argv[1:])
