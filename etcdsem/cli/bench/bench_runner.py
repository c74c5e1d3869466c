"""The measurements of `bench`: they put load on etcd and remove their keys; judging is elsewhere.

1. All keys lie below <prefix>/<name>/, where no semaphore may exist. Our own keys are attached to a
   lease of a minute; the semaphore is closed at the end, even after an error or a signal.
2. Each phase has a time limit. Setting `over` ends them all at once.
3. etcd's own metrics are read before and after, from an endpoint that serves them.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from etcdsem.cli.doctor.probes import Member, compacted_revision, member_of, read_locally
from etcdsem.cli.endpoint import TIMEOUT, CallFailed, EndpointConnection
from etcdsem.errors import EtcdSemError

if TYPE_CHECKING:
    from etcdsem import Client

_LEASE: Final = 60
_MOST: Final = 500
"""Maximum number of samples of a latency."""
_GRANTS: Final = 30
"""Maximum number of leases to grant, since each remains in etcd for some time."""
_VALUE: Final = b"x" * 150  # as long as a holder's record


class Latency(NamedTuple):
    """A latency in seconds: the median, and the 99th percentile."""

    median: float
    high: float
    samples: int


@dataclass
class EndpointResult:
    """An endpoint, its member, and the round trip to it."""

    member: Member
    answer: Latency | None = None


class ServerMetrics(NamedTuple):
    """etcd's own metrics during the load; None where it does not report them."""

    fsync: float | None = None
    """Mean seconds of an fsync of its log."""
    busy: float | None = None
    """Share of the time that was spent in fsync."""
    commit: float | None = None
    """Mean seconds of a commit of its database."""
    peers: float | None = None
    """Mean seconds of a round trip between members."""
    cores: float | None = None
    """Cores that etcd used."""


class Throughput(NamedTuple):
    """Operations per second by a number of threads, and the cores that this process used."""

    each_second: float
    threads: int
    cores: float


@dataclass
class BenchResults:
    """The results of all measurements. Times are in seconds; None means not measured."""

    seconds: float
    clients: int
    endpoints: list[EndpointResult] = field(default_factory=list)
    connected: Member | None = None
    read: Latency | None = None
    write: Latency | None = None
    grant: Latency | None = None
    event: Latency | None = None
    pairs: list[Throughput] = field(default_factory=list)
    """Two consecutive transactions, which any lock on etcd needs."""
    cycles: list[Throughput] = field(default_factory=list)
    """Acquire and release of a semaphore that has free slots."""
    hand_overs: Throughput | None = None
    """Acquire and release with limit 1, where all have to wait."""
    disk: ServerMetrics = field(default_factory=ServerMetrics)
    load: float | None = None
    """Runnable processes per core of this machine before the measurement."""
    head: int = 0
    compacted: int | None = None


