"""Output for people and programs: messages on stderr, tables, JSON.

1. Data from etcd may contain anything, even terminal escapes: it goes through `clean()` for people,
   and through `json.dumps` (ASCII only) for programs.
2. Writing to stderr never raises: a lost message must not fail a job.
3. Tables are drawn by rich on a terminal; elsewhere they are plain columns with one header line.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table as RichTable

    from etcdsem.model import Pause, Rate


class OutputError(Exception):
    """Standard output cannot be written. Its ``__cause__`` is the OSError."""


def clean(text: object) -> str:
    """Return `text` on one line, with every non-printable character escaped."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode("ascii")
        for c in str(text)
    )


def say(message: object) -> None:
    """Write one message to stderr. Never raises."""
    write_stderr(f"etcdsem: {clean(message)}\n")


def write_stderr(text: str) -> None:
    """Write to stderr; do nothing if it is closed."""
    try:
        if sys.stderr is not None:
            sys.stderr.write(text)
            sys.stderr.flush()
    except (OSError, ValueError):
        pass


def echo(text: str) -> None:
    """Write one line to stdout. Raises OutputError."""
    if sys.stdout is None:
        raise OutputError from OSError(errno.EBADF, os.strerror(errno.EBADF))
    try:
        sys.stdout.write(text + "\n")
    except OSError as error:
        raise OutputError from error


def flush() -> None:
    """Flush stdout. Raises OutputError."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        raise OutputError from error


def age(moment: datetime | None) -> str:
    """Format the time since `moment`. Clocks differ, so a time in the future counts as 0s."""
    if moment is None:
        return "?"
    return span(max(0.0, (datetime.now(UTC) - moment).total_seconds()))


def used(held: int, rate: Rate | None) -> int:
    """Return what counts against the limit: slots, or the permits of a rate limit's slots."""
    return held if rate is None else rate.block * held


def limit_text(number: int | None, rate: Rate | None) -> str:
    """Format a limit or a rate."""
    return str(rate) if rate is not None else "?" if number is None else str(number)


def pause_text(pause: Pause) -> str:
    """Format a pause: since when, by whom, and why."""
    when = f" {age(pause.since)} ago" if pause.since is not None else ""
    by = f" by {pause.by}" if pause.by else ""
    return f"paused{when}{by}" + (f": {pause.reason}" if pause.reason else "")


def span(seconds: float) -> str:
    """Format a duration in at most two units: 7s, 2m05s, 3h10m, 4d02h."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"


def exact(seconds: float) -> str:
    """Format a duration so that it can be used as a setting: 0.5s, 30s."""
    return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"


def until_text(seconds: float) -> str:
    """Format the time until something happens."""
    return exact(seconds) if seconds < 10 else span(seconds)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], right: frozenset[str]) -> None:
    """Print a table; columns named in `right` are aligned right. Raises OutputError."""
    cells = [[clean(cell) for cell in row] for row in rows]
    if sys.stdout is not None and sys.stdout.isatty():
        _rich_table(header, cells, right)
    else:
        _plain_table(header, cells, right)


def _plain_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], right: frozenset[str]
) -> None:
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    for row in (header, *rows):
        line = "  ".join(
            cell.rjust(width) if title in right else cell.ljust(width)
            for cell, width, title in zip(row, widths, header, strict=True)
        )
        echo(line.rstrip())


_FOLDED = ("NAME", "HOLDER", "GRANTED TO", "WAITER", "WANTS", "LABELS")
"""Columns that may wrap on a narrow terminal; a lease ID must stay in one piece for copying."""


def _rich_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], right: frozenset[str]
) -> None:
    from rich.console import Console

    try:
        Console(highlight=False, emoji=False).print(rich_table(header, rows, right))
    except OSError as error:
        raise OutputError from error


def rich_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    right: frozenset[str],
    *,
    folded: bool = True,
) -> RichTable:
    """Return a rich table. Unless `folded`, each row takes one line, and wide cells are cut.

    Cells go through `clean()`.
    """
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for title in header:
        drawn.add_column(
            title,
            justify="right" if title in right else "left",
            overflow="fold" if folded else "ellipsis",
            no_wrap=not folded or title not in _FOLDED,
        )
    for row in rows:
        drawn.add_row(*(Text(clean(cell)) for cell in row))
    return drawn
