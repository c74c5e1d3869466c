"""What `doctor` finds out, without judging: questions to etcd that do no harm.

1. It writes one key, `<prefix>/~doctor` (or `<prefix>/NAME/doctor`): no semaphore's, always the
   same, attached to a lease of a minute that is revoked at the end.
2. The compacted revision is not told by any request; but reads at a revision are refused below it,
   so it is found by bisection: some thirty small reads.
3. What cannot be found out is None, and no error: a user may lack the right to ask.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from etcdsem.cli.endpoint import CallFailed, EndpointConnection
from etcdsem.errors import EtcdSemError, PermissionDenied

if TYPE_CHECKING:
    from etcdsem import Client, Status

SAMPLES: Final = 15
_LEASE: Final = 60
_SECOND_LOOK: Final = 2.0


@dataclass
class Member:
    """One endpoint, and the member that answers there."""

    endpoint: str
    loopback: bool
    error: str = ""
    denied: bool = False
    secret: bool = False
    """It tells its status to root only, as etcd 3.5.30 does; its version is known even then."""
    id: int = 0
    cluster: int = 0
    version: str = ""
    leads: bool = False
    has_leader: bool = False
    learner: bool = False
    db_size: int = 0
    db_in_use: int = 0
    quota: int = 0
    """0 where etcd does not tell (before 3.6)."""
    lag: int = 0
    """How many entries it has yet to apply."""
    errors: tuple[str, ...] = ()


@dataclass
class ProbeResults:
    """All that was found out. Times in seconds."""

    prefix: str
    name: str | None
    tls: bool
    user: str | None
    members: list[Member] = field(default_factory=list)
    listed: int | None = None
    """How many members the cluster has."""
    alarms: list[str] | None = None
    network: float | None = None
    read: float | None = None
    write: float | None = None
    denied: dict[str, str] = field(default_factory=dict)
    """What is not allowed (read, write), and what etcd says about it."""
    failed: dict[str, str] = field(default_factory=dict)
    """What did not work for another reason."""
    least_ttl: float | None = None
    head: int = 0
    compacted: int | None = None
    """The revision up to which the past is forgotten; 0: none of it."""
    clock_ahead: float | None = None
    """How far etcd's clock is ahead of ours, to a second or so."""
    semaphores: list[Status] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    """Those with a free slot and the same first in line for two seconds."""
    bare: list[str] = field(default_factory=list)
    """Those with holders or waiters but no limit."""

    @property
    def reached(self) -> list[Member]:
        """The endpoints that answer."""
        return [member for member in self.members if not member.error]


def probe(client: Client, name: str | None) -> ProbeResults:
    """Find out all of it. Raises nothing but interruptions."""
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
    """What the member there says of itself; an error is noted in it."""
    member = Member(str(endpoint), _is_loopback(connection.address))
    try:
        said = connection.status()
    except CallFailed as failure:
        if failure.denied and "permission denied" in failure.detail:  # the login was right
            member.secret = member.has_leader = True
            member.version = _version(connection)
        else:
            member.error, member.denied = failure.detail, failure.denied
        return member
    member.id, member.cluster = said.header.member_id, said.header.cluster_id
    member.version = said.version
    member.leads, member.has_leader = said.leader == member.id, said.leader != 0
    member.learner = said.isLearner
    member.db_size, member.db_in_use, member.quota = said.dbSize, said.dbSizeInUse, said.dbSizeQuota
    member.lag = max(0, said.raftIndex - said.raftAppliedIndex) if said.raftAppliedIndex else 0
    member.errors = tuple(said.errors)
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
        return
    with _noted(results, "ask it again"):  # it may have lost its leader just now
        results.network = _typical(connection.status)


def _key(results: ProbeResults) -> bytes:
    place = f"{results.name}/doctor" if results.name else "~doctor"
    return f"{results.prefix}/{place}".encode()


def _access(connection: EndpointConnection, results: ProbeResults) -> None:
    """May we read, write, and have leases; and how fast is that?"""
    key = _key(results)
    everything = f"{results.prefix}/{results.name}/" if results.name else f"{results.prefix}/"
    end = everything.encode()[:-1] + b"0"
    with _noted(results, "read"):
        results.head = connection.read(everything.encode(), range_end=end, limit=1, keys_only=True)
        results.read = _typical(lambda: connection.read(key))
    lease, short = secrets.randbits(62) + 1, secrets.randbits(62) + 1
    try:
        with _noted(results, "write"):
            results.least_ttl = connection.grant(short, 1)
            connection.grant(lease, _LEASE)
            value = b"etcdsem doctor was here"
            results.write = _typical(lambda: connection.put(key, value, lease))
    finally:
        for one in (lease, short):
            with suppress(CallFailed):
                connection.revoke(one)


class _noted:
    """A failure inside is noted in the results, and ends what is inside."""

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
    """The largest revision that cannot be read any more, 0 if all can."""
    gone, there = 0, head
    while there - gone > 1:
        middle = (gone + there) // 2
        if _readable(connection, key, middle):
            there = middle
        else:
            gone = middle
    return gone


def _readable(connection: EndpointConnection, key: bytes, revision: int) -> bool:
    try:
        connection.read(key, revision=revision, serializable=True, keys_only=True)
    except CallFailed as failure:
        if "compacted" not in failure.detail:
            raise
        return False
    return True


def _semaphores(client: Client, results: ProbeResults) -> None:
    """Each one as it is; those that look stuck a second time."""
    try:
        names = [results.name] if results.name else [one.name for one in client.overview()]
        results.semaphores = _statuses(client, names, results)
        suspects = {one.name: one for one in results.semaphores if _has_room(one)}
        if not suspects:
            return
        time.sleep(_SECOND_LOOK)
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
    """The median time of some calls, after one that is not counted."""
    action()
    times = []
    for _ in range(SAMPLES):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return median(times)


def _clock(connection: EndpointConnection) -> float | None:
    """How far etcd's wall clock is ahead, from the date in an answer of its HTTP server."""
    from email.utils import parsedate_to_datetime

    try:
        began = time.time()
        with connection.open_http("/version") as answer:
            date = answer.headers["Date"]
        ours = (began + time.time()) / 2
        return parsedate_to_datetime(date).timestamp() + 0.5 - ours  # it counts whole seconds
    except (OSError, ValueError, TypeError):
        return None  # another port for HTTP, for one


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
