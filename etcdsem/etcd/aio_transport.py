"""Unary calls of any number of tasks of one event loop to one endpoint.

1. One connection carries all calls. It is made for the first call; later ones wait for the same
   attempt, each within its own deadline.
2. When a caller is cancelled, or its deadline passes, its stream runs to its end and nobody waits
   for it: cancelling a read would crash etcd 3.5.0 to 3.5.4 (etcd #14110). A request that was not
   sent yet is withdrawn.
3. If nothing at all has arrived between the start of a call and its deadline, the connection is
   abandoned: later calls get a new one. The same happens if the peer says that it will close it.
   Calls in progress continue, and the old connection is closed when there are none, or after
   `ASIDE_TIME`.
4. If the connection is lost, a call whose bytes certainly have not been sent was not applied.
5. If many calls are answered together, the requests that follow in the same iteration of the loop
   are sent together; a single task's calls are sent at once.
"""

from __future__ import annotations

import asyncio
import socket
from typing import NamedTuple, TypeAlias

from etcdsem.clock import boot_time
from etcdsem.core.commands import NotApplied
from etcdsem.etcd.aio_dialing import AioDial
from etcdsem.etcd.aio_stream_wire import Ended, Hear, StreamWire
from etcdsem.etcd.aio_wire import Wire
from etcdsem.etcd.call_connection import IDLE_TIME
from etcdsem.etcd.dialing import Dialer
from etcdsem.etcd.grpc_protocol import NOT_PROCESSED, RpcError, frame_message, response
from etcdsem.etcd.http2 import Http2
from etcdsem.etcd.http2_streams import Http2Failure, Stream
from etcdsem.etcd.transport import ASIDE_TIME

LEAST_DIAL_TIME = 1.0
"""Minimum seconds for an attempt to connect, even if its caller has less: others may wait too."""

_TICK = 0.01
"""Minimum seconds between two checks of the deadlines."""

Answered: TypeAlias = asyncio.Future[RpcError | None]


class _Waiting(NamedTuple):
    """A caller that waits for a stream."""

    future: Answered
    until: float
    reads: int  # of the wire, when the call began
    offset: int  # where the request begins in all bytes that are sent


