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
from etcdsem import Client, RateLimit, Semaphore, aio, metrics, process_stats
from etcdsem.core.stats import OTHER_RATES, OTHERS, Buckets, ClientStats
from etcdsem.metrics import RateLimitMetrics, SemaphoreMetrics
from etcdsem.model import Rate
from tests.helpers.waiting import eventually

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer


@pytest.fixture(autouse=True)
def counted_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a thousand semaphores of one process, further ones are not listed by name."""
    monkeypatch.setattr(process_stats, "_counted", process_stats._Counted())


def of(name: str) -> SemaphoreMetrics:
    """A semaphore's metrics now."""
    return next(one for one in metrics.snapshot().semaphores if one.name == name)


def rate_of(name: str) -> RateLimitMetrics:
    """A rate limit's metrics now; it has none of a semaphore."""
    seen = metrics.snapshot()
    assert name not in {one.name for one in seen.semaphores}
    return next(one for one in seen.rate_limits if one.name == name)


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


def test_a_lease_of_several_slots_is_one_lease(client: Client, name: str) -> None:
    """Its slots are told apart from it, also when it is lost."""
    sem = Semaphore(5, name, client=client)
    three = sem.acquire_lease(weight=3)
    assert three is not None
    sem.acquire()
    now = of(name)
    assert (now.active_leases, now.active_slots, now.acquire_total) == (2, 4, 2)
    client.evict(name, slot=three.slots[1])
    assert not three.release()
    now = of(name)
    assert (now.active_leases, now.active_slots, now.losses_total) == (1, 1, 1)
    sem.release()
    now = of(name)
    assert (now.active_slots, now.release_total, now.held_seconds.count) == (0, 1, 2)


def test_paused_is_known_where_it_is_met(etcd: EtcdServer, client: Client, name: str) -> None:
    """By a try, and by who waits; nothing is asked of etcd for it."""
    sem = Semaphore(1, name, client=client)
    assert of(name).paused is False
    with etcdsem.connect(etcd.endpoint) as operator:
        operator.pause(name)
        assert not sem.acquire(timeout=0)
        assert (of(name).paused, of(name).max_leases) == (True, 1)
        thread = threading.Thread(target=sem.acquire)
        thread.start()
        eventually(sem.waiters)
        operator.resume(name)
        thread.join(20)
        assert of(name).paused is False
        operator.close_semaphore(name, force=True)
    with pytest.raises(etcdsem.SemaphoreClosed):
        sem.acquire(timeout=0)
    assert of(name).paused is None
    sem.release()


# ---------------------------------------------------------------- several at once


def one_call(names: list[str]) -> list[tuple[int, ...]]:
    """What was counted at each: calls under way, grants, releases, give-ups, waits, holds."""
    return [
        (
            *(now.pending_leases, now.acquire_total, now.release_total, now.timeouts_total),
            *(now.wait_seconds.count, now.held_seconds.count),
        )
        for now in map(of, names)
    ]


def test_several_at_once_are_counted_once_each(client: Client, name: str) -> None:
    """Where all are free, and where one has to be waited for."""
    names = [f"{name}-{letter}" for letter in "ab"]
    a, b = (Semaphore(1, one, client=client) for one in names)
    for lease in etcdsem.acquire_all(a, b) or ():
        lease.release()
    assert one_call(names) == [(0, 1, 1, 0, 1, 1)] * 2
    holder = b.acquire_lease()
    assert holder is not None
    taken: list[object] = []
    thread = threading.Thread(target=lambda: taken.append(etcdsem.acquire_all(a, b)))
    thread.start()
    eventually(b.waiters)
    assert [one[0] for one in one_call(names)] == [1, 1]
    holder.release()
    thread.join(20)
    assert taken
    waited = [of(one).wait_seconds.sum for one in names]
    assert one_call(names) == [(0, 2, 1, 0, 2, 1), (0, 3, 2, 0, 3, 2)]
    assert waited[0] == pytest.approx(waited[1], abs=5), "each has waited for both"


def test_several_that_give_up_are_counted_once_each(client: Client, name: str) -> None:
    """At each of them, though only one was full; a try as well."""
    names = [f"{name}-{letter}" for letter in "ab"]
    a, b = (Semaphore(1, one, client=client) for one in names)
    b.acquire()
    before = one_call(names)
    assert before == [(0, 0, 0, 0, 0, 0), (0, 1, 0, 0, 1, 0)]
    assert etcdsem.acquire_all(a, b, timeout=0) is None
    assert etcdsem.acquire_all(a, b, timeout=0.3) is None
    assert one_call(names) == [(0, 0, 0, 2, 0, 0), (0, 1, 0, 2, 1, 0)]


def test_what_is_had_on_the_way_is_not_counted(client: Client, name: str) -> None:
    """One that is granted a slot in line and passes it on, as another is full by then."""
    names = [f"{name}-{letter}" for letter in "ab"]
    a, b = (Semaphore(1, one, client=client) for one in names)
    first = a.acquire_lease()
    assert first is not None
    got: list[object] = []
    thread = threading.Thread(target=lambda: got.append(etcdsem.acquire_all(a, b, timeout=60)))
    thread.start()
    eventually(a.waiters)
    second = b.acquire_lease()
    assert second is not None
    first.release()  # it gets a, finds b full, and stands in b's line
    eventually(b.waiters)
    assert a.acquire(timeout=20), "a was passed on"
    a.release()
    second.release()
    thread.join(30)
    assert got
    # Of each: the one lease that this test had (of a two), and the one of the set.
    assert one_call(names) == [(0, 3, 2, 0, 3, 2), (0, 2, 1, 0, 2, 1)]


