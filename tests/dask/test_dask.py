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
from tests.helpers.history import assert_clean
from tests.helpers.slow import sample
from tests.helpers.waiting import eventually

distributed = pytest.importorskip("distributed", reason="needs Dask: pip install distributed")

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

LIBRARIES = sample(["etcdsem", "dask"])


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
    """What both take has the same name and default, and the place of Dask 2021.10.0."""
    theirs = inspect.signature(distributed.Semaphore).parameters
    for kind in (etcdsem.Semaphore, aio.Semaphore):
        takes = inspect.signature(kind).parameters.values()
        ordinary = {one.name: one.default for one in takes if one.kind is one.POSITIONAL_OR_KEYWORD}
        assert list(ordinary) == DASK_2021_10
        assert ordinary == {one.name: one.default for one in theirs.values()} | {"register": True}
    for method in ("acquire", "release", "get_value", "register", "close"):
        wanted = set(inspect.signature(getattr(distributed.Semaphore, method)).parameters)
        ours = inspect.signature(getattr(etcdsem.Semaphore, method)).parameters
        found = {name for name, one in ours.items() if one.kind is not one.KEYWORD_ONLY}
        assert wanted - {"kwargs"} == found, method  # what we have beyond is given by name


DASK_2021_10 = ["max_leases", "name", "register", "scheduler_rpc", "loop"]
"""What Dask's semaphore took then, in this order; newer ones have no `register`."""


def test_arguments_of_dask(cluster: Cluster, name: str) -> None:
    """`loop` has no effect; what would be ignored is a TypeError that names `client=`."""
    loop, rpc = cluster.client.loop, cluster.client.scheduler
    sem = etcdsem.Semaphore(2, name, True, None, loop)
    assert sem.get_value() == 0
    assert pickle.loads(pickle.dumps(sem)).max_leases == 2
    assert pickle.loads(pickle.dumps(aio.Semaphore(2, name, False, None, loop))).name == name
    never = etcdsem.Semaphore(2, f"{name}-2", False)
    with pytest.raises(etcdsem.SemaphoreClosed):
        never.acquire()
    for kind in (etcdsem.Semaphore, aio.Semaphore):
        with pytest.raises(TypeError, match=r"scheduler_rpc.*client="):
            kind(1, name, True, rpc)
        with pytest.raises(TypeError, match=r"scheduler_rpc.*client="):
            kind(scheduler_rpc=rpc)
        with pytest.raises(TypeError, match=r"register must be True or False.*client="):
            kind(1, name, rpc)  # where newer Dask takes it
    sem.close()


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
        sem, other = tasks.made(library, 1, name), tasks.made(library, 1, name)
        assert sem.acquire()
        assert other.acquire(timeout=4) is False
        sem.refresh_leases = False
        assert other.acquire(timeout=20) is True
        if library == "etcdsem":  # Dask tells the first holder nothing, and True at its release
            assert sem.release() is False
        assert other.get_value() == 1
        other.release()
        other.close()


LOCKS = "distributed.scheduler.locks"


