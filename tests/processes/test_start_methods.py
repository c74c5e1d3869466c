"""multiprocessing, with each of its start methods, and concurrent.futures."""

from __future__ import annotations

import concurrent.futures
import itertools
import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

import pytest

from etcdsem import Client, Semaphore
from tests.helpers.history import assert_clean
from tests.helpers.slow import sample
from tests.helpers.waiting import eventually
from tests.processes import jobs

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

METHODS = ["fork", "forkserver", "spawn"]


def start(method: str, job: Callable[..., object], *arguments: object) -> BaseProcess:
    """A started child."""
    context: Any = multiprocessing.get_context(method)
    process: BaseProcess = context.Process(target=job, args=arguments)
    process.start()
    return process


def end(process: BaseProcess) -> int | None:
    """Wait for its end; gives its exit code."""
    process.join(60)
    code = process.exitcode
    process.kill()
    return code


@pytest.mark.parametrize("method", METHODS)
def test_processes_share_a_semaphore(
    etcd: EtcdServer, client: Client, name: str, method: str
) -> None:
    """A semaphore is given to processes, and the parent holds one of two leases: the children
    take turns with the other, and never touch the parent's.
    """
    sem = Semaphore(2, name, client=client)
    children = [start(method, jobs.turns, sem, 10) for _ in range(3)]
    with sem.hold() as mine:
        assert [end(child) for child in children] == [0, 0, 0]
        assert mine.valid
        assert sem.get_value() == 1
    verdict = assert_clean(etcd, name)
    assert verdict.grants == 31
    assert verdict.most_held == 2


@pytest.mark.parametrize("how", sample(["return", "raise", "exit", "thread", "executor"]))
@pytest.mark.parametrize("method", METHODS)
def test_a_child_gives_back_at_its_end(
    etcd: EtcdServer, client: Client, name: str, method: str, how: str
) -> None:
    """A child whose work is done gives back at once what it held, though multiprocessing ends it
    by os._exit; but not before its own threads have ended, which may be at work under a lease.
    """
    sem = Semaphore(4, name, client=client, lease_timeout=600)
    code = {"raise": 1, "exit": 3}.get(how, 0)
    assert end(start(method, jobs.leave_without_release, sem, how)) == code
    assert sem.get_value() == 0
    assert client.limit(name) == 4, "a lease was given back while a thread worked"
    assert_clean(etcd, name)


@pytest.mark.parametrize("method", METHODS)
def test_pool(etcd: EtcdServer, client: Client, name: str, method: str) -> None:
    """multiprocessing.Pool: the semaphore travels with each task."""
    sem = Semaphore(2, name, client=client)
    with multiprocessing.get_context(method).Pool(3) as pool:
        results = pool.map(jobs.one_turn, [sem] * 24, chunksize=1)
    assert len({token for _, token in results}) == 24
    assert assert_clean(etcd, name).most_held <= 2


@pytest.mark.parametrize("method", METHODS)
def test_process_pool_executor(etcd: EtcdServer, client: Client, name: str, method: str) -> None:
    """concurrent.futures with processes: at its shutdown also the spare etcd leases are gone."""
    sem = Semaphore(2, name, client=client, lease_timeout=600)
    connection = client._driver.connection
    before = set(connection.leases(5))
    context = multiprocessing.get_context(method)
    with concurrent.futures.ProcessPoolExecutor(3, mp_context=context) as pool:
        tokens = [token for _, token in pool.map(jobs.one_turn, [sem] * 24)]
    assert len(set(tokens)) == 24
    assert_clean(etcd, name)
    assert set(connection.leases(5)) <= before


def test_thread_pool_executor(etcd: EtcdServer, client: Client, name: str) -> None:
    """concurrent.futures with threads: one object for all of them."""
    sem = Semaphore(3, name, client=client)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        tokens = list(itertools.chain(*pool.map(jobs.turns, [sem] * 8, [10] * 8)))
    assert len(tokens) == 80
    verdict = assert_clean(etcd, name)
    assert verdict.grants == 80
    assert verdict.most_held == 3


@pytest.mark.parametrize("method", METHODS)
def test_a_child_that_is_terminated(
    etcd: EtcdServer, client: Client, name: str, method: str
) -> None:
    """Process.terminate() is SIGTERM by default: nothing runs, and the TTL gives the slot back."""
    sem = Semaphore(1, name, client=client, lease_timeout=2)
    child = start(method, jobs.hold_for_ever, sem)
    eventually(sem.get_value, 30)
    child.terminate()
    terminated = time.monotonic()
    assert end(child) == -15
    assert sem.acquire(timeout=30)
    assert time.monotonic() - terminated < 2 + 2.5
    sem.release()
    assert_clean(etcd, name)
