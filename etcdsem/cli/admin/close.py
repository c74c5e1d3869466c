"""``etcdsem close``: remove a semaphore."""

from __future__ import annotations

import click

from etcdsem.cli import exit_codes
from etcdsem.cli.arguments import name_argument
from etcdsem.cli.json_output import echo_json, json_option
from etcdsem.cli.options import connect, connection_options
from etcdsem.cli.output import clean, echo, say


@click.command()
@name_argument
@click.option(
    "--force", is_flag=True, help="Close it even while in use; all holders lose their leases."
)
@json_option
@connection_options
@click.pass_context
def close(ctx: click.Context, /, name: str, force: bool, as_json: bool) -> int:
    """Remove the semaphore NAME from etcd.

    If it has holders or waiters, nothing is done (exit code 1). With --force, holders lose their
    leases, and waiters fail with an error.

    \b
    Examples:
      etcdsem close gpu
      etcdsem close gpu --force
    """
    with connect(ctx) as client:
        closing = client.close_semaphore(name, force=force)
    if not closing.known:
        say(f"{name} is not registered: nothing to close (see: etcdsem ls)")
        return exit_codes.CONFIG
    if as_json:
        data = {"holders": list(closing.holders), "waiters": list(closing.waiters)}
        echo_json({"name": name, "closed": closing.done, **data})
    users = f"{len(closing.holders)} held, {len(closing.waiters)} waiting"
    if not closing.done:
        say(f"{name} is in use ({users}): not closed; use --force to close it anyway")
        return exit_codes.NOT_DONE
    if not as_json:
        echo(
            f"{clean(name)}: closed" + (f" ({users})" if closing.holders or closing.waiters else "")
        )
    return exit_codes.OK
