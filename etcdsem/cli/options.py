"""The connection options that every command takes, after its own name or before it.

They mean what the `ETCDSEM_*` variables of the same name mean, and win over them. A password is
never taken from the command line, where every user of the machine can read it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from etcdsem import Client

F = TypeVar("F", bound=Callable[..., Any])


class WholeNumber(click.IntRange):
    """A whole number in plain digits; `int` also takes 1_000, and +1, which may mean a change."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and re.fullmatch("-?[0-9]{1,20}", value) is None:
            self.fail(f"{value!r} is not a whole number such as 5", param, ctx)
        return super().convert(value, param, ctx)


DIAL_TIMEOUT = 10.0
"""Seconds after which an etcd that never answered is reported as unreachable."""

_KEY = "etcdsem.connection"


def _no_password(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None and ":" in value:
        raise click.BadParameter(
            "a password on the command line can be read by everybody on this machine; give only "
            "the name, and the password in --password-file FILE or ETCDSEM_PASSWORD",
            ctx=ctx,
            param=param,
        )
    return value


def _remember(ctx: click.Context, param: click.Parameter, value: object) -> None:
    """Keep an option's value beside the others; the one nearest to the command wins."""
    if value is not None:
        ctx.meta.setdefault(_KEY, {})[param.name] = value


def _remember_user(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    _remember(ctx, param, _no_password(ctx, param, value))


_OPTIONS: tuple[tuple[str, str, str], ...] = (
    ("--endpoints", "HOST:PORT,...", "etcd's addresses. Default: 127.0.0.1:2379."),
    ("--cacert", "FILE", "The authority that signed etcd's certificate."),
    ("--cert", "FILE", "The client's certificate."),
    ("--key", "FILE", "The key of the client's certificate."),
    ("--user", "NAME", "Log in as this user of etcd."),
    ("--password-file", "FILE", "The file that holds the user's password."),
    ("--prefix", "PATH", "Where the semaphores lie in etcd. Default: /etcdsem."),
)


def connection_options(function: F) -> F:
    """Give a command the connection options; `connect()` uses them."""
    for flag, metavar, text in reversed(_OPTIONS):
        function = click.option(
            flag,
            metavar=metavar,
            help=text,
            expose_value=False,
            callback=_remember_user if flag == "--user" else _remember,
        )(function)
    return function


def connect(ctx: click.Context, *, dial_timeout: float = DIAL_TIMEOUT) -> Client:
    """A client as the options say. No I/O yet."""
    given: dict[str, Any] = dict(ctx.meta.get(_KEY, {}))
    if "endpoints" in given:
        given["endpoints"] = [part.strip() for part in given["endpoints"].split(",")]
    import etcdsem

    return etcdsem.connect(**given, dial_timeout=dial_timeout)


def _names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    from etcdsem.cli.completion import complete_name

    return complete_name(ctx, param, incomplete)


def name_argument(function: F) -> F:
    """The argument NAME, completed from what etcd knows."""
    return click.argument("name", metavar="NAME", shell_complete=_names)(function)


def optional_name_argument(function: F) -> F:
    """The same, which may be left out."""
    return click.argument("name", metavar="[NAME]", required=False, shell_complete=_names)(function)
