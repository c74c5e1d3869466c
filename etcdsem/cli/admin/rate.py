"""``etcdsem rate``: show or change a rate limit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from etcdsem.cli.arguments import name_argument
from etcdsem.cli.json_output import echo_json, json_option, rate_data
from etcdsem.cli.logs import quiet_library
from etcdsem.cli.options import connect, connection_options
from etcdsem.cli.output import clean, echo, pause_text, say, until_text

if TYPE_CHECKING:
    from etcdsem import Client, Rate


@click.command(short_help="Show or change a rate limit.")
@name_argument
@click.argument("rate", metavar="[RATE]", required=False)
@json_option
@connection_options
@click.pass_context
def rate(ctx: click.Context, /, name: str, rate: str | None, as_json: bool) -> None:
    """Show the usage of the rate limit NAME, or change it to RATE, for all clients at once.

    RATE is N/PERIOD or N/PERIOD/BLOCK: 100/1m grants at most 100 permits in any minute, and
    10000/1m/50 hands them out in blocks of 50. Permits already granted still count. A paused rate
    limit stays paused.

    \b
    Examples:
      etcdsem rate api
      etcdsem rate api 200/1m
    """
    from etcdsem.validation import read_rate

    wanted = None if rate is None else read_rate(rate)
    quiet_library()
    with connect(ctx) as client:
        if wanted is not None:
            _change(client, name, wanted, as_json=as_json)
        else:
            _show(client, name, as_json=as_json)


def _change(client: Client, name: str, wanted: Rate, *, as_json: bool) -> None:
    before = client.limit_info(name)
    old, _ = client.resize(name, wanted)
    shown = str(old or before.text)
    if as_json:
        echo_json({"name": name, "old": shown, "new": str(wanted)})
        return
    echo(f"{clean(name)}: {clean(shown)} -> {wanted}")
    now = client.known_limit(name)
    if now is not None and now.pause is not None:
        say(f"{name} is still paused; to resume: etcdsem resume {name}")


def _show(client: Client, name: str, *, as_json: bool) -> None:
    from etcdsem import RateLimit

    seen = client.status(name, ttl=False)
    if seen.rate is None:
        RateLimit(name, client=client)  # raises, and says why it is not a rate limit
    data = rate_data(seen)
    if as_json:
        echo_json({"name": name, **data})
        return
    parts = [str(seen.rate), f"{data['used']} used", f"{data['free']} free"]
    parts.append(f"{data['waiting']} waiting")
    if data["next_free"]:
        parts.append(f"next free in {until_text(data['next_free'])}")
    if seen.pause is not None:
        parts.append(pause_text(seen.pause))
    echo(clean(f"{name}: {', '.join(parts)}"))
