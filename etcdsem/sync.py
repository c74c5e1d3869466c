"""The blocking library: `Client`, `Semaphore`, `Lease`, driven by threads.

1. A call talks to etcd from the caller's own thread. Beside it a client has a few daemon threads,
   started when needed: the heartbeat, the watch stream, the keepalive stream.
2. Every step of a procedure, and every callback of a watch, runs under the client's one lock.
3. A client opens no connection before it is used. After a fork the child's client starts clean:
   it has none of the parent's leases, and never touches them.
4. At the interpreter's exit everything is given back, within 2 seconds; what can't be told to
   etcd by then ends by its TTL.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import inspect
import logging
import math
import os
import queue
import random
import secrets
import socket
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Self, TypeVar

from etcdsem.core import inspection, procedures
from etcdsem.core.commands import (
    Command,
    Failure,
    GrantLease,
    LeaseTimeToLive,
    Listener,
    Mailbox,
    Procedure,
    RevokeLease,
    Transact,
    Wait,
    Watch,
)
from etcdsem.core.keys import client_id, lease_hex
from etcdsem.core.leases import margin
from etcdsem.core.outward import public_error
from etcdsem.core.station import Grant, Session, Station
from etcdsem.errors import (
    AcquireTimeout,
    EtcdSemError,
    InconsistentLimit,
    InvalidSetting,
    LeaseLost,
    ReleasedTooOften,
)
from etcdsem.model import (
    DEFAULT_LEASE_TIMEOUT,
    DEFAULT_PREFIX,
    Duration,
    Holder,
    Junk,
    Overview,
    Status,
    Waiter,
    check_labels,
    check_limit,
    check_name,
    check_prefix,
    check_text,
    environment,
    lease_timeout_seconds,
    seconds,
    timeout_seconds,
)

if TYPE_CHECKING:
    from etcdsem.etcd.connection import Connection
    from etcdsem.etcd.settings import ConnectionSettings

log = logging.getLogger("etcdsem")

EXIT_GRACE = 2.0
"""Seconds for giving everything back when the interpreter ends."""

_LONGEST_NAP = 5.0
"""A thread looks at the clock at least this often: `queue` waits on a clock that stands still
while the machine is suspended, deadlines do not."""

_MAIN_NAP = 0.5
"""The same for the main thread: the kernel may hand Ctrl-C to another thread, and then the main
thread notices only when it wakes."""

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


def boot_time() -> float:
    """Seconds on a clock that also counts suspension, where the system has one."""
    return time.clock_gettime(_CLOCK)


_CLOCK: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class _Engine:
    """One connection to etcd with the core's state behind it: the driver of its procedures."""

    def __init__(self, settings: ConnectionSettings) -> None:
        from etcdsem.etcd.connection import Connection  # gRPC is loaded here, not on import
        from etcdsem.etcd.keepalive import KeepaliveStream
        from etcdsem.etcd.watching import WatchStream

        self.pid = os.getpid()
        self.lock = threading.RLock()
        self.connection: Connection = Connection(settings)
        self.session = Session(
            self, client_id(socket.gethostname(), self.pid, secrets.token_hex(4))
        )
        self._watches = WatchStream(self.connection, self.lock)
        self._keepalives = KeepaliveStream(self.connection, self.lock, self.session.keeper.renewed)

    # -- Env

    def now(self) -> float:
        return time.clock_gettime(_CLOCK)

    def wall(self) -> float:
        return time.time()

    def random(self) -> float:
        return random.random()

    def random_id(self) -> int:
        return secrets.randbits(62) + 1

    def mailbox(self) -> Mailbox:
        return queue.SimpleQueue()

    def spawn(self, procedure: Procedure[None], name: str) -> None:
        self.call(lambda: self.run(procedure), name)

    def call(self, function: Callable[[], object], name: str) -> None:
        try:
            threading.Thread(
                target=self._guarded, args=(function, name), name=f"etcdsem-{name}", daemon=True
            ).start()
        except RuntimeError as error:  # the interpreter is ending: no new threads
            log.debug("etcdsem: %s was not started: %s", name, error)

    @staticmethod
    def _guarded(function: Callable[[], object], name: str) -> None:
        try:
            function()
        except Exception:
            log.exception("etcdsem: error in %s", name)

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
        self._keepalives.renew(lease_id)

    def restart_renewals(self) -> None:
        self._keepalives.restart()

    # -- the driver

    def run(self, procedure: Procedure[T]) -> T:
        """Perform what a procedure yields, in this thread, until it ends.

        An exception that interrupts (Ctrl-C) is thrown into the procedure, and what it yields to
        clean up is still performed.
        """
        result: Any = None
        error: BaseException | None = None
        while True:
            try:
                with self.lock:
                    if error is None:
                        command = procedure.send(result)
                    else:
                        thrown, error = error, None
                        command = procedure.throw(thrown)
                result = self._perform(command)
            except StopIteration as stop:
                value: T = stop.value
                return value
            except BaseException as raised:
                if inspect.getgeneratorstate(procedure) == inspect.GEN_CLOSED:
                    raise  # the procedure ended with it
                error = raised

    def _perform(self, command: Command[Any]) -> object:
        match command:
            case Transact():
                return self.connection.transact(command.txn, command.timeout)
            case Wait():
                return self._wait(command.box, command.until)
            case GrantLease():
                return self.connection.grant(command.lease_id, command.ttl, command.timeout)
            case RevokeLease():
                self.connection.revoke(command.lease_id, command.timeout)
                return None
            case LeaseTimeToLive():
                return self.connection.time_to_live(command.lease_id, command.timeout)
        raise AssertionError(f"no such command: {command!r}")

    def _wait(self, box: Mailbox, until: float) -> object:
        if not isinstance(box, queue.SimpleQueue):
            raise AssertionError("a mailbox of another driver")
        main = threading.current_thread() is threading.main_thread()
        nap = _MAIN_NAP if main else _LONGEST_NAP
        while True:
            left = until - self.now()
            try:
                return box.get_nowait() if left <= 0 else box.get(timeout=min(left, nap))
            except queue.Empty:
                if left <= 0:
                    return None

    # -- its end

    def dropped(self) -> None:
        """Its client was garbage, so nothing is held (a lease keeps its client alive)."""
        self.close(EXIT_GRACE)

    def close(self, grace: float) -> None:
        """Give everything back, for `grace` seconds at most, and let go of etcd."""
        with contextlib.suppress(Failure):
            self.run(procedures.shutdown(self.session, self.now() + grace))
        self._watches.close()
        self._keepalives.close()
        self.connection.close()


