"""What the docs name exists: tests, seeded bugs, other pages."""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("*.md"))]
PAGES.append(ROOT / "examples" / "README.md")

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


def test_each_promise_has_tests() -> None:
    """Each of the promises has a row with tests among the proofs; the controls exist."""
    text = (ROOT / "docs" / "guarantees.md").read_text()
    promises, proofs = text.split("## Proofs")
    numbers = re.findall(r"(?m)^(\d+)\. \*\*", promises)
    assert numbers == [str(number) for number in range(1, len(numbers) + 1)]
    assert len(numbers) >= 14
    rows = re.findall(r"(?m)^\| (\d+) \| [^|]+ \| ([^|]+) \| ([^|]*) \|$", proofs)
    assert {number for number, _, _ in rows} == set(numbers)
    simulation = ROOT / "tests" / "simulation"
    modules = ("test_negative_controls", "test_rates", "test_expiry")
    controls = {one for module in modules for one in names(simulation / f"{module}.py")}
    for row in rows:
        assert re.search(r"`tests/[\w/]+\.py(::\w+)?`", row[1]), row
        assert set(re.findall(r"`(\w+)`", row[2])) <= controls, row


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_fit_into_100_columns(page: Path) -> None:
    """Each line of a page, except rows of tables, which cannot be wrapped, and printed output."""
    text = re.sub(r"```console\n.*?```", "", page.read_text(), flags=re.DOTALL)
    long = [line for line in text.splitlines() if len(line) > 100 and not line.startswith("|")]
    assert not long


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_compile(page: Path) -> None:
    """Each Python example of a page."""
    for block in re.findall(r"(?m)^( *)```python\n(.*?)^\1```", page.read_text(), re.DOTALL):
        compile(textwrap.dedent(block[1]), page.name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_exist(page: Path) -> None:
    """Each `etcdsem COMMAND --option` in code, as far as it stands before another command."""
    from etcdsem.cli.main import _COMMANDS, cli

    text = page.read_text().replace("\\\n", " ")
    code = re.findall(r"```(?:sh|console)\n(.*?)```", text, re.DOTALL)
    code += re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    for part in re.split(r"(?<!-n )\betcdsem (?=[a-z])", "\n".join(code))[1:]:
        words = re.split(r"[\n|&;#]| -- ", part)[0].split()
        if words[0] in _COMMANDS:
            command = cli.get_command(click.Context(cli), words[0])
            assert command is not None
            known = {name for option in command.params for name in option.opts}
            used = {word.split("=")[0] for word in words if re.match(r"--?[a-zA-Z]", word)}
            assert used <= {*known, "--help"}, part


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
    of_names = (simulation / "test_expiry.py").read_text()
    seeded += re.findall(r"^    \((\w+), \d+, \"", of_names, re.MULTILINE)
    assert listed == set(seeded)
