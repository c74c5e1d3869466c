"""Processes that stand still, hog the interpreter, or whose clocks jump (faults 2 to 5, 7 and 8).

Real processes on a real etcd; how long a process stands still is part of the fault, everything
else is waited for. The clock of a process is shifted by a small library that is loaded into it
(the wall clock), or by a namespace (the others).
"""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import etcdsem.testing
from etcdsem import Client, Lease, Semaphore
from etcdsem.core.commands import Compare, Put, Txn
from tests.helpers.history import assert_clean, judge, read_history
from tests.helpers.waiting import eventually
from tests.helpers.workers import Worker

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer


def stop(worker: Worker) -> None:
    """SIGSTOP, and wait until it stands still."""
    worker.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, worker.process.pid, os.WSTOPPED | os.WNOWAIT)


def tell(worker: Worker) -> None:
    """Let it go on with its next line."""
    assert worker.process.stdin is not None
    worker.process.stdin.write("\n")
    worker.process.stdin.flush()


HOLD = """
lost = []
sem = Semaphore(int(sys.argv[2]), sys.argv[1], lease_timeout=int(sys.argv[3]),
                on_lost=lost.append, raise_on_loss=False)
sem.acquire()
lease = sem.leases[0]
say('held', lease.slot, lease.fencing_token)
sys.stdin.readline()
say('awake', lease.valid, lease.lost.is_set())
if not lease.valid:
    lease.lost.wait(10)
say('released', sem.release())
sem.client.close()
say('told', len(lost))
"""


def test_a_holder_that_pauses_for_less_than_half_its_lease_keeps_it(
    etcd: EtcdServer, client: Client, name: str, workers: list[Worker]
) -> None:
    """Fault 2: no spurious loss, the same grant before and after."""
    sem = Semaphore(1, name, client=client)
    workers.append(Worker(etcd, HOLD, name, 1, 12))
    token = workers[0].expect("held")[2]
    stop(workers[0])
    assert not sem.acquire(timeout=2.5)
    workers[0].process.send_signal(signal.SIGCONT)
    assert not sem.acquire(timeout=1)
    assert [str(holder.fencing_token) for holder in sem.holders()] == [token]
    tell(workers[0])
    assert workers[0].expect("awake") == ["awake", "True", "False"]
    assert workers[0].expect("released") == ["released", "True"]
    assert workers[0].expect("told") == ["told", "0"]
    assert_clean(etcd, name)


def test_a_holder_that_pauses_for_longer_is_fenced_off(
    etcd: EtcdServer, client: Client, name: str, workers: list[Worker]
) -> None:
    """Fault 3: another is granted with a larger token; what the old holder writes under its own
    token in one transaction with the check fails; it knows before any request, is told once, and
    its release does not touch the new holder's key.
    """
    sem = Semaphore(1, name, client=client)
    workers.append(Worker(etcd, HOLD, name, 1, 2))
    old = int(workers[0].expect("held")[2])
    stop(workers[0])
    assert sem.acquire(timeout=20)
    new = sem.leases[0].fencing_token
    assert new > old
    slot = f"/etcdsem/{name}/leases/00000".encode()

    def write(token: int) -> bool:
        guard = Compare(slot, "mod", "=", token)
        put = Put(f"/fenced/{name}".encode(), str(token).encode())
        return client._driver.connection.transact(Txn((guard,), (put,)), 5).succeeded

    tell(workers[0])
    workers[0].process.send_signal(signal.SIGCONT)
    assert workers[0].expect("awake")[:2] == ["awake", "False"]
    assert not write(old)
    assert write(new)
    assert workers[0].expect("released") == ["released", "False"]
    assert workers[0].expect("told") == ["told", "1"]
    assert [holder.fencing_token for holder in sem.holders()] == [new]
    assert sem.leases[0].valid
    sem.release()
    assert_clean(etcd, name)


def test_a_waiter_that_pauses_loses_its_place_and_queues_again(
    etcd: EtcdServer, client: Client, name: str, workers: list[Worker]
) -> None:
    """Fault 4: its place vanishes with its lease, those behind are served; when it goes on it
    joins the line again, and what it then gets is its own.
    """
    sem = Semaphore(1, name, client=client, lease_timeout=15)
    sem.acquire()
    code = """
sem = Semaphore(1, sys.argv[1], lease_timeout=2)
say('waits')
sem.acquire()
say('held', sem.leases[0].id, sem.leases[0].valid)
sys.stdin.readline()
say('released', sem.release())
"""
    workers.append(Worker(etcd, code, name))
    workers[0].expect("waits")
    eventually(sem.waiters)
    thread = threading.Thread(target=sem.acquire, args=(60,))
    thread.start()
    eventually(lambda: len(sem.waiters()) == 2)
    stop(workers[0])
    stopped = time.monotonic()
    eventually(lambda: len(sem.waiters()) == 1)
    assert time.monotonic() - stopped < 15, "etcd takes 2 s and a little"
    sem.release()
    thread.join(30)
    assert len(sem.leases) == 1
    workers[0].process.send_signal(signal.SIGCONT)
    eventually(lambda: len(sem.waiters()) == 1)
    sem.release()
    _, lease, valid = workers[0].expect("held")
    assert valid == "True"
    assert [holder.lease_id for holder in sem.holders()] == [lease]
    tell(workers[0])
    assert workers[0].expect("released") == ["released", "True"]
    assert not judge(read_history(etcd, name), name).wrong


