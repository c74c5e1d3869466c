"""Borrows a python-etcd3 client's channels and login; contains a `Transport` on such a channel.

1. A client is recognized by the module of its class. Neither python-etcd3 nor grpcio is imported
   here: everything uses methods of the channel that the client has made.
2. What is borrowed must not be closed. Calls and streams share its one channel, with the options
   that it was made with. Closing our client ends our calls and streams on it.
3. python-etcd3 logs in once, when its client is made, and keeps no password. We use its token, and
   log in ourselves only if we were given a user and a password too.
4. Where a semaphore that uses it is unpickled, there is no such client: the endpoints are pickled,
   and everything else comes from the environment there.
5. Once its owner has closed the channel, every call is `Refused`. Streams end, and are not opened
   again, since the call before them is refused.
6. We enforce the deadlines, since grpcio uses the wall clock for them. A call whose time is over is
   cancelled, unless it must not be: then it gets `ASIDE_TIME` more.
7. A stream has two threads: grpcio's for sending and ours for reading. A daemon thread that is in
   grpcio when the interpreter ends may die holding a lock of the stream, and the stream's `__del__`
   would wait for that lock forever. So `close` waits for both.
"""

from __future__ import annotations

import re
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias

from etcdsem.clock import boot_time
from etcdsem.core.commands import NotApplied, NotConnected, Refused
from etcdsem.core.error_mapping import first_line
from etcdsem.errors import InvalidSetting
from etcdsem.etcd.grpc_protocol import NOT_CONNECTED, RpcError
from etcdsem.etcd.settings import ConnectionSettings, Endpoint, ExternalClient, parse_endpoints

ASIDE_TIME = 5.0
"""Seconds after its deadline for the answer of a call that must not be cancelled."""

IDLE_TIME = 10.0
"""Seconds without news after which `GrpcStreams.wait` returns."""

JOIN_TIMEOUT = 1.0
"""Seconds to wait for a thread of a cancelled stream."""

CLOSED = "the etcd3 client whose channel we use was closed"

_NOTHING_SENT = (
    "failed to connect to all addresses",
    "connections to all backends failing",
    "DNS resolution failed",
    "empty address list",
)
"""What grpcio reports, with UNAVAILABLE, if it had no connection to send a request on."""

_under_way: dict[Any, GrpcTransport] = {}
"""The calls and streams that have not ended. A forked child inherits them and keeps them here: the
`__del__` of one would wait for a lock that a thread of the parent may have held."""

Metadata: TypeAlias = tuple[tuple[str, str], ...]

# ---------------------------------------------------------------- the client


def is_etcd3(client: object) -> bool:
    """Is this a python-etcd3 client (for one endpoint or several)?"""
    return any(
        kind.__module__.partition(".")[0] == "etcd3" and kind.__name__.endswith("Etcd3Client")
        for kind in type(client).__mro__
    )


def borrow(client: Any, user: str | None, password: str | None) -> ConnectionSettings:
    """Settings that use a python-etcd3 client's channels and login. Raises InvalidSetting."""
    if (user is None) != (password is None):
        raise InvalidSetting("a user and a password go together: give both, or neither")
    channels = _channels(client)
    return ConnectionSettings(
        endpoints=tuple(channels),
        user=user,
        password=password,
        external=_Etcd3(client, {endpoint.address: one for endpoint, one in channels.items()}),
    )


def _channels(client: Any) -> dict[Endpoint, Any]:
    several: Mapping[str, Any] | None = getattr(client, "endpoints", None)
    if several is None:  # version 0.12: one channel
        return {_endpoint(client._url, client.uses_secure_channel): client.channel}
    found = {_endpoint(one.netloc, one.secure): one.channel for one in several.values()}
    in_use = client.endpoint_in_use.channel  # first, since it is known to be good
    return dict(sorted(found.items(), key=lambda pair: pair[1] is not in_use))


def _endpoint(address: str, secure: bool) -> Endpoint:
    return parse_endpoints(f"{'https' if secure else 'http'}://{address}")[0]


class _Etcd3(ExternalClient):
    """The channels of a python-etcd3 client. It does not keep the client itself alive."""

    def __init__(self, client: Any, channels: Mapping[str, Any]) -> None:
        self._client = weakref.ref(client)
        self._channels = channels
        self._token = self.token()

    def transport(self, endpoint: Endpoint) -> GrpcTransport:
        return GrpcTransport(self._channels[endpoint.address], endpoint)

    def token(self) -> str | None:
        client = self._client()
        if client is None:
            return self._token
        for key, value in client.metadata or ():
            if key == "token":
                return str(value)
        return None


