"""Tables at any width of terminal: no number and no ID is cut or missing."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest import mock

import pytest
from rich.console import Console as Drawing

from etcdsem.cli import output
from etcdsem.cli.show import ls
from etcdsem.cli.show.live_view import Screen
from etcdsem.cli.show.status_layout import draw, print_status
from etcdsem.cli.show.top_layout import View
from etcdsem.cli.show.top_layout import draw as draw_top
from etcdsem.model import Holder, Overview, Pause, Rate, Status, Waiter

WIDTHS = [*range(20, 66), *range(66, 201, 9), 80, 100, 120, 200]

NOW = datetime.now(UTC) - timedelta(minutes=30)  # so that ages in hours do not change

LABELS = {  # as set by deploy/kubernetes/examples
    "pod": "train-model-with-a-long-name-28834640-x7k2p",
    "node": "ip-10-0-121-212.eu-central-1.compute.internal",
    "namespace": "machine-learning-production",
}

OWNER = "train-model-with-a-long-name-28834640-{}:17"

HOLDERS = tuple(
    Holder(
        slot, OWNER.format(slot), "h", slot, "c", f"1baa4f56d6f369{slot:02x}", 9_876_543_210 + slot,
        NOW - timedelta(hours=25), 28.0, LABELS, slot == 99, 7, 86400.0 * 3,
    )
    for slot in (0, 1, 99)
)  # fmt: skip

WAITERS = tuple(
    Waiter(
        place, OWNER.format(place), "h", place, "c", f"2baa4f56d6f369{place:02x}",
        NOW - timedelta(hours=51), 21.0, LABELS, 12345, -99, True,
    )
    for place in (1, 2, 1234)
)  # fmt: skip

NAME = "a-semaphore-of-the-machine-learning-production-department-" + "x" * 40

STATUS = Status(NAME, 99, HOLDERS, WAITERS, pause=Pause("alice", NOW, "new disks"))

RATE = Status(NAME, 250, HOLDERS[:2], WAITERS, rate=Rate(10_000, 60.0, 40))

BOARD = (
    Overview(NAME, 99_999, 12_345, 20_001, waiting_since=NOW - timedelta(hours=26)),
    Overview("lowered", 77, 88, 0),
    Overview("paused", 55, 44, 33, pause=Pause("me", NOW - timedelta(hours=76))),
    Overview("calls", 250, 3, 1, rate=Rate(10_000, 60.0, 40), junk=66),
)


def text(drawing: object, width: int) -> list[str]:
    out = io.StringIO()
    Drawing(file=out, width=width, height=90, highlight=False).print(drawing)
    return out.getvalue().splitlines()


def printed(width: int, call: Any) -> list[str]:
    """What is printed on a terminal of that width."""

    class Terminal(io.StringIO):
        encoding = "utf-8"

        def isatty(self) -> bool:
            return True

    out = Terminal()
    size = {"COLUMNS": str(width), "LINES": "50", "TERM": "dumb", "LC_ALL": "C.UTF-8"}
    with mock.patch("sys.stdout", out), mock.patch.dict("os.environ", size):
        call()
    return re.sub("\x1b\\[[0-9;]*m", "", out.getvalue()).splitlines()


def check(lines: Sequence[str], width: int, wanted: Sequence[str]) -> None:
    assert max(map(len, lines)) <= width
    words = set(itertools.chain(*(re.split(r"[ ,;:]+", line) for line in lines)))
    missing = [one for one in wanted if not words >= set(one.split())]
    assert not missing, "\n".join(lines)


def of_holder(one: Holder) -> list[str]:
    over = " over limit" if one.over_limit else ""
    ttl = f"{one.ttl:.0f}s"
    return [f"{one.slot}{over}", "7", "1d01h", ttl, str(one.fencing_token), one.lease_id]


def of_waiter(one: Waiter) -> list[str]:
    return [str(one.position), "2d03h", "21s", one.lease_id, "weight 12345 priority -99 backfill"]


NUMBERS = [number for one in HOLDERS for number in of_holder(one)]
NUMBERS += [number for one in WAITERS for number in of_waiter(one)]


@pytest.mark.parametrize("width", WIDTHS)
def test_status(width: int) -> None:
    """On a screen and printed."""
    lines = text(draw(STATUS, Screen(width, 90, True), ""), width)
    check(lines, width, [*NUMBERS, "limit 99", "3 held", "3 waiting", "paused"])
    tables = printed(width, lambda: print_status(STATUS))[1:]
    check(tables, width, NUMBERS)
    whole = "".join(line.strip() for line in tables)
    assert all(f"{key}={value}" in whole for key, value in LABELS.items())
    rates = text(draw(RATE, Screen(width, 90, True), ""), width)
    wanted = [number for one in HOLDERS[:2] for number in of_holder(one)]
    check(rates, width, [*wanted, "10000/1m/40", "80 used", "3 waiting"])


@pytest.mark.parametrize("width", WIDTHS)
def test_top(width: int) -> None:
    lines = text(draw_top(View(BOARD, "here", "12:00:00"), Screen(width, 60, True)), width)
    wanted = ["12345", "99999", "20001", "1d02h", "77", "88", "11 over limit", "44", "55", "33"]
    check(lines, width, [*wanted, "120", "10000/1m/40", "66 unrecognized keys", "paused 3d04h"])


@pytest.mark.parametrize("height", range(8, 24))
def test_top_uses_the_height(height: int) -> None:
    """A row that is shown is whole, and no line is left empty at the foot."""
    board = [Overview(f"s-{i:02}", 5, 4, 3, waiting_since=NOW) for i in range(40)]
    lines = text(draw_top(View(board, "here", "12:00:00"), Screen(20, height, True)), 20)
    assert height - 3 < len(lines) <= height
    shown = sum(line.startswith("s-") for line in lines)
    assert f"and {40 - shown} more" in lines
    assert sum(re.search(r"3  \d+[mh]", line) is not None for line in lines) == shown


@pytest.mark.parametrize("width", WIDTHS)
def test_ls(width: int) -> None:
    lines = printed(width, lambda: ls.show(BOARD))
    check(lines, width, ["12345", "99999", "20001", "77", "88", "55 paused", "120", "10000/1m/40"])
    assert sum(line.startswith("a-s") for line in lines) == 1
    assert not any(line.startswith("x") for line in lines)


def test_labels_go_first_then_names_are_shortened_in_the_middle() -> None:
    status = Status("gpu", 3, HOLDERS[:1], ())

    def row(width: int) -> str:
        return text(draw(status, Screen(width, 20, True), ""), width)[3]

    assert "namespace=machine-learning-production" in row(300)
    assert OWNER.format(0) in row(150)
    assert row(150).endswith("…")
    assert "pod=" not in row(100)
    assert re.match(r" +0  train-mo\w*.*….*:17 ", row(90))


@pytest.mark.parametrize(
    ("locale", "unicode"),
    [
        ({"LC_ALL": "C"}, False),
        ({"LC_ALL": "POSIX", "LANG": "en_US.UTF-8"}, False),
        ({"LANG": "de_DE.ISO-8859-1"}, False),
        ({}, False),
        ({"LANG": "en_US.UTF-8"}, True),
        ({"LC_CTYPE": "C.utf8"}, True),
    ],
)
def test_the_locale(locale: dict[str, str], unicode: bool) -> None:
    stdout = mock.Mock(encoding="utf-8")
    with mock.patch("sys.stdout", stdout), mock.patch.dict("os.environ", locale, clear=True):
        assert output.unicode_terminal() is unicode
