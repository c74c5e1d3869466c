"""Ctrl-C while the command starts or ends: it dies of SIGINT and prints nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

SCRIPT = (sys.executable, os.path.join(sysconfig.get_path("scripts"), "etcdsem"))
MODULE = (sys.executable, "-m", "etcdsem")

BLOCKED = "import os\nos.write(1, b'now\\n')\nos.read(0, 1)\n"
AT_EXIT = f"import atexit\natexit.register(lambda: exec({BLOCKED!r}, {{}}))\n"


def interrupted(program: tuple[str, ...], folder: Path, *, before: str = "") -> tuple[int, str]:
    """Send SIGINT when it prints "now", then let it go on. Its exit code, and its stderr."""
    with subprocess.Popen(
        ["sh", "-c", f'{before} exec "$@"', "sh", *program, "-V"],
        env={**os.environ, "PYTHONPATH": str(folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        while process.stdout.readline() != "now\n":
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, said = process.communicate("x", timeout=30)
    return process.returncode, said


@pytest.mark.parametrize(
    ("program", "module", "content"),
    [
        (SCRIPT, "getpass", BLOCKED),  # is imported by etcdsem
        (SCRIPT, "click", BLOCKED),  # is imported by etcdsem.cli
        (MODULE, "click", BLOCKED),
        (SCRIPT, "sitecustomize", AT_EXIT),
    ],
    ids=["etcdsem", "cli", "-m", "exit"],
)
def test_ctrl_c(program: tuple[str, ...], module: str, content: str, tmp_path: Path) -> None:
    """During an import, and when the interpreter ends."""
    (tmp_path / f"{module}.py").write_text(content)
    assert interrupted(program, tmp_path) == (-signal.SIGINT, "")


def test_a_sigint_that_is_ignored_stays_so(tmp_path: Path) -> None:
    """As in a background job of a script."""
    (tmp_path / "sitecustomize.py").write_text(BLOCKED + AT_EXIT)
    assert interrupted(SCRIPT, tmp_path, before="trap '' INT;") == (0, "")
