"""Wall clocks that a test library has frozen or moved: no deadline of ours depends on them."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import pytest

from tests.helpers.history import assert_clean
from tests.helpers.slow import sample
from tests.helpers.workers import Worker

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

CLOCKS = {
    "frozen, moved a year each time": "freezegun.freeze_time('2020-02-02')",
    "travelled, moved a year each time": "time_machine.travel('2020-02-02', tick=False)",
    "frozen": "freezegun.freeze_time('2020-02-02')",
    "frozen, ticking in steps": "freezegun.freeze_time('2031-01-01', auto_tick_seconds=3600)",
    "frozen, ticking": "freezegun.freeze_time('2031-01-01', tick=True)",
    "travelled": "time_machine.travel('2020-02-02', tick=False)",
    "travelled, ticking": "time_machine.travel('2031-01-01', tick=True)",
}
"""What stands still or moves, and the block in which it does."""

MOVES = """
import contextlib, datetime
YEAR = datetime.timedelta(days=365)
def real(): return time.clock_gettime(time.CLOCK_BOOTTIME)
def moved(clock):
    'To and fro between two moves.'
    for step in (YEAR, -2 * YEAR, YEAR):
        if 'moved' not in sys.argv[2]: return
        clock.tick(step) if 'frozen' in sys.argv[2] else clock.shift(step)
"""


def library(clock: str) -> str:
    """The module that a clock needs; skips the test where it is missing."""
    module = CLOCKS[clock].partition(".")[0]
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    return f"import {module}\nclock_of = lambda: {CLOCKS[clock]}\n"


@pytest.mark.parametrize("clock", sample(CLOCKS, 2))
def test_all_is_as_ever(etcd: EtcdServer, name: str, workers: list[Worker], clock: str) -> None:
    """Acquire, timeouts, a wait with its hand-over, a hold for twice its TTL, a rate, a release."""
    code = f"""
{library(clock)}{MOVES}
from etcdsem import RateLimit

def took(least, most, call):
    began = real()
    result = call()
    moved(clock)
    assert least <= real() - began < most, real() - began
    return result

with clock_of() as clock:
    lost = []
    sem = Semaphore(1, sys.argv[1], lease_timeout=2, on_lost=lost.append)
    assert took(0, 5, lambda: sem.acquire(timeout=5))
    assert took(0.5, 5, lambda: sem.acquire(timeout=0.5)) is False
    got = []
    thread = threading.Thread(target=lambda: got.append(sem.acquire(timeout=30)))
    thread.start()
    while not sem.waiters(): pass
    moved(clock)
    took(0, 5, sem.release)
    took(0, 5, thread.join)
    assert got == [True], got
    lease = sem.leases[0]
    until = real() + 4
    while real() < until:
        moved(clock)
        assert lease.valid and 0 < lease.remaining <= 2
        threading.Event().wait(0.1)
    assert took(0, 5, lease.release) and not lost
    rate = RateLimit(sys.argv[1] + '-rate', 2, '1s')
    assert all(took(0, 5, lambda: rate.acquire(timeout=5)) for _ in range(4))
    took(0, 5, sem.client.close)
    say('done')
"""
    workers.append(Worker(etcd, code, name, clock))
    workers[0].expect("done")
    assert workers[0].end() == 0
    assert_clean(etcd, name)


@pytest.mark.parametrize("clock", sample(["frozen", "travelled"]))
def test_between_two_clocks(etcd: EtcdServer, name: str, workers: list[Worker], clock: str) -> None:
    """A lease is held while the clock is frozen, and long after; nobody is served too early."""
    code = f"""
{library(clock)}{MOVES}
sem = Semaphore(1, sys.argv[1], lease_timeout=2)
other = Semaphore(1, sys.argv[1], client=etcdsem.connect())
sem.acquire()
for _ in range(3):
    with clock_of():
        assert other.acquire(timeout=0.5) is False
        threading.Event().wait(0.5)
    assert other.acquire(timeout=0.5) is False
assert sem.leases[0].valid
assert sem.release() and other.acquire(timeout=5)
say('done')
"""
    workers.append(Worker(etcd, code, name, clock))
    workers[0].expect("done")
    assert workers[0].end() == 0
    assert_clean(etcd, name)


@pytest.mark.parametrize("clock", sample(["frozen", "travelled"]))
def test_an_etcd_that_does_not_answer(workers: list[Worker], etcd: EtcdServer, clock: str) -> None:
    """A deadline passes where nobody answers, while the wall clock stands still."""
    code = f"""
{library(clock)}{MOVES}
import socket
silent = socket.create_server(('127.0.0.1', 0))
with clock_of():
    began = real()
    try:
        port = silent.getsockname()[1]
        Semaphore(1, 'x', client=etcdsem.connect(f'127.0.0.1:{{port}}', dial_timeout=1))
    except etcdsem.EtcdUnavailable as error:
        say('away', real() - began < 10, error)
"""
    workers.append(Worker(etcd, code, "", clock))
    assert workers[0].expect("away")[1] == "True"
    assert workers[0].end() == 0


@pytest.mark.parametrize("clock", sample(["frozen", "travelled"]))
def test_an_etcd_in_memory(workers: list[Worker], etcd: EtcdServer, clock: str) -> None:
    """Its own clock is not the frozen one."""
    code = f"""
{library(clock)}{MOVES}
from etcdsem.testing import memory
with clock_of(), memory() as etcd:
    sem = Semaphore(1, 'x', client=etcd.client(), lease_timeout=2)
    sem.acquire()
    assert sem.acquire(timeout=100) is False
    thread = threading.Thread(target=sem.acquire)
    thread.start()
    etcd.wait_until(sem.waiters)
    sem.release()
    thread.join()
    say('done', sem.leases[0].valid)
"""
    workers.append(Worker(etcd, code, "", clock))
    assert workers[0].expect("done")[1] == "True"
    assert workers[0].end() == 0
