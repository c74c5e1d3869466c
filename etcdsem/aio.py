"""The asyncio library: `Client`, `Semaphore`, `Lease`, with the names and signatures of the
blocking one.

1. A client belongs to the event loop that first used it, and says so when used from another. All
   it does happens in that loop's thread, so each step of a procedure, and each callback of a
   watch, is atomic. Thousands of tasks share its one watch stream and its one keepalive stream.
2. A cancelled task leaves nothing behind: what its procedure does to clean up is performed
   before the cancellation comes out, also if it is cancelled again meanwhile. A lease that was
   granted is listed in `Semaphore.leases` before anything else can happen.
3. When the loop ends (`asyncio.run` cancels all tasks, ours too), what is held is given back
   within 2 seconds; a loop that just stops leaves its leases to their TTL.
4. A loop that was blocked for longer than a lease lasts finds it lost: a lease is judged by the
   clock, and never renewed after its deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import logging
import os
import sys
import time
import weakref
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import FrameType, TracebackType
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    NamedTuple,
    ParamSpec,
    Protocol,
    Self,
    TypeVar,
    cast,
    overload,
)

from etcdsem import model, multi
from etcdsem.clock import boot_time
from etcdsem.core import inspection, lifecycle
from etcdsem.core.commands import (
    Command,
    Failure,
    GrantLease,
    LeasesTimeToLive,
    Listener,
    Mailbox,
    Procedure,
    RevokeLease,
    Transact,
    Txn,
    TxnReply,
    Wait,
    Watch,
)
from etcdsem.core.error_mapping import public_error
from etcdsem.core.grants import Grant
from etcdsem.core.semaphore import SemaphoreState
from etcdsem.core.session import Session
from etcdsem.decorators import AsyncDecorator
from etcdsem.errors import EtcdSemError, WrongEventLoop
from etcdsem.loop_check import methods_need_loop, needs_loop, running_loop
from etcdsem.model import (
    CloseResult,
    Duration,
    Holder,
    Junk,
    Later,
    LimitInfo,
    Overview,
    Rate,
    Status,
    Waiter,
    timeout_seconds,
)
from etcdsem.rate_limit_base import BaseRateLimit
from etcdsem.shell import (
    EXIT_GRACE,
    LONGEST_NAP,
    BaseClient,
    BaseEngine,
    BaseLease,
    BaseSemaphore,
    Named,
    Renewals,
    Watches,
    check_dask_arguments,
    closed_generator,
    connect_settings,
    read_wants,
)

if TYPE_CHECKING:
    from etcdsem.etcd.aio_connection import AioConnection
    from etcdsem.etcd.settings import ConnectionSettings

log = logging.getLogger("etcdsem")

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


# ---------------------------------------------------------------- what an engine stands on


class Calls(Protocol):
    """Requests to etcd; each raises a Failure. A cancelled one may have been applied."""

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
        """The next note; None when `until` comes first."""


class Backend(NamedTuple):
    """All that an engine needs from outside: a real etcd, or one in memory."""

    calls: Calls
    watches: Watches
    renewals: Renewals
    clock: Clock


class Start(Protocol):
    """Starts a task that belongs to the engine."""

    def __call__(
        self, work: Coroutine[Any, Any, None], name: str, /
    ) -> asyncio.Task[None] | None: ...


Dial = Callable[[Start, Callable[[int, float], None]], Backend]
"""Opens a line; gets how to start tasks, and whom to tell (lease id, TTL) of a renewal."""


class Box:
    """A mailbox; one task at a time waits for it."""

    __slots__ = ("_arrived", "_notes")

    def __init__(self) -> None:
        self._notes: list[Any] = []  # a note or two; a deque would be 600 bytes from the start
        self._arrived: asyncio.Future[None] | None = None

    def put(self, note: Any, /) -> None:
        self._notes.append(note)
        self._wake()

    def _wake(self) -> None:
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    async def next(self, now: Callable[[], float], until: float) -> object:
        """The next note; None when `until` comes first."""
        loop = asyncio.get_running_loop()
        while not self._notes:
            left = until - now()
            if left <= 0:
                return None
            self._arrived = loop.create_future()
            timer = None
            if left < float("inf"):
                timer = loop.call_later(min(left, LONGEST_NAP), self._wake)
            try:
                await self._arrived
            finally:
                self._arrived = None
                if timer is not None:
                    timer.cancel()
        return self._notes.pop(0)


class RealClock:
    """The machine's clocks."""

    now = staticmethod(boot_time)

    wall = staticmethod(time.time)

    def mailbox(self) -> Mailbox:
        return Box()

    async def wait(self, box: Mailbox, until: float) -> object:
        if not isinstance(box, Box):
            raise AssertionError("a mailbox of another driver")
        return await box.next(boot_time, until)


