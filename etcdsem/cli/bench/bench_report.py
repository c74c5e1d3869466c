"""What `bench` makes of its results: findings in plain words. Plain functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from etcdsem.cli.bench.bench_runner import BenchResults, EndpointResult
from etcdsem.cli.doctor.checks import history, space
from etcdsem.cli.doctor.finding import Finding, Level, milliseconds
from etcdsem.cli.doctor.probes import ProbeResults

BUSY: Final = 0.75
"""A core, or a disk, that is in use for this share of the time is what limits."""
SLOW_FSYNC: Final = 0.010
SLOW_COMMIT: Final = 0.025
"""What etcd's documentation takes for too slow (it says so of 99 of 100; these are means)."""
CROWDED: Final = 1.0
"""Processes that want a core, for each core."""
SLOW: Final = 0.002
"""Seconds of a write that are worth asking where they go."""


def bench_findings(results: BenchResults) -> list[Finding]:
    """All findings, the most useful one first."""
    return [finding for check in _CHECKS for finding in check(results)]


def _capacity(results: BenchResults) -> Iterator[Finding]:
    over, cycles = results.hand_overs, results.cycles
    if over is None or not cycles or results.write is None:
        return
    free = max(one.each_second for one in cycles)
    each = 1 / cycles[0].each_second if cycles[0].each_second else 0.0
    yield Finding(
        "semaphore",
        "ok",
        f"a semaphore here changes hands some {over.each_second:,.0f} times a second, however "
        f"many wait; with room, this one process takes and gives back {free:,.0f} times a second, "
        f"and a job pays {milliseconds(each)} for both",
    )


def _crowded(results: BenchResults) -> Iterator[Finding]:
    if results.load is not None and results.load > CROWDED:
        yield Finding(
            "machine",
            "warning",
            f"this machine was busy before it began ({results.load:.1f} processes for each core): "
            "all figures are worse than they could be",
            "measure again when nothing else runs",
        )


def _one_at_a_time(results: BenchResults) -> Iterator[Finding]:
    """Where the time of a single write goes."""
    best = next((p for p in results.endpoints if p.member is results.connected), None)
    if best is None or best.answer is None or results.read is None or results.write is None:
        return
    way, read, write = best.answer.median, results.read.median, results.write.median
    parts = {
        "way": way,
        "members": max(0.0, read - way),
        "disk": max(0.0, write - read),
    }
    fsync = results.disk.fsync
    told = "" if fsync is None else f" (etcd: {milliseconds(fsync)} for each fsync)"
    what = (
        f"a write takes {milliseconds(write)}: {milliseconds(way)} to etcd and back, "
        f"{milliseconds(parts['members'])} more for members to agree, "
        f"{milliseconds(parts['disk'])} more to write it down{told}"
    )
    if write < SLOW:
        yield Finding("one", "ok", f"{what}; nothing stands out")
        return
    worst = max(parts, key=lambda part: parts[part])
    yield Finding("one", "info", f"{what}; {_WORST[worst][0]}", _WORST[worst][1])


_WORST: Final = {
    "way": ("most of it is the way there", "put the programs nearer to etcd, or etcd to them"),
    "members": (
        "most of it is the way between members",
        "put the members into one region; look at etcd_network_peer_round_trip_time_seconds",
    ),
    "disk": (
        "most of it is the disk",
        "give etcd a fast disk of its own; look at etcd_disk_wal_fsync_duration_seconds",
    ),
}


def _many_at_a_time(results: BenchResults) -> Iterator[Finding]:
    """What limits many clients."""
    if not results.pairs:
        return
    most = results.pairs[-1]
    threads = f"{most.threads} clients at a time"
    busy, cores = results.disk.busy, results.disk.cores
    if busy is not None and busy >= BUSY:
        yield Finding(
            "many",
            "info",
            f"{threads} are limited by etcd's disk: it spends {busy:.0%} of the time in fsync",
            "a faster disk; writes that come at the same time share an fsync already",
        )
    elif most.cores >= BUSY:
        yield Finding(
            "many",
            "info",
            f"{threads} are limited by this process: Python uses {most.cores:.0%} of a core; more "
            "processes will get more out of this etcd",
        )
    elif cores is not None and cores >= BUSY:
        yield Finding(
            "many",
            "info",
            f"{threads} are limited by etcd's CPU: it uses {cores:.1f} cores",
            "give the members more and faster cores",
        )
    else:
        yield Finding(
            "many",
            "ok",
            f"{threads} are limited by round trips: neither this process ({most.cores:.0%} of a "
            "core) nor, as far as it tells, etcd is busy; more at a time will do more",
        )


def _far_away(results: BenchResults) -> Iterator[Finding]:
    """Members that are much farther than the nearest, and writes that go by a follower."""
    answered = [endpoint for endpoint in results.endpoints if endpoint.answer is not None]
    for endpoint in results.endpoints:
        if endpoint.member.error:
            yield Finding(
                "far",
                "warning",
                f"{endpoint.member.endpoint} does not answer: {endpoint.member.error}",
                "etcdsem doctor",
            )
    if not answered:
        return
    nearest = min(map(_way, answered))
    for endpoint in answered:
        if _way(endpoint) > max(5 * nearest, nearest + 0.002):
            yield Finding(
                "far",
                "warning",
                f"{endpoint.member.endpoint} answers in {milliseconds(_way(endpoint))}, "
                f"the nearest in {milliseconds(nearest)}",
                "name the near ones first in ETCDSEM_ENDPOINTS: the first that answers is used; "
                "let one of them lead: etcdctl move-leader",
            )
    peers = results.disk.peers
    if peers is not None and peers > 0.01:
        yield Finding(
            "far",
            "info",
            f"members need {milliseconds(peers)} from one to another: each write waits for that",
            "put the members nearer to each other",
        )


def _way(endpoint: EndpointResult) -> float:
    return endpoint.answer.median if endpoint.answer is not None else 0.0


def _disk(results: BenchResults) -> Iterator[Finding]:
    disk = results.disk
    for found, slow, what in (
        (disk.fsync, SLOW_FSYNC, "an fsync of etcd's log"),
        (disk.commit, SLOW_COMMIT, "a commit of etcd's database"),
    ):
        if found is not None and found > slow:
            yield Finding(
                "disk",
                "warning",
                f"{what} takes {milliseconds(found)}; etcd wants it below {milliseconds(slow)}",
                "give etcd a fast disk (SSD, NVMe) that it shares with nobody",
            )
    if disk.cores is None:
        yield Finding(
            "disk",
            "info",
            "etcd's own metrics cannot be read from here, so its disk is judged from outside",
            "serve them to this machine: https://etcd.io/docs/latest/op-guide/monitoring",
        )
    elif disk.fsync is None:
        yield Finding(
            "disk",
            "warning",
            "etcd made no fsync: it runs with --unsafe-no-fsync, and may forget leases when the "
            "machine loses its power",
            "leave that option out where leases matter",
        )


def _storage(results: BenchResults) -> Iterator[Finding]:
    """A large database, and one that is never compacted."""
    probed = ProbeResults("", None, tls=False, user=None)
    probed.members = [endpoint.member for endpoint in results.endpoints]
    probed.head, probed.compacted = results.head, results.compacted
    for finding in (*space(probed), *history(probed)):
        if finding.level != "ok":
            level: Level = "warning" if finding.level == "problem" else finding.level
            yield finding._replace(level=level)


_CHECKS: Final[tuple[Callable[[BenchResults], Iterator[Finding]], ...]] = (
    _capacity,
    _crowded,
    _one_at_a_time,
    _many_at_a_time,
    _far_away,
    _disk,
    _storage,
)
