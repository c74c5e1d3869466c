"""What a process counts of itself, and how it is told to others; on a real etcd."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

import etcdsem
from etcdsem import Client, Semaphore, aio, metrics
from etcdsem.core.tally import OTHERS, Histogram, Tallies
from etcdsem.metrics import SemaphoreMetrics
from tests.test_semaphore import eventually

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer


def of(name: str) -> SemaphoreMetrics:
    """A semaphore's metrics now."""
    return next(one for one in metrics.snapshot().semaphores if one.name == name)


def test_a_cycle_is_counted(client: Client, name: str) -> None:
    """Grant and release are counted once each, and how long it was waited and held."""
    sem = Semaphore(3, name, client=client)
    sem.acquire()
    sem.acquire()
    now = of(name)
    assert (now.max_leases, now.active_leases, now.pending_leases) == (3, 2, 0)
    assert (now.acquire_total, now.release_total) == (2, 0)
    sem.release()
    sem.release()
    now = of(name)
    assert (now.active_leases, now.acquire_total, now.release_total) == (0, 2, 2)
    assert now.wait_seconds.count == now.held_seconds.count == 2
    assert 0 < now.average_pending_lease_time_s <= now.wait_seconds.sum
    assert now.wait_seconds.buckets[-1] == (float("inf"), 2)
    assert (now.losses_total, now.overbooked_leases, now.timeouts_total) == (0, 0, 0)


def test_waiting_and_giving_up_are_counted(client: Client, name: str) -> None:
    """Who waits is pending; who gave up is a timeout, and no grant."""
    sem = Semaphore(1, name, client=client)
    sem.acquire()
    assert not sem.acquire(timeout=0)
    assert not sem.acquire(timeout=0.05)
    thread = threading.Thread(target=sem.acquire)
    thread.start()
    eventually(lambda: of(name).pending_leases == 1)
    eventually(sem.waiters)
    sem.release()
    thread.join(20)
    sem.release()
    now = of(name)
    assert (now.timeouts_total, now.acquire_total, now.release_total) == (2, 2, 2)
    assert (now.pending_leases, now.active_leases) == (0, 0)


def test_an_interrupted_wait_is_not_pending(client: Client, name: str) -> None:
    """An acquire that ends with an error is pending no more, and no timeout."""
    sem = Semaphore(1, name, client=client)
    sem.acquire()
    failed: list[BaseException] = []

    def wait() -> None:
        try:
            sem.acquire()
        except etcdsem.SemaphoreClosed as error:
            failed.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    eventually(sem.waiters)
    sem.close()
    thread.join(20)
    assert failed
    assert (of(name).pending_leases, of(name).timeouts_total) == (0, 0)
    sem.release()


def test_a_loss_is_overbooking_until_the_program_lets_go(client: Client, name: str) -> None:
    """A lost lease counts as overbooked from the loss to the release, once as lost for ever."""
    sem = Semaphore(1, name, client=client)
    lease = sem.acquire_lease()
    assert lease is not None
    client.evict(name, slot=0)
    assert lease.lost.wait(20)
    now = of(name)
    assert (now.active_leases, now.overbooked_leases, now.losses_total) == (0, 1, 1)
    sem.release()
    now = of(name)
    assert (now.overbooked_leases, now.losses_total, now.release_total) == (0, 1, 0)
    assert now.held_seconds.count == 1


def test_a_loss_found_at_the_release_is_counted(client: Client, name: str) -> None:
    """Nobody had told the holder yet: counted as lost, not as released."""
    sem = Semaphore(1, name, client=client)
    sem.acquire()
    client.evict(name, slot=0)
    sem.release()
    now = of(name)
    assert (now.losses_total, now.release_total, now.overbooked_leases) == (1, 0, 0)


def test_threads_lose_no_count(client: Client, name: str) -> None:
    """Eight threads, and a reader in between: every cycle is counted."""
    sem = Semaphore(8, name, client=client)
    done = threading.Event()
    read = 0

    def work() -> None:
        for _ in range(40):
            with sem:
                pass

    def look() -> None:
        nonlocal read
        while not done.is_set():
            one = of(name)
            assert one.acquire_total >= one.release_total + one.active_leases - 8
            read += 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    reader = threading.Thread(target=look)
    for thread in [*threads, reader]:
        thread.start()
    for thread in threads:
        thread.join(60)
    done.set()
    reader.join(20)
    assert read > 1
    now = of(name)
    assert now.acquire_total == now.release_total == now.wait_seconds.count == 320


