"""What counting costs in a cycle of acquire and release: ``python -m tests.benchmarks.tally``."""

from __future__ import annotations

import timeit

from etcdsem.core.tally import Tallies

tallies = Tallies()
tally = tallies.of(("/etcdsem", "x"))


def cycle() -> None:
    """All that a cycle counts: an acquire, a release, and two transactions."""
    tally.pending += 1
    tally.pending -= 1
    tally.granted(0.001)
    tally.active += 1
    tally.active -= 1
    tally.held.observe(0.5)
    tally.released += 1
    for _ in range(2):
        tallies.requests["done"] += 1
        tallies.latency.observe(0.0007)


if __name__ == "__main__":
    best = min(timeit.repeat(cycle, number=100_000, repeat=5)) / 100_000
    print(f"{best * 1e6:.1f} µs")
