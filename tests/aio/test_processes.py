"""Loops and processes that end, fork, stand still or are interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.helpers.history import assert_clean, judge, read_history
from tests.helpers.waiting import eventually

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

PRELUDE = """
import asyncio, contextlib, os, signal, sys, threading, time
from etcdsem import WrongEventLoop, aio
from etcdsem.aio import Semaphore
name, how = sys.argv[1:3]

async def hold(sem):
    async with sem:
        await asyncio.sleep(1000)

async def use():
    global kept
    sem = await Semaphore(2, name, lease_timeout=3)
    await sem.acquire()
    kept = [asyncio.create_task(hold(sem)) for _ in range(4)]
    while len(await sem.waiters()) < 3:
        await asyncio.sleep(0.01)
    return sem
"""

ENDINGS = """
async def main():
    await use()
    if how == "raise":
        raise KeyError("mine")
    if how == "sys.exit":
        sys.exit(3)
    if how == "ctrl-c":
        signal.raise_signal(signal.SIGINT)
        await asyncio.sleep(1000)
    if how == "ctrl-c later":
        threading.Timer(0.05, signal.raise_signal, [signal.SIGINT]).start()
        await asyncio.sleep(1000)

if how in ("closed", "left"):
    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    if how == "closed":
        loop.close()
else:
    asyncio.run(main())
"""


def script(etcd: EtcdServer, code: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    return subprocess.run(
        [sys.executable, "-W", "default", "-c", PRELUDE + code, *args],
        env={**os.environ, **etcd.env()},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("how", "code", "says"),
    [
        ("return", 0, ""),
        ("raise", 1, "KeyError: 'mine'"),
        ("sys.exit", 3, ""),
        ("ctrl-c", 130, "KeyboardInterrupt"),
        ("ctrl-c later", 130, "KeyboardInterrupt"),
        ("closed", 0, ""),
        ("left", 0, ""),
    ],
)
def test_a_loop_ends_without_close(
    etcd: EtcdServer, name: str, how: str, code: int, says: str
) -> None:
    """asyncio.run gives everything back at its end; a loop that just stops leaves it to the TTL.
    Nothing is said about it, and nothing hangs.
    """
    done = script(etcd, ENDINGS, name, how)
    assert done.returncode in (code, -signal.SIGINT if code == 130 else code), done.stderr
    noise = [line for line in done.stderr.splitlines() if "fork_posix" not in line]
    assert bool(noise) == bool(says), done.stderr
    if says:
        assert says in noise[-1]
        assert not [line for line in noise if "ignored" in line or "never" in line], done.stderr
    if how in ("closed", "left"):
        keys = f"/etcdsem/{name}/leases/"
        eventually(lambda: not etcd.etcdctl("get", "--prefix", "--keys-only", keys).strip(), 20)
    else:
        verdict = judge(read_history(etcd, name), name)
        assert not verdict.wrong
        left = {key.removeprefix(f"/etcdsem/{name}/") for key in verdict.left}
        assert left <= {"max_leases", "contended"}


FORK = """
async def child():
    sem = Semaphore(2, name, lease_timeout=3)
    assert await sem.get_value() == 2, "the parent's leases"
    assert await sem.acquire(timeout=0) is False
    waiting = asyncio.create_task(sem.acquire(timeout=20))
    print("waits", flush=True)
    assert await waiting
    async with asyncio.timeout(20):
        await asyncio.sleep(4)  # it is refreshed
        assert sem.leases[0].valid
    await sem.release()
    print("child", flush=True)

def fork(sem):
    pid = os.fork()
    if pid == 0:
        code = 1
        with contextlib.suppress(BaseException):
            assert sem.leases == ()
            asyncio.run(child())
            code = 0
        os._exit(code)
    return pid

async def main():
    sem = await Semaphore(2, name, lease_timeout=3)
    await sem.acquire()
    await sem.acquire()
    pid = fork(sem)
    while not await sem.waiters():
        await asyncio.sleep(0.01)
    first, second = sem.leases
    await first.release()
    _, status = await asyncio.to_thread(os.waitpid, pid, 0)
    print("status", status, second.valid, flush=True)
    await second.release()

asyncio.run(main())
"""


def test_a_forked_child_starts_clean(etcd: EtcdServer, name: str) -> None:
    """It has none of the parent's leases and never touches them, and can use a loop of its own."""
    done = script(etcd, FORK, name, "-")
    assert done.stdout.split() == ["waits", "child", "status", "0", "True"], done.stderr
    assert_clean(etcd, name)


STILL = """
async def main():
    told = []
    async with aio.connect() as client:
        sem = await Semaphore(1, name, client=client, lease_timeout=2, on_lost=told.append,
                              raise_on_loss=False)
        async with sem.hold() as lease:
            sent = client._driver.connection.counters["keepalives"]
            time.sleep(5)  # the loop stands still
            print(lease.valid, flush=True)
            await asyncio.wait_for(lease.lost.wait(), 10)
            assert client._driver.connection.counters["keepalives"] == sent
            await asyncio.sleep(0)
            assert told == [lease]
        assert await sem.acquire(timeout=10)
        await sem.release()
asyncio.run(main())
"""


def test_a_blocked_loop_finds_its_lease_lost(etcd: EtcdServer, name: str) -> None:
    """At once, by the clock; it is reported, and never refreshed after its deadline."""
    done = script(etcd, STILL, name, "-")
    assert done.stdout.split() == ["False"], done.stderr
    assert done.returncode == 0, done.stderr
    assert_clean(etcd, name)


LOOPS = """
async def work(number):
    async with aio.connect() as client:
        sem = await Semaphore(2, name, client=client)
        for _ in range(10):
            async with sem:
                await asyncio.sleep(0.001)

threads = [threading.Thread(target=asyncio.run, args=(work(n),)) for n in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("done")
"""


def test_several_loops_in_threads(etcd: EtcdServer, name: str) -> None:
    """A client in each of four loops: the limit holds, and nothing is said about it."""
    done = script(etcd, LOOPS, name, "-")
    assert done.stdout.split() == ["done"], done.stderr
    assert done.stderr == ""
    verdict = assert_clean(etcd, name)
    assert verdict.grants == 40


FILES = """
async def once():
    async with aio.connect() as client:
        sem = await Semaphore(1, name, client=client)
        async with sem:
            assert await sem.acquire(0.03) is False  # watches, too

def files():
    return len(os.listdir("/proc/self/fd"))

for _ in range(3):
    asyncio.run(once())
before = files()
for _ in range(12):
    asyncio.run(once())
print(files() - before)
"""


def test_loop_after_loop_leaves_no_socket_open(etcd: EtcdServer, name: str) -> None:
    """A closed client lets go of its connections at once, and nothing is said about it."""
    done = script(etcd, FILES, name, "-")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 2
    assert done.stderr == ""