# ---------------------------------------------------------------- client


class Client:
    """A connection to etcd, shared by any number of semaphores and threads.

    Opened on first use. As a context manager it gives everything back at its end.
    """

    def __init__(self, settings: ConnectionSettings, *, prefix: str | None = None) -> None:
        self.settings = settings
        self.prefix = check_prefix(prefix or environment("ETCDSEM_PREFIX") or DEFAULT_PREFIX)
        self._lock = threading.Lock()
        self._engine: _Engine | None = None
        self._closed = False
        _clients.add(self)

    def __repr__(self) -> str:
        return f"<etcdsem.Client of {', '.join(map(str, self.settings.endpoints))}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_client, (self.settings, self.prefix)

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
                    engine = self._engine = _Engine(self.settings)
                    dropped = weakref.finalize(self, engine.call, engine.dropped, "close")
                    dropped.atexit = False  # _at_exit sees to those that are still there
                    interval = environment("ETCDSEM_VALIDATION_INTERVAL")
                    if interval is not None:
                        every = seconds(interval, what="ETCDSEM_VALIDATION_INTERVAL")
                        engine.session.reread = (every / 2, every * 3 / 2)
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
            engine.close(grace)

    def _after_fork_in_child(self) -> None:
        self._lock = threading.Lock()
        if self._engine is not None:
            _inherited.append(self._engine)  # never collected: its end would touch the wire
            self._engine = None

    def station(self, name: str, prefix: str | None = None) -> Station:
        """The core's state for a semaphore."""
        return self.engine.session.station(prefix or self.prefix, name)

    def run(self, procedure: Procedure[T], what: str) -> T:
        """Run a procedure; `what` says for an error message what was tried."""
        try:
            return self.engine.run(procedure)
        except Failure as failure:
            raise public_error(failure, what) from failure

    # -- what an operator asks

    def overview(self) -> list[Overview]:
        """All semaphores under the prefix: limit, held, waiting."""
        procedure = inspection.overview(self.engine.session, self.prefix)
        return self.run(procedure, "list the semaphores")

    def status(self, name: str, *, ttl: bool = True) -> Status:
        """One semaphore at one revision: who holds, who waits.

        `ttl`: also ask etcd how many seconds each lease has left, one request for each.
        """
        procedure = inspection.status(self.station(check_name(name)), ttl=ttl)
        return self.run(procedure, f"look at {name!r}")

    def limit(self, name: str) -> int | None:
        """The limit in force; None if what is stored is no number."""
        procedure = procedures.learn_limit(self.station(check_name(name)))
        return self.run(procedure, f"read the limit of {name!r}").number

    def resize(self, name: str, max_leases: int) -> tuple[int | None, int]:
        """Change the limit, live. Returns the old one (None: no number) and the new one.

        0 lets nobody in until it is raised again. Leases held above a lowered limit stay.
        """
        number = check_limit(max_leases, least=0)
        procedure = procedures.resize(self.station(check_name(name)), number)
        return self.run(procedure, f"change the limit of {name!r}").number, number

    def evict(
        self, name: str, *, slot: int | None = None, lease: str | None = None
    ) -> Holder | Waiter | Junk:
        """End one lease: that of the holder of `slot`, or the one with the id `lease` (hex)."""
        if (slot is None) == (lease is None):
            raise InvalidSetting("evict: give either the slot or the lease")
        procedure = inspection.evict(self.station(check_name(name)), slot=slot, lease=lease)
        return self.run(procedure, f"evict from {name!r}")

    def close_semaphore(self, name: str, *, force: bool = False) -> procedures.Closing:
        """Remove a semaphore; without `force` only if nobody holds or waits."""
        procedure = procedures.close(self.station(check_name(name)), force=force)
        return self.run(procedure, f"close {name!r}")


