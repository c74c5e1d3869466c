"""What counting costs in a cycle of acquire and release: ``python -m tests.benchmarks.stats``."""

from __future__ import annotations

import timeit

from etcdsem.core.stats import ClientStats

of_client = ClientStats()
of_semaphore = of_client.of(("/etcdsem", "x"))


def cycle() -> None:
    """All that a cycle counts: an acquire, a release, and two transactions."""
    of_semaphore.pending += 1
    of_semaphore.pending -= 1
    of_semaphore.granted(0.001)
    of_semaphore.active += 1
    of_semaphore.active -= 1
    of_semaphore.held.observe(0.5)
    of_semaphore.released += 1
    for _ in range(2):
        of_client.requests["done"] += 1
        of_client.latency.observe(0.0007)


if __name__ == "__main__":
    best = min(timeit.repeat(cycle, number=100_000, repeat=5)) / 100_000
    print(f"{best * 1e6:.1f} µs")
