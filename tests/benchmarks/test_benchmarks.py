"""The benchmarks run, and say what they measured; what they measure is no test's business."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import churn, page, picture, sizing, verdicts
from tests.benchmarks.book import Book
from tests.benchmarks.measure import jain
from tests.benchmarks.rows import contended, rows, uncontended

ROOT = Path(__file__).parents[2]


def run(module: str, *options: object, timeout: float = 150) -> str:
    """Run one of the scripts; gives what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.benchmarks{module}", *map(str, options)],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_row_of_the_benchmarks(tmp_path: Path) -> None:
    """Floors and ourselves, side by side, with what each cycle cost etcd; then the page."""
    found = tmp_path / "found.json"
    options = ("--rounds", 1, "--seconds", 0.5, "--series", "limit 1, 2 clients")
    printed = run("", *options, "--only", "etcdsem", "--json", found)
    book = Book(found)
    row = contended(1, 2)
    names = {"floor baton", "floor queue", "floor queue asyncio", "etcdsem", "etcdsem asyncio"}
    names |= {"wire queue", "wire queue asyncio"}
    assert set(book.contestants(row)) == names
    assert all(one["rate"] > 0 and one["least"] > 0 for one in book.speed)
    assert book.parts["machine"]["etcd"]
    assert "of floor" in printed
    assert "threads, limit 1: hand-overs, of the queue floor: 2: " in printed
    shutil.copy(ROOT / "docs" / "performance.md", tmp_path)
    run(".page", found, "--docs", tmp_path)
    assert "| 2 | " in (tmp_path / "performance.md").read_text()
    ET.parse(tmp_path / "speed.svg")


def measured(row: str, contestant: str, *rates: float, **more: float) -> list[dict[str, Any]]:
    """Measurements, one in each round."""
    facts = {"row": row, "contestant": contestant, **more}
    return [{**facts, "round": number, "rate": rate} for number, rate in enumerate(rates)]


@pytest.fixture
def book() -> Book:
    """Two rows, on a machine that was twice as fast in the second round."""
    one = Book(None)
    one.put(
        "speed",
        [
            *measured(uncontended(1), "floor two", 100, 200, 100),
            *measured(uncontended(1), "etcdsem", 132, 264, 132),
            *measured(uncontended(1), "dask", 165, 330),
            *measured(contended(1, 10), "floor queue", 100, 200),
            *measured(contended(1, 10), "etcdsem", 70, 140, jain=0.999, commits=2.0, starved=0),
        ],
    )
    return one


def test_ratios_are_those_of_each_round(book: Book) -> None:
    """A machine that gets faster in between does not show; only common rounds count."""
    row = uncontended(1)
    assert book.ratio((row, "etcdsem"), (row, "floor two")) == pytest.approx(1.32)
    assert book.ratio((row, "etcdsem"), (row, "dask")) == pytest.approx(0.8)
    assert book.median(row, "floor two") == 100
    assert book.ratio((row, "etcdsem"), (row, "kazoo")) is None


def test_met_and_missed(book: Book) -> None:
    """Each target is met, missed or not measured."""
    found = {one.target: one.met for one in verdicts.verdicts(book)}
    assert found["one thread, of the floor of two transactions"] is True
    assert found["one thread, of Dask"] is False
    assert found["threads, limit 1: hand-overs, of the queue floor"] is False
    assert found["threads, limit 1: Jain's index"] is True
    assert found["asyncio, limit 5: starved clients"] is None
    assert "MISSED  one thread, of Dask: 0.80 (wanted: at least 1)" in verdicts.report(book)


def test_the_page_keeps_what_is_written_by_hand(book: Book) -> None:
    """Only what is between the markers is replaced, as often as one likes."""
    before = f"# Mine\n\n{page.BEGIN}\nfrom last time\n{page.END}\n\nMine too.\n"
    once = page.page(before, book)
    assert once.startswith("# Mine\n")
    assert once.endswith("Mine too.\n")
    assert "last time" not in once
    assert "| 10 | 150 | 105 (0.70) |" in once
    assert page.page(once, book) == once
    with pytest.raises(ValueError, match="must have"):
        page.page("# None", book)


def test_the_picture_is_svg_and_names_no_other_host(book: Book) -> None:
    """It can be parsed, and has a line for each contestant with limit 1."""
    drawn = picture.draw(book)
    lines = [one for one in ET.fromstring(drawn).iter() if "line" in one.get("class", "").split()]
    assert len(lines) == 2
    assert drawn.count("http") == 1  # the name space
    with pytest.raises(ValueError, match="limit 1"):
        picture.draw(Book(None))


