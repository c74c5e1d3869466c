"""The checks of `bench` on what was measured. Pure functions.

To add a check, write a function that yields verdicts, and add a row to `CHECKS`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from etcdsem.cli.bench.bench_runner import BenchResults, EndpointResult
from etcdsem.cli.doctor.checks import history, space
from etcdsem.cli.doctor.finding import Check, Finding, Verdict, milliseconds, run_table
from etcdsem.cli.doctor.probes import ProbeResults

BUSY: Final = 0.75
"""A core or a disk that is busy for this share of the time is the bottleneck."""
SLOW_FSYNC: Final = 0.010
SLOW_COMMIT: Final = 0.025
"""The limits in etcd's documentation (which apply to the 99th percentile; these are means)."""
CROWDED: Final = 1.0
"""Runnable processes per core."""
SLOW: Final = 0.002
"""Seconds of a write from which it is worth asking where they go."""
FAR: Final = 0.01
"""Seconds between members from which they count as far apart."""


def bench_findings(results: BenchResults) -> list[Finding]:
    """Return all findings, the most useful one first."""
    return [*run_table(CHECKS, results), *_storage(results)]


def _capacity(results: BenchResults) -> Iterator[Verdict]:
    over, cycles = results.hand_overs, results.cycles
    if over is None:
        return
    free = max(one.each_second for one in cycles)
    each = 1 / cycles[0].each_second if cycles[0].each_second else 0.0
    yield Verdict(
        "ok",
        f"a semaphore changes hands about {over.each_second:,.0f} times a second here, however "
        f"many clients wait; with free slots, this process alone acquires and releases "
        f"{free:,.0f} times a second, and each job spends {milliseconds(each)} on both",
    )


def _crowded(results: BenchResults) -> Iterator[Verdict]:
    if results.load is not None and results.load > CROWDED:
        yield Verdict(
            "warning",
            f"this machine was busy before the measurement ({results.load:.1f} runnable processes "
            "per core): all figures are worse than they could be",
            "measure again when the machine is idle",
        )


def _one_at_a_time(results: BenchResults) -> Iterator[Verdict]:
    """Report where the time of a single write goes."""
    best = next((p for p in results.endpoints if p.member is results.connected), None)
    if best is None or best.answer is None or results.read is None or results.write is None:
        return
    network, read, write = best.answer.median, results.read.median, results.write.median
    parts = {
        "network": network,
        "members": max(0.0, read - network),
        "disk": max(0.0, write - read),
    }
    fsync = results.disk.fsync
    reported = "" if fsync is None else f" (etcd reports {milliseconds(fsync)} per fsync)"
    what = (
        f"a write takes {milliseconds(write)}: {milliseconds(network)} for the round trip to etcd, "
        f"{milliseconds(parts['members'])} more for the members to agree, "
        f"{milliseconds(parts['disk'])} more to write to disk{reported}"
    )
    if write < SLOW:
        yield Verdict("ok", f"{what}; nothing stands out")
        return
    reason, do = _WORST[max(parts, key=lambda part: parts[part])]
    yield Verdict("info", f"{what}; {reason}", do)


_WORST: Final = {
    "network": (
        "most of it is the network to etcd",
        "move the programs closer to etcd, or etcd closer to them",
    ),
    "members": (
        "most of it is the network between members",
        "put the members into one region; check etcd_network_peer_round_trip_time_seconds",
    ),
    "disk": (
        "most of it is the disk",
        "give etcd a fast dedicated disk; check etcd_disk_wal_fsync_duration_seconds",
    ),
}


def _many_at_a_time(results: BenchResults) -> Iterator[Verdict]:
    """Report what limits many clients."""
    most = results.pairs[-1]
    limited = f"{most.threads} clients at a time are limited by"
    busy, cores = results.disk.busy, results.disk.cores
    if busy is not None and busy >= BUSY:
        yield Verdict(
            "info",
            f"{limited} etcd's disk: it spends {busy:.0%} of the time in fsync",
            "use a faster disk; concurrent writes already share an fsync",
        )
    elif most.cores >= BUSY:
        yield Verdict(
            "info",
            f"{limited} this process: Python uses {most.cores:.0%} of a core; more processes will "
            "get more out of this etcd",
        )
    elif cores is not None and cores >= BUSY:
        yield Verdict(
            "info",
            f"{limited} etcd's CPU: it uses {cores:.1f} cores",
            "give the members more and faster cores",
        )
    else:
        yield Verdict(
            "ok",
            f"{limited} round trips: this process ({most.cores:.0%} of a core) and, as far as it "
            "reports, etcd are not busy; more clients will achieve more",
        )