def connect(
    endpoints: str | Sequence[str] | None = None,
    *,
    cacert: str | None = None,
    cert: str | None = None,
    key: str | None = None,
    user: str | None = None,
    password: str | None = None,
    dial_timeout: Duration | None = None,
    prefix: str | None = None,
) -> Client:
    """A client for the etcd at `endpoints` (``"host:2379"``, a list, or a comma-separated list).

    What is not given comes from ``ETCDSEM_ENDPOINTS``, ``ETCDSEM_CACERT``, ``ETCDSEM_CERT``,
    ``ETCDSEM_KEY``, ``ETCDSEM_USER``, ``ETCDSEM_PASSWORD`` or ``ETCDSEM_PASSWORD_FILE``, else
    from the ``ETCDCTL_*`` variable of the same meaning, else it is ``127.0.0.1:2379``.
    No connection is made before it is needed. Raises InvalidSetting for what cannot be right.
    """
    from etcdsem.etcd.settings import read_settings

    options: dict[str, Any] = {}
    if dial_timeout is not None:
        options["dial_timeout"] = seconds(dial_timeout, what="dial_timeout")
    settings = read_settings(
        endpoints, cacert=cacert, cert=cert, key=key, user=user, password=password, **options
    )
    return Client(settings, prefix=prefix)


def default_client() -> Client:
    """The client of this process for semaphores that were given none."""
    global _default
    with _default_lock:
        if _default is None or _default._closed:
            _default = connect()
        return _default


