"""A pool of processes of which at most two run the expensive part at a time.

    etcdsem dev -- python examples/worker_pool.py

A semaphore may be pickled: it carries its name and options, never a connection or a lease. Each
process opens its own connection.
"""

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor

from etcdsem import Semaphore


def work(semaphore, item):
    prepared = item * 10  # all workers at a time
    with semaphore.hold() as lease:  # two at a time, over all pools on all machines
        began = time.monotonic()
        time.sleep(0.05)
        return prepared, lease.slot, began, time.monotonic()


def most_at_a_time(spans):
    starts = sorted((began, 1) for began, _ in spans)
    ends = sorted((ended, -1) for _, ended in spans)
    now = most = 0
    for _, change in sorted(starts + ends):
        now += change
        most = max(most, now)
    return most


def main():
    semaphore = Semaphore(max_leases=2, name="expensive")
    # "spawn" is a choice: a forked child works as well, and starts without its parent's leases.
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn")) as pool:
        done = list(pool.map(work, [semaphore] * 12, range(12)))
    print("results:", [result for result, *_ in done])
    print("slots used:", sorted({slot for _, slot, *_ in done}))
    print("at most at a time:", most_at_a_time([(began, ended) for *_, began, ended in done]))


if __name__ == "__main__":
    main()