def _unreachable(results: BenchResults) -> Iterator[Verdict]:
    for endpoint in results.endpoints:
        if endpoint.member.error:
            yield Verdict(
                "warning",
                f"{endpoint.member.endpoint} does not answer: {endpoint.member.error}",
                "etcdsem doctor",
            )


def _far_endpoints(results: BenchResults) -> Iterator[Verdict]:
    answered = [endpoint for endpoint in results.endpoints if endpoint.answer is not None]
    nearest = min(map(_round_trip, answered), default=0.0)
    for endpoint in answered:
        if _round_trip(endpoint) > max(5 * nearest, nearest + 0.002):
            yield Verdict(
                "warning",
                f"{endpoint.member.endpoint} answers in {milliseconds(_round_trip(endpoint))}, "
                f"the nearest endpoint in {milliseconds(nearest)}",
                "list near endpoints first in ETCDSEM_ENDPOINTS, since the first that answers is "
                "used; make one of them the leader: etcdctl move-leader",
            )


def _round_trip(endpoint: EndpointResult) -> float:
    return endpoint.answer.median if endpoint.answer is not None else 0.0


def _far_members(results: BenchResults) -> Iterator[Verdict]:
    peers = results.disk.peers
    if peers is not None and peers > FAR:
        yield Verdict(
            "info",
            f"a round trip between members takes {milliseconds(peers)}: each write waits for it",
            "move the members closer together",
        )


def _slow_disk(results: BenchResults) -> Iterator[Verdict]:
    for found, slow, what in (
        (results.disk.fsync, SLOW_FSYNC, "an fsync of etcd's log"),
        (results.disk.commit, SLOW_COMMIT, "a commit of etcd's database"),
    ):
        if found is not None and found > slow:
            yield Verdict(
                "warning",
                f"{what} takes {milliseconds(found)}; etcd recommends less than "
                f"{milliseconds(slow)}",
                "give etcd a fast dedicated disk (SSD, NVMe)",
            )


def _disk_metrics(results: BenchResults) -> Iterator[Verdict]:
    if results.disk.cores is None:
        yield Verdict(
            "info",
            "etcd's own metrics cannot be read from here, so its disk is judged from outside",
            "serve them to this machine: https://etcd.io/docs/latest/op-guide/monitoring",
        )
    elif results.disk.fsync is None:
        yield Verdict(
            "warning",
            "etcd made no fsync: it runs with --unsafe-no-fsync, and may lose leases in a power "
            "failure",
            "remove that option if leases matter",
        )


CHECKS: Final = (
    Check("semaphore", _capacity, needs=("hand_overs", "cycles", "write")),
    Check("machine", _crowded, needs=("load",)),
    Check("one", _one_at_a_time, needs=("read", "write")),
    Check("many", _many_at_a_time, needs=("pairs",)),
    Check("far", _unreachable),
    Check("far", _far_endpoints),
    Check("far", _far_members),
    Check("disk", _slow_disk),
    Check("disk", _disk_metrics),
)

_STORAGE: Final = (
    Check("space", space),
    Check("compaction", history, needs=("compacted",)),
)
"""Checks of `doctor` that matter for speed; here they are warnings at most."""


def _storage(results: BenchResults) -> Iterator[Finding]:
    probed = ProbeResults("", None, tls=False, user=None)
    probed.members = [endpoint.member for endpoint in results.endpoints]
    probed.head, probed.compacted = results.head, results.compacted
    for finding in run_table(_STORAGE, probed):
        if finding.level == "problem":
            yield finding._replace(level="warning")
        elif finding.level != "ok":
            yield finding