@pytest.mark.parametrize("kind", [etcdsem.Semaphore, aio.Semaphore])
def test_the_lease_timeout_of_dask(
    name: str, kind: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where Dask is loaded, its setting comes after ours, and before our default."""
    import dask

    def timeout(**options: Any) -> int:
        return int(kind(1, name, register=False, **options).lease_timeout)

    assert timeout() == 30
    for value, read in (("45s", 45), (20, 20), ("5 minutes", 300), (timedelta(seconds=7), 7)):
        with dask.config.set({f"{LOCKS}.lease-timeout": value}):
            assert timeout() == read
            assert timeout(lease_timeout="8s") == 8
    with dask.config.set({f"{LOCKS}.lease-timeout": "9s"}):
        monkeypatch.setenv("ETCDSEM_LEASE_TIMEOUT", "10s")
        assert timeout() == 10
        monkeypatch.delenv("ETCDSEM_LEASE_TIMEOUT")
        twin = pickle.dumps(kind(1, name, register=False))
    assert pickle.loads(twin).lease_timeout == 9
    nonsense: tuple[object, ...] = ("1s", "inf", "soon", True, [])
    for wrong in nonsense:
        with dask.config.set({f"{LOCKS}.lease-timeout": wrong}):
            with pytest.raises(etcdsem.InvalidSetting, match=rf"{LOCKS}\.lease-timeout"):
                timeout()
            assert timeout(lease_timeout=8) == 8


def test_the_validation_interval_of_dask(
    cluster: Cluster, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How often a client reads again: Dask's default is ours, and says nothing new."""
    import dask

    def interval() -> tuple[float, float]:
        with etcdsem.connect(cluster.etcd.endpoint) as client:
            return client._driver.session.reread

    assert dask.config.get(f"{LOCKS}.lease-validation-interval") == "10s"
    assert interval() == (5, 15)
    with dask.config.set({f"{LOCKS}.lease-validation-interval": "500ms"}):
        assert interval() == (0.25, 0.75)
        monkeypatch.setenv("ETCDSEM_VALIDATION_INTERVAL", "2s")
        assert interval() == (1, 3)
        monkeypatch.delenv("ETCDSEM_VALIDATION_INTERVAL")
    for wrong in ("0", "-1s", "inf", "often", True):
        with (
            dask.config.set({f"{LOCKS}.lease-validation-interval": wrong}),
            pytest.raises(etcdsem.InvalidSetting, match=rf"{LOCKS}\.lease-validation-interval"),
        ):
            interval()


def test_workers_have_settings_of_their_own(cluster: Cluster, name: str) -> None:
    """What a task makes has its worker's timeout (2 s here); what travels has its maker's."""
    sem = etcdsem.Semaphore(1, name, lease_timeout=20)
    made = cluster.client.submit(tasks.timeout_of, None, f"{name}-2", pure=False)
    sent = cluster.client.submit(tasks.timeout_of, sem, name, pure=False)
    assert (made.result(), sent.result()) == (2, 20)


def test_dask_is_not_loaded_for_its_settings() -> None:
    """Without Dask in the process its variables have no say."""
    code = (
        "import sys, etcdsem\n"
        "sem = etcdsem.Semaphore(1, 'a', register=False)\n"
        "assert sem.lease_timeout == 30 and not {'dask', 'distributed'} & set(sys.modules)"
    )
    environment = {**os.environ, "DASK_DISTRIBUTED__SCHEDULER__LOCKS__LEASE_TIMEOUT": "9s"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)


# -- what the page says of differences


def test_purity(cluster: Cluster, name: str) -> None:
    """Dask runs a pure task once for all equal arguments, also while a lease is what it is for."""
    sem = etcdsem.Semaphore(2, name)
    client = cluster.client
    assert len(set(client.gather(client.map(tasks.token, [1, 1, 1], sem=sem)))) == 1
    assert len(set(client.gather(client.map(tasks.token, [1, 1, 1], sem=sem, pure=False)))) == 3
    sem.close()


def test_closing_ends_running_blocks(cluster: Cluster, name: str) -> None:
    """Those who hold are told at the end of the block; Dask tells them nothing."""
    sem = etcdsem.Semaphore(1, name)
    with pytest.raises(etcdsem.LeaseLost, match=name), sem:
        etcdsem.Semaphore(1, name).close()
    sem = distributed.Semaphore(1, name)
    with sem:
        distributed.Semaphore(1, name).close()


def test_a_name_with_a_space() -> None:
    """Refused before anything is sent."""
    with pytest.raises(etcdsem.InvalidName, match=r"my database.*A-Z a-z 0-9"):
        etcdsem.Semaphore(1, "my database")


def test_no_refresh_callback(cluster: Cluster, name: str) -> None:
    """`refresh_leases` is the switch in both; the timer behind it is Dask's own."""
    assert hasattr(distributed.Semaphore(1, name), "refresh_callback")
    assert not hasattr(etcdsem.Semaphore(1, name), "refresh_callback")


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


def test_a_plain_task_with_the_asyncio_semaphore(cluster: Cluster, name: str) -> None:
    """The call raises in the task, whatever the client is, and says what to use there."""
    etcdsem.Semaphore(1, name)
    sem = aio.Semaphore(1, name)
    futures = cluster.client.map(tasks.without_a_loop, range(2), sem=sem, pure=False)
    for future in futures:
        with pytest.raises(etcdsem.WrongEventLoop, match="from etcdsem import Semaphore"):
            future.result()

    async def main() -> None:
        async with distributed.Client(cluster.scheduler, asynchronous=True) as client:
            with pytest.raises(etcdsem.WrongEventLoop, match="plain functions in Dask tasks"):
                await client.submit(tasks.without_a_loop, 0, sem=sem, pure=False)
            blocking = etcdsem.Semaphore(1, name)
            times = await client.gather(client.map(tasks.occupy, range(6), sem=blocking))
            assert most_at_once(times) == 1

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_decorated_task_of_the_main_program(cluster: Cluster, name: str) -> None:
    """Its function travels by value, and the semaphore in it."""
    sem = etcdsem.Semaphore(1, name, client=etcdsem.connect(cluster.etcd.endpoint))
    scope: dict[str, Any] = {"sem": sem, "__name__": "__main__"}
    exec("import time\n@sem\ndef task(number):\n    return number, sem.get_value()", scope)
    futures = cluster.client.map(scope["task"], range(4), pure=False)
    assert cluster.client.gather(futures) == [(number, 1) for number in range(4)]
    assert assert_clean(cluster.etcd, name).most_held == 1
    sem.client.close()


# -- the page for those who come from Dask


def test_the_page_runs(cluster: Cluster) -> None:
    """The snippets of docs/coming-from-dask.md run as they are written."""
    page = Path(__file__).parents[2] / "docs" / "coming-from-dask.md"
    snippets = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert len(snippets) >= 3
    scope: dict[str, Any] = {"client": cluster.client, "__name__": "__main__"}
    for snippet in snippets:
        exec(compile(snippet, str(page), "exec"), scope)
