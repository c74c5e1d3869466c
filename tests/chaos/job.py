"""A job under `etcdsem run`: it works, tells the referee, and checks nothing: it is ended in time.

A script of its own, made to start fast: argv is the referee's port and seconds to work.
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


if __name__ == "__main__":
    main()