def _rebuild_client(settings: ConnectionSettings, prefix: str) -> Client:
    """An unpickled client: the one of this process with the same settings."""
    with _default_lock:
        key = (settings, prefix)
        client = _rebuilt.get(key)
        if client is None or client._closed:
            client = _rebuilt[key] = Client(settings, prefix=prefix)
        return client


_clients: weakref.WeakSet[Client] = weakref.WeakSet()
_inherited: list[_Engine] = []
_rebuilt: dict[tuple[ConnectionSettings, str], Client] = {}
_default: Client | None = None
_default_lock = threading.Lock()


def _after_fork_in_child() -> None:
    global _default_lock
    _default_lock = threading.Lock()
    for client in list(_clients):
        client._after_fork_in_child()


def _at_exit() -> None:
    until = boot_time() + EXIT_GRACE
    for client in list(_clients):
        client._close(max(0.1, until - boot_time()))


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_at_exit)


# ---------------------------------------------------------------- lease


class Lease:
    """A slot of a semaphore that is held by this process.

    It is kept alive in the background until it is released, or lost. Lost is final.
    """

    def __init__(self, semaphore: Semaphore, engine: _Engine, grant: Grant) -> None:
        self._semaphore = semaphore
        self._engine = engine
        self._grant = grant
        self.lost = threading.Event()
        """Set once the lease is lost (expired, revoked, evicted, closed); one can wait on it."""
        grant.on_lost = self._on_lost

    def __repr__(self) -> str:
        state = self._grant.state if self._here else "of the parent process"
        return f"<etcdsem.Lease of {self.name!r}, slot {self.slot}, {state}>"

    @property
    def _here(self) -> bool:
        return self._engine.pid == os.getpid()

    @property
    def name(self) -> str:
        """The semaphore's name."""
        return self._grant.station.name

    @property
    def slot(self) -> int:
        """Which of the N: 0 to limit-1. No two valid leases have the same."""
        return self._grant.slot

    @property
    def fencing_token(self) -> int:
        """A number that is larger for every later grant of this semaphore (etcd's revision)."""
        return self._grant.token

    @property
    def id(self) -> str:
        """The etcd lease, in hex as ``etcdctl lease list`` prints it."""
        return lease_hex(self._grant.lease.id)

    @property
    def limit(self) -> int:
        """The limit as it was known when this lease was granted."""
        return self._grant.limit

    @property
    def ttl(self) -> float:
        """Seconds after its last refresh when etcd gives the slot away."""
        return self._grant.lease.ttl

    @property
    def acquired_at(self) -> datetime:
        """When it was granted, by this machine's wall clock."""
        return datetime.fromtimestamp(self._grant.acquired_wall, UTC)

    @property
    def remaining(self) -> float:
        """Seconds until it must be taken for lost if nothing refreshes it; 0 if it is not held."""
        if not self.valid:
            return 0.0
        return max(0.0, self._grant.lease.deadline - boot_time())

    @property
    def valid(self) -> bool:
        """Is it held, and surely still ours by the local clock? Needs no network."""
        return self._here and self._grant.valid(boot_time())

    @property
    def lost_reason(self) -> str:
        """Why it was lost; empty if it was not."""
        return self._grant.lost_reason

    def check(self) -> None:
        """Raise LeaseLost unless the lease is valid."""
        if not self.valid:
            raise LeaseLost(self._describe_loss())

    def release(self) -> bool:
        """Give it back. False, and no exception, if it was lost or etcd could not be told."""
        if not self._here:
            return False
        self._semaphore._forget(self)
        state = self._grant.state
        if state == "held":
            done = self._engine.run(procedures.release(self._grant))
            state = self._grant.state
            if state != "lost":
                return done
            if not self.lost.is_set():
                self._tell_lost()
        if state == "lost":
            log.warning(
                "semaphore %s: slot %d was not released, since its lease was lost before: %s",
                self.name,
                self.slot,
                self._grant.lost_reason,
            )
        return False

    def _on_lost(self, grant: Grant) -> None:
        self._engine.call(self._tell_lost, "on-lost")
        self.lost.set()

    def _tell_lost(self) -> None:
        self.lost.set()
        log.critical(
            "%s Another may hold the slot now: the limit may be exceeded by this process.",
            self._describe_loss(),
        )
        if self._semaphore.on_lost is not None:
            self._semaphore.on_lost(self)

    def _describe_loss(self) -> str:
        grant = self._grant
        if not self._here:
            return f"semaphore {self.name!r}: the lease belongs to the parent process."
        if grant.state in ("released", "releasing"):
            return f"semaphore {self.name!r}: the lease of slot {self.slot} was released."
        reason = grant.lost_reason or "its deadline has passed by the local clock"
        return (
            f"semaphore {self.name!r}: {self._semaphore._owner_shown()} lost the lease of slot "
            f"{self.slot} (fencing token {self.fencing_token}): {reason}."
        )