class _Engine(BaseEngine):
    """One line to etcd with the core's state behind it: the driver of its procedures."""

    def __init__(self, dial: Dial) -> None:
        self.loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._driving = 0  # procedures that are under way
        self._at_rest: asyncio.Future[None] | None = None  # told when there is none any more
        self._over = False  # nothing is performed any more
        self._noted: list[Callable[[], object]] = []  # log records, for the end of this step
        self._stepping = False
        self._end = asyncio.Event()  # set, or the minder cancelled: it is time to close
        self._grace = EXIT_GRACE
        line = dial(self.start, self._renewed)
        self._calls = line.calls
        self._watches = line.watches
        self._renewals = line.renewals
        self._clock = line.clock
        self.now = line.clock.now  # type: ignore[method-assign]  # asked a dozen times a cycle
        super().__init__()
        self._minder = self.start(self._mind(), "minder")

    def _renewed(self, lease_id: int, ttl: float) -> None:
        self.session.leases.renewed(lease_id, ttl)

    @property
    def connection(self) -> AioConnection:
        """The connection to etcd, for what is no part of the core: counters."""
        return cast("AioConnection", self._calls)

    @property
    def here(self) -> bool:
        return self.pid == os.getpid() and not self.loop.is_closed()

    # -- Env

    def now(self) -> float:
        return self._clock.now()

    def wall(self) -> float:
        return self._clock.wall()

    def mailbox(self) -> Mailbox:
        return self._clock.mailbox()

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
        # Not in the midst of a step: a handler may block the loop, or look at what we do.
        self._noted.append(functools.partial(log.log, level, message, *args, exc_info=error))
        if not self._stepping:
            self.later(self._report)

    def _report(self) -> None:
        while self._noted:
            try:
                self._noted.pop(0)()
            except Exception as error:  # a filter's, or a handler's: no matter of who logs
                context = {"message": "etcdsem: error while logging", "exception": error}
                self.loop.call_exception_handler(context)

    def watch(
        self,
        listener: Listener,
        key: bytes,
        end: bytes = b"",
        *,
        start: int = 0,
        only: Literal["put", "delete"] | None = None,
    ) -> Watch:
        return self._watches.watch(listener, key, end, start=start, only=only)

    def renew(self, lease_id: int) -> None:
        self._renewals.renew(lease_id)

    def restart_renewals(self) -> None:
        self._renewals.restart()

    # -- tasks of its own

    def start(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[None] | None:
        """Run something beside the callers; what it raises is logged."""
        if self._over or self.loop.is_closed():
            work.close()
            return None
        task = self.loop.create_task(_guarded(work, name), name=f"etcdsem-{name}")
        # A loop that is closed with our tasks in it is the user's choice, and no reason to
        # complain of a pending task.
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: work.close())  # cancelled before it began
        return task

    # -- the driver

    async def run(self, procedure: Procedure[T], *, beside: bool = False) -> T:
        """Perform what a procedure yields until it ends.

        A cancellation is thrown into the procedure; what it yields to clean up is performed, and
        cancelling again does not interrupt that. `beside`: the procedure belongs to no caller, so
        its task is cancelled only when the loop ends: then everything is given back first.
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
                result = None  # else it is kept for as long as the next command takes
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
            except GeneratorExit:  # nothing can be awaited any more
                self.later(functools.partial(_dispose, procedure))
                raise
            except BaseException as raised:
                interrupted = interrupted or not isinstance(raised, Exception)
                error = raised

    async def _perform(self, command: Command[Any]) -> object:
        if self._over:
            raise _Over
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
        """In a task of its own: whoever is cancelled here waits for it all the same."""
        task = self.loop.create_task(self._perform(command))
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        return task.result()

    async def _perform_to_the_end(self, command: Command[Any]) -> object:
        """Again when it is cancelled, until all is over: waiting and revoking may be repeated."""
        while True:
            try:
                return await self._perform(command)
            except asyncio.CancelledError:
                if self._over or not isinstance(command, Wait | RevokeLease):
                    raise
                self._end.set()

    def later(self, function: Callable[[], object]) -> None:
        """Call a function in the loop's next turn. A coroutine may be closed by the collector, in
        any thread, and in the midst of anything: what is to be done then is done there.
        """
        try:
            self.loop.call_soon_threadsafe(function)
        except RuntimeError:  # the loop is closed
            function()

    # -- its end

    def drop(self) -> None:
        """Its client was garbage, or never came about, so nothing is held (a lease keeps its client
        alive).
        """
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(self._end.set)

    async def close(self, grace: float) -> None:
        """Give everything back, for `grace` seconds at most, and let go of etcd."""
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
        with contextlib.suppress(Failure, _Over):
            await self.run(lifecycle.shutdown(self.session, until))
        while self._driving and (left := until - self.now()) > 0:
            self._at_rest = self.loop.create_future()
            await asyncio.wait([self._at_rest], timeout=left)
        self._over = True
        self.stop_keeper()
        self._watches.close()
        self._renewals.close()
        await self._calls.close()
        for task in list(self._tasks):
            if task is not self._minder:
                task.cancel()
        rest = self._tasks - {self._minder}
        if rest:
            await asyncio.wait(rest, timeout=1.0)


class _Over(BaseException):
    """The engine was closed, and performs nothing any more."""


def _dispose(procedure: Procedure[Any]) -> None:
    """End a procedure whose clean-up nobody can perform."""
    while not closed_generator(procedure):
        with contextlib.suppress(_Over, StopIteration):
            procedure.throw(_Over())


async def _guarded(work: Coroutine[Any, Any, object], name: str) -> None:
    try:
        await work
    except (asyncio.CancelledError, _Over):
        pass  # the loop, or the client, is at its end
    except Exception:
        log.exception("etcdsem: error in %s", name)


def _current_task() -> object:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None  # no loop here: a coroutine is being closed by the collector


async def _called(function: Callable[[], object]) -> None:
    result = function()
    if inspect.isawaitable(result):
        await result


# ---------------------------------------------------------------- client


@methods_need_loop
class Client(BaseClient):
    """A connection to etcd, shared by any number of semaphores and tasks of one event loop.

    Opened on first use. ``async with`` gives everything back at its end.
    """

    _package = "etcdsem.aio"

    def __init__(
        self,
        settings: ConnectionSettings,
        *,
        prefix: str | None = None,
        keeper: bool | Duration | None = False,
    ) -> None:
        super().__init__(settings, prefix=prefix, keeper=keeper)
        self._engine: _Engine | None = None
        self._closed = False
        _clients.add(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_client, (self.settings, self.prefix, self.keeper or False)

    def _dial(self, start: Start, renewed: Callable[[int, float], None]) -> Backend:
        from etcdsem.etcd.aio_connection import AioConnection  # protobuf is loaded here
        from etcdsem.etcd.aio_streams import AioStreams

        connection = AioConnection(self.settings)
        streams = AioStreams(connection, start, renewed)
        return Backend(connection, streams, streams, RealClock())

    @property
    def engine(self) -> _Engine:
        """The driver, made on first use; raises WrongEventLoop where it can't be used."""
        engine = self._engine
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise WrongEventLoop(
                "etcdsem.aio is for coroutines, and no event loop is running here; "
                "the blocking library is etcdsem.Semaphore"
            ) from None
        if engine is not None and engine.loop is not loop:
            state = "that has ended" if engine.loop.is_closed() else "of its own"
            raise WrongEventLoop(
                f"{self!r} belongs to another event loop {state}: make a client in each loop, or "
                "give none (each loop has a default client)"
            )
        if self._closed or (engine is not None and engine.session.closed):
            raise EtcdSemError("this etcdsem client was closed")
        if engine is None:
            engine = _Engine(self._dial)
            engine.session.first_contact = self.settings.dial_timeout
            try:
                engine.start_keeper(self.settings, self.keeper)
            except BaseException:
                engine.drop()
                raise
            self._engine = engine
            weakref.finalize(self, engine.drop).atexit = False
        return engine

    @property
    def id(self) -> str:
        """How this client is named in etcd's keys."""
        return self.engine.session.client

    async def close(self) -> None:
        """Give all leases back and close the connection. Closing twice is fine."""
        engine, self._closed = self._engine, True
        if engine is not None and engine.here:
            if engine.loop is not asyncio.get_running_loop():
                raise WrongEventLoop(f"{self!r} belongs to another event loop: close it there")
            await engine.close(10.0)

    def _after_fork_in_child(self) -> None:
        if self._engine is not None:
            _inherited.append(self._engine)  # never collected: its end would touch the wire
            self._engine = None

    @property
    def _session(self) -> Session:
        return self.engine.session

    async def run(self, procedure: Procedure[T], what: str) -> T:
        """Run a procedure; `what` says for an error message what was tried."""
        try:
            return await self.engine.run(procedure)
        except Failure as failure:
            raise public_error(failure, what) from failure
        except _Over:
            raise EtcdSemError(f"{what}: its client was closed") from None

    # -- what an operator asks

    async def overview(self) -> list[Overview]:
        """All semaphores under the prefix: limit, held, waiting."""
        procedure = inspection.overview(self._session, self.prefix)
        return await self.run(procedure, "list the semaphores")

    async def status(self, name: str, *, ttl: bool = True) -> Status:
        """One semaphore at one revision: who holds, who waits, and with `ttl` for how long."""
        return await self.run(inspection.status(self.station(name), ttl=ttl), f"look at {name!r}")

    async def limit(self, name: str) -> int | None:
        """The limit in force; None if what is stored is no number."""
        return await self.run(self._reading_limit(name), f"read the limit of {name!r}")

    async def limit_info(self, name: str) -> LimitInfo:
        """The limit in force, or the rate, and whether it is paused. Raises SemaphoreClosed."""
        return await self.run(self._reading_info(name), f"read the limit of {name!r}")

    @overload
    async def resize(self, name: str, max_leases: int) -> tuple[int | None, int]: ...
    @overload
    async def resize(self, name: str, max_leases: Rate) -> tuple[Rate | None, Rate]: ...
    async def resize(
        self, name: str, max_leases: int | Rate
    ) -> tuple[int | Rate | None, int | Rate]:
        """Change the limit of a semaphore, or the rate of a rate limit, live. Returns the old one
        (None if what was stored is none) and the new one.
        """
        what = "rate" if isinstance(max_leases, Rate) else "limit"
        return await self.run(self._resizing(name, max_leases), f"change the {what} of {name!r}")

    async def resize_by(self, name: str, difference: int) -> tuple[int, int]:
        """Change the limit of a semaphore by a difference, live. Returns the old and the new one.

        It counts from the limit that is stored when it is written.
        """
        return await self.run(self._resizing_by(name, difference), f"change the limit of {name!r}")

    async def pause(self, name: str, *, reason: str | None = None) -> bool:
        """Grant no lease of it until `resume`. False if it was paused before."""
        return await self.run(self._pausing(name, reason), f"pause {name!r}")

    async def resume(self, name: str) -> bool:
        """Grant leases again, to who waits first of all. False if it was not paused."""
        return await self.run(self._resuming(name), f"resume {name!r}")

    async def drain(
        self,
        name: str,
        timeout: Duration | None = None,
        *,
        reason: str | None = None,
        on_wait: Callable[[], object] | None = None,
    ) -> bool:
        """Pause it, and wait until nobody holds. False when somebody does after the timeout."""
        return await self.run(self._draining(name, timeout, reason, on_wait), f"drain {name!r}")

    async def evict(
        self, name: str, *, slot: int | None = None, lease: str | None = None
    ) -> Holder | Waiter | Junk:
        """End one lease: that of the holder of `slot`, or the one with the id `lease` (hex)."""
        return await self.run(self._evicting(name, slot, lease), f"evict from {name!r}")

    async def close_semaphore(self, name: str, *, force: bool = False) -> CloseResult:
        """Remove a semaphore; without `force` only if nobody holds or waits. See `CloseResult`."""
        closing = lifecycle.close(self.station(name), force=force)
        return await self.run(closing, f"close {name!r}")


