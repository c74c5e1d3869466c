"""A process that starts as often as it may: ``python -m tests.rates.worker NAME RATE PORT``.

At each start it sends one datagram to the referee, at once.
"""

from __future__ import annotations

import socket
import sys

from etcdsem import RateLimit
from etcdsem.model import read_rate


def main(name: str, text: str, port: str) -> None:
    """Until it is killed."""
    rate = read_rate(text)
    limit = RateLimit(name, rate.starts, rate.period, block=rate.block)
    wire = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    wire.connect(("127.0.0.1", int(port)))
    while True:
        limit.acquire()
        wire.send(b"s")


if __name__ == "__main__":
    main(*sys.argv[1:])
