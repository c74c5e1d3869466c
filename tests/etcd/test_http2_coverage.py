"""All lines and branches of HTTP/2 and gRPC are reached by the tests beside this one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = ("test_http2.py", "test_http2_frames.py", "test_grpc_protocol.py")
SOURCES = (
    *("http2.py", "http2_frames.py", "http2_headers.py", "http2_streams.py"),
    "grpc_protocol.py",
)
SLOW = "not response_beyond_our_windows and not several_hundred_kilobytes"


def coverage(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run coverage.py, without the options of the run around this one."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(
        [sys.executable, "-m", "coverage", *arguments],
        cwd=ROOT,
        env={**clean, "COVERAGE_FILE": str(folder / "coverage")},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )


@pytest.mark.slow
def test_every_line_and_branch(tmp_path: Path) -> None:
    """Code that no test reaches is to be tested, or deleted: not excluded."""
    for source in SOURCES:
        assert "pragma: no cover" not in (ROOT / "etcdsem/etcd" / source).read_text()
    tests = [f"tests/etcd/{name}" for name in TESTS]
    included = ",".join(f"*/etcdsem/etcd/{source}" for source in SOURCES)
    options = ["--branch", f"--include={included}", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    ran = coverage(tmp_path, "run", *options, "-k", SLOW, *tests)
    assert ran.returncode == 0, ran.stdout[-3_000:]
    report = coverage(tmp_path, "report", "--show-missing", "--fail-under=100")
    assert report.returncode == 0, report.stdout
    assert "TOTAL" in report.stdout
