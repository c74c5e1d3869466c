"""The blocking library: `Client`, `Semaphore`, `Lease`, driven by threads.

1. A call talks to etcd from the caller's own thread. Beside it a client has a few daemon threads,
   started when needed: the heartbeat, and one for its watches and renewals.
2. Every step of a procedure, and every callback of a watch, runs under the client's one lock;
   nothing else does (`client_lock`).
3. A client opens no connection before it is used. After a fork the child's client starts clean:
   it has none of the parent's leases, and never touches them.
4. At the interpreter's exit everything is given back, within 2 seconds; what can't be told to
   etcd by then ends by its TTL.
"""

from __future__ import annotations

import _thread
import contextlib
import functools
import logging
import os
import queue
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    NamedTuple,
    ParamSpec,
    Protocol,
    Self,
    TypeAlias,
    TypeVar,
    cast,
    overload,
)

from etcdsem import exit_hooks, multi
from etcdsem.client_lock import MARKED, ClientLock, elsewhere, enter, inside, leave
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
from etcdsem.decorators import Decorator
from etcdsem.errors import EtcdSemError
from etcdsem.model import (
    CloseResult,
    Duration,
    Holder,
    Junk,
    Later,
    LimitInfo,
    Overview,
    Rate,
    Start,
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
    from etcdsem.etcd.connection import Connection
    from etcdsem.etcd.settings import ConnectionSettings

log = logging.getLogger("etcdsem")

_MAIN_NAP = 0.5
"""The longest nap of the main thread: the kernel may hand Ctrl-C to another thread, and then the
main thread notices only when it wakes."""

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


# ---------------------------------------------------------------- what an engine stands on


class Calls(Protocol):
    """Requests to etcd; each blocks, and raises a Failure."""

    def transact(self, txn: Txn, timeout: float) -> TxnReply: ...
    def grant(self, lease_id: int, ttl: int, timeout: float) -> float: ...
    def revoke(self, lease_id: int, timeout: float) -> None: ...
    def times_to_live(
        self, lease_ids: Sequence[int], timeout: float
    ) -> tuple[float | None, ...]: ...
    def close(self) -> None: ...


class Clock(Protocol):
    """Time, and the threads that wait for it."""

    def now(self) -> float: ...
    def wall(self) -> float: ...
    def mailbox(self) -> Mailbox: ...
    def wait(self, box: Mailbox, until: float) -> object:
        """The next note; None when `until` comes first."""

    def start(self, function: Callable[[], None], name: str) -> None:
        """Run a function in a daemon thread; RuntimeError or MemoryError when none can be had."""

    def busy(self) -> AbstractContextManager[object]:
        """Around each procedure that a thread runs."""


class Backend(NamedTuple):
    """All that an engine needs from outside: etcd, or one in memory with its own time
    (`etcdsem.testing`).
    """

    calls: Calls
    watches: Watches
    renewals: Renewals
    clock: Clock


Dial: TypeAlias = Callable[[ClientLock, Callable[[int, float], None]], Backend]
"""Opens a line; gets the engine's lock, and whom to tell (lease id, TTL) of a renewal."""


class RealClock:
    """The machine's clocks, and queues to wait at."""

    now = staticmethod(boot_time)

    wall = staticmethod(time.time)

    def mailbox(self) -> Mailbox:
        return queue.SimpleQueue()

    def wait(self, box: Mailbox, until: float) -> object:
        if not isinstance(box, queue.SimpleQueue):
            raise AssertionError("a mailbox of another driver")
        main = threading.current_thread() is threading.main_thread()
        nap = _MAIN_NAP if main else LONGEST_NAP
        while True:
            left = until - self.now()
            try:
                return box.get_nowait() if left <= 0 else box.get(timeout=min(left, nap))
            except queue.Empty:
                if left <= 0:
                    return None

    def start(self, function: Callable[[], None], name: str) -> None:
        threading.Thread(target=function, name=name, daemon=True).start()

    def busy(self) -> AbstractContextManager[object]:
        return contextlib.nullcontext()


class _Engine(BaseEngine):
    """One line to etcd with the core's state behind it: the driver of its procedures."""

    def __init__(self, dial: Dial) -> None:
        self.turn = ClientLock(lambda function, name: self._clock.start(function, name))
        self.lock = self.turn.lock
        line = dial(self.turn, self._renewed)
        self._calls = line.calls
        self._watches = line.watches
        self._renewals = line.renewals
        self._clock = line.clock
        self.now = line.clock.now  # type: ignore[method-assign]  # asked a dozen times a cycle
        super().__init__()

    def _renewed(self, lease_id: int, ttl: float) -> None:
        self.session.leases.renewed(lease_id, ttl)

    @property
    def connection(self) -> Connection:
        """The connection, for what is no part of the core: counters, a member's status."""
        return cast("Connection", self._calls)

    # -- Env

    def now(self) -> float:
        return self._clock.now()

    def wall(self) -> float:
        return self._clock.wall()

    def mailbox(self) -> Mailbox:
        return self._clock.mailbox()

    def spawn(self, procedure: Procedure[Any], name: str) -> None:
        self._start(functools.partial(self._run, procedure), name, serves=True)

    def call(self, function: Callable[[], object], name: str) -> None:
        self._start(function, name, serves=False)

    def _start(self, function: Callable[[], object], name: str, *, serves: bool) -> None:
        guarded = functools.partial(self._guarded, function, name)
        self.turn.start(guarded, f"etcdsem-{name}", serves=serves)

    def _start_beside(self, function: Callable[[], object], name: str) -> None:
        self.turn.start(function, name, serves=False)

    def _guarded(self, function: Callable[[], object], name: str) -> None:
        try:
            function()
        except Exception as error:
            self.log(logging.ERROR, "etcdsem: error in %s", name, error=error)
            self.turn.settle()

    def starved(self) -> str:
        return self.turn.starved

    def after(self, action: Callable[[], object]) -> None:
        self.turn.after(action)

    def log(
        self, level: int, message: str, *args: object, error: BaseException | None = None
    ) -> None:
        self.turn.log(functools.partial(log.log, level, message, *args, exc_info=error))

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

    # -- the driver

    def run(self, procedure: Procedure[T]) -> T:
        """Perform what a procedure yields, in this thread, until it ends.

        An exception that interrupts (Ctrl-C) is thrown into the procedure, and what it yields to
        clean up is still performed.
        """
        if self.struck:  # it could wait for what this very thread is to do next
            procedure.close()
            raise EtcdSemError(
                "etcdsem was called by a finalizer, or a signal handler, that struck while this "
                "thread was at work in it: only a lease can be given back there; do the rest in "
                "another thread"
            )
        return self._run(procedure)

    def _run(self, procedure: Procedure[T]) -> T:
        try:
            enter(self.turn)
            with self._clock.busy():
                try:
                    return self._drive(procedure)
                except BaseException as error:
                    if closed_generator(procedure):
                        raise
                    return self._drive(procedure, error)  # it struck between two steps
        finally:
            leave()
            self.turn.settle()

    @property
    def struck(self) -> bool:
        """Is this thread at work in a client, so that whoever asks is a finalizer or a signal
        handler that struck there?
        """
        return self.turn.held or inside() is not None

    def run_later(self, procedure: Procedure[object]) -> None:
        """Run a procedure that gives something back in another thread, a moment later."""
        guarded = functools.partial(self._guarded, lambda: self._run(procedure), "release")
        self.turn.note(guarded, "etcdsem-release")
        self.session.wake_heartbeat()  # the heartbeat will start it, if nobody does before

    def _drive(self, procedure: Procedure[T], error: BaseException | None = None) -> T:
        turn = self.turn
        result: Any = None
        while True:
            try:
                try:
                    with self.lock:
                        if error is None:
                            command = procedure.send(result)
                        else:
                            command = procedure.throw(error)
                finally:
                    error = None  # its traceback refers to us
                    turn.settle()
                result = self._perform(command)
            except StopIteration as stop:
                value: T = stop.value
                return value
            except BaseException as raised:
                if closed_generator(procedure):
                    raise  # the procedure ended with it
                error = raised

    def _perform(self, command: Command[Any]) -> object:
        match command:
            case Transact():
                return self._calls.transact(command.txn, command.timeout)
            case Wait():
                self.turn.hand_over_records()
                return self._clock.wait(command.box, command.until)
            case GrantLease():
                return self._calls.grant(command.lease_id, command.ttl, command.timeout)
            case RevokeLease():
                self._calls.revoke(command.lease_id, command.timeout)
                return None
            case LeasesTimeToLive():
                return self._calls.times_to_live(command.lease_ids, command.timeout)
        raise AssertionError(f"no such command: {command!r}")

    # -- its end

    def close(self, grace: float) -> None:
        """Give everything back, for `grace` seconds at most, and let go of etcd."""
        with contextlib.suppress(Failure):
            self.run(lifecycle.shutdown(self.session, self.now() + grace))
        self.stop_keeper()
        self._watches.close()
        self._renewals.close()
        self._calls.close()
        self.session.leases.until = self.now()  # who is still at it need not try again
        self.turn.closed = True
        self.turn.settle()


MARKED.add(_Engine._drive.__code__)


def _drop(engine: _Engine) -> None:
    """Its client was garbage, so nothing is held (a lease keeps its client alive)."""
    if engine.here:  # what a forked child drops is its parent's
        _close_engine(engine, EXIT_GRACE, beside=True)


def _close_engine(engine: _Engine, grace: float, *, beside: bool = False) -> None:
    """Close it, or in a finalizer or signal handler have it closed (`beside`: that anyway)."""
    close = functools.partial(engine.close, grace)
    if beside or engine.struck:
        guarded = functools.partial(engine._guarded, close, "close")
        elsewhere(engine.turn, guarded, "etcdsem-close")
    else:
        close()


# ---------------------------------------------------------------- client


class Client(BaseClient):
    """A connection to etcd, shared by any number of semaphores and threads.

    Opened on first use. As a context manager it gives everything back at its end.
    """

    def __init__(
        self,
        settings: ConnectionSettings,
        *,
        prefix: str | None = None,
        keeper: bool | Duration | None = False,
    ) -> None:
        super().__init__(settings, prefix=prefix, keeper=keeper)
        self._lock = threading.RLock()  # a finalizer may come back
        self._engine: _Engine | None = None
        self._closed = False
        _clients.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_client, (self.settings, self.prefix, self.keeper or False)

    def _dial(self, guard: ClientLock, renewed: Callable[[int, float], None]) -> Backend:
        from etcdsem.etcd.connection import Connection  # protobuf is loaded here, not on import
        from etcdsem.etcd.stream_thread import ThreadStreams

        connection = Connection(self.settings)
        streams = ThreadStreams(connection, guard, renewed)
        return Backend(connection, streams, streams, RealClock())

    @property
    def engine(self) -> _Engine:
        """The driver, made on first use."""
        engine = self._engine
        if engine is None or self._closed:
            with self._lock:
                if self._closed:
                    raise EtcdSemError("this etcdsem client was closed")
                engine = self._engine
                if engine is None:
                    if exit_hooks.over():
                        raise EtcdSemError(
                            "this process is ending, and all leases were given back: etcd cannot "
                            "be used any more (by what atexit runs after etcdsem's own part)"
                        )
                    _refuse_isolation()
                    engine = _Engine(self._dial)
                    engine.session.first_contact = self.settings.dial_timeout
                    exit_hooks.see_to_child()
                    try:
                        engine.start_keeper(self.settings, self.keeper)
                    except BaseException:
                        engine.close(0.0)
                        raise
                    self._engine = engine
                    # _at_exit sees to those that are still there then.
                    weakref.finalize(self, _drop, engine).atexit = False
        return engine

    @property
    def id(self) -> str:
        """How this client is named in etcd's keys."""
        return self.engine.session.client

    def close(self) -> None:
        """Give all leases back and close the connection. Closing twice is fine."""
        self._close(10.0)

    def _close(self, grace: float) -> None:
        with self._lock:
            engine, self._engine = self._engine, None
            self._closed = True
        if engine is not None and engine.pid == os.getpid():
            _close_engine(engine, grace)

    def _after_fork_in_child(self) -> None:
        self._lock = threading.RLock()
        self._engine = None  # its sockets were closed

    @property
    def _session(self) -> Session:
        return self.engine.session

    def run(self, procedure: Procedure[T], what: str) -> T:
        """Run a procedure; `what` says for an error message what was tried."""
        try:
            return self.engine.run(procedure)
        except Failure as failure:
            raise public_error(failure, what) from failure

    # -- what an operator asks

    def overview(self) -> list[Overview]:
        """All semaphores under the prefix: limit, held, waiting."""
        procedure = inspection.overview(self._session, self.prefix)
        return self.run(procedure, "list the semaphores")

    def status(self, name: str, *, ttl: bool = True) -> Status:
        """One semaphore at one revision: who holds, who waits.

        `ttl`: also ask etcd how many seconds each lease has left, those of all holders and of
        the first 256 waiters. It costs a request for each; many are under way at once.
        """
        return self.run(inspection.status(self.station(name), ttl=ttl), f"look at {name!r}")

    def limit(self, name: str) -> int | None:
        """The limit in force; None if what is stored is no number."""
        return self.run(self._reading_limit(name), f"read the limit of {name!r}")

    def limit_info(self, name: str) -> LimitInfo:
        """The limit in force, or the rate, and whether it is paused. Raises SemaphoreClosed.

        `known_limit` tells what this client saw last, without asking etcd.
        """
        return self.run(self._reading_info(name), f"read the limit of {name!r}")

    @overload
    def resize(self, name: str, max_leases: int) -> tuple[int | None, int]: ...
    @overload
    def resize(self, name: str, max_leases: Rate) -> tuple[Rate | None, Rate]: ...
    def resize(self, name: str, max_leases: int | Rate) -> tuple[int | Rate | None, int | Rate]:
        """Change the limit of a semaphore, or the rate of a rate limit, live.

        0 lets nobody in until it is raised again. Leases held above a lowered limit stay, and so
        does a pause.

        Args:
            name: the semaphore, or the rate limit.
            max_leases: the new limit, or the new rate.

        Returns:
            The old one (None if what was stored is none) and the new one.

        Raises:
            SemaphoreClosed: it is not known.
            WrongKind: a rate was given for a semaphore, or a number for a rate limit.
        """
        what = "rate" if isinstance(max_leases, Rate) else "limit"
        return self.run(self._resizing(name, max_leases), f"change the {what} of {name!r}")

    def resize_by(self, name: str, difference: int) -> tuple[int, int]:
        """Change the limit of a semaphore by a difference, live. A pause stays.

        It counts from the limit that is stored when it is written, so differences that several
        clients make at the same time add up.

        Returns:
            The old limit and the new one.

        Raises:
            SemaphoreClosed: it is not known.
            InvalidSetting: the sum cannot be a limit; nothing was changed.
            EtcdUnavailable: etcd's answer was lost, and the limit has changed: whether by this
                call or by another client is not known.
        """
        return self.run(self._resizing_by(name, difference), f"change the limit of {name!r}")

    def pause(self, name: str, *, reason: str | None = None) -> bool:
        """Grant no lease of it until `resume`. Who holds is not disturbed; who waits, waits on,
        and a try without waiting finds it full.

        Args:
            name: the semaphore.
            reason: at most 253 printable characters, for whoever asks why nothing goes on.

        Returns:
            False if it was paused before: then nothing was changed.

        Raises:
            SemaphoreClosed: it is not known.
        """
        return self.run(self._pausing(name, reason), f"pause {name!r}")

    def resume(self, name: str) -> bool:
        """Grant leases again: who waits is served at once, in order.

        Returns:
            False if it was not paused: then nothing was changed.

        Raises:
            SemaphoreClosed: it is not known.
        """
        return self.run(self._resuming(name), f"resume {name!r}")

    def drain(
        self,
        name: str,
        timeout: Duration | None = None,
        *,
        reason: str | None = None,
        on_wait: Callable[[], object] | None = None,
    ) -> bool:
        """Pause it, and wait until nobody holds a lease. It stays paused until `resume`.

        Args:
            name: the semaphore.
            timeout: seconds, ``"1m30s"`` or a timedelta. None waits for ever, 0 looks once.
            reason: as for `pause`. One that is paused already keeps its own.
            on_wait: called, in a thread of its own, once it is paused and has holders.

        Returns:
            True when nobody holds. False when somebody still does after the timeout.

        Raises:
            SemaphoreClosed: it is not known (any more).
            EtcdSemError: somebody has resumed it meanwhile.
            EtcdUnavailable: etcd was away at the end of the timeout (without one: for 60 s).
        """
        return self.run(self._draining(name, timeout, reason, on_wait), f"drain {name!r}")

    def evict(
        self, name: str, *, slot: int | None = None, lease: str | None = None
    ) -> Holder | Waiter | Junk:
        """End one lease: that of the holder of `slot`, or the one with the id `lease` (hex). The
        acquire of a waiter ends with the error `Evicted`.

        Raises NobodyThere if nobody has it.
        """
        return self.run(self._evicting(name, slot, lease), f"evict from {name!r}")

    def close_semaphore(self, name: str, *, force: bool = False) -> CloseResult:
        """Remove a semaphore; without `force` only if nobody holds or waits. See `CloseResult`."""
        return self.run(lifecycle.close(self.station(name), force=force), f"close {name!r}")


def _refuse_isolation() -> None:
    # (Python 3.11 cannot be asked: there the first thread fails, which is an error too.)
    allowed = getattr(_thread, "daemon_threads_allowed", None)
    if allowed is not None and not allowed():
        raise EtcdSemError(
            "etcdsem cannot refresh leases in an isolated sub-interpreter, where Python allows no "
            "daemon threads: use the main one, or one that shares its lock"
        )


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
    """A client for the etcd at `endpoints` (``"host:2379"``, a list, or a comma-separated list).

    What is not given comes from ``ETCDSEM_ENDPOINTS``, ``ETCDSEM_CACERT``, ``ETCDSEM_CERT``,
    ``ETCDSEM_KEY``, ``ETCDSEM_USER``, ``ETCDSEM_PASSWORD`` or ``ETCDSEM_PASSWORD_FILE``, else
    from the ``ETCDCTL_*`` variable of the same meaning, else it is ``127.0.0.1:2379``.
    A password in a file is read again for each login. No connection is made before it is needed.
    Raises InvalidSetting for what cannot be right.

    `dial_timeout` is how long to try to reach etcd, by whatever endpoint, before the first call
    raises EtcdUnavailable; default 10 s. It bounds a `Semaphore(...)` that registers, and an
    acquire without a timeout (one with a timeout waits for etcd until that). A client that has
    reached etcd before is more patient with it: 60 s to acquire, 10 s to ask.

    `keeper` has held leases refreshed by a helper process too, for programs whose interpreter may
    be busy for longer than the lease timeout (C code that keeps the GIL, a blocked event loop).
    True, or for how long it goes on while the program gives no sign of life (True: 10 minutes);
    default ``ETCDSEM_KEEPER``, else no. It ends with the program, and does not keep one that is
    stopped (SIGSTOP).
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


def from_etcd3(
    client: object,
    *,
    user: str | None = None,
    password: str | None = None,
    prefix: str | None = None,
) -> Client:
    """A client that uses the channels and the login of a python-etcd3 client.

    ``Semaphore(client=...)`` takes a python-etcd3 client as it is; this is for the options. Its
    channels stay its own: closing our client leaves them open, and it must live as long as ours.

    Args:
        client: an ``etcd3.Etcd3Client`` or ``etcd3.MultiEndpointEtcd3Client``.
        user: who logs in again when its token has run out; python-etcd3 keeps no password.
        password: the user's password.
        prefix: of the keys in etcd, as for `connect`.

    Raises:
        TypeError: it is no client of python-etcd3.
    """
    from etcdsem.etcd.etcd3_adapter import borrow, is_etcd3

    if not is_etcd3(client):
        raise TypeError(f"from_etcd3 takes a client of python-etcd3, not {type(client).__name__}")
    return Client(borrow(client, user, password), prefix=prefix)


def _as_client(given: object) -> Client | None:
    """What a user gave as ``client=``."""
    if given is None or isinstance(given, Client):
        return given
    from etcdsem.etcd.etcd3_adapter import is_etcd3

    if not is_etcd3(given):
        raise TypeError(
            f"client must come from etcdsem.connect(), or be a client of python-etcd3; not a "
            f"{type(given).__module__}.{type(given).__qualname__}"
        )
    with _default_lock:
        client = _borrowed.get(given)
        if client is None or client._closed:
            client = _borrowed[given] = from_etcd3(given)
        return client


def default_client() -> Client:
    """The client of this process for semaphores that were given none."""
    global _default
    with _default_lock:
        if _default is None or _default._closed:
            _default = connect()
        return _default


def swap_default_client(client: Client | None) -> Client | None:
    """Make a client the default of this process; gives the one it was, if any. For tests."""
    global _default
    with _default_lock:
        former, _default = _default, client
        return former


def _rebuild_client(
    settings: ConnectionSettings, prefix: str, keeper: float | bool = False
) -> Client:
    """An unpickled client: the one of this process with the same settings."""
    with _default_lock:
        key = (settings, prefix, keeper)
        client = _rebuilt.get(key)
        if client is None or client._closed:
            client = _rebuilt[key] = Client(settings, prefix=prefix, keeper=keeper)
        return client


_clients: weakref.WeakSet[Client] = weakref.WeakSet()
_rebuilt: dict[tuple[ConnectionSettings, str, float | bool], Client] = {}
_borrowed: weakref.WeakKeyDictionary[object, Client] = weakref.WeakKeyDictionary()
_default: Client | None = None
_default_lock = threading.RLock()  # a finalizer may come back


def _after_fork_in_child() -> None:
    global _default_lock
    _default_lock = threading.RLock()
    for client in list(_clients):
        client._after_fork_in_child()


def _at_exit() -> None:
    until = boot_time() + EXIT_GRACE
    for client in list(_clients):
        client._close(max(0.1, until - boot_time()))


os.register_at_fork(after_in_child=_after_fork_in_child)
exit_hooks.at_end(_at_exit)


# ---------------------------------------------------------------- lease


class Lease(BaseLease):
    """A slot of a semaphore that is held by this process, or several.

    It is kept alive in the background until it is released, or lost. Lost is final.
    """

    lost: threading.Event

    def __init__(self, semaphore: Semaphore, engine: _Engine, grant: Grant) -> None:
        self.lost = threading.Event()
        """Set once the lease is lost (expired, revoked, evicted, closed); one can wait on it."""
        self._engine = engine
        super().__init__(semaphore, engine, grant)

    def release(self) -> bool:
        """Give it back.

        Returns:
            True when etcd knows. False if it was lost, or etcd could not be told. False too in a
            finalizer or signal handler that strikes while this thread is inside etcdsem: then
            another thread gives it back a moment later.
        """
        if not self._here:
            return False
        if not self._engine.struck:
            return self._engine.run(self._releasing())
        self._semaphore._forget(self)
        self._engine.run_later(self._releasing())
        return False

    def _end(self) -> None:
        if not self._here:
            return
        if self._engine.struck:
            self.release()
        else:
            self._engine.run(self._ending())


class _Held(Decorator, AbstractContextManager[Lease, None]):
    """The block of ``with semaphore.hold()``. One that is dropped without having been left, since
    an interruption struck there, gives its lease back.
    """

    _lease: Lease | None = None

    def __init__(self, semaphore: Semaphore, timeout: Duration | None, **wants: Any) -> None:
        self._semaphore = semaphore
        self._timeout = timeout
        self._wants = wants
        self._entered = False

    def _block(self) -> Self:
        return type(self)(self._semaphore, self._timeout, **self._wants)

    def __enter__(self) -> Lease:
        if self._entered:
            raise RuntimeError("this block was already entered: call hold() for each")
        self._entered = True
        try:
            lease = self._semaphore._acquire(self._timeout, None, self._keep, **self._wants)
            if lease is None:
                raise self._semaphore._no_lease(self._timeout)
            return lease
        except BaseException:
            self.__del__()  # it was granted, and then something struck
            raise

    def _keep(self, lease: Lease) -> None:
        lease.owner = "block"
        self._lease = lease

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._lease is not None:
            try:
                if kind is None:
                    self._lease._end()
                else:
                    self._lease.release()
            except BaseException:
                self.__del__()  # if something struck before it was given back
                raise

    def __del__(self) -> None:
        if self._lease is not None and self._lease._held:
            self._lease.release()


# ---------------------------------------------------------------- semaphore


class _Bound(Named):
    """The way of a semaphore, or a rate limit, to its client."""

    def _bind(self, client: object) -> None:
        self._client = _as_client(client)
        self._follows_default = client is None

    def __getstate__(self) -> dict[str, Any]:
        # One that uses a default client takes its etcd along.
        return {**super().__getstate__(), "_follows_default": self._client is None}

    @property
    def client(self) -> Client:
        """The client in use: the one given, else the process's default, which may change."""
        if self._follows_default or self._client is None:
            self._client = default_client()
        return self._client

    def _state(self) -> SemaphoreState:
        return self.client.station(self.name, self._prefix)

    def _run(self, procedure: Procedure[T], what: str) -> T:
        return self.client.run(procedure, f"{what} {self.name!r}")

    def register(self) -> None:
        """Write the limit, or the rate, to etcd if it is new, else check that it is the same.

        One that was resized since it was registered is taken as it is.

        Raises:
            InconsistentLimit: another limit, or rate, is registered.
            WrongKind: there is a rate limit of that name, and this is a semaphore; or the other
                way round.
        """
        self._run(self._registering(self._state()), "register")

    def pause(self, *, reason: str | None = None) -> bool:
        """Grant no lease of it, no start if it is a rate limit, to anybody until `resume`. Who
        holds is not disturbed; who waits, waits on, and a try without waiting finds it full.

        Args:
            reason: at most 253 printable characters, for whoever asks why nothing goes on.

        Returns:
            False if it was paused before: then nothing was changed.
        """
        return self._run(self._pausing(self._state(), reason), "pause")

    def resume(self) -> bool:
        """Grant again. False if it was not paused: then nothing was changed."""
        return self._run(self._resuming(self._state()), "resume")


class Semaphore(Decorator, _Bound, BaseSemaphore[Lease]):
    """A counting semaphore that lives in etcd, shared by any processes anywhere.

    Args:
        max_leases: how many may hold it at a time, if it is new; must equal the registered limit
            otherwise, unless an operator has resized it since. None takes what is registered.
        name: 1 to 128 of ``A-Z a-z 0-9 . _ -``. None makes up a unique one.
        register: write the limit to etcd now, if the semaphore is new.
        scheduler_rpc: Dask's; must be None. `client` says which etcd to use.
        loop: Dask's; has no effect.
        client: from `connect()`, or a client of python-etcd3 (see `from_etcd3`); None: the
            process's default client.
        lease_timeout: etcd gives a slot away this long after the last refresh of its lease.
            Whole seconds, at least 2; default ``ETCDSEM_LEASE_TIMEOUT``, else, where Dask is
            loaded, its ``distributed.scheduler.locks.lease-timeout``, else 30 s.
        refresh_interval: seconds between refreshes; default ``ETCDSEM_REFRESH_INTERVAL``, else a
            third of the lease timeout.
        on_lost: called once, in a thread of its own, with each `Lease` that is lost.
        labels: shown to operators, at most 16, together with those of ``ETCDSEM_LABELS``.
        prefix: of the keys in etcd; default the client's, else ``/etcdsem``.
        owner: who holds, as operators see it; default ``ETCDSEM_OWNER``, else ``host:pid``.
        raise_on_loss: let ``with semaphore:`` raise LeaseLost at its end if its lease was lost.
        max_hold: a lease ends after that, counted from its grant by this machine's clock: it is
            lost like any other, and the next in line gets the slot at once. A warning is logged
            ahead: when a tenth of it is left, at most 60 s. None: hold as long as you like.
        rate: ``"100/1m"``: a lease is given only together with a start of the rate limit
            ``<name>.rate``, which is registered too (`RateLimit`): at most so many leases begin
            in any minute. First it waits for the lease, then for the start, while it holds the
            lease; `max_hold` counts meanwhile. `close` leaves the rate limit alone.

    Raises:
        InconsistentLimit: another limit is registered.
        InvalidName, InvalidSetting: an argument cannot be right.
        TypeError: `scheduler_rpc` was given, or a `client` that is none.
        EtcdUnavailable, PermissionDenied, EtcdRefused: it could not be registered.
    """

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
        self._bind(client)
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
        if register:
            self.register()

    # -- acquire and release

    def acquire(
        self,
        timeout: Duration | None = None,
        *,
        weight: int = 1,
        priority: int = 0,
        eager: bool = False,
    ) -> bool:
        """Wait for a lease.

        Args:
            timeout: seconds, ``"1m30s"`` or a timedelta. None waits for ever, 0 tries once.
            weight: how many slots the lease shall hold, 1 to 32: all of them or none. Who wants
                many is served in its turn as everybody is; those behind wait until then.
            priority: -100 to 100; of those who wait the highest is served first, and in the order
                in which they came those who have the same. What is held is taken from nobody.
            eager: while the first in line wants more slots than are free, take one that is. Many
                of these can keep a big one waiting for ever.

        Returns:
            True when a lease was granted, False when there was no room until the timeout. The
            call may last a little longer than that while it leaves the line.

        Raises:
            SemaphoreClosed: the semaphore is not known (any more).
            Evicted: an operator ended this acquire while it waited (`evict`).
            WeightExceedsLimit: the limit is less than `weight`, or was lowered so far meanwhile
                (to 0, or paused: then one waits).
            EtcdUnavailable: etcd could not be reached during the whole timeout (without one: for
                the client's `dial_timeout` at first contact, or for 60 s later on).
            EtcdSemError: no thread can be started, so nothing would refresh the lease; or the
                client was closed.
        """
        taken: list[Lease] = []
        try:
            self._acquire(timeout, None, taken.append, weight, priority, eager)
            return bool(taken)
        except BaseException:
            for lease in taken:  # it was granted, and then something struck
                lease.release()
            raise

    def acquire_lease(
        self,
        timeout: Duration | None = None,
        *,
        weight: int = 1,
        priority: int = 0,
        eager: bool = False,
        on_wait: Callable[[], object] | None = None,
    ) -> Lease | None:
        """Like `acquire`, but gives the `Lease`, or None.

        `on_wait` is called, in a thread of its own, once it is clear that one has to wait.
        """
        taken: list[Lease] = []

        def keep(lease: Lease) -> None:
            lease.owner = "caller"
            taken.append(lease)

        try:
            return self._acquire(timeout, on_wait, keep, weight, priority, eager)
        except BaseException:
            for lease in taken:  # it was granted, and then something struck
                lease.release()
            raise

    def _acquire(
        self,
        timeout: Duration | None,
        on_wait: Callable[[], object] | None,
        keep: Callable[[Lease], object],
        weight: int = 1,
        priority: int = 0,
        eager: bool = False,
    ) -> Lease | None:
        """`keep` gets the lease in the step in which it is granted. Whoever calls gives it back if
        something strikes after that.
        """
        engine = self.client.engine

        def lease_of(grant: Grant) -> Lease:
            lease = Lease(self, engine, grant)
            keep(lease)
            return lease

        acquiring = self._acquiring(
            self._state(),
            timeout_seconds(timeout),
            on_wait,
            lease_of,
            wants=read_wants(weight, priority, eager),
        )
        return self._run(acquiring, "acquire")

    def release(self) -> bool:
        """Give back this object's oldest lease. Any thread may do so; as many releases as acquires
        leave nothing held. A lease that was lost comes first, one that somebody has in hand
        (`acquire_lease`, `hold`, ``with``) last.

        Returns:
            True when etcd knows. False when etcd could not be told within some 5 seconds (its TTL
            will free the slot), or when the lease was lost before; then a warning is logged. False
            too in a finalizer or signal handler that strikes while this thread is inside etcdsem:
            then another thread gives it back a moment later.

        Raises:
            ReleasedTooOften: this object holds no lease; nothing changes in etcd.
        """
        while True:
            lease = self._oldest()
            if not lease._engine.struck:
                done = lease._engine.run(self._releasing(lease._engine))
                if done is not None:
                    return done
            elif self._forget(lease):
                lease._engine.run_later(lease._releasing())
                return False

    def hold(
        self,
        timeout: Duration | None = None,
        *,
        weight: int = 1,
        priority: int = 0,
        eager: bool = False,
    ) -> _Held:
        """Hold a lease for the length of a ``with`` block; gives the `Lease`. See `acquire`.

        It may also decorate a function: ``@semaphore.hold("5s")``.

        Raises:
            AcquireTimeout: no room until the timeout; the body did not run.
            LeaseLost: at the end, if the lease was lost meanwhile (see `raise_on_loss`).
        """
        return _Held(self, timeout, weight=weight, priority=priority, eager=eager)

    def __enter__(self) -> Self:
        held = self.hold()
        held.__enter__()
        self._blocks.enter(held, sys._getframe(1), threading.current_thread())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        held: _Held = self._blocks.leave(sys._getframe(1), threading.current_thread())
        held.__exit__(kind, error, traceback)

    def _block(self) -> AbstractContextManager[Lease, Any]:
        return self.hold()

    # -- the semaphore as a whole

    def get_value(self) -> int:
        """The number of slots held now, by anyone."""
        return self._run(self._counting(self._state()), "count the leases of")

    def resize(self, max_leases: int) -> None:
        """Change the limit for everybody, live. Waiters get new room at once; leases above a
        lowered limit stay until they are released. 0 lets nobody in. A pause stays.
        """
        self._run(self._resizing(self._state(), max_leases), "resize")

    def drain(self, timeout: Duration | None = None, *, reason: str | None = None) -> bool:
        """Pause it, and wait until nobody holds a lease, this object neither. It stays paused.

        Args:
            timeout: seconds, ``"1m30s"`` or a timedelta. None waits for ever, 0 looks once.
            reason: as for `pause`. One that is paused already keeps its own.

        Returns:
            True when nobody holds. False when somebody still does after the timeout.

        Raises:
            EtcdSemError: somebody has resumed it meanwhile.
        """
        return self._run(self._draining(self._state(), timeout, reason), "drain")

    def status(self, *, ttl: bool = True) -> Status:
        """Holders and waiters at one revision. `ttl`: also ask how long each lease has left."""
        return self._run(self._status(self._state(), ttl=ttl), "look at")

    def holders(self) -> tuple[Holder, ...]:
        """Who holds a lease now, in the order of their slots."""
        return self.status().holders

    def waiters(self) -> tuple[Waiter, ...]:
        """Who waits now, in the order in which they will be served."""
        return self.status().waiters

    def close(self) -> None:
        """Remove the semaphore from etcd, for everybody. Closing twice is fine.

        A warning names leases that are still held or waited for: their holders lose them, and
        who waits gets SemaphoreClosed at once.
        """
        self._run(self._closing(self._state()), "close")


# ---------------------------------------------------------------- several at once


def acquire_all(
    *semaphores: Semaphore,
    timeout: Duration | None = None,
    on_wait: Callable[[str], object] | None = None,
    weight: int = 1,
    priority: int = 0,
    eager: bool = False,
) -> tuple[Lease, ...] | None:
    """Wait for a lease of each of several semaphores: all of them or none.

    Where all have room, it is one transaction. Who has to wait stands in one line at a time and
    holds nothing meanwhile; only who was crowded out three times waits in one line while holding
    others, and then in the order of the semaphores' prefixes and names, so that there is no
    deadlock (docs/guarantees.md has the rule). Each lease is one like any other: it is released,
    evicted or lost by itself, and its semaphore lists it.

    Args:
        semaphores: 1 to 8, of the same client and all different.
        timeout: for all together: seconds, ``"1m30s"`` or a timedelta. None waits for ever, 0
            tries once.
        on_wait: called, in a thread of its own, with the name of each semaphore in whose line
            one has to wait.
        weight: 1; else it is refused (docs/guarantees.md says why).
        priority: 0; else it is refused.
        eager: False; else it is refused.

    Returns:
        The leases, in the order of the semaphores; None when there was no room until the timeout.

    Raises:
        InvalidSetting: too many, one given twice, or of different clients; a weight, a priority
            or `eager` was given.
        SemaphoreClosed: one of them is not known (any more); the message names it.
        EtcdUnavailable: etcd could not be reached, as for `Semaphore.acquire`.
    """
    multi.refuse_wants(weight, priority, eager)
    granted: list[Lease] = []
    try:
        taken = _acquire_all(semaphores, timeout, on_wait, granted.extend)
    except BaseException:
        for lease in granted:  # and then something struck
            lease.release()
        raise
    return None if isinstance(taken, str) else taken


def hold_all(
    *semaphores: Semaphore,
    timeout: Duration | None = None,
    weight: int = 1,
    priority: int = 0,
    eager: bool = False,
) -> _HeldAll:
    """Hold a lease of each of several semaphores for the length of a ``with`` block; gives the
    leases, in the order of the semaphores. See `acquire_all`. It is also a decorator.

    Raises:
        AcquireTimeout: no room until the timeout; the body did not run.
        LeaseLost: at the end, if any of them was lost meanwhile (see `raise_on_loss`).
    """
    multi.refuse_wants(weight, priority, eager)
    return _HeldAll(semaphores, timeout)


class _HeldAll(Decorator, AbstractContextManager[tuple[Lease, ...], None]):
    """The block of ``with hold_all(...)``; see `_Held`."""

    _leases: tuple[Lease, ...] = ()

    def __init__(self, semaphores: tuple[Semaphore, ...], timeout: Duration | None) -> None:
        self._semaphores = semaphores
        self._timeout = timeout
        self._entered = False

    def _block(self) -> Self:
        return type(self)(self._semaphores, self._timeout)

    def __enter__(self) -> tuple[Lease, ...]:
        if self._entered:
            raise RuntimeError("this block was already entered: call hold_all() for each")
        self._entered = True
        try:
            taken = _acquire_all(self._semaphores, self._timeout, None, self._keep)
            if isinstance(taken, str):
                raise multi.not_all(taken, self._semaphores, self._timeout)
            return taken
        except BaseException:
            self.__del__()  # they were granted, and then something struck
            raise

    def _keep(self, leases: tuple[Lease, ...]) -> None:
        for lease in leases:
            lease.owner = "block"
        self._leases = leases

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._end(quietly=kind is not None)
        except BaseException:
            self.__del__()  # if something struck before they were given back
            raise

    def __del__(self) -> None:
        if any(lease._held for lease in self._leases):
            self._end(quietly=True)

    def _end(self, *, quietly: bool) -> None:
        leases = self._leases
        if not leases or not leases[0]._here:
            return
        if not leases[0]._engine.struck:
            leases[0]._engine.run(multi.ending(leases, quietly=quietly))
        else:
            for lease in leases:
                lease.release()


def _acquire_all(
    semaphores: tuple[Semaphore, ...],
    timeout: Duration | None,
    on_wait: Callable[[str], object] | None,
    keep: Callable[[tuple[Lease, ...]], object],
) -> tuple[Lease, ...] | str:
    parts = multi.parts_of(semaphores, Semaphore, Lease)
    limit = timeout_seconds(timeout)
    acquiring = multi.acquiring(parts, limit, on_wait, keep)
    return semaphores[0].client.run(acquiring, f"acquire {multi.named(semaphores)}")


# ---------------------------------------------------------------- rate limit


class RateLimit(Decorator, _Bound, BaseRateLimit):
    """At most `limit` starts in any window of `period`, by any processes anywhere.

    A start is a moment, not a span: there is nothing to release. ``with limit:`` waits for a start
    and runs the body; what the body does then is not counted.

    Args:
        name: 1 to 128 of ``A-Z a-z 0-9 . _ -``; no semaphore may have it.
        limit: how many starts; None, with `period`, takes what is registered.
        period: seconds, ``"1m"`` or a timedelta; at least 0.1 s.
        client: from `connect()`, or a client of python-etcd3; None: the process's default client.
        block: starts that a process takes at a time. Default 1 up to 256 starts in a period, above
            that as many as make 256 blocks. A process uses a block within 5 % of the period, and
            forfeits what is left then.
        labels: shown to operators, at most 16, together with those of ``ETCDSEM_LABELS``.
        prefix: of the keys in etcd; default the client's, else ``/etcdsem``.
        owner: who starts, as operators see it; default ``ETCDSEM_OWNER``, else ``host:pid``.
        register: write the rate to etcd now, if it is new.

    Raises:
        InconsistentLimit: another rate is registered.
        WrongKind: there is a semaphore of that name.
        InvalidName, InvalidSetting: an argument cannot be right.
        EtcdUnavailable, PermissionDenied, EtcdRefused: it could not be registered.
    """

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
        self._bind(client)
        super().__init__(
            name, limit, period, block=block, labels=labels, prefix=prefix, owner=owner
        )
        if register:
            self.register()

    def acquire(
        self, timeout: Duration | None = None, *, on_wait: Callable[[], object] | None = None
    ) -> Start | None:
        """Wait for a start. Those who wait are served in the order in which they came.

        Args:
            timeout: seconds, ``"1m30s"`` or a timedelta. None waits for ever, 0 tries once.
            on_wait: called, in a thread of its own, once it is clear that one has to wait.

        Returns:
            A `Start`, which tells how long it was `waited` for; None if there was none until the
            timeout.

        Raises:
            SemaphoreClosed: it is not known (any more).
            EtcdUnavailable: etcd could not be reached during the whole timeout.
        """
        starting = self._starting(self._state(), timeout_seconds(timeout), on_wait)
        return self._run(starting, "acquire")

    def try_acquire(self) -> Start | Later:
        """A start, if there is one now; else `Later`, which is false, and has `retry_after`."""
        return self._run(self._trying(self._state()), "acquire")

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass

    def _block(self) -> Self:
        return self

    def resize(self, limit: int, period: Duration) -> None:
        """Change the rate for everybody, live. Starts already made still count as they did."""
        self._run(self._resizing(self._state(), limit, period), "resize")

    def status(self, *, ttl: bool = True) -> Status:
        """The starts that are in use (as `holders`), and who waits, at one revision."""
        return self._run(self._status(self._state(), ttl=ttl), "look at")

    def close(self) -> None:
        """Remove it from etcd, for everybody; who waits gets SemaphoreClosed. Starts already made
        are forgotten: one that is registered anew under the name begins with none.
        """
        self._run(self._closing(self._state()), "close")


__all__ = [
    "Client",
    "Lease",
    "RateLimit",
    "Semaphore",
    "acquire_all",
    "connect",
    "default_client",
    "from_etcd3",
    "hold_all",
]
