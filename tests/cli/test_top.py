"""``etcdsem top``: at any size, without colour, in a pipe; keys, signals, and etcd away."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from etcdsem.cli.show.live_view import Screen
from etcdsem.cli.show.top_layout import SORTS, View, draw, note, ordered
from etcdsem.model import Overview, Pause, Rate
from tests.cli.driver import ETCDSEM, Cli, Console, etcdctl, ran, ran_here, records, state
from tests.helpers.slow import sample

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

Start = Callable[..., Cli]
Open = Callable[..., Console]


def ago(seconds: float) -> datetime:
    return datetime.now(UTC) - timedelta(seconds=seconds)


BOARD = (
    Overview("gpu", 3, 3, 2, waiting_since=ago(61)),
    Overview("lowered", 1, 2, 0),
    Overview("odd", None, 0, 0),
    Overview("long-" * 20, 99_999, 12_345, 20_000, waiting_since=ago(90_000)),
    Overview("paused", 2, 0, 1, waiting_since=None, pause=Pause("me", ago(61))),
    Overview("littered", 5, 1, 0, junk=2),
    *(Overview(f"idle-{i:02}", 5, 0, 0) for i in range(30)),
)


PAUSED = (
    Overview("a-name-that-is-long", 5, 4, 3, waiting_since=ago(61)),
    Overview("db", 2, 1, 1, waiting_since=ago(5), pause=Pause("me", ago(61))),
    Overview("calls", 250, 3, 1, pause=Pause("me", ago(61)), rate=Rate(10_000, 60.0, 40)),
    Overview("bulk", 250, 3, 0, rate=Rate(10_000, 60.0, 40)),
    Overview("api", 100, 100, 2, waiting_since=ago(5), rate=Rate(100, 3600.0, 1)),
)


def drawn(
    width: int,
    height: int,
    *,
    blocks: bool = True,
    board: Sequence[Overview] = BOARD,
    **view: object,
) -> list[str]:
    """The lines of the board, as a terminal without colours would have them."""
    from rich.console import Console as Drawing

    out = io.StringIO()
    drawing = Drawing(file=out, width=width, height=height, no_color=True, highlight=False)
    seen = View(board, "127.0.0.1:2379 /etcdsem", "12:00:00", **view)  # type: ignore[arg-type]
    drawing.print(draw(seen, Screen(width, height, blocks)))
    return out.getvalue().splitlines()


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize(
    ("width", "height"), [(20, 5), (34, 8), (40, 10), (56, 12), (80, 24), (110, 30), (200, 50)]
)
def test_it_fits_into_any_terminal(width: int, height: int, sort: str) -> None:
    """Never wider or higher; names are there; the rows left out are counted."""
    lines = drawn(width, height, sort=sort)
    assert len(lines) <= height
    assert all(len(line) <= width for line in lines)
    rows = [line for line in lines if re.match(r"(gpu|lowered|odd|long|paused|litt|idle)", line)]
    assert rows
    left_out = re.search(r"and (\d+) more", "\n".join(lines))
    assert len(rows) + (int(left_out[1]) if left_out else 0) == len(BOARD)


def test_what_needs_an_eye_is_on_top_and_said_in_words() -> None:
    """Colour repeats it: the same is told without."""
    lines = drawn(80, 24)
    assert [line.split()[0] for line in lines[3:6]] == ["lowered", "littered", "odd"]
    assert "1 over limit" in lines[3]
    assert "2 unrecognized keys" in lines[4]
    assert "limit unreadable" in lines[5]
    assert lines[0].startswith("36 semaphores, 12351 held, 20003 waiting")
    assert re.fullmatch(r"paused \d+m(\d+s)?", note(BOARD[4]))
    assert note(Overview("shut", 0, 0, 0)) == "grants nothing"
    gpu = next(line for line in lines if line.startswith("gpu"))
    assert gpu.split()[:5] == ["gpu", "3", "3", "██████████", "2"]
    assert re.fullmatch(r"\d+m\d\ds", gpu.split()[5])


@pytest.mark.parametrize("width", [20, 30, 40, 48, 56, 60, 72, 80, 110, 200])
def test_paused_is_seen_at_any_width(width: int) -> None:
    """As a note, on a line of its own if need be."""
    lines = drawn(width, 40, board=PAUSED)
    assert all(len(line) <= width for line in lines)
    paused = {row.split()[0] for row in records(lines) if "paused" in row}
    assert paused == {"db", "calls"}


@pytest.mark.parametrize("width", [20, 30, 40, 48, 60, 80])
def test_a_rate_is_seen_at_any_width(width: int) -> None:
    """Starts of the running period, of how many, in which period; never half a number."""
    lines = drawn(width, 40, board=PAUSED)
    shown = {row.split()[0]: re.sub("[█░] ?", "", row) for row in records(lines) if row}
    assert shown["bulk"].split()[1:] == ["120", "10000/1m/40", "0", "-"]
    assert shown["api"].split()[1:4] == ["100", "100/1h", "2"]
    assert lines[0].startswith("2 semaphores, 3 rate limits, 5 held, 7" if width > 40 else "5 held")


def test_without_blocks_it_is_ascii() -> None:
    for line in drawn(120, 50, blocks=False):
        assert line.isascii()


def test_etcd_away_is_told_at_the_foot() -> None:
    lines = drawn(
        60, 12, trouble="seen 7s ago: etcd cannot be reached, and so on, and so on, and on"
    )
    assert lines[-1].startswith("seen 7s ago")
    assert len(lines[-1]) == 60


def test_the_orders() -> None:
    assert [one.name for one in ordered(BOARD, "name")] == sorted(one.name for one in BOARD)
    assert ordered(BOARD, "held")[0].held == 12_345
    assert [one.name[:4] for one in ordered(BOARD, "oldest")[:2]] == ["long", "gpu"]


@pytest.fixture
def etcd(fresh_etcd: EtcdServer) -> EtcdServer:
    """An etcd without other tests' semaphores, since `top` shows all there are."""
    return fresh_etcd


