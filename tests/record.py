"""What became of each test, written down as it happens, and what to run once more.

With pytest-xdist a worker may go down, and then what it had still to run is missing without a word;
and `--last-failed` knows tests by names that carry their group, so it finds none of them again.

    pytest -n 4 --record FILE
    python -m tests.record FILE     the tests that failed or never ran; exit code 1 if too many
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

STRICT = ("tests/simulation", "tests/chaos/test_chaos")
"""No promise may ever be broken: what fails here gets no second try."""

MOST_FAILED = 12
"""More than so many failures are no accident."""


class Record:
    """Writes a line for each test: `todo`, `passed`, `skipped` or `failed`, and its name."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", buffering=1)
        self._listed = False

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Iterable[str]) -> None:
        self._list(ids)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._list(item.nodeid for item in session.items)

    def _list(self, ids: Iterable[str]) -> None:
        names = list(ids)
        if names and not self._listed:
            self._listed = True
            for name in names:
                self._write("todo", name)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self._write(report.outcome, report.nodeid)

    def _write(self, outcome: str, name: str) -> None:
        self._file.write(f"{outcome} {without_group(name)}\n")


def without_group(name: str) -> str:
    """A test's name as pytest knows it; pytest-xdist appends ``@group``."""
    return name[: name.rindex("@")] if name.rfind("@") > name.rfind("]") else name


def once_more(lines: Iterable[str]) -> tuple[list[str], list[str]]:
    """(what failed, what never came to an end), each in the order of the record."""
    outcome: dict[str, str] = {}
    for line in lines:
        what, _, name = line.rstrip("\n").partition(" ")
        if outcome.get(name) != "failed":  # one that passed and failed to clean up has failed
            outcome[name] = what
    failed = [name for name, what in outcome.items() if what == "failed"]
    return failed, [name for name, what in outcome.items() if what == "todo"]


def main(path: str) -> int:
    """Print what to run once more."""
    failed, never = once_more(Path(path).read_text().splitlines())
    print(*failed, *never, sep="\n")
    for name in failed:
        print(f"failed: {name}", file=sys.stderr)
    print(f"{len(failed)} failed, {len(never)} never ran", file=sys.stderr)
    strict = [name for name in failed if name.startswith(STRICT)]
    if strict:
        print("these get no second try:", *strict, file=sys.stderr)
    return 1 if strict or len(failed) > MOST_FAILED or not (failed or never) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
