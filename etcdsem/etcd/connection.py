"""Calls to etcd: one endpoint at a time, the next one when it fails.

1. All that goes wrong comes out as a `Failure`, sorted by `outcomes`. An interruption passes, and
   cancels the call.
2. A request is sent again, here, only where it is certain that it was not applied *because
   nothing was sent* (then to the next endpoint) or *because the login had run out* (after a new
   login). All other decisions to repeat are the core's.
3. An endpoint that is new, or has failed, is asked for its status before anything is entrusted to
   it: if that fails, nothing was sent, and its answer says what is wrong.
4. Streams have a channel of their own, so that a blocked stream holds up no call.
5. `Calls` decides: its generators yield each `Rpc` that has to be made, and get the answer or the
   error. `Connection` makes them in the caller's thread; `aio_connection` in an event loop.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import grpc

from etcdsem.core.commands import (
    AccessDenied,
    Failure,
    Misconfigured,
    NoSpace,
    NotApplied,
    NotConnected,
    Refused,
    Txn,
    TxnReply,
)
from etcdsem.core.outward import first_line
from etcdsem.etcd import encode, rpc
from etcdsem.etcd.diagnosis import explain
from etcdsem.etcd.outcomes import Outcome, classify
from etcdsem.etcd.settings import ConnectionSettings, Endpoint

# Measured on etcd 3.5.1 with grpcio 1.85.1; to be measured again for each grpcio release.
CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.keepalive_time_ms", 10_000),  # below 5000 etcd hangs up: too_many_pings
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 3_000),  # else a hung peer is found after 60 s
    ("grpc.http2.max_pings_without_data", 0),  # else idle streams are never pinged
    ("grpc.max_receive_message_length", -1),  # a write whose answer is too large was applied
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.use_local_subchannel_pool", 1),  # else channels share one connection's backoff
    ("grpc.enable_http_proxy", 0),
)

# Where a request is `bytes` it was encoded already.
_METHODS: dict[str, tuple[str, type[Any], type[Any]]] = {
    "txn": ("/etcdserverpb.KV/Txn", bytes, rpc.TxnResponse),
    "read": ("/etcdserverpb.KV/Txn", bytes, rpc.TxnResponse),  # counted apart
    "range": ("/etcdserverpb.KV/Range", rpc.RangeRequest, rpc.RangeResponse),
    "compact": ("/etcdserverpb.KV/Compact", rpc.CompactionRequest, rpc.CompactionResponse),
    "grant": ("/etcdserverpb.Lease/LeaseGrant", rpc.LeaseGrantRequest, rpc.LeaseGrantResponse),
    "revoke": ("/etcdserverpb.Lease/LeaseRevoke", rpc.LeaseRevokeRequest, rpc.LeaseRevokeResponse),
    "time_to_live": (
        "/etcdserverpb.Lease/LeaseTimeToLive",
        rpc.LeaseTimeToLiveRequest,
        rpc.LeaseTimeToLiveResponse,
    ),
    "leases": ("/etcdserverpb.Lease/LeaseLeases", rpc.LeaseLeasesRequest, rpc.LeaseLeasesResponse),
    "status": ("/etcdserverpb.Maintenance/Status", rpc.StatusRequest, rpc.StatusResponse),
    "alarm": ("/etcdserverpb.Maintenance/Alarm", rpc.AlarmRequest, rpc.AlarmResponse),
    "members": ("/etcdserverpb.Cluster/MemberList", rpc.MemberListRequest, rpc.MemberListResponse),
    "login": (
        "/etcdserverpb.Auth/Authenticate",
        rpc.AuthenticateRequest,
        rpc.AuthenticateResponse,
    ),
}
_STREAMS: dict[str, tuple[str, type[Any], type[Any]]] = {
    "watch": ("/etcdserverpb.Watch/Watch", rpc.WatchRequest, rpc.WatchResponse),
    "keepalive": (
        "/etcdserverpb.Lease/LeaseKeepAlive",
        rpc.LeaseKeepAliveRequest,
        rpc.LeaseKeepAliveResponse,
    ),
}

PROBE_TIMEOUT = 5.0
"""Seconds for an endpoint to answer at all."""

AT_ONCE = 128
"""How many requests of one kind are under way at a time, where there are thousands to make."""

NO_LOGIN = ""
"""The token while etcd has authentication switched off: as etcdctl, we take our user for one who
will be needed later. Once it is switched on, calls are refused without a token, and we log in."""

Metadata = tuple[tuple[str, str], ...]
R = TypeVar("R")


class Rpc(NamedTuple):
    """A call to be made: ``method(request, timeout=timeout, metadata=metadata)``."""

    method: Callable[..., Any]
    request: Any
    timeout: float
    metadata: Metadata | None = None
    same: str = ""
    """Calls under way that share this text ask for the same: one of them will do."""
    whole: bool = False
    """It must not be cancelled under way, whatever leaving it to its end may cost."""


Calling: TypeAlias = Generator[Rpc, Any, R]
"""Yields the calls to be made; the answer is sent in, an error of gRPC thrown in."""


_abandoned: list[Any] = []  # channels that even the collector must not close


class Link:
    """One endpoint's channels. `trusted` once it has answered, until it fails."""

    def __init__(
        self,
        endpoint: Endpoint,
        open_channel: Callable[[Endpoint], Any],
        stamp: tuple[int, ...] = (),
        *,
        lent: bool = False,
    ) -> None:
        self.endpoint = endpoint
        self._lent = lent
        self.stamp = stamp  # of the certificates that it was opened with
        self.trusted = False
        self._open = open_channel
        self.channel = open_channel(endpoint)
        self._stream_channel: Any = None
        self.calls: dict[str, Any] = {
            name: self.channel.unary_unary(
                path,
                request_serializer=None if sent is bytes else sent.SerializeToString,
                response_deserializer=got.FromString,
            )
            for name, (path, sent, got) in _METHODS.items()
        }

    def stream(self, name: str) -> Callable[..., Any]:
        """A bidirectional stream, on the channel for streams."""
        if self._stream_channel is None:
            self._stream_channel = self._open(self.endpoint)
        path, sent, got = _STREAMS[name]
        call: Callable[..., Any] = self._stream_channel.stream_stream(
            path, request_serializer=sent.SerializeToString, response_deserializer=got.FromString
        )
        return call

    def abandon_streams(self) -> None:
        """The channel for streams is of no use any more. To close it would wait for ever for the
        thread that gRPC could not start.
        """
        _abandoned.append(self._stream_channel)
        self._stream_channel = None

    def channels(self) -> list[Any]:
        """The channels that were opened, and are ours to close."""
        if self._lent:
            return []
        return [one for one in (self.channel, self._stream_channel) if one is not None]

    def let_go(self) -> list[Any]:
        """The same, and forget them: a channel of grpc.aio keeps its socket until it is garbage."""
        channels = self.channels()
        self.calls = _HungUp()
        self.channel = self._stream_channel = None
        return channels


