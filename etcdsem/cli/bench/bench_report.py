"""What `bench` makes of its figures: findings in plain words. Plain functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from etcdsem.cli.bench.bench_runner import Figures, Place
from etcdsem.cli.doctor.checks import Finding, Level, history, milliseconds, space
from etcdsem.cli.doctor.probes import Facts

BUSY: Final = 0.75
"""A core, or a disk, that is in use for this share of the time is what limits."""
SLOW_FSYNC: Final = 0.010
SLOW_COMMIT: Final = 0.025
"""What etcd's documentation takes for too slow (it says so of 99 of 100; these are means)."""
CROWDED: Final = 1.0
"""Processes that want a core, for each core."""
SLOW: Final = 0.002
"""Seconds of a write that are worth asking where they go."""


def conclude(figures: Figures) -> list[Finding]:
    """All findings, the most useful one first."""
    return [finding for look in _LOOKS for finding in look(figures)]


def _capacity(figures: Figures) -> Iterator[Finding]:
    over, cycles = figures.hand_overs, figures.cycles
    if over is None or not cycles or figures.write is None:
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


def _crowded(figures: Figures) -> Iterator[Finding]:
    if figures.load is not None and figures.load > CROWDED:
        yield Finding(
            "machine",
            "warning",
            f"this machine was busy before it began ({figures.load:.1f} processes for each core): "
            "all figures are worse than they could be",
            "measure again when nothing else runs",
        )


def _one_at_a_time(figures: Figures) -> Iterator[Finding]:
    """Where the time of a single write goes."""
    best = next((p for p in figures.places if p.member is figures.connected), None)
    if best is None or best.answer is None or figures.read is None or figures.write is None:
        return
    way, read, write = best.answer.median, figures.read.median, figures.write.median
    parts = {
        "way": way,
        "members": max(0.0, read - way),
        "disk": max(0.0, write - read),
    }
    fsync = figures.disk.fsync
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


def _many_at_a_time(figures: Figures) -> Iterator[Finding]:
    """What limits many clients."""
    if not figures.pairs:
        return
    most = figures.pairs[-1]
    threads = f"{most.threads} clients at a time"
    busy, cores = figures.disk.busy, figures.disk.cores
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


def _far_away(figures: Figures) -> Iterator[Finding]:
    """Members that are much farther than the nearest, and writes that go by a follower."""
    answered = [place for place in figures.places if place.answer is not None]
    for place in figures.places:
        if place.member.error:
            yield Finding(
                "far",
                "warning",
                f"{place.member.endpoint} does not answer: {place.member.error}",
                "etcdsem doctor",
            )
    if not answered:
        return
    nearest = min(map(_way, answered))
    for place in answered:
        if _way(place) > max(5 * nearest, nearest + 0.002):
            yield Finding(
                "far",
                "warning",
                f"{place.member.endpoint} answers in {milliseconds(_way(place))}, the nearest in "
                f"{milliseconds(nearest)}",
                "name the near ones first in ETCDSEM_ENDPOINTS: the first that answers is used; "
                "let one of them lead: etcdctl move-leader",
            )
    peers = figures.disk.peers
    if peers is not None and peers > 0.01:
        yield Finding(
            "far",
            "info",
            f"members need {milliseconds(peers)} from one to another: each write waits for that",
            "put the members nearer to each other",
        )


def _way(place: Place) -> float:
    return place.answer.median if place.answer is not None else 0.0


def _disk(figures: Figures) -> Iterator[Finding]:
    disk = figures.disk
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


def _storage(figures: Figures) -> Iterator[Finding]:
    """A large database, and one that is never compacted."""
    facts = Facts("", None, tls=False, user=None)
    facts.members = [place.member for place in figures.places]
    facts.head, facts.compacted = figures.head, figures.compacted
    for finding in (*space(facts), *history(facts)):
        if finding.level != "ok":
            level: Level = "warning" if finding.level == "problem" else finding.level
            yield finding._replace(level=level)


_LOOKS: Final[tuple[Callable[[Figures], Iterator[Finding]], ...]] = (
    _capacity,
    _crowded,
    _one_at_a_time,
    _many_at_a_time,
    _far_away,
    _disk,
    _storage,
)

__all__ = ["conclude"]
