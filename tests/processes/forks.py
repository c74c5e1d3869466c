"""Do children of a fork work? A measurement, not a test: `etcdsem dev -- python -m
tests.processes.forks [--streams] [--busy] [--number N]`. `--streams`: fork while a lease is held;
`--busy`: while four threads acquire and release.
"""

from __future__ import annotations

import argparse
import os
import signal
import threading
import time

from etcdsem import Semaphore


def main() -> None:
    """Fork by twos; each child holds a lease once, and is given 15 s."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--streams", action="store_true")
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--number", type=int, default=200)
    options = parser.parse_args()
    sem = Semaphore(8, "forks", lease_timeout=600)
    with sem:
        pass
    if options.streams:
        sem.acquire()
        time.sleep(0.5)  # from 0.3 s on its key is watched
    over = threading.Event()
    threads = [threading.Thread(target=_work, args=(sem, over)) for _ in range(4 * options.busy)]
    for thread in threads:
        thread.start()
    began, bad = time.monotonic(), 0
    for _ in range(options.number // 2):
        for child in [_child(sem), _child(sem)]:
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            bad += code != 0
    over.set()
    took = time.monotonic() - began
    print(f"{bad} of {options.number} children did not end well; {took:.1f} s")


def _work(sem: Semaphore, over: threading.Event) -> None:
    while not over.is_set():
        with sem.hold() as lease:
            lease.check()


def _child(sem: Semaphore) -> int:
    pid = os.fork()
    if pid == 0:
        signal.alarm(15)
        with sem.hold() as lease:
            lease.check()
        sem.client.close()
        os._exit(0)
    return pid


if __name__ == "__main__":
    main()