def test_a_closed_client_leaves_its_counts(etcd: EtcdServer, name: str) -> None:
    """What was counted stays, also once the client is collected; what says "now" goes."""
    for _ in range(2):
        with etcdsem.connect(etcd.endpoint) as client, Semaphore(2, name, client=client):
            pass
        del client
        gc.collect()
    with etcdsem.connect(etcd.endpoint) as client:
        sem = Semaphore(2, name, client=client)
        sem.acquire()
        now = of(name)
        assert (now.acquire_total, now.release_total, now.active_leases) == (3, 2, 1)
        assert now.max_leases == 2


def test_transactions_are_counted(client: Client, name: str) -> None:
    """By outcome, with the time they took."""
    before = metrics.snapshot().etcd
    with Semaphore(1, name, client=client):
        pass
    after = metrics.snapshot().etcd
    assert after.requests_total["done"] >= before.requests_total["done"] + 3
    assert after.request_seconds.count >= before.request_seconds.count + 3


@pytest.mark.parametrize("pathological", [False, True])
def test_names_that_are_used_no_more_are_bounded(*, pathological: bool) -> None:
    """A program that makes up names as it goes lists a bounded number, and loses no count."""
    one, total = Tallies(), Tallies()
    for number in range(50):
        tally = one.of(("/etcdsem", f"made-up-{number}"))
        tally.granted(0.01)
        tally.released += 1
        if pathological:
            one.forget(("/etcdsem", f"made-up-{number}"))
    total.add(one, past=False, most=10)
    assert len(total.semaphores) <= 11
    assert sum(tally.acquired for tally in total.semaphores.values()) == 50
    assert total.of(OTHERS).acquired == (50 if pathological else 40)


def test_a_semaphore_in_use_is_not_forgotten(client: Client, name: str) -> None:
    """With more than 1000 names the idle ones go, and leave their counts; one with an acquire
    under way stays, as its grant will belong to it.
    """
    with Semaphore(1, name, client=client):
        pass
    session = client.engine.session
    with client.engine.lock:
        in_use = session.station("/etcdsem", "in-use")
        in_use.tally.pending += 1
        for number in range(1100):
            session.station("/etcdsem", f"{name}-{number}")
        session._tidy(session.env.now() + 60)
        assert session.station("/etcdsem", "in-use") is in_use
        assert len(session.stations) <= 1001
        in_use.tally.pending -= 1
    assert (
        session.tallies.of(OTHERS).acquired + session.tallies.of(("/etcdsem", name)).acquired == 1
    )


def test_histogram_bounds_belong_to_the_bucket_below() -> None:
    """As in Prometheus, a bucket holds what is at most its bound."""
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 3.0):
        histogram.observe(value)
    assert histogram.counts == [2, 2, 1]
    assert histogram.total == 8.0


def test_prometheus_serves_the_names_of_dask(client: Client, name: str) -> None:
    """All of Dask's names are there, with their types, under any namespace."""
    registry = CollectorRegistry()
    metrics.register(registry, namespace="dask")
    with Semaphore(4, name, client=client):
        text = generate_latest(registry).decode()
    types = {
        sample.name: family.type
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.labels.get("name") == name
    }
    for field, kind in (
        ("max_leases", "gauge"),
        ("active_leases", "gauge"),
        ("pending_leases", "gauge"),
        ("acquire_total", "counter"),
        ("release_total", "counter"),
        ("average_pending_lease_time_s", "gauge"),
    ):
        assert types[f"dask_semaphore_{field}"] == kind
    assert registry.get_sample_value(
        "dask_semaphore_max_leases", {"prefix": "/etcdsem", "name": name}
    )
    with pytest.raises(ValueError, match="Duplicated"):
        metrics.register(registry, namespace="dask")


