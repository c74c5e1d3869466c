"""The checks of `doctor` on what the probes found. Pure functions.

To add a check, write a function that yields verdicts, and add a row to `CHECKS`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from etcdsem.cli.doctor.finding import Check, Finding, Verdict, milliseconds, run_table
from etcdsem.cli.doctor.probes import Member, ProbeResults
from etcdsem.cli.doctor.semaphore_checks import semaphore_findings
from etcdsem.cli.doctor.version_checks import bugs, bugs_in_short, supported, versions

SLOW_NETWORK: Final = 0.05
SLOW_QUORUM: Final = 0.05
SLOW_DISK: Final = 0.05
MANY_REVISIONS: Final = 1_000_000
NEVER_COMPACTED: Final = 20_000
DEFAULT_QUOTA: Final = 2 * 1024**3
SKEW: Final = 5.0
LAG: Final = 1000


def run_checks(results: ProbeResults, *, verbose: bool = True) -> list[Finding]:
    """Return all findings, in the order of the checks.

    `verbose`: one for each known bug of a version, instead of one for all of them.
    """
    checks = [
        replace(check, judge=bugs_in_short) if check.judge is bugs and not verbose else check
        for check in CHECKS
    ]
    return [*run_table(checks, results), *semaphore_findings(results)]


# ---------------------------------------------------------------- endpoints and members


def _login(results: ProbeResults) -> Iterator[Verdict]:
    for member in results.members:
        if member.denied:
            yield Verdict(
                "problem",
                f"{member.endpoint}: {member.error}",
                "check the user and the password: ETCDSEM_USER, and ETCDSEM_PASSWORD or "
                "ETCDSEM_PASSWORD_FILE",
            )


def _endpoints(results: ProbeResults) -> Iterator[Verdict]:
    for member in results.members:
        if not member.denied:
            yield _endpoint(results, member)


def _endpoint(results: ProbeResults, member: Member) -> Verdict:
    if member.secret:
        return Verdict(
            "info",
            f"{member.endpoint}: etcd {member.version or '(version unknown)'}; only root may read "
            "its status (leader, space, alarms)",
            "to check that too: etcdsem doctor --user root",
        )
    if not member.has_leader and (not member.error or "no leader" in member.error):
        return Verdict(
            "problem",
            f"{member.endpoint} has no leader: most members are down, and no lease can be granted, "
            "refreshed or released",
            "etcdctl endpoint health --cluster; start the members that are down",
        )
    if member.error:
        return Verdict(
            "warning" if results.reached else "problem",
            f"{member.endpoint} does not answer: {member.error}",
            f"etcdctl --endpoints {member.endpoint} endpoint health; check that it is running and "
            "that the address is correct",
        )
    if member.learner:
        return Verdict(
            "warning",
            f"{member.endpoint} is a learner and does not serve clients yet",
            f"etcdctl member promote {member.id:x}, or remove it from the endpoints",
        )
    role = "leader" if member.leads else "follower"
    return Verdict("ok", f"{member.endpoint}: etcd {member.version}, {role}")


def _different_clusters(results: ProbeResults) -> Iterator[Verdict]:
    if len({member.cluster for member in results.reached if not member.secret}) > 1:
        yield Verdict(
            "problem",
            "the endpoints belong to different clusters, which would count separately",
            "keep only the endpoints of one cluster in ETCDSEM_ENDPOINTS "
            "(etcdctl endpoint status -w json shows cluster_id)",
        )


def _different_versions(results: ProbeResults) -> Iterator[Verdict]:
    found = versions(results)
    if len(found) > 1:
        yield Verdict(
            "warning",
            f"members run different versions: {', '.join(found)}",
            "finish the upgrade: etcdctl endpoint status -w table --cluster",
        )


def _lag(results: ProbeResults) -> Iterator[Verdict]:
    for member in results.reached:
        if member.lag > LAG:
            yield Verdict(
                "warning",
                f"{member.endpoint} still has {member.lag} entries to apply",
                "check its disk and load: etcdctl endpoint status -w table",
            )


def _member_count(results: ProbeResults) -> Iterator[Verdict]:
    count = results.listed or 0
    if count == 1:
        yield Verdict(
            "info",
            "only one member: no lease is granted while it is down, and losing its disk loses all "
            "leases",
            "run three members if that matters",
        )
    elif count % 2 == 0:
        yield Verdict("info", f"{count} members: no safer than {count - 1}", "run three or five")


def _stalled_leader(results: ProbeResults) -> Iterator[Verdict]:
    if (results.listed or 0) > 1:
        yield Verdict(
            "info",
            "on every version, a leader that was paused and resumes can end live leases (#15247). "
            "Their holders learn of it at once; rate limits are not affected",
            "do not pause members (VM snapshots, live migration); check fencing tokens where two "
            "holders would do harm",
        )


def _one_endpoint(results: ProbeResults) -> Iterator[Verdict]:
    count = results.listed or 0
    if count > len(results.members) == 1:
        yield Verdict(
            "warning",
            f"only one endpoint is configured, of a cluster of {count} members: clients cannot "
            "fail over",
            "list all members in ETCDSEM_ENDPOINTS, separated by commas (etcdctl member list shows "
            "them)",
        )


# ---------------------------------------------------------------- alarms and space

_ALARMS: Final = {
    "NOSPACE": (
        "out of space: no lease is granted, held leases continue",
        "etcdctl compact REVISION; etcdctl defrag --cluster; etcdctl alarm disarm; then raise "
        "--quota-backend-bytes, and compact automatically with --auto-compaction-retention=1h",
    ),
    "CORRUPT": (
        "corrupt data: nothing can be written, and leases cannot even be released",
        "etcdctl alarm list; replace the members that differ, from a backup or another member",
    ),
}


def _alarms(results: ProbeResults) -> Iterator[Verdict]:
    for alarm in sorted(set(results.alarms or ())):
        what, do = _ALARMS.get(alarm, _ALARMS["CORRUPT"])
        yield Verdict("problem", f"alarm {alarm}: {what}", do)


def _member_errors(results: ProbeResults) -> Iterator[Verdict]:
    for member in results.reached:
        for error in member.errors:
            if not any(alarm in error for alarm in results.alarms or ()):
                yield Verdict(
                    "problem",
                    f"{member.endpoint}: {error}",
                    "etcdctl endpoint status -w table --cluster",
                )


def _alarms_unknown(results: ProbeResults) -> Iterator[Verdict]:
    if results.alarms is None:
        yield Verdict("info", "this user may not list alarms", "etcdctl alarm list")


def space(results: ProbeResults) -> Iterator[Verdict]:
    """Report databases that are nearly full, or mostly unused."""
    for member in results.reached:
        quota = member.quota or DEFAULT_QUOTA
        assumed = "" if member.quota else " (assuming the default quota)"
        if member.db_size / quota >= 0.8:
            yield Verdict(
                "warning",
                f"{member.endpoint}: the database uses {_mib(member.db_size)} of "
                f"{_mib(quota)}{assumed}",
                "etcdctl compact REVISION; etcdctl defrag; or raise --quota-backend-bytes",
            )
        elif member.db_size > 100 * 1024**2 and member.db_in_use < member.db_size / 2:
            yield Verdict(
                "info",
                f"{member.endpoint}: only {_mib(member.db_in_use)} of {_mib(member.db_size)} are "
                "in use",
                f"etcdctl --endpoints {member.endpoint} defrag (it blocks meanwhile)",
            )


def _mib(size: int) -> str:
    return f"{size / 1024**2:.0f} MiB"


# ---------------------------------------------------------------- access and speed


def _denied(results: ProbeResults) -> Iterator[Verdict]:
    where = results.directory
    hint = "" if results.name else ", or name a semaphore that you may use: etcdsem doctor NAME"
    for what, reason in results.denied.items():
        yield Verdict(
            "problem",
            f"{results.user or 'a client without a login'} may not {what} below {where}: {reason}",
            f"etcdctl role grant-permission ROLE --prefix=true readwrite {where}{hint}",
        )


def _failed(results: ProbeResults) -> Iterator[Verdict]:
    for what, reason in results.failed.items():
        yield Verdict(
            "problem",
            f"could not {what}: {reason}",
            "etcdctl endpoint health --cluster; etcdctl alarm list",
        )


def _access(results: ProbeResults) -> Iterator[Verdict]:
    if not results.denied and not results.failed:
        yield Verdict("ok", f"reading, writing and leases work below {results.directory}")


_SPEED: Final = (  # what, compared with what, the slow difference, what to report, what to do
    (
        "network",
        None,
        SLOW_NETWORK,
        "a round trip takes {0}: slow network, or a busy machine",
        "move the clients closer to etcd, or check the load on both sides",
    ),
    (
        "read",
        "network",
        SLOW_QUORUM,
        "a read takes {0}: the members are far from each other, or busy",
        "etcdctl check perf; check etcd_network_peer_round_trip_time_seconds",
    ),
    (
        "write",
        "read",
        SLOW_DISK,
        "a write takes {0}, a read {1}: the disk is slow",
        "give etcd a fast dedicated disk; check etcd_disk_wal_fsync_duration_seconds",
    ),
)


def _speed(results: ProbeResults) -> Iterator[Verdict]:
    times = {"network": results.network, "read": results.read, "write": results.write}
    for what, beside, slow, message, do in _SPEED:
        took, before = times[what], times[beside] if beside else 0.0
        if took is not None and before is not None and took - before > slow:
            yield Verdict("warning", message.format(milliseconds(took), milliseconds(before)), do)
    if results.network is not None:
        known = [f"{what} {milliseconds(took)}" for what, took in times.items() if took is not None]
        yield Verdict("ok", f"medians: {', '.join(known)}")


# ---------------------------------------------------------------- history, encryption, time


def history(results: ProbeResults) -> Iterator[Verdict]:
    """Report how much of the history is kept. Needs `compacted`."""
    compacted = results.compacted or 0
    kept = results.head - compacted
    enable = "start etcd with --auto-compaction-retention=1h"
    do = f"{enable}; to compact now: etcdctl compact {results.head}; etcdctl defrag --cluster"
    if compacted == 0 and results.head > NEVER_COMPACTED:
        yield Verdict(
            "problem",
            f"never compacted: all {results.head} revisions are kept, and the database grows until "
            "it is full",
            do,
        )
    elif kept > MANY_REVISIONS:
        what = f"{kept} revisions are kept: reads become slower, and the database grows"
        yield Verdict("warning", what, do)
    elif compacted == 0:
        yield Verdict(
            "info",
            f"not compacted yet, at revision {results.head}; etcd does not report whether it "
            "compacts automatically",
            f"if it does not: {enable}",
        )
    else:
        yield Verdict("ok", f"compacted, {kept} revisions are kept")


def _tls(results: ProbeResults) -> Iterator[Verdict]:
    remote = [member.endpoint for member in results.members if not member.loopback]
    if results.tls or not remote:
        return
    password = ", including the password," if results.user else ""
    yield Verdict(
        "problem" if results.user else "warning",
        f"plain text over the network to {', '.join(remote)}: all data{password} can be read and "
        "changed in transit",
        "give etcd certificates (--cert-file, --key-file), and set ETCDSEM_CACERT and https:// "
        "endpoints",
    )


def _clock(results: ProbeResults) -> Iterator[Verdict]:
    ahead = results.clock_ahead or 0.0
    if abs(ahead) > SKEW:
        order = "ahead of" if ahead > 0 else "behind"
        yield Verdict(
            "info",
            f"etcd's clock is {abs(ahead):.0f} s {order} this machine's; this affects displayed "
            "ages and dates, and rate limits whose leases etcd ends early, but no other lease",
            "timedatectl; chronyc tracking",
        )


def _ttl(results: ProbeResults) -> Iterator[Verdict]:
    least = results.least_ttl or 0.0
    if least > 2:
        yield Verdict(
            "info",
            f"the minimum lease timeout here is {least:.0f} s: shorter ones are raised to it",
            "lower etcd's --election-timeout, if the network allows it",
        )


CHECKS: Final = (
    Check("login", _login),
    Check("endpoint", _endpoints),
    Check("cluster", _different_clusters),
    Check("cluster", _different_versions),
    Check("cluster", _lag),
    Check("cluster", _member_count, needs=("listed",)),
    Check("cluster", _one_endpoint, needs=("listed",)),
    Check("version", supported),
    Check("version", bugs),
    Check("leases", _stalled_leader, needs=("listed",)),
    Check("alarm", _alarms),
    Check("alarm", _member_errors),
    Check("alarm", _alarms_unknown, needs=("reached",)),
    Check("space", space),
    Check("access", _denied),
    Check("access", _failed),
    Check("access", _access, needs=("reached",)),
    Check("speed", _speed),
    Check("compaction", history, needs=("compacted",)),
    Check("tls", _tls),
    Check("clock", _clock, needs=("clock_ahead",)),
    Check("ttl", _ttl, needs=("least_ttl",)),
)
