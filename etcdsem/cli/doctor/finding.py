"""Checks and their findings, which `doctor` and `bench` report together with advice.

A check is one row of a table: its name, what it needs, and a function that judges the results.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, TypeVar

import click

from etcdsem.cli.output import clean, echo

T = TypeVar("T")

_COLOURS = {"ok": "green", "info": "cyan", "warning": "yellow", "problem": "red"}

Level = Literal["ok", "info", "warning", "problem"]


class Verdict(NamedTuple):
    """One result of a check: how serious it is, what was found, and what to do about it."""

    level: Level
    what: str
    do: str = ""


class Finding(NamedTuple):
    """A verdict, with the name of its check."""

    check: str
    level: Level
    what: str
    do: str = ""


@dataclass(frozen=True)
class Check(Generic[T]):
    """One row of a table of checks."""

    name: str
    judge: Callable[[T], Iterable[Verdict]]
    """Yields the verdicts; none if there is nothing to report."""
    needs: tuple[str, ...] = ()
    """Attributes of the results; the check is skipped if one of them is None or an empty list."""


def run_table(checks: Iterable[Check[T]], results: T) -> list[Finding]:
    """Run the checks of a table on some results, and return all findings in order."""
    return [
        Finding(check.name, *verdict)
        for check in checks
        if all(getattr(results, need) not in (None, []) for need in check.needs)
        for verdict in check.judge(results)
    ]


def milliseconds(seconds: float) -> str:
    """Format a duration in milliseconds."""
    return f"{seconds * 1000:.1f} ms"


def print_findings(findings: Sequence[Finding]) -> None:
    """Print the findings; advice that is the same for consecutive ones is printed once."""
    for one, following in zip(findings, [*findings[1:], None], strict=True):
        _print_finding(one, repeated=following is not None and following.do == one.do)


def _print_finding(one: Finding, *, repeated: bool) -> None:
    level = one.level.ljust(7)
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        level = click.style(level, fg=_COLOURS[one.level], bold=one.level == "problem")
    echo(f"{level}  {one.check}: {clean(one.what)}")
    if one.do and not repeated:
        echo(f"{'':9}  -> {clean(one.do)}")