def test_fairness() -> None:
    """Jain's index is 1 for equal shares and 1/N if one gets all."""
    assert jain([3, 3, 3, 3]) == 1
    assert jain([0, 0, 8, 0]) == 0.25


def test_each_row_has_its_floor() -> None:
    """Whoever takes part has something to be held against."""
    for row in rows():
        assert {"floor two", "floor queue"} & set(row.contestants)
        assert json.dumps(row.contestants).count('"etcdsem"') == 1


def test_the_page_in_docs_has_its_place() -> None:
    """What the script writes has a place in docs/performance.md."""
    text = (ROOT / "docs" / "performance.md").read_text()
    assert page.page(text, Book(None)).count(page.BEGIN) == 1


def test_a_killed_holder(tmp_path: Path) -> None:
    """The time until the next one holds is at most TTL + 1 s."""
    found = tmp_path / "found.json"
    run(".crash", "--kills", 1, "--ttl", 2, "--only", "etcdsem", "--json", found)
    assert Book(found).parts["crash"]["worst"] > 0


@pytest.mark.slow
def test_a_moment_of_churn(tmp_path: Path) -> None:
    """All kinds of work are done, and all figures are taken."""
    found = tmp_path / "found.json"
    run(".churn", "--seconds", 6, "--json", found)
    part = Book(found).parts["churn"]
    assert set(churn.TITLES) == set(part["samples"][0])
    assert len(part["counts"]) == 11
    assert all(part["counts"].values())


def test_growth_is_told_from_a_start() -> None:
    """What rises and stays is no growth; what goes on rising is."""
    for values, grown in ((range(100, 200), True), ([100, 150, *[200] * 98], False)):
        samples = [{"rss_mb": float(value)} for value in values]
        assert churn.grows(samples, "rss_mb")[2] is grown


@pytest.mark.slow
def test_memory_and_start(tmp_path: Path) -> None:
    """Both print their figures and add them to the file."""
    found = tmp_path / "found.json"
    run(".memory", "--only", "client", "--json", found)
    run(".start", "--times", 1, "--imports", "--json", found)
    parts = Book(found).parts
    assert parts["memory"]["client_mb"] > 0
    assert 0 < parts["start"]["python"] < parts["start"]["run"]


@pytest.mark.slow
def test_what_the_parts_of_a_hand_over_cost_etcd(tmp_path: Path) -> None:
    """Each kind is sent, PASS and JOIN as they are among them; each holds, or it would end."""
    found = tmp_path / "found.json"
    printed = run(".parts", "--rounds", 1, "--count", 200, "--json", found)
    part = Book(found).parts["parts"]
    assert len(part["rounds"]) == len(part["table"]) - 1 == len(printed.splitlines()) - 1
    assert part["table"][1][-1] == "1.00"  # the floor, of the floor


@pytest.mark.slow
def test_who_gets_it(tmp_path: Path) -> None:
    """Nobody starves, and the page's verdict is by this run."""
    found = tmp_path / "found.json"
    run(".fairness", "--turns", 2, "--clients", 10, "--json", found)
    book = Book(found)
    assert [one["starved"] for one in book.parts["fairness"]["rows"]] == [0] * 4
    judged = {str(one.target): one.met for one in verdicts.verdicts(book)}
    assert judged["threads, limit 5: starved clients"] is True


@pytest.mark.slow
def test_what_waiting_costs_etcd(tmp_path: Path) -> None:
    """Formulas and measurements agree, where neither is left to the clock."""
    found = tmp_path / "found.json"
    run(".sizing", "--quick", "--json", found)
    part = Book(found).parts["sizing"]
    for one in part["crowds"]:
        for name in ("leases", "watchers", "streams", "writes"):
            assert one["found"][name] == one["expected"][name], name
        most = one["expected"]["connections"]
        assert most / 2 <= one["found"]["connections"] <= most  # idle ones are closed
    assert part["growth"]["handed over"]["bytes"] > part["growth"]["uncontended"]["bytes"] > 0
    assert part["simulated"]["read"] > 0


def test_the_figures_of_the_sizing_page() -> None:
    """docs/sizing.md has what the formulas say."""
    text = (ROOT / "docs" / "sizing.md").read_text()
    rows = re.findall(r"(?m)^\| `(\d+x\d+x\d+)` \|.*?\| (.*) \|$", text)
    assert len(rows) >= 4
    for crowd, cells in rows:
        expected = sizing.formulas(sizing.parse(crowd), sizing.DEFAULT_REFRESH)
        shown = [float(cell.replace(",", "")) for cell in cells.split(" | ")]
        names = ("connections", "leases", "watchers", "keepalives", "reads")
        assert shown == [pytest.approx(expected[name], rel=0.01) for name in names], crowd
