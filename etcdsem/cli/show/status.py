"""``etcdsem status``: show the holders and waiters of one semaphore."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import click

from etcdsem.cli import exit_codes
from etcdsem.cli.arguments import name_argument
from etcdsem.cli.json_output import (
    echo_json,
    holder_data,
    json_option,
    junk_data,
    pause_data,
    waiter_data,
)
from etcdsem.cli.logs import quiet_library
from etcdsem.cli.options import connect, connection_options
from etcdsem.cli.output import echo, flush
from etcdsem.cli.show.live_view import (
    LiveView,
    interval_option,
    is_screen,
    print_repeatedly,
    read_interval,
)
from etcdsem.cli.show.status_layout import draw, print_status

if TYPE_CHECKING:
    from etcdsem import Status


@click.command()
@name_argument
@json_option
@click.option("-W", "--watch", is_flag=True, help="Repeat until q or Ctrl-C; live on a terminal.")
@interval_option
@connection_options
@click.pass_context
def status(ctx: click.Context, /, name: str, as_json: bool, watch: bool, interval: str) -> int:
    """Show the holders and waiters of NAME.

    FOR is how long each has held or waited; TTL is how long its lease would last if it were no
    longer refreshed.

    Exit code 78 if there is no such semaphore.

    \b
    Examples:
      etcdsem status gpu
      etcdsem status gpu --watch
      etcdsem status gpu --json | jq -r '.holders[].host'
    """
    every = read_interval(interval)
    client = connect(ctx)

    def poll() -> Status:
        return client.status(name)

    quiet_library()
    if watch and not as_json and is_screen():
        return LiveView(poll, draw, every=every, close=client.close).run()
    if watch:
        show = partial(_print, as_json=as_json)
        return print_repeatedly(poll, show, every=every, count=0, close=client.close)
    with client:
        _print(poll(), as_json=as_json)
    return exit_codes.OK


def _print(seen: Status, which: int = 1, *, as_json: bool) -> None:
    if as_json:
        echo_json(_status_data(seen))
    else:
        if which > 1:
            echo("")
        print_status(seen)
    flush()


def _status_data(seen: Status) -> dict[str, Any]:
    return {
        "name": seen.name,
        "limit": seen.max_leases,
        "held": seen.held,
        "waiting": len(seen.waiters),
        "revision": seen.revision,
        "holders": [holder_data(one) for one in seen.holders],
        "waiters": [waiter_data(one) for one in seen.waiters],
        "junk": [junk_data(one) for one in seen.junk],
        "paused": pause_data(seen.pause),
        "rate": str(seen.rate) if seen.rate else None,
    }
