"""One endpoint of etcd, for `doctor` and `bench`: the only module here that uses etcd's protocol.

Every call ends within `TIMEOUT` seconds, and raises `CallFailed` on failure.
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
    """A call failed or was refused. `detail` says why, in etcd's words if it answered."""

    def __init__(self, failure: Failure) -> None:
        self.detail: str = failure.detail or type(failure).__name__
        self.denied = isinstance(failure, AccessDenied)
        self._failure = failure
        super().__init__(self.detail)

    def public(self, what: str) -> EtcdSemError:
        """Return the library's error for it; `what` names the attempted operation."""
        return public_error(self._failure, what)


class EndpointConnection:
    """A connection to a single endpoint."""

    def __init__(self, settings: ConnectionSettings, endpoint: Endpoint) -> None:
        from etcdsem.etcd.connection import Connection

        self.settings = settings
        self.address = endpoint.address
        self._connection = Connection(replace(settings, endpoints=(endpoint,)))

    def status(self) -> Any:
        """Return the member's StatusResponse."""
        from etcdsem.etcd import rpc

        return self._call("status", rpc.StatusRequest())

    def count_members(self) -> int:
        """Return the number of members of the cluster."""
        from etcdsem.etcd import rpc

        return len(self._call("members", rpc.MemberListRequest()).members)

    def alarms(self) -> list[str]:
        """Return the active alarms: NOSPACE, CORRUPT."""
        return _converted(lambda: self._connection.alarms(TIMEOUT))

    def read(self, key: bytes, **options: Any) -> int:
        """Read a key; `options` are fields of a RangeRequest. Returns etcd's revision."""
        from etcdsem.etcd import rpc

        return int(self._call("range", rpc.RangeRequest(key=key, **options)).header.revision)

    def put(self, key: bytes, value: bytes, lease: int) -> None:
        """Write a key that is attached to a lease."""
        self._transact(Txn((), (Put(key, value, lease),)))

    def create(self, key: bytes, value: bytes, lease: int) -> None:
        """Write a key if it does not exist."""
        self._transact(Txn((Compare(key, "create", "=", 0),), (Put(key, value, lease),)))

    def delete(self, key: bytes) -> None:
        """Delete a key if it exists."""
        self._transact(Txn((Compare(key, "create", "!=", 0),), (Delete(key),)))

    def grant(self, lease: int, ttl: int) -> float:
        """Create a lease, and return the TTL that etcd granted."""
        return _converted(lambda: self._connection.grant(lease, ttl, TIMEOUT))

    def revoke(self, lease: int) -> None:
        """Revoke a lease, which deletes its keys."""
        _converted(lambda: self._connection.revoke(lease, TIMEOUT))

    @contextmanager
    def watch(self, key: bytes) -> Iterator[threading.Event]:
        """Watch a key; yields a `threading.Event` that each watch event sets."""
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
        """Return the body that etcd's HTTP server serves at `path`; None if it does not."""
        try:
            with self.open_http(path) as answer:
                text: str = answer.read().decode("utf-8", "replace")
                return text
        except (OSError, ValueError):
            return None

    def open_http(self, path: str) -> Any:
        """Open a path of etcd's HTTP server, with our certificates. Raises OSError."""
        import urllib.request

        from etcdsem.etcd.dialing import tls_context

        if self.address.startswith("unix:"):
            raise OSError("no HTTP over a Unix socket")
        handlers: list[Any] = [urllib.request.ProxyHandler({})]
        if self.settings.tls:
            context = tls_context(self.settings, "http/1.1")
            handlers.append(urllib.request.HTTPSHandler(context=context))
        opener = urllib.request.build_opener(*handlers)
        scheme = "https" if self.settings.tls else "http"
        return opener.open(f"{scheme}://{self.address}{path}", timeout=_HTTP_TIMEOUT)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _call(self, name: str, request: Any) -> Any:
        return _converted(lambda: self._connection.call(name, request, TIMEOUT))

    def _transact(self, txn: Txn) -> None:
        _converted(lambda: self._connection.transact(txn, TIMEOUT))


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
        self.ready.set()  # the missing first event is reported later


def _converted(call: Callable[[], T]) -> T:
    """Return the result of a call to the connection. Raises CallFailed instead of Failure."""
    try:
        return call()
    except Failure as failure:
        raise CallFailed(failure) from failure
