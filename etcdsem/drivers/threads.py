"""The driver of the blocking library: threads perform the procedures.

1. A call talks to etcd from the caller's own thread. Beside it a client has a few daemon threads,
   started when needed: the heartbeat, and one for its watches and renewals.
2. Every step of a procedure, and every callback of a watch, runs under the client's one lock;
   nothing else does (`client_lock`).
"""

from __future__ import annotations

import contextlib
import functools
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, TypeVar, cast

from etcdsem.client_lock import MARKED, ClientLock, elsewhere, enter, inside, leave
from etcdsem.clock import boot_time
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
from etcdsem.drivers.base import (
    EXIT_GRACE,
    LONGEST_NAP,
    Driver,
    KeepaliveStream,
    WatchStream,
    closed_generator,
)
from etcdsem.errors import EtcdSemError

if TYPE_CHECKING:
    from etcdsem.etcd.connection import Connection
    from etcdsem.etcd.settings import ConnectionSettings

log = logging.getLogger("etcdsem")

_MAIN_NAP = 0.5
"""Seconds after which the main thread wakes: the kernel may deliver Ctrl-C to another thread, and
then the main thread notices it only when it wakes."""

_NOTHING: AbstractContextManager[None] = contextlib.nullcontext()

T = TypeVar("T")


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
        """The next message; None if `until` comes first."""

    def start(self, function: Callable[[], None], name: str) -> None:
        """Run a function in a daemon thread; RuntimeError or MemoryError if none can be started."""

    def busy(self) -> AbstractContextManager[object]:
        """Entered around each procedure that a thread runs."""


class Backend(NamedTuple):
    """What a driver needs from outside: a real etcd, or one in memory with a clock of its own
    (`etcdsem.testing`).
    """

    calls: Calls
    watches: WatchStream
    renewals: KeepaliveStream
    clock: Clock


Dial: TypeAlias = Callable[[ClientLock, Callable[[int, float], None]], Backend]
"""Makes the backend. Its arguments: the client's lock, and what to call with (lease id, TTL) on a
renewal."""


class RealClock:
    """The machine's clocks, and queues as mailboxes."""

    now = staticmethod(boot_time)

    wall = staticmethod(time.time)

    def mailbox(self) -> Mailbox:
        return queue.SimpleQueue()

    def wait(self, box: Mailbox, until: float) -> object:
        if not isinstance(box, queue.SimpleQueue):
            raise AssertionError("the mailbox belongs to another driver")
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
        return _NOTHING


class ThreadDriver(Driver):
    """Performs the procedures of one client, each in the thread that calls."""

    _clock: Clock

    def __init__(self, dial: Dial) -> None:
        self.turn = ClientLock(lambda function, name: self._clock.start(function, name))
        self.lock = self.turn.lock
        backend = dial(self.turn, self._renewed)
        self._calls = backend.calls
        super().__init__(backend.watches, backend.renewals, backend.clock)

    @property
    def connection(self) -> Connection:
        """The connection, for counters and a member's status."""
        return cast("Connection", self._calls)

    # -- Env

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

    # -- the driver

    def run(self, procedure: Procedure[T]) -> T:
        """Perform what a procedure yields, in this thread, until it ends.

        An exception that interrupts (Ctrl-C) is thrown into the procedure, and the commands that it
        yields to clean up are still performed.
        """
        if self.interrupted:  # it could wait for something that this thread would do next
            procedure.close()
            raise EtcdSemError(
                "etcdsem was called by a finalizer or signal handler that interrupted etcdsem in "
                "this thread. Only a release is possible there; do the rest in another thread"
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
                    return self._drive(procedure, error)  # interrupted between two steps
        finally:
            leave()
            self.turn.settle()

    @property
    def interrupted(self) -> bool:
        """Whether this thread is inside a client, so that the caller must be a finalizer or signal
        handler that interrupted it.
        """
        return self.turn.held or inside() is not None

    def run_later(self, procedure: Procedure[object]) -> None:
        """Run a procedure in another thread, a moment later."""
        guarded = functools.partial(self._guarded, lambda: self._run(procedure), "release")
        self.turn.note(guarded, "etcdsem-release")
        self.session.wake_heartbeat()  # it starts the thread if no other thread does before

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
                    error = None  # its traceback refers to this frame
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
        """Give everything back, within `grace` seconds, and disconnect."""
        with contextlib.suppress(Failure):
            self.run(lifecycle.shutdown(self.session, self.now() + grace))
        self.stop_helper()
        self._watches.close()
        self._renewals.close()
        self._calls.close()
        self.session.leases.until = self.now()  # calls in progress stop retrying
        self.turn.closed = True
        self.turn.settle()


MARKED.add(ThreadDriver._drive.__code__)


def dial(
    settings: ConnectionSettings, lock: ClientLock, renewed: Callable[[int, float], None]
) -> Backend:
    """The backend for a real etcd. It connects on first use."""
    from etcdsem.etcd.connection import Connection  # loads protobuf
    from etcdsem.etcd.stream_thread import ThreadStreams

    connection = Connection(settings)
    streams = ThreadStreams(connection, lock, renewed)
    return Backend(connection, streams, streams, RealClock())


def drop(driver: ThreadDriver) -> None:
    """End the driver of a client that was collected. It holds nothing: a lease refers to its
    client.
    """
    if driver.here:  # after a fork it is the parent's
        close(driver, EXIT_GRACE, beside=True)


def close(driver: ThreadDriver, grace: float, *, beside: bool = False) -> None:
    """Close a driver; in a finalizer or signal handler (or with `beside`) in another thread."""
    if beside or driver.interrupted:
        guarded = functools.partial(
            driver._guarded, functools.partial(driver.close, grace), "close"
        )
        elsewhere(driver.turn, guarded, "etcdsem-close")
    else:
        driver.close(grace)
