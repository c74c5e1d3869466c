"""Calls to etcd: one endpoint at a time, the next one when it fails.

1. Every failure is raised as a `Failure`, classified by `outcomes`. Interruptions pass through, and
   take the connection of their call out of use (`transport`).
2. A request is repeated here only if it was certainly not applied: *because nothing was sent* (then
   at the next endpoint), *because the server says that it did not process it* (then once, on
   another connection), or *because the login had expired* (after a new login). All other decisions
   to retry are the core's.
3. An endpoint that is new, or has failed, is asked for its status before any other request: if that
   fails, nothing was sent, and its answer shows what is wrong.
4. Streams have their own connection, so that a blocked stream holds up no call.
5. `Calls` decides: its generators yield each `Rpc` to make, and receive the answer or the error.
   `Connection` makes the calls in the caller's thread; `aio_connection` in an event loop.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Generator, Sequence
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

from google.protobuf.message import DecodeError

from etcdsem.clock import boot_time
from etcdsem.core.commands import (
    AccessDenied,
    Failure,
    Misconfigured,
    NoSpace,
    NotApplied,
    NotConnected,
    Txn,
    TxnReply,
)
from etcdsem.core.error_mapping import first_line
from etcdsem.etcd import encode, rpc
from etcdsem.etcd.diagnosis import explain_call
from etcdsem.etcd.dialing import Dialer
from etcdsem.etcd.grpc_protocol import NOT_PROCESSED, RpcError
from etcdsem.etcd.outcomes import Outcome, classify
from etcdsem.etcd.settings import ConnectionSettings, Endpoint
from etcdsem.etcd.transport import Transport

METHODS: dict[str, tuple[str, type[Any]]] = {
    "txn": ("/etcdserverpb.KV/Txn", rpc.TxnResponse),
    "read": ("/etcdserverpb.KV/Txn", rpc.TxnResponse),  # counted separately
    "range": ("/etcdserverpb.KV/Range", rpc.RangeResponse),
    "compact": ("/etcdserverpb.KV/Compact", rpc.CompactionResponse),
    "grant": ("/etcdserverpb.Lease/LeaseGrant", rpc.LeaseGrantResponse),
    "revoke": ("/etcdserverpb.Lease/LeaseRevoke", rpc.LeaseRevokeResponse),
    "time_to_live": ("/etcdserverpb.Lease/LeaseTimeToLive", rpc.LeaseTimeToLiveResponse),
    "leases": ("/etcdserverpb.Lease/LeaseLeases", rpc.LeaseLeasesResponse),
    "status": ("/etcdserverpb.Maintenance/Status", rpc.StatusResponse),
    "alarm": ("/etcdserverpb.Maintenance/Alarm", rpc.AlarmResponse),
    "members": ("/etcdserverpb.Cluster/MemberList", rpc.MemberListResponse),
    "login": ("/etcdserverpb.Auth/Authenticate", rpc.AuthenticateResponse),
}
"""The gRPC method and the type of its response."""

PROBE_TIMEOUT = 5.0
"""Seconds for an endpoint to answer a probe."""

AT_ONCE = 128
"""Maximum number of concurrent requests of one kind if there are thousands to make."""

_NO_ETCD = (
    "NOT_PROCESSED",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "UNKNOWN",
    "UNIMPLEMENTED",
    "INTERNAL",
)
"""Answers to a probe that make an endpoint unusable. Any other is a refusal by a real etcd."""

NO_LOGIN = ""
"""The token while etcd has authentication disabled: like etcdctl, we assume that the user will be
needed later. Once it is enabled, calls without a token are refused, and we log in."""

R = TypeVar("R")
T = TypeVar("T")


class Link(Generic[T]):
    """One endpoint. `trusted` from its first answer until it fails."""

    def __init__(self, endpoint: Endpoint, transport: T) -> None:
        self.endpoint = endpoint
        self.transport = transport
        self.trusted = False


class Rpc(NamedTuple):
    """A call to make."""

    link: Link[Any]
    name: str
    request: Any
    """A message, or its bytes."""
    timeout: float
    token: str | None = None
    same: str = ""
    """Concurrent calls with the same text ask for the same; one of them suffices."""

    @property
    def path(self) -> str:
        """The method in gRPC's notation."""
        return METHODS[self.name][0]

    @property
    def whole(self) -> bool:
        """It must not be cancelled in progress. etcd 3.5 before 3.5.5 crashes when a read-only
        transaction is cancelled (#14110), and before 3.5.7 if it was slow as well (#14891).
        """
        return self.name == "read"

    def encoded(self) -> bytes:
        """The request as bytes."""
        request = self.request
        data: bytes = request if isinstance(request, bytes) else request.SerializeToString()
        return data

    def decoded(self, data: bytes) -> Any:
        """The response as a message. Raises RpcError."""
        try:
            return METHODS[self.name][1].FromString(data)
        except DecodeError as error:
            raise RpcError("INTERNAL", f"Exception deserializing response: {error}") from None


