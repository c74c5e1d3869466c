"""One endpoint of etcd, for `doctor` and `bench`: the only module here that knows the wire.

Every call fails with `CallFailed`, within `TIMEOUT` seconds.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from etcdsem.client_lock import ClientLock
from etcdsem.core.commands import AccessDenied, Compare, Delete, Failure, Put, Txn
from etcdsem.core.error_mapping import public_error
from etcdsem.errors import EtcdSemError

if TYPE_CHECKING:
    from etcdsem.etcd.settings import ConnectionSettings, Endpoint

T = TypeVar("T")

TIMEOUT: Final = 5.0
_HTTP_TIMEOUT: Final = 3.0


class CallFailed(Exception):
    """A call failed, or was refused. `detail` says why, in etcd's words where it answered."""

    def __init__(self, failure: Failure) -> None:
        self.detail: str = failure.detail or type(failure).__name__
        self.denied = isinstance(failure, AccessDenied)
        self._failure = failure
        super().__init__(self.detail)

    def public(self, what: str) -> EtcdSemError:
        """The library's error for it; `what` says what was tried."""
        return public_error(self._failure, what)


class EndpointConnection:
    """A connection to one endpoint alone."""

    def __init__(self, settings: ConnectionSettings, endpoint: Endpoint) -> None:
        from etcdsem.etcd.connection import Connection

        self.settings = settings
        self.address = endpoint.address
        self._connection = Connection(replace(settings, endpoints=(endpoint,)))

    def status(self) -> Any:
        """What the member says of itself: a StatusResponse."""
        from etcdsem.etcd import rpc

        return self._call("status", rpc.StatusRequest())

    def count_members(self) -> int:
        """How many members the cluster has."""
        from etcdsem.etcd import rpc

        return len(self._call("members", rpc.MemberListRequest()).members)

    def alarms(self) -> list[str]:
        """The alarms that are raised: NOSPACE, CORRUPT."""
        return _told(lambda: self._connection.alarms(TIMEOUT))

    def read(self, key: bytes, **options: Any) -> int:
        """Read a key; `options` are fields of a RangeRequest. Gives etcd's revision."""
        from etcdsem.etcd import rpc

        return int(self._call("range", rpc.RangeRequest(key=key, **options)).header.revision)

    def put(self, key: bytes, value: bytes, lease: int) -> None:
        """Write a key that hangs on a lease."""
        self._transact(Txn((), (Put(key, value, lease),)))

    def create(self, key: bytes, value: bytes, lease: int) -> None:
        """Write it if it is not there."""
        self._transact(Txn((Compare(key, "create", "=", 0),), (Put(key, value, lease),)))

    def delete(self, key: bytes) -> None:
        """Delete it if it is there."""
        self._transact(Txn((Compare(key, "create", "!=", 0),), (Delete(key),)))

    def grant(self, lease: int, ttl: int) -> float:
        """Create a lease; gives the TTL that etcd granted."""
        return _told(lambda: self._connection.grant(lease, ttl, TIMEOUT))

    def revoke(self, lease: int) -> None:
        """End a lease, with its keys."""
        _told(lambda: self._connection.revoke(lease, TIMEOUT))

    @contextmanager
    def watch(self, key: bytes) -> Iterator[threading.Event]:
        """A watch on a key, and what is set by each of its events."""
        from etcdsem.etcd.stream_thread import ThreadStreams

        listener = _WatchListener()
        stream = ThreadStreams(self._connection, ClientLock(), lambda lease, ttl: None)
        try:
            stream.watch(listener, key)
            listener.ready.wait(TIMEOUT)
            yield listener.heard
        finally:
            stream.close()

    def http_get(self, path: str) -> str | None:
        """What etcd's HTTP server says there; None if it does not."""
        try:
            with self.open_http(path) as answer:
                text: str = answer.read().decode("utf-8", "replace")
                return text
        except (OSError, ValueError):
            return None

    def open_http(self, path: str) -> Any:
        """An answer of etcd's HTTP server, with our certificates; OSError if there is none."""
        import urllib.request

        from etcdsem.etcd.dialing import tls_context

        if self.address.startswith("unix:"):
            raise OSError("no HTTP over a socket of this machine")
        handlers: list[Any] = [urllib.request.ProxyHandler({})]
        if self.settings.tls:
            context = tls_context(self.settings, "http/1.1")
            handlers.append(urllib.request.HTTPSHandler(context=context))
        opener = urllib.request.build_opener(*handlers)
        scheme = "https" if self.settings.tls else "http"
        return opener.open(f"{scheme}://{self.address}{path}", timeout=_HTTP_TIMEOUT)

    def close(self) -> None:
        """Hang up."""
        self._connection.close()

    def _call(self, name: str, request: Any) -> Any:
        return _told(lambda: self._connection.call(name, request, TIMEOUT))

    def _transact(self, txn: Txn) -> None:
        _told(lambda: self._connection.transact(txn, TIMEOUT))


class _WatchListener:
    def __init__(self) -> None:
        self.ready = threading.Event()
        self.heard = threading.Event()

    def created(self, revision: int) -> None:
        self.ready.set()

    def events(self, events: object) -> None:
        self.heard.set()

    def gap(self, reason: str) -> None:
        self.ready.set()

    def refused(self, error: Failure) -> None:
        self.ready.set()  # then the first event does not come, which is told


def _told(call: Callable[[], T]) -> T:
    """The result of a call to the connection; raises CallFailed."""
    try:
        return call()
    except Failure as failure:
        raise CallFailed(failure) from failure