class CallWire(Wire):
    """One connection for any number of calls at a time."""

    def __init__(self, sock: socket.socket, http2: Http2) -> None:
        super().__init__(sock, http2)
        self.used = boot_time()
        self._waiting: dict[Stream, _Waiting] = {}
        self._corked = False  # data is sent at the end of the loop's iteration
        self._left_at = 0.0  # when it was abandoned; 0: it was not
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
        self._look_again(self.used + IDLE_TIME)

    @property
    def usable(self) -> bool:
        """Does it accept calls?"""
        return not (self.over or self._left_at or self.http2.retired)

    def start(self, block: bytes, body: bytes, until: float) -> tuple[Stream, Answered]:
        """Start a call. The future is done with the stream, or at the deadline with an error."""
        http2 = self.http2
        offset = self.sent + len(http2.outgoing)
        future: Answered = self._loop.create_future()
        try:
            stream = http2.request(block, body)
            if stream.done:
                future.set_result(None)
                return stream, future
            self._waiting[stream] = _Waiting(future, until, self.reads, offset)
            if not self._corked:
                self.flush()
                if len(self._waiting) > 1:
                    self._cork()
            if until < self._timer_at:
                self._look_again(until)
        except BaseException:
            self.lost("the connection was lost: a call on it was interrupted")
            raise
        return stream, future

    def withdraw(self, stream: Stream) -> None:
        """Cancel a call that was not sent yet: nobody wants its answer any more."""
        if not stream.id:  # the peer does not allow another stream yet
            self._waiting.pop(stream, None)
            self.http2.cancel(stream)

    def leave(self) -> None:
        """Abandon the connection: it accepts no calls, and is closed once there are none."""
        if not self._left_at and not self.over:
            self._left_at = boot_time()
            self._look_again(self._left_at + ASIDE_TIME)
            self._close_if_done()

    # -- receiving

    def _heard(self, streams: list[Stream]) -> None:
        for stream in streams:
            if stream.done:
                waiting = self._waiting.pop(stream, None)
                if waiting is not None and not waiting.future.done():
                    waiting.future.set_result(None)
        if len(streams) > 1 and not self._corked:
            self._cork()  # these callers' next requests follow in the loop's next iteration
        if self._left_at:
            self._close_if_done()
        elif self.http2.retired:
            self.leave()

    def _ended(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for stream, waiting in self._waiting.items():
            if stream.failure is not None and waiting.offset >= self.sent:
                stream.failure = Http2Failure(stream.failure.text, processed=False)
            if not waiting.future.done():
                waiting.future.set_result(None)
        self._waiting.clear()

    def _close_if_done(self) -> None:
        if not self.http2.streams and not self._waiting:
            self.lost("it was abandoned")

    # -- sending together

    def _cork(self) -> None:
        self._corked = True
        self._loop.call_soon(self._uncork)

    def _uncork(self) -> None:
        self._corked = False
        self.flush()

    def flush(self) -> None:
        """Send the outgoing data now, or at the end of this iteration if corked."""
        if not self._corked:
            super().flush()

    # -- time

    def _look_again(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_later(max(_TICK, at - boot_time()), self._look)

    def _look(self) -> None:
        """The earliest deadline has passed, or the connection may be idle."""
        self.read()  # a loop that stood still comes here first, with the answers in the socket
        now = boot_time()
        for stream, one in list(self._waiting.items()):
            if one.until <= now:
                self._give_up(stream, one)
        if self._waiting:
            self._look_again(min(one.until for one in self._waiting.values()))
        elif not self.over:
            self._look_at_idle(now)

    def _look_at_idle(self, now: float) -> None:
        if not self._left_at and now >= self.used + IDLE_TIME:
            self.leave()
        elif self._left_at and now >= self._left_at + ASIDE_TIME:
            self.lost("it was abandoned")
        else:
            left_at = self._left_at
            self._look_again(left_at + ASIDE_TIME if left_at else self.used + IDLE_TIME)

    def _give_up(self, stream: Stream, one: _Waiting) -> None:
        """Fail a call whose deadline has passed."""
        self._waiting.pop(stream, None)
        if not one.future.done():
            error = RpcError("DEADLINE_EXCEEDED", "no answer in time")
            if not stream.id:
                self.http2.cancel(stream)
                error = RpcError(NOT_PROCESSED, "the server accepts no more concurrent calls")
            one.future.set_result(error)
        if self.reads == one.reads:
            self.leave()


class AioTransport:
    """Calls to one endpoint."""

    def __init__(self, dialer: Dialer) -> None:
        self._dialer = dialer
        self._wire: CallWire | None = None
        self._left: set[CallWire] = set()  # abandoned, with calls in progress
        self._dialing: tuple[AioDial, asyncio.Task[None]] | None = None
        self._closed = False

    async def call(
        self, path: str, request: bytes, timeout: float, token: str | None, *, whole: bool = False
    ) -> bytes:
        """Make a call and return the response. Raises RpcError, NotConnected or NotApplied.

        Args:
            path: the method in gRPC's notation.
            request: the message.
            timeout: seconds.
            token: of the login.
            whole: the server must not give up when the time is over either.
        """
        now = boot_time()
        until = now + timeout
        wire = self._wire
        if wire is not None and now > wire.used + IDLE_TIME:
            self._leave(wire)  # the machine slept, which the loop's own clock has not noticed
            wire = None
        if wire is None or not wire.usable:
            wire = await self._connected(until)
        wire.used = now
        block = self._dialer.headers(path, token, None if whole else timeout)
        stream, answered = wire.start(block, frame_message(request), until)
        try:
            error = await answered
        except asyncio.CancelledError:
            wire.withdraw(stream)
            raise
        if error is not None:
            raise error
        return response(stream)

    async def connect_streams(self, timeout: float, hear: Hear, ended: Ended) -> StreamWire:
        """Open a separate connection for streams. Raises NotConnected.

        `hear` and `ended` are called by `StreamWire`.
        """
        sock, http2 = await AioDial(self._dialer, boot_time() + timeout).run()
        return StreamWire(self._dialer, sock, http2, hear, ended)

    def close(self) -> None:
        """Close all connections; calls in progress fail."""
        self._closed = True
        if self._dialing is not None:
            self._dialing[1].cancel()
        for wire in (self._wire, *self._left):
            if wire is not None:
                wire.lost("the client was closed")
        self._wire = None
        self._left.clear()

    # -- connections

    async def _connected(self, until: float) -> CallWire:
        while True:
            if self._closed:
                raise NotApplied("the client was closed", str(self._dialer.endpoint))
            wire = self._wire
            if wire is not None:
                if wire.usable:
                    return wire
                self._leave(wire)
            dial, task = self._dialing or self._start_to_dial(until)
            left = until - boot_time()
            if left <= 0 or not (await asyncio.wait([task], timeout=left))[0]:
                raise self._dialer.error(dial.waits)
            if not task.cancelled():  # a loop's end cancels all tasks
                task.result()

    def _leave(self, wire: CallWire) -> None:
        self._wire = None
        self._left = {one for one in (*self._left, wire) if not one.over}
        wire.leave()

    def _start_to_dial(self, until: float) -> tuple[AioDial, asyncio.Task[None]]:
        dial = AioDial(self._dialer, max(until, boot_time() + LEAST_DIAL_TIME))
        task = asyncio.get_running_loop().create_task(self._dial(dial), name="etcdsem-dial")
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # if the loop just stops
        task.add_done_callback(self._dialed)
        self._dialing = dial, task
        return dial, task

    async def _dial(self, dial: AioDial) -> None:
        sock, http2 = await dial.run()
        self._wire = CallWire(sock, http2)

    def _dialed(self, task: asyncio.Task[None]) -> None:
        self._dialing = None
        if not task.cancelled():
            task.exception()  # asyncio complains about errors that were not retrieved
