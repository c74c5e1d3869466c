"""Processes that end, are killed, fork, or are interrupted: nothing is lost or left behind."""

from __future__ import annotations

import signal
import threading
import time
from typing import TYPE_CHECKING

import pytest

import etcdsem
from etcdsem import Client, Semaphore
from tests.helpers.history import assert_clean, judge, read_history
from tests.helpers.slow import sample
from tests.helpers.waiting import eventually
from tests.helpers.workers import Worker

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer


HOLD = """
sem = Semaphore(int(sys.argv[2]), sys.argv[1], lease_timeout=int(sys.argv[3]))
sem.acquire()
say('held', sem.leases[0].slot)
sys.stdin.readline()
"""


@pytest.mark.parametrize("ttl", [3])
def test_a_killed_holder_is_replaced(
    any_etcd: EtcdServer, client: Client, name: str, workers: list[Worker], ttl: int
) -> None:
    """SIGKILL: the next waiter has the slot within TTL + 1.5 s."""
    sem = Semaphore(1, name, client=client)
    workers.append(Worker(any_etcd, HOLD, name, 1, ttl))
    workers[0].expect("held")
    granted: list[float] = []

    def wait() -> None:
        if sem.acquire(timeout=30):
            granted.append(time.monotonic())

    thread = threading.Thread(target=wait)
    thread.start()
    eventually(sem.waiters)
    workers[0].kill()
    killed = time.monotonic()
    thread.join(30)
    assert granted
    assert granted[0] - killed <= ttl + 1.5
    sem.release()
    assert_clean(any_etcd, name)


