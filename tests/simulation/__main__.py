"""Run the simulator: ``python -m tests.simulation --seeds 0:500 -j 2``.

It simulates semaphores, or with ``--rates`` rate limits.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from tests.simulation.outcome import Outcome, report
from tests.simulation.rates import run_rate
from tests.simulation.runs import run_seed

EXAMPLES = """examples:
  python -m tests.simulation --seeds 0:500 -j 2            semaphores
  python -m tests.simulation --seed 132 --trace            one of them, with all that happened
  python -m tests.simulation --rates --seeds 0:300 -j 2    rate limits: at most so many starts in
                                                          any window of the period
  python -m tests.simulation --rates --seed 28 --trace     one of them
"""


def _one(seed: int, *, rates: bool = False) -> tuple[int, str, Counter[str], int]:
    gc.disable()  # most objects of a run become garbage at its end; this saves a sixth of the time
    outcome: Outcome = run_rate(seed) if rates else run_seed(seed)
    gc.enable()
    failed = report(outcome) if outcome.error is not None else ""
    return seed, failed, outcome.counters, outcome.steps


def _all(seeds: range, jobs: int, *, rates: bool) -> Iterator[tuple[int, str, Counter[str], int]]:
    one = partial(_one, rates=rates)
    if jobs == 1:
        yield from map(one, seeds)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(one, seeds, chunksize=4)


def main() -> int:
    """Run one seed or many; the exit code is 1 if a promise was broken."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation",
        description="Run the simulator: a run of semaphores for each seed, or with --rates one of "
        "a rate limit. A run that breaks a promise tells which, and how to repeat it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--seed", type=int, help="run this seed")
    which.add_argument("--seeds", help="run seeds A to B-1, given as A:B")
    parser.add_argument("--trace", action="store_true", help="print all that happened")
    parser.add_argument("-j", "--jobs", type=int, default=1, help="processes")
    parser.add_argument("--keep-going", action="store_true", help="don't stop at a violation")
    parser.add_argument(
        "--rates", action="store_true", help="runs of a rate limit; its seeds are others"
    )
    arguments = parser.parse_args()
    if arguments.seed is not None:
        run = run_rate if arguments.rates else run_seed
        outcome = run(arguments.seed, trace=arguments.trace)
        print(report(outcome, last=10**9 if arguments.trace else 80))
        print(dict(sorted(outcome.counters.items())))
        return 1 if outcome.error else 0
    first, last = map(int, arguments.seeds.split(":"))
    return _range(
        range(first, last), arguments.jobs, keep_going=arguments.keep_going, rates=arguments.rates
    )


def _range(seeds: range, jobs: int, *, keep_going: bool, rates: bool) -> int:
    began = time.monotonic()
    total: Counter[str] = Counter()
    failures, done, steps = [], 0, 0
    for seed, failed, counters, count in _all(seeds, jobs, rates=rates):
        done += 1
        steps += count
        most = max(total["most holders"], counters["most holders"])
        total += counters
        total["most holders"] = most
        if failed:
            failures.append(seed)
            print(failed if not keep_going else failed.split("\n")[0], flush=True)
            if not keep_going:
                break
    spent = time.monotonic() - began
    for name, number in sorted(total.items()):
        print(f"{number:12}  {name}")
    print(
        f"{done} seeds in {spent:.1f} s, {done / spent:.2f} seeds/s, {steps / done:.0f} steps, "
        f"{len(failures)} violations {failures[:20]}"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