def connect(
    endpoints: str | Sequence[str] | None = None,
    *,
    cacert: str | None = None,
    cert: str | None = None,
    key: str | None = None,
    user: str | None = None,
    password: str | None = None,
    password_file: str | None = None,
    dial_timeout: Duration | None = None,
    prefix: str | None = None,
    keeper: bool | Duration | None = None,
) -> Client:
    """A client for the etcd at `endpoints`; arguments, variables and errors as `etcdsem.connect`.

    No connection is made before it is needed, and none without an event loop.
    """
    settings = connect_settings(
        endpoints,
        dial_timeout,
        cacert=cacert,
        cert=cert,
        key=key,
        user=user,
        password=password,
        password_file=password_file,
    )
    return Client(settings, prefix=prefix, keeper=keeper)


def default_client() -> Client:
    """The running loop's client for semaphores that were given none."""
    return _client_of_loop(None, connect)


def swap_default_client(client: Client | None) -> Client | None:
    """Make a client the running loop's default; gives the one it was, if any. For tests."""
    clients = _of_loops.setdefault(asyncio.get_running_loop(), {})
    former = clients.pop(None, None)
    if client is not None:
        clients[None] = client
    return former


def _client_of_loop(key: object, make: Callable[[], Client]) -> Client:
    clients = _of_loops.setdefault(running_loop("a client"), {})
    client = clients.get(key)
    if client is None or client._closed or (client._engine and client._engine.session.closed):
        client = clients[key] = make()
    return client


