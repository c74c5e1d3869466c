"""The keepalive stream of a client, blocking.

1. `renew` and `restart` never block, and are called with the guard held.
2. An answer is told under the guard, and only while its stream is the present one: after
   `restart`, late answers of the former stream are dropped.
3. A broken stream is opened again with the next renewal, not sooner: who asks again for what was
   under way is the heartbeat, which knows the deadlines.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial

import grpc

from etcdsem.client_lock import ClientLock
from etcdsem.core.commands import AccessDenied, Failure
from etcdsem.etcd import rpc
from etcdsem.etcd.connection import Connection, Stream
from etcdsem.etcd.requests import Requests, join

log = logging.getLogger("etcdsem")


class KeepaliveStream:
    """All renewals of a client on one stream."""

    def __init__(
        self,
        connection: Connection,
        guard: ClientLock,
        on_renewed: Callable[[int, float], None],
    ) -> None:
        self._connection = connection
        self._guard = guard
        self._on_renewed = on_renewed
        self._requests: Requests | None = None  # None: no stream; under the guard
        self._stream: Stream | None = None
        self._thread: threading.Thread | None = None  # that of the present stream
        self._closed = False

    def renew(self, lease_id: int) -> None:
        """Send a keepalive for a lease."""
        if self._closed:
            return
        if self._requests is None:
            self._requests = Requests()
            self._guard.start(partial(self._run, self._requests), "etcdsem-keepalive")
        self._connection.counters["keepalives"] += 1
        self._requests.put(rpc.LeaseKeepAliveRequest(ID=lease_id))

    def restart(self) -> None:
        """Nothing is heard: give the stream up; the next renewal goes to the next endpoint."""
        stream = self._stream
        self._drop()
        if stream is not None:
            self._connection.leave(stream.link)

    def close(self) -> None:
        """End the stream and its thread."""
        with self._guard:
            self._closed = True
            self._drop()
            thread = self._thread
        join(thread)

    def _drop(self) -> None:
        requests, self._requests = self._requests, None
        stream, self._stream = self._stream, None
        if requests is not None:
            requests.end()
        if stream is not None:
            stream.call.cancel()

    # -- the stream's thread

    def _run(self, requests: Requests) -> None:
        with self._guard:
            if self._requests is not requests:
                return
            self._thread = threading.current_thread()
        try:
            self._follow(requests)
        except Failure as failure:
            self._guard.log(partial(tell_trouble, "could not be opened", failure))
        except Exception as error:
            if not self._closed:
                trouble = "etcdsem: error in the keepalive stream"
                self._guard.log(partial(log.error, trouble, exc_info=error))
        finally:
            with self._guard:
                if self._requests is requests:
                    self._drop()
            requests.join()

    def _follow(self, requests: Requests) -> None:
        stream = self._connection.open_stream("keepalive", iter(requests), timeout=5.0)
        with self._guard:
            if self._requests is not requests:
                stream.call.cancel()
                return
            self._stream = stream
        try:
            for response in stream.call:
                with self._guard:
                    if self._requests is not requests:
                        return
                    self._on_renewed(response.ID, float(response.TTL))
        except grpc.RpcError as error:
            with self._guard:
                present = self._requests is requests
            if present:
                failure = self._connection.stream_broke(stream, error)
                self._guard.log(partial(tell_trouble, "broke", failure))


def tell_trouble(what: str, failure: Failure) -> None:
    """Log what happened to the stream; that access is denied is news for people."""
    level = logging.WARNING if isinstance(failure, AccessDenied) else logging.DEBUG
    log.log(level, "etcdsem: the keepalive stream %s: %s", what, failure)
