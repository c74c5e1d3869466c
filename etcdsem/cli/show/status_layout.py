"""Layout of `status`: headline, holders and waiters, printed or on a screen of a given size.

On a screen, nothing is wider or higher than the terminal: columns are dropped from the right, and
rows that do not fit are counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from etcdsem.cli.json_output import rate_data
from etcdsem.cli.output import (
    age,
    clean,
    echo,
    pause_text,
    rich_table,
    say,
    span,
    table,
    until_text,
)
from etcdsem.cli.show.live_view import Screen, cut

if TYPE_CHECKING:
    from rich.console import RenderableType

    from etcdsem import Holder, Status, Waiter

_NUMBERS: Final = frozenset(
    {"SLOT", "PLACE", "PID", "TOKEN", "FOR", "AGO", "ENDS", "TTL", "LIMIT", "HELD"}
    | {"WEIGHT", "WAITING"}
)

_BOTH: Final = 9
"""Screen height from which both holders and waiters are shown."""

_DROPPED: Final = ((90, "LABELS"), (64, "LEASE"), (64, "TOKEN"), (40, "TTL"))
"""Columns that are dropped below each width."""

_WITH_WANTS: Final = 52

_HOLDERS: Final = ("SLOT", "HOLDER", "WEIGHT", "FOR", "ENDS", "TTL", "TOKEN", "LEASE", "LABELS")

_WAITERS: Final = ("PLACE", "WAITER", "WANTS", "FOR", "TTL", "LEASE", "LABELS")

_OF_RATES: Final = {"HOLDER": "GRANTED TO", "FOR": "AGO"}


def print_status(seen: Status) -> None:
    """Print it without regard to the size of the terminal."""
    echo(clean(_headline(seen)))
    if seen.holders:
        echo("")
        header, *rows = _holder_rows(seen)
        table(header, rows, _NUMBERS)
    if seen.waiters:
        echo("")
        titles, *rows = _waiter_rows(seen)
        table(titles, rows, _NUMBERS)
    for one in seen.junk:
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

    header, *holders = _holder_rows(seen)
    titles, *waiters = _waiter_rows(seen)
    both = bool(waiters) and screen.height >= _BOTH
    head = [clean(_headline(seen))]
    if len(head[0]) > screen.width and screen.height >= _BOTH:
        head = [clean(part) for part in _headline_parts(seen)]
    used_up = len(head) - 1 + (6 if both else 4)  # the rest: titles, blanks, the foot
    space = max(1, screen.height - used_up)
    some = holders[: max(space // 2, space - len(waiters)) if both else space]
    rest = waiters[: space - len(some)] if both else []
    parts: list[RenderableType] = [*(line(text, "bold") for text in head), Text("")]
    parts.append(_fitting(header, some, screen.width))
    if rest:
        parts += [Text(""), _fitting(titles, rest, screen.width)]
    more = len(holders) - len(some) + len(waiters) - len(rest) + len(seen.junk)
    hidden = f"{len(holders) - len(some)} holders, {len(waiters) - len(rest)} waiters"
    foot = f"q quit   not shown: {hidden}, {len(seen.junk)} unrecognized keys" if more else "q quit"
    parts.append(line(trouble or foot, "bold red" if trouble else "dim"))
    return Group(*parts)


def _fitting(header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> RenderableType:
    gone = {title for least, title in _DROPPED if width < least}
    if "WANTS" in header and width < _WITH_WANTS:
        gone |= {"TTL", "FOR"}  # WANTS explains better why a waiter waits
    kept = [place for place, title in enumerate(header) if title not in gone]
    return rich_table(
        [header[place] for place in kept],
        [[row[place] for place in kept] for row in rows],
        _NUMBERS,
        folded=False,
    )


def _headline(seen: Status) -> str:
    return "; ".join(_headline_parts(seen))


def _headline_parts(seen: Status) -> list[str]:
    """Return the usage, and the reason if no lease is granted."""
    waiting = f"{len(seen.waiters)} waiting"
    if seen.max_leases is None:
        limit = "limit unreadable, no lease is granted"
        parts = [f"{seen.name}: {limit}, {seen.held} held, {waiting}"]
    elif seen.rate is not None:
        data = rate_data(seen)
        after = data["next_free"]
        parts = [f"{seen.name}: rate {seen.rate}, {data['used']} used, {waiting}"]
        if after:
            parts.append(f"next free in {until_text(after)}")
    else:
        parts = [f"{seen.name}: limit {seen.max_leases}, {seen.held} held, {waiting}"]
    if seen.pause is not None:
        parts.append(pause_text(seen.pause))
    elif seen.waiters and seen.max_leases is not None:
        free, wanted = seen.max_leases - seen.held, seen.waiters[0].weight
        if 0 < free < wanted:
            parts.append(f"{free} free, reserved for the first waiter, which wants {wanted}")
    return parts


def _holder_rows(seen: Status) -> list[tuple[str, ...]]:
    """Return the titles and the rows; omit ENDS without a max_hold, WEIGHT if all are 1."""
    rows: list[tuple[str, ...]] = [
        tuple(_OF_RATES.get(title, title) for title in _HOLDERS) if seen.rate else _HOLDERS,
        *(
            (
                f"{one.slot}{' over limit' if one.over_limit else ''}",
                one.owner,
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


def _waiter_rows(seen: Status) -> list[tuple[str, ...]]:
    """Return the titles and the rows; without WANTS if every waiter wants just one slot."""
    rows: list[tuple[str, ...]] = [
        _WAITERS,
        *(
            (
                str(one.position),
                one.owner,
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
