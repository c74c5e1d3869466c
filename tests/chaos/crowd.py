"""A crowd of waiters in one process: so many clients, so many threads each, for one semaphore.

A script of its own: argv is endpoint, name, clients, waiters for each. Says "granted TIME" when one
is served, who then holds until a line comes on stdin. Ends with its stdin.
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
            time.sleep(1.0)  # etcd could not take so many at once
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
            time.sleep(0.1)  # connections cost the most, and this is not about them
    sys.stdin.readline()
    os._exit(0)


if __name__ == "__main__":
    main()
