"""``etcdsem apply``: set limits from a file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from etcdsem.cli import exit_codes
from etcdsem.cli.logs import quiet_library
from etcdsem.cli.options import connect, connection_options
from etcdsem.cli.output import clean, echo, say
from etcdsem.errors import InvalidSetting

if TYPE_CHECKING:
    from etcdsem.model import LimitChange


@click.command(short_help="Set limits from a file.")
@click.option("-f", "--file", "path", metavar="FILE", required=True, help="The file; - is stdin.")
@click.option("--dry-run", is_flag=True, help="Only show what would change: exit code 2 if any.")
@click.option(
    "--prune", is_flag=True, help="Remove names that were applied before and are not in the file."
)
@connection_options
@click.pass_context
def apply(ctx: click.Context, /, path: str, dry_run: bool, prune: bool) -> int:
    """Set the limits and rates of a file, and print each change.

    The file is YAML or JSON. Names that are not registered are registered; others keep their
    holders, their waiters and a pause. Applying a file twice changes nothing the second time.

    \b
      semaphores: {my-api: 5}
      rates: {llm: 100/1m, bulk: 10000/1m/50}

    A limit that somebody changes by hand is shown by `ls`, `status` and --dry-run beside the
    applied one, and set again by the next `apply`. --prune leaves alone names that were never
    applied or are in use. An invalid file, or a name of the other kind, changes nothing.

    \b
    Exit codes: 1 if changes were not made, with the reason on stderr; 2 if there are changes
      with --dry-run; 64, 69, 77 and 78 as for other commands.

    \b
    Examples:
      etcdsem apply -f limits.yaml --dry-run
      etcdsem export | etcdsem apply -f -
    """
    from etcdsem.cli.limits_file import read_limits

    wanted = read_limits(_read(path), source="stdin" if path == "-" else path)
    quiet_library()
    with connect(ctx) as client:
        changes = client.plan_limits(wanted, prune=prune)
        if dry_run:
            _show(changes)
            return exit_codes.DIFFERS if changes else exit_codes.OK
        refused = {one.change.name: one.reason for one in client.apply_limits(changes)}
    _show([change for change in changes if change.name not in refused])
    for name, reason in refused.items():
        say(f"{name}: not changed: {reason}")
    return exit_codes.NOT_DONE if refused else exit_codes.OK


def _read(path: str) -> str:
    try:
        if path == "-":
            return sys.stdin.read()
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError as error:
        raise InvalidSetting(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InvalidSetting(f"cannot read {path}: {error}") from None


def _show(changes: Sequence[LimitChange]) -> None:
    for change in changes:
        echo(clean(_line(change)))


def _line(change: LimitChange) -> str:
    name, live, applied, wanted = change.name, change.live, change.applied, change.wanted
    if wanted is None:
        return f"- {name}: {live}"
    if live is None:
        return f"+ {name}: {wanted}"
    if live == wanted:
        what = "no longer expires" if change.expires else "recorded as applied"
        return f"~ {name}: {live} (unchanged; {what})"
    by_hand = f" ({applied} was applied, and {live} set by hand since)" if change.drift else ""
    return f"~ {name}: {live} -> {wanted}{by_hand}"