# ---------------------------------------------------------------- calls


class _Pending:
    """A unary call in progress."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self._done = threading.Lock()  # held until the call has ended
        self._done.acquire()
        call.add_done_callback(self._end)

    def _end(self, call: Any) -> None:
        _under_way.pop(call, None)
        self._done.release()

    def wait(self, until: float) -> bool:
        """Wait for the end of the call until a time; False if it has not ended by then."""
        return self._done.acquire(timeout=max(0.0, until - boot_time()))

    def response(self) -> bytes:
        """The response. Raises RpcError."""
        if self.call.code().name != "OK":
            raise _error(self.call)
        message: bytes = self.call.result()
        return message


class GrpcTransport:
    """Calls and streams of any number of threads on a grpcio channel."""

    def __init__(self, channel: Any, endpoint: Endpoint) -> None:
        self.channel = channel
        self._endpoint = endpoint
        self._aside: deque[tuple[float, Any]] = deque()  # overdue calls that were not cancelled
        self._closed = False

    def call(
        self, path: str, request: bytes, timeout: float, token: str | None, *, whole: bool = False
    ) -> bytes:
        """Make a call and return the response. Raises RpcError, NotApplied, or Refused.

        Args:
            path: the method in gRPC's notation.
            request: the message.
            timeout: seconds.
            token: of the login.
            whole: do not cancel it when the time is over.
        """
        self.sweep()
        until = boot_time() + timeout
        (pending,) = self._begin(path, (request,), token)
        ended = False
        try:
            ended = pending.wait(until)
        finally:  # even after an interruption
            if not ended and whole:
                self._aside.append((boot_time() + ASIDE_TIME, pending.call))
            elif not ended:
                pending.call.cancel()
        if not ended:
            raise RpcError("DEADLINE_EXCEEDED", "no answer in time")
        try:
            return pending.response()
        except RpcError as error:
            if error.code == NOT_CONNECTED:
                raise NotConnected(_reason(error.details), str(self._endpoint)) from None
            raise

    def call_many(
        self, path: str, requests: Sequence[bytes], timeout: float, token: str | None
    ) -> list[bytes | None]:
        """Make many calls concurrently; None for those that failed."""
        until = boot_time() + timeout
        begun = self._begin(path, requests, token)
        try:
            return [_response_or_none(one) if one.wait(until) else None for one in begun]
        finally:
            for one in begun:
                one.call.cancel()  # no effect on those that have ended

    def _begin(self, path: str, requests: Sequence[bytes], token: str | None) -> list[_Pending]:
        self.check()
        method, metadata = self.channel.unary_unary(path), _metadata(token)
        begun: list[_Pending] = []
        try:
            for request in requests:
                call = method.future(request, metadata=metadata)
                _under_way[call] = self
                begun.append(_Pending(call))
        except BaseException as error:
            for one in begun:
                one.call.cancel()
            if _says_closed(error):
                raise Refused(CLOSED) from None
            if isinstance(error, (RuntimeError, MemoryError)):  # no thread could be started
                raise RpcError("UNAVAILABLE", f"the call failed: {error}") from error
            raise
        if self._closed:  # in the meantime
            self.close()
        return begun

    # -- streams

    def connect_streams(self, timeout: float) -> GrpcStreams:
        """Create the carrier of streams; the channel is connected already. Raises NotApplied."""
        self.check()
        return GrpcStreams(self)

    # -- closing

    def check(self) -> None:
        """Raise NotApplied if this transport was closed."""
        if self._closed:
            raise NotApplied("the client was closed", str(self._endpoint))

    def sweep(self) -> None:
        """Cancel overdue calls whose extra time has passed too. Never blocks."""
        while self._aside and self._aside[0][0] <= boot_time():
            try:
                self._aside.popleft()[1].cancel()
            except IndexError:
                break  # another thread was faster

    def close(self) -> None:
        """End our calls and streams. The channel belongs to the other client and stays open."""
        self._closed = True
        for call, transport in list(_under_way.items()):
            if transport is self:
                call.cancel()


def _response_or_none(pending: _Pending) -> bytes | None:
    try:
        return pending.response()
    except RpcError:
        return None


# ---------------------------------------------------------------- streams


class GrpcStream:
    """One stream: its outgoing messages, and its call once it was begun."""

    def __init__(self, path: str, token: str | None) -> None:
        self.path = path
        self.metadata = _metadata(token)
        self.call: Any = None
        self.requests: SimpleQueue[bytes | None] = SimpleQueue()  # None: no more
        self.threads: list[threading.Thread] = []

    def sending(self) -> Iterator[bytes]:
        """The requests, consumed by grpcio's thread."""
        self.threads.append(threading.current_thread())
        while (request := self.requests.get()) is not None:
            yield request


