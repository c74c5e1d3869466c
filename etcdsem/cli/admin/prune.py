"""``etcdsem prune``: let names expire that nobody uses."""

from __future__ import annotations

import click

from etcdsem.cli.logs import quiet_library
from etcdsem.cli.options import connect, connection_options
from etcdsem.cli.output import clean, echo, say


@click.command(short_help="Let unused names expire.")
@click.argument("pattern", metavar="[PATTERN]", default="*")
@click.option(
    "--idle", metavar="DURATION", required=True, help="Time after which an unused name goes."
)
@click.option("--dry-run", is_flag=True, help="Only list the names.")
@connection_options
@click.pass_context
def prune(ctx: click.Context, /, pattern: str, idle: str, dry_run: bool) -> None:
    """Let names expire that nobody holds or waits for.

    etcd does not record when a name was last used. So no name is removed now: each one that is not
    in use, and does not expire yet, leaves etcd after --idle (at least 10m), unless somebody uses
    it before; whoever uses it keeps it, except programs of etcdsem 0.1.0, which do not refresh
    names. Names whose limits were set by `apply` stay, and rate limits while permits count. Keys
    that were left over of names without a limit are deleted at once.

    With PATTERN, only names that match this shell pattern; quote it. Prints the names.

    \b
    Examples:
      etcdsem prune --idle 7d --dry-run
      etcdsem prune --idle 7d 'customer-*'
    """
    quiet_library()
    with connect(ctx) as client:
        done = client.prune(idle, pattern=pattern, dry_run=dry_run)
    for name in done.expiring:
        echo(clean(f"{name}: expires in {idle} unless used"))
    for name in done.removed:
        echo(clean(f"{name}: leftover keys {'would be ' * dry_run}deleted"))
    if not any(done):
        say("no unused name to expire")
