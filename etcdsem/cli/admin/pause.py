"""``etcdsem pause`` and ``etcdsem resume``."""

from __future__ import annotations

import click

from etcdsem.cli.json_output import echo_json, json_option, pause_data
from etcdsem.cli.options import connect, connection_options, name_argument
from etcdsem.cli.output import clean, echo, pause_text

reason_option = click.option(
    "--reason", metavar="TEXT", help="Shown to whoever looks why nothing goes on."
)


@click.command(short_help="Grant no more leases until resumed.")
@name_argument
@reason_option
@json_option
@connection_options
@click.pass_context
def pause(ctx: click.Context, /, name: str, reason: str | None, as_json: bool) -> None:
    """Grant no lease of NAME, to anybody, until `etcdsem resume NAME`.

    Who holds one is not disturbed. Who waits goes on waiting, and keeps its place; who doesn't
    wait is told that nothing is free. Slots that are given back stay free. `status`, `ls` and `top`
    say who paused it (ETCDSEM_OWNER, else user@host), since when, and why. To pause what is paused
    changes nothing.

    \b
    Examples:
      etcdsem pause gpu --reason "new driver, back at 10:00"
      etcdsem resume gpu
    """
    with connect(ctx) as client:
        changed = client.pause(name, reason=reason)
        now = client.known_limit(name)
    known = now.pause if now is not None else None
    if as_json:
        echo_json({"name": name, "changed": changed, "paused": pause_data(known)})
    elif changed:
        echo(f"{clean(name)}: paused")
    else:
        told = pause_text(known) if known is not None else "paused"
        echo(clean(f"{name}: it is {told}; nothing was changed"))


@click.command(short_help="Grant leases again.")
@name_argument
@json_option
@connection_options
@click.pass_context
def resume(ctx: click.Context, /, name: str, as_json: bool) -> None:
    """Grant leases of NAME again after `etcdsem pause` or `drain`: who waits is served at once, in
    order. To resume what is not paused changes nothing.

    \b
    Example:
      etcdsem resume gpu
    """
    with connect(ctx) as client:
        changed = client.resume(name)
    if as_json:
        echo_json({"name": name, "changed": changed, "paused": None})
    else:
        echo(f"{clean(name)}: {'resumed' if changed else 'it is not paused; nothing was changed'}")