@pytest.fixture
def used(etcd: EtcdServer, name: str, start: Start) -> str:
    """A semaphore of 1 that is held, with one in line."""
    start(etcd, "hold", name, "-l", "1").expect("is held", err=True)
    start(etcd, "hold", name).expect("place 1 of 1", err=True)
    return name


def test_piped_it_is_a_table_once(etcd: EtcdServer, used: str) -> None:
    done = ran(etcd, "top")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0].split() == [
        "NAME", "HELD", "LIMIT", "WAITING", "OLDEST", "NOTE",
    ]  # fmt: skip
    assert re.search(rf"^{used} +1 +1 +1 +\d+s$", done.stdout, re.MULTILINE)
    assert "\x1b" not in done.stdout


def test_json_is_one_object_for_each_look(etcd: EtcdServer, used: str) -> None:
    done = ran(etcd, "top", "--json", "--count", "2", "--interval", "100ms")
    looks = [json.loads(line) for line in done.stdout.splitlines()]
    assert [list(look) for look in looks] == [["at", "semaphores"]] * 2
    one = next(one for one in looks[1]["semaphores"] if one["name"] == used)
    assert list(one) == [
        "name", "limit", "held", "waiting", "junk", "waiting_since", "overbooked",
        "paused",
        "rate", "used", "applied", "drift", "expires",
    ]  # fmt: skip
    assert (one["held"], one["waiting"], one["overbooked"]) == (1, 1, 0)
    assert one["waiting_since"] < looks[1]["at"]
    assert json.loads(ran(etcd, "ls", "--json").stdout)["semaphores"]


def test_lowered_below_what_is_held_is_overbooked(
    etcd: EtcdServer, name: str, start: Start
) -> None:
    for _ in range(2):
        start(etcd, "hold", name, "-l", "2").expect("is held", err=True)
    ran(etcd, "limit", name, "1")
    row = next(line for line in ran(etcd, "top").stdout.splitlines() if name in line)
    assert row.endswith("1 over limit")


def test_many_semaphores_are_read_together(fresh_etcd: EtcdServer) -> None:
    """More of them than fit into one transaction; the limits are not mixed up."""
    import etcdsem

    with etcdsem.connect(fresh_etcd.endpoint) as client:
        for number in range(1, 151):
            etcdsem.Semaphore(number, f"s-{number:03}", client=client)
        assert [(one.name, one.max_leases) for one in client.overview()] == [
            (f"s-{number:03}", number) for number in range(1, 151)
        ]


def test_on_a_terminal(etcd: EtcdServer, used: str, console: Open, start: Start) -> None:
    """It fills the screen, follows what happens and the terminal's size, and q ends it with the
    terminal as it was.
    """
    top = console(etcd, *ETCDSEM, "top", "-i", "200ms", env={"LC_ALL": "C.UTF-8"}, size=(100, 60))
    before = top.settings()
    top.expect(re.escape("\x1b[?1049h"))
    top.expect(rf"{used}[^\n]*█")
    start(etcd, "hold", used).expect("place 2 of 2", err=True)
    top.expect(rf"{used}[^\n]*[ m]2\x1b")
    top.type("n")
    top.expect("sorted by name")
    top.resize(30, 60)
    top.expect("by name: w h o n|by name: w h \\.\\.\\.|q quit  by")
    top.type("q")
    assert top.end() == 0
    assert "\x1b[?1049l" in top.seen
    assert top.settings() == before


