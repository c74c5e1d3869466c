"""``status --watch``: who holds and who waits, live, at any size of terminal, and in a pipe."""

from __future__ import annotations

import io
import json
import re
import signal
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from tests.cli.driver import ETCDSEM, Cli, Console

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

Start = Callable[..., Cli]
Open = Callable[..., Console]


def test_status_followed(etcd: EtcdServer, name: str, console: Open, start: Start) -> None:
    """It fills the terminal, shows who comes and goes, and q gives the screen back."""
    holder = start(etcd, "hold", name, "-l", "1")
    holder.expect("is held", err=True)
    start(etcd, "hold", name).expect("place 1 of 1", err=True)
    watch = console(etcd, *ETCDSEM, "status", name, "--watch", "-i", "200ms", size=(110, 20))
    watch.expect(re.escape("\x1b[?1049h"))
    watch.expect(rf"{name}: limit 1, 1 held, 1 waiting")
    holder.send(signal.SIGTERM)
    watch.expect(rf"{name}: limit 1, 1 held, 0 waiting")
    watch.type("q")
    assert watch.end() == 0
    assert "\x1b[?1049l" in watch.seen


def test_status_followed_in_a_pipe(etcd: EtcdServer, name: str, start: Start) -> None:
    """Again and again, until a signal; JSON stays one object on one line."""
    start(etcd, "hold", name, "-l", "3").expect("is held", err=True)
    for arguments in ([], ["--json"]):
        watch = start(etcd, "status", name, "--watch", "-i", "100ms", *arguments)
        for _ in range(3):
            line = watch.expect(r"1 held|\{.*\}")[0]
            assert not arguments or json.loads(line)["held"] == 1
        watch.send(signal.SIGTERM)
        assert watch.end(20) == 143


@pytest.mark.parametrize(("width", "height"), [(30, 5), (60, 10), (100, 24), (200, 60)])
def test_status_fits_into_any_terminal(width: int, height: int) -> None:
    """Never wider or higher; the first in line are seen, and the rest is counted."""
    from rich.console import Console as Drawing

    from etcdsem import Holder, Status, Waiter
    from etcdsem.cli.show.live_view import Screen
    from etcdsem.cli.show.status_layout import draw

    now = datetime.now(UTC)
    holders = tuple(
        Holder(i, f"h{i}:{i}", "h", i, "c", "1baa4f56d6f36930", 7, now, 3.0, {"pod": "p" * 40})
        for i in range(9)
    )
    waiters = tuple(
        Waiter(i, f"w\x1b{i}", "w", i, "c", "1baa4f56d6f36931", now) for i in range(1, 40)
    )
    out = io.StringIO()
    drawing = Drawing(file=out, width=width, height=height, highlight=False)
    drawing.print(draw(Status("gpu", 5, holders, waiters), Screen(width, height, True), ""))
    lines = out.getvalue().splitlines()
    assert len(lines) <= height
    assert all(len(line) <= width for line in lines)
    assert "\x1b" not in out.getvalue()
    assert any(line.split()[:2] == ["0", "h0:0"] for line in lines[1:])
    assert any(line.split()[1:2] == ["w\\x1b1"] for line in lines) is (height >= 10)
    assert "not shown" in lines[-1] or height == 60


@pytest.mark.parametrize("width", [40, 60, 80])
def test_what_stops_everything_is_seen_on_a_narrow_terminal(width: int) -> None:
    """That it is paused has a line of its own; and what those in line want is seen."""
    from rich.console import Console as Drawing

    from etcdsem import Holder, Pause, Status, Waiter
    from etcdsem.cli.show.live_view import Screen
    from etcdsem.cli.show.status_layout import draw

    now = datetime.now(UTC)
    holders = (Holder(0, "h0:0", "h", 0, "c", "1baa4f56d6f36930", 7, now, 3.0, {}),)
    waiters = (
        Waiter(1, "w1:1", "w", 1, "c", "1baa4f56d6f36931", now, weight=3, priority=10),
        Waiter(2, "w2:2", "w", 2, "c", "1baa4f56d6f36932", now),
    )
    pause = Pause("the-operations-team", now, "new disks, and the driver too")
    seen = Status("gpu-of-the-third-floor", 3, holders, waiters, pause=pause)
    out = io.StringIO()
    Drawing(file=out, width=width, height=14, highlight=False).print(
        draw(seen, Screen(width, 14, True), "")
    )
    lines = out.getvalue().splitlines()
    assert len(lines) <= 14
    assert all(len(line) <= width for line in lines)
    assert lines[0].endswith("r: limit 3, 1 held, 2 waiting")
    assert lines[1].startswith("paused 0s ago by the-operations-te")
    (place,) = (at for at, line in enumerate(lines) if "w1:1" in line)
    assert "weight 3, priority 10" in "".join(lines[place : place + 3])
