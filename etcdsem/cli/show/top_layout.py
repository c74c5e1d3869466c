"""Layout of `top`: one screen of semaphores of a given size.

1. Nothing is wider or higher than the terminal. What does not fit is dropped: the bar first, then
   the notes, then columns from the right; rows that do not fit are counted. A pause is shown at any
   size, if necessary in place of the limit.
2. Colour carries no information of its own: it only repeats what numbers and notes say.
3. If the terminal's encoding has no block characters, the bar is drawn with ``#`` and ``.``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from etcdsem.cli.output import age, limit_text, used
from etcdsem.cli.show.live_view import Screen, cut

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from etcdsem.model import Overview


class View(NamedTuple):
    """The semaphores, and how to show them."""

    semaphores: Sequence[Overview]
    where: str
    clock: str
    sort: str = "waiting"
    trouble: str = ""


_BAR: Final = 10
_LONG_BAR: Final = 20
_WITH_LONG_BAR: Final = 110
_WITH_BAR: Final = 72
_WITH_NOTE: Final = 56
_WITH_LIMIT: Final = 44
_WITH_OLDEST: Final = 36
_WITH_FOOTER: Final = 7
_LIMIT: Final = 5
_SHORT_LIMIT: Final = 8
_MOST_LIMIT: Final = 13
_NOTE: Final = 24
_LEAST_NOTE: Final = 6
_SHORT_NAME: Final = 12
_LEAST_NAME: Final = 8
_PAUSED: Final = "paused"


def _wrong(one: Overview) -> bool:
    return bool(one.overbooked or one.max_leases is None or one.junk)


def _use(one: Overview) -> float:
    return one.held / one.max_leases if one.max_leases else float(one.held > 0)


def _since(one: Overview) -> float:
    return one.waiting_since.timestamp() if one.waiting_since else float("inf")


SORTS: Final[dict[str, Callable[[Overview], tuple[object, ...]]]] = {
    "waiting": lambda one: (not _wrong(one), -one.waiting, -_use(one), one.name),
    "held": lambda one: (-one.held, one.name),
    "oldest": lambda one: (_since(one), one.name),
    "name": lambda one: (one.name,),
}
"""Sort orders, by name; the key for each is its first letter."""


def ordered(semaphores: Sequence[Overview], sort: str) -> list[Overview]:
    """Return the semaphores in the order `sort`, a key of `SORTS`."""
    return sorted(semaphores, key=SORTS[sort])


def note(one: Overview) -> str:
    """Return what an operator should know about it; usually empty."""
    notes = []
    if one.pause is not None:
        notes.append(f"paused {age(one.pause.since)}" if one.pause.since else "paused")
    if one.overbooked:
        notes.append(f"{used(one.overbooked, one.rate)} over limit")
    if one.max_leases is None:
        notes.append("limit unreadable")
    if one.max_leases == 0:
        notes.append("grants nothing")
    if one.junk:
        notes.append(f"{one.junk} unrecognized key{'s' if one.junk > 1 else ''}")
    return ", ".join(notes)


def oldest(one: Overview) -> str:
    """Return how long the first waiter has waited, as text."""
    if not one.waiting:
        return "-"
    return age(one.waiting_since)


def draw(view: View, screen: Screen) -> RenderableType:
    """Draw the whole screen."""
    from rich.console import Group
    from rich.text import Text

    rows = ordered(view.semaphores, view.sort)
    low = screen.height < _WITH_FOOTER
    room = max(1, screen.height - (2 if low else 4))  # header, titles; a blank line, the footer
    shown = rows[: room if len(rows) <= room else max(1, room - 1)]
    parts: list[RenderableType] = [_header(view, screen)]
    if not low:
        parts.append(Text(""))
    parts.append(_table(shown, screen))
    if len(shown) < len(rows):
        parts.append(_line(f"and {len(rows) - len(shown)} more", screen, "dim"))
    if not rows:
        parts.append(_line("no semaphores yet", screen, "dim"))
    if not low or view.trouble:
        parts.append(_footer(view, screen))
    return Group(*parts)


def _header(view: View, screen: Screen) -> Text:
    rates = sum(one.rate is not None for one in view.semaphores)
    held = sum(one.held for one in view.semaphores if one.rate is None)
    waiting = sum(one.waiting for one in view.semaphores)
    number = len(view.semaphores) - rates
    count = f"{number} semaphore{'s' * (number != 1)}"
    if rates:
        count += f", {rates} rate limit{'s' if rates > 1 else ''}"
    sums = f"{count}, {held} held, {waiting} waiting"
    full = f"{sums}   {view.where}   {view.clock}"
    for text in (full, f"{sums}   {view.clock}", sums):
        if len(text) <= screen.width:
            return _line(text, screen, "bold")
    return _line(f"{held} held, {waiting} waiting", screen, "bold")


def _footer(view: View, screen: Screen) -> Text:
    if view.trouble:
        return _line(view.trouble, screen, "bold red")
    keys = f"q quit   sorted by {view.sort}:  w waiting  h held  o oldest  n name"
    short = f"q quit  by {view.sort}: w h o n"
    return _line(keys if len(keys) <= screen.width else short, screen, "dim")


def _line(text: str, screen: Screen, style: str) -> Text:
    from rich.text import Text

    return Text(cut(text, screen.width), style=style, no_wrap=True, end="\n")


def _table(rows: Sequence[Overview], screen: Screen) -> RenderableType:
    from rich.table import Table

    bar = _bar_length(screen.width)
    notes = [note(one) for one in rows] if screen.width >= _WITH_NOTE else []
    limited = screen.width >= _WITH_LIMIT
    longest = max((len(one.name) for one in rows), default=4)
    numbers = {"HELD": 5, "LIMIT": _LIMIT, "": bar, "WAITING": 7, "OLDEST": 7}
    if not limited:  # one column, such as 3/8
        numbers = {"HELD": 11, "WAITING": 7, "OLDEST": 7}
    if screen.width < _WITH_OLDEST:
        numbers = {"HELD": 7}
    if not bar:
        numbers.pop("", None)
    _widen(numbers, rows, screen.width - min(longest, _SHORT_NAME if limited else _LEAST_NAME))
    taken = sum(numbers.values()) + 2 * len(numbers)
    spare = screen.width - taken - min(longest, _SHORT_NAME) - 2
    noted = min(_NOTE, spare, max((len(text) for text in notes), default=0))
    if noted < _LEAST_NOTE:
        noted = 0
    taken += noted + 2 if noted else 0
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    overflow: Literal["ellipsis", "crop"] = "ellipsis" if screen.blocks else "crop"
    name = max(4, min(longest, screen.width - taken))
    table.add_column("NAME", overflow=overflow, no_wrap=True, width=name)
    for title, width in numbers.items():
        justify: Literal["left", "right"] = "right" if title else "left"
        table.add_column(title, justify=justify, no_wrap=True, width=width)
    if noted:
        table.add_column("", no_wrap=True, width=noted, overflow=overflow)
    for one in rows:
        table.add_row(*_cells(one, numbers, noted=bool(noted), blocks=screen.blocks))
    return table


def _cells(one: Overview, numbers: dict[str, int], *, noted: bool, blocks: bool) -> list[Text]:
    """Return one row: the name, the columns of `numbers`, and the note if that is a column."""
    from rich.text import Text

    style = _style(one)
    paused = one.pause is not None and not noted
    cells: list[Text] = [Text(one.name)]
    if "LIMIT" in numbers:
        cells.append(Text(str(used(one.held, one.rate)), style=style))
        room = numbers["LIMIT"]
        cells.append(Text(_PAUSED, style="bold red") if paused else Text(_limit(one, room)))
    else:
        room = numbers["HELD"]
        text = _held_of(one, room)
        if paused:
            text = f"{text} {_PAUSED}" if len(text) + 1 + len(_PAUSED) <= room else _PAUSED
        cells.append(Text(text, style="bold red" if paused else style))
    if "" in numbers:
        cells.append(Text(_bar(one, numbers[""], blocks=blocks), style=style))
    if "WAITING" in numbers:
        cells.append(Text(str(one.waiting), style="bold" if one.waiting else "dim"))
        cells.append(Text(oldest(one), style="" if one.waiting else "dim"))
    if noted:
        cells.append(Text(note(one), style="bold red"))
    return cells


def _widen(numbers: dict[str, int], rows: Sequence[Overview], width: int) -> None:
    """Widen columns for rates and for the word "paused", as far as names leave room."""
    spare = width - sum(numbers.values()) - 2 * len(numbers)
    if "LIMIT" in numbers:
        longest = max((len(limit_text(one.max_leases, one.rate)) for one in rows), default=0)
        wanted = min(longest, _MOST_LIMIT if width >= _WITH_BAR - _SHORT_NAME else _SHORT_LIMIT)
        if any(one.pause for one in rows):
            wanted = max(wanted, len(_PAUSED))
        numbers["LIMIT"] = max(_LIMIT, min(wanted, _LIMIT + max(1, spare)))
    else:
        longest = max((len(_held_of(one, width)) for one in rows), default=0)
        numbers["HELD"] += max(0, min(longest - numbers["HELD"], spare))


def _limit(one: Overview, room: int) -> str:
    """Return the limit; without its block if a rate does not fit."""
    text = limit_text(one.max_leases, one.rate)
    if one.rate is not None and len(text) > room:
        return limit_text(None, one.rate._replace(block=1))
    return text


def _held_of(one: Overview, room: int) -> str:
    """Return usage and limit in one column; without the period if a rate does not fit."""
    if one.rate is None:
        return f"{one.held}/{limit_text(one.max_leases, None)}"
    text = f"{used(one.held, one.rate)} of {one.rate._replace(block=1)}"
    return text if len(text) <= room else f"{used(one.held, one.rate)}/{one.rate.starts}"


def _bar_length(width: int) -> int:
    if width < _WITH_BAR:
        return 0
    return _BAR if width < _WITH_LONG_BAR else _LONG_BAR


def _style(one: Overview) -> str:
    if one.overbooked or one.max_leases is None:
        return "bold red"
    if one.held and one.held >= one.max_leases:
        return "yellow"
    return "green" if one.held else "dim"


def _bar(one: Overview, whole: int, *, blocks: bool) -> str:
    full, empty = ("█", "░") if blocks else ("#", ".")
    if not one.max_leases:
        return (full if one.held else empty) * whole
    length = min(whole, round(whole * one.held / one.max_leases))
    if one.held < one.max_leases:
        length = min(length, whole - 1)  # a bar that looks full is full,
    if one.held:
        length = max(length, 1)  # and one that looks empty is empty
    return full * length + empty * (whole - length)
