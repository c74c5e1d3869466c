"""Layout of `status`: headline, holders and waiters, printed or on a screen of a given size.

On a screen, nothing is wider or higher than the terminal: `fit.py` fits the columns, and rows that
do not fit are counted.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from etcdsem.cli.json_output import rate_data
from etcdsem.cli.output import (
    age,
    clean,
    echo,
    pause_text,
    say,
    span,
    table,
    until_text,
)
from etcdsem.cli.show.fit import Cell, columns, fit, middle
from etcdsem.cli.show.live_view import Screen, cut

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from etcdsem import Holder, Junk, Status, Waiter

_NUMBERS: Final = frozenset(
    {"SLOT", "PLACE", "PID", "TOKEN", "FOR", "AGO", "ENDS", "TTL", "LIMIT", "HELD"}
    | {"WEIGHT", "WAITING"}
)

_BOTH: Final = 9
"""Screen height from which both holders and waiters are shown."""

_LEAST_NAME: Final = 8

_HOLDERS: Final = ("SLOT", "HOLDER", "WEIGHT", "FOR", "ENDS", "TTL", "TOKEN", "LEASE", "LABELS")

_WAITERS: Final = ("PLACE", "WAITER", "WANTS", "FOR", "TTL", "LEASE", "LABELS")

_OF_RATES: Final = {"HOLDER": "GRANTED TO", "FOR": "AGO"}


def print_status(seen: Status) -> None:
    """Print it without regard to the size of the terminal."""
    echo(clean(_headline(seen)))
    if seen.holders:
        echo("")
        header, *rows = holder_rows(seen)
        table(header, rows, _NUMBERS)
    if seen.waiters:
        echo("")
        titles, *rows = waiter_rows(seen)
        table(titles, rows, _NUMBERS)
    for one in junk_keys(seen):
        say(f"ignored unrecognized key {one.key}: {one.reason}")


def draw(seen: Status, screen: Screen, trouble: str) -> RenderableType:
    """Draw it for a terminal of that size: the holders, and as many waiters as fit.

    Args:
        seen: the status to draw.
        screen: the terminal.
        trouble: why the status is out of date; empty if it is not.
    """
    from rich.console import Group
    from rich.text import Text

    def line(text: str, style: str) -> Text:
        return Text(cut(text, screen.width), style=style, no_wrap=True)

    low = screen.height < _BOTH
    both = bool(seen.waiters) and not low
    head = _head(seen, screen)
    space = max(1, screen.height - len(head) - (1 if low else 2))  # a blank line and the foot
    titles, *holders = _fitted(holder_rows(seen), space, screen)
    if low and len(titles) + len(holders[0] if holders else ()) > space:
        titles = []
    half = space // 2 - 1  # for the waiters: a blank line, titles, rows
    headings, *waiters = _fitted(waiter_rows(seen), half, screen) if both else [[]]
    needed = sum(map(len, waiters)) + len(headings) + 1 if both else 0
    some = _first(holders, space - len(titles) - min(half + 1, needed))
    left = space - len(titles) - sum(map(len, some)) - len(headings) - 1
    rest = _first(waiters, left) if both else []
    parts: list[RenderableType] = [line(text, "bold") for text in head]
    if not low:
        parts.append(Text(""))
    lines = [*titles, *(one for row in some for one in row)]
    if rest:
        lines += [Text(""), *headings, *(one for row in rest for one in row)]
    parts += lines[:space]
    hidden = (len(seen.holders) - len(some), len(seen.waiters) - len(rest), len(junk_keys(seen)))
    parts.append(line(trouble or _foot(hidden, screen), "bold red" if trouble else "dim"))
    return Group(*parts)


def _fitted(rows: Sequence[Sequence[str]], most: int, screen: Screen) -> list[list[Text]]:
    """Return the lines of the titles, and of each of the first `most` rows."""
    header, *others = rows
    cells = [[Cell(clean(text)) for text in row] for row in others[: max(1, most)]]
    return fit(columns(header, _NUMBERS), cells, screen.width, unicode=screen.blocks)


def _first(rows: Sequence[list[Text]], space: int) -> list[list[Text]]:
    """Return the first rows that fit into `space` lines; at least one if there is any."""
    fitting: list[list[Text]] = []
    for row in rows:
        space -= len(row)
        if space < 0 and fitting:
            break
        fitting.append(row)
    return fitting


def _head(seen: Status, screen: Screen) -> list[str]:
    """Return the headline, on several lines if it must be, with its numbers."""
    if len(clean(_headline(seen))) <= screen.width:
        return [clean(_headline(seen))]
    usage, *reasons = (clean(part) for part in headline_parts(seen))
    name = clean(seen.name)
    rest = usage.removeprefix(name)
    mark = "…" if screen.blocks else "..."
    usage = middle(name, max(_LEAST_NAME, screen.width - len(rest)), mark) + rest
    lines = textwrap.wrap(usage, screen.width)
    if screen.height < _BOTH:
        return lines
    if seen.pause is not None:  # may be long; its numbers come first
        return [*lines, *(cut(reason, screen.width) for reason in reasons)]
    return [*lines, *(line for reason in reasons for line in textwrap.wrap(reason, screen.width))]


def _foot(hidden: tuple[int, int, int], screen: Screen) -> str:
    holders, waiters, junk = hidden
    if not any(hidden):
        return "q quit"
    missing = f"not shown: {holders} holders, {waiters} waiters"
    for text in (f"q quit   {missing}, {junk} unrecognized keys", missing):
        if len(text) <= screen.width:
            return text
    return f"not shown: {sum(hidden)}"


def _is_limit(one: Junk) -> bool:
    """Whether this is the limit, which the headline reports if it cannot be read."""
    return one.key.endswith("/max_leases")


def junk_keys(seen: Status) -> list[Junk]:
    """Return the unrecognized keys, without a limit that cannot be read."""
    return [one for one in seen.junk if not _is_limit(one)]


def _headline(seen: Status) -> str:
    return "; ".join(headline_parts(seen))


def headline_parts(seen: Status) -> list[str]:
    """Return the usage, and the reason if no lease is granted."""
    waiting = f"{len(seen.waiters)} waiting"
    if seen.max_leases is None:
        limit = "limit unreadable, no lease is granted"
        parts = [f"{seen.name}: {limit}, {seen.held} held, {waiting}"]
        parts += [f"it {one.reason.partition(';')[0]}" for one in seen.junk if _is_limit(one)]
    elif seen.rate is not None:
        data = rate_data(seen)
        after = data["next_free"]
        parts = [f"{seen.name}: rate {seen.rate}, {data['used']} used, {waiting}"]
        if after:
            parts.append(f"next free in {until_text(after)}")
    else:
        parts = [f"{seen.name}: limit {seen.max_leases}, {seen.held} held, {waiting}"]
    if seen.expires_in is not None:
        parts.append(f"expires in {span(max(0.0, seen.expires_in))} unless used")
    if seen.drift:
        parts.append(f"changed since {seen.applied} was applied")
    if seen.pause is not None:
        parts.append(pause_text(seen.pause))
    elif seen.waiters and seen.max_leases is not None:
        free, wanted = seen.max_leases - seen.held, seen.waiters[0].weight
        if 0 < free < wanted:
            parts.append(f"{free} free, reserved for the first waiter, which wants {wanted}")
    return parts


def holder_rows(seen: Status) -> list[tuple[str, ...]]:
    """Return the titles and the rows; omit ENDS without a max_hold, WEIGHT if all are 1."""
    rows: list[tuple[str, ...]] = [
        tuple(_OF_RATES.get(title, title) for title in _HOLDERS) if seen.rate else _HOLDERS,
        *(
            (
                f"{one.slot}{' over limit' if one.over_limit else ''}",
                one.owner or "?",
                str(one.weight),
                age(one.acquired_at),
                _ends(one),
                _ttl(one.ttl),
                str(one.fencing_token),
                one.lease_id,
                _pairs(one.labels),
            )
            for one in seen.holders
        ),
    ]
    unsaid = []
    if all(one.max_hold is None for one in seen.holders):
        unsaid.append("ENDS")
    if all(one.weight == 1 for one in seen.holders):
        unsaid.append("WEIGHT")
    return _without(rows, [_HOLDERS.index(title) for title in unsaid])


def _without(rows: Sequence[tuple[str, ...]], gone: Sequence[int]) -> list[tuple[str, ...]]:
    """Return the rows without the columns at some positions."""
    return [tuple(cell for place, cell in enumerate(row) if place not in gone) for row in rows]


def _ends(one: Holder) -> str:
    """Return when its max_hold will be reached, as text."""
    if one.max_hold is None:
        return "-"
    if one.ends_at is None:
        return "?"
    return f"in {span(max(0.0, (one.ends_at - datetime.now(UTC)).total_seconds()))}"


def waiter_rows(seen: Status) -> list[tuple[str, ...]]:
    """Return the titles and the rows; without WANTS if every waiter wants just one slot."""
    rows: list[tuple[str, ...]] = [
        _WAITERS,
        *(
            (
                str(one.position),
                one.owner or "?",
                _wants(one),
                age(one.since),
                _ttl(one.ttl),
                one.lease_id,
                _pairs(one.labels),
            )
            for one in seen.waiters
        ),
    ]
    special = any(_wants(one) != "-" for one in seen.waiters)
    return _without(rows, [] if special else [_WAITERS.index("WANTS")])


def _wants(one: Waiter) -> str:
    """Return what it wants beyond one slot in queue order, as text."""
    words = [f"weight {one.weight}"] if one.weight > 1 else []
    words += [f"priority {one.priority}"] if one.priority else []
    words += ["backfill"] if one.backfill else []
    return ", ".join(words) or "-"


def _ttl(seconds: float | None) -> str:
    return "?" if seconds is None else span(seconds)


def _pairs(labels: Mapping[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in labels.items())
