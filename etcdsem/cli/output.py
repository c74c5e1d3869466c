"""Output for people and programs: messages on stderr, tables, JSON.

1. Data from etcd may contain anything, even terminal escapes: it goes through `clean()` for people,
   and through `json.dumps` (ASCII only) for programs.
2. Writing to stderr never raises: a lost message must not fail a job.
3. On a terminal, tables fit its width (`show/fit.py`); elsewhere they are plain columns with one
   header line.
"""

from __future__ import annotations

import errno
import math
import os
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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


def owner_text(owner: str) -> str:
    """Format an owner; a key made by hand may have none."""
    return owner or "unknown owner"


def pause_text(pause: Pause) -> str:
    """Format a pause: since when, by whom, for how long it still lasts, and why."""
    when = f" {age(pause.since)} ago" if pause.since is not None else ""
    by = f" by {pause.by}" if pause.by else ""
    ends = f", {left_text(pause)}" if pause.until is not None else ""
    return f"paused{when}{by}{ends}" + (f": {pause.reason}" if pause.reason else "")


def left_text(pause: Pause) -> str:
    """Format what is left of a pause that ends by itself. The next acquire ends one that is over;
    clocks differ, so it may not be.
    """
    left = pause.left(time.time())
    return f"{span(math.ceil(left))} left" if left else "over by now"


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
        _fitted_table(header, cells, right)
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


def _fitted_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], right: frozenset[str]
) -> None:
    from rich.console import Console

    from etcdsem.cli.show.fit import Cell, columns, fit

    console = Console(highlight=False, emoji=False)
    cells = [[Cell(text) for text in row] for row in rows]
    table = columns(header, right, all_labels=True)
    blocks = fit(table, cells, console.width, unicode=unicode_terminal())
    try:
        for block in blocks:
            for line in block:
                console.print(line, soft_wrap=True)
    except OSError as error:
        raise OutputError from error


def unicode_terminal() -> bool:
    """Return whether the terminal can show characters beyond ASCII, by the locale.

    Python writes UTF-8 even if the locale is C or unset, and may set LC_CTYPE itself then.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    get = os.environ.get
    coerced = sys.flags.utf8_mode and get("LC_CTYPE") in ("C.UTF-8", "C.utf8", "UTF-8")
    locale = get("LC_ALL") or (not coerced and get("LC_CTYPE")) or get("LANG") or "C"
    return encoding.lower().startswith("utf") and "utf8" in locale.lower().replace("-", "")
