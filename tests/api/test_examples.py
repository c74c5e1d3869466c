"""Every example runs, on a real etcd, and does what it says."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import kubernetes_validate
import pytest
import yaml

from tests.helpers.history import assert_clean

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

EXAMPLES = Path(__file__).parents[2] / "examples"
RUN = {
    "strict_server.py",
    "http_client.py",
    "metered_server.py",
    "rate_client.py",
    "token_client.py",
    "token_server.py",
    "by_hand.sh",
    "kubernetes-job.yaml",
    "README.md",
}
"""Those with a test of their own form."""


def environment(etcd: EtcdServer) -> dict[str, str]:
    """Of an example: this etcd, and our programs on PATH."""
    places = (os.path.dirname(sys.executable), os.path.dirname(etcd.etcdctl_binary))
    path = os.pathsep.join((*places, os.environ["PATH"]))
    return {**os.environ, **etcd.env(), "PATH": path, "PYTHONUNBUFFERED": "1"}


def ran(etcd: EtcdServer, *command: object, warns: str = "") -> str:
    """What an example prints; it ends well, and says no more on stderr than it should."""
    done = subprocess.run(
        [str(part) for part in command],
        env=environment(etcd),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(warns, done.stderr), done.stderr
    return done.stdout


SHOWS = {
    "context_manager.py": (
        r"query 1\n(query 2, step \d, in slot [01] of 2\n){3}query 3, 1 held by all\nquery 4\n"
    ),
    "worker_pool.py": (
        r"results: \[0, 10, .*, 110\]\nslots used: \[[01](, 1)?\]\nat most at a time: [12]\n"
    ),
    "asyncio_workers.py": r"100 tasks, at most 5 at a time\n",
    "pick_by_slot.py": r"(key-[abc] was used \d+ times, never twice at a time\n){3}",
    "fenced_write.py": r"refused: slot 0: token \d+ is not the newest\nstored: second\n",
    "metrics_in_process.py": r"my_database: 3 granted, 0 lost\n(?s:.*)reports_total 3.0\n(?s:.*)",
}

WARNS = {"fenced_write.py": r".*lost the lease of slot 0.*\n.*slot 0 was not released.*\n"}
"""A lost lease is never passed over in silence."""


@pytest.mark.parametrize("example", SHOWS)
def test_it_runs(etcd: EtcdServer, example: str) -> None:
    """It prints what it should, and gives everything back."""
    text = ran(etcd, sys.executable, EXAMPLES / example, warns=WARNS.get(example, ""))
    assert re.fullmatch(SHOWS[example], text), text
    for name in re.findall(r'name="(\w+)"|Semaphore\(.*"(\w+)"', (EXAMPLES / example).read_text()):
        assert_clean(etcd, "".join(name))


def test_metrics_are_served(etcd: EtcdServer) -> None:
    """The scrape has the semaphore's grants, beside the program's own counter."""
    text = ran(etcd, sys.executable, EXAMPLES / "metrics_in_process.py")
    assert 'semaphore_acquire_total{name="my_database",prefix="/etcdsem"} 3.0' in text
    assert 'semaphore_max_leases{name="my_database",prefix="/etcdsem"} 2.0' in text
    assert "reports_total 3.0" in text


@pytest.fixture
def strict_server() -> Iterator[subprocess.Popen[str]]:
    """The service that allows 3 at a time."""
    with subprocess.Popen(
        [sys.executable, EXAMPLES / "strict_server.py", "3"], stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def served(process: subprocess.Popen[str]) -> tuple[int, int, int]:
    """What the service has seen, at its end: served, refused, at most at a time."""
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None
    found = re.search(r"served (\d+), refused (\d+), at most (\d+)", process.stdout.read())
    assert found is not None
    return int(found[1]), int(found[2]), int(found[3])


def test_no_request_is_refused(etcd: EtcdServer, strict_server: subprocess.Popen[str]) -> None:
    """Two programs with ten threads each: the service never sees a fourth at a time."""
    assert strict_server.stdout is not None
    url = strict_server.stdout.readline().strip()
    with ThreadPoolExecutor(2) as programs:
        client = (etcd, sys.executable, EXAMPLES / "http_client.py", url, "15")
        said = [programs.submit(ran, *client) for _ in range(2)]
        assert [one.result() for one in said] == ["15 of 15 requests were served\n"] * 2
    total, refused, most = served(strict_server)
    assert (total, refused) == (30, 0)
    assert 1 < most <= 3


def test_without_the_semaphore_requests_are_refused(strict_server: subprocess.Popen[str]) -> None:
    """The control: the service does refuse a fourth."""
    assert strict_server.stdout is not None
    url = strict_server.stdout.readline().strip()

    def fetch(_: int) -> None:
        with contextlib.suppress(urllib.error.HTTPError):  # 429
            urllib.request.urlopen(url, timeout=30).close()

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(fetch, range(30)))
    _, refused, most = served(strict_server)
    assert refused > 0
    assert most > 3


@pytest.fixture
def metered_server() -> Iterator[subprocess.Popen[str]]:
    """The service that allows 10 in any second."""
    command = [sys.executable, str(EXAMPLES / "metered_server.py"), "10", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def served_in_time(process: subprocess.Popen[str]) -> tuple[int, int]:
    """What that service has seen, at its end: served, refused."""
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None
    found = re.search(r"served (\d+), refused (\d+)", process.stdout.read())
    assert found is not None
    return int(found[1]), int(found[2])


def test_no_request_comes_too_soon(etcd: EtcdServer, metered_server: subprocess.Popen[str]) -> None:
    """Two programs with ten threads each: the service never answers 429."""
    assert metered_server.stdout is not None
    url = metered_server.stdout.readline().strip()
    with ThreadPoolExecutor(2) as programs:
        client = (etcd, sys.executable, EXAMPLES / "rate_client.py", url, "15")
        said = [programs.submit(ran, *client) for _ in range(2)]
        assert [one.result() for one in said] == ["15 of 15 requests were served\n"] * 2
    assert served_in_time(metered_server) == (30, 0)


def test_a_refusal_is_heeded(etcd: EtcdServer, metered_server: subprocess.Popen[str]) -> None:
    """Somebody else has used up what the service allows: the program waits as it is told, and all
    of its requests are served in the end.
    """
    assert metered_server.stdout is not None
    url = metered_server.stdout.readline().strip()
    for _ in range(10):
        urllib.request.urlopen(url, timeout=30).close()
    said = ran(etcd, sys.executable, EXAMPLES / "rate_client.py", url, "5")
    assert said == "5 of 5 requests were served\n"
    assert served_in_time(metered_server)[0] == 15


def test_without_the_rate_limit_some_come_too_soon(metered_server: subprocess.Popen[str]) -> None:
    """The control: the service does refuse the eleventh."""
    assert metered_server.stdout is not None
    url = metered_server.stdout.readline().strip()
    for _ in range(12):
        with contextlib.suppress(urllib.error.HTTPError):  # 429
            urllib.request.urlopen(url, timeout=30).close()
    assert served_in_time(metered_server)[1] > 0


@pytest.fixture
def token_server() -> Iterator[subprocess.Popen[str]]:
    """The service that allows 10 requests and 2,000 tokens in any second."""
    command = [sys.executable, str(EXAMPLES / "token_server.py"), "10", "2000", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def test_no_token_comes_too_soon(etcd: EtcdServer, token_server: subprocess.Popen[str]) -> None:
    """Two programs with ten threads each: neither requests nor tokens are refused."""
    assert token_server.stdout is not None
    url = token_server.stdout.readline().strip()
    with ThreadPoolExecutor(2) as programs:
        client = (etcd, sys.executable, EXAMPLES / "token_client.py", url, "10")
        said = [programs.submit(ran, *client) for _ in range(2)]
        assert [one.result() for one in said] == ["10 of 10 requests were served\n"] * 2
    assert served_in_time(token_server) == (20, 0)


def test_without_the_rate_limits_many_are_refused(token_server: subprocess.Popen[str]) -> None:
    """The control: it refuses, and says when to come back."""
    assert token_server.stdout is not None
    url = token_server.stdout.readline().strip()
    waits: list[str | None] = []
    for _ in range(20):
        try:
            urllib.request.urlopen(f"{url}300", timeout=30).close()
        except urllib.error.HTTPError as refusal:
            waits.append(refusal.headers["Retry-After"])
    assert served_in_time(token_server)[1] == len(waits) >= 5
    assert set(waits) == {"2"}


def test_by_hand(etcd: EtcdServer, name: str) -> None:
    """Each step does what it says, with etcdctl alone; nothing is left."""
    text = ran(etcd, "sh", EXAMPLES / "by_hand.sh", name)
    assert re.findall(r"-> (\d) held, (\d) waiting", text) == [
        ("2", "1"), ("3", "0"), ("2", "0"), ("1", "0"), ("0", "0"),
    ]  # fmt: skip
    assert len(re.findall(r'^\{"owner":', text, re.MULTILINE)) == 2
    assert etcd.etcdctl("get", "--prefix", "--keys-only", f"/etcdsem/{name}/").strip() == ""


@pytest.mark.parametrize("version", ["1.30", kubernetes_validate.utils.latest_version()])
def test_the_kubernetes_job_is_valid(version: str) -> None:
    """Strictly, for the oldest and the newest version."""
    job = yaml.safe_load((EXAMPLES / "kubernetes-job.yaml").read_text())
    kubernetes_validate.validate(job, version, strict=True)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["command"][:2] == ["etcdsem", "run"]
    assert container["command"][-1] == "--"


def test_every_example_is_run_and_listed() -> None:
    """None is forgotten, here or in the README."""
    there = {path.name for path in EXAMPLES.iterdir() if path.is_file()}
    assert there == RUN | set(SHOWS)
    listed = (EXAMPLES / "README.md").read_text()
    for name in there - {"README.md"}:
        assert f"({name})" in listed
