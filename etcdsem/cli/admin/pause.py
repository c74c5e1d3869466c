"""``etcdsem pause`` and ``etcdsem resume``."""

from __future__ import annotations

import click

from etcdsem.cli.arguments import name_argument
from etcdsem.cli.json_output import echo_json, json_option, pause_data
from etcdsem.cli.logs import quiet_library
from etcdsem.cli.options import connect, connection_options
from etcdsem.cli.output import clean, echo, pause_text, say

reason_option = click.option(
    "--reason", metavar="TEXT", help="Reason for the pause, shown by status, ls and top."
)


@click.command(short_help="Stop granting leases until resumed.")
@name_argument
@click.option(
    "--for",
    "duration",
    metavar="DURATION",
    help="End the pause by itself after that, e.g. 30s.",
)
@reason_option
@json_option
@connection_options
@click.pass_context
def pause(
    ctx: click.Context, /, name: str, duration: str | None, reason: str | None, as_json: bool
) -> None:
    """Stop granting leases of NAME until `etcdsem resume NAME`, or for a time.

    Current holders are unaffected. Waiters keep their place; clients that do not wait find no free
    slot. Released slots stay free. `status`, `ls` and `top` show who paused it (ETCDSEM_OWNER,
    else user@host), when, and why. Pausing a paused semaphore is a no-op. With --for, etcd ends the
    pause; the longest one counts, and one without --for until it is resumed.

    \b
    Examples:
      etcdsem pause gpu --reason "new driver, back at 10:00"
      etcdsem pause api --for 30s --reason "429 from the provider"
      etcdsem resume gpu
    """
    quiet_library()
    with connect(ctx) as client:
        if duration is None:
            changed = client.pause(name, reason=reason)
        else:
            changed = client.penalize(name, duration, reason=reason)
        now = client.known_limit(name)
    known = now.pause if now is not None else None
    if as_json:
        echo_json({"name": name, "changed": changed, "paused": pause_data(known)})
    elif changed:
        ends = known.until if known is not None else None
        until = f" until {ends.astimezone():%Y-%m-%d %H:%M:%S %z}" if ends is not None else ""
        echo(f"{clean(name)}: paused{until}")
    else:
        state = pause_text(known) if known is not None else "paused"
        echo(clean(f"{name}: unchanged, already {state}"))


@click.command(short_help="Resume granting leases.")
@name_argument
@json_option
@connection_options
@click.pass_context
def resume(ctx: click.Context, /, name: str, as_json: bool) -> None:
    """Resume granting leases of NAME after `etcdsem pause` or `drain`.

    Waiters are served at once, in order. Resuming a semaphore that is not paused is a no-op.

    \b
    Example:
      etcdsem resume gpu
    """
    quiet_library()
    with connect(ctx) as client:
        changed = client.resume(name)
        now = client.known_limit(name)
    if as_json:
        echo_json({"name": name, "changed": changed, "paused": None})
    else:
        echo(f"{clean(name)}: {'resumed' if changed else 'unchanged, not paused'}")
    if now is not None and now.max_leases is None:
        advice = f"set one with: etcdsem limit {name} N"
        say(f"{name}: the limit reads {now.text!r}, so nothing is granted; {advice}")
