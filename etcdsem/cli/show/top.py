"""``etcdsem top``: show all semaphores live. `top_layout.py` draws, `live_view.py` polls etcd.

When stdout is not a terminal, it prints a plain table, once or --count times.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import click

from etcdsem.cli.json_output import echo_json, list_data, stamp
from etcdsem.cli.logs import quiet_library
from etcdsem.cli.options import WholeNumber, connect, connection_options
from etcdsem.cli.output import echo, flush, limit_text, table, used
from etcdsem.cli.show.live_view import (
    LiveView,
    Screen,
    interval_option,
    is_screen,
    print_repeatedly,
    read_interval,
)
from etcdsem.cli.show.top_layout import SORTS, View, draw, note, oldest, ordered

if TYPE_CHECKING:
    from rich.console import RenderableType

    from etcdsem import Client, Overview

_NUMBERS: Final = frozenset({"HELD", "LIMIT", "WAITING", "OLDEST"})


@click.command(short_help="Show all semaphores live.")
@interval_option
@click.option(
    "-s",
    "--sort",
    type=click.Choice(list(SORTS)),
    default="waiting",
    help="Sort by number of waiters, number of holders, longest wait, or name.  [waiting]",
)
@click.option(
    "-c",
    "--count",
    metavar="N",
    type=WholeNumber(min=0),
    help="Exit after N updates; 0 means never.  [0 on a terminal, else 1]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per update.")
@connection_options
@click.pass_context
def top(ctx: click.Context, /, interval: str, sort: str, count: int | None, as_json: bool) -> int:
    """Show all semaphores: slots held, limit, number of waiters, and how long the first waiter has
    waited (OLDEST).

    OLDEST compares the clock of the waiter's machine with the local one. For a rate limit, HELD is
    the number of permits that count in the current period.

    On a terminal it fills the screen until q or Ctrl-C; press w, h, o or n to sort. Otherwise it
    prints a plain table once. Respects NO_COLOR.

    \b
    Examples:
      etcdsem top
      etcdsem top --sort oldest --interval 500ms
      etcdsem top | head
      etcdsem top --json --count 0 --interval 10s >> semaphores.log
    """
    every = read_interval(interval)
    live = not as_json and is_screen()
    updates = count if count is not None else int(not live)
    quiet_library()
    client = connect(ctx)
    if live:
        return _Top(client, sort).run(every, updates)
    return print_repeatedly(
        client.overview,
        lambda seen, which: _print(seen, sort, as_json=as_json, again=which > 1),
        every=every,
        count=updates,
        close=client.close,
    )


class _Top:
    def __init__(self, client: Client, sort: str) -> None:
        self._client = client
        self._sort = sort

    def run(self, every: float, updates: int) -> int:
        live = LiveView(
            self._client.overview,
            self._draw,
            every=every,
            close=self._client.close,
            count=updates,
            on_key=self._key,
        )
        return live.run()

    def _key(self, key: str) -> None:
        self._sort = next((sort for sort in SORTS if sort[0] == key), self._sort)

    def _draw(self, seen: Sequence[Overview], screen: Screen, trouble: str) -> RenderableType:
        where = f"{self._client.settings.endpoints[0]} {self._client.prefix}"
        return draw(View(seen, where, time.strftime("%H:%M:%S"), self._sort, trouble), screen)


def _print(seen: Sequence[Overview], sort: str, *, as_json: bool, again: bool) -> None:
    rows = ordered(seen, sort)
    if as_json:
        now = stamp(datetime.now(UTC))
        echo_json({"at": now, **list_data(rows)})
    else:
        if again:
            echo("")
        cells = [
            (
                one.name,
                str(used(one.held, one.rate)),
                limit_text(one.max_leases, one.rate),
                str(one.waiting),
                oldest(one),
                note(one),
            )
            for one in rows
        ]
        table(("NAME", "HELD", "LIMIT", "WAITING", "OLDEST", "NOTE"), cells, _NUMBERS)
    flush()