def _rebuild_client(
    settings: ConnectionSettings, prefix: str, keeper: float | bool = False
) -> Client:
    """An unpickled client: the one of the running loop with the same settings, if one runs."""

    def make() -> Client:
        return Client(settings, prefix=prefix, keeper=keeper)

    try:
        return _client_of_loop((settings, prefix, keeper), make)
    except RuntimeError:
        return make()


_clients: weakref.WeakSet[Client] = weakref.WeakSet()
_inherited: list[_Engine] = []
_of_loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[object, Client]] = (
    weakref.WeakKeyDictionary()
)


def _after_fork_in_child() -> None:
    for client in list(_clients):
        client._after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)


# ---------------------------------------------------------------- lease


@methods_need_loop
class Lost(asyncio.Event):
    """Set once a lease is lost: ``await lease.lost``, or ``lease.lost.is_set()``."""

    async def wait(self) -> Literal[True]:
        """Wait until the lease is lost."""
        return await super().wait()

    def __await__(self) -> Generator[Any, None, Literal[True]]:
        return self.wait().__await__()


@methods_need_loop
class Lease(BaseLease):
    """A slot of a semaphore that is held by this event loop, or several.

    It is kept alive in the background until it is released, or lost. Lost is final.
    """

    lost: Lost
    _package = "etcdsem.aio"

    def __init__(self, semaphore: Semaphore, engine: _Engine, grant: Grant) -> None:
        self.lost = Lost()
        """Set once the lease is lost (expired, revoked, evicted, closed); one can await it."""
        self._engine = engine
        super().__init__(semaphore, engine, grant)

    async def release(self) -> bool:
        """Give it back. False, and no exception, if it was lost or etcd could not be told."""
        return self._here and await self._run(self._releasing())

    async def _end(self) -> None:
        if self._here:
            await self._run(self._ending())

    def _drop(self) -> None:
        """Nobody can await its release: a task of the client's does it."""
        self._engine.later(self._release_beside)

    def _release_beside(self) -> None:
        if self._held:
            self._engine.spawn(self._releasing(), "release")

    async def _run(self, procedure: Procedure[T]) -> T:
        if self._engine.loop is not asyncio.get_running_loop():
            raise WrongEventLoop(f"{self!r} belongs to another event loop: release it there")
        return await self._engine.run(procedure)


