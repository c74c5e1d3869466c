"""Layout of `top`: one screen of semaphores of a given size.

1. Nothing is wider or higher than the terminal: `fit.py` fits the columns, and rows that do not fit
   are counted. No number is dropped: the bar goes first, then names are shortened, then notes (a
   pause, for example) and numbers go to lines of their own.
2. Colour carries no information of its own: it only repeats what numbers and notes say.
3. If the terminal's encoding has no block characters, the bar is drawn with ``#`` and ``.``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from etcdsem.cli.output import age, left_text, limit_text, used
from etcdsem.cli.show.fit import Cell, Column, fit
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
_WITH_FOOTER: Final = 7


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
        paused = f"paused {age(one.pause.since)}" if one.pause.since else "paused"
        notes.append(f"paused, {left_text(one.pause)}" if one.pause.until else paused)
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
    titles, *blocks = _table(rows[: screen.height], screen)
    parts: list[RenderableType] = [_header(view, screen)]
    room = screen.height - (1 if low else 3)  # header; a blank line, the footer
    if low and len(titles) > 1:  # the first row needs the space
        titles, parts, room = [], [], screen.height
    room = max(1, room - len(titles) - bool(low and view.trouble))
    lines, shown = list(titles), 0
    for block in blocks:
        more = shown + 1 < len(rows)
        if shown and sum(map(len, blocks[: shown + 1])) + more > room:
            break
        lines += block
        shown += 1
    lines = lines[: len(titles) + max(1, room - (shown < len(rows)))]
    if not low:
        parts.append(Text(""))
    parts += lines
    if shown < len(rows):
        parts.append(_line(f"and {len(rows) - shown} more", screen, "dim"))
    if not rows:
        parts.append(_line("no semaphores yet", screen, "dim"))
    if not low or view.trouble:
        parts.append(_footer(view, screen))
    return Group(*parts)


def totals(semaphores: Sequence[Overview]) -> tuple[str, str]:
    """Return how many semaphores there are, and how much is held and waited for."""
    rates = sum(one.rate is not None for one in semaphores)
    held = sum(one.held for one in semaphores if one.rate is None)
    waiting = sum(one.waiting for one in semaphores)
    number = len(semaphores) - rates
    count = f"{number} semaphore{'s' * (number != 1)}"
    if rates:
        count += f", {rates} rate limit{'s' if rates > 1 else ''}"
    return count, f"{held} held, {waiting} waiting"


def _header(view: View, screen: Screen) -> Text:
    count, short = totals(view.semaphores)
    sums = f"{count}, {short}"
    full = f"{sums}   {view.where}   {view.clock}"
    for text in (full, f"{sums}   {view.clock}", sums, short):
        if len(text) <= screen.width:
            return _line(text, screen, "bold")
    return _line(short.replace("held", "h").replace("waiting", "w"), screen, "bold")


def _footer(view: View, screen: Screen) -> Text:
    if view.trouble:
        return _line(view.trouble, screen, "bold red")
    keys = f"q quit   sorted by {view.sort}:  w waiting  h held  o oldest  n name"
    short = f"q quit  by {view.sort}: w h o n"
    return _line(keys if len(keys) <= screen.width else short, screen, "dim")


def _line(text: str, screen: Screen, style: str) -> Text:
    from rich.text import Text

    return Text(cut(text, screen.width), style=style, no_wrap=True, end="\n")


def _table(rows: Sequence[Overview], screen: Screen) -> list[list[Text]]:
    """Return the lines of the titles, and of each row."""
    table = [
        Column("NAME", "name"),
        Column("HELD", right=True),
        Column("LIMIT", right=True),
        Column("", "bar"),
        Column("WAITING", right=True),
        Column("OLDEST", right=True),
        Column("", "words"),
    ]
    bar = _BAR if screen.width < _WITH_LONG_BAR else _LONG_BAR
    cells = [
        [
            Cell(one.name),
            Cell(str(used(one.held, one.rate)), _style(one)),
            Cell(limit_text(one.max_leases, one.rate)),
            Cell(_bar(one, bar, blocks=screen.blocks), _style(one)),
            Cell(str(one.waiting), "bold" if one.waiting else "dim"),
            Cell(oldest(one), "" if one.waiting else "dim"),
            Cell(note(one), "bold red"),
        ]
        for one in rows
    ]
    return fit(table, cells, screen.width, unicode=screen.blocks)


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
