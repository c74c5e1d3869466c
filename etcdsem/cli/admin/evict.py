"""``etcdsem evict``: end one lease."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from etcdsem.cli.arguments import name_argument
from etcdsem.cli.json_output import echo_json, holder_data, json_option, junk_data, waiter_data
from etcdsem.cli.options import WholeNumber, connect, connection_options
from etcdsem.cli.output import clean, echo, owner_text

if TYPE_CHECKING:
    from etcdsem import Holder, Junk, Waiter


@click.command()
@name_argument
@click.option("--slot", metavar="N", type=WholeNumber(min=0), help="Evict the holder of this slot.")
@click.option("--lease", metavar="ID", help="Evict the holder or waiter with this lease ID (hex).")
@json_option
@connection_options
@click.pass_context
def evict(
    ctx: click.Context, /, name: str, slot: int | None, lease: str | None, as_json: bool
) -> None:
    """End one lease of NAME.

    The slot goes to the next waiter at once. The evicted holder is notified; `etcdsem run` ends
    its command. An evicted waiter stops waiting; `run` and `hold` exit with code 70.

    Exit code 1 if there is no such holder or waiter.

    \b
    Examples:
      etcdsem evict gpu --slot 2
      etcdsem evict gpu --lease 694d7c1e2a3b4c5d
    """
    if (slot is None) == (lease is None):
        raise click.UsageError("give either --slot or --lease")
    if lease is not None and re.fullmatch("[0-9A-Fa-f]{1,16}", lease) is None:
        raise click.UsageError(
            f"invalid lease ID {lease!r}: expected hex, as printed by `etcdsem status`"
        )
    with connect(ctx) as client:
        gone = client.evict(name, slot=slot, lease=lease)
    kind = type(gone).__name__.lower()
    if as_json:
        echo_json({"name": name, "evicted": kind, kind: _evicted_data(gone)})
    else:
        echo(f"{clean(name)}: evicted {clean(_evicted_text(gone))}")


def _evicted_data(gone: Holder | Waiter | Junk) -> dict[str, Any]:
    from etcdsem.model import Holder, Waiter

    match gone:
        case Holder():
            return holder_data(gone)
        case Waiter():
            return waiter_data(gone)
    return junk_data(gone)


def _evicted_text(gone: Holder | Waiter | Junk) -> str:
    from etcdsem.model import Holder, Waiter

    match gone:
        case Holder():
            all_of = f", all {gone.weight} slots" if gone.weight > 1 else ""
            return f"{owner_text(gone.owner)} from slot {gone.slot} (lease {gone.lease_id}{all_of})"
        case Waiter():
            owner = owner_text(gone.owner)
            return f"{owner} from place {gone.position} in the queue (lease {gone.lease_id})"
    return f"unrecognized key {gone.key} ({gone.reason})"
