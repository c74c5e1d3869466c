"""The driver of the asyncio library: tasks of one event loop perform the procedures.

1. Everything happens in the loop's thread, so each step of a procedure, and each callback of a
   watch, is atomic.
2. A cancellation is thrown into the procedure. What it yields to clean up is performed before the
   cancellation comes out, also if the task is cancelled again meanwhile.
3. When the loop ends (`asyncio.run` cancels all tasks, the driver's too), everything is given back
   within 2 seconds; a loop that just stops leaves its leases to their TTL.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import logging
import os
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, cast

from etcdsem.core import lifecycle
from etcdsem.core.commands import (
    Command,
    Failure,
    GrantLease,
    LeasesTimeToLive,
    Mailbox,
    Procedure,
    RevokeLease,
    Transact,
    Txn,
    TxnReply,
    Wait,
)
from etcdsem.drivers.aio_clock import RealClock
from etcdsem.drivers.base import (
    EXIT_GRACE,
    Driver,
    KeepaliveStream,
    WatchStream,
    closed_generator,
)

if TYPE_CHECKING:
    from etcdsem.etcd.aio_connection import AioConnection
    from etcdsem.etcd.settings import ConnectionSettings

log = logging.getLogger("etcdsem")

T = TypeVar("T")


class Calls(Protocol):
    """Requests to etcd; each may raise a Failure. A cancelled one may have been applied."""

    async def transact(self, txn: Txn, timeout: float) -> TxnReply: ...
    async def grant(self, lease_id: int, ttl: int, timeout: float) -> float: ...
    async def revoke(self, lease_id: int, timeout: float) -> None: ...
    async def times_to_live(
        self, lease_ids: Sequence[int], timeout: float
    ) -> tuple[float | None, ...]: ...
    async def close(self) -> None: ...


class Clock(Protocol):
    """Time, and waiting for it."""

    def now(self) -> float: ...
    def wall(self) -> float: ...
    def mailbox(self) -> Mailbox: ...
    async def wait(self, box: Mailbox, until: float) -> object:
        """The next message; None if `until` comes first."""


class Backend(NamedTuple):
    """What a driver needs from outside: a real etcd, or one in memory."""

    calls: Calls
    watches: WatchStream
    renewals: KeepaliveStream
    clock: Clock


class StartTask(Protocol):
    """Starts a task that belongs to the driver."""

    def __call__(
        self, work: Coroutine[Any, Any, None], name: str, /
    ) -> asyncio.Task[None] | None: ...


Dial = Callable[[StartTask, Callable[[int, float], None]], Backend]
"""Makes the backend. Its arguments: what starts tasks, and what to call with (lease id, TTL) on a
renewal."""


class AioDriver(Driver):
    """Performs the procedures of one client, in tasks of one event loop."""

    _clock: Clock

    def __init__(self, dial: Dial) -> None:
        self.loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._driving = 0  # procedures in progress
        self._at_rest: asyncio.Future[None] | None = None  # resolved when all have ended
        self._over = False  # no command is performed any more
        self._noted: list[Callable[[], object]] = []  # log records to write after this step
        self._stepping = False
        self._end = asyncio.Event()  # set, or the minder is cancelled: close
        self._grace = EXIT_GRACE
        backend = dial(self.start, self._renewed)
        self._calls = backend.calls
        super().__init__(backend.watches, backend.renewals, backend.clock)
        self._minder = self.start(self._mind(), "minder")

    @property
    def connection(self) -> AioConnection:
        """The connection, for its counters."""
        return cast("AioConnection", self._calls)

    @property
    def here(self) -> bool:
        return self.pid == os.getpid() and not self.loop.is_closed()

    # -- Env

    def spawn(self, procedure: Procedure[Any], name: str) -> None:
        task = self.start(self.run(procedure, beside=True), name)
        if task is not None:
            self._driving += 1
            task.add_done_callback(self._driven)

    def call(self, function: Callable[[], object], name: str) -> None:
        self.start(_called(function), name)

    def log(
        self, level: int, message: str, *args: object, error: BaseException | None = None
    ) -> None:
        # Not during a step: a handler may block the loop, or use this client.
        self._noted.append(functools.partial(log.log, level, message, *args, exc_info=error))
        if not self._stepping:
            self.later(self._report)

    def _report(self) -> None:
        while self._noted:
            try:
                self._noted.pop(0)()
            except Exception as error:  # raised by a filter or a handler
                context = {"message": "etcdsem: error while logging", "exception": error}
                self.loop.call_exception_handler(context)

    # -- tasks of its own

    def start(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[None] | None:
        """Run a task of the client's own; its exceptions are logged."""
        if self._over or self.loop.is_closed():
            work.close()
            return None
        task = self.loop.create_task(_guarded(work, name), name=f"etcdsem-{name}")
        # A user may close a loop while our tasks are pending; asyncio need not complain.
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: work.close())  # cancelled before it began
        return task

    # -- the driver

    async def run(self, procedure: Procedure[T], *, beside: bool = False) -> T:
        """Perform what a procedure yields until it ends.

        A cancellation is thrown into the procedure. The commands that it yields to clean up are
        performed, also if the task is cancelled again. `beside`: the procedure belongs to no
        caller, so its task is cancelled only when the loop ends; then everything is given back
        first.
        """
        self._driving += 1
        try:
            return await self._drive(procedure, beside=beside)
        finally:
            self._driven()

    def _driven(self, _task: object = None) -> None:
        self._driving -= 1
        if not self._driving and self._at_rest is not None and not self._at_rest.done():
            self._at_rest.set_result(None)

    async def _drive(self, procedure: Procedure[T], *, beside: bool) -> T:
        result: Any = None
        error: BaseException | None = None
        interrupted = False
        while True:
            self._stepping = True
            try:
                if error is None:
                    command = procedure.send(result)
                else:
                    thrown, error = error, None
                    command = procedure.throw(thrown)
                result = None  # else it stays alive while the next command runs
            except StopIteration as stop:
                value: T = stop.value
                return value
            finally:
                self._stepping = False
                if self._noted:
                    self._report()
            try:
                if beside:
                    result = await self._perform_to_the_end(command)
                elif interrupted:
                    result = await self._perform_shielded(command)
                else:
                    result = await self._perform(command)
            except GeneratorExit:  # nothing can be awaited any longer
                self.later(functools.partial(_dispose, procedure))
                raise
            except BaseException as raised:
                interrupted = interrupted or not isinstance(raised, Exception)
                error = raised

    async def _perform(self, command: Command[Any]) -> object:
        if self._over:
            raise Over
        match command:
            case Transact():
                return await self._calls.transact(command.txn, command.timeout)
            case Wait():
                return await self._clock.wait(command.box, command.until)
            case GrantLease():
                return await self._calls.grant(command.lease_id, command.ttl, command.timeout)
            case RevokeLease():
                await self._calls.revoke(command.lease_id, command.timeout)
                return None
            case LeasesTimeToLive():
                return await self._calls.times_to_live(command.lease_ids, command.timeout)
        raise AssertionError(f"no such command: {command!r}")

    async def _perform_shielded(self, command: Command[Any]) -> object:
        """In a task of its own; a cancelled caller still waits for it."""
        task = self.loop.create_task(self._perform(command))
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        return task.result()

    async def _perform_to_the_end(self, command: Command[Any]) -> object:
        """Repeat it if it is cancelled, until the driver is closed. Only waiting and revoking may
        be repeated.
        """
        while True:
            try:
                return await self._perform(command)
            except asyncio.CancelledError:
                if self._over or not isinstance(command, Wait | RevokeLease):
                    raise
                self._end.set()

    def later(self, function: Callable[[], object]) -> None:
        """Call a function in the loop's next iteration. The garbage collector may close a coroutine
        in any thread at any moment, so the work that this causes is done here.
        """
        try:
            self.loop.call_soon_threadsafe(function)
        except RuntimeError:  # the loop is closed
            function()

    # -- its end

    def drop(self) -> None:
        """Close it soon: its client was collected, or never completed. It holds nothing, since a
        lease refers to its client.
        """
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(self._end.set)

    async def close(self, grace: float) -> None:
        """Give everything back, within `grace` seconds, and disconnect."""
        self._grace = grace
        self._end.set()
        if self._minder is not None:
            await asyncio.wait([self._minder])

    async def _mind(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await self._end.wait()
        self._end.set()
        closing = self.loop.create_task(self._close(self.now() + self._grace))
        while not closing.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([closing])

    async def _close(self, until: float) -> None:
        with contextlib.suppress(Failure, Over):
            await self.run(lifecycle.shutdown(self.session, until))
        while self._driving and (left := until - self.now()) > 0:
            self._at_rest = self.loop.create_future()
            await asyncio.wait([self._at_rest], timeout=left)
        self._over = True
        self.stop_helper()
        self._watches.close()
        self._renewals.close()
        await self._calls.close()
        for task in list(self._tasks):
            if task is not self._minder:
                task.cancel()
        rest = self._tasks - {self._minder}
        if rest:
            await asyncio.wait(rest, timeout=1.0)


class Over(BaseException):
    """The driver was closed, and performs no more commands."""


def _dispose(procedure: Procedure[Any]) -> None:
    """End a procedure whose clean-up cannot be performed."""
    while not closed_generator(procedure):
        with contextlib.suppress(Over, StopIteration):
            procedure.throw(Over())


async def _guarded(work: Coroutine[Any, Any, object], name: str) -> None:
    try:
        await work
    except (asyncio.CancelledError, Over):
        pass  # the loop, or the client, is ending
    except Exception:
        log.exception("etcdsem: error in %s", name)


async def _called(function: Callable[[], object]) -> None:
    result = function()
    if inspect.isawaitable(result):
        await result


def dial(
    settings: ConnectionSettings, start: StartTask, renewed: Callable[[int, float], None]
) -> Backend:
    """The backend for a real etcd. It connects on first use."""
    from etcdsem.etcd.aio_connection import AioConnection  # loads protobuf
    from etcdsem.etcd.aio_streams import AioStreams

    connection = AioConnection(settings)
    streams = AioStreams(connection, start, renewed)
    return Backend(connection, streams, streams, RealClock())