HOG = """
import ctypes
lost = []
sem = Semaphore(3, sys.argv[1], lease_timeout={ttl}, on_lost=lost.append, raise_on_loss=False)
sem.acquire()
lease = sem.leases[0]
say('held', lease.slot)
sys.stdin.readline()
{hog}
say('awake', lease.valid)
if not lease.valid:
    lease.lost.wait(10)
say('released', sem.release())
sem.client.close()
say('told', len(lost))
"""

BLOCKED_LOOP = """
import asyncio
from etcdsem import aio
async def main():
    lost = []
    sem = await aio.Semaphore(3, sys.argv[1], lease_timeout=2, on_lost=lost.append,
                              raise_on_loss=False)
    await sem.acquire()
    lease = sem.leases[0]
    say('held', lease.slot)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    time.sleep(4)
    say('awake', lease.valid)
    await asyncio.wait_for(lease.lost.wait(), 10)
    say('released', await sem.release())
    await sem.client.close()
    say('told', len(lost))
asyncio.run(main())
"""


def test_who_hogs_the_interpreter_loses_its_lease_and_knows(
    etcd: EtcdServer, client: Client, name: str, workers: list[Worker]
) -> None:
    """Fault 5: C code that holds the GIL, or a blocking call in a coroutine, for longer than the
    lease: others are granted, and the holder knows when it is back. C code that lets go of the
    GIL loses nothing.
    """
    sem = Semaphore(3, name, client=client)
    hogs = [
        HOG.format(ttl=2, hog="ctypes.PyDLL(None).sleep(4)"),  # keeps the GIL
        BLOCKED_LOOP,
        HOG.format(ttl=6, hog="ctypes.CDLL(None).sleep(8)"),  # lets go of it
    ]
    workers += [Worker(etcd, code, name) for code in hogs]
    slots = [worker.expect("held")[1] for worker in workers]
    for worker in workers:
        tell(worker)
    assert sem.acquire(timeout=20)
    assert sem.acquire(timeout=20)
    assert {str(lease.slot) for lease in sem.leases} == set(slots[:2])
    assert not sem.acquire(timeout=0), "the third has kept its lease"
    for worker in workers[:2]:
        assert worker.expect("awake") == ["awake", "False"]
        assert worker.expect("released") == ["released", "False"]
        assert worker.expect("told") == ["told", "1"]
    assert workers[2].expect("awake") == ["awake", "True"]
    assert workers[2].expect("released") == ["released", "True"]
    assert workers[2].expect("told") == ["told", "0"]
    assert all(lease.valid for lease in sem.leases)
    assert sem.release()
    assert sem.release()
    assert_clean(etcd, name)


# ---------------------------------------------------------------- clocks that jump

SHIFT = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

static volatile int64_t *seconds;

__attribute__((constructor)) static void begin(void) {
    int file = open(getenv("WALL_CLOCK_SHIFT"), O_RDONLY);
    seconds = mmap(0, 8, PROT_READ, MAP_SHARED, file, 0);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int done = real(clock, now);
    if (clock == CLOCK_REALTIME && seconds) now->tv_sec += *seconds;
    return done;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *where) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (where) *where = exact.tv_sec;
    return exact.tv_sec;
}
"""


@pytest.fixture
def shift(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Shifts the wall clock of the processes that are started from now on, by so many seconds."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("a C compiler is needed to shift a process's wall clock")
    (tmp_path / "shift.c").write_text(SHIFT)
    library = tmp_path / "shift.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", library, tmp_path / "shift.c", "-ldl"],
        check=True,
    )
    by = tmp_path / "seconds"

    def write(seconds: int) -> None:
        with by.open("r+b" if by.exists() else "w+b") as file:
            file.write(struct.pack("=q", seconds))

    write(0)
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("WALL_CLOCK_SHIFT", str(by))
    return write


def test_a_wall_clock_that_jumps_changes_nothing(
    etcd: EtcdServer,
    client: Client,
    name: str,
    workers: list[Worker],
    shift: Callable[[int], None],
) -> None:
    """Fault 7: an hour forwards and back, again and again, while a process holds and waits: its
    lease stays, its timeouts last as long as ever, and it is served.
    """
    sem = Semaphore(2, name, client=client)
    sem.acquire()
    code = """
