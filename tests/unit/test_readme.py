"""The README, and the session with etcdctl in docs/operate.md, do what they say."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from etcdsem import Client
from tests.helpers.waiting import eventually

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

README = Path(__file__).parents[2] / "README.md"
OPERATE = README.parent / "docs" / "operate.md"

pytestmark = pytest.mark.skipif(not README.exists(), reason="the README is not beside the tests")


def block(mark: str, page: Path = README) -> str:
    """The code block that follows a mark."""
    found = re.search(rf"<!-- {mark} -->\n```\w+\n(.*?)```", page.read_text(), re.DOTALL)
    assert found, f"{page.name} has no block marked {mark}"
    return found[1]


def alike(text: str) -> str:
    """A text without what differs each time: leases, clients, pids, hosts, times."""
    text = re.sub(r"\b[0-9a-f]{16}\b", "LEASE", text)
    text = re.sub(r"[A-Za-z0-9_-]+\.\d+\.[0-9a-f]{8}", "CLIENT", text)
    text = re.sub(r'"owner":"[^"]*","host":"[^"]*","pid":\d+', "WHO", text)
    return re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME", text)


def test_etcdctl_session(fresh_etcd: EtcdServer) -> None:
    """Each command of the operator's session gives the printed answer."""
    from etcdsem import connect

    environment = {**os.environ, **fresh_etcd.env()}
    environment["PATH"] = (
        f"{Path(fresh_etcd.etcdctl_binary).parent}{os.pathsep}{environment['PATH']}"
    )
    command = [
        sys.executable,
        "-m",
        "etcdsem",
        "run",
        "my-api",
        "--limit",
        "2",
        "--",
        "sleep",
        "60",
    ]
    jobs: list[subprocess.Popen[bytes]] = []
    with connect(fresh_etcd.endpoint) as client:
        try:
            for number in range(1, 4):
                jobs.append(subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL))
                eventually(lambda number=number: _known(client) == number)  # type: ignore[misc]
            _play(fresh_etcd, client, environment)
            eventually(lambda: sum(job.poll() is not None for job in jobs) == 2)
        finally:
            for job in jobs:
                job.terminate()
            codes = [job.wait(30) for job in jobs]
    assert sorted(codes) == [-signal.SIGTERM, 70, 70]


def _known(client: Client) -> int:
    try:
        status = client.status("my-api", ttl=False)
    except RuntimeError:
        return 0
    return status.held + len(status.waiters)


def _play(etcd: EtcdServer, client: Client, environment: dict[str, str]) -> None:
    first = client.status("my-api").holders[0].lease_id
    for step in re.split(r"^\$ ", block("etcdctl-session", OPERATE), flags=re.MULTILINE)[1:]:
        line, _, printed = step.partition("\n")
        line = re.sub(r"\b[0-9a-f]{16}\b", first, line)
        if "leases/" in line and "--keys-only" in line:
            held = printed.count("/leases/")
            eventually(lambda held=held: client.status("my-api").held == held)  # type: ignore[misc]
        answer = subprocess.run(
            line, shell=True, env=environment, capture_output=True, text=True, check=True
        ).stdout
        assert alike(answer) == alike(printed), line


def test_commands_name_what_exists() -> None:
    """The two commands install extras that exist."""
    pyproject = (README.parent / "pyproject.toml").read_text()
    for mark in ("demo-command", "test-command"):
        extra = re.search(r"'\.\[(\w+)\]'", block(mark))
        assert extra
        assert re.search(rf"^{extra[1]} = \[", pyproject, re.MULTILINE)


def test_python_block_compiles_and_names_exist() -> None:
    """The library example is valid Python, and imports what there is."""
    text = README.read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code
    compile(code[1], "README.md", "exec")
    for link in re.findall(r"\]\(([\w./-]+)\)", text):
        assert (README.parent / link).exists(), link