def _to_caller(lease: Lease) -> None:
    lease.owner = "caller"


class _Held(AsyncDecorator, AbstractAsyncContextManager[Lease, None]):
    """The block of ``async with semaphore.hold()``. One that is dropped without having been left
    gives its lease back.
    """

    def __init__(self, semaphore: Semaphore, timeout: Duration | None, **wants: Any) -> None:
        self._semaphore = semaphore
        self._timeout = timeout
        self._wants = wants
        self._entered = False
        self._lease: Lease | None = None

    def _block(self) -> Self:
        return type(self)(self._semaphore, self._timeout, **self._wants)

    async def __aenter__(self) -> Lease:
        if self._entered:
            raise RuntimeError("this block was already entered: call hold() for each")
        self._entered = True
        lease = await self._semaphore._acquire(self._timeout, None, self._keep, **self._wants)
        if lease is None:
            raise self._semaphore._no_lease(self._timeout)
        return lease

    def _keep(self, lease: Lease) -> None:
        lease.owner = "block"
        self._lease = lease

    def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> Coroutine[Any, Any, None]:
        return self._exit(kind, awaitable=_may_await(kind, sys._getframe(1)))

    async def _exit(self, kind: type[BaseException] | None, *, awaitable: bool) -> None:
        lease = self._lease
        if lease is None:
            return
        if not awaitable:
            lease._drop()
        elif kind is None:
            await lease._end()
        else:
            await lease.release()

    def __del__(self) -> None:
        if self._lease is not None and self._lease._held:
            self._lease._drop()


def _may_await(kind: type[BaseException] | None, frame: FrameType) -> bool:
    """May one who leaves a block await something? Not in a coroutine that is being closed, by the
    collector for one. An async generator that is closed may.
    """
    in_generator = frame.f_code.co_flags & inspect.CO_ASYNC_GENERATOR
    return kind is not GeneratorExit or bool(in_generator)


# ---------------------------------------------------------------- semaphore


