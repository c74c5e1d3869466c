"""Decides which calls to make, at which endpoint, and what their answers mean.

1. Every failure is raised as a `Failure`, classified by `outcomes`.
2. A request is repeated here only if it was certainly not applied: *because nothing was sent* (then
   at the next endpoint), *because the server says that it did not process it* (then once, on
   another connection), or *because the login had expired* (after a new login). All other decisions
   to retry are the core's.
3. An endpoint that is new, or has failed, must report its status before any other request: if that
   fails, nothing was sent, and its answer shows what is wrong.
4. The generators yield each `Rpc` to make, and receive the answer or the error. `connection` makes
   the calls in the caller's thread, `aio_connection` in an event loop.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any, Generic, TypeVar

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
from etcdsem.etcd import encode, rpc
from etcdsem.etcd.diagnosis import explain_call
from etcdsem.etcd.grpc_protocol import NOT_PROCESSED, RpcError
from etcdsem.etcd.login import Login
from etcdsem.etcd.methods import Calling, Link, Rpc
from etcdsem.etcd.settings import ConnectionSettings, Endpoint

T = TypeVar("T")

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


class EndpointCalls(Generic[T]):
    """Decides what to call, where, and what answers mean. It makes no calls itself."""

    def __init__(self, settings: ConnectionSettings) -> None:
        self.settings = settings
        self.counters: Counter[str] = Counter()
        self._lock = threading.RLock()  # a finalizer may re-enter
        self._links: list[Link[T] | None] = [None] * len(settings.endpoints)
        self._at = 0
        self._login = Login(settings, self.counters)
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
        unreached: list[NotConnected] = []
        login = self._login
        logins = repeats = 1
        while True:
            link = self._link()
            try:
                if not link.trusted or login.token is None:
                    yield from self._prepare(link, until, len(self._links) - len(unreached))
                token = login.token
                self.counters[name] += 1
                return (yield Rpc(link, name, request, max(0.001, until - boot_time()), token))
            except RpcError as error:
                if error.code == NOT_PROCESSED and repeats and boot_time() < until:
                    repeats -= 1
                    continue
                outcome, failure = login.outcome_of(error, link.endpoint)
            except NotConnected as error:
                outcome, failure = None, error
            if outcome is None or outcome.elsewhere:
                self.leave(link)
            if isinstance(failure, NotConnected):
                unreached.append(failure)
                if len(unreached) < len(self._links) and boot_time() < until:
                    continue
                failure = _together(unreached)
            elif outcome is not None and outcome.login:
                if self.settings.user is None:
                    if login.borrow(token):
                        continue
                    failure = login.refused(failure)
                elif logins:
                    logins -= 1
                    yield from login.renew(link, token, until)
                    continue
            raise failure

    def _prepare(self, link: Link[T], until: float, untried: int) -> Calling[None]:
        """Probe an endpoint that is not trusted, and log in if there is no token."""
        if not link.trusted:
            yield from self._probe(link, until, untried)
        if self._login.token is None:
            yield from self._login.renew(link, None, until)

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

    @property
    def whoami(self) -> str:
        """The user, for messages of refusal."""
        return self._login.whoami

    # -- streams

    def opening(self, timeout: float) -> Calling[tuple[Link[T], str | None]]:
        """Prepare opening a stream: returns the link and the token to use. Raises a Failure."""
        until = boot_time() + timeout
        link = self._link()
        try:
            yield from self._prepare(link, until, len(self._links))
        except NotConnected:
            self.leave(link)
            raise
        return link, self._login.token

    def stream_broke(self, link: Link[T], token: str | None, error: RpcError) -> Failure:
        """Handle the end of a stream: log in again, or switch the endpoint. Returns the failure."""
        outcome, failure = self._login.outcome_of(error, link.endpoint)
        if outcome.login:
            self._login.forget(token)
        elif not isinstance(failure, AccessDenied):
            self.leave(link)
        return failure

    def _shut(self) -> list[Link[T]]:
        """Stop making calls; returns the links to close."""
        with self._lock:
            self._closed = True
            return [link for link in self._links if link is not None]


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
