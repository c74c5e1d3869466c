"""Blocking unary calls of any number of threads to one endpoint.

1. A call has a connection to itself while it is in progress: no reader thread, no wake-up between
   threads, no lock. Beyond `MOST` connections a call waits for its turn, within its deadline. A
   connection is handed directly to the next waiter, else busy threads would always take it first.
2. Any interruption of a call (its deadline, a signal handler that raises) takes its connection out
   of use permanently; other threads have others. The connection is closed once the answer has come,
   or after `ASIDE_TIME`: closing at once would cancel the call in the server, and a cancelled read
   crashes etcd 3.5.0 to 3.5.4 (etcd #14110).
3. There are no counters: a connection that a thread forgets through an interruption disappears with
   the objects that held it. All steps that threads share are single list operations.
4. A connection that has been idle for `IDLE_TIME` is closed by the next thread that comes by. It
   is not reused, since a device on the way may have silently forgotten it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence

from etcdsem.clock import boot_time
from etcdsem.core.commands import NotApplied, NotConnected
from etcdsem.etcd.call_connection import IDLE_TIME, CallConnection, TooLate
from etcdsem.etcd.diagnosis import explain
from etcdsem.etcd.dialing import Dialer, Living
from etcdsem.etcd.grpc_protocol import RpcError, frame_message, response
from etcdsem.etcd.http2_streams import Stream
from etcdsem.etcd.stream_connection import StreamConnection

MOST = 16
"""Maximum number of connections for calls of one client."""

ASIDE_TIME = 5.0
"""Seconds to wait for a late answer before its connection is closed."""

MOST_ASIDE = 64
"""Maximum number of connections kept for late answers; beyond that the oldest are closed at once.
"""

_NAP = 0.1
"""Seconds after which a waiter checks by itself: the thread that should wake it may have been
interrupted."""


class _Turn:
    """A caller that waits for a connection, or for room for one."""

    def __init__(self) -> None:
        self.connection: CallConnection | None = None
        self._come = threading.Lock()
        self._come.acquire()

    def give(self, connection: CallConnection | None) -> None:
        """Give it its turn. None: there is room for a new connection."""
        self.connection = connection
        self._come.release()

    def wait(self, seconds: float) -> bool:
        """Wait for the turn; False if it has not come in time."""
        return self._come.acquire(timeout=max(0.0, seconds))


class _Place:
    """Reserves room for a connection that is being made; freed when its thread drops it."""


class Transport:
    """The connections for calls to one endpoint."""

    def __init__(self, dialer: Dialer) -> None:
        self._dialer = dialer
        self._idle: list[CallConnection] = []
        self._alive = Living[CallConnection]()
        self._dials = Living[_Place]()
        self._failure: NotConnected | None = None  # of the last attempt to connect
        self._aside: deque[tuple[float, CallConnection]] = deque()
        self._waiting: deque[_Turn] = deque()
        self._closed = False

    def call(
        self, path: str, request: bytes, timeout: float, token: str | None, *, whole: bool = False
    ) -> bytes:
        """Make a call and return the response. Raises RpcError, or NotApplied.

        Args:
            path: the method in gRPC's notation.
            request: the message.
            timeout: seconds.
            token: of the login.
            whole: the server must not give up when the time is over either.
        """
        (stream,) = self._exchange(path, (request,), timeout, token, whole=whole)
        return response(stream)

    def call_many(
        self, path: str, requests: Sequence[bytes], timeout: float, token: str | None
    ) -> list[bytes | None]:
        """Make many calls concurrently on one connection; None for those that failed for any
        reason.
        """
        try:
            streams = self._exchange(path, requests, timeout, token, whole=False)
        except (RpcError, NotApplied):
            return [None] * len(requests)
        return [_response_or_none(one) for one in streams]

    def _exchange(
        self,
        path: str,
        requests: Sequence[bytes],
        timeout: float,
        token: str | None,
        *,
        whole: bool,
    ) -> list[Stream]:
        until = boot_time() + timeout
        block = self._dialer.headers(path, token, None if whole else timeout)
        calls = [(block, frame_message(request)) for request in requests]
        connection = self._take(until)
        try:
            streams = connection.exchange(calls, until)
        except TooLate:
            self._set_aside(connection)
            raise RpcError("DEADLINE_EXCEEDED", "no answer in time") from None
        except OSError as error:
            if isinstance(error, TimeoutError) and error.errno is None:  # from a signal handler
                self._set_aside(connection, torn=True)
                raise
            self._drop(connection)
            self._give(None)
            raise RpcError("UNAVAILABLE", f"the connection was lost: {error}") from None
        except BaseException:
            self._set_aside(connection, torn=True)
            raise
        self._give(connection)
        if self._closed:
            self.close()
        return streams

    def connect_streams(self, timeout: float) -> StreamConnection:
        """Open a separate connection for streams. Raises NotConnected."""
        sock, http2 = self._dialer.dial(boot_time() + timeout)
        try:
            return StreamConnection(self._dialer, sock, http2)
        except OSError as error:  # no file descriptor is free
            sock.close()
            raise self._dialer.error(explain(error, tls=False)) from None

    # -- connections

    def _take(self, until: float) -> CallConnection:
        while True:
            if self._closed:
                raise NotApplied("the client was closed", str(self._dialer.endpoint))
            try:
                connection = self._idle.pop()
            except IndexError:
                if self._room:
                    break
                given = self._wait(until)
                if given is None:
                    continue
                connection = given
            if connection.alive():
                return connection
            self._drop(connection)
        return self._dial(until)

    def _dial(self, until: float) -> CallConnection:
        self.sweep()
        place = self._dials.add(_Place())
        try:
            connection = CallConnection(*self._dialer.dial(until))
            self._failure = None
            self._alive.add(connection)
        except NotConnected as error:
            self._failure = _again(error)
            raise
        finally:
            self._dials.discard(place)
            if not self._alive:
                self._give(None)  # let another waiter try
        if self._closed:  # in the meantime
            self._drop(connection)
            raise NotApplied("the client was closed", str(self._dialer.endpoint))
        return connection

    def _wait(self, until: float) -> CallConnection | None:
        """Wait for a connection; None if there is room for a new one."""
        turn, come = _Turn(), False
        self._waiting.append(turn)
        try:
            while not come and not self._idle and not self._room:
                come = turn.wait(min(until - boot_time(), _NAP))
                if not come and boot_time() >= until:
                    break
        finally:
            try:
                self._waiting.remove(turn)
            except ValueError:
                if not come:
                    turn.wait(_NAP)  # it is about to come
        if turn.connection is None and boot_time() >= until:
            failure = self._failure
            if failure is not None and not self._alive:  # so that another endpoint is tried
                raise _again(failure)
            raise NotApplied("all connections are busy", str(self._dialer.endpoint))
        return turn.connection

    @property
    def _room(self) -> bool:
        """May another connection be made?"""
        return len(self._alive) + len(self._dials) < MOST

    def _give(self, connection: CallConnection | None) -> None:
        """Give a connection to the first waiter. None: there is room for one."""
        if connection is not None and not self._waiting:
            self._idle.append(connection)
            if not self._waiting:
                return
            connection = None  # a waiter has come meanwhile, and checks the idle ones
        try:
            self._waiting.popleft().give(connection)
        except IndexError:
            if connection is not None:
                self._idle.append(connection)

    def _drop(self, connection: CallConnection) -> None:
        """Close a connection and stop counting it: a failure's traceback may keep it for long."""
        self._alive.discard(connection)
        connection.close()

    def _set_aside(self, connection: CallConnection, *, torn: bool = False) -> None:
        connection.torn = torn
        self._alive.discard(connection)
        self._aside.append((boot_time() + ASIDE_TIME, connection))
        while len(self._aside) > MOST_ASIDE:
            self._aside.popleft()[1].close()
        self._give(None)
        if self._closed:  # in the meantime
            self.close()

    def sweep(self) -> None:
        """Close connections that are not needed any more. Never blocks."""
        now = boot_time()
        for _ in range(len(self._aside)):
            try:
                until, connection = self._aside.popleft()
            except IndexError:
                break
            if now >= until or connection.answered():
                connection.close()
            else:
                self._aside.append((until, connection))
        for connection in list(self._idle):
            if now - connection.used > IDLE_TIME:
                try:
                    self._idle.remove(connection)
                except ValueError:
                    continue  # another thread was faster
                self._drop(connection)

    def close(self) -> None:
        """Close all connections; calls in progress fail."""
        self._closed = True
        while self._idle:
            try:
                self._idle.pop().close()
            except IndexError:
                break  # another thread was faster
        while self._aside:
            try:
                self._aside.pop()[1].close()
            except IndexError:
                break
        self._dialer.close()
        for connection in self._alive.list():
            connection.hang_up()
        while self._waiting:
            self._give(None)


def _again(failure: NotConnected) -> NotConnected:
    """A copy of a failure, without its traceback and everything that it refers to."""
    return type(failure)(failure.detail, failure.endpoint)


def _response_or_none(stream: Stream) -> bytes | None:
    try:
        return response(stream)
    except RpcError:
        return None