@methods_need_loop
class _Bound(Named):
    """The way of a semaphore, or a rate limit, to its client."""

    def _bind(self, client: Client | None, *, register: bool) -> None:
        if client is not None and not isinstance(client, Client):
            raise TypeError(
                "client must come from etcdsem.aio.connect(): blocking clients, also those of "
                "python-etcd3, cannot be used in an event loop"
            )
        self._client = client
        self._to_register = register

    def __await__(self) -> Generator[Any, None, Self]:
        return self._ready().__await__()

    async def _ready(self) -> Self:
        if self._to_register:
            await self.register()
        return self

    @property
    def client(self) -> Client:
        """The client in use."""
        return default_client() if self._client is None else self._client

    def _state(self) -> SemaphoreState:
        return self.client.station(self.name, self._prefix)

    async def _run(self, procedure: Procedure[T], what: str) -> T:
        return await self.client.run(procedure, f"{what} {self.name!r}")

    async def register(self) -> None:
        """Write the limit, or the rate, to etcd if it is new, else check that it is the same."""
        await self._run(self._registering(self._state()), "register")
        self._to_register = False

    async def pause(self, *, reason: str | None = None) -> bool:
        """Grant no lease of it, no start if it is a rate limit, to anybody until `resume`. Who
        holds is not disturbed; who waits, waits on, and a try without waiting finds it full.

        Args:
            reason: at most 253 printable characters, for whoever asks why nothing goes on.

        Returns:
            False if it was paused before: then nothing was changed.
        """
        return await self._run(self._pausing(self._state(), reason), "pause")

    async def resume(self) -> bool:
        """Grant again. False if it was not paused: then nothing was changed."""
        return await self._run(self._resuming(self._state()), "resume")


