"""The argument NAME, with completion from etcd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def _names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    from etcdsem.cli.completion import complete_name

    return complete_name(ctx, param, incomplete)


def name_argument(function: F) -> F:
    """Add the argument NAME to a command, with completion from etcd."""
    return click.argument("name", metavar="NAME", shell_complete=_names)(function)


def optional_name_argument(function: F) -> F:
    """Add an optional argument NAME to a command, with completion from etcd."""
    return click.argument("name", metavar="[NAME]", required=False, shell_complete=_names)(function)
