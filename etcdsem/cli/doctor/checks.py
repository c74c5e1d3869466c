"""What `doctor` makes of the results: findings, each with what to do about it. Plain functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from etcdsem.cli.doctor import etcd_versions
from etcdsem.cli.doctor.finding import Finding, Level, milliseconds
from etcdsem.cli.doctor.probes import Member, ProbeResults
from etcdsem.cli.doctor.semaphore_checks import check_semaphores

SLOW_NETWORK: Final = 0.05
SLOW_QUORUM: Final = 0.05
SLOW_DISK: Final = 0.05
MANY_REVISIONS: Final = 1_000_000
NEVER_COMPACTED: Final = 20_000
DEFAULT_QUOTA: Final = 2 * 1024**3
SKEW: Final = 5.0


def run_checks(results: ProbeResults) -> list[Finding]:
    """All findings, in the order in which they were looked at."""
    return [finding for check in _CHECKS for finding in check(results)]


def _endpoints(results: ProbeResults) -> Iterator[Finding]:
    for member in results.members:
        yield _endpoint(results, member)


def _endpoint(results: ProbeResults, member: Member) -> Finding:
    if member.denied or member.secret:
        return _refusal(member)
    if not member.has_leader and (not member.error or "no leader" in member.error):
        return Finding(
            "endpoint",
            "problem",
            f"{member.endpoint} has no leader: most members are away, and nothing can be "
            "granted, refreshed or freed",
            "etcdctl endpoint health --cluster; start the members that are down",
        )
    if member.error:
        level: Level = "warning" if results.reached else "problem"
        return Finding(
            "endpoint",
            level,
            f"{member.endpoint} does not answer: {member.error}",
            f"etcdctl --endpoints {member.endpoint} endpoint health; is it running, and the "
            "address right?",
        )
    if member.learner:
        return Finding(
            "endpoint",
            "warning",
            f"{member.endpoint} is a learner: it serves nobody yet",
            f"etcdctl member promote {member.id:x}, or take it out of the endpoints",
        )
    role = "leader" if member.leads else "follower"
    return Finding("endpoint", "ok", f"{member.endpoint}: etcd {member.version}, {role}")


def _refusal(member: Member) -> Finding:
    """A member that lets nobody in, or does not tell its status to this user."""
    if member.denied:
        return Finding(
            "login",
            "problem",
            f"{member.endpoint}: {member.error}",
            "check the user and the password: ETCDSEM_USER, and ETCDSEM_PASSWORD or "
            "ETCDSEM_PASSWORD_FILE",
        )
    return Finding(
        "endpoint",
        "info",
        f"{member.endpoint}: etcd {member.version or '(version unknown)'}; it tells its "
        "status (leader, space, alarms) to root only",
        "to check that, too: etcdsem doctor --user root",
    )


def _cluster(results: ProbeResults) -> Iterator[Finding]:
    reached = results.reached
    if len({member.cluster for member in reached if not member.secret}) > 1:
        yield Finding(
            "cluster",
            "problem",
            "the endpoints belong to different clusters: each would count for itself",
            "leave only the endpoints of one cluster in ETCDSEM_ENDPOINTS "
            "(etcdctl endpoint status -w json shows cluster_id)",
        )
    running = {member.version for member in reached} - {""}
    if len(running) > 1:
        yield Finding(
            "cluster",
            "warning",
            f"members run different versions: {', '.join(sorted(running))}",
            "finish the upgrade: etcdctl endpoint status -w table --cluster",
        )
    for member in reached:
        if member.lag > 1000:
            yield Finding(
                "cluster",
                "warning",
                f"{member.endpoint} has {member.lag} entries yet to apply",
                "look at its disk and load: etcdctl endpoint status -w table",
            )


def _size(results: ProbeResults) -> Iterator[Finding]:
    """How many members there are, and how many of them are given."""
    if results.listed is None:
        return
    if results.listed == 1:
        yield Finding(
            "cluster",
            "info",
            "one member: while it is away nothing is granted, and a lost disk loses all leases",
            "run three members where that matters",
        )
    elif results.listed % 2 == 0:
        yield Finding(
            "cluster",
            "info",
            f"{results.listed} members: no safer than {results.listed - 1}",
            "run three or five",
        )
    if results.listed > len(results.members) == 1:
        yield Finding(
            "cluster",
            "warning",
            f"one endpoint is given, of a cluster of {results.listed} members: nobody goes on when "
            "that one is away",
            "put all members into ETCDSEM_ENDPOINTS, with commas (etcdctl member list shows them)",
        )


def _version(results: ProbeResults) -> Iterator[Finding]:
    for text in sorted({member.version for member in results.reached} - {""}):
        version = etcd_versions.parse(text)
        if version is None:
            yield Finding("version", "info", f"cannot read etcd's version {text!r}")
            continue
        login = results.user is not None
        best = etcd_versions.shown(etcd_versions.recommended(version, login=login))
        upgrade = f"upgrade to {best} or later"
        if version[:2] < etcd_versions.OLDEST:
            oldest = ".".join(map(str, etcd_versions.OLDEST))
            yield Finding(
                "version", "problem", f"etcd {text}: etcdsem is made for {oldest} and later",
                upgrade,
            )  # fmt: skip
        for bug in etcd_versions.known_bugs(version, login=login):
            level: Level = "problem" if bug.grave else "warning"
            yield Finding("version", level, f"etcd {text}: {bug.what} ({bug.source})", upgrade)
        if not etcd_versions.known_bugs(version, login=login):
            yield Finding("version", "ok", f"etcd {text}: no known bug that matters here")


def _alarms(results: ProbeResults) -> Iterator[Finding]:
    for alarm in sorted(set(results.alarms or ())):
        do = (
            "etcdctl compact REVISION; etcdctl defrag --cluster; etcdctl alarm disarm; then give "
            "it more with --quota-backend-bytes, and compact on its own with "
            "--auto-compaction-retention=1h"
            if alarm == "NOSPACE"
            else "etcdctl alarm list; replace the members that differ, from a backup or another "
            "member"
        )
        said = "out of space: nothing is granted, held leases go on" if alarm == "NOSPACE" else (
            "corrupt data: nothing can be written, not even given back"
        )  # fmt: skip
        yield Finding("alarm", "problem", f"alarm {alarm}: {said}", do)
    for member in results.reached:
        for error in member.errors:
            if not any(alarm in error for alarm in results.alarms or ()):
                yield Finding(
                    "alarm", "problem", f"{member.endpoint}: {error}",
                    "etcdctl endpoint status -w table --cluster",
                )  # fmt: skip
    if results.alarms is None and results.reached:
        yield Finding("alarm", "info", "this user may not ask for alarms", "etcdctl alarm list")


def space(results: ProbeResults) -> Iterator[Finding]:
    """Databases that are nearly full, or half empty."""
    for member in results.reached:
        quota = member.quota or DEFAULT_QUOTA
        assumed = "" if member.quota else " (the default, which is assumed)"
        used = member.db_size / quota
        if used >= 0.8:
            yield Finding(
                "space",
                "warning",
                f"{member.endpoint}: the database has {_mib(member.db_size)} of "
                f"{_mib(quota)}{assumed}",
                "etcdctl compact REVISION; etcdctl defrag; or more with --quota-backend-bytes",
            )
        elif member.db_size > 100 * 1024**2 and member.db_in_use < member.db_size / 2:
            yield Finding(
                "space",
                "info",
                f"{member.endpoint}: {_mib(member.db_in_use)} of {_mib(member.db_size)} are in use",
                f"etcdctl --endpoints {member.endpoint} defrag (it stands still meanwhile)",
            )


def _access(results: ProbeResults) -> Iterator[Finding]:
    where = f"{results.prefix}/{results.name}/" if results.name else f"{results.prefix}/"
    hint = "" if results.name else ", or name the semaphore that you may use: etcdsem doctor NAME"
    for what, said in results.denied.items():
        yield Finding(
            "access",
            "problem",
            f"{results.user or 'nobody (no login)'} may not {what} below {where}: {said}",
            f"etcdctl role grant-permission ROLE --prefix=true readwrite {where}{hint}",
        )
    for what, said in results.failed.items():
        yield Finding(
            "access", "problem", f"could not {what} below {where}: {said}",
            "etcdctl endpoint health --cluster; etcdctl alarm list",
        )  # fmt: skip
    if results.reached and not results.denied and not results.failed:
        yield Finding("access", "ok", f"reading, writing and leases work below {where}")


_SPEED: Final = (  # what, beside what, the difference that is slow, what is said, what to do
    (
        "network",
        None,
        SLOW_NETWORK,
        "a bare question and answer take {0}: the network, or a busy machine",
        "put etcd nearer, or look at the load here and there",
    ),
    (
        "read",
        "network",
        SLOW_QUORUM,
        "a read takes {0}: members are far from each other, or busy",
        "etcdctl check perf; look at etcd_network_peer_round_trip_time_seconds",
    ),
    (
        "write",
        "read",
        SLOW_DISK,
        "a write takes {0}, a read {1}: the disk is slow",
        "give etcd a fast disk of its own; look at etcd_disk_wal_fsync_duration_seconds",
    ),
)


def _speed(results: ProbeResults) -> Iterator[Finding]:
    times = {"network": results.network, "read": results.read, "write": results.write}
    for what, beside, slow, said, do in _SPEED:
        took, before = times[what], times[beside] if beside else 0.0
        if took is not None and before is not None and took - before > slow:
            shown = said.format(milliseconds(took), milliseconds(before))
            yield Finding("speed", "warning", shown, do)
    if results.network is not None:
        known = [f"{what} {milliseconds(took)}" for what, took in times.items() if took is not None]
        yield Finding("speed", "ok", f"medians: {', '.join(known)}")


def history(results: ProbeResults) -> Iterator[Finding]:
    """How much of the past is kept."""
    if results.compacted is None:
        return
    kept = results.head - results.compacted
    now = f"now: etcdctl compact {results.head}; etcdctl defrag --cluster"
    for_ever = "for ever: start etcd with --auto-compaction-retention=1h"
    if results.compacted == 0 and results.head > NEVER_COMPACTED:
        yield Finding(
            "compaction",
            "problem",
            f"never compacted: it keeps all {results.head} revisions, and grows until it is full",
            f"{for_ever}; {now}",
        )
    elif kept > MANY_REVISIONS:
        yield Finding(
            "compaction",
            "warning",
            f"it keeps {kept} revisions: reads get slower, and it grows",
            f"{for_ever}; {now}",
        )
    elif results.compacted == 0:
        yield Finding(
            "compaction",
            "info",
            f"not compacted yet, at revision {results.head}; whether it will be cannot be asked",
            for_ever,
        )
    else:
        yield Finding("compaction", "ok", f"compacted: it keeps {kept} revisions")


def _wire(results: ProbeResults) -> Iterator[Finding]:
    open_ones = [member.endpoint for member in results.members if not member.loopback]
    if results.tls or not open_ones:
        return
    level: Level = "problem" if results.user else "warning"
    what = ", and the password with it" if results.user else ""
    yield Finding(
        "tls",
        level,
        f"plain text over the network to {', '.join(open_ones)}: all can be read and changed on "
        f"the way{what}",
        "give etcd certificates (--cert-file, --key-file), and us ETCDSEM_CACERT and https://",
    )


def _time(results: ProbeResults) -> Iterator[Finding]:
    ahead = results.clock_ahead
    if ahead is not None and abs(ahead) > SKEW:
        order = "ahead of" if ahead > 0 else "behind"
        yield Finding(
            "clock",
            "info",
            f"etcd's clock is {abs(ahead):.0f} s {order} this machine's; that shows only in ages "
            "and dates, no lease depends on it",
            "timedatectl; chronyc tracking",
        )
    if results.least_ttl is not None and results.least_ttl > 2:
        yield Finding(
            "ttl",
            "info",
            f"the smallest lease timeout here is {results.least_ttl:.0f} s: "
            "shorter ones become that",
            "a lower etcd --election-timeout makes it shorter, where the network allows",
        )


_CHECKS: Final[tuple[Callable[[ProbeResults], Iterator[Finding]], ...]] = (
    _endpoints,
    _cluster,
    _size,
    _version,
    _alarms,
    space,
    _access,
    _speed,
    history,
    _wire,
    _time,
    check_semaphores,
)


def _mib(size: int) -> str:
    return f"{size / 1024**2:.0f} MiB"