def test_all_holders_killed_at_once(
    any_etcd: EtcdServer, client: Client, name: str, workers: list[Worker]
) -> None:
    """All of N holders die together; all slots are used again."""
    sem = Semaphore(3, name, client=client)
    workers += [Worker(any_etcd, HOLD, name, 3, 2) for _ in range(3)]
    for worker in workers:
        worker.expect("held")
    threads = [threading.Thread(target=sem.acquire, args=(30,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(sem.waiters()) == 3)
    for worker in workers:
        worker.kill()
    for thread in threads:
        thread.join(30)
    assert sorted(lease.slot for lease in sem.leases) == [0, 1, 2]
    for lease in sem.leases:
        lease.release()
    assert_clean(any_etcd, name)


def test_a_killed_waiter_holds_nobody_up(
    any_etcd: EtcdServer, client: Client, name: str, workers: list[Worker]
) -> None:
    """Somebody dies in line; those behind are served, at once or when its lease has ended."""
    sem = Semaphore(1, name, client=client, lease_timeout=5)
    sem.acquire()
    code = "sem = Semaphore(1, sys.argv[1], lease_timeout=2)\nsay('waits')\nsem.acquire()\n"
    workers.append(Worker(any_etcd, code, name))
    workers[0].expect("waits")
    eventually(sem.waiters)
    thread = threading.Thread(target=sem.acquire, args=(30,))
    thread.start()
    eventually(lambda: len(sem.waiters()) == 2)
    workers[0].kill()
    sem.release()
    thread.join(30)
    assert len(sem.leases) == 1
    sem.release()
    verdict = judge(read_history(any_etcd, name), name)
    assert not verdict.wrong


@pytest.mark.smoke
def test_interpreter_exit_gives_everything_back(
    any_etcd: EtcdServer, client: Client, name: str, workers: list[Worker]
) -> None:
    """A program that just ends gives back what it held, within 2 s."""
    sem = Semaphore(2, name, client=client)
    code = HOLD.replace("sys.stdin.readline()", "sem.acquire()\nsay('ends')")
    workers.append(Worker(any_etcd, code, name, 2, 60))
    workers[0].expect("ends")
    ended = time.monotonic()
    assert workers[0].end() == 0
    assert time.monotonic() - ended < 4.0
    assert sem.get_value() == 0
    assert_clean(any_etcd, name)


def test_exit_without_etcd_is_prompt(
    fresh_etcd: EtcdServer, name: str, workers: list[Worker]
) -> None:
    """With etcd gone, a program still ends within its grace."""
    workers.append(Worker(fresh_etcd, HOLD, name, 2, 60))
    workers[0].expect("held")
    fresh_etcd.kill()
    assert workers[0].process.stdin is not None
    workers[0].process.stdin.write("\n")
    workers[0].process.stdin.close()
    began = time.monotonic()
    workers[0].end()
    assert time.monotonic() - began < 6.0


def test_ctrl_c_while_waiting_leaves_the_line(
    any_etcd: EtcdServer, client: Client, name: str, workers: list[Worker]
) -> None:
    """KeyboardInterrupt in acquire() comes out, and the place in line is gone by then."""
    sem = Semaphore(1, name, client=client)
    sem.acquire()
    code = """
sem = Semaphore(1, sys.argv[1])
say('waits')
try:
    sem.acquire()
except KeyboardInterrupt:
    say('interrupted', len(sem.waiters()), len(sem.leases))
    sys.stdin.readline()
"""
    workers.append(Worker(any_etcd, code, name))
    workers[0].expect("waits")
    eventually(sem.waiters)
    workers[0].process.send_signal(signal.SIGINT)
    assert workers[0].expect("interrupted") == ["interrupted", "0", "0"]
    assert sem.waiters() == ()
    sem.release()
    workers[0].kill()
    verdict = judge(read_history(any_etcd, name), name)
    assert not verdict.wrong
    assert not [key for key in verdict.left if "/waiters/" in key or "/leases/" in key]


def test_ctrl_c_at_any_moment_leaves_nothing(
    etcd: EtcdServer, client: Client, name: str, workers: list[Worker]
) -> None:
    """An interrupt at random moments of acquire and release never leaves a key behind."""
    sem = Semaphore(2, name, client=client)
    code = """
import random
sem = Semaphore(2, sys.argv[1])
sem.acquire(); sem.release()
main = threading.main_thread().ident
for turn in range(60):
    timer = threading.Timer(random.random() * 0.004, signal.pthread_kill, (main, signal.SIGINT))
    try:
        timer.start()
        while True:
            with sem:
                pass
    except KeyboardInterrupt:
        pass
    timer.join()
say('done', len(sem.leases))
while len(sem.leases): sem.release()
"""
    workers.append(Worker(etcd, code, name))
    workers[0].expect("done")
    assert workers[0].end() == 0
    eventually(lambda: sem.get_value() == 0)
    assert_clean(etcd, name)


def test_fork_starts_clean(
    any_etcd: EtcdServer, client: Client, name: str, workers: list[Worker]
) -> None:
    """A forked child has no lease, cannot release its parent's, and can acquire its own."""
    sem = Semaphore(2, name, client=client)
    code = """
sem = Semaphore(2, sys.argv[1])
sem.acquire()
lease = sem.leases[0]
pid = os.fork()
if pid == 0:
    assert sem.leases == (), sem.leases
    assert not lease.valid and lease.release() is False
    try:
        sem.release()
    except RuntimeError:
        pass
    else:
        os._exit(3)
    assert sem.get_value() == 1
    assert sem.acquire(timeout=10)
    assert sem.get_value() == 2
    assert sem.leases[0].slot != lease.slot
    sem.release()
    sem.client.close()
    os._exit(0)
_, status = os.waitpid(pid, 0)
say('child', os.waitstatus_to_exitcode(status))
assert lease.valid and sem.get_value() == 1
assert sem.release()
say('parent', 'fine')
"""
    workers.append(Worker(any_etcd, code, name))
    assert workers[0].expect("child") == ["child", "0"]
    workers[0].expect("parent")
    assert workers[0].end() == 0
    assert sem.get_value() == 0
    assert_clean(any_etcd, name)


def test_a_paused_holder_knows_that_it_lost(
    any_etcd: EtcdServer, client: Client, name: str, workers: list[Worker]
) -> None:
    """Stopped for longer than its lease: another is granted; on waking `valid` is False before
    any request, the loss is told once, and release leaves the new holder alone.
    """
    sem = Semaphore(1, name, client=client)
    code = """
lost = []
sem = Semaphore(1, sys.argv[1], lease_timeout=2, on_lost=lost.append, raise_on_loss=False)
sem.acquire()
lease = sem.leases[0]
say('held')
sys.stdin.readline()
say('awake', lease.valid)
lease.lost.wait(10)
say('released', sem.release())
time.sleep(0.2)
say('told', len(lost))
"""
    workers.append(Worker(any_etcd, code, name))
    worker = workers[0]
    worker.expect("held")
    worker.process.send_signal(signal.SIGSTOP)
    assert worker.process.stdin is not None
    worker.process.stdin.write("\n")
    worker.process.stdin.flush()
    assert sem.acquire(timeout=20)
    worker.process.send_signal(signal.SIGCONT)
    assert worker.expect("awake") == ["awake", "False"]
    assert worker.expect("released") == ["released", "False"]
    assert worker.expect("told") == ["told", "1"]
    assert sem.get_value() == 1
    assert sem.leases[0].valid
    sem.release()
    assert_clean(any_etcd, name)


@pytest.mark.parametrize("turns", sample([25, 250]))
def test_eight_processes(
    any_etcd: EtcdServer, client: Client, name: str, workers: list[Worker], turns: int
) -> None:
    """Eight processes, limit 3, many acquisitions: the limit at every revision, growing tokens,
    exact order, nothing left behind.
    """
    Semaphore(3, name, client=client)
    code = """
sem = Semaphore(3, sys.argv[1])
say('ready')
sys.stdin.readline()
for turn in range(int(sys.argv[2])):
    with sem.hold() as lease:
        lease.check()
say('done')
"""
    workers += [Worker(any_etcd, code, name, turns) for _ in range(8)]
    for worker in workers:
        worker.expect("ready")
    for worker in workers:
        assert worker.process.stdin is not None
        worker.process.stdin.write("\n")
        worker.process.stdin.flush()
    for worker in workers:
        worker.expect("done")
        assert worker.end() == 0
    verdict = assert_clean(any_etcd, name)
    assert verdict.grants == 8 * turns
    assert verdict.most_held == 3
    assert verdict.handed_over > turns // 3


def test_exit_revokes_all_leases(fresh_etcd: EtcdServer, name: str, workers: list[Worker]) -> None:
    """Closing a client ends its etcd leases, the spare ones too."""
    with etcdsem.connect(fresh_etcd.endpoint) as client:
        sem = Semaphore(5, name, client=client)
        for _ in range(5):
            sem.acquire()
        for _ in range(3):
            sem.release()
        assert fresh_etcd.etcdctl("lease", "list").startswith("found 5")
    assert fresh_etcd.etcdctl("lease", "list").startswith("found 0")
