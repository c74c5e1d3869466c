"""``etcdsem rate``: look at a rate limit, or change it."""

from __future__ import annotations

import click

from etcdsem.cli.json_output import echo_json, json_option, rate_data
from etcdsem.cli.options import connect, connection_options, name_argument
from etcdsem.cli.output import clean, echo, pause_text, say, until_text


@click.command(short_help="Show or change a rate limit.")
@name_argument
@click.argument("rate", metavar="[RATE]", required=False)
@json_option
@connection_options
@click.pass_context
def rate(ctx: click.Context, /, name: str, rate: str | None, as_json: bool) -> None:
    """Show how much of the rate limit NAME is used, or change it to RATE, at once for everybody.

    RATE is 100/1m: at most 100 starts in any minute; 10000/1m/50: in blocks of 50. Starts already
    made still count as they did. What is paused stays paused.

    \b
    Examples:
      etcdsem rate api
      etcdsem rate api 200/1m
    """
    from etcdsem.core import operating, rates
    from etcdsem.model import read_rate

    wanted = None if rate is None else read_rate(rate)
    with connect(ctx) as client:
        station = client.station(name)
        if wanted is not None:
            change = client.run(operating.resize(station, wanted), f"change the rate of {name!r}")
            old = str(change.before.rate or change.before.text)
            if as_json:
                echo_json({"name": name, "old": old, "new": str(wanted)})
            else:
                echo(f"{clean(name)}: {clean(old)} -> {wanted}")
                if change.after.paused:
                    say(f"{name} is paused, and stays so; to go on: etcdsem resume {name}")
            return
        seen = client.status(name, ttl=False)
        if station.limit is not None:
            rates.rate_of(station, station.limit)
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


__all__ = ["rate"]
