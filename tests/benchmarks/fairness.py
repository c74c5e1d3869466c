"""Does everybody get the same share: ``python -m tests.benchmarks.fairness``.

Jain's index of whole turns says little where each client has a few: of 3.5 turns on average some
have 3 and some 4, and the index of that is 0.98 though nobody could be served more fairly. So here
each client has some 15 turns on average, which takes half a minute for 1,000 of them. Speed is no
matter: nothing else is measured, and a busy machine does no harm.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tests.benchmarks.book import Book
from tests.benchmarks.measure import fresh_etcd, machine, measure
from tests.benchmarks.rows import OURS, Row, contended

CLIENTS = (2, 10, 50, 200, 500, 1000)
TURNS = 15
SLOWEST = 500.0
"""Hand-overs a second that are reckoned with."""


def rows(clients: tuple[int, ...] = CLIENTS) -> list[Row]:
    """The rows, all with two processes as those of the speed."""
    return [
        Row(contended(limit, count), count, limit, 2, tuple(OURS))
        for limit in (1, 5)
        for count in clients
        if count > limit
    ]


def found(row: Row, contestant: str, turns: float) -> dict[str, Any]:
    """Measure one."""
    seconds = max(2.0, turns * row.clients / SLOWEST)
    with fresh_etcd() as etcd:
        result = measure(etcd, contestant, row, seconds)
    return {
        "row": row.title,
        "contestant": contestant,
        "jain": result.jain,
        "starved": result.starved,
        "least": result.least,
        "turns": result.rate * seconds / row.clients,
    }


def table(parts: list[dict[str, Any]]) -> list[list[str]]:
    """For people."""
    lines = [["", "Jain's index", "starved", "turns at the mean", "at the least"]]
    for one in parts:
        kind = "asyncio" if "asyncio" in one["contestant"] else "threads"
        lines.append(
            [
                f"{one['row']}, {kind}",
                f"{one['jain']:.3f}",
                str(one["starved"]),
                f"{one['turns']:.1f}",
                str(one["least"]),
            ]
        )
    return lines


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.fairness", description=__doc__
    )
    parser.add_argument("--turns", type=float, default=TURNS, help=f"default {TURNS}")
    parser.add_argument("--clients", type=int, nargs="*", default=CLIENTS)
    parser.add_argument("--json", type=Path, help="add the figures to this file")
    options = parser.parse_args()
    book = Book(options.json)
    parts: list[dict[str, Any]] = []
    for row in rows(tuple(options.clients)):
        for contestant in row.contestants:
            parts.append(found(row, contestant, options.turns))
            print(*table(parts)[-1], sep="\t", flush=True)
            book.put("fairness", {"machine": machine(), "rows": parts, "table": table(parts)})


if __name__ == "__main__":
    main()