class BenchRunner:
    """One run of all measurements. `measure()` blocks; another thread may set `over` to end it."""

    def __init__(
        self, client: Client, rival: Client, name: str, seconds: float, clients: int
    ) -> None:
        self._client = client
        self._rival = rival
        self.name = name
        self.over = threading.Event()
        self.phase = "connecting"
        self.results = BenchResults(seconds, clients)
        self._links: list[EndpointConnection] = []
        self._base = f"{client.prefix}/{name}/bench/".encode()

    def measure(self) -> None:
        """Run all phases into `results`, and clean up in any case.

        Raises:
            CallFailed: a call failed; `phase` says where.
            EtcdSemError: no endpoint can be reached, or the semaphore failed.
        """
        settings = self._client.settings
        self.results.load = _machine_load()
        lease = secrets.randbits(62) + 1
        best: EndpointConnection | None = None
        try:
            for endpoint in settings.endpoints:
                link = EndpointConnection(settings, endpoint)
                self._links.append(link)
                member = member_of(link, endpoint)
                self.results.endpoints.append(EndpointResult(member))
                if not member.error and not member.learner and best is None:
                    best, self.results.connected = link, member
            if best is None:
                self._client.limit(self.name)  # raises, and says why
                raise AssertionError("etcd answers now, but did not a moment ago")
            best.grant(lease, _LEASE)
            self._latencies(best, lease)
            before = self._metrics()
            began = time.monotonic()
            self._load(best, lease)
            self.results.disk = _metrics_between(before, self._metrics(), time.monotonic() - began)
            self._history(best)
        finally:
            self.phase = "cleaning up"
            if best is not None:
                self._clean(best, lease)
            for link in self._links:
                link.close()

    # -- latencies: one at a time

    def _latencies(self, best: EndpointConnection, lease: int) -> None:
        share = 0.3 * self.results.seconds
        key = self._base + b"0"
        self.phase = "round trips"
        for link, endpoint in zip(self._links, self.results.endpoints, strict=True):
            if not endpoint.member.error:
                secret = endpoint.member.secret
                call = partial(read_locally, link, key) if secret else link.status
                with suppress(CallFailed):  # it has just gone away; measure the others
                    endpoint.answer = self._typical(call, share / 5 / len(self._links))
        self.phase = "reads"
        self.results.read = self._typical(lambda: best.read(key), share / 5)
        self.phase = "writes"

        def write() -> None:
            best.put(key, _VALUE, lease)

        self.results.write = self._typical(write, share / 5)
        self.phase = "leases"
        leases: list[int] = []

        def grant() -> None:
            leases.append(secrets.randbits(62) + 1)
            best.grant(leases[-1], _LEASE)

        try:
            self.results.grant = self._typical(grant, share / 5, _GRANTS)
        finally:
            for one in leases:
                with suppress(CallFailed):
                    best.revoke(one)
        self.phase = "watch events"
        self._watch_latency(best, key, write, share / 5)

    def _watch_latency(
        self, best: EndpointConnection, key: bytes, write: Callable[[], None], seconds: float
    ) -> None:
        """Measure the time from a put to its watch event."""
        with best.watch(key) as heard:

            def put() -> None:
                heard.clear()
                write()
                if not heard.wait(TIMEOUT):
                    raise EtcdSemError(f"no watch event arrived within {TIMEOUT:.0f} s")

            self.results.event = self._typical(put, seconds)

    def _typical(self, action: Callable[[], Any], seconds: float, most: int = _MOST) -> Latency:
        """Measure how long an action takes, after one run that is not counted."""
        action()
        times: list[float] = []
        until = time.perf_counter() + seconds
        while len(times) < 3 or (len(times) < most and time.perf_counter() < until):
            if self.over.is_set():
                break
            began = time.perf_counter()
            action()
            times.append(time.perf_counter() - began)
        if len(times) < 2:
            times = [*times, *times] or [0.0, 0.0]
        return Latency(median(times), quantiles(times, n=100)[-1], len(times))

    # -- load: many at a time

    def _load(self, best: EndpointConnection, lease: int) -> None:
        from etcdsem.sync import Semaphore

        share, clients = self.results.seconds, self.results.clients
        for threads in dict.fromkeys((1, clients)):
            self.phase = f"two transactions, {threads} at a time"
            work = [self._pair(best, lease, number) for number in range(threads)]
            self.results.pairs.append(self._rate(work, 0.12 * share))
        sem = Semaphore(2 * clients, self.name, client=self._client)
        for threads in dict.fromkeys((1, clients)):
            self.phase = f"acquire and release, {threads} at a time"
            self.results.cycles.append(self._rate([_cycle(sem)] * threads, 0.14 * share))
        sem.resize(1)
        rival = Semaphore(1, self.name, client=self._rival)
        self.phase = "hand-overs"
        contenders = [_cycle((sem, rival)[number % 2]) for number in range(max(2, clients))]
        self.results.hand_overs = self._rate(contenders, 0.18 * share)

    def _pair(self, best: EndpointConnection, lease: int, number: int) -> Callable[[], object]:
        key = self._base + str(number + 1).encode()

        def pair() -> None:
            best.create(key, _VALUE, lease)
            best.delete(key)

        return pair

    def _rate(self, work: Sequence[Callable[[], object]], seconds: float) -> Throughput:
        """Measure how often all threads together do their work in a second."""
        counts = [0] * len(work)
        failures: list[BaseException] = []
        stop = threading.Event()

        def run(number: int) -> None:
            try:
                while not stop.is_set() and not self.over.is_set():
                    work[number]()
                    counts[number] += 1
            except BaseException as failure:
                failures.append(failure)
                stop.set()

        threads = [threading.Thread(target=run, args=(number,)) for number in range(len(work))]
        for one in threads:
            one.start()
        stop.wait(min(0.3, seconds / 4))  # until all are under way
        before, began, cpu = sum(counts), time.monotonic(), time.process_time()
        until = began + seconds
        while not self.over.is_set() and not stop.wait(min(0.05, max(0.0, until - began))):
            if time.monotonic() >= until:
                break
        done, took = sum(counts) - before, max(1e-9, time.monotonic() - began)
        cpu = time.process_time() - cpu
        stop.set()
        for one in threads:
            one.join()
        if failures and not self.over.is_set():
            raise failures[0]
        return Throughput(done / took, len(work), cpu / took)

    # -- etcd's own metrics

    def _metrics(self) -> dict[str, float]:
        """Return the metrics of the leader, else of any member; empty if none serves them."""
        members = [endpoint.member for endpoint in self.results.endpoints]
        for place in sorted(range(len(members)), key=lambda place: not members[place].leads):
            text = None if members[place].error else self._links[place].http_get("/metrics")
            if text and "etcd_disk_wal_fsync" in text:
                return {"which": float(place), **_sums(text)}
        return {}

    def _history(self, best: EndpointConnection) -> None:
        with suppress(CallFailed):
            key = self._base + b"0"
            self.results.head = best.read(key, count_only=True)
            self.results.compacted = compacted_revision(best, key, self.results.head)

    def _clean(self, best: EndpointConnection, lease: int) -> None:
        """Close the semaphore and revoke the lease of our keys, which else expires by itself."""
        with suppress(EtcdSemError):
            self._client.close_semaphore(self.name, force=True)
        with suppress(CallFailed):
            best.revoke(lease)


