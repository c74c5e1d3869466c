"""The picture of hand-overs a second against waiting clients:
``python -m tests.benchmarks.picture found.json docs/speed.svg``.

Both axes logarithmic; plain SVG with no font, script or colour from elsewhere, dark where the
reader's system is.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

from tests.benchmarks.book import Book
from tests.benchmarks.rows import contended
from tests.benchmarks.verdicts import CLIENTS

WIDTH, HEIGHT = 860, 480
LEFT, RIGHT, TOP, BOTTOM = 64, 206, 50, 56
LINE = 17
"""Pixels between two labels."""


class Line(NamedTuple):
    """A contestant, its name in the picture, and how it is drawn."""

    contestant: str
    label: str
    style: str


LINES = (
    Line("etcdsem", "etcdsem, threads", "ours"),
    Line("etcdsem asyncio", "etcdsem, asyncio", "ours2"),
    Line("floor baton", "floor: baton, 1 commit", "floor1"),
    Line("floor queue", "floor: queue, 2 commits", "floor"),
    Line("wire queue", "the same on our wire", "floor2"),
    Line("dask", "Dask (not durable)", "peer1"),
    Line("kazoo", "kazoo on ZooKeeper", "peer2"),
    Line("etcd3 Lock", "python-etcd3 Lock", "peer3"),
)

_COLOURS = {  # on light paper, and on dark
    "ink": ("#1f2328", "#f0f6fc"),
    "soft": ("#59636e", "#9da7b1"),
    "ours": ("#0757ba", "#6cb6ff"),
    "ours2": ("#6639ba", "#c9a6ff"),
    "floor": ("#59636e", "#9da7b1"),
    "floor1": ("#59636e", "#9da7b1"),
    "floor2": ("#59636e", "#9da7b1"),
    "peer1": ("#b35900", "#f0a35e"),
    "peer2": ("#1a7f37", "#63c97b"),
    "peer3": ("#b02a55", "#ff8fab"),
}
_PAPER = ("#ffffff", "#0d1117")
_GRID = ("#d8dee4", "#343b44")
_STYLE = """
text { font-family: system-ui, "DejaVu Sans", sans-serif; font-size: 13px; }
.title { font-size: 16px; font-weight: 600; }
.grid, .line { fill: none; }
.line { stroke-width: 2; stroke-linejoin: round; }
.line.ours { stroke-width: 4; }
.line.ours2 { stroke-width: 3; }
.line.floor { stroke-dasharray: 7 4; }
.line.floor1 { stroke-dasharray: 2 4; }
.line.floor2 { stroke-dasharray: 12 3 2 3; }
text.ours, text.ours2 { font-weight: 600; }
"""


def _colours(dark: bool) -> str:
    """The rules that differ between light and dark; plain ones, which every program knows."""
    rules = [f".paper {{ fill: {_PAPER[dark]}; }}", f".grid {{ stroke: {_GRID[dark]}; }}"]
    for name, shades in _COLOURS.items():
        rules.append(f".line.{name} {{ stroke: {shades[dark]}; }}")
        rules.append(f"text.{name}, circle.{name} {{ fill: {shades[dark]}; }}")
    return "\n".join(rules)


def draw(book: Book) -> str:
    """The whole picture; raises ValueError if nothing with limit 1 was measured."""
    curves = {line: points for line in LINES if (points := _points(book, line.contestant))}
    if not curves:
        raise ValueError("no row with limit 1 was measured")
    clients = sorted({n for points in curves.values() for n, _ in points})
    rates = [rate for points in curves.values() for _, rate in points]
    low = 10 ** math.floor(math.log10(max(0.1, min(rates))))
    high = _ceiling(max(rates))
    first, last = clients[0], max(clients[-1], 2 * clients[0])

    def x(number: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * _share(number, first, last)

    def y(rate: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * _share(rate, low, high)

    parts = [*_frame(book), *_grid(clients, low, high, x, y)]
    for line, points in reversed(list(curves.items())):  # ours on top
        path = " ".join(f"{'ML'[n > 0]}{x(c):.1f} {y(r):.1f}" for n, (c, r) in enumerate(points))
        parts.append(f'<path class="line {line.style}" d="{path}"/>')
        parts += [
            f'<circle class="{line.style}" cx="{x(c):.1f}" cy="{y(r):.1f}" r="3.5"/>'
            for c, r in points
        ]
    parts += _labels(
        {line: (x(points[-1][0]), y(points[-1][1])) for line, points in curves.items()}
    )
    return "\n".join(parts) + "\n</svg>\n"


def _points(book: Book, contestant: str) -> list[tuple[int, float]]:
    found = ((n, book.median(contended(1, n), contestant)) for n in CLIENTS)
    return [(n, rate) for n, rate in found if rate]


def _share(value: float, low: float, high: float) -> float:
    return math.log(value / low) / math.log(high / low)


def _ceiling(rate: float) -> float:
    """The next of 1, 2, 5, 10, ... above."""
    power = 10.0 ** math.floor(math.log10(rate))
    return next(step * power for step in (2, 5, 10, 20) if step * power > rate)


def _frame(book: Book) -> list[str]:
    machine = book.parts.get("machine", {})
    rounds = 1 + max((one["round"] for one in book.speed), default=0)
    where = (
        f"{machine.get('cores', '?')} cores for all, etcd {machine.get('etcd', '?')}, "
        f"Python {machine.get('python', '?')}; medians of {rounds} rounds"
    )
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" role="img" aria-labelledby="t">',
        f"<style>{_STYLE}{_colours(False)}",
        f"@media (prefers-color-scheme: dark) {{\n{_colours(True)}\n}}</style>",
        f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}" rx="8"/>',
        f'<text id="t" class="title ink" x="{LEFT - 44}" y="26">'
        "Hand-overs a second, limit 1, against the number of clients in line</text>",
        f'<text class="soft" x="{WIDTH - 20}" y="{HEIGHT - 14}" text-anchor="end">'
        f"{escape(where)}</text>",
        f'<text class="soft" x="{LEFT - 44}" y="{HEIGHT - 14}">clients</text>',
    ]


def _grid(clients: Sequence[int], low: float, high: float, x: object, y: object) -> list[str]:
    assert callable(x)
    assert callable(y)
    parts = []
    right = WIDTH - RIGHT
    for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1):
        for step in (1, 2, 5):
            rate = step * 10.0**power
            if low <= rate <= high * 1.0001:
                at = y(rate)
                parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{right}"/>')
                parts.append(
                    f'<text class="soft" x="{LEFT - 8}" y="{at + 4:.1f}" '
                    f'text-anchor="end">{rate:,.10g}</text>'
                )
    for number in clients:
        at = x(number)
        parts.append(f'<path class="grid" d="M{at:.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
        parts.append(
            f'<text class="soft" x="{at:.1f}" y="{HEIGHT - BOTTOM + 18}" '
            f'text-anchor="middle">{number:,}</text>'
        )
    return parts


def _labels(ends: dict[Line, tuple[float, float]]) -> list[str]:
    """Each beside the end of its line, moved apart where they would touch."""
    order = sorted(ends, key=lambda line: ends[line][1])
    places: list[float] = []
    for line in order:
        wanted = ends[line][1]
        places.append(max(wanted, places[-1] + LINE) if places else wanted)
    over = max(0.0, places[-1] - (HEIGHT - BOTTOM))
    places = [place - over for place in places]
    parts = []
    for line, place in zip(order, places, strict=True):
        from_x, from_y = ends[line]
        left = WIDTH - RIGHT + 26
        parts.append(
            f'<path class="grid" d="M{from_x + 6:.1f} {from_y:.1f}L{left - 5} {place:.1f}"/>'
        )
        parts.append(
            f'<text class="{line.style}" x="{left}" y="{place + 4:.1f}">{escape(line.label)}</text>'
        )
    return parts


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(draw(Book(Path(sys.argv[1]))))