class _HungUp(dict[str, Any]):
    """The calls of a link that was closed."""

    def __missing__(self, name: str) -> Any:
        raise ValueError("the channel was closed")  # as gRPC says it


class Stream(NamedTuple):
    """A stream that was opened, and on which link."""

    call: Any
    link: Link
    token: str | None


class MemberStatus(NamedTuple):
    """What the connected member says of itself."""

    endpoint: str
    version: str
    db_size: int
    leader: int
    member: int
    cluster: int
    revision: int
    errors: tuple[str, ...]
    learner: bool


class Calls:
    """What to call, where, and what to make of the answer. Makes no call itself."""

    _library: Any = grpc  # where channels come from

    def __init__(self, settings: ConnectionSettings) -> None:
        self.settings = settings
        self.counters: Counter[str] = Counter()
        self._lock = threading.RLock()  # a finalizer may come back
        self._links: list[Link | None] = [None] * len(settings.endpoints)
        self._at = 0
        self._token = None if settings.lender is None else settings.lender.token()
        self._closed = False

    # -- what the core asks for

    def transacting(self, txn: Txn, timeout: float) -> Calling[TxnReply]:
        """Perform a transaction."""
        if txn.compare:  # the core compares before each write
            return encode.decode((yield from self.calling("txn", encode.encode(txn), timeout)))
        try:
            return encode.decode((yield from self.calling("read", encode.encode(txn), timeout)))
        except NoSpace:
            # etcd before 3.5.7 refuses every transaction when it is out of space, reads too.
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
        """Create an etcd lease; gives the TTL that etcd granted."""
        request = rpc.LeaseGrantRequest(ID=lease_id, TTL=ttl)
        answer = yield from self.calling("grant", request, timeout)
        return float(answer.TTL)

    def revoking(self, lease_id: int, timeout: float) -> Calling[None]:
        """End an etcd lease, with its keys."""
        yield from self.calling("revoke", rpc.LeaseRevokeRequest(ID=lease_id), timeout)

    def asking_time_to_live(self, lease_id: int, timeout: float) -> Calling[float]:
        """Seconds that a lease has left; -1 if there is none."""
        request = rpc.LeaseTimeToLiveRequest(ID=lease_id)
        answer = yield from self.calling("time_to_live", request, timeout)
        return float(answer.TTL)

    # -- calls

    def calling(self, name: str, request: Any, timeout: float) -> Calling[Any]:
        """One unary call; raises a Failure."""
        until = time.monotonic() + timeout
        untried = len(self._links)
        unreached: list[NotConnected] = []
        logins = 1
        while True:
            link = self._link()
            try:
                if not link.trusted:
                    yield from self._probe(link, until, untried)
                if self._token is None and self.settings.user is not None:
                    yield from self._log_in(link, None, until)
                token = self._token
                self.counters[name] += 1
                left = max(0.001, until - time.monotonic())
                # etcd 3.5 before 3.5.5 crashes when a transaction that only reads is cancelled
                # (#14110), and before 3.5.7 when it was slow besides (#14891).
                whole = name == "read"
                return (yield Rpc(link.calls[name], request, left, metadata_of(token), whole=whole))
            except grpc.RpcError as error:
                outcome, failure = self._sort(error, link.endpoint)
            except NotConnected as error:
                outcome, failure = None, error
            except ValueError as closed:
                if self.settings.lender is not None and not self._closed:
                    raise Refused("the etcd3 client whose channel we use was closed") from closed
                if not self._closed:
                    raise
                raise NotApplied("the client was closed", str(link.endpoint)) from closed
            if outcome is None or outcome.elsewhere:
                self.leave(link)
            if isinstance(failure, NotConnected):
                untried -= 1
                unreached.append(failure)
                if untried > 0 and time.monotonic() < until:
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

    def _probe(self, link: Link, until: float, untried: int) -> Calling[None]:
        """Ask an endpoint for its status; raise NotConnected, with the reason, if it has none."""
        left = until - time.monotonic()
        budget = min(self.settings.dial_timeout, PROBE_TIMEOUT, left / max(1, untried))
        if untried > 1:
            budget = min(budget, 1.5)
        try:
            yield Rpc(
                link.calls["status"],
                rpc.StatusRequest(),
                max(0.05, budget),
                same=f"probe {link.endpoint}",
            )
        except grpc.RpcError as error:
            code, details = error.code().name, error.details() or ""
            if code in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "UNKNOWN", "UNIMPLEMENTED", "INTERNAL"):
                reason = explain(code, details, tls=self.settings.tls)
                self._renew_certificates(link)
                kind = Misconfigured if reason.settings else NotConnected
                raise kind(reason.text, str(link.endpoint)) from error
        link.trusted = True

    # -- endpoints

    def _link(self) -> Link:
        with self._lock:
            if self._closed:
                raise NotApplied("the client was closed")
            link = self._links[self._at]
            if link is None:
                stamp = self.settings.stamp()
                endpoint, lent = self.settings.endpoints[self._at], self.settings.lender is not None
                link = Link(endpoint, self._open_channel, stamp, lent=lent)
                self._links[self._at] = link
            return link

    def _renew_certificates(self, link: Link) -> None:
        """Certificates that were put in the place of ours are read with the next link."""
        if link.stamp != self.settings.stamp():
            with self._lock:
                self._links = [None if one is link else one for one in self._links]

    def leave(self, link: Link) -> None:
        """An endpoint has failed: the next one's turn, unless another thread has moved on."""
        link.trusted = False
        with self._lock:
            if self._links[self._at] is link:
                self._at = (self._at + 1) % len(self._links)

    def _open_channel(self, endpoint: Endpoint) -> Any:
        settings = self.settings
        if settings.lender is not None:
            return settings.lender.channel(endpoint)
        if not settings.tls:
            return self._library.insecure_channel(endpoint.address, options=CHANNEL_OPTIONS)
        credentials = grpc.ssl_channel_credentials(
            root_certificates=_read(settings.cacert),
            private_key=_read(settings.key),
            certificate_chain=_read(settings.cert),
        )
        return self._library.secure_channel(endpoint.address, credentials, options=CHANNEL_OPTIONS)

    # -- the login

    @property
    def whoami(self) -> str:
        """As which user we ask, for messages of refusal."""
        user = self.settings.user
        return " (no user was given)" if user is None else f" (user {user!r})"

    def _sort(self, error: grpc.RpcError, endpoint: Endpoint) -> tuple[Outcome, Failure]:
        code, details = error.code().name, error.details() or ""
        outcome = classify(code, details)
        detail = first_line(details) or code
        if outcome.failure is AccessDenied:
            detail += self.whoami
        return outcome, outcome.failure(detail, str(endpoint))

    def _log_in(self, link: Link, stale: str | None, until: float) -> Calling[None]:
        """Get a new token, unless another thread has since `stale`."""
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
            left = max(0.05, until - time.monotonic())
            answer = yield Rpc(link.calls["login"], request, left, same=f"login {link.endpoint}")
            token = answer.token
        except grpc.RpcError as error:
            _, failure = self._sort(error, link.endpoint)
            if "authentication is not enabled" in failure.detail:
                token = NO_LOGIN
            elif isinstance(failure, AccessDenied):
                raise AccessDenied(
                    f"the login failed: {failure.detail}", failure.endpoint
                ) from error
            else:
                # A login changes nothing, so what was to follow it was not applied.
                raise NotApplied(failure.detail, failure.endpoint) from error
        with self._lock:
            self._token = token

    def _borrow_login(self, stale: str | None) -> bool:
        """Take a lender's newer token, if it has one."""
        lender = self.settings.lender
        fresh = None if lender is None else lender.token()
        if fresh in (None, stale):
            return False
        with self._lock:
            self._token = fresh
        return True

    def _no_login(self, failure: Failure) -> AccessDenied:
        detail = failure.detail
        if self.settings.lender is not None:
            detail += (
                ": the login of the etcd3 client has run out, and it keeps no password; give user "
                "and password to etcdsem.from_etcd3() too"
            )
        return AccessDenied(detail, failure.endpoint)

    # -- streams

    def opening(self, timeout: float) -> Calling[tuple[Link, str | None]]:
        """Before a stream is opened: the link to open it on, and the token; raises a Failure."""
        until = time.monotonic() + timeout
        link = self._link()
        try:
            if not link.trusted:
                yield from self._probe(link, until, len(self._links))
            if self._token is None and self.settings.user is not None:
                yield from self._log_in(link, None, until)
        except NotConnected:
            self.leave(link)
            raise
        except ValueError as closed:
            raise NotApplied("the client was closed") from closed
        return link, self._token

    def stream_broke(self, stream: Stream, error: grpc.RpcError) -> Failure:
        """A stream has ended: log in again, or take the next endpoint. Gives the failure."""
        outcome, failure = self._sort(error, stream.link.endpoint)
        if outcome.login:
            self.forget_login(stream)
        elif not isinstance(failure, AccessDenied):
            self.leave(stream.link)
        return failure

    def forget_login(self, stream: Stream) -> None:
        """The token of a stream is no good any more."""
        if self.settings.user is None:
            self._borrow_login(stream.token)
            return
        with self._lock:
            if self._token == stream.token:
                self._token = None

    def _shut(self) -> list[Link]:
        """From now on nothing is called; gives the links to hang up."""
        with self._lock:
            self._closed = True
            return [link for link in self._links if link is not None]


