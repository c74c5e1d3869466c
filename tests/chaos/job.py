"""A job under `etcdsem run`: it works and reports to the referee. It checks nothing, since
`etcdsem run` ends it in time.

A separate script, made to start fast. Its arguments are the referee's port, seconds to work, and
when `etcdsem run` was started. With --rate it holds nothing: it reports its start, and ends.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time


def main() -> None:
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    port, seconds = int(sys.argv[1]), float(sys.argv[2])
    if "ETCDSEM_RATE" in os.environ:
        tell_of_start(port, float(sys.argv[3]))
        return
    about = {
        "semaphore": os.environ["ETCDSEM_NAME"],
        "slot": int(os.environ["ETCDSEM_SLOT"]),
        "token": int(os.environ["ETCDSEM_FENCING_TOKEN"]),
    }
    who = {"who": "run", "pid": os.getpid(), "lease": os.environ["ETCDSEM_LEASE_ID"]}
    with socket.create_connection(("127.0.0.1", port)) as wire, wire.makefile("rwb") as file:

        def say(op: str, **more: object) -> None:
            message = {"op": op, "t": time.clock_gettime(clock), **about, **more}
            file.write((json.dumps(message) + "\n").encode())
            file.flush()
            file.readline()

        say("begin", **who)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            say("step", valid=True)
            time.sleep(0.02)
        say("end", valid=True)


def tell_of_start(port: int, asked: float) -> None:
    """Report a start: it was handed out no earlier than `asked` plus the wait (in milliseconds)."""
    low = asked + float(os.environ["ETCDSEM_WAITED"]) - 0.001
    start = {"op": "start", "name": os.environ["ETCDSEM_NAME"], "who": "run", "client": ""}
    with socket.create_connection(("127.0.0.1", port)) as wire, wire.makefile("rwb") as file:
        file.write((json.dumps({**start, "low": low}) + "\n").encode())
        file.flush()
        file.readline()


if __name__ == "__main__":
    main()
