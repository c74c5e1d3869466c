"""The watches and keepalives of a client, on one connection: what to send, and what answers mean.

1. Both streams share a separate connection. If one of them ends, both are opened again on a new
   connection, at the next endpoint if this one has failed. Renewals in progress are answered
   first: a server that refuses the watches does not end leases.
2. `watch`, `remove`, `renew` and `restart` never block, and may be called by any thread, with or
   without the guard held.
3. Listeners are called under the guard. Lock order: guard, then ours; ours is never held while a
   listener is called.
4. A renewal that was not answered when a connection broke is sent again on the next. After
   `restart`, or if no connection can be made, it is not, and late answers are dropped: the
   heartbeat, which knows the deadlines, asks again.
5. A refused login is not retried until another watch or renewal is requested.

The drivers are `stream_thread` and `aio_streams`: they connect, and move bytes.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

from etcdsem.core.commands import AccessDenied, Failure, Listener
from etcdsem.core.watchbook import WatchBook, WatchEntry, WatchHandle, WatchRequest, WatchResponse
from etcdsem.etcd import rpc
from etcdsem.etcd.calls import EndpointCalls
from etcdsem.etcd.encode import watch_request, watch_response
from etcdsem.etcd.grpc_protocol import RpcError
from etcdsem.etcd.methods import Link

WATCH = "/etcdserverpb.Watch/Watch"
KEEPALIVE = "/etcdserverpb.Lease/LeaseKeepAlive"

OPEN_TIMEOUT = 5.0
"""Seconds to find an endpoint and connect to it."""

SHORTEST_PAUSE, LONGEST_PAUSE = 0.01, 1.0
"""Seconds between two attempts to connect."""


class Carrier(Protocol):
    """A connection that carries streams."""

    def open(self, path: str, token: str | None) -> object:
        """Open a stream. Never blocks."""

    def send(self, stream: Any, message: bytes) -> None:
        """Send a message on a stream. Never blocks."""


class Streams:
    """All watches and renewals of a client."""

    def __init__(
        self,
        connection: EndpointCalls[Any],
        guard: AbstractContextManager[None],
        on_renewed: Callable[[int, float], None],
    ) -> None:
        self._connection = connection
        self._guard = guard
        self._on_renewed = on_renewed
        self._lock = threading.RLock()  # a finalizer may re-enter
        self._book = WatchBook(connection.whoami)
        self._outbox: deque[WatchRequest] = deque()  # for the watch stream
        self._renewals: deque[int] = deque()  # leases to renew
        self._watch: object = None  # the stream, on the present connection
        self._keepalive: object = None
        self._asked: set[int] = set()  # leases whose renewal was sent but not answered
        self._refusal: RpcError | None = None  # of the watch stream, until `_before` are answered
        self._before: set[int] = set()
        self._link: Link[Any] | None = None  # the present connection's endpoint
        self._token: str | None = None  # the token used to open its streams
        self._restart = False  # the present connection must be given up
        self._closed = False

    # -- requests of the core

    def watch(
        self,
        listener: Listener,
        key: bytes,
        end: bytes = b"",
        *,
        start: int = 0,
        only: Literal["put", "delete"] | None = None,
    ) -> WatchHandle:
        """Request a watch; the first one makes the connection."""
        entry = WatchEntry(listener, key, end, start, only)
        with self._lock:
            self._outbox.append(self._book.add(entry))
        self._wake()
        return WatchHandle(self, entry)

    def remove(self, entry: WatchEntry) -> None:
        """Cancel a watch."""
        with self._lock:
            request = self._book.remove(entry)
            if request is None:
                return
            self._outbox.append(request)
        self._wake()

    def renew(self, lease_id: int) -> None:
        """Send a keepalive for a lease."""
        if not self._closed:
            self._connection.counters["keepalives"] += 1
            self._renewals.append(lease_id)
            self._wake()

    def restart(self) -> None:
        """Give up a silent connection; the next renewal goes to the next endpoint."""
        with self._lock:
            self._renewals.clear()
            self._asked.clear()
            self._keepalive = None
            self._restart = self._link is not None
            if self._link is not None:
                self._connection.leave(self._link)
        self._wake()

    def _wake(self) -> None:
        """Wake the driver: there is something to do."""
        raise NotImplementedError

    # -- for the driver

    @property
    def _wanted(self) -> bool:
        """Is there anything to connect for?"""
        return bool(self._book.entries or self._renewals)

    def _connected(self, link: Link[Any], token: str | None) -> None:
        """A new connection was made."""
        with self._lock:
            self._link, self._token = link, token
            self._restart = False

    def _disconnected(self) -> None:
        """The connection was given up. Unanswered renewals go to the next one."""
        with self._lock:
            self._renewals.extend(self._asked.difference(self._renewals))
            self._link = self._watch = self._keepalive = self._refusal = None
            self._asked.clear()
            self._restart = False
            self._outbox.clear()

    def _unreached(self) -> None:
        """No connection could be made. The heartbeat will ask again."""
        self._renewals.clear()

    def _flush(self, carrier: Carrier) -> None:
        """Send what is queued, opening the streams that are needed."""
        with self._lock:
            if self._restart:
                return  # requests since then go to the next connection
            if self._watch is None and self._book.entries:
                self._watch = carrier.open(WATCH, self._token)
                self._outbox = deque(self._book.reopened())
            if self._watch is not None:
                while self._outbox:
                    request = watch_request(self._outbox.popleft())
                    carrier.send(self._watch, request.SerializeToString())
            if self._renewals and self._keepalive is None:
                self._keepalive = carrier.open(KEEPALIVE, self._token)
            while self._renewals:
                lease_id = self._renewals.popleft()
                self._asked.add(lease_id)
                renewal = rpc.LeaseKeepAliveRequest(ID=lease_id)
                carrier.send(self._keepalive, renewal.SerializeToString())

    def _heard(self, stream: object, message: bytes | RpcError) -> None:
        """Process a stream's message. Raises RpcError if the connection must be given up."""
        if isinstance(message, RpcError):
            self._before = set(self._asked)
            if stream is not self._watch or not self._before:
                raise message
            self._refusal = message
        elif stream is self._watch:
            self._watched(watch_response(rpc.WatchResponse.FromString(message)))
        else:
            self._renewed(stream, rpc.LeaseKeepAliveResponse.FromString(message))

    def _renewed(self, stream: object, answer: Any) -> None:
        with self._guard:
            if stream is self._keepalive and not self._closed:
                self._asked.discard(answer.ID)
                self._on_renewed(answer.ID, float(answer.TTL))
        self._before.discard(answer.ID)
        if self._refusal is not None and not self._before:
            raise self._refusal

    def _watched(self, response: WatchResponse) -> None:
        self._connection.counters["watch_events"] += len(response.events)
        with self._guard:
            if self._closed:
                return
            with self._lock:
                tell, send = self._book.heard(response)
                self._outbox.extend(send)
            for one in tell:
                one()
        if self._book.needs_login:
            raise RpcError("UNAUTHENTICATED", "etcdserver: invalid auth token")

    def _broke(self, error: RpcError) -> tuple[int, str, Failure]:
        """The connection has broken; returns what to log."""
        link = self._link
        if link is None:
            raise AssertionError("a connection broke that did not exist")
        failure = self._connection.stream_broke(link, self._token, error)
        level = logging.WARNING if isinstance(failure, AccessDenied) else logging.DEBUG
        return level, "etcdsem: the streams broke: %s", failure

    def _refused(self, failure: Failure) -> None:
        """This client was refused, and with it all its watches."""
        with self._guard:
            with self._lock:
                tell = self._book.refuse_all(failure)
                self._renewals.clear()
            for one in tell:
                one()
