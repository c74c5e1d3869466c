"""The helper process (keeper) refreshes for a busy program, and for nobody else."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import etcdsem
from etcdsem import Client, Semaphore, aio
from etcdsem.clock import boot_time
from etcdsem.core.leases import TtlLease
from etcdsem.facade.client import read_keeper
from etcdsem.renewal_helper import RenewalHelper
from etcdsem.renewal_helper.table import ORDER, Table, open_memory
from etcdsem.renewal_helper_process import Borrowed, Helper
from tests.helpers.connections import leases_of
from tests.helpers.env import Clock
from tests.helpers.history import assert_clean
from tests.helpers.slow import sample
from tests.helpers.waiting import eventually
from tests.helpers.workers import Worker

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

TTL = 2
BUSY = 6.0
"""Seconds that the interpreter is busy: three times the lease timeout."""

COMMON = """
import ctypes, asyncio
from etcdsem import aio
keeper = {'no': False, 'yes': True}.get(sys.argv[2], sys.argv[2])
options = dict(lease_timeout=2, raise_on_loss=False)
def busy(seconds):
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))  # C code that keeps the GIL
def helper(client):
    return client._driver.helper.pid if client._driver.helper else 0
"""

THREADS = (
    COMMON
    + """
with etcdsem.connect(keeper=keeper) as client:
    sem = Semaphore(1, sys.argv[1], client=client, **options)
    lease = sem.acquire_lease()
    say('held', helper(client), lease.id)
    busy(float(sys.argv[3]))
    valid = lease.valid
    say('after', valid, valid or lease.lost.wait(10))
    sys.stdin.readline()
    say('released', sem.release())
"""
)

LOOP = (
    COMMON
    + """
async def main():
    async with aio.connect(keeper=keeper) as client:
        sem = aio.Semaphore(1, sys.argv[1], client=client, **options)
        lease = await sem.acquire_lease()
        say('held', helper(client), lease.id)
        time.sleep(float(sys.argv[3]))  # in a coroutine: the loop stands still
        valid = lease.valid
        say('after', valid, valid or await asyncio.wait_for(lease.lost.wait(), 10))
        await asyncio.to_thread(sys.stdin.readline)
        say('released', await sem.release())
asyncio.run(main())
"""
).replace("from etcdsem import aio", "import time\nfrom etcdsem import aio")


@pytest.fixture
def workers() -> Iterator[list[Worker]]:
    """Workers that are killed at the end of the test, whatever happens."""
    started: list[Worker] = []
    yield started
    for worker in started:
        worker.kill()
        worker.out.close()


def go_on(worker: Worker) -> None:
    """Let a worker release."""
    assert worker.process.stdin is not None
    worker.process.stdin.write("\n")
    worker.process.stdin.flush()


def alive(pid: int) -> bool:
    """Does a process run?"""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_busy_interpreter(
    etcd: EtcdServer, client: Client, name: str, workers: list[Worker]
) -> None:
    """C code keeps the GIL, or a coroutine blocks its loop, for three times the lease timeout.

    Without a keeper the lease is lost, and reported; with one it survives. So it does not when
    the program was silent for longer than the keeper's limit.
    """
    runs = {
        f"{name}.{place}": (kind, keeper, survives)
        for place, (kind, keeper, survives) in enumerate(
            (
                (THREADS, "no", False),
                (THREADS, "yes", True),
                (LOOP, "no", False),
                (LOOP, "yes", True),
                (THREADS, "1s", False),
            )
        )
    }
    for one, (kind, keeper, _) in runs.items():
        workers.append(Worker(etcd, kind, one, keeper, BUSY))
    helpers = [int(worker.expect("held")[1]) for worker in workers]
    for (one, (_, _, survives)), worker, helper in zip(runs.items(), workers, helpers, strict=True):
        said = worker.expect("after")
        assert said[1:] == [str(survives), "True"], one
        held = Semaphore(1, one, client=client).get_value()
        assert held == int(survives)
        go_on(worker)
        assert worker.expect("released")[1] == str(survives)
        assert worker.end() == 0
        if helper:
            eventually(lambda helper=helper: not alive(helper))  # type: ignore[misc]
        assert_clean(etcd, one)


@pytest.mark.parametrize("kind", sample([THREADS, LOOP]), ids=["threads", "loop"])
def test_it_dies_with_its_parent(
    etcd: EtcdServer, client: Client, name: str, workers: list[Worker], kind: str
) -> None:
    """SIGKILL: the helper ends at once, and the slot is free after the lease timeout."""
    workers.append(Worker(etcd, kind, name, "yes", 60))
    helper = int(workers[0].expect("held")[1])
    time.sleep(0.5)  # it may be anywhere in its start
    assert alive(helper)
    workers[0].kill()
    eventually(lambda: not alive(helper), 3)
    assert Semaphore(1, name, client=client).acquire(timeout=15)


def test_a_stopped_parent_is_not_kept(
    etcd: EtcdServer, client: Client, name: str, workers: list[Worker]
) -> None:
    """SIGSTOP: the slot goes to another; after SIGCONT the holder finds its lease lost."""
    workers.append(Worker(etcd, THREADS, name, "yes", 3))
    workers[0].expect("held")
    os.kill(workers[0].process.pid, signal.SIGSTOP)
    try:
        sem = Semaphore(1, name, client=client)
        assert sem.acquire(timeout=20)
    finally:
        os.kill(workers[0].process.pid, signal.SIGCONT)
    assert workers[0].expect("after")[1:] == ["False", "True"]
    go_on(workers[0])
    assert workers[0].expect("released")[1] == "False"
    assert sem.get_value() == 1
    sem.release()


FORKS = (
    COMMON
    + """
