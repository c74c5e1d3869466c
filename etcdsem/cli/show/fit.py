"""Fit a table to the width of a terminal, without losing a number or an ID.

1. Numbers and IDs never shrink and are never dropped.
2. Extras (labels, a bar) go first. Then names are shortened in the middle.
3. If that is not enough, each row takes several lines, and so do the titles.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from rich.text import Text

Kind = Literal["number", "name", "words", "labels", "bar"]

_GAP: Final = "  "
_INDENT: Final = "  "
_LEAST_NAME: Final = 8
_SHORT_NAME: Final = 12
"""A name is not shortened below this to keep words, such as a note, on the same line."""

_LEAST_LABELS: Final = 8

_KINDS: Final[dict[str, Kind]] = {
    "NAME": "name",
    "HOLDER": "name",
    "GRANTED TO": "name",
    "WAITER": "name",
    "WANTS": "words",
    "NOTE": "words",
    "LABELS": "labels",
}


class Column(NamedTuple):
    """A column of a table."""

    title: str
    kind: Kind = "number"
    right: bool = False


class Cell(NamedTuple):
    """The text of a cell, and its style."""

    text: str
    style: str = ""


class _Part(NamedTuple):
    """A column on a line of a row, and the width that it has there."""

    place: int
    width: int


Layout = list[list[_Part]]
"""The lines of a row."""


def columns(
    header: Sequence[str], right: frozenset[str], *, all_labels: bool = False
) -> list[Column]:
    """Return the columns with these titles.

    Args:
        header: the titles.
        right: the titles of columns that are aligned right.
        all_labels: whether labels that do not fit go to lines of their own, rather than away.
    """
    kinds: dict[str, Kind] = {**_KINDS, **({"LABELS": "words"} if all_labels else {})}
    return [Column(title, kinds.get(title, "number"), title in right) for title in header]


def fit(
    table: Sequence[Column], rows: Sequence[Sequence[Cell]], width: int, *, unicode: bool = True
) -> list[list[Text]]:
    """Return the lines of the titles, followed by the lines of each row.

    Args:
        table: the columns.
        rows: one cell per column; their text must be printable.
        width: width of the terminal.
        unicode: whether the terminal can show more than ASCII.
    """
    mark = "…" if unicode else "..."
    titles = [Cell(one.title, "bold") for one in table]
    natural = [
        max(_length(row[place].text) for row in (titles, *rows)) for place in range(len(table))
    ]
    layout = _layout(table, natural, width)
    return [
        _title_lines(table, titles, layout, mark),
        *(_row_lines(table, row, layout, mark, width) for row in rows),
    ]


def middle(text: str, width: int, mark: str) -> str:
    """Shorten text to `width`, leaving out its middle."""
    if _length(text) <= width:
        return text
    left = max(0, width - len(mark))
    end = left // 2
    return _start(text, left - end) + mark[:width] + (_end(text, end) if end else "")


def _layout(table: Sequence[Column], natural: Sequence[int], width: int) -> Layout:
    places = range(len(table))
    extra = [place for place in places if table[place].kind in ("labels", "bar")]
    words = [place for place in places if table[place].kind == "words"]
    plain = [place for place in places if place not in extra]
    below: list[int] = []  # words on lines of their own
    line = None
    while line is None:
        inline = len(words) > len(below)
        least = _SHORT_NAME if inline else _LEAST_NAME
        beside = [place for place in plain if place not in below]
        line = _one_line(table, natural, beside, extra, width, least)
        if line is None and not inline:
            break
        if line is None:
            below.insert(0, words[-1 - len(below)])
    lines = [line] if line is not None else _stacked(table, natural, beside, width)
    return lines + [[_Part(place, max(1, width - len(_INDENT)))] for place in below]


def _one_line(
    table: Sequence[Column],
    natural: Sequence[int],
    plain: Sequence[int],
    extra: Sequence[int],
    width: int,
    least_name: int,
) -> list[_Part] | None:
    """Return the columns that fit beside each other; None unless all of `plain` do."""
    widths = {place: _least(table[place], natural[place], least_name) for place in plain}
    spare = width - sum(widths.values()) - len(_GAP) * (len(plain) - 1)
    if spare < 0:
        return None
    for place in extra:
        if table[place].kind == "bar" and spare >= natural[place] + len(_GAP):
            widths[place] = natural[place]
            spare -= natural[place] + len(_GAP)
    for place in plain:
        more = min(spare, natural[place] - widths[place])
        widths[place] += more
        spare -= more
    for place in extra:
        room = spare - len(_GAP)
        if table[place].kind == "labels" and room >= min(natural[place], _LEAST_LABELS):
            widths[place] = min(natural[place], room)
            spare = room - widths[place]
    return [_Part(place, widths[place]) for place in sorted(widths)]


def _stacked(
    table: Sequence[Column], natural: Sequence[int], plain: Sequence[int], width: int
) -> Layout:
    """Return the columns on as many lines as they need; later lines are indented."""
    lines: Layout = []
    left = 0
    for place in plain:
        least = _least(table[place], natural[place], _LEAST_NAME)
        if not lines or left < least + len(_GAP):
            lines.append([])
            left = width - (len(_INDENT) if len(lines) > 1 else 0) + len(_GAP)
        lines[-1].append(_Part(place, least))
        left -= least + len(_GAP)
    for number, line in enumerate(lines):
        used = sum(part.width + len(_GAP) for part in line) - len(_GAP)
        spare = width - used - (len(_INDENT) if number else 0)
        for at, (place, least) in enumerate(line):
            more = max(0, min(spare, natural[place] - least))
            line[at] = _Part(place, least + more)
            spare -= more
    return lines


def _least(column: Column, natural: int, least_name: int) -> int:
    if column.kind != "name":
        return natural
    return min(natural, max(len(column.title), least_name))


def _title_lines(
    table: Sequence[Column], titles: Sequence[Cell], layout: Layout, mark: str
) -> list[Text]:
    lines = [line for line in layout if len(line) > 1 or table[line[0].place].kind != "words"]
    return [_line(table, titles, line, mark, bool(number)) for number, line in enumerate(lines)]


def _row_lines(
    table: Sequence[Column], row: Sequence[Cell], layout: Layout, mark: str, width: int
) -> list[Text]:
    from rich.text import Text

    lines: list[Text] = []
    for number, line in enumerate(layout):
        if number and table[line[0].place].kind == "words":  # on lines of its own, if any
            cell = row[line[0].place]
            if cell.text not in ("", "-"):
                for part in textwrap.wrap(cell.text, max(1, width - len(_INDENT))):
                    lines.append(Text.assemble(_INDENT, (part, cell.style)))
        else:
            lines.append(_line(table, row, line, mark, bool(number)))
    for drawn in lines:
        drawn.no_wrap = True
    return lines


def _line(
    table: Sequence[Column], row: Sequence[Cell], line: Sequence[_Part], mark: str, later: bool
) -> Text:
    from rich.text import Text

    drawn = Text(_INDENT if later else "", no_wrap=True, end="\n")
    for at, (place, width) in enumerate(line):
        kind = table[place].kind
        text = row[place].text
        if kind == "name":
            text = middle(text, width, mark)
        elif kind == "labels" and _length(text) > width:
            text = _start(text, width - len(mark)) + mark
        blank = " " * (width - _length(text))
        drawn.append(_GAP if at else "")
        drawn.append(blank if table[place].right else "")
        drawn.append(text, style=row[place].style)
        drawn.append("" if table[place].right else blank)
    drawn.rstrip()
    return drawn


def _length(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)


def _start(text: str, width: int) -> str:
    """Return as much of the start of a text as fits."""
    while _length(text) > width:
        text = text[:width] if len(text) > width else text[:-1]
    return text


def _end(text: str, width: int) -> str:
    """Return as much of the end of a text as fits."""
    while _length(text) > width:
        text = text[-width:] if len(text) > width else text[1:]
    return text