# ---------------------------------------------------------------- rate limits


def test_starts_are_counted(client: Client, name: str) -> None:
    """As starts: limit, period, used, waits, give-ups; and not as leases."""
    limit = RateLimit(name, 2, "1h", client=client)
    assert limit.acquire()
    assert limit.acquire()
    now = rate_of(name)
    assert (now.max_starts, now.period_seconds, now.paused) == (2, 3600.0, False)
    assert (now.used_starts, now.starts_total, now.pending_starts) == (2, 2, 0)
    assert now.wait_seconds.count == 2
    assert not limit.try_acquire()
    assert limit.acquire(0.2) is None
    thread = threading.Thread(target=limit.acquire)
    thread.start()
    eventually(lambda: rate_of(name).pending_starts == 1)
    eventually(lambda: limit.status(ttl=False).waiters)
    limit.resize(3, "1h")
    thread.join(20)
    now = rate_of(name)
    assert (now.timeouts_total, now.starts_total, now.pending_starts) == (2, 3, 0)
    assert (now.max_starts, now.used_starts) == (3, 3)
    client.pause(name)
    assert not limit.try_acquire()
    assert rate_of(name).paused is True
    assert rate_of(name).losses_total == 0


def test_a_start_that_was_evicted_is_told(client: Client, name: str) -> None:
    """Its slot is free before its time."""
    limit = RateLimit(name, 1, "1h", client=client)
    assert limit.acquire()
    grants = client._driver.session.semaphore("/etcdsem", name).grants
    (grant,) = grants
    client.evict(name, slot=0)
    with client._driver.lock:
        grant.taken("deleted")  # a start has no watch of its own: when its lease ends, or as here
    now = rate_of(name)
    assert (now.losses_total, now.used_starts, now.starts_total) == (1, 0, 1)


def test_starts_of_blocks(client: Client, name: str) -> None:
    """Each start is counted, a block counts as used whole; what is left of it is forfeited."""
    limit = RateLimit(name, 8, "1s", block=4, client=client)
    for _ in range(3):
        assert limit.acquire(20)
    now = rate_of(name)
    assert now.starts_total == now.wait_seconds.count == 3
    assert now.used_starts in (4, 8)  # 8: the first block was closed meanwhile
    eventually(lambda: rate_of(name).used_starts == 0)
    now = rate_of(name)
    assert now.forfeited_total in (1, 5, 9)
    assert now.starts_total + now.forfeited_total in (4, 8, 12)


def test_rates_that_are_used_no_more_are_counted_apart() -> None:
    """Starts are not added to leases."""
    one, total = ClientStats(), ClientStats()
    for number in range(20):
        stats = one.of(("/etcdsem", f"made-up-{number}"))
        stats.rate = Rate(5, 60.0, 1) if number % 2 else None
        stats.granted(0.01)
    one.forget(("/etcdsem", "made-up-1"))
    one.forget(("/etcdsem", "made-up-2"))
    total.add(one, past=False, most=10)
    assert total.of(OTHERS).acquired + total.of(OTHER_RATES).acquired >= 10
    by_kind = [0, 0]
    for stats in total.semaphores.values():
        by_kind[stats.rate is None] += stats.acquired
    assert by_kind == [10, 10]
    assert total.of(OTHER_RATES).rate is not None
    assert total.of(OTHERS).rate is None


# ---------------------------------------------------------------- the process


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
    one, total = ClientStats(), ClientStats()
    for number in range(50):
        stats = one.of(("/etcdsem", f"made-up-{number}"))
        stats.granted(0.01)
        stats.released += 1
        if pathological:
            one.forget(("/etcdsem", f"made-up-{number}"))
    total.add(one, past=False, most=10)
    assert len(total.semaphores) <= 11
    assert sum(stats.acquired for stats in total.semaphores.values()) == 50
    assert total.of(OTHERS).acquired == (50 if pathological else 40)


def test_a_semaphore_in_use_is_not_forgotten(client: Client, name: str) -> None:
    """With more than 1000 names the idle ones go, and leave their counts; one with an acquire
    under way stays, as its grant will belong to it.
    """
    with Semaphore(1, name, client=client):
        pass
    session = client._driver.session
    with client._driver.lock:
        in_use = session.semaphore("/etcdsem", "in-use")
        in_use.stats.pending += 1
        for number in range(1100):
            session.semaphore("/etcdsem", f"{name}-{number}")
        session._tidy(session.env.now() + 60)
        assert session.semaphore("/etcdsem", "in-use") is in_use
        assert len(session.semaphores) <= 1001
        in_use.stats.pending -= 1
    assert session.stats.of(OTHERS).acquired + session.stats.of(("/etcdsem", name)).acquired == 1


def test_histogram_bounds_belong_to_the_bucket_below() -> None:
    """As in Prometheus, a bucket holds what is at most its bound."""
    histogram = Buckets((1.0, 2.0))
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