import subprocess
client = etcdsem.connect(keeper=True)
sem = Semaphore(1, sys.argv[1], client=client, **options)
sem.acquire()
told, tell = os.pipe()
child = os.fork()
if child == 0:
    os.write(tell, b'%d' % len(sem.leases))
    sys.stdin.readline()
    os._exit(0)
say('held', helper(client), child, os.read(told, 1).decode())
time.sleep(60)
"""
)


def test_a_forked_child_does_not_keep_it_alive(
    etcd: EtcdServer, name: str, workers: list[Worker]
) -> None:
    """The child's copy of the pipe is closed: the helper ends with its parent."""
    workers.append(Worker(etcd, "import time\n" + FORKS, name, "yes"))
    _, helper, child, leases_of_child = workers[0].expect("held")
    assert leases_of_child == "0"
    os.kill(workers[0].process.pid, signal.SIGKILL)
    eventually(lambda: not alive(int(helper)), 3)
    assert alive(int(child))
    os.kill(int(child), signal.SIGKILL)


RELEASED = (
    COMMON
    + """
with etcdsem.connect(keeper=True) as client:
    sem = Semaphore(1, sys.argv[1], client=client, **options)
    lease = sem.acquire_lease()
    busy(3)
    say('kept', lease.valid)
    lease.release()
    say('given', lease.id)
    busy(8)
    say('done')
"""
)


def test_what_was_given_back_is_not_kept(
    etcd: EtcdServer, name: str, workers: list[Worker]
) -> None:
    """After a release the helper leaves the etcd lease to its TTL."""
    workers.append(Worker(etcd, RELEASED, name, "yes"))
    assert workers[0].expect("kept")[1] == "True"
    lease = int(workers[0].expect("given")[1], 16)
    eventually(lambda: lease not in leases_of(etcd), 6)
    workers[0].expect("done")


def test_another_helper_takes_over(etcd: EtcdServer, name: str) -> None:
    """A helper that was killed is replaced, and is handed what is held."""
    with etcdsem.connect(etcd.endpoint, keeper=True) as client:
        sem = Semaphore(1, name, client=client, lease_timeout=TTL)
        with sem.hold() as lease:
            keeper = client._driver.helper
            assert keeper is not None
            first = keeper.pid
            os.kill(first, signal.SIGKILL)
            eventually(lambda: keeper.pid not in (0, first))
            record = lease._grant.lease
            eventually(lambda: record.elsewhere is not None and record.elsewhere() is not None)
            assert lease.valid
    assert_clean(etcd, name)


