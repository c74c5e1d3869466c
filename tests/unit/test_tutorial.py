"""docs/tutorial.md does what it says, command by command."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.helpers.waiting import eventually

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"

pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="the docs are not beside the tests")


def steps() -> list[tuple[str, str]]:
    """Each command of the page's console blocks, with what it prints."""
    blocks = re.findall(r"```console\n(.*?)```", PAGE.read_text(), re.DOTALL)
    commands = [one for block in blocks for one in re.split(r"^\$ ", block, flags=re.M)[1:]]
    return [(line, printed) for line, _, printed in (one.partition("\n") for one in commands)]


def alike(text: str) -> str:
    """A text without what differs each time: leases, clients, pids, hosts, times, widths."""
    text = text.replace(socket.gethostname(), "vm")
    text = re.sub(r"\b[0-9a-f]{16}\b", "LEASE", text)
    text = re.sub(r"vm\.\d+\.[0-9a-f]{8}", "CLIENT", text)
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME", text)
    text = re.sub(r"(vm:|\"pid\":)\d+", r"\1PID", text)
    text = re.sub(r"\b\d+s\b|\d+(?= +LEASE)", "N", text)
    text = re.sub(r"slot [03], held", "slot N, held", text)
    return re.sub(r" +", " ", text).strip()


@contextmanager
def started(line: str, environment: dict[str, str], folder: Path) -> Iterator[Path]:
    """A job in the background, and the file with what it prints."""
    output = folder / f"{len(list(folder.iterdir()))}.txt"
    with output.open("w") as file:
        job = subprocess.Popen(
            "exec " + line, shell=True, env=environment, stdout=file, stderr=file
        )
    try:
        yield output
    finally:
        job.terminate()
        job.wait(30)


def test_tutorial(fresh_etcd: EtcdServer, tmp_path: Path) -> None:
    """Each command prints what the page shows; what others changed shows a moment later."""
    paths = [Path(fresh_etcd.etcdctl_binary).parent, Path(sys.executable).parent]
    environment = {**os.environ, **fresh_etcd.env()}
    environment["PATH"] = os.pathsep.join([*map(str, paths), environment["PATH"]])
    program = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert program
    (tmp_path / "tutorial.py").write_text(program[1])
    (tmp_path / "jobs").mkdir()

    def answer(line: str) -> str:
        done = subprocess.run(
            line,
            shell=True,
            env=environment,
            cwd=tmp_path,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        return alike(done.stdout)

    def shows(answer: Callable[[], str], expected: str) -> None:
        eventually(lambda: expected in alike(answer()), what=expected)

    with ExitStack() as jobs:
        for line, printed in steps():
            if line.endswith(" &"):
                job = jobs.enter_context(started(line[:-2], environment, tmp_path / "jobs"))
                shows(job.read_text, alike(printed))
            elif re.match(r"(etcdsem (ls|status)|etcdctl get)\b", line):
                shows(partial(answer, line), alike(printed))
            else:
                assert answer(line) == alike(printed), line
        assert "I have slot 2\n" in job.read_text()
