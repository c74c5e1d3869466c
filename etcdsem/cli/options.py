"""The connection options, accepted before and after each command's name.

They mean the same as the `ETCDSEM_*` variables of the same name, and override them. A password is
never taken from the command line, where every user of the machine can read it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from etcdsem.cli.logs import warnings_printed

if TYPE_CHECKING:
    from etcdsem import Client

F = TypeVar("F", bound=Callable[..., Any])


class WholeNumber(click.IntRange):
    """A whole number in plain digits; `int` would also accept 1_000 and +1."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and re.fullmatch("-?[0-9]{1,20}", value) is None:
            self.fail(f"{value!r} is not a whole number such as 5", param, ctx)
        return super().convert(value, param, ctx)

    def _describe_range(self) -> str:
        return "" if self.min is None and self.max is None else super()._describe_range()


DIAL_TIMEOUT = 10.0
"""Seconds after which an etcd that never answered is reported as unreachable."""

_KEY = "etcdsem.connection"


def _no_password(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None and ":" in value:
        raise click.BadParameter(
            "all users of this machine can read a password on the command line: give only the "
            "user name, and set the password with --password-file or ETCDSEM_PASSWORD",
            ctx=ctx,
            param=param,
        )
    return value


def _remember(ctx: click.Context, param: click.Parameter, value: object) -> None:
    """Store an option's value for `connect()`; the one nearest to the command wins."""
    if value is not None:
        ctx.meta.setdefault(_KEY, {})[param.name] = value


def _remember_user(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    _remember(ctx, param, _no_password(ctx, param, value))


_OPTIONS: tuple[tuple[str, str, str], ...] = (
    ("--endpoints", "HOST:PORT,...", "Addresses of etcd, comma-separated.  [127.0.0.1:2379]"),
    ("--cacert", "FILE", "CA certificate that verifies etcd's certificate."),
    ("--cert", "FILE", "Client certificate."),
    ("--key", "FILE", "Private key of the client certificate."),
    ("--user", "NAME", "etcd user name."),
    ("--password-file", "FILE", "File that contains the user's password."),
    ("--prefix", "PATH", "Key prefix of the semaphores in etcd.  [/etcdsem]"),
)


def connection_options(function: F) -> F:
    """Add the connection options to a command; `connect()` uses them."""
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
    """Return a client for the given options. Does no I/O yet.

    Args:
        ctx: the command's context, which has the options.
        dial_timeout: seconds after which an etcd that never answered counts as unreachable.

    Raises:
        InvalidSetting: an option or a variable is invalid.
    """
    given: dict[str, Any] = dict(ctx.meta.get(_KEY, {}))
    if "endpoints" in given:
        given["endpoints"] = [part.strip() for part in given["endpoints"].split(",")]
    import etcdsem

    with warnings_printed():
        return etcdsem.connect(**given, dial_timeout=dial_timeout)
