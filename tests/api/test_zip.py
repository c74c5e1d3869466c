"""etcdsem from a zip file, as Spark's --py-files and zipapp load it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import etcdsem

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

ACQUIRE = """
import sys
sys.path.insert(0, sys.argv[1])
import etcdsem
assert etcdsem.__file__.startswith(sys.argv[1] + "/"), etcdsem.__file__
with etcdsem.connect(sys.argv[2], keeper=sys.argv[4] == "keeper") as client:
    with etcdsem.Semaphore(1, sys.argv[3], client=client).hold() as lease:
        helper = client._driver.helper
        while helper is not None and lease._grant.lease.elsewhere() is None:
            pass  # until the keeper process has renewed it
        print("held")
"""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zip file of the package, which runs as the command line."""
    path = tmp_path_factory.mktemp("zip") / "etcdsem.pyz"
    package = Path(etcdsem.__file__).parent
    with zipfile.ZipFile(path, "w") as file:
        for one in sorted(package.rglob("*")):
            if one.is_file() and "__pycache__" not in one.parts:
                file.write(one, Path("etcdsem") / one.relative_to(package))
        file.writestr("__main__.py", "from etcdsem.cli.main import main\nmain()\n")
    return path


@pytest.mark.parametrize("keeper", ["", "keeper"])
def test_a_lease_is_held(archive: Path, etcd: EtcdServer, name: str, keeper: str) -> None:
    """Only the dependencies come from elsewhere; the keeper process finds the zip file, too."""
    done = subprocess.run(
        [sys.executable, "-c", ACQUIRE, str(archive), etcd.endpoint, name, keeper],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "held\n"), done.stderr


def test_the_command_line(archive: Path, etcd: EtcdServer, name: str) -> None:
    """``python etcdsem.pyz run ...``"""
    done = subprocess.run(
        [sys.executable, str(archive), "run", name, "-l", "1", "--", "printenv", "ETCDSEM_NAME"],
        env={**os.environ, **etcd.env()},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, f"{name}\n"), done.stderr


def test_the_demo(archive: Path, etcd: EtcdServer) -> None:
    """The jobs that it starts find the zip file, too."""
    done = subprocess.run(
        [sys.executable, str(archive), "demo", "--jobs", "2", "--work", "0.1"],
        env={**os.environ, "ETCDSEM_ETCD": etcd.binary},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_bundle_without_the_data_file(tmp_path: Path) -> None:
    """The error says what is missing, and what to do."""
    path = tmp_path / "bundle.zip"
    package = Path(etcdsem.__file__).parent
    with zipfile.ZipFile(path, "w") as file:
        for one in sorted(package.rglob("*.py")):
            file.write(one, Path("etcdsem") / one.relative_to(package))
    script = "import sys; sys.path.insert(0, sys.argv[1]); import etcdsem.etcd.rpc"
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "EtcdSemError: etcdsem is incomplete" in done.stderr
    assert "--collect-data etcdsem" in done.stderr
