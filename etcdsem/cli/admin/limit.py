"""``etcdsem limit``: show a limit, or change it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

import click

from etcdsem.cli.json_output import echo_json, json_option
from etcdsem.cli.options import connect, connection_options, name_argument
from etcdsem.cli.output import clean, echo, limit_text, say
from etcdsem.errors import EtcdSemError, InvalidSetting

if TYPE_CHECKING:
    from etcdsem import Client


class _Signed(click.Command):
    """A command that takes -2 for an argument, not for an option."""

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
    """Show the limit of NAME, or change it for everybody at once: to N, or by +N or -N.

    +N and -N count from the limit that is registered when the change is made, also if somebody else
    changes it at the same time.

    Raised, waiters get the new room. Lowered, nobody is interrupted: nobody gets in until enough
    have left. 0 lets nobody in until it is raised again; what is paused stays paused. Prints the
    old and the new limit.

    \b
    Examples:
      etcdsem limit gpu
      etcdsem limit gpu 5
      etcdsem limit gpu +1
      etcdsem limit gpu -2
    """
    change = None if number is None else _read_change(number)
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
            f"{name}: what is stored as its limit is no number; set one: etcdsem limit {name} N"
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
        say(f"{name} is paused, and stays so; to go on: etcdsem resume {name}")


class _Change(NamedTuple):
    """A limit as it was given: a number, or (relative) what to add to the present one."""

    number: int
    relative: bool


def _read_change(text: str) -> _Change:
    if re.fullmatch("[+-]?[0-9]{1,20}", text) is None:
        raise InvalidSetting(
            f"{text!r} is not a limit; give a whole number (5), or a change of the present limit "
            "(+1, -2)"
        )
    return _Change(int(text), text[0] in "+-")
