"""Many waiters for one semaphore in one process: several clients with several threads each.

A separate script; its arguments are endpoint, name, clients, and waiters per client. It prints
"granted TIME" when one is served, which then holds until a line arrives on stdin. Then it ends.
"""

from __future__ import annotations

import os
import sys
import threading
import time

import etcdsem
from etcdsem import EtcdSemError, Semaphore


def wait(client: etcdsem.Client, name: str) -> None:
    sem = Semaphore(None, name, client=client, lease_timeout=120, register=False)
    while True:
        try:
            lease = sem.acquire_lease()
        except EtcdSemError:
            time.sleep(1.0)  # etcd could not handle so many at once
            continue
        print(f"granted {time.clock_gettime(time.CLOCK_MONOTONIC)}", flush=True)
        threading.Event().wait()
        assert lease is not None


def main() -> None:
    endpoint, name = sys.argv[1:3]
    clients, each = int(sys.argv[3]), int(sys.argv[4])
    threading.stack_size(256 * 1024)
    for client in [etcdsem.connect(endpoint) for _ in range(clients)]:
        for _ in range(each):
            threading.Thread(target=wait, args=(client, name), daemon=True).start()
        if clients > 1:
            time.sleep(0.1)  # connecting costs the most, and is not measured here
    sys.stdin.readline()
    os._exit(0)


if __name__ == "__main__":
    main()
