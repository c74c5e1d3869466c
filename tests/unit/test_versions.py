"""Which etcd the tests run on, and which tests run on the newest one (`tests/conftest.py`)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import conftest

TWO = {"3.5": "/venv/etcd", "3.4": "/usr/bin/etcd"}
THREE = TWO | {"newest": "/newest/etcd"}


def folder_with(place: Path, *programs: str) -> str:
    """A folder that has these programs."""
    for program in programs:
        (place / program).write_text("#!/bin/sh\n")
        (place / program).chmod(0o755)
    return str(place)


def test_without_the_variable_there_is_no_newest() -> None:
    assert conftest.newest_in("") == {}


def test_the_newest_is_taken_from_its_folder(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "etcd", "etcdctl")
    assert conftest.newest_in(folder) == {"newest": f"{folder}/etcd"}


@pytest.mark.parametrize("there", [(), ("etcd",), ("etcdctl",)])
def test_a_wrong_folder_is_an_error(tmp_path: Path, there: tuple[str, ...]) -> None:
    with pytest.raises(pytest.UsageError, match=r"ETCDSEM_ETCD_NEWEST=.* has no etcd"):
        conftest.newest_in(folder_with(tmp_path, *there))


def test_the_newest_is_never_the_default() -> None:
    """Else a test on one kind would use another etcd where the variable is set."""
    assert list(conftest.choose(THREE, "all", "")) == ["3.5", "3.4", "newest"]


def test_one_kind_for_everything() -> None:
    assert conftest.choose(THREE, "newest", "newest") == {"newest": "/newest/etcd"}


@pytest.mark.parametrize(("wanted", "required"), [("newest", ""), ("all", "3.5,newest")])
def test_a_kind_that_is_missing_is_an_error(wanted: str, required: str) -> None:
    with pytest.raises(pytest.UsageError, match=r"no etcd newest \(set ETCDSEM_ETCD_NEWEST"):
        conftest.choose(TWO, wanted, required)


def test_no_etcd_at_all_is_an_error() -> None:
    with pytest.raises(pytest.UsageError, match="pip install"):
        conftest.choose({}, "all", "")


@pytest.mark.parametrize(
    ("name", "fixtures", "marked"),
    [
        ("tests/api/test_weights.py::test_one", {"any_etcd", "name"}, True),
        ("tests/chaos/test_elections.py::test_one", {"each_binary"}, True),
        ("tests/etcd/test_streams.py::test_one", {"fresh_etcd"}, True),
        ("tests/security/test_tls.py::test_one", {"module_binary"}, True),
        ("tests/etcd/test_settings.py::test_one", {"tmp_path"}, False),  # no etcd
        ("tests/cli/test_run.py::test_one", {"etcd"}, False),  # one kind, and not about etcd
        (
            "tests/faults/test_processes.py::test_one",
            {"any_etcd"},
            False,
        ),  # slow, and not about etcd
    ],
)
def test_what_another_version_could_change(name: str, fixtures: set[str], marked: bool) -> None:
    assert conftest.depends_on_the_version(name, fixtures) is marked
