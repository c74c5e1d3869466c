"""Run the benchmarks: ``python -m tests.benchmarks --json found.json``.

1. In each round each row runs, and in it each contestant, one after the other, on an etcd that was
   started for it. Every other round goes the other way round. Slow peers take part in some rounds.
2. Figures are medians over the rounds, ratios medians of the rounds' ratios: what drifts with the
   machine does not show in them. Only figures of one run may be compared.
3. Ratios are against the floor of the same kind (`floors.py`). At the end it says which of the
   targets are met (`verdicts.py`).
4. etcd's own counters tell what a cycle cost it: commits, watch events, CPU time.

The default is made for about twenty minutes on a quiet machine of two cores.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from tests.benchmarks import peers, verdicts
from tests.benchmarks.book import Book
from tests.benchmarks.measure import PEERS_WARM_UP, fresh_etcd, machine, measure
from tests.benchmarks.rows import Row, chosen, floor_of

START = 1.5
"""Seconds that a measurement takes beside measuring: an etcd, processes, a first turn for all."""


def estimate(rows: list[Row], rounds: int, peer_rounds: int, seconds: float) -> float:
    """How many seconds it will take, more or less."""
    total = 0.0
    for row in rows:
        for name in row.contestants:
            peer = name in peers.TARGETS
            one = START + row.seconds(name, seconds) + (PEERS_WARM_UP / 3 if peer else 0)
            total += one * (min(rounds, peer_rounds) if peer else rounds)
    return total


def run(book: Book, rows: list[Row], options: argparse.Namespace) -> None:
    """All rounds. What was measured is in the book after each measurement."""
    speed: list[dict[str, Any]] = []
    for number in range(options.rounds):
        began = time.monotonic()
        for row in rows:
            names = [
                name
                for name in row.contestants
                if name not in peers.TARGETS or number < options.peer_rounds
            ]
            for contestant in names[:: -1 if number % 2 else 1]:
                with fresh_etcd(options.fsync) as etcd:
                    result = measure(etcd, contestant, row, options.seconds)
                facts = {"row": row.title, "clients": row.clients, "limit": row.limit}
                speed.append(
                    {**facts, "contestant": contestant, "round": number, **result._asdict()}
                )
                book.put("speed", speed)
        took = time.monotonic() - began
        print(f"round {number + 1} of {options.rounds}: {took:.0f} s", file=sys.stderr, flush=True)


def show(book: Book, row: str) -> str:
    """A row for people to read."""
    lines = [
        f"{row:28} {'cycles/s':>9} {'of floor':>9} {'Jain':>6} {'least':>6} {'starved':>7} "
        f"{'commits':>8} {'events':>7} {'etcd CPU':>9} {'client CPU':>11} "
        f"{'refused':>7}"
    ]
    for name in sorted(book.contestants(row)):
        ratio = book.ratio((row, name), (row, floor_of(name, row)))
        shown = {
            field: book.median(row, name, field) or 0.0
            for field in ("rate", "jain", "least", "starved", "commits", "events")
        }
        etcd_ms, client_ms = (book.median(row, name, f) or 0.0 for f in ("etcd_ms", "client_ms"))
        lines.append(
            f"  {name:26} {shown['rate']:9.0f} "
            f"{'' if ratio is None else format(ratio, '9.2f'):>9} {shown['jain']:6.3f} "
            f"{shown['least']:6.0f} {shown['starved']:7.0f} {shown['commits']:8.2f} "
            f"{shown['events']:7.2f} {etcd_ms:7.2f}ms {client_ms:9.2f}ms "
            f"{sum(book.rounds(row, name, 'refused').values()):7.0f}"
        )
    return "\n".join(lines)


def arguments() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument("--peer-rounds", type=int, default=2, help="of the peers, default 2")
    parser.add_argument("--seconds", type=float, default=1.0, help="each measurement, default 1")
    parser.add_argument("--series", default="", help="only the rows whose title has this in it")
    parser.add_argument("--only", default="", help="beside the floors, only contestants like this")
    parser.add_argument("--fsync", action="store_true", help="an etcd that writes through")
    parser.add_argument(
        "--quick", action="store_true", help="a minute: some rows, one round of half a second"
    )
    parser.add_argument("--json", type=Path, help="write all rounds there")
    return parser


def main() -> int:
    """Run what was asked for."""
    options = arguments().parse_args()
    if options.quick:
        options.rounds, options.seconds = 1, 0.5
    if options.rounds < 1 or options.seconds <= 0:
        raise SystemExit("--rounds and --seconds must be more than 0")
    rows = chosen(options.series, options.only, options.quick)
    if not rows:
        raise SystemExit(f"no row has {options.series!r} in its title")
    book = Book(options.json)
    book.put("machine", machine(options.fsync))
    book.put("settings", {"rounds": options.rounds, "seconds": options.seconds})
    for name in peers.NAMES:
        if reason := peers.missing(name):
            print(f"without {name}: {reason}", file=sys.stderr)
    expected = estimate(rows, options.rounds, options.peer_rounds, options.seconds)
    print(f"{len(rows)} rows, about {expected / 60:.0f} minutes", file=sys.stderr, flush=True)
    try:
        run(book, rows, options)
    finally:
        for row in rows:
            print(show(book, row.title), flush=True)
        print()
        print(verdicts.report(book))
    return 0


if __name__ == "__main__":
    sys.exit(main())