Calling: TypeAlias = Generator[Rpc, Any, R]
"""Yields the calls to make; the answer is sent in, an RpcError thrown in."""


class MemberStatus(NamedTuple):
    """The connected member's own status."""

    endpoint: str
    version: str
    db_size: int
    leader: int
    member: int
    cluster: int
    revision: int
    errors: tuple[str, ...]
    learner: bool


class Calls(Generic[T]):
    """Decides what to call, where, and what answers mean. It makes no calls itself."""

    def __init__(self, settings: ConnectionSettings) -> None:
        self.settings = settings
        self.counters: Counter[str] = Counter()
        self._lock = threading.RLock()  # a finalizer may re-enter
        self._links: list[Link[T] | None] = [None] * len(settings.endpoints)
        self._at = 0
        self._token = None if settings.external is None else settings.external.token()
        self._closed = False

    # -- requests of the core

    def transacting(self, txn: Txn, timeout: float) -> Calling[TxnReply]:
        """Perform a transaction."""
        if txn.compare:  # the core compares before each write
            return encode.decode((yield from self.calling("txn", encode.encode(txn), timeout)))
        try:
            return encode.decode((yield from self.calling("read", encode.encode(txn), timeout)))
        except NoSpace:
            # etcd before 3.5.7 rejects every transaction when out of space, even read-only ones.
            return (yield from self._read_one_by_one(txn, timeout))

    def _read_one_by_one(self, txn: Txn, timeout: float) -> Calling[TxnReply]:
        """The reads of a transaction, all at the revision of the first."""
        revision = 0
        replies = []
        for operation in txn.success:
            request = encode.encode_range(operation, revision)
            answer = yield from self.calling("range", request, timeout)
            revision = revision or answer.header.revision
            replies.append(encode.decode_range(answer))
        return TxnReply(True, revision, tuple(replies))

    def granting(self, lease_id: int, ttl: int, timeout: float) -> Calling[float]:
        """Create an etcd lease; returns the TTL that etcd granted."""
        request = rpc.LeaseGrantRequest(ID=lease_id, TTL=ttl)
        answer = yield from self.calling("grant", request, timeout)
        return float(answer.TTL)

    def revoking(self, lease_id: int, timeout: float) -> Calling[None]:
        """Revoke an etcd lease, and delete its keys."""
        yield from self.calling("revoke", rpc.LeaseRevokeRequest(ID=lease_id), timeout)

    def asking_time_to_live(self, lease_id: int, timeout: float) -> Calling[float]:
        """The seconds that a lease has left; -1 if it does not exist."""
        request = rpc.LeaseTimeToLiveRequest(ID=lease_id)
        answer = yield from self.calling("time_to_live", request, timeout)
        return float(answer.TTL)

    # -- calls

    def calling(self, name: str, request: Any, timeout: float) -> Calling[Any]:
        """Make one unary call. Raises a Failure."""
        until = boot_time() + timeout
        untried = len(self._links)
        unreached: list[NotConnected] = []
        logins = repeats = 1
        while True:
            link = self._link()
            try:
                if not link.trusted:
                    yield from self._probe(link, until, untried)
                if self._token is None and self.settings.user is not None:
                    yield from self._log_in(link, None, until)
                token = self._token
                self.counters[name] += 1
                return (yield Rpc(link, name, request, max(0.001, until - boot_time()), token))
            except RpcError as error:
                if error.code == NOT_PROCESSED and repeats and boot_time() < until:
                    repeats -= 1
                    continue
                outcome, failure = self._sort(error, link.endpoint)
            except NotConnected as error:
                outcome, failure = None, error
            if outcome is None or outcome.elsewhere:
                self.leave(link)
            if isinstance(failure, NotConnected):
                untried -= 1
                unreached.append(failure)
                if untried > 0 and boot_time() < until:
                    continue
                failure = _together(unreached)
            elif outcome is not None and outcome.login:
                if self.settings.user is None:
                    if self._borrow_login(token):
                        continue
                    failure = self._no_login(failure)
                elif logins:
                    logins -= 1
                    yield from self._log_in(link, token, until)
                    continue
            raise failure

    def _probe(self, link: Link[T], until: float, untried: int) -> Calling[None]:
        """Ask an endpoint for its status; raises NotConnected with the reason if that fails."""
        left = until - boot_time()
        budget = min(self.settings.dial_timeout, PROBE_TIMEOUT, left / max(1, untried))
        if untried > 1:
            budget = min(budget, 1.5)
        request, same = rpc.StatusRequest(), f"probe {link.endpoint}"
        try:
            yield Rpc(link, "status", request, max(0.05, budget), same=same)
        except RpcError as error:
            if error.code in _NO_ETCD:
                reason = explain_call(error.code, error.details)
                kind = Misconfigured if reason.settings else NotConnected
                raise kind(reason.text, str(link.endpoint)) from error
        link.trusted = True

    # -- endpoints

    def _link(self) -> Link[T]:
        with self._lock:
            if self._closed:
                raise NotApplied("the client was closed")
            link = self._links[self._at]
            if link is None:
                endpoint = self.settings.endpoints[self._at]
                link = self._links[self._at] = Link(endpoint, self._connect(endpoint))
            return link

    def _connect(self, endpoint: Endpoint) -> T:
        raise NotImplementedError

    def leave(self, link: Link[T]) -> None:
        """An endpoint has failed: switch to the next, unless another thread has done so."""
        link.trusted = False
        with self._lock:
            if self._links[self._at] is link:
                self._at = (self._at + 1) % len(self._links)

    # -- the login

    @property
    def whoami(self) -> str:
        """The user, for messages of refusal."""
        user = self.settings.user
        return " (no user was given)" if user is None else f" (user {user!r})"

    def _sort(self, error: RpcError, endpoint: Endpoint) -> tuple[Outcome, Failure]:
        outcome = classify(error.code, error.details)
        detail = first_line(error.details) or error.code
        if outcome.failure is AccessDenied:
            detail += self.whoami
        return outcome, outcome.failure(detail, str(endpoint))

    def _log_in(self, link: Link[T], stale: str | None, until: float) -> Calling[None]:
        """Get a new token, unless another thread has replaced `stale` already."""
        with self._lock:
            if self._token != stale:
                return
        user, password = self.settings.user or "", self.settings.current_password()
        if password is None:
            raise AccessDenied(
                "the login failed: there is no password (ETCDSEM_PASSWORD or ETCDSEM_PASSWORD_FILE)"
                f"{self.whoami}",
                str(link.endpoint),
            )
        request = rpc.AuthenticateRequest(name=user, password=password)
        self.counters["login"] += 1
        try:
            left = max(0.05, until - boot_time())
            answer = yield Rpc(link, "login", request, left, same=f"login {link.endpoint}")
            token = answer.token
        except RpcError as error:
            _, failure = self._sort(error, link.endpoint)
            if "authentication is not enabled" in failure.detail:
                token = NO_LOGIN
            elif isinstance(failure, AccessDenied):
                raise AccessDenied(
                    f"the login failed: {failure.detail}", failure.endpoint
                ) from error
            else:
                # A login changes nothing, so the request that needed it was not applied.
                raise NotApplied(failure.detail, failure.endpoint) from error
        with self._lock:
            self._token = token

    def _borrow_login(self, stale: str | None) -> bool:
        """Take an external client's newer token, if it has one."""
        external = self.settings.external
        fresh = None if external is None else external.token()
        if fresh in (None, stale):
            return False
        with self._lock:
            self._token = fresh
        return True

    def _no_login(self, failure: Failure) -> AccessDenied:
        detail = failure.detail
        if self.settings.external is not None:
            detail += (
                ": the login of the etcd3 client has expired, and it keeps no password; pass user "
                "and password to etcdsem.from_etcd3() too"
            )
        return AccessDenied(detail, failure.endpoint)

    # -- streams

    def opening(self, timeout: float) -> Calling[tuple[Link[T], str | None]]:
        """Prepare opening a stream: returns the link and the token to use. Raises a Failure."""
        until = boot_time() + timeout
        link = self._link()
        try:
            if not link.trusted:
                yield from self._probe(link, until, len(self._links))
            if self._token is None and self.settings.user is not None:
                yield from self._log_in(link, None, until)
        except NotConnected:
            self.leave(link)
            raise
        return link, self._token

    def stream_broke(self, link: Link[T], token: str | None, error: RpcError) -> Failure:
        """Handle the end of a stream: log in again, or switch the endpoint. Returns the failure."""
        outcome, failure = self._sort(error, link.endpoint)
        if outcome.login:
            self.forget_login(token)
        elif not isinstance(failure, AccessDenied):
            self.leave(link)
        return failure

    def forget_login(self, token: str | None) -> None:
        """Forget a stream's token that has become invalid."""
        if self.settings.user is None:
            self._borrow_login(token)
            return
        with self._lock:
            if self._token == token:
                self._token = None

    def _shut(self) -> list[Link[T]]:
        """Stop making calls; returns the links to close."""
        with self._lock:
            self._closed = True
            return [link for link in self._links if link is not None]