# ---------------------------------------------------------------- semaphore


class Semaphore:
    """A counting semaphore that lives in etcd, shared by any processes anywhere.

    Args:
        max_leases: how many may hold it at a time, if it is new; must equal the registered limit
            otherwise, unless an operator has resized it since. None takes what is registered.
        name: 1 to 128 of ``A-Z a-z 0-9 . _ -``. None makes up a unique one.
        register: write the limit to etcd now, if the semaphore is new.
        client: from `connect()`; None: the process's default client.
        lease_timeout: etcd gives a slot away this long after the last refresh of its lease.
            Whole seconds, at least 2; default ``ETCDSEM_LEASE_TIMEOUT``, else 30 s.
        refresh_interval: seconds between refreshes; default ``ETCDSEM_REFRESH_INTERVAL``, else a
            third of the lease timeout.
        on_lost: called once, in a thread of its own, with each `Lease` that is lost.
        labels: shown to operators, at most 16.
        prefix: of the keys in etcd; default the client's, else ``/etcdsem``.
        owner: who holds, as operators see it; default ``ETCDSEM_OWNER``, else ``host:pid``.
        raise_on_loss: let ``with semaphore:`` raise LeaseLost at its end if its lease was lost.

    Raises:
        InconsistentLimit: another limit is registered.
        InvalidName, InvalidSetting: an argument cannot be right.
        EtcdUnavailable, PermissionDenied, EtcdRefused: it could not be registered.
    """

    def __init__(
        self,
        max_leases: int | None = 1,
        name: str | None = None,
        *,
        register: bool = True,
        client: Client | None = None,
        lease_timeout: Duration | None = None,
        refresh_interval: Duration | None = None,
        on_lost: Callable[[Lease], object] | None = None,
        labels: Mapping[str, str] | None = None,
        prefix: str | None = None,
        owner: str | None = None,
        raise_on_loss: bool = True,
    ) -> None:
        self.max_leases = None if max_leases is None else check_limit(max_leases)
        self.name = check_name(name if name is not None else f"semaphore-{uuid.uuid4().hex}")
        self._client = client
        self._prefix = None if prefix is None else check_prefix(prefix)
        self.lease_timeout, self.refresh_interval = read_intervals(lease_timeout, refresh_interval)
        self.labels = check_labels(labels)
        self.owner = owner or environment("ETCDSEM_OWNER")
        if self.owner is not None:
            check_text(self.owner, what="owner")
        self.on_lost = on_lost
        self.raise_on_loss = raise_on_loss
        self._refresh_leases = True
        self._leases: list[Lease] = []
        self._entered = threading.local()
        if register:
            self.register()

    def __repr__(self) -> str:
        return f"<etcdsem.Semaphore {self.name!r}, {len(self.leases)} held here>"

    def __getstate__(self) -> dict[str, Any]:
        kept = dict(self.__dict__)
        del kept["_leases"], kept["_entered"]
        return kept

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._leases = []
        self._entered = threading.local()

    @property
    def client(self) -> Client:
        """The client in use."""
        if self._client is None:
            self._client = default_client()
        return self._client

    def _station(self) -> Station:
        return self.client.station(self.name, self._prefix)

    def _owner_shown(self) -> str:
        return self.owner or f"{socket.gethostname()}:{os.getpid()}"

    def _run(self, procedure: Procedure[T], what: str) -> T:
        return self.client.run(procedure, f"{what} {self.name!r}")

    # -- acquire and release

    def acquire(self, timeout: Duration | None = None) -> bool:
        """Wait for a lease.

        Args:
            timeout: seconds, ``"1m30s"`` or a timedelta. None waits for ever, 0 tries once.

        Returns:
            True when a lease was granted, False when there was no room until the timeout. The
            call may last a little longer than that while it leaves the line.

        Raises:
            SemaphoreClosed: the semaphore is not known (any more).
            EtcdUnavailable: etcd could not be reached during the whole timeout (without one: for
                10 s at first contact, or for 60 s later on).
        """
        return self.acquire_lease(timeout) is not None

    def acquire_lease(
        self, timeout: Duration | None = None, *, on_wait: Callable[[], object] | None = None
    ) -> Lease | None:
        """Like `acquire`, but gives the `Lease`, or None.

        `on_wait` is called, in a thread of its own, once it is clear that one has to wait.
        """
        limit = timeout_seconds(timeout)
        client = self.client
        engine = client.engine
        until = math.inf if limit is None else boot_time() + limit
        order = procedures.Order(
            self.lease_timeout,
            self.refresh_interval,
            engine.session.identity(self.owner, self.labels),
            on_wait,
        )
        return self._run(self._acquire(engine, order, until, once=limit == 0), "acquire")

    def _acquire(
        self, engine: _Engine, order: procedures.Order, until: float, *, once: bool
    ) -> Procedure[Lease | None]:
        # Part of the procedure, so that no interruption comes between the grant and its listing.
        station = self._station()
        grant = yield from procedures.acquire(station, order, until, once=once)
        if grant is None:
            return None
        grant.lease.paused = not self._refresh_leases
        lease = Lease(self, engine, grant)
        self._leases.append(lease)
        return lease

    def release(self) -> bool:
        """Give back this object's oldest lease.

        Returns:
            True when etcd knows. False when etcd could not be told (its TTL will free the slot),
            or when the lease was lost before; then a warning is logged.

        Raises:
            ReleasedTooOften: this object holds no lease; nothing changes in etcd.
        """
        leases = self._leases
        lease = next((one for one in leases if one._here and not _is_scoped(one)), None)
        if lease is None:
            lease = next((one for one in leases if one._here), None)
        if lease is None:
            raise ReleasedTooOften("Released too often")
        return lease.release()

    def _forget(self, lease: Lease) -> None:
        with contextlib.suppress(ValueError):
            self._leases.remove(lease)

    @property
    def leases(self) -> tuple[Lease, ...]:
        """The leases that this object holds in this process, oldest first."""
        return tuple(lease for lease in self._leases if lease._here)

    @contextlib.contextmanager
    def hold(self, timeout: Duration | None = None) -> Iterator[Lease]:
        """Hold a lease for the length of a ``with`` block; gives the `Lease`.

        Raises:
            AcquireTimeout: no room until the timeout; the body did not run.
            LeaseLost: at the end, if the lease was lost meanwhile (see `raise_on_loss`).
        """
        lease = self.acquire_lease(timeout)
        if lease is None:
            raise AcquireTimeout(
                f"semaphore {self.name!r}: no lease was free within {timeout!r}; who holds it: "
                f"etcdsem status {self.name}"
            )
        _scoped.add(lease)
        try:
            yield lease
        except BaseException:
            lease.release()
            raise
        self._end(lease)

    def _end(self, lease: Lease) -> None:
        """The end of a block that raised nothing."""
        ended_before = lease._grant.state == "released"
        lost = not ended_before and not lease.valid
        lease.release()
        if (lost or lease.lost.is_set()) and self.raise_on_loss and lease._here:
            raise LeaseLost(lease._describe_loss())

    def __enter__(self) -> Self:
        held = self.hold()
        held.__enter__()
        if not hasattr(self._entered, "stack"):
            self._entered.stack = []
        self._entered.stack.append(held)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        held: contextlib.AbstractContextManager[Lease] = self._entered.stack.pop()
        held.__exit__(kind, error, traceback)

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """As a decorator: each call holds a lease while it runs."""
        if inspect.iscoroutinefunction(function):
            raise TypeError(
                "a coroutine function needs the asyncio semaphore: "
                "from etcdsem.aio import Semaphore"
            )

        @functools.wraps(function)
        def held(*args: P.args, **kwargs: P.kwargs) -> R:
            with self:
                return function(*args, **kwargs)

        return held

    # -- the semaphore as a whole

    def register(self) -> None:
        """Write the limit to etcd if the semaphore is new, else check that it is the same.

        A limit that was resized since it was registered is taken as it is.

        Raises:
            InconsistentLimit: another limit is registered.
        """
        station = self._station()
        if self.max_leases is None:
            self._run(procedures.learn_limit(station), "read the limit of")
            return
        limit = self._run(procedures.register(station, self.max_leases), "register")
        if limit.registered and limit.number is not None and limit.number != self.max_leases:
            raise InconsistentLimit(
                f"Inconsistent max leases: {limit.number}, expected: {self.max_leases} "
                f"(semaphore {self.name!r}: {limit.number} is registered; give that, or change it "
                f"for everybody: etcdsem limit {self.name} {self.max_leases})",
                given=self.max_leases,
                registered=limit.number,
            )

    def get_value(self) -> int:
        """The number of leases held now, by anyone."""
        return self._run(inspection.held(self._station()), "count the leases of")

    def resize(self, max_leases: int) -> None:
        """Change the limit for everybody, live. Waiters get new room at once; leases above a
        lowered limit stay until they are released. 0 lets nobody in.
        """
        number = check_limit(max_leases, least=0)
        self._run(procedures.resize(self._station(), number), "resize")
        if number:
            self.max_leases = number

    def status(self, *, ttl: bool = True) -> Status:
        """Holders and waiters at one revision. `ttl`: also ask how long each lease has left."""
        return self._run(inspection.status(self._station(), ttl=ttl), "look at")

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
        closing = self._run(procedures.close(self._station(), force=True), "close")
        if closing.holders or closing.waiters:
            log.warning(
                "semaphore %s was closed while in use: %d held (%s), %d waiting",
                self.name,
                len(closing.holders),
                ", ".join(closing.holders) or "-",
                len(closing.waiters),
            )

    @property
    def refresh_leases(self) -> bool:
        """False pauses the refresh of this object's leases, for tests."""
        return self._refresh_leases

    @refresh_leases.setter
    def refresh_leases(self, on: bool) -> None:
        self._refresh_leases = bool(on)
        for lease in self.leases:
            lease._grant.lease.paused = not on


_scoped: weakref.WeakSet[Lease] = weakref.WeakSet()
"""Leases that end with a block; release() takes them only when there is no other."""


def _is_scoped(lease: Lease) -> bool:
    return lease in _scoped


def read_intervals(
    lease_timeout: Duration | None, refresh_interval: Duration | None
) -> tuple[int, float]:
    """The lease timeout (whole seconds) and the refresh interval (seconds), with the defaults."""
    timeout = lease_timeout_seconds(
        lease_timeout
        if lease_timeout is not None
        else environment("ETCDSEM_LEASE_TIMEOUT") or DEFAULT_LEASE_TIMEOUT
    )
    given = refresh_interval
    if given is None and lease_timeout is None:
        given = environment("ETCDSEM_REFRESH_INTERVAL")
    if given is None:
        return timeout, timeout / 3
    interval = seconds(given, what="refresh_interval")
    if not 0 < interval < timeout - margin(timeout):
        raise InvalidSetting(
            f"refresh_interval {given!r} does not fit into a lease timeout of {timeout}s: refresh "
            f"at least once before it ends, better three times ({timeout / 3:.3g}s)"
        )
    return timeout, interval


__all__ = ["Client", "Lease", "Semaphore", "connect", "default_client"]