class Broken:
    """From now on no helper process can be started, in one of several ways."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path) -> None:
        self.patch, self.folder = patch, folder
        self.popen = subprocess.Popen

    def ends_at_once(self) -> None:
        """As where it has too little memory for its first thread."""
        program = self.folder / "python"
        program.write_text("#!/bin/sh\nexit 3\n")
        program.chmod(0o755)
        self.patch.setattr("sys.executable", str(program))

    def ended_before_it_was_told(self) -> None:
        """The pipe to it is broken."""
        self.ends_at_once()

        def popen(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
            process: subprocess.Popen[bytes] = self.popen(*arguments, **options)
            process.wait()
            return process

        self.patch.setattr("subprocess.Popen", popen)

    def no_python(self) -> None:
        self.patch.setattr("sys.executable", None)

    def no_process(self) -> None:
        self._fail("subprocess.Popen", BlockingIOError(11, "Resource temporarily unavailable"))

    def no_memory(self) -> None:
        self._fail("subprocess.Popen", MemoryError())

    def no_file(self) -> None:
        self._fail("os.dup", OSError(24, "Too many open files"))

    def no_thread(self) -> None:
        start = threading.Thread.start

        def fail(thread: threading.Thread) -> None:
            if thread.name == "etcdsem-keeper":
                raise RuntimeError("can't start new thread")
            start(thread)

        self.patch.setattr("threading.Thread.start", fail)

    def _fail(self, function: str, error: Exception) -> None:
        def fail(*arguments: Any, **options: Any) -> None:
            raise error

        self.patch.setattr(function, fail)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("ends_at_once", "has ended (with exit code 3)"),
        ("ended_before_it_was_told", "has ended (with exit code 3)"),
        ("no_python", "cannot be started: sys.executable is not set"),
        ("no_process", "cannot be started: [Errno 11] Resource temporarily unavailable"),
        ("no_memory", "cannot be started: MemoryError"),
    ],
)
def test_no_helper_can_be_started(
    etcd: EtcdServer,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    how: str,
    said: str,
) -> None:
    """The program refreshes by itself, says why once, and tries again until one runs."""
    with etcdsem.connect(etcd.endpoint, keeper=True) as client:
        sem = Semaphore(1, name, client=client, lease_timeout=TTL)
        with sem.hold() as lease:
            keeper = client._driver.helper
            assert isinstance(keeper, RenewalHelper)
            with monkeypatch.context() as patch:
                getattr(Broken(patch, tmp_path), how)()
                os.kill(keeper.pid, signal.SIGKILL)
                eventually(lambda: keeper._failures >= 3)
                assert lease.valid
            record = lease._grant.lease
            eventually(lambda: record.elsewhere is not None and record.elsewhere() is not None)
            assert lease.valid
    errors = [one.getMessage() for one in caplog.records if one.levelname == "ERROR"]
    assert len(errors) == 1
    assert f"the helper process (keeper) {said}" in errors[0]
    assert_clean(etcd, name)


def test_no_thread_for_the_start_of_another_helper(
    etcd: EtcdServer,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    """It is tried again until there is one, and meanwhile the program refreshes by itself."""
    with etcdsem.connect(etcd.endpoint, keeper=True) as client:
        sem = Semaphore(1, name, client=client, lease_timeout=TTL)
        with sem.hold() as lease:
            keeper = client._driver.helper
            assert keeper is not None
            first = keeper.pid
            with monkeypatch.context() as patch:
                Broken(patch, tmp_path).no_thread()
                os.kill(first, signal.SIGKILL)
                eventually(lambda: "etcdsem-keeper cannot be started" in caplog.text)
                assert sem.client._driver.starved() == ""
            eventually(lambda: keeper.pid not in (0, first))
            assert lease.valid
    assert_clean(etcd, name)


@pytest.mark.parametrize("how", ["no_process", "no_memory", "ended_before_it_was_told", "no_file"])
def test_the_first_helper_cannot_be_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str
) -> None:
    """The user is told, and nothing is left open."""
    settings = etcdsem.connect("h:1").settings
    before = os.listdir("/proc/self/fd")
    with monkeypatch.context() as patch:
        getattr(Broken(patch, tmp_path), how)()
        with pytest.raises(etcdsem.EtcdSemError, match=r"^the helper process \(keeper\) "):
            RenewalHelper(settings, 600)
    assert os.listdir("/proc/self/fd") == before


def test_closed_while_another_helper_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A beat does not wait for the start, and what has started by then ends too."""
    keeper = RenewalHelper(etcdsem.connect("h:1").settings, 600)
    os.kill(keeper.pid, signal.SIGKILL)
    go, started, popen = threading.Event(), threading.Event(), subprocess.Popen
    made: list[subprocess.Popen[bytes]] = []

    def slow(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.set()
        go.wait(30)
        made.append(popen(*arguments, **options))
        return made[0]

    monkeypatch.setattr("subprocess.Popen", slow)

    def beaten() -> bool:
        keeper.beat()
        return started.is_set()

    eventually(beaten)
    assert keeper.pid == 0
    keeper.beat()
    keeper.close()
    go.set()
    eventually(lambda: made and made[0].returncode is not None)
    assert len(made) == 1


def test_a_helper_that_cannot_be_told_is_killed() -> None:
    """Its pipe is full, so it would go on renewing a lease that was given back."""
    keeper = RenewalHelper(etcdsem.connect("h:1").settings, 600)
    lease = TtlLease(7, 10, 10.0, boot_time())
    keeper.hand_over(lease)
    helper = keeper._helper
    assert helper is not None
    read, full = os.pipe()
    os.set_blocking(full, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(full, bytes(4096))
    pipe, helper._pipe = helper._pipe, full
    keeper.take_back(lease)
    assert helper._process.wait(10) == -signal.SIGKILL
    keeper.close()
    os.close(pipe)
    os.close(read)


def test_an_error_of_ours_ends_the_helper(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged and not raised, and a helper that may not have heard does not go on."""
    keeper = RenewalHelper(etcdsem.connect("h:1").settings, 600)
    lease = TtlLease(7, 10, 10.0, boot_time())
    keeper.hand_over(lease)
    pid, keeper._table = keeper.pid, None  # type: ignore[assignment]
    keeper.take_back(lease)
    eventually(lambda: not alive(pid))
    keeper.beat()
    keeper.hand_over(lease)
    keeper.tend(lease)
    keeper.close()
    assert "AttributeError" in caplog.text


def test_pausing_the_refresh_pauses_the_helper_too(etcd: EtcdServer, name: str) -> None:
    """refresh_leases = False: the lease is lost, keeper or not."""
    with etcdsem.connect(etcd.endpoint, keeper=True) as client:
        sem = Semaphore(1, name, client=client, lease_timeout=TTL, raise_on_loss=False)
        with sem.hold() as lease:
            sem.refresh_leases = False
            assert lease.lost.wait(15)


# ---------------------------------------------------------------- without processes


def test_records_that_are_being_written_count_for_nothing() -> None:
    """A torn record is no renewal; neither is that of another lease, nor one of the future."""
    memory = open_memory()
    table, other = Table(memory), Table(memory)
    table.clear(3)
    assert table.read(3, 77) is None
    other.renewed(3, 77, 12.5, 30.0)
    assert table.read(3, 77) == (12.5, 30.0)
    assert table.read(3, 78) is None
    table._map[3 * 32 + 9] ^= 1
    assert table.read(3, 77) is None
    assert other.forbidden(3), "in doubt, it is not renewed"
    table.forbid(3)
    assert other.forbidden(3)
    assert not table.given_up(3, 77)
    other.give_up(3, 77)
    assert table.given_up(3, 77)
    assert other.silent_for() > 1000
    table.beat()
    assert other.silent_for() < 5
    table.close()
    other.close()
    os.close(memory)


@pytest.mark.parametrize("when", ["before", "during"])
def test_the_helper_keeps_nothing_that_was_taken_back(when: str) -> None:
    """The order to stop may be late, or lost: the shared memory says it too, before the lease is
    handed over, or while a renewal is under way.
    """
    clock = Clock()
    helper = Helper.__new__(Helper)
    memory = open_memory()
    leases = Borrowed(clock)
    leases.table, leases.places = Table(memory), {}
    helper._leases, helper._table = leases, leases.table
    leases.table.clear(3)
    if when == "before":
        leases.table.forbid(3)
    helper._obey(ORDER.pack(b"K", 77, 3, 30.0, 10.0, clock.time, math.inf))
    if when == "during":
        clock.time += 8
        leases.beat(clock.time)
        assert clock.renewed == [77]
        leases.table.forbid(3)
        leases.renewed(77, 30.0)
    assert leases.live == {}
    assert leases.places == {}
    assert leases.table.forbidden(3)
    leases.table.close()
    os.close(memory)


def test_lost_is_final() -> None:
    """Who was told that a lease is over is not told otherwise when a renewal turns up late."""
    now = boot_time()
    seen: list[tuple[float, float]] = []
    lease = TtlLease(7, 10, 10.0, now - 20.0)
    lease.elsewhere = lambda: seen[-1] if seen else None
    seen.append((now - 5.0, 10.0))
    assert lease.valid(now), "a renewal that was answered in time counts, however late we look"
    assert lease.deadline == pytest.approx(now + 4.8)
    assert not lease.valid(now + 6.0)
    seen.append((now + 5.0, 10.0))
    assert not lease.valid(now + 6.0)
    assert not lease.valid(now)


@pytest.mark.parametrize(
    ("given", "limit"),
    [(True, 600.0), (False, None), ("2h", 7200.0), (30, 30.0), (None, None)],
)
def test_how_to_ask_for_it(given: bool | str | float | None, limit: float | None) -> None:
    """Yes, no, or for how long."""
    assert read_keeper(given) == limit


def test_how_to_ask_for_it_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """ETCDSEM_KEEPER says it for programs that can't be changed."""
    monkeypatch.setenv("ETCDSEM_KEEPER", "yes")
    assert etcdsem.connect("h:1").keeper == 600.0
    monkeypatch.setenv("ETCDSEM_KEEPER", "5m")
    assert etcdsem.connect("h:1").keeper == 300.0
    monkeypatch.setenv("ETCDSEM_KEEPER", "maybe")
    with pytest.raises(etcdsem.InvalidSetting, match="keeper"):
        etcdsem.connect("h:1")
    with pytest.raises(etcdsem.InvalidSetting):
        etcdsem.connect("h:1", keeper=-1)


@pytest.mark.parametrize(
    ("executable", "frozen", "reason"),
    [
        ("/opt/app/app", True, "this program was frozen (sys.frozen), so /opt/app/app is not a"),
        ("/usr/bin/python3", "macosx_app", "this program was frozen"),
        (None, False, "sys.executable is not set"),
        ("", False, "sys.executable is not set"),
        ("/usr/bin/uwsgi", False, "sys.executable is /usr/bin/uwsgi, which is not a Python"),
        ("/usr/sbin/httpd", False, "sys.executable is /usr/sbin/httpd, which is not a Python"),
        ("/usr/bin/python3", False, ""),
        ("/opt/bin/pypy3.10", False, ""),
        ("/Library/Frameworks/Python", False, ""),
    ],
)
def test_where_no_python_can_be_started(
    monkeypatch: pytest.MonkeyPatch, executable: str | None, frozen: object, reason: str
) -> None:
    """A frozen program or an application server would start itself: refused, with what to do."""
    monkeypatch.setattr("sys.executable", executable)
    monkeypatch.setattr("sys.frozen", frozen, raising=False)
    settings = etcdsem.connect("h:1", keeper=False).settings
    monkeypatch.setenv("ETCDSEM_KEEPER", "yes")
    for make in (
        lambda: etcdsem.connect("h:1", keeper=True),
        lambda: etcdsem.connect("h:1", keeper="5m"),
        lambda: etcdsem.connect("h:1"),
        lambda: aio.connect("h:1", keeper=True),
        lambda: Client(settings, keeper=True),
    ):
        if not reason:
            assert make().keeper
            continue
        with pytest.raises(etcdsem.InvalidSetting) as refused:
            make()
        assert f"keeper: its process cannot be started, because {reason}" in str(refused.value)
        assert "Use keeper=False" in str(refused.value)
    assert etcdsem.connect("h:1", keeper=False).keeper is None
