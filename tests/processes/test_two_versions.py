"""Programs of version 0.1.0 and of this tree at one semaphore: docs/kubernetes.md, "Upgrades".

The old version comes from the repository's history; without it (a wheel, a shallow clone), these
tests are skipped.
"""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from etcdsem import Client, Semaphore
from tests.helpers.history import assert_clean, judge, read_history
from tests.helpers.waiting import eventually
from tests.helpers.workers import Worker

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

pytestmark = pytest.mark.slow

FIRST_VERSION = "b0c3dbce11d7d0df1ce47e4ebe6dc5766d5cfdc3"
"""The last commit of 0.1.0."""

Start = Callable[..., Worker]


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the old package."""
    pytest.importorskip("grpc", reason="version 0.1.0 needs grpcio")
    try:
        packed = subprocess.run(
            ["git", "archive", FIRST_VERSION, "etcdsem"],
            cwd=Path(__file__).parents[2], capture_output=True, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("the repository's history is not here")
    folder = tmp_path_factory.mktemp("version-0.1.0")
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def start(etcd: EtcdServer, old: Path, workers: list[Worker]) -> Start:
    """Starts a program of one of the versions."""

    def started(version: str, code: str, *arguments: object) -> Worker:
        first = f"import sys; sys.path.insert(0, {str(old)!r})" if version == "old" else ""
        check = f"assert hasattr(etcdsem, 'Duration') is {version == 'new'}\n"
        worker = Worker(etcd, check + code, *arguments, first=first)
        workers.append(worker)
        return worker

    return started


HOLD = """
sem = Semaphore(1, sys.argv[1])
say("ready")
lease = sem.acquire_lease()
say("held", lease.fencing_token)
sys.stdin.readline()
lease.release()
say("released")
"""


@pytest.mark.parametrize(("first", "second"), [("old", "new"), ("new", "old")])
def test_a_slot_is_handed_over(
    start: Start, etcd: EtcdServer, client: Client, name: str, first: str, second: str
) -> None:
    """From each to the other and back, with a growing token; a pause holds both back."""
    holder = start(first, HOLD, name)
    before = int(holder.expect("held")[1])
    waiter = start(second, HOLD, name)
    waiter.expect("ready")
    sem = Semaphore(1, name, client=client)
    eventually(lambda: len(sem.waiters()) == 1, what="it waits")
    client.pause(name)
    holder.tell()
    holder.expect("released")
    assert (len(sem.holders()), len(sem.waiters())) == (0, 1)
    client.resume(name)
    assert int(waiter.expect("held")[1]) > before
    last = start(first, HOLD, name)
    last.expect("ready")
    eventually(lambda: len(sem.waiters()) == 1, what="it waits")
    waiter.tell()
    last.expect("held")
    last.tell()
    last.expect("released")
    assert assert_clean(etcd, name).most_held == 1


@pytest.mark.parametrize(("pausing", "waiting"), [("old", "new"), ("new", "old")])
def test_a_pause_and_a_limit_of_the_other(
    start: Start, client: Client, name: str, pausing: str, waiting: str
) -> None:
    """Pause, resume and resize of each version reach waiters of the other."""
    sem = Semaphore(1, name, client=client)
    change = start(
        pausing,
        "client = etcdsem.connect()\n"
        "client.pause(sys.argv[1]); say('paused'); sys.stdin.readline()\n"
        "client.resize(sys.argv[1], 2); client.resume(sys.argv[1]); say('resumed')\n",
        name,
    )
    change.expect("paused")
    waiters = [start(waiting, HOLD.replace("1,", "None,"), name) for _ in range(2)]
    eventually(lambda: len(sem.waiters()) == 2, what="they wait")
    assert sem.holders() == ()
    change.tell()
    for worker in waiters:
        worker.expect("held")
    for worker in waiters:
        worker.tell()


def test_a_pause_that_ends_by_itself(start: Start, client: Client, name: str) -> None:
    """It holds the old version back, until it is over and the new version has noticed."""
    sem = Semaphore(1, name, client=client)
    sem.penalize("2s")
    waiter = start("old", HOLD, name)
    waiter.expect("ready")
    eventually(lambda: len(sem.waiters()) == 1, what="it waits")
    assert sem.holders() == ()
    other = start("new", HOLD, name)
    waiter.expect("held")
    waiter.tell()
    other.expect("held")


CYCLES = """
sem = Semaphore(2, sys.argv[1])
say("ready")
sys.stdin.readline()
for n in range(40):
    with sem.hold() as lease:
        say("token", lease.fencing_token)
say("end")
"""


def test_a_crowd_of_both(start: Start, etcd: EtcdServer, name: str) -> None:
    """Two of each at a limit of 2: no slot is held twice, and none is left."""
    crowd = [start(version, CYCLES, name) for version in ("old", "new", "old", "new")]
    for worker in crowd:
        worker.expect("ready")
    for worker in crowd:
        worker.tell()
    for worker in crowd:
        worker.expect("end")
    for worker in crowd:
        worker.end()
    verdict = assert_clean(etcd, name)
    assert (verdict.most_held, verdict.grants) == (2, 4 * 40)


PERMITS = """
rate = etcdsem.RateLimit(sys.argv[1], 4, "1s")
say("ready")
sys.stdin.readline()
for n in range(6):
    rate.acquire()
    say("permit", time.monotonic())
say("end")
"""


def test_a_rate_limit(start: Start, etcd: EtcdServer, name: str) -> None:
    """24 permits at four a second take more than five seconds, and no slot is taken twice."""
    crowd = [start(version, PERMITS, name) for version in ("old", "new", "old", "new")]
    for worker in crowd:
        worker.expect("ready")
    for worker in crowd:
        worker.tell()
    had = [float(worker.expect("permit")[1]) for worker in crowd for _ in range(6)]
    assert max(had) - min(had) > 4.9  # less what the first one took to report
    verdict = judge(read_history(etcd, name), name)
    assert verdict.wrong == []
    assert verdict.most_held == 4
