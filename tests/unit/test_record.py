"""A test run that lost a worker is finished, not taken for complete (`tests/record.py`)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import record
from tests.conftest import _together

SUITE = """
import os, pytest

@pytest.mark.parametrize("number", range(6))
def test_fine(number):
    pass

def test_wrong():
    assert 1 == 2

@pytest.mark.parametrize("who", ["a@b", "c"])
def test_worker_goes_down(who):
    if os.environ.get("GO_DOWN"):
        os._exit(3)

def test_skipped():
    pytest.skip("not here")
"""
ALL = 10


def run_pytest(folder: Path, *arguments: str, **variables: str) -> int:
    """Run tests as if nobody else ran any; gives the exit code."""
    inherited = {v: it for v, it in os.environ.items() if not v.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(
        command,
        cwd=folder,
        env={**inherited, "PYTHONPATH": str(Path(__file__).parents[2]), **variables},
        capture_output=True,
        check=False,
    ).returncode


@pytest.mark.parametrize("workers", ["0", "2"])
def test_what_failed_or_never_ran_is_known(workers: str, tmp_path: Path) -> None:
    (tmp_path / "test_suite.py").write_text(SUITE)
    (tmp_path / "conftest.py").write_text(
        "from pathlib import Path\n"
        "from tests.record import Record\n"
        "def pytest_configure(config):\n"
        "    if not hasattr(config, 'workerinput'):\n"
        "        config.pluginmanager.register(Record(Path('record')))\n"
    )

    restarts = ("--dist", "loadfile", "--max-worker-restart", "1")
    assert run_pytest(tmp_path, "-n", workers, *restarts, GO_DOWN="1") != 0
    written = (tmp_path / "record").read_text().splitlines()
    failed, never = record.once_more(written)
    assert "test_suite.py::test_wrong" in failed or workers == "0"
    why = "test_suite.py::test_wrong call: assert 1 == 2"
    assert why in record.reasons(written) or workers == "0"
    down = [name for name in (*failed, *never) if "goes_down" in name]
    assert down == [f"test_suite.py::test_worker_goes_down[{who}]" for who in ("a@b", "c")]

    (tmp_path / "again").write_text("\n".join((*failed, *never)) + "\n")
    assert run_pytest(tmp_path, "-n", "0", "@again") == 1
    outcomes = record.once_more((tmp_path / "record").read_text().splitlines())
    assert outcomes == (["test_suite.py::test_wrong"], [])


def test_what_gets_a_second_try(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, retried = tmp_path / "record", tmp_path / "retried"

    def judged(*lines: str) -> int:
        path.write_text("\n".join(lines) + "\n")
        return record.main(path, retried)

    assert judged("todo tests/a.py::t", "failed tests/a.py::t", "passed tests/a.py::t") == 0
    assert judged("todo tests/a.py::t", "todo tests/b.py::t", "passed tests/a.py::t") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "tests/b.py::t"
    assert retried.read_text() == "tests/a.py::t\n"
    assert judged("failed tests/simulation/test_x.py::t") == 1
    chaos = "failed tests/chaos/test_chaos.py::t"
    assert judged(chaos, "because call: AssertionError: assert 0 >= 1") == 0
    assert judged(chaos, f"because call: AssertionError: {record.BROKEN}: 6 of 5 held") == 1
    retried.unlink()
    assert judged(*(f"failed tests/a.py::t{n}" for n in range(4))) == 0
    assert judged("failed tests/b.py::t") == 0
    assert judged("failed tests/c.py::t") == 1  # the sixth of all runs together
    retried.unlink()
    assert judged("todo tests/a.py::t", "passed tests/a.py::t") == 1  # then what went wrong?


def test_files_stay_together(tmp_path: Path) -> None:
    """Each file on one worker, and all heavy ones on the same: it once stopped working silently."""
    heavy = tmp_path / "tests" / "chaos"
    heavy.mkdir(parents=True)
    (tmp_path / "conftest.py").write_text(
        "from tests.conftest import pytest_xdist_make_scheduler\n"
    )
    for path in (*(tmp_path / f"test_{n}.py" for n in range(3)), heavy / "test_x.py"):
        path.write_text(
            "import os, pathlib, pytest\n"
            "@pytest.mark.parametrize('number', range(8))\n"
            "def test_one(number):\n"
            "    worker = os.environ['PYTEST_XDIST_WORKER']\n"
            "    with open('ran', 'a') as file:\n"
            "        print(pathlib.Path(__file__).stem, worker, file=file)\n"
        )
    assert run_pytest(tmp_path, "-n", "3") == 0
    ran = (tmp_path / "ran").read_text().splitlines()
    assert len(ran) == 32
    assert len(set(ran)) == 4  # pairs of a file and its worker
    assert _together("tests/chaos/test_x.py::a") == _together("tests/containers/test_y.py::b[c::d]")
    assert _together("tests/test_x.py::a[b::c]") == _together("tests/test_x.py::d")