@methods_need_loop
class Semaphore(AsyncDecorator, _Bound, BaseSemaphore[Lease]):
    """A counting semaphore that lives in etcd, for coroutines; arguments as `etcdsem.Semaphore`.

    ``await Semaphore(...)`` registers it, and gives it. One that was not awaited is registered
    by its first use. Without `client` each event loop has a client of its own, so one object may
    serve several loops, one after the other.

    `on_lost` may be a function or a coroutine function; it runs in the event loop.
    """

    _package = "etcdsem.aio"

    def __init__(
        self,
        max_leases: int | None = 1,
        name: str | None = None,
        register: bool = True,
        scheduler_rpc: None = None,
        loop: object = None,
        *,
        client: Client | None = None,
        lease_timeout: Duration | None = None,
        refresh_interval: Duration | None = None,
        on_lost: Callable[[Lease], object] | None = None,
        labels: Mapping[str, str] | None = None,
        prefix: str | None = None,
        owner: str | None = None,
        raise_on_loss: bool = True,
        max_hold: Duration | None = None,
        rate: str | None = None,
    ) -> None:
        check_dask_arguments(register, scheduler_rpc)
        self._bind(client, register=register)
        super().__init__(
            max_leases,
            name,
            lease_timeout=lease_timeout,
            refresh_interval=refresh_interval,
            on_lost=on_lost,
            labels=labels,
            prefix=prefix,
            owner=owner,
            raise_on_loss=raise_on_loss,
            max_hold=max_hold,
            rate=rate,
        )

    # -- acquire and release

    async def acquire(
        self,
        timeout: Duration | None = None,
        *,
        weight: int = 1,
        priority: int = 0,
        eager: bool = False,
    ) -> bool:
        """Wait for a lease. True: granted; False: there was no room until the timeout.

        `weight`: how many slots the lease shall hold, 1 to 32, all of them or none. Raises
        WeightExceedsLimit if the limit is less, or is lowered so far meanwhile. `priority`: -100 to
        100; the highest is served first. `eager`: pass those who want more than is free.

        Cancelled, it leaves the line, and gives back what may have been granted.
        """
        lease = await self._acquire(timeout, None, lambda lease: None, weight, priority, eager)
        return lease is not None

    async def acquire_lease(
        self,
        timeout: Duration | None = None,
        *,
        weight: int = 1,
        priority: int = 0,
        eager: bool = False,
        on_wait: Callable[[], object] | None = None,
    ) -> Lease | None:
        """Like `acquire`, but gives the `Lease`, or None.

        `on_wait` is called once it is clear that one has to wait; it may be a coroutine function.
        """
        return await self._acquire(timeout, on_wait, _to_caller, weight, priority, eager)

    async def _acquire(
        self,
        timeout: Duration | None,
        on_wait: Callable[[], object] | None,
        keep: Callable[[Lease], object],
        weight: int = 1,
        priority: int = 0,
        eager: bool = False,
    ) -> Lease | None:
        """`keep` gets the lease in the step in which it is granted."""
        limit, wants = timeout_seconds(timeout), read_wants(weight, priority, eager)
        await self._ready()
        engine = self.client.engine

        def lease_of(grant: Grant) -> Lease:
            lease = Lease(self, engine, grant)
            keep(lease)
            return lease

        acquiring = self._acquiring(self._state(), limit, on_wait, lease_of, wants=wants)
        return await self._run(acquiring, "acquire")

    async def release(self) -> bool:
        """Give back this object's oldest lease that was acquired in this event loop; False if etcd
        could not be told, or it was lost.

        Raises ReleasedTooOften if it holds none.
        """
        while True:
            lease = self._oldest()
            done = await lease._run(self._releasing(lease._engine))
            if done is not None:
                return done

    def _releasable(self) -> tuple[Lease, ...]:
        loop = asyncio.get_running_loop()
        ours = tuple(lease for lease in self.leases if lease._engine.loop is loop)
        return ours or self.leases  # those of other loops: an error that says so

    def hold(
        self,
        timeout: Duration | None = None,
        *,
        weight: int = 1,
        priority: int = 0,
        eager: bool = False,
    ) -> AbstractAsyncContextManager[Lease, None]:
        """Hold a lease for the length of an ``async with`` block; gives the `Lease`. See `acquire`.

        Raises AcquireTimeout if there was no room, and LeaseLost at its end (`raise_on_loss`).
        """
        return _Held(self, timeout, weight=weight, priority=priority, eager=eager)

    def __aenter__(self) -> Coroutine[Any, Any, Self]:
        return self._enter(sys._getframe(1))

    async def _enter(self, frame: FrameType) -> Self:
        held = _Held(self, None)
        await held.__aenter__()
        self._blocks.enter(held, frame, asyncio.current_task())
        return self

    def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> Coroutine[Any, Any, None]:
        frame = sys._getframe(1)
        held: _Held = self._blocks.leave(frame, _current_task())
        return held._exit(kind, awaitable=_may_await(kind, frame))

    def _block(self) -> AbstractAsyncContextManager[Lease, Any]:
        return self.hold()

    # -- the semaphore as a whole

    async def get_value(self) -> int:
        """The number of slots held now, by anyone."""
        await self._ready()
        return await self._run(self._counting(self._state()), "count the leases of")

    async def resize(self, max_leases: int) -> None:
        """Change the limit for everybody, live. Waiters get new room at once."""
        await self._ready()
        await self._run(self._resizing(self._state(), max_leases), "resize")

    async def drain(self, timeout: Duration | None = None, *, reason: str | None = None) -> bool:
        """Pause it, and wait until nobody holds. False when somebody does after the timeout."""
        return await self._run(self._draining(self._state(), timeout, reason), "drain")

    async def status(self, *, ttl: bool = True) -> Status:
        """Holders and waiters at one revision. `ttl`: also ask how long each lease has left."""
        await self._ready()
        return await self._run(self._status(self._state(), ttl=ttl), "look at")

    async def holders(self) -> tuple[Holder, ...]:
        """Who holds a lease now, in the order of their slots."""
        return (await self.status()).holders

    async def waiters(self) -> tuple[Waiter, ...]:
        """Who waits now, in the order in which they will be served."""
        return (await self.status()).waiters

    async def close(self) -> None:
        """Remove the semaphore from etcd, for everybody. Closing twice is fine."""
        self._to_register = False
        await self._run(self._closing(self._state()), "close")


# ---------------------------------------------------------------- several at once


@needs_loop
async def acquire_all(
    *semaphores: Semaphore,
    timeout: Duration | None = None,
    on_wait: Callable[[str], object] | None = None,
    weight: int = 1,
    priority: int = 0,
    eager: bool = False,
) -> tuple[Lease, ...] | None:
    """Wait for a lease of each of several semaphores, all of them or none; see
    `etcdsem.acquire_all`. None when there was no room until the timeout.

    Cancelled, it leaves every line, and gives back what may have been granted.
    """
    multi.refuse_wants(weight, priority, eager)
    taken = await _acquire_all(semaphores, timeout, on_wait)
    return None if isinstance(taken, str) else taken


def hold_all(
    *semaphores: Semaphore,
    timeout: Duration | None = None,
    weight: int = 1,
    priority: int = 0,
    eager: bool = False,
) -> _HeldAll:
    """Hold a lease of each of several semaphores for the length of an ``async with`` block; gives
    the leases, in the order of the semaphores. It is also a decorator.

    Raises AcquireTimeout if there was no room, and LeaseLost at its end, if any was lost.
    """
    multi.refuse_wants(weight, priority, eager)
    return _HeldAll(semaphores, timeout)