class Connection(Calls):
    """Blocking calls to etcd; for any number of threads."""

    # -- what the core asks for

    def transact(self, txn: Txn, timeout: float) -> TxnReply:
        """Perform a transaction."""
        return _make(self.transacting(txn, timeout))

    def grant(self, lease_id: int, ttl: int, timeout: float) -> float:
        """Create an etcd lease; gives the TTL that etcd granted."""
        return _make(self.granting(lease_id, ttl, timeout))

    def revoke(self, lease_id: int, timeout: float) -> None:
        """End an etcd lease, with its keys."""
        _make(self.revoking(lease_id, timeout))

    def time_to_live(self, lease_id: int, timeout: float) -> float:
        """Seconds that a lease has left; -1 if there is none."""
        return _make(self.asking_time_to_live(lease_id, timeout))

    def times_to_live(self, lease_ids: Sequence[int], timeout: float) -> tuple[float | None, ...]:
        """The same for many, `AT_ONCE` of them at a time; None where no answer came in time.

        Raises the failure of the first request, which also chooses the endpoint and logs in.
        """
        until = time.monotonic() + timeout
        answers: list[float | None] = [self.time_to_live(lease_ids[0], timeout)]
        link, metadata = self._link(), metadata_of(self._token)
        for start in range(1, len(lease_ids), AT_ONCE):
            left = max(0.001, until - time.monotonic())
            calls = [
                _begin(link, rpc.LeaseTimeToLiveRequest(ID=lease_id), left, metadata)
                for lease_id in lease_ids[start : start + AT_ONCE]
            ]
            answers += map(_seconds_left, calls)
        return tuple(answers)

    def call(self, name: str, request: Any, timeout: float) -> Any:
        """One unary call; raises a Failure."""
        return _make(self.calling(name, request, timeout))

    # -- what tests and the doctor ask for

    def leases(self, timeout: float) -> list[int]:
        """All leases of the cluster."""
        return [one.ID for one in self.call("leases", rpc.LeaseLeasesRequest(), timeout).leases]

    def compact(self, revision: int, timeout: float) -> None:
        """Forget what was before a revision."""
        self.call("compact", rpc.CompactionRequest(revision=revision, physical=True), timeout)

    def status(self, timeout: float) -> MemberStatus:
        """The member that we are connected to."""
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
        """The alarms that are raised: NOSPACE, CORRUPT."""
        names = {1: "NOSPACE", 2: "CORRUPT"}
        answer = self.call("alarm", rpc.AlarmRequest(), timeout)
        return [names.get(one.alarm, str(one.alarm)) for one in answer.alarms]

    # -- streams

    def open_stream(self, name: str, requests: Iterator[Any], timeout: float) -> Stream:
        """Open a stream at the present endpoint; raises a Failure."""
        link, token = _make(self.opening(timeout))
        try:
            return Stream(link.stream(name)(requests, metadata=metadata_of(token)), link, token)
        except (RuntimeError, MemoryError) as error:
            # gRPC could not start a thread of its own, and thinks from now on that it runs.
            link.abandon_streams()
            raise NotApplied(f"no stream can be opened: {error}", str(link.endpoint)) from error

    def close(self) -> None:
        """Hang up; calls under way fail.

        In a thread of its own, for a second at most: an interruption that struck inside gRPC (a
        signal handler that raises) can leave a lock there taken for ever.
        """
        links = self._shut()
        thread = threading.Thread(target=_hang_up, args=(links,), name="etcdsem-close", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return  # the interpreter is ending, and the system hangs up for us
        thread.join(1.0)


def _make(calling: Calling[R]) -> R:
    """Make the calls, in this thread."""
    answer: Any = None
    error: BaseException | None = None
    while True:
        try:
            one = calling.send(answer) if error is None else calling.throw(error)
        except StopIteration as stop:
            result: R = stop.value
            return result
        answer = error = None
        try:
            answer = one.method(one.request, timeout=one.timeout, metadata=one.metadata)
        except BaseException as raised:  # also an interruption: it comes out of `throw`
            error = raised


def _begin(link: Link, request: Any, timeout: float, metadata: Metadata) -> Any:
    try:
        return link.calls["time_to_live"].future(request, timeout=timeout, metadata=metadata)
    except ValueError:
        return None  # the channel was closed meanwhile


def _seconds_left(call: Any) -> float | None:
    try:
        return None if call is None else float(call.result().TTL)
    except (grpc.RpcError, grpc.FutureCancelledError):
        return None


def _hang_up(links: list[Link]) -> None:
    for link in links:
        for channel in link.channels():
            channel.close()


def _together(failures: list[NotConnected]) -> NotConnected:
    """What all endpoints have said. Hopeless only if none of them gives hope."""
    if len(failures) == 1:
        return failures[0]
    if len({failure.detail for failure in failures}) == 1:
        detail = failures[0].detail
    else:
        detail = "; ".join(f"{failure.endpoint}: {failure.detail}" for failure in failures)
    hopeless = all(isinstance(failure, Misconfigured) for failure in failures)
    kind = Misconfigured if hopeless else NotConnected
    return kind(detail, ", ".join(dict.fromkeys(failure.endpoint for failure in failures)))


def metadata_of(token: str | None) -> Metadata:
    """What goes with each call."""
    if not token:
        return (("hasleader", "true"),)
    return (("hasleader", "true"), ("token", token))


def _read(path: str | None) -> bytes | None:
    if path is None:
        return None
    with open(path, "rb") as file:
        return file.read()
