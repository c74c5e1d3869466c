"""``etcdsem export``: print the limits in etcd as a file for `apply`."""

from __future__ import annotations

from fnmatch import fnmatchcase

import click

from etcdsem.cli import exit_codes
from etcdsem.cli.json_output import echo_json, json_option
from etcdsem.cli.options import connect, connection_options
from etcdsem.cli.output import echo, say


@click.command(short_help="Print the limits as a file for apply.")
@click.argument("pattern", metavar="[PATTERN]", required=False)
@json_option
@connection_options
@click.pass_context
def export(ctx: click.Context, /, pattern: str | None, as_json: bool) -> int:
    """Print the limits and rates in etcd as a file for `etcdsem apply`, in YAML.

    With PATTERN, only names that match this shell pattern, as for `ls`. Pauses, and names that
    expire, are not part of the file. Exit code 1 if a limit cannot be read and is therefore
    missing.

    \b
    Examples:
      etcdsem export > limits.yaml
      etcdsem export 'team-a.*' --json
    """
    from etcdsem.cli.limits_file import write_limits

    with connect(ctx) as client:
        found = client.overview()
    found = [
        one
        for one in found
        if not one.expires and (pattern is None or fnmatchcase(one.name, pattern))
    ]
    rates = {one.name: str(one.rate) for one in found if one.rate is not None}
    semaphores = {
        one.name: one.max_leases for one in found if one.rate is None and one.max_leases is not None
    }
    if as_json:
        echo_json({"semaphores": semaphores, "rates": rates})
    else:
        echo(write_limits(semaphores, rates))
    missing = [one.name for one in found if one.max_leases is None]
    for name in missing:
        say(f"{name}: left out, since its limit cannot be read (see: etcdsem status {name})")
    return exit_codes.NOT_DONE if missing else exit_codes.OK