@pytest.mark.parametrize("width", sample([40, 60, 80]))
def test_paused_on_a_narrow_terminal(
    etcd: EtcdServer, used: str, console: Open, width: int
) -> None:
    """A real one; and a semaphore that is not paused does not look so."""
    ran(etcd, "limit", used, "2")
    ran(etcd, "run", "other", "-l", "1", "--", "true")
    ran(etcd, "pause", "other")
    top = console(etcd, *ETCDSEM, "top", "-c", "1", env={"NO_COLOR": "1"}, size=(width, 20))
    assert top.end() == 0
    rows = {row.split()[0]: row for row in records(top.seen.splitlines()) if row.split()}
    assert "paused" in next(row for name, row in rows.items() if name == "other")
    assert not any("paused" in row for name, row in rows.items() if name != "other")
    ran(etcd, "pause", used)
    top = console(etcd, *ETCDSEM, "top", "-c", "1", env={"NO_COLOR": "1"}, size=(width, 20))
    assert top.end() == 0
    row = next(line for line in top.seen.splitlines() if line.startswith(used[:5]))
    assert used[:5] in row
    assert top.seen.count("paused") >= 2


def test_without_colour_on_a_terminal(etcd: EtcdServer, used: str, console: Open) -> None:
    top = console(etcd, *ETCDSEM, "top", "-c", "1", env={"NO_COLOR": "1"}, size=(90, 40))
    assert top.end() == 0
    assert used in top.seen
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", top.seen)


def test_without_utf_8_in_the_locale(etcd: EtcdServer, used: str, console: Open) -> None:
    """Python writes UTF-8 even then, but the terminal might not show it."""
    for locale in ({"LC_ALL": "C"}, {"LC_ALL": "", "LC_CTYPE": "", "LANG": ""}):
        top = console(etcd, *ETCDSEM, "top", "-c", "1", env=locale, size=(90, 20))
        assert top.end() == 0
        assert "##########" in top.seen
        assert top.seen.isascii()


def test_ctrl_c_and_signals(etcd: EtcdServer, console: Open) -> None:
    """Ctrl-C is a way to leave; other signals are told by the code. The screen comes back."""
    for ending, code in (("\x03", 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129)):
        top = console(etcd, *ETCDSEM, "top", size=(80, 24))
        top.expect("q quit")
        if isinstance(ending, str):
            top.type(ending)
        else:
            top.process.send_signal(ending)
        assert top.end() == code
        assert "\x1b[?1049l" in top.seen


def test_ctrl_z_gives_the_terminal_back(etcd: EtcdServer, console: Open) -> None:
    shell = console(etcd, "bash", "--norc", "-i", size=(80, 24))
    shell.expect(r"\$ ")
    shell.type(" ".join(ETCDSEM) + " top\n")
    shell.expect("q quit")
    shell.type("\x1a")
    shell.expect("Stopped")
    shell.type("fg\n")
    shell.expect("q quit")
    shell.type("q")
    shell.expect(r"\$ ")
    shell.type("echo code $?\n")
    shell.expect("code 0")


@pytest.mark.slow
def test_etcd_that_goes_away_is_no_end(fresh_etcd: EtcdServer, console: Open) -> None:
    """At the start it is 69; later it is a line, until it is back."""
    etcdctl(fresh_etcd, "put", "/etcdsem/here/max_leases", "3")
    top = console(fresh_etcd, *ETCDSEM, "top", "-i", "200ms", size=(100, 24))
    top.expect("here")
    fresh_etcd.kill()
    top.expect("updated [0-9]+s ago", seconds=60)
    fresh_etcd.restart()
    top.seen = ""
    top.expect("q quit", seconds=60)
    top.type("q")
    assert top.end() == 0


@pytest.mark.slow
def test_unreachable_is_69_and_leaves_the_screen_alone(etcd: EtcdServer, console: Open) -> None:
    top = console(etcd, *ETCDSEM, "top", "--endpoints", "127.0.0.1:1", size=(80, 24))
    assert top.end(30) == 69
    assert "\x1b[?1049h" not in top.seen


@pytest.mark.parametrize("arguments", [["-i", "0"], ["-i", "x"], ["-c", "-1"], ["-s", "x"], ["x"]])
def test_usage_errors(arguments: list[str]) -> None:
    done = ran_here(None, "top", *arguments)
    assert (done.returncode, done.stdout) == (64, "")
    assert done.stderr.count("\n") == 1


def test_a_look_that_is_interrupted_ends_quietly(etcd: EtcdServer, start: Start) -> None:
    """Piped and endless, it ends by a signal, or with its reader."""
    top = start(etcd, "top", "--count", "0", "--interval", "100ms")
    top.expect("NAME")
    assert state(top.pid) in "RS"
    top.send(signal.SIGINT)
    assert top.end(10) == 130
    script = f"{' '.join(ETCDSEM)} top -c 0 -i 100ms | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", script], env={**os.environ, **etcd.env()}, capture_output=True, timeout=60
    )
    assert done.stdout.decode().splitlines()[1] == "141"
    assert done.stderr == b""
