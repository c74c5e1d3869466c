"""docs/cli.md lists what scripts rely on: each exit code, and the JSON of holders and waiters."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from etcdsem.cli import exit_codes
from etcdsem.cli.json_output import holder_data, waiter_data
from etcdsem.model import Holder, Waiter
from tests.cli.driver import ran_here

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"

pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="the docs are not beside the tests")

CODES = {value for value in vars(exit_codes).values() if isinstance(value, int)}

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def row(first: str) -> str:
    """The second cell of the table row whose first cell is this."""
    found = re.search(rf"^\| {re.escape(first)} \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    assert found, first
    return found[1]


def test_exit_codes() -> None:
    """Each code is in the table, and each that `run` may return is in its help."""
    table = PAGE.read_text().partition("## Exit codes")[2].partition("\n\nEvery exit code")[0]
    cells = " ".join(re.findall(r"^\| ([\d+, N]+) \|", table, re.MULTILINE))
    assert set(map(int, re.findall(r"\d+", cells))) >= CODES
    shown = ran_here(None, "run", "--help").stdout
    told = {int(number) for number in re.findall(r"\b\d+\b", shown.partition("Exit codes")[2])}
    assert told >= CODES - {exit_codes.OK, exit_codes.NOT_DONE, exit_codes.DIFFERS}


def test_holders_and_waiters() -> None:
    """The keys of their JSON objects, in order."""
    holder = Holder(0, "me", "here", 1, "here.1.x", "1f", 7, NOW)
    waiter = Waiter(1, "me", "here", 1, "here.1.x", "1f", NOW)
    for title, data in (("H, a holder", holder_data(holder)), ("W, a waiter", waiter_data(waiter))):
        keys = row(title).strip("`{}").split(", ")
        assert list(map(json.loads, keys)) == list(data)