lost = []
sem = Semaphore(2, sys.argv[1], lease_timeout=10, refresh_interval=1, on_lost=lost.append)
sem.acquire()
say('held')
began = time.monotonic()
timeouts, walls = 0, []
while time.monotonic() - began < 6:
    one = time.monotonic()
    assert sem.acquire(timeout=0.4) is False
    assert 0.4 <= time.monotonic() - one < 5
    timeouts += 1
    walls.append(time.time() - time.monotonic())
say('timeouts', timeouts, sem.leases[0].valid, len(lost), max(walls) - min(walls))
say('served', sem.acquire(timeout=60))
sys.stdin.readline()
assert sem.release() and sem.release()
say('released')
"""
    workers.append(Worker(etcd, code, name))
    workers[0].expect("held")
    over = threading.Event()

    def jump() -> None:
        while True:
            for seconds in (3600, -3600, 90_000, 0):
                shift(seconds)
                if over.wait(0.4):
                    shift(3600)
                    return

    thread = threading.Thread(target=jump)
    thread.start()
    try:
        _, timeouts, valid, lost, spread = workers[0].expect("timeouts")
        assert int(timeouts) > 1
        assert float(spread) > 3000, "its wall clock did jump"
        assert (valid, lost) == ("True", "0")
        eventually(sem.waiters)
        sem.release()
        assert workers[0].expect("served") == ["served", "True"]
    finally:
        over.set()
        thread.join()
    tell(workers[0])
    workers[0].expect("released")
    assert_clean(etcd, name)


def test_a_process_whose_clocks_began_elsewhere(
    etcd: EtcdServer, client: Client, name: str, workers: list[Worker]
) -> None:
    """Fault 8: in a container that was moved, the monotonic clocks may begin anywhere."""
    namespace = ["unshare", "-T", "--boottime", "123456", "--monotonic", "654321", "--"]
    if subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no time namespace can be made here (it takes root, and Linux 5.6)")
    code = """
sem = Semaphore(1, sys.argv[1], lease_timeout=5, refresh_interval=0.5)
sem.acquire()
say('held', time.clock_gettime(time.CLOCK_BOOTTIME))
sys.stdin.readline()
lease = sem.leases[0]
say('awake', lease.valid, 0 < lease.remaining < 5)
say('released', sem.release())
"""
    shifted = Worker.__new__(Worker)
    prelude = (
        "import sys, time\nfrom etcdsem import Semaphore\n"
        "def say(*words): print(*words, flush=True)\n"
    )
    shifted.process = subprocess.Popen(
        [*namespace, sys.executable, "-c", prelude + code, name],
        env={**os.environ, **etcd.env()},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    workers.append(shifted)
    theirs = float(shifted.expect("held")[1])
    assert theirs - time.clock_gettime(time.CLOCK_BOOTTIME) > 100_000
    sem = Semaphore(1, name, client=client)
    assert not sem.acquire(timeout=6), "it was refreshed for longer than its lease"
    tell(shifted)
    assert shifted.expect("awake") == ["awake", "True", "True"]
    assert shifted.expect("released") == ["released", "True"]
    assert sem.acquire(timeout=10)
    sem.release()


class _Jumped:
    """A clock that has jumped; all else as before."""

    def __init__(self, clock: Any, by: float) -> None:
        self._clock = clock
        self._by = by

    def now(self) -> float:
        return float(self._clock.now() + self._by)

    def wait(self, box: Any, until: float) -> object:
        return self._clock.wait(box, until - self._by)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._clock, name)


@pytest.mark.parametrize(("by", "kept"), [(19.0, True), (29.7, False), (3600.0, False)])
def test_a_monotonic_clock_that_jumps_ends_leases_early_never_late(by: float, kept: bool) -> None:
    """Fault 8: a clock that runs ahead takes a lease for lost while etcd still has it; nobody
    else has it meanwhile.
    """
    lost: list[Lease] = []
    with etcdsem.testing.memory() as etcd:
        client = etcd.client()
        sem = Semaphore(1, "db", client=client, lease_timeout=30, on_lost=lost.append)
        other = Semaphore(1, "db", client=etcd.client())
        assert sem.acquire()
        lease = sem.leases[0]
        engine = client._driver
        with engine.lock:
            engine._clock = jumped = _Jumped(engine._clock, by)
            engine.now = jumped.now  # type: ignore[method-assign]  # it asks its clock directly
        assert lease.valid is kept
        assert other.get_value() == 1
        etcd.advance("1s")
        assert lease.valid is kept
        assert lease.lost.is_set() is not kept
        assert lost == ([] if kept else [lease])
        assert other.acquire(timeout=0) is not kept, "a lost lease is given back at once"
        etcd.advance("1m")
        assert lease.valid is kept
        assert sem.release() is kept
