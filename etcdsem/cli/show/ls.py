"""``etcdsem ls``: list all semaphores, one per line."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import click

from etcdsem.cli.json_output import echo_json, json_option, list_data
from etcdsem.cli.options import connect, connection_options
from etcdsem.cli.output import limit_text, say, table, used

if TYPE_CHECKING:
    from etcdsem import Overview

_NUMBERS = frozenset({"LIMIT", "HELD", "WAITING"})


@click.command()
@click.argument("pattern", metavar="[PATTERN]", required=False)
@json_option
@connection_options
@click.pass_context
def ls(ctx: click.Context, /, pattern: str | None, as_json: bool) -> None:
    """List all semaphores below the prefix: limit, slots held, and number of waiters.

    With PATTERN, list only those whose whole name matches this shell pattern (*, ?, [...]); quote
    it. For a rate limit, HELD is the number of permits that count in the current period. A limit
    that was changed since `etcdsem apply` set it is shown with the applied one.

    \b
    Examples:
      etcdsem ls
      etcdsem ls 'team-*'
      etcdsem ls --json | jq '.semaphores[] | select(.waiting > 0).name'
    """
    with connect(ctx) as client:
        found = client.overview()
        prefix = client.prefix
    if pattern is not None and found:
        found = [one for one in found if fnmatchcase(one.name, pattern)]
        if not found and not as_json:
            say(f"no semaphore below {prefix} matches {pattern!r}")
            return
    if as_json:
        echo_json(list_data(found))
        return
    if not found:
        say(f"no semaphores below {prefix}; create one with: etcdsem run NAME --limit N -- COMMAND")
        return
    show(found)
    for one in found:
        if one.junk:
            keys = f"{one.junk} unrecognized key{'s' * (one.junk > 1)}"
            say(f"{one.name}: ignored {keys} (see: etcdsem status {one.name})")


def show(found: Sequence[Overview]) -> None:
    """Print the table."""
    rows: list[tuple[str, ...]] = [
        (
            one.name,
            limit_text(one.max_leases, one.rate)
            + (" paused" if one.pause else "")
            + (f" (applied: {one.applied})" if one.drift else ""),
            str(used(one.held, one.rate)),
            str(one.waiting),
        )
        for one in found
    ]
    table(("NAME", "LIMIT", "HELD", "WAITING"), rows, _NUMBERS)
