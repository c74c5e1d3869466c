"""The probes of `doctor`: harmless requests to etcd, whose results are judged elsewhere.

1. It writes one key, `<prefix>/~doctor` (or `<prefix>/NAME/doctor`). The key is always the same,
   belongs to no semaphore, and is attached to a lease of a minute that is revoked at the end.
2. No request returns the compacted revision, but reads at revisions below it are refused. So it
   is found by bisection, with about thirty small reads.
3. What cannot be determined is None, not an error: a user may lack the permission to read it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from etcdsem.cli.endpoint import CallFailed, EndpointConnection
from etcdsem.errors import EtcdSemError, PermissionDenied

if TYPE_CHECKING:
    from etcdsem import Client, Status

SAMPLES: Final = 15
_LEASE: Final = 60
_STUCK_AFTER: Final = 2.0


@dataclass
class Member:
    """One endpoint, and the member that answers there."""

    endpoint: str
    loopback: bool
    error: str = ""
    denied: bool = False
    secret: bool = False
    """Only root may read its status, as in etcd 3.5.30; its version is known even then."""
    id: int = 0
    cluster: int = 0
    version: str = ""
    leads: bool = False
    has_leader: bool = False
    learner: bool = False
    db_size: int = 0
    db_in_use: int = 0
    quota: int = 0
    """0 if etcd does not report it (before 3.6)."""
    lag: int = 0
    """Number of entries it still has to apply."""
    errors: tuple[str, ...] = ()


@dataclass
class ProbeResults:
    """The results of all probes. Times are in seconds."""

    prefix: str
    name: str | None
    tls: bool
    user: str | None
    members: list[Member] = field(default_factory=list)
    listed: int | None = None
    """Number of members of the cluster."""
    alarms: list[str] | None = None
    network: float | None = None
    read: float | None = None
    write: float | None = None
    denied: dict[str, str] = field(default_factory=dict)
    """Operations that were denied (read, write), with etcd's message."""
    failed: dict[str, str] = field(default_factory=dict)
    """Operations that failed for another reason, with the message."""
    least_ttl: float | None = None
    head: int = 0
    compacted: int | None = None
    """The revision up to which the history was discarded; 0 if it is complete."""
    clock_ahead: float | None = None
    """How far etcd's clock is ahead of ours, to about a second."""
    semaphores: list[Status] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    """Semaphores with a free slot and the same first waiter for two seconds."""
    bare: list[str] = field(default_factory=list)
    """Semaphores with holders or waiters but no limit."""

    @property
    def reached(self) -> list[Member]:
        """The endpoints that answer."""
        return [member for member in self.members if not member.error]

    @property
    def directory(self) -> str:
        """The part of the key space that is checked, with a slash at its end."""
        return f"{self.prefix}/{self.name}/" if self.name else f"{self.prefix}/"


def probe(client: Client, name: str | None) -> ProbeResults:
    """Run all probes, for all semaphores or only `name`. Failures are part of the results."""
    settings = client.settings
    results = ProbeResults(client.prefix, name, settings.tls, settings.user)
    best: EndpointConnection | None = None
    connections: list[EndpointConnection] = []
    try:
        for endpoint in settings.endpoints:
            connection = EndpointConnection(settings, endpoint)
            connections.append(connection)
            member = member_of(connection, endpoint)
            results.members.append(member)
            if best is None and not member.error and not member.learner:
                best = connection
        if best is not None:
            _cluster(best, results)
            _access(best, results)
            _history(best, results)
            results.clock_ahead = _clock(best)
            if "read" not in results.denied:
                _semaphores(client, results)
    finally:
        for connection in connections:
            connection.close()
    return results


def member_of(connection: EndpointConnection, endpoint: object) -> Member:
    """Return the state of the member at an endpoint; a failure is recorded in it."""
    member = Member(str(endpoint), _is_loopback(connection.address))
    try:
        status = connection.status()
    except CallFailed as failure:
        if failure.denied and "permission denied" in failure.detail:  # the login itself succeeded
            member.secret = member.has_leader = True
            member.version = _version(connection)
        else:
            member.error, member.denied = failure.detail, failure.denied
        return member
    member.id, member.cluster = status.header.member_id, status.header.cluster_id
    member.version = status.version
    member.leads, member.has_leader = status.leader == member.id, status.leader != 0
    member.learner = status.isLearner
    member.db_size, member.db_in_use = status.dbSize, status.dbSizeInUse
    member.quota = status.dbSizeQuota
    applied = status.raftAppliedIndex
    member.lag = max(0, status.raftIndex - applied) if applied else 0
    member.errors = tuple(status.errors)
    return member


def _version(connection: EndpointConnection) -> str:
    import json

    try:
        return str(json.loads(connection.http_get("/version") or "")["etcdserver"])
    except (ValueError, KeyError, TypeError):
        return ""


