"""What the docs name exists: tests, seeded bugs, other pages."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md")) + sorted(ROOT.glob("*.md"))

pytestmark = pytest.mark.skipif(
    not (ROOT / "docs").exists(), reason="the docs are not beside the tests"
)


def names(path: Path) -> set[str]:
    """What a source defines at its top: functions, classes, and what is assigned."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def demanding(page: Path) -> list[str]:
    """The tests that a page names and that are not there."""
    missing = []
    for file, test in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?", page.read_text()):
        path = ROOT / file
        if not path.exists():
            missing.append(file)
        elif test and test not in names(path):
            missing.append(f"{file}::{test}")
    return missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_that_are_named_exist(page: Path) -> None:
    """Each `tests/...py::test_...` of a page is there."""
    assert not demanding(page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    """Each relative link of a page leads to a file."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
        assert (page.parent / target).exists(), target


def test_each_promise_names_its_tests() -> None:
    """All twelve promises, each with tests that show it; the controls they name exist."""
    text = (ROOT / "docs" / "guarantees.md").read_text()
    text = text[: text.index("What can not be promised")]
    promises = re.split(r"(?m)^(?=\d+\. \*\*)", text)[1:]
    assert len(promises) == 12
    simulation = ROOT / "tests" / "simulation"
    controls = names(simulation / "test_negative_controls.py") | names(simulation / "test_rates.py")
    for promise in promises:
        _, shown = promise.split("*Shown by*")
        assert re.search(r"`tests/[\w/]+\.py::\w+`", shown), promise
        assert set(re.findall(r"`([a-z]+(?:_[a-z]+)*)`", shown)) <= controls, promise


def test_every_seeded_bug_is_in_the_table() -> None:
    """docs/simulation.md tells for each seeded bug which seed finds it."""
    page = (ROOT / "docs" / "simulation.md").read_text()
    listed = set(re.findall(r"\(`(\w+)`\) \| \d+ \|", page))
    simulation = ROOT / "tests" / "simulation"
    source = (simulation / "test_negative_controls.py").read_text()
    seeded = re.findall(r"^    \((\w+), \"", source, re.MULTILINE)
    assert len(seeded) >= 11
    of_rates = (simulation / "test_rates.py").read_text()
    seeded += re.findall(r"^    \((\w+), SEEDS", of_rates, re.MULTILINE)
    assert listed == set(seeded)
