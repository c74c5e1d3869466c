"""``etcdsem limit``: show or change a limit."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

import click

from etcdsem.cli.arguments import name_argument
from etcdsem.cli.json_output import echo_json, json_option
from etcdsem.cli.logs import quiet_library
from etcdsem.cli.options import connect, connection_options
from etcdsem.cli.output import clean, echo, limit_text, say
from etcdsem.errors import EtcdSemError, InvalidSetting

if TYPE_CHECKING:
    from etcdsem import Client


class _Signed(click.Command):
    """A command that takes -2 as an argument, not as an option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.ignore_unknown_options = any(re.fullmatch("-[0-9]+", one) for one in args)
        return super().parse_args(ctx, args)


@click.command(cls=_Signed)
@name_argument
@click.argument("number", metavar="[N|+N|-N]", required=False)
@json_option
@connection_options
@click.pass_context
def limit(ctx: click.Context, /, name: str, number: str | None, as_json: bool) -> None:
    """Show the limit of NAME, or change it to N, or by +N or -N, for all clients at once.

    +N and -N apply to the registered limit at the time of the change, even if another client
    changes it at the same time.

    If raised, waiters get the new slots. If lowered, holders keep their leases, and no lease is
    granted until enough of them are released. With 0 no lease is granted until it is raised again.
    A paused semaphore stays paused. Prints the old and the new limit.

    \b
    Examples:
      etcdsem limit gpu
      etcdsem limit gpu 5
      etcdsem limit gpu +1
      etcdsem limit gpu -2
    """
    change = None if number is None else _read_change(number)
    quiet_library()
    with connect(ctx) as client:
        if change is None:
            _show(name, client.limit(name), as_json=as_json)
        else:
            _set(client, name, change, as_json=as_json)


def _show(name: str, known: int | None, *, as_json: bool) -> None:
    if as_json:
        echo_json({"name": name, "limit": known})
    elif known is None:
        raise EtcdSemError(
            f"{name}: the stored limit is not a number; set one with: etcdsem limit {name} N"
        )
    else:
        echo(str(known))


def _set(client: Client, name: str, change: _Change, *, as_json: bool) -> None:
    old: int | None
    if change.relative:
        old, new = client.resize_by(name, change.number)
    else:
        old, new = client.resize(name, change.number)
    now = client.known_limit(name)
    if as_json:
        echo_json({"name": name, "old": old, "new": new})
        return
    echo(f"{clean(name)}: {limit_text(old, None)} -> {new}")
    if now is not None and now.pause is not None:
        say(f"{name} is still paused; to resume: etcdsem resume {name}")


class _Change(NamedTuple):
    """A limit as given: a number, or (relative) a change of the current limit."""

    number: int
    relative: bool


def _read_change(text: str) -> _Change:
    if re.fullmatch("[+-]?[0-9]{1,20}", text) is None:
        raise InvalidSetting(
            f"invalid limit {text!r}: expected a whole number (5), or a change of the current "
            "limit (+1, -2)"
        )
    return _Change(int(text), text[0] in "+-")
