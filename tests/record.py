"""What became of each test, written down as it happens, and what to run once more.

With pytest-xdist a worker may go down, and then what it had still to run is missing without a word;
and `--last-failed` knows tests by names that carry their group, so it finds none of them again.

    pytest -n 4 --record FILE
    python -m tests.record FILE RETRIED  print the tests to run once more: those that failed or
                                         never ran; add those that failed to RETRIED. The exit
                                         code is 1 if RETRIED has become too long
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

STRICT = "tests/simulation"
BROKEN = "A PROMISE WAS BROKEN"
"""No promise may ever be broken: what fails in the simulator, or so in the chaos, gets no second
try. (A run of the chaos may also fail since too little happened, or since the machine was slow.)"""

MOST_RETRIED = 5
"""More second tries than these, in all runs of pytest together, are no accident."""


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
        if report.outcome == "failed":
            crash = getattr(report.longrepr, "reprcrash", None)
            reason = crash.message if crash is not None else report.longreprtext
            self._file.write(f"because {report.when}: {' '.join(reason.split())[:250]}\n")

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
        if what == "because":  # of the line before
            continue
        if outcome.get(name) != "failed":  # one that passed and failed to clean up has failed
            outcome[name] = what
    failed = [name for name, what in outcome.items() if what == "failed"]
    return failed, [name for name, what in outcome.items() if what == "todo"]


def reasons(lines: Iterable[str]) -> Iterator[str]:
    """Each failure, and the first words of why."""
    name = ""
    for line in lines:
        what, _, rest = line.partition(" ")
        if what == "failed":
            name = rest
        elif what == "because":
            yield f"{name} {rest}"


def main(path: Path, retried: Path) -> int:
    """Print what to run once more, and note what failed."""
    lines = path.read_text().splitlines()
    failed, never = once_more(lines)
    with retried.open("a") as file:
        file.writelines(f"{name}\n" for name in failed)
    print(*failed, *never, sep="\n")
    print(*reasons(lines), sep="\n", file=sys.stderr)
    print(f"{len(failed)} failed, {len(never)} never ran", file=sys.stderr)
    strict = [name for name in failed if name.startswith(STRICT)]
    strict += [why for why in reasons(lines) if BROKEN in why]
    if strict:
        print("these get no second try:", *strict, file=sys.stderr)
    too_many = len(retried.read_text().splitlines()) > MOST_RETRIED
    if too_many:
        print(f"more than {MOST_RETRIED} tests failed at their first try", file=sys.stderr)
    return 1 if strict or too_many or not (failed or never) else 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
