"""Calls to etcd, blocking: one endpoint at a time, the next one when it fails.

1. All that goes wrong comes out as a `Failure`, sorted by `outcomes`. An interruption passes, and
   cancels the call.
2. A request is sent again, here, only where it is certain that it was not applied *because
   nothing was sent* (then to the next endpoint) or *because the login had run out* (after a new
   login). All other decisions to repeat are the core's.
3. An endpoint that is new, or has failed, is asked for its status before anything is entrusted to
   it: if that fails, nothing was sent, and its answer says what is wrong.
4. Streams have a channel of their own, so that a blocked stream holds up no call.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import grpc

from etcdsem.core.commands import (
    AccessDenied,
    Failure,
    NoSpace,
    NotApplied,
    NotConnected,
    Txn,
    TxnReply,
)
from etcdsem.core.outward import first_line
from etcdsem.etcd import encode, rpc
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

_METHODS: dict[str, tuple[str, type[Any], type[Any]]] = {
    "txn": ("/etcdserverpb.KV/Txn", rpc.TxnRequest, rpc.TxnResponse),
    "read": ("/etcdserverpb.KV/Txn", rpc.TxnRequest, rpc.TxnResponse),  # counted apart
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

Metadata = tuple[tuple[str, str], ...]
R = TypeVar("R")


class Link:
    """One endpoint's channels. `trusted` once it has answered, until it fails."""

    def __init__(self, endpoint: Endpoint, open_channel: Callable[[Endpoint], Any]) -> None:
        self.endpoint = endpoint
        self.trusted = False
        self._open = open_channel
        self.channel = open_channel(endpoint)
        self._stream_channel: Any = None
        self.calls: dict[str, Callable[..., Any]] = {
            name: self.channel.unary_unary(
                path,
                request_serializer=sent.SerializeToString,
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

    def close(self) -> None:
        """Hang up."""
        self.channel.close()
        if self._stream_channel is not None:
            self._stream_channel.close()


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


class Connection:
    """Blocking calls to etcd; for any number of threads."""

    def __init__(self, settings: ConnectionSettings) -> None:
        self.settings = settings
        self.counters: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._links: list[Link | None] = [None] * len(settings.endpoints)
        self._at = 0
        self._token: str | None = None
        self._closed = False

    # -- what the core asks for

    def transact(self, txn: Txn, timeout: float) -> TxnReply:
        """Perform a transaction."""
        if txn.compare:  # the core compares before each write
            return encode.decode(self.call("txn", encode.encode(txn), timeout))
        try:
            return encode.decode(self.call("read", encode.encode(txn), timeout))
        except NoSpace:
            # etcd before 3.5.7 refuses every transaction when it is out of space, reads too.
            return self._read_one_by_one(txn, timeout)

    def _read_one_by_one(self, txn: Txn, timeout: float) -> TxnReply:
        """The reads of a transaction, all at the revision of the first."""
        revision = 0
        replies = []
        for operation in txn.success:
            answer = self.call("range", encode.encode_range(operation, revision), timeout)
            revision = revision or answer.header.revision
            replies.append(encode.decode_range(answer))
        return TxnReply(True, revision, tuple(replies))

    def grant(self, lease_id: int, ttl: int, timeout: float) -> float:
        """Create an etcd lease; gives the TTL that etcd granted."""
        request = rpc.LeaseGrantRequest(ID=lease_id, TTL=ttl)
        return float(self.call("grant", request, timeout).TTL)

    def revoke(self, lease_id: int, timeout: float) -> None:
        """End an etcd lease, with its keys."""
        self.call("revoke", rpc.LeaseRevokeRequest(ID=lease_id), timeout)

    def time_to_live(self, lease_id: int, timeout: float) -> float:
        """Seconds that a lease has left; -1 if there is none."""
        request = rpc.LeaseTimeToLiveRequest(ID=lease_id)
        return float(self.call("time_to_live", request, timeout).TTL)

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

    # -- calls

    def call(self, name: str, request: Any, timeout: float) -> Any:
        """One unary call; raises a Failure."""
        until = time.monotonic() + timeout
        untried = len(self._links)
        logins = 1
        while True:
            link = self._link()
            try:
                if not link.trusted:
                    self._probe(link, until, untried)
                if self._token is None and self.settings.user is not None:
                    self._log_in(link, None, until)
                token = self._token
                self.counters[name] += 1
                return link.calls[name](
                    request, timeout=max(0.001, until - time.monotonic()), metadata=_metadata(token)
                )
            except grpc.RpcError as error:
                outcome, failure = _sort(error, link.endpoint)
            except NotConnected as unreached:
                outcome, failure = None, unreached
            except ValueError as closed:
                if not self._closed:
                    raise
                raise NotApplied("the client was closed", str(link.endpoint)) from closed
            if outcome is None or outcome.elsewhere:
                self.leave(link)
            if isinstance(failure, NotConnected):
                untried -= 1
                if untried > 0 and time.monotonic() < until:
                    continue
            elif outcome is not None and outcome.login and self.settings.user and logins:
                logins -= 1
                self._log_in(link, token, until)
                continue
            raise failure

    def _probe(self, link: Link, until: float, untried: int) -> None:
        """Ask an endpoint for its status; raise NotConnected, with the reason, if it has none."""
        left = until - time.monotonic()
        budget = min(self.settings.dial_timeout, left / max(1, untried))
        if untried > 1:
            budget = min(budget, 1.5)
        try:
            link.calls["status"](rpc.StatusRequest(), timeout=max(0.05, budget))
        except grpc.RpcError as error:
            code, details = error.code().name, error.details() or ""
            if code in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "UNKNOWN", "UNIMPLEMENTED", "INTERNAL"):
                raise NotConnected(self._explain(code, details), str(link.endpoint)) from error
        link.trusted = True

    def _explain(self, code: str, details: str) -> str:
        lower = details.lower()
        if code == "DEADLINE_EXCEEDED":
            return "no answer in time"
        if code == "UNIMPLEMENTED" or "http status" in lower or "content-type" in lower:
            return f"something answers there that is not etcd's client port ({first_line(details)})"
        if "ssl" in lower or "tls" in lower or "certificate" in lower or "handshake" in lower:
            return f"TLS failed: {first_line(details)}"
        if not self.settings.tls and "socket closed" in lower:
            return "the connection was closed at once: does this etcd want TLS (https://)?"
        return first_line(details) or code

    # -- endpoints

    def _link(self) -> Link:
        with self._lock:
            if self._closed:
                raise NotApplied("the client was closed")
            link = self._links[self._at]
            if link is None:
                link = self._links[self._at] = Link(
                    self.settings.endpoints[self._at], self._open_channel
                )
            return link

    def leave(self, link: Link) -> None:
        """An endpoint has failed: the next one's turn, unless another thread has moved on."""
        link.trusted = False
        with self._lock:
            if self._links[self._at] is link:
                self._at = (self._at + 1) % len(self._links)

    def _open_channel(self, endpoint: Endpoint) -> Any:
        settings = self.settings
        if not settings.tls:
            return grpc.insecure_channel(endpoint.address, options=CHANNEL_OPTIONS)
        credentials = grpc.ssl_channel_credentials(
            root_certificates=_read(settings.cacert),
            private_key=_read(settings.key),
            certificate_chain=_read(settings.cert),
        )
        return grpc.secure_channel(endpoint.address, credentials, options=CHANNEL_OPTIONS)

    # -- the login

    def _log_in(self, link: Link, stale: str | None, until: float) -> None:
        """Get a new token, unless another thread has since `stale`."""
        with self._lock:
            if self._token != stale:
                return
        request = rpc.AuthenticateRequest(
            name=self.settings.user or "", password=self.settings.password or ""
        )
        self.counters["login"] += 1
        try:
            answer = link.calls["login"](request, timeout=max(0.05, until - time.monotonic()))
        except grpc.RpcError as error:
            _, failure = _sort(error, link.endpoint)
            if isinstance(failure, AccessDenied):
                raise AccessDenied(
                    f"the login of user {self.settings.user!r} failed: {failure.detail}",
                    failure.endpoint,
                ) from error
            # A login changes nothing, so what was to follow it was not applied.
            raise NotApplied(failure.detail, failure.endpoint) from error
        with self._lock:
            self._token = answer.token

    # -- streams

    def open_stream(self, name: str, requests: Iterator[Any], timeout: float) -> Stream:
        """Open a stream at the present endpoint; raises a Failure."""
        until = time.monotonic() + timeout
        link = self._link()
        try:
            if not link.trusted:
                self._probe(link, until, len(self._links))
            if self._token is None and self.settings.user is not None:
                self._log_in(link, None, until)
        except NotConnected:
            self.leave(link)
            raise
        except ValueError as closed:
            raise NotApplied("the client was closed") from closed
        token = self._token
        call = link.stream(name)(requests, metadata=_metadata(token))
        return Stream(call, link, token)

    def stream_broke(self, stream: Stream, error: grpc.RpcError) -> Failure:
        """A stream has ended: log in again, or take the next endpoint. Gives the failure."""
        outcome, failure = _sort(error, stream.link.endpoint)
        if outcome.login and self.settings.user:
            with self._lock:
                if self._token == stream.token:
                    self._token = None
        elif not isinstance(failure, AccessDenied):
            self.leave(stream.link)
        return failure

    def forget_login(self, stream: Stream) -> None:
        """The token of a stream is no good any more."""
        with self._lock:
            if self._token == stream.token:
                self._token = None

    def close(self) -> None:
        """Hang up; calls under way fail.

        In a thread of its own, for a second at most: an interruption that struck inside gRPC (a
        signal handler that raises) can leave a lock there taken for ever.
        """
        with self._lock:
            self._closed = True
            links = [link for link in self._links if link is not None]
        thread = threading.Thread(target=_hang_up, args=(links,), name="etcdsem-close", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return  # the interpreter is ending, and the system hangs up for us
        thread.join(1.0)


def _hang_up(links: list[Link]) -> None:
    for link in links:
        link.close()


def _metadata(token: str | None) -> Metadata:
    if token is None:
        return (("hasleader", "true"),)
    return (("hasleader", "true"), ("token", token))


def _sort(error: grpc.RpcError, endpoint: Endpoint) -> tuple[Outcome, Failure]:
    code, details = error.code().name, error.details() or ""
    outcome = classify(code, details)
    return outcome, outcome.failure(first_line(details) or code, str(endpoint))


def _read(path: str | None) -> bytes | None:
    if path is None:
        return None
    with open(path, "rb") as file:
        return file.read()