def _cluster(connection: EndpointConnection, results: ProbeResults) -> None:
    with suppress(CallFailed):
        results.listed = connection.count_members()
    with suppress(CallFailed):
        results.alarms = connection.alarms()
    if any(member.secret for member in results.members):
        with suppress(CallFailed):  # whether the user may read is reported with the access
            results.network = _typical(partial(read_locally, connection, _key(results)))
        return
    with _noted(results, "query the endpoint"):  # it may have just lost its leader
        results.network = _typical(connection.status)


def read_locally(connection: EndpointConnection, key: bytes) -> None:
    """Make a request that only this member handles, for users that may not read its status."""
    connection.read(key, serializable=True, keys_only=True)


def _key(results: ProbeResults) -> bytes:
    place = f"{results.name}/doctor" if results.name else "~doctor"
    return f"{results.prefix}/{place}".encode()


def _access(connection: EndpointConnection, results: ProbeResults) -> None:
    """Try to read, write and create leases, and measure how long that takes."""
    key = _key(results)
    start = results.directory.encode()
    end = start[:-1] + b"0"
    with _noted(results, "read"):
        results.head = connection.read(start, range_end=end, limit=1, keys_only=True)
        results.read = _typical(lambda: connection.read(key))
    lease, short = secrets.randbits(62) + 1, secrets.randbits(62) + 1
    try:
        with _noted(results, "write"):
            results.least_ttl = connection.grant(short, 1)
            connection.grant(lease, _LEASE)
            value = b"temporary key of etcdsem doctor"
            results.write = _typical(lambda: connection.put(key, value, lease))
    finally:
        for one in (lease, short):
            with suppress(CallFailed):
                connection.revoke(one)


class _noted:
    """Records a CallFailed of the block in the results, and suppresses it."""

    def __init__(self, results: ProbeResults, what: str) -> None:
        self._results, self._what = results, what

    def __enter__(self) -> None:
        """Nothing to do."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, CallFailed):
            noted = self._results.denied if error.denied else self._results.failed
            noted[self._what] = error.detail
        return isinstance(error, CallFailed)


def _history(connection: EndpointConnection, results: ProbeResults) -> None:
    if not results.head:
        return
    with suppress(CallFailed):
        results.compacted = compacted_revision(connection, _key(results), results.head)


def compacted_revision(connection: EndpointConnection, key: bytes, head: int) -> int:
    """Return the largest revision that can no longer be read, 0 if all can.

    Args:
        connection: where to read.
        key: any key that may be read.
        head: the current revision.

    Raises:
        CallFailed: a read failed for another reason.
    """
    discarded, readable = 0, head
    while readable - discarded > 1:
        middle = (discarded + readable) // 2
        if _readable(connection, key, middle):
            readable = middle
        else:
            discarded = middle
    return discarded


def _readable(connection: EndpointConnection, key: bytes, revision: int) -> bool:
    try:
        connection.read(key, revision=revision, serializable=True, keys_only=True)
    except CallFailed as failure:
        if "compacted" not in failure.detail:
            raise
        return False
    return True


def _semaphores(client: Client, results: ProbeResults) -> None:
    """Read the status of each semaphore, and again of those that look stuck."""
    try:
        names = [results.name] if results.name else [one.name for one in client.overview()]
        results.semaphores = _statuses(client, names, results)
        suspects = {one.name: one for one in results.semaphores if _has_room(one)}
        if not suspects:
            return
        time.sleep(_STUCK_AFTER)
        for again in _statuses(client, list(suspects), results):
            before = suspects[again.name]
            if _has_room(again) and again.waiters[0].lease_id == before.waiters[0].lease_id:
                results.stuck.append(again.name)
    except PermissionDenied as error:
        results.denied["read"] = str(error)
    except EtcdSemError as error:
        results.failed["list the semaphores"] = str(error)


def _statuses(client: Client, names: Sequence[str], results: ProbeResults) -> list[Status]:
    from etcdsem.errors import SemaphoreClosed

    found = []
    for name in names:
        try:
            found.append(client.status(name, ttl=False))
        except SemaphoreClosed:
            if name not in results.bare:
                results.bare.append(name)
    return found


def _has_room(one: Status) -> bool:
    if one.pause or not one.waiters:
        return False
    return one.held + one.waiters[0].weight <= (one.max_leases or 0)


def _typical(action: Callable[[], Any]) -> float:
    """Return the median time of some calls, after one that is not counted."""
    action()
    times = []
    for _ in range(SAMPLES):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return median(times)


def _clock(connection: EndpointConnection) -> float | None:
    """Return how far etcd's wall clock is ahead, from the Date header of its HTTP server."""
    from email.utils import parsedate_to_datetime

    try:
        began = time.time()
        with connection.open_http("/version") as answer:
            date = answer.headers["Date"]
        ours = (began + time.time()) / 2
        return parsedate_to_datetime(date).timestamp() + 0.5 - ours  # the header has whole seconds
    except (OSError, ValueError, TypeError):
        return None  # e.g. HTTP is on another port


def _is_loopback(address: str) -> bool:
    import ipaddress

    if address.startswith("unix:"):
        return True
    host = address.rsplit(":", 1)[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.split("%")[0]).is_loopback
    except ValueError:
        return False