def test_openmetrics_is_served_too(client: Client, name: str) -> None:
    """The format that Prometheus asks for first; its parser is strict."""
    registry = CollectorRegistry()
    metrics.register(registry)
    with Semaphore(4, name, client=client):
        pass
    encode, _ = choose_encoder("application/openmetrics-text; version=1.0.0")
    text = encode(registry).decode()
    parse: Any = openmetrics.text_string_to_metric_families  # it has no types
    families = {one.name: one for one in parse(text)}
    assert families["semaphore_acquire"].type == "counter"
    assert families["semaphore_wait_seconds"].type == "histogram"


def test_the_text_file_says_what_prometheus_would(
    client: Client, name: str, tmp_path: Path
) -> None:
    """The file parses, has the same samples, is readable by all, and nothing else is left there."""
    registry = CollectorRegistry()
    metrics.register(registry)
    with Semaphore(4, name, client=client):
        pass
    path = tmp_path / "job.prom"
    path.write_text("old")
    metrics.write_textfile(path)
    served = _samples(generate_latest(registry).decode())
    assert _samples(path.read_text()) == served
    assert served["semaphore_acquire_total", f"name={name},prefix=/etcdsem"] == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(tmp_path) == ["job.prom"]


def _samples(text: str) -> dict[tuple[str, str], float]:
    return {
        (one.name, ",".join(f"{k}={v}" for k, v in sorted(one.labels.items()))): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


def test_the_text_file_escapes_what_labels_may_hold() -> None:
    """Quotes, backslashes and line ends in a label come out as they went in."""
    strange = 'a "quoted"\\ line\nand another'
    text = metrics.textfile([metrics.Family("m", "gauge", "Help\n\\me.", [({"x": strange}, 1.5)])])
    (family,) = text_string_to_metric_families(text)
    assert family.samples[0].labels == {"x": strange}
    assert family.documentation == "Help\n\\me."


def test_a_text_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    """The error comes out; no half file is left."""
    with pytest.raises(FileNotFoundError):
        metrics.write_textfile(tmp_path / "none" / "job.prom")
    (tmp_path / "dir.prom").mkdir()
    with pytest.raises(OSError, match="directory"):
        metrics.write_textfile(tmp_path / "dir.prom")
    assert os.listdir(tmp_path) == ["dir.prom"]


def test_plain_data_is_json(client: Client, name: str) -> None:
    """A snapshot goes through json as it is."""
    with Semaphore(1, name, client=client):
        pass
    assert name in json.dumps(dataclasses.asdict(metrics.snapshot()))


def test_without_prometheus_client_the_message_says_what_to_install() -> None:
    """The core install has none; only register() needs it."""
    script = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "from etcdsem import metrics\n"
        "metrics.snapshot(); metrics.textfile(metrics.families(metrics.snapshot()))\n"
        "try: metrics.register()\n"
        "except ModuleNotFoundError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert "pip install 'etcdsem[metrics]'" in done.stdout


def test_a_forked_child_starts_at_zero(client: Client, name: str) -> None:
    """The child counts its own, and nothing of its parent's."""
    with Semaphore(2, name, client=client):
        pass
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(
                write, json.dumps([one.name for one in metrics.snapshot().semaphores]).encode()
            )
        finally:
            os._exit(0)
    os.close(write)
    with open(read) as file:
        assert json.loads(file.read()) == []
    os.waitpid(pid, 0)


def test_asyncio_is_counted_too(etcd: EtcdServer, name: str) -> None:
    """The same counts, from the same core, also for a loss."""

    async def work() -> None:
        async with aio.connect(etcd.endpoint) as client:
            sem = await aio.Semaphore(2, name, client=client)
            async with sem:
                assert of(name).active_leases == 1
            lease = await sem.acquire_lease()
            assert lease is not None
            await client.evict(name, slot=lease.slot)
            await asyncio.wait_for(lease.lost.wait(), 20)
            assert of(name).overbooked_leases == 1
            await lease.release()

    asyncio.run(work())
    now = of(name)
    assert (now.acquire_total, now.release_total, now.losses_total) == (2, 1, 1)
    assert (now.active_leases, now.overbooked_leases) == (0, 0)
