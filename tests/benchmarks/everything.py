"""All benchmarks, one after the other, and the page: ``python -m tests.benchmarks.everything
found.json``; docs/performance.md and docs/speed.svg are written at the end.

Three quarters of an hour by default: the rounds twenty minutes, churn and the rest ten each.
``--quick`` is a look at whether it all works, in three minutes; ``--churn SECONDS`` makes the churn
longer (an hour is what the target asks for). What fails is told, and the rest goes on.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

PARTS = ("speed", "fairness", "parts", "start", "memory", "crash", "sizing", "churn")


def steps(options: argparse.Namespace) -> list[list[str]]:
    """The commands."""
    quick = options.quick
    found = str(options.json)
    parts: dict[str, list[str]] = {
        "speed": ["--quick"] if quick else ["--rounds", str(options.rounds)],
        "fairness": ["--turns", "2", "--clients", "2", "10"] if quick else [],
        "parts": ["--rounds", "1", "--count", "200"] if quick else [],
        "start": ["--times", "3"] if quick else [],
        "memory": [],
        "crash": ["--kills", "4"] if quick else [],
        "sizing": ["--quick"] if quick else [],
        "churn": ["--seconds", "20" if quick else str(options.churn)],
    }
    return [
        [sys.executable, "-m", "tests.benchmarks" + _module(part), *extra, "--json", found]
        for part, extra in parts.items()
        if part not in options.without
    ]


def _module(part: str) -> str:
    return "" if part == "speed" else f".{part}"


def main() -> int:
    """Run them all."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.everything",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("json", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--churn", type=float, default=600.0, help="seconds, default 600")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument(
        "--without", nargs="*", default=[], choices=PARTS, help="parts to leave out"
    )
    parser.add_argument("--no-page", action="store_true", help="leave docs/ as it is")
    options = parser.parse_args()
    failed = []
    for command in steps(options):
        began = time.monotonic()
        print(f"$ {' '.join(command[1:])}", file=sys.stderr, flush=True)
        if subprocess.run(command, check=False).returncode != 0:
            failed.append(command[2])
        print(f"{time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    if not options.no_page:
        subprocess.run([sys.executable, "-m", "tests.benchmarks.page", options.json], check=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