class _HeldAll(AsyncDecorator, AbstractAsyncContextManager[tuple[Lease, ...], None]):
    """The block of ``async with hold_all(...)``."""

    def __init__(self, semaphores: tuple[Semaphore, ...], timeout: Duration | None) -> None:
        self._semaphores = semaphores
        self._timeout = timeout
        self._entered = False
        self._leases: tuple[Lease, ...] = ()

    def _block(self) -> Self:
        return type(self)(self._semaphores, self._timeout)

    async def __aenter__(self) -> tuple[Lease, ...]:
        if self._entered:
            raise RuntimeError("this block was already entered: call hold_all() for each")
        self._entered = True
        taken = await _acquire_all(self._semaphores, self._timeout, None, self._keep)
        if isinstance(taken, str):
            raise multi.not_all(taken, self._semaphores, self._timeout)
        return taken

    def _keep(self, leases: tuple[Lease, ...]) -> None:
        for lease in leases:
            lease.owner = "block"
        self._leases = leases

    def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> Coroutine[Any, Any, None]:
        return self._exit(kind, awaitable=_may_await(kind, sys._getframe(1)))

    async def _exit(self, kind: type[BaseException] | None, *, awaitable: bool) -> None:
        if not awaitable:
            self.__del__()
        elif self._leases:
            ending = multi.ending(self._leases, quietly=kind is not None)
            await self._leases[0]._run(ending)

    def __del__(self) -> None:
        for lease in self._leases:
            if lease._held:
                lease._drop()


async def _acquire_all(
    semaphores: tuple[Semaphore, ...],
    timeout: Duration | None,
    on_wait: Callable[[str], object] | None,
    keep: Callable[[tuple[Lease, ...]], object] | None = None,
) -> tuple[Lease, ...] | str:
    parts = multi.parts_of(semaphores, Semaphore, Lease)
    limit = timeout_seconds(timeout)
    for one in semaphores:
        await one._ready()
    acquiring = multi.acquiring(parts, limit, on_wait, keep)
    return await semaphores[0].client.run(acquiring, f"acquire {multi.named(semaphores)}")


@methods_need_loop
class RateLimit(AsyncDecorator, _Bound, BaseRateLimit):
    """At most `limit` starts in any window of `period`; arguments as `etcdsem.RateLimit`.

    ``await RateLimit(...)`` registers it, and gives it. One that was not awaited is registered by
    its first use.
    """

    _package = "etcdsem.aio"
    _class_name = "RateLimit"

    def __init__(
        self,
        name: str,
        limit: int | None = None,
        period: Duration | None = None,
        *,
        client: Client | None = None,
        block: int | None = None,
        labels: Mapping[str, str] | None = None,
        prefix: str | None = None,
        owner: str | None = None,
        register: bool = True,
    ) -> None:
        self._bind(client, register=register)
        super().__init__(
            name, limit, period, block=block, labels=labels, prefix=prefix, owner=owner
        )

    async def acquire(
        self, timeout: Duration | None = None, *, on_wait: Callable[[], object] | None = None
    ) -> model.Start | None:
        """Wait for a start: a `Start`, which tells how long it was `waited` for, or None if there
        was none until the timeout. Cancelled, it leaves the line.
        """
        limit = timeout_seconds(timeout)
        await self._ready()
        return await self._run(self._starting(self._state(), limit, on_wait), "acquire")

    async def try_acquire(self) -> model.Start | Later:
        """A start, if there is one now; else `Later`, which is false, and has `retry_after`."""
        await self._ready()
        return await self._run(self._trying(self._state()), "acquire")

    async def __aenter__(self) -> Self:
        await self.acquire()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        pass

    def _block(self) -> Self:
        return self

    async def resize(self, limit: int, period: Duration) -> None:
        """Change the rate for everybody, live. Starts already made still count as they did."""
        await self._ready()
        await self._run(self._resizing(self._state(), limit, period), "resize")

    async def status(self, *, ttl: bool = True) -> Status:
        """The starts that are in use (as `holders`), and who waits, at one revision."""
        await self._ready()
        return await self._run(self._status(self._state(), ttl=ttl), "look at")

    async def close(self) -> None:
        """Remove it from etcd, for everybody; who waits gets SemaphoreClosed."""
        self._to_register = False
        await self._run(self._closing(self._state()), "close")


__all__ = [
    "Client",
    "Lease",
    "RateLimit",
    "Semaphore",
    "acquire_all",
    "connect",
    "default_client",
    "hold_all",
]
