"""A keeper process refreshes for a busy program, and for nobody else."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import etcdsem
from etcdsem import Client, Semaphore
from etcdsem.core.leases import TtlLease
from etcdsem.keeper.table import ORDER, Table, open_memory
from etcdsem.keeper_process import Borrowed, Helper
from etcdsem.shell import boot_time, read_keeper
from tests.aio.test_cancel_every_step import leases_of
from tests.core.test_leases import Clock
from tests.history import assert_clean
from tests.test_processes import Worker
from tests.test_semaphore import eventually

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
    return client.engine.helper._process.pid if client.engine.helper else 0
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


@pytest.mark.parametrize("kind", [THREADS, LOOP], ids=["threads", "loop"])
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
read, write = os.pipe()
child = os.fork()
if child == 0:
    assert not sem.leases
    os.write(write, b'x')
    sys.stdin.readline()
    os._exit(0)
os.close(write)
assert os.read(read, 1)
say('held', helper(client), child)
time.sleep(60)
"""
)


def test_a_forked_child_does_not_keep_it_alive(
    etcd: EtcdServer, name: str, workers: list[Worker]
) -> None:
    """The child's copy of the pipe is closed: the helper ends with its parent."""
    workers.append(Worker(etcd, "import time\n" + FORKS, name, "yes"))
    helper, child = map(int, workers[0].expect("held")[1:])
    os.kill(workers[0].process.pid, signal.SIGKILL)
    eventually(lambda: not alive(helper), 3)
    assert alive(child)
    os.kill(child, signal.SIGKILL)


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
            keeper = client.engine.helper
            assert keeper is not None
            first = keeper._process.pid  # type: ignore[attr-defined]
            os.kill(first, signal.SIGKILL)
            eventually(lambda: keeper._process.pid != first)  # type: ignore[attr-defined]
            record = lease._grant.lease
            eventually(lambda: record.elsewhere is not None and record.elsewhere() is not None)
            assert lease.valid
    assert_clean(etcd, name)


def test_a_helper_that_cannot_be_told_is_killed(etcd: EtcdServer, name: str) -> None:
    """Its pipe is full, so it would go on renewing a lease that was given back."""
    with etcdsem.connect(etcd.endpoint, keeper=True) as client:
        sem = Semaphore(1, name, client=client, lease_timeout=30)
        assert sem.acquire()
        (lease,) = sem.leases
        keeper = client.engine.helper
        assert keeper is not None
        eventually(lambda: lease._grant.lease.elsewhere is not None)
        first = keeper._process  # type: ignore[attr-defined]
        read, full = os.pipe()
        os.set_blocking(full, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(full, bytes(4096))
        with client.engine.lock:
            pipe, keeper._pipe = keeper._pipe, full  # type: ignore[attr-defined]
            keeper.take_back(lease._grant.lease)
        assert first.wait(10) == -signal.SIGKILL
        os.close(pipe)
        os.close(read)
        assert lease.release()


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
    keeper = Borrowed(clock)
    keeper.table, keeper.places = Table(memory), {}
    helper._keeper, helper._table = keeper, keeper.table
    keeper.table.clear(3)
    if when == "before":
        keeper.table.forbid(3)
    helper._obey(ORDER.pack(b"K", 77, 3, 30.0, 10.0, clock.time, math.inf))
    if when == "during":
        clock.time += 8
        keeper.beat(clock.time)
        assert clock.renewed == [77]
        keeper.table.forbid(3)
        keeper.renewed(77, 30.0)
    assert keeper.leases == {}
    assert keeper.places == {}
    assert keeper.table.forbidden(3)
    keeper.table.close()
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
