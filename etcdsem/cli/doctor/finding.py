"""What `doctor` and `bench` report: findings, each with what to do about it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Literal, NamedTuple

import click

from etcdsem.cli.output import clean, echo

_COLOURS = {"ok": "green", "info": "cyan", "warning": "yellow", "problem": "red"}

Level = Literal["ok", "info", "warning", "problem"]


class Finding(NamedTuple):
    """One thing that was looked at."""

    check: str
    level: Level
    what: str
    do: str = ""


def milliseconds(seconds: float) -> str:
    """A time, for people."""
    return f"{seconds * 1000:.1f} ms"


def print_findings(findings: Sequence[Finding]) -> None:
    """One after the other; advice that the next one repeats is left to it."""
    for one, following in zip(findings, [*findings[1:], None], strict=True):
        _print_finding(one, repeated=following is not None and following.do == one.do)


def _print_finding(one: Finding, *, repeated: bool) -> None:
    level = one.level.ljust(7)
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        level = click.style(level, fg=_COLOURS[one.level], bold=one.level == "problem")
    echo(f"{level}  {one.check}: {clean(one.what)}")
    if one.do and not repeated:
        echo(f"{'':9}  -> {clean(one.do)}")
