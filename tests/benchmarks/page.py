"""Write what was measured into docs/performance.md, and docs/speed.svg:
``python -m tests.benchmarks.page found.json``.

Only what is between the two markers is written; the rest of the page is by hand.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks import picture, verdicts
from tests.benchmarks.book import Book
from tests.benchmarks.rows import contended, floor_of, rows

DOCS = Path(__file__).parents[2] / "docs"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
_NAMES = {
    "floor two": "floor",
    "floor two asyncio": "floor, asyncio",
    "wire two": "wire",
    "wire two asyncio": "wire, asyncio",
    "floor baton": "baton",
    "floor queue": "queue floor",
    "floor queue asyncio": "queue floor, asyncio",
    "wire queue": "queue on the wire",
    "wire queue asyncio": "queue on the wire, asyncio",
    "etcdsem": "**etcdsem**",
    "etcdsem asyncio": "**etcdsem, asyncio**",
    "etcdsem linger": "**with linger**",
    "etcdsem linger asyncio": "**with linger, asyncio**",
    "dask": "Dask",
    "etcd3 Lock": "python-etcd3 Lock",
}


def page(text: str, book: Book, drawn: bool = False) -> str:
    """The page with its middle part made anew; raises ValueError if it has no markers."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"the page must have {BEGIN} and {END}, once each")
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    parts = [part for make in _PARTS for part in make(book)]
    if drawn:
        parts.insert(1, "![Hand-overs a second against clients in line](speed.svg)")
    return f"{head}{BEGIN}\n\n" + "\n\n".join(parts) + f"\n\n{END}{tail}"


def _table(heads: list[str], lines: list[list[str]]) -> str:
    out = [heads, ["---"] * len(heads), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in out)


def _machine(book: Book) -> Iterator[str]:
    facts = book.parts.get("machine", {})
    rounds = 1 + max((one["round"] for one in book.speed), default=-1)
    written = "with" if facts.get("fsync") else "without"
    text = (
        f"Measured on {facts.get('date', '?')} at commit {facts.get('commit') or '?'}: "
        f"{facts.get('cores')} cores ({facts.get('cpu')}) for clients and server together, "
        f"{facts.get('system')}, Python {facts.get('python')}, grpcio {facts.get('grpcio')}, "
        f"etcd {facts.get('etcd')} {written} fsync, load {facts.get('load_before')} before it "
        f"began. Medians of {rounds} rounds."
    )
    yield textwrap.fill(text, 100, break_on_hyphens=False)


def _rate(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1f}" if value < 10 else f"{value:,.0f}"


def _with_ratio(book: Book, row: str, name: str) -> str:
    shown = _rate(book.median(row, name))
    ratio = book.ratio((row, name), (row, floor_of(name, row)))
    ours = name.startswith("etcdsem")
    return f"{shown} ({ratio:.2f})" if shown and ours and ratio is not None else shown


def _speed(book: Book) -> Iterator[str]:
    for title, wanted in (
        ("Cycles a second, uncontended", "uncontended"),
        ("Hand-overs a second, limit 1", "limit 1,"),
        ("Hand-overs a second, limit 5", "limit 5,"),
    ):
        titles = [row.title for row in rows() if row.title.startswith(wanted)]
        titles = [row for row in titles if book.contestants(row)]
        names = [
            name
            for name in (*_NAMES, "kazoo")
            if any(name in book.contestants(row) for row in titles)
        ]
        if titles:
            lines = [
                [_shorter(row), *(_with_ratio(book, row, name) for name in names)] for row in titles
            ]
            yield f"**{title}** (in brackets: of the floor of the same kind)"
            yield _table(["clients", *(_NAMES.get(name, name) for name in names)], lines)


def _shorter(row: str) -> str:
    return row.split(", ")[1].split()[0]


def _cost(book: Book) -> Iterator[str]:
    lines = []
    for limit in (1, 5):
        for clients in verdicts.CLIENTS:
            row = contended(limit, clients)
            for name in verdicts.KINDS:
                if name not in book.contestants(row):
                    continue
                figures = [
                    book.median(row, name, field)
                    for field in ("jain", "starved", "commits", "events", "etcd_ms", "client_ms")
                ]
                floor = floor_of(name, row)
                cpu, own = (
                    book.ratio((row, name), (row, floor), field)
                    for field in ("etcd_ms", "client_ms")
                )
                jain, starved, commits, events, etcd, client = (figure or 0 for figure in figures)
                lines.append(
                    [
                        f"limit {limit}, {clients}, {verdicts.kind(name)}",
                        f"{jain:.3f}",
                        f"{starved:.0f}",
                        f"{commits:.2f}",
                        f"{events:.2f}",
                        f"{etcd:.2f}" + ("" if cpu is None else f" ({cpu:.2f})"),
                        f"{client:.2f}" + ("" if own is None else f" ({own:.2f})"),
                    ]
                )
    if lines:
        heads = ["", "Jain", "starved", "commits", "events", "etcd CPU, ms", "client CPU, ms"]
        yield "**What a hand-over costs, and who gets it** (in brackets: of the queue floor's)"
        yield _table(heads, lines)


def _more(book: Book) -> Iterator[str]:
    """What the other scripts found."""
    for part, title in _SCRIPTS.items():
        found: dict[str, Any] = book.parts.get(part, {})
        if found.get("table"):
            heads, *lines = found["table"]
            yield f"**{title}**: `python -m tests.benchmarks.{part}`"
            yield _table(heads, lines)


_SCRIPTS = {
    "fairness": "Who gets it, with more turns for each",
    "parts": "What the two transactions of a hand-over cost etcd",
    "start": "The command line's start",
    "memory": "Memory",
    "crash": "A holder is killed with SIGKILL, another waits",
    "churn": "Churn",
    "sizing": "What waiting costs etcd",
}


def _targets(book: Book) -> Iterator[str]:
    words = {True: "met", False: "**missed**", None: "not measured"}
    lines = [[one.target, one.wanted, one.found, words[one.met]] for one in verdicts.verdicts(book)]
    yield "**The targets**"
    yield _table(["", "wanted", "measured", ""], lines)


_PARTS: tuple[Callable[[Book], Iterator[str]], ...] = (_machine, _speed, _cost, _more, _targets)


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.page", description=__doc__)
    parser.add_argument("json", type=Path, help="what the benchmarks wrote")
    parser.add_argument("--docs", type=Path, default=DOCS, help="the folder of the pages")
    options = parser.parse_args()
    book = Book(options.json)
    file = options.docs / "performance.md"
    try:
        (options.docs / "speed.svg").write_text(picture.draw(book))
        drawn = True
    except ValueError:
        drawn = False  # a part of the series only
    file.write_text(page(file.read_text(), book, drawn))
    print(verdicts.report(book))


if __name__ == "__main__":
    main()