class GrpcStreams:
    """Streams on a grpcio channel. Any thread may call `wake`; one thread calls the rest."""

    def __init__(self, transport: GrpcTransport) -> None:
        self._transport = transport
        self._streams: list[GrpcStream] = []
        self._new: deque[GrpcStream] = deque()  # not begun yet
        self._news: SimpleQueue[tuple[GrpcStream, bytes | RpcError] | None] = SimpleQueue()

    def open(self, path: str, token: str | None) -> GrpcStream:
        """Open a stream. Never blocks: `wait` begins it."""
        stream = GrpcStream(path, token)
        self._streams.append(stream)
        self._new.append(stream)
        return stream

    def send(self, stream: GrpcStream, message: bytes) -> None:
        """Send a message. Never blocks."""
        stream.requests.put(message)

    def wait(self) -> list[tuple[GrpcStream, bytes | RpcError]]:
        """Wait for messages of streams. Returns early after `wake`, and when nothing has happened
        for a while.
        """
        while self._new:
            self._begin(self._new.popleft())
        news = []
        try:
            news.append(self._news.get(timeout=IDLE_TIME))
            while True:
                news.append(self._news.get_nowait())
        except Empty:
            return [one for one in news if one is not None]

    def _begin(self, stream: GrpcStream) -> None:
        try:
            self._transport.check()
            method = self._transport.channel.stream_stream(stream.path)
            stream.call = call = method(stream.sending(), metadata=stream.metadata)
            _under_way[call] = self._transport
            reader = threading.Thread(
                target=self._read, args=(stream,), name="etcdsem-etcd3", daemon=True
            )
            reader.start()
            stream.threads.append(reader)
        except NotApplied as failure:
            self._news.put((stream, RpcError("UNAVAILABLE", failure.detail)))
        except (ValueError, RuntimeError, MemoryError) as error:
            if stream.call is not None:
                _under_way.pop(stream.call, None)
            text = CLOSED if _says_closed(error) else f"no stream can be opened: {error}"
            self._news.put((stream, RpcError("UNAVAILABLE", text)))

    def _read(self, stream: GrpcStream) -> None:
        """Read a stream, in its own thread."""
        call = stream.call
        try:
            for message in call:
                self._news.put((stream, message))
            error = RpcError("UNAVAILABLE", "it ended")
        except Exception:
            call.cancel()  # no effect if it has ended, as it should have
            error = _error(call)
        _under_way.pop(call, None)
        self._news.put((stream, error))

    def wake(self) -> None:
        """Make `wait` return."""
        self._news.put(None)

    def close(self) -> None:
        """End the streams and their threads."""
        for stream in self._streams:
            stream.requests.put(None)
            if stream.call is not None:
                stream.call.cancel()
        for stream in self._streams:
            for thread in stream.threads:
                thread.join(JOIN_TIMEOUT)


# ---------------------------------------------------------------- grpcio's metadata and errors


def _metadata(token: str | None) -> Metadata:
    """The metadata of each call."""
    return (("hasleader", "true"), ("token", token)) if token else (("hasleader", "true"),)


def _error(call: Any) -> RpcError:
    """The error of a call that has failed."""
    code, details = call.code().name, call.details() or ""
    if code == "UNAVAILABLE" and any(text in details for text in _NOTHING_SENT):
        code = NOT_CONNECTED
    return RpcError(code, details)


def _says_closed(error: BaseException) -> bool:
    """Does the error mean that the channel was closed?"""
    return isinstance(error, ValueError) and "closed" in str(error)


def _reason(details: str) -> str:
    """Why there is no connection, without grpcio's fixed text and the address."""
    text = re.sub(r"failed to connect to all addresses; last error: [A-Z_]+: ", "", details)
    return first_line(re.sub(r"^(ipv4|ipv6|unix):\S+: ", "", text))