def _machine_load() -> float | None:
    """Return the runnable processes per core over the last minute."""
    try:
        return os.getloadavg()[0] / (os.cpu_count() or 1)
    except OSError:
        return None


def _cycle(sem: Any) -> Callable[[], object]:
    def cycle() -> None:
        if sem.acquire(timeout=TIMEOUT):
            sem.release()

    return cycle


_HISTOGRAMS: Final = {
    "fsync": "etcd_disk_wal_fsync_duration_seconds",
    "commit": "etcd_disk_backend_commit_duration_seconds",
    "peers": "etcd_network_peer_round_trip_time_seconds",
}


def _sums(text: str) -> dict[str, float]:
    """Return the metrics that are used here, summed over their labels."""
    wanted = {f"{name}_{part}" for name in _HISTOGRAMS.values() for part in ("sum", "count")}
    wanted.add("process_cpu_seconds_total")
    found: dict[str, float] = {}
    for line in text.splitlines():
        name = line.split("{", 1)[0].split(" ", 1)[0]
        if name in wanted:
            with suppress(ValueError):
                found[name] = found.get(name, 0.0) + float(line.rsplit(" ", 1)[1])
    return found


def _metrics_between(
    before: dict[str, float], after: dict[str, float], seconds: float
) -> ServerMetrics:
    """Return the change between two readings of the metrics of one member."""
    if not before or before.get("which") != after.get("which"):
        return ServerMetrics()

    def risen(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    def mean(name: str) -> float | None:
        count = risen(f"{name}_count")
        return risen(f"{name}_sum") / count if count > 0 else None

    return ServerMetrics(
        fsync=mean(_HISTOGRAMS["fsync"]),
        busy=risen(f"{_HISTOGRAMS['fsync']}_sum") / seconds,
        commit=mean(_HISTOGRAMS["commit"]),
        peers=mean(_HISTOGRAMS["peers"]),
        cores=risen("process_cpu_seconds_total") / seconds,
    )
