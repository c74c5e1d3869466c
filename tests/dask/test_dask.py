"""Everything that Dask promises of `distributed.Semaphore`, on a real cluster: a scheduler and
three workers with two threads each, in processes of their own. What can be, is run with Dask's
own semaphore too, so that it is known to be the same.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

import etcdsem
from etcdsem import aio, server
from tests.dask import tasks
from tests.etcd.proxy import Proxy
from tests.history import assert_clean
from tests.test_semaphore import eventually

distributed = pytest.importorskip("distributed", reason="needs Dask: pip install distributed")

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

LIBRARIES = ["dask", "etcdsem"]


class Cluster(NamedTuple):
    """A Dask cluster, and an etcd that its processes know by ETCDSEM_ENDPOINTS."""

    etcd: EtcdServer
    scheduler: str
    client: Any


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One cluster for all tests of this module."""
    folder = tmp_path_factory.mktemp("dask")
    where = folder / "scheduler.json"
    started: list[subprocess.Popen[bytes]] = []
    with server.start() as etcd:
        environment = {
            **os.environ,
            **etcd.env(),
            "DASK_DISTRIBUTED__SCHEDULER__LOCKS__LEASE_TIMEOUT": "2s",
            "DASK_DISTRIBUTED__SCHEDULER__LOCKS__LEASE_VALIDATION_INTERVAL": "0.1s",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        common = ["--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", str(where)]
        worker = ["--nworkers", "3", "--nthreads", "2", "--local-directory", str(folder)]
        try:
            for arguments in (["scheduler", "--port", "0"], ["worker", *worker]):
                program = [sys.executable, "-m", "dask", *arguments, *common]
                with (folder / f"{arguments[0]}.log").open("wb") as log:
                    started.append(
                        subprocess.Popen(
                            program,
                            env=environment,
                            cwd=folder,
                            stdout=log,
                            stderr=subprocess.STDOUT,
                            start_new_session=True,
                        )
                    )
            eventually(where.exists, 120)
            with distributed.Client(scheduler_file=str(where), timeout=60) as client:
                client.wait_for_workers(3, timeout=120)
                yield Cluster(etcd, client.scheduler.address, client)
        finally:
            for process in reversed(started):
                process.terminate()
            for process in started:
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()


@pytest.fixture
def cluster(running: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The cluster; and this process knows the etcd too, as a Dask user's would."""
    from etcdsem.sync import swap_default_client

    for variable, value in running.etcd.env().items():
        monkeypatch.setenv(variable, value)
    ours = etcdsem.connect(running.etcd.endpoint)
    former = swap_default_client(ours)
    yield running
    swap_default_client(former)
    ours.close()


def most_at_once(times: list[tuple[int, float, float]]) -> int:
    """How many were at work at the same time."""
    steps = sorted([(began, 1) for _, began, _ in times] + [(ended, -1) for _, _, ended in times])
    most = now = 0
    for _, step in steps:
        now += step
        most = max(most, now)
    return most


# -- the documented example


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_documented_example(cluster: Cluster, name: str, library: str) -> None:
    """`client.map(access_resource, range(10), sem=sem)`, word for word but for the import."""
    Semaphore = {"dask": distributed.Semaphore, "etcdsem": etcdsem.Semaphore}[library]
    client = cluster.client

    sem = Semaphore(max_leases=2, name=name)
    futures = client.map(tasks.access_resource, range(10), sem=sem, pure=False)
    assert client.gather(futures) == list(range(10))
    sem.close()


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_limit_holds_across_workers(cluster: Cluster, name: str, library: str) -> None:
    """24 tasks on six threads of three processes, limit 2: two at a time, and not fewer."""
    sem = tasks.made(library, 2, name)
    futures = cluster.client.map(tasks.occupy, range(24), sem=sem, pure=False)
    times = cluster.client.gather(futures)
    assert most_at_once(times) == 2
    assert len({pid for pid, _, _ in times}) > 1
    if library == "etcdsem":
        verdict = assert_clean(cluster.etcd, name)
        assert verdict.grants == 24
        assert verdict.most_held == 2
        assert verdict.handed_over > 0
    sem.close()


@pytest.mark.parametrize("library", LIBRARIES)
def test_tasks_by_name(cluster: Cluster, name: str, library: str) -> None:
    """A task may make the semaphore itself: the same name is the same semaphore."""
    futures = cluster.client.map(tasks.by_name, range(8), library=library, name=name, pure=False)
    assert cluster.client.gather(futures) == list(range(8))
    with pytest.raises(ValueError, match="Inconsistent max leases: 3, expected: 2"):
        tasks.access_resource(0, tasks.made(library, 3, name))
    assert tasks.made(library, 2, name).get_value() == 0


def test_the_scheduler_opens_no_connection(cluster: Cluster, name: str) -> None:
    """The scheduler unpickles what it passes on: that makes no client, no thread, and does not
    even load gRPC there.
    """
    sem = etcdsem.Semaphore(2, name, client=etcdsem.connect(cluster.etcd.endpoint))
    futures = cluster.client.map(tasks.access_resource, range(4), sem=sem, pure=False)
    cluster.client.gather(futures)
    twin = cluster.client.run_on_scheduler(pickle.loads, pickle.dumps(sem))
    assert twin.name == name
    seen = cluster.client.run_on_scheduler(tasks.loaded)
    assert seen == {"etcdsem": True, "grpc": False, "threads": False, "client": seen["client"]}
    assert sem.get_value() == 0
    sem.client.close()


def test_a_worker_is_killed(cluster: Cluster, name: str, tmp_path: Path) -> None:
    """SIGKILL for a worker that holds: its tasks are run elsewhere, its slots come back by their
    TTL, and there are never more than two by etcd's own history.
    """
    sem = etcdsem.Semaphore(2, name, lease_timeout=2)
    gate = tmp_path / "gate"
    futures = cluster.client.map(
        tasks.hold_until, range(12), sem=sem, gate=str(gate), pure=False, retries=3
    )
    eventually(lambda: len(sem.holders()) == 2 and len(sem.waiters()) == 4, 60)
    killed = sem.holders()[0]
    theirs = [holder for holder in sem.holders() if holder.pid == killed.pid]
    assert killed.pid is not None
    os.kill(killed.pid, signal.SIGKILL)
    began = time.monotonic()
    eventually(
        lambda: (
            len(holders := sem.holders()) == 2 and killed.pid not in {one.pid for one in holders}
        ),
        30,
    )
    assert time.monotonic() - began < 2 + 8
    gate.touch()
    results = cluster.client.gather(futures)
    assert len(results) == 12
    assert killed.pid not in {pid for pid, _, _ in results}
    assert {slot for _, slot, _ in results} == {0, 1}
    granted = {(slot, token) for _, slot, token in results}
    assert not granted & {(holder.slot, holder.fencing_token) for holder in theirs}
    eventually(lambda: sem.get_value() == 0)
    verdict = assert_clean(cluster.etcd, name)
    assert verdict.most_held == 2
    assert verdict.grants >= 12 + len(theirs)
    cluster.client.wait_for_workers(3, timeout=60)


# -- what the documentation says of each method


def test_signature() -> None:
    """What both take has the same name, place and default; Dask's plumbing has no meaning here."""
    theirs = inspect.signature(distributed.Semaphore).parameters
    ours = inspect.signature(etcdsem.Semaphore).parameters
    assert list(theirs)[:2] == list(ours)[:2] == ["max_leases", "name"]
    assert ours["max_leases"].default == theirs["max_leases"].default == 1
    assert ours["name"].default is theirs["name"].default is None
    assert ours["register"].default is True, "as in 2021.10.0; newer ones register at first use"
    assert {"scheduler_rpc", "loop"} <= set(theirs) - set(ours)
    for method in ("acquire", "release", "get_value", "register", "close"):
        wanted = set(inspect.signature(getattr(distributed.Semaphore, method)).parameters)
        ours = inspect.signature(getattr(etcdsem.Semaphore, method)).parameters
        found = {name for name, one in ours.items() if one.kind is not one.KEYWORD_ONLY}
        assert wanted - {"kwargs"} == found, method  # what we have beyond is given by name
    with pytest.raises(TypeError, match="scheduler_rpc"):
        etcdsem.Semaphore(1, "x", scheduler_rpc=None)  # type: ignore[call-arg]


@pytest.mark.parametrize("library", LIBRARIES)
def test_defaults(cluster: Cluster, library: str) -> None:
    """One lease, and a name that nobody else has."""
    first, second = tasks.made(library), tasks.made(library)
    assert first.max_leases == 1
    assert re.fullmatch("semaphore-[0-9a-f]{32}", first.name)
    assert first.name != second.name
    assert first.refresh_leases is True
    with first, second:
        assert first.get_value() == second.get_value() == 1
    first.close()
    second.close()


@pytest.mark.parametrize("library", LIBRARIES)
def test_timeouts(cluster: Cluster, name: str, library: str) -> None:
    """`acquire` gives False after a number of seconds, a string or a timedelta."""
    sem = tasks.made(library, 1, name)
    assert sem.acquire() is True
    for timeout in (0.1, "100ms", "0.1", timedelta(milliseconds=100), "0.1 seconds"):
        began = time.monotonic()
        assert sem.acquire(timeout=timeout) is False
        assert 0.09 < time.monotonic() - began < 10
    assert sem.get_value() == 1
    assert sem.release() is True
    assert sem.acquire(timeout="5 seconds") is True
    sem.release()
    sem.close()


@pytest.mark.parametrize("library", LIBRARIES)
def test_releasing_too_often(cluster: Cluster, name: str, library: str) -> None:
    """An error, whoever else holds a lease; nothing changes."""
    sem, other = tasks.made(library, 2, name), tasks.made(library, 2, name)
    other.acquire()
    with pytest.raises(RuntimeError, match="Released too often"):
        sem.release()
    assert sem.get_value() == 1
    sem.acquire()
    sem.release()
    with pytest.raises(RuntimeError, match="Released too often"):
        sem.release()
    assert other.get_value() == 1
    other.release()
    sem.close()


@pytest.mark.parametrize("library", LIBRARIES)
def test_several_leases_of_one_object(cluster: Cluster, name: str, library: str) -> None:
    """An object may hold several; `with` gives back its own, whoever acquires meanwhile."""
    sem = tasks.made(library, 3, name)
    assert [sem.acquire() for _ in range(3)] == [True] * 3
    assert sem.acquire(timeout=0.1) is False
    assert [sem.release() for _ in range(2)] == [True] * 2
    with sem:
        assert sem.get_value() == 2
    with pytest.raises(KeyError), sem:
        raise KeyError
    assert sem.get_value() == 1
    sem.release()
    assert sem.get_value() == 0
    sem.close()


@pytest.mark.parametrize("library", LIBRARIES)
def test_pickling(cluster: Cluster, name: str, library: str) -> None:
    """A pickle is the same semaphore, without the leases."""
    sem = tasks.made(library, 2, name)
    sem.acquire()
    twin = pickle.loads(pickle.dumps(sem))
    assert (twin.name, twin.max_leases) == (name, 2)
    with pytest.raises(RuntimeError, match="Released too often"):
        twin.release()
    assert twin.acquire(timeout=5)
    assert sem.acquire(timeout=0.1) is False
    assert sem.get_value() == twin.get_value() == 2
    twin.release()
    sem.release()
    sem.close()


@pytest.mark.parametrize("library", LIBRARIES)
def test_closing(
    cluster: Cluster, name: str, library: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Once closed: acquire raises, release only warns, and closing again does nothing."""
    sem, holder = tasks.made(library, 1, name), tasks.made(library, 1, name)
    assert sem.acquire()
    sem.release()
    assert holder.acquire()
    with caplog.at_level(logging.WARNING, "etcdsem"):
        sem.close()
    if library == "etcdsem":  # Dask warns in the scheduler's process
        assert "in use" in caplog.text
    with pytest.raises(RuntimeError, match=f"{name}.*not known"):
        sem.acquire(timeout=1)
    holder.release()
    with pytest.raises(RuntimeError, match="Released too often"):
        holder.release()
    sem.close()
    if library == "dask":  # differs: a new object registers it again with Dask, and is told here
        assert tasks.made(library, 1, name).acquire()
    else:
        with pytest.raises(etcdsem.SemaphoreClosed):
            etcdsem.Semaphore(1, name, register=False).acquire()
        assert etcdsem.Semaphore(1, name).acquire()
    tasks.made(library, 1, name).close()


@pytest.mark.parametrize("library", LIBRARIES)
def test_refresh(cluster: Cluster, name: str, library: str) -> None:
    """A lease outlives its timeout while it is refreshed; when it is not, another gets it."""
    import dask

    with dask.config.set({"distributed.scheduler.locks.lease-timeout": "2s"}):
        if library == "dask":
            sem, other = tasks.made(library, 1, name), tasks.made(library, 1, name)
        else:
            sem, other = (etcdsem.Semaphore(1, name, lease_timeout="2s") for _ in range(2))
        assert sem.acquire()
        assert other.acquire(timeout=4) is False
        sem.refresh_leases = False
        assert other.acquire(timeout=20) is True
        if library == "etcdsem":  # Dask tells the first holder nothing, and True at its release
            assert sem.release() is False
        assert other.get_value() == 1
        other.release()
        other.close()


def test_metrics(cluster: Cluster, name: str) -> None:
    """What Dask's scheduler tells Prometheus of a semaphore, a process tells here, by the same
    names.
    """
    from prometheus_client import CollectorRegistry

    from etcdsem import metrics

    theirs = cluster.client.run_on_scheduler(tasks.names_of_metrics)
    registry = CollectorRegistry()
    metrics.register(registry, namespace="dask")
    sem = etcdsem.Semaphore(2, name)
    with sem:
        ours = {
            sample.name: sample.value
            for family in registry.collect()
            for sample in family.samples
            if sample.labels.get("name") == name
        }
    assert set(theirs) - set(ours) == set()
    assert len(theirs) == 6
    assert ours["dask_semaphore_acquire_total"] == 1
    assert ours["dask_semaphore_active_leases"] == 1


def test_release_retry(cluster: Cluster, name: str) -> None:
    """Dask's test of that name: connections break while a lease is given back, and the release is
    tried again; with Dask only if `distributed.comm.retry.count` says so.
    """
    with Proxy(cluster.etcd.endpoint) as proxy, etcdsem.connect(proxy.endpoint) as client:
        sem = etcdsem.Semaphore(2, name, client=client)
        assert sem.acquire() is True
        proxy.failing = 3
        proxy.reset()
        assert sem.release() is True
        assert sem.get_value() == 0


# -- asyncio


@pytest.mark.parametrize("library", LIBRARIES)
def test_an_asynchronous_client(cluster: Cluster, name: str, library: str) -> None:
    """With `Client(asynchronous=True)`: await the semaphore, and each of its methods."""

    async def main() -> None:
        kind = distributed.Semaphore if library == "dask" else aio.Semaphore
        async with distributed.Client(cluster.scheduler, asynchronous=True):
            sem = await kind(max_leases=2, name=name)
            async with sem:
                assert await sem.get_value() == 1
                assert await sem.acquire(timeout="5s") is True
                assert await sem.acquire(timeout="100ms") is False
                assert await sem.release() is True
            assert await sem.get_value() == 0
            with pytest.raises(RuntimeError, match="Released too often"):
                await sem.release()
            await sem.close()
            if library == "etcdsem":
                await sem.client.close()

    asyncio.run(asyncio.wait_for(main(), 60))


def test_asynchronous_tasks(cluster: Cluster, name: str) -> None:
    """Tasks that are coroutines run in their workers' event loops, many at a time."""
    etcdsem.Semaphore(3, name)
    sem = aio.Semaphore(3, name)
    futures = cluster.client.map(tasks.occupy_loop, range(20), sem=sem, pure=False)
    results = cluster.client.gather(futures)
    assert len(results) == 20
    assert max(held for _, held in results) == 3
    assert assert_clean(cluster.etcd, name).most_held == 3


# -- the page for those who come from Dask


def test_the_page_runs(cluster: Cluster) -> None:
    """The snippets of docs/coming-from-dask.md run as they are written."""
    page = Path(__file__).parents[2] / "docs" / "coming-from-dask.md"
    snippets = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert len(snippets) >= 3
    scope: dict[str, Any] = {"client": cluster.client, "__name__": "__main__"}
    for snippet in snippets:
        exec(compile(snippet, str(page), "exec"), scope)