class Connection(Calls[Transport]):
    """Blocking calls to etcd, for any number of threads."""

    # -- requests of the core

    def transact(self, txn: Txn, timeout: float) -> TxnReply:
        """Perform a transaction."""
        return _make(self.transacting(txn, timeout))

    def grant(self, lease_id: int, ttl: int, timeout: float) -> float:
        """Create an etcd lease; returns the TTL that etcd granted."""
        return _make(self.granting(lease_id, ttl, timeout))

    def revoke(self, lease_id: int, timeout: float) -> None:
        """Revoke an etcd lease, and delete its keys."""
        _make(self.revoking(lease_id, timeout))

    def time_to_live(self, lease_id: int, timeout: float) -> float:
        """The seconds that a lease has left; -1 if it does not exist."""
        return _make(self.asking_time_to_live(lease_id, timeout))

    def times_to_live(self, lease_ids: Sequence[int], timeout: float) -> tuple[float | None, ...]:
        """The same for many leases, `AT_ONCE` at a time; None if no answer came in time.

        Raises the failure of the first request, which also chooses the endpoint and logs in.
        """
        until = boot_time() + timeout
        answers: list[float | None] = [self.time_to_live(lease_ids[0], timeout)]
        link, token = self._link(), self._token
        path, kind = METHODS["time_to_live"]
        for start in range(1, len(lease_ids), AT_ONCE):
            requests = [
                rpc.LeaseTimeToLiveRequest(ID=lease_id).SerializeToString()
                for lease_id in lease_ids[start : start + AT_ONCE]
            ]
            left = max(0.001, until - boot_time())
            found = link.transport.call_many(path, requests, left, token)
            answers += [None if one is None else float(kind.FromString(one).TTL) for one in found]
        return tuple(answers)

    def call(self, name: str, request: Any, timeout: float) -> Any:
        """Make one unary call. Raises a Failure."""
        return _make(self.calling(name, request, timeout))

    # -- requests of tests and of `etcdsem doctor`

    def leases(self, timeout: float) -> list[int]:
        """All lease IDs of the cluster."""
        return [one.ID for one in self.call("leases", rpc.LeaseLeasesRequest(), timeout).leases]

    def compact(self, revision: int, timeout: float) -> None:
        """Compact the history before a revision."""
        self.call("compact", rpc.CompactionRequest(revision=revision, physical=True), timeout)

    def status(self, timeout: float) -> MemberStatus:
        """The status of the connected member."""
        answer = self.call("status", rpc.StatusRequest(), timeout)
        return MemberStatus(
            endpoint=str(self.settings.endpoints[self._at]),
            version=answer.version,
            db_size=answer.dbSize,
            leader=answer.leader,
            member=answer.header.member_id,
            cluster=answer.header.cluster_id,
            revision=answer.header.revision,
            errors=tuple(answer.errors),
            learner=answer.isLearner,
        )

    def alarms(self, timeout: float) -> list[str]:
        """The raised alarms: NOSPACE, CORRUPT."""
        names = {1: "NOSPACE", 2: "CORRUPT"}
        answer = self.call("alarm", rpc.AlarmRequest(), timeout)
        return [names.get(one.alarm, str(one.alarm)) for one in answer.alarms]

    # -- connections

    def _connect(self, endpoint: Endpoint) -> Transport:
        external = self.settings.external
        return (
            Transport(Dialer(self.settings, endpoint))
            if external is None
            else external.transport(endpoint)
        )

    def open_streams(self, timeout: float) -> tuple[Link[Transport], str | None]:
        """Prepare opening streams: returns the link and the token to use. Raises a Failure."""
        return _make(self.opening(timeout))

    def sweep(self) -> None:
        """Close connections that have been idle for a while. Never blocks."""
        for link in self._links:
            if link is not None:
                link.transport.sweep()

    def close(self) -> None:
        """Close all connections; calls in progress fail."""
        for link in self._shut():
            link.transport.close()


def _make(calling: Calling[R]) -> R:
    """Make the calls in this thread."""
    answer: Any = None
    error: BaseException | None = None
    while True:
        try:
            one = calling.send(answer) if error is None else calling.throw(error)
        except StopIteration as stop:
            result: R = stop.value
            return result
        finally:
            answer = error = None  # an error's traceback refers to this frame
        try:
            data = one.link.transport.call(
                one.path, one.encoded(), one.timeout, one.token, whole=one.whole
            )
            answer = one.decoded(data)
        except BaseException as raised:  # includes interruptions; `throw` raises them
            error = raised


def _together(failures: list[NotConnected]) -> NotConnected:
    """Combine the failures of all endpoints. Misconfigured only if all of them are."""
    if len(failures) == 1:
        return failures[0]
    if len({failure.detail for failure in failures}) == 1:
        detail = failures[0].detail
    else:
        detail = "; ".join(f"{failure.endpoint}: {failure.detail}" for failure in failures)
    hopeless = all(isinstance(failure, Misconfigured) for failure in failures)
    kind = Misconfigured if hopeless else NotConnected
    return kind(detail, ", ".join(dict.fromkeys(failure.endpoint for failure in failures)))
