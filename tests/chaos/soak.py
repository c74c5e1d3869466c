"""The long run: more seeds of the simulator, longer chaos, and resource use over time.

    python -m tests.chaos.soak --seeds 0:2000 --seconds 600        (make soak)

Chaos runs on each of `--on`: containers (if a Docker engine answers) and machine (network
namespaces, or plain processes). Two of its workers are never killed; their memory, threads and file
descriptors are printed over time and must not grow. Ten processes use a rate limit for
`--rate-seconds` (tests/rates), and each ordinary program works for `--ordinary-seconds`
(tests/ordinary). Each one-line fault of `tests.mutants` must be caught. The exit code is 1 if
anything is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from etcdsem.server import find_binary
from tests.chaos.clusters import Cluster, in_containers, on_this_machine
from tests.chaos.conductor import Chaos, Report

ROWS = 12

GROWTH = {"rss": 25_000_000, "threads": 6, "fds": 12}
"""Allowed growth of each median from the second quarter of the run to the last."""

Vitals = list[dict[str, Any]]


def table(who: str, vitals: Vitals) -> list[str]:
    """A process's resource use over time, in a few rows."""
    lines = [f"{who}:   seconds    RSS MB   threads   files"]
    step = max(1, len(vitals) // ROWS)
    for one in vitals[::step]:
        seconds = one["t"] - vitals[0]["t"]
        rss = one["rss"] / 1e6
        lines.append(f"{'':8}{seconds:8.0f}  {rss:8.1f}  {one['threads']:8d}  {one['fds']:6d}")
    return lines


def grown(who: str, vitals: Vitals) -> list[str]:
    """What has grown from the second to the last quarter."""
    quarter = len(vitals) // 4
    if quarter < 2:
        return []
    wrong = []
    for what, allowed in GROWTH.items():
        before = statistics.median(one[what] for one in vitals[quarter : 2 * quarter])
        after = statistics.median(one[what] for one in vitals[-quarter:])
        if after > before + allowed:
            wrong.append(f"{who}: {what} has grown from {before:.0f} to {after:.0f}")
    return wrong


def chaos(cluster: Cluster, *, seconds: float, seed: int) -> Report:
    """One run of chaos; prints the resource use of the workers that were never killed."""
    run = Chaos(cluster, seconds=seconds, seed=seed, spared=2)
    report = run.run()
    print("\n".join(report.lines()), flush=True)
    if report.wrong:
        keep(run)
    for who, vitals in sorted(report.vitals.items()):
        if who in report.spared:
            print("\n".join(table(who, vitals)), flush=True)
            report.wrong += grown(who, vitals)
    return report


def keep(run: Chaos) -> Path:
    """Save the evidence for an analysis: etcd's history and the clients' beliefs."""
    path = Path(f"chaos-{run.report.kind}-{run.seed}.json".replace(" ", "-"))
    path.write_text(json.dumps(run.evidence(), indent=1))
    print(f"kept for a closer look: {path}", flush=True)
    return path


def simulate(seeds: str) -> int:
    """Run the simulator over these seeds; returns its exit code."""
    print(f"simulator, seeds {seeds}", flush=True)
    command = [sys.executable, "-m", "tests.simulation", "--seeds", seeds, "--keep-going"]
    return subprocess.run(command, check=False).returncode


def pace(seconds: float) -> int:
    """Run ten processes at one rate limit; returns pytest's exit code."""
    print(f"ten processes at a rate limit, {seconds:.0f} s", flush=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/rates"]
    command += ["--all", "--rate-seconds", str(seconds)]
    return subprocess.run(command, cwd=Path(__file__).parents[2], check=False).returncode


def work(seconds: float) -> int:
    """Run the ordinary programs, one after the other; returns pytest's exit code."""
    print(f"ordinary programs, {seconds:.0f} s each", flush=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/ordinary"]
    command += ["--all", "--ordinary-seconds", str(seconds), "--timeout", str(seconds + 300)]
    return subprocess.run(command, check=False).returncode


def mutants() -> int:
    """Put one-line faults into a copy of the package; returns the exit code of `tests.mutants`."""
    print("one-line faults", flush=True)
    command = [sys.executable, "-m", "tests.mutants"]
    return subprocess.run(command, cwd=Path(__file__).parents[2], check=False).returncode


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything; the exit code is 1 if anything is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", default="0:2000", help="of the simulator, A:B; empty: none")
    parser.add_argument("--seconds", type=float, default=600.0, help="of chaos on each cluster")
    parser.add_argument("--rate-seconds", type=float, default=120.0, help="of the rate; 0: none")
    parser.add_argument(
        "--ordinary-seconds", type=float, default=60.0, help="of each ordinary program; 0: none"
    )
    parser.add_argument("--on", default="containers,machine", help="empty: no chaos")
    parser.add_argument("--no-mutants", action="store_true", help="leave the one-line faults out")
    parser.add_argument("--seed", type=int, default=None, help="of the chaos; else random")
    parser.add_argument("--etcd", default=None, help="the etcd program for `machine`")
    given = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(100_000) if given.seed is None else given.seed
    print(f"soak of {datetime.now(UTC):%Y-%m-%d %H:%M} UTC", flush=True)
    wrong: list[str] = []
    for kind in filter(None, given.on.split(",")):
        with contextlib.ExitStack() as stack:
            cluster = stack.enter_context(
                in_containers()
                if kind == "containers"
                else on_this_machine(given.etcd or find_binary("etcd"))
            )
            wrong += chaos(cluster, seconds=given.seconds, seed=seed).wrong
    if given.rate_seconds and pace(given.rate_seconds) != 0:
        wrong.append("a rate limit was exceeded, or not used")
    if given.ordinary_seconds and work(given.ordinary_seconds) != 0:
        wrong.append("an ordinary program has lost something, or stood still")
    if not given.no_mutants and mutants() != 0:
        wrong.append("a one-line fault was not caught by its tests")
    if given.seeds and simulate(given.seeds) != 0:
        wrong.append("the simulator has found something")
    print("\n".join(f"WRONG: {one}" for one in wrong) if wrong else "nothing is wrong", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
