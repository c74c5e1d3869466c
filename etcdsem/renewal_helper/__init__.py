"""A helper process (keeper) that refreshes leases for a program whose interpreter is busy.

1. A lease is handed over through a pipe when it is granted, and taken back when it is released or
   lost. The helper renews what it was handed, and nothing else; when in doubt it stops. It never
   revokes anything.
2. It records its renewals in shared memory: when the renewal was sent (on the clock that both
   processes share), and the TTL that etcd answered. So the program sees them at the very moment at
   which it checks whether a lease is valid, however long it was busy.
3. The helper ends with its parent, even if the parent is killed: the pipe closes, the kernel sends
   a signal, and the helper checks its parent's PID. The leases that it kept then end by their TTL.
4. It does not keep leases for a parent that is stopped (SIGSTOP, Ctrl-Z, a debugger) or whose
   heartbeat has not been seen for `limit` seconds: a program that hangs must not keep its slots
   forever.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import pickle
import subprocess
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from etcdsem import interpreter
from etcdsem.clock import boot_time
from etcdsem.errors import EtcdSemError
from etcdsem.renewal_helper.table import ORDER, RECORDS, Table, open_memory

if TYPE_CHECKING:
    from etcdsem.core.leases import TtlLease
    from etcdsem.etcd.settings import ConnectionSettings

log = logging.getLogger("etcdsem")

_LONGEST_PAUSE = 60.0
"""Maximum seconds between two starts of a helper that keeps ending; one that has run for so long
counts as healthy."""

_FAILURES = (OSError, MemoryError, RuntimeError, subprocess.SubprocessError)
"""The errors of a start if processes, threads, files or memory have run out."""


class _Process:
    """One helper process and the pipe to it."""

    def __init__(self, settings: ConnectionSettings, limit: float, memory: int) -> None:
        """Start it. `memory` is the descriptor of the shared memory. Raises EtcdSemError."""
        if reason := interpreter.why_not():
            raise EtcdSemError(f"cannot be started: {reason}")
        # The kernel's signal for the parent's death is really sent when the parent *thread* ends.
        main = threading.current_thread() is threading.main_thread()
        command = interpreter.python(
            "from etcdsem.renewal_helper_process import main; main()",
            str(memory),
            str(os.getpid()),
            "thread" if main else "-",
        )
        secrets = pickle.dumps((settings, settings.password, limit))
        self.since = boot_time()
        self._pipe = -1
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=None if os.environ.get("ETCDSEM_DEBUG") else subprocess.DEVNULL,
                pass_fds=[memory],
                start_new_session=True,  # Ctrl-C must not reach it
            )
        except _FAILURES as error:
            raise EtcdSemError(f"cannot be started: {_text(error)}") from error
        try:
            assert self._process.stdin is not None
            with self._process.stdin as stdin:
                # Popen's file object would complain, and flush, in a forked child.
                self._pipe = os.dup(stdin.fileno())
            os.write(self._pipe, len(secrets).to_bytes(4, "big") + secrets)  # fits into any pipe
            os.set_blocking(self._pipe, False)
        except BrokenPipeError as error:
            self.end(1.0)
            raise EtcdSemError(f"has ended ({self.how})") from error
        except _FAILURES as error:
            self.end(0.0)
            raise EtcdSemError(f"cannot be started: {_text(error)}") from error

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Has the process ended?"""
        return self._process.poll() is not None

    @property
    def how(self) -> str:
        """How the process has ended."""
        code = self._process.returncode
        return f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"

    def tell(self, order: bytes) -> bool:
        """Send an order. False if that failed; then it must not continue, and is killed."""
        try:
            if os.write(self._pipe, order) == len(order):
                return True
        except OSError:
            pass  # it has ended or is stopped
        self.kill()
        return False

    def kill(self) -> None:
        """Kill it without waiting for its end."""
        with contextlib.suppress(OSError):
            self._process.kill()

    def end(self, grace: float) -> None:
        """Close the pipe, which tells it to end, and make sure that it does."""
        self.let_go()
        try:
            self._process.wait(grace)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()

    def let_go(self) -> None:
        """Close the pipe."""
        pipe, self._pipe = self._pipe, -1
        if pipe >= 0:
            with contextlib.suppress(OSError):
                os.close(pipe)

    def is_not_ours(self) -> None:
        """Called in a forked child: there is nothing to wait for."""
        self.let_go()
        self._process.returncode = 0


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__


F = TypeVar("F", bound=Callable[..., None])


def _never_raises(method: F) -> F:
    """For methods that the heartbeat or a release calls: an error ends the helper, nothing else."""

    @functools.wraps(method)
    def call(self: RenewalHelper, *arguments: Any) -> None:
        try:
            method(self, *arguments)
        except Exception as error:
            self._distrust(error)

    return call  # type: ignore[return-value]


class RenewalHelper:
    """The program's side. Its methods are quick, may be called under a lock, and never raise."""

    def __init__(
        self,
        settings: ConnectionSettings,
        limit: float,
        *,
        start: Callable[[Callable[[], object], str], object] | None = None,
        write_log: Callable[..., object] | None = None,
    ) -> None:
        """Start a helper. Raises EtcdSemError.

        Args:
            settings: of the connection to etcd.
            limit: seconds for which the helper continues without a sign of life.
            start: runs a function under that name where it may block; None: in a thread.
            write_log: logs, like `logging.Logger.log`, where it may block.
        """
        self._settings = settings
        self._limit = limit
        self._start = start or _start_thread
        self._log = write_log or log.log
        self._pid = os.getpid()
        self._places: dict[int, int] = {}  # the records of the leases that are handed over
        self._free = list(range(RECORDS - 1, 0, -1))
        self._made: deque[_Process] = deque()  # started by a thread, for the next beat to take
        self._starting = False  # such a thread is running
        self._failures = 0  # since a helper was healthy
        self._said = ""  # the last failure that was logged
        self._next_try = 0.0
        self._closed = False
        with contextlib.ExitStack() as stack:
            try:
                self._memory, self._table = _share_memory(stack)
                self._helper: _Process | None = _Process(settings, limit, self._memory)
            except EtcdSemError as error:
                raise EtcdSemError(f"the helper process (keeper) {error}") from error
            stack.pop_all()
        _helpers.add(self)

    @property
    def pid(self) -> int:
        """The PID of the helper; 0 while it does not run."""
        return self._helper.pid if self._helper is not None else 0

    @_never_raises
    def hand_over(self, lease: TtlLease) -> None:
        """Have the helper renew a lease from now on."""
        if self._helper is None or self._pid != os.getpid() or not self._free:
            return
        place = self._places[lease.id] = self._free.pop()
        self._table.clear(place)
        if self._helper.tell(_order(b"K", lease, place)):
            lease.elsewhere = lambda: self._table.read(place, lease.id)

    @_never_raises
    def take_back(self, lease: TtlLease) -> None:
        """Have the helper stop renewing a lease."""
        place = self._places.pop(lease.id, None)
        if place is None or self._helper is None or self._pid != os.getpid():
            return
        lease.elsewhere = None
        self._table.forbid(place)
        self._helper.tell(_order(b"D", lease, place))
        self._free.insert(0, place)

    @_never_raises
    def tend(self, lease: TtlLease) -> None:
        """Called regularly for each lease that the helper should have: hand it over if needed."""
        place = self._places.get(lease.id)
        if lease.paused:
            if place is not None:
                self.take_back(lease)
        elif place is None:
            self.hand_over(lease)
        elif self._table.given_up(place, lease.id):
            self.take_back(lease)
            self.hand_over(lease)

    @_never_raises
    def beat(self) -> None:
        """Give a sign of life at each heartbeat; start another helper if this one has ended."""
        if self._closed or self._pid != os.getpid():
            return
        self._table.beat()
        starting = self._starting  # read first: what was made before it was reset is there now
        if self._helper is None and self._made:
            self._helper = self._made.popleft()
            self._log(logging.INFO, "etcdsem: another helper process (keeper) has started")
        if self._helper is not None and self._helper.ended:
            self._bury(self._helper)
        if self._helper is None and not starting and boot_time() >= self._next_try:
            self._start_another()

    def _bury(self, helper: _Process) -> None:
        """The helper has ended; its leases will be handed to the next one."""
        self._helper = None
        helper.let_go()
        self._places.clear()
        self._free = list(range(RECORDS - 1, 0, -1))
        if boot_time() - helper.since >= _LONGEST_PAUSE:
            self._failures, self._said = 0, ""
        if self._failures == 0:
            self._failures = 1
            message = "etcdsem: the helper process (keeper) has ended (%s); starting another"
            self._log(logging.WARNING, message, helper.how)
        else:
            self._failed(f"has ended ({helper.how})")

    def _start_another(self) -> None:
        """Start another helper in a thread, since that takes time."""
        self._starting = True
        memory = -1
        try:
            memory = os.dup(self._memory)  # ours is closed with the client
            self._start(functools.partial(self._make, memory), "etcdsem-keeper")
        except _FAILURES as error:
            self._starting = False
            if memory >= 0:
                os.close(memory)
            self._failed(f"cannot be started: {_text(error)}")

    def _make(self, memory: int) -> None:
        try:
            self._made.append(_Process(self._settings, self._limit, memory))
            if self._closed:
                self._end_those_made()
        except EtcdSemError as error:
            self._failed(str(error))
        finally:
            os.close(memory)
            self._starting = False

    def _failed(self, what: str) -> None:
        """Schedule a retry after a growing pause. Only a new reason is logged as an error."""
        pause = min(_LONGEST_PAUSE, 0.5 * 2 ** min(self._failures, 10))
        self._failures += 1
        self._next_try = boot_time() + pause
        level = logging.ERROR if what != self._said else logging.DEBUG
        self._said = what
        self._log(
            level,
            "etcdsem: the helper process (keeper) %s; leases are refreshed by this process alone. "
            "The next try is in %gs, later ones take longer; ETCDSEM_DEBUG=1 shows its own errors",
            what,
            pause,
        )

    def _distrust(self, error: Exception) -> None:
        """An error occurred here: a helper that may have missed an order must not continue."""
        helper = self._helper
        if helper is not None:
            helper.kill()
        self._failed(f"was killed: {type(error).__name__}: {error}")

    @_never_raises
    def close(self) -> None:
        """End the helper."""
        if self._closed or self._pid != os.getpid():
            return
        self._closed = True
        self._places.clear()
        helper, self._helper = self._helper, None
        if helper is not None:
            helper.end(1.0)
        self._end_those_made()
        self._table.close()
        os.close(self._memory)

    def _end_those_made(self) -> None:
        with contextlib.suppress(IndexError):  # the thread that made them may do the same
            while True:
                self._made.popleft().end(1.0)

    def after_fork_in_child(self) -> None:
        """Detach a forked child: its copy of the pipe must not keep the helper alive."""
        helper, self._helper = self._helper, None
        for one in (helper, *self._made):
            if one is not None:
                one.is_not_ours()


def _share_memory(stack: contextlib.ExitStack) -> tuple[int, Table]:
    """New shared memory: its descriptor, and the table in it. Raises EtcdSemError."""
    try:
        memory = open_memory()
        stack.callback(os.close, memory)
        table = Table(memory)
        stack.callback(table.close)
        table.beat()
    except _FAILURES as error:
        raise EtcdSemError(f"cannot be started: {_text(error)}") from error
    return memory, table


def _order(kind: bytes, lease: TtlLease, place: int) -> bytes:
    return ORDER.pack(kind, lease.id, place, lease.ttl, lease.refresh, lease.sent, lease.bound)


def _start_thread(function: Callable[[], object], name: str) -> None:
    threading.Thread(target=function, name=name, daemon=True).start()


_helpers: weakref.WeakSet[RenewalHelper] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for helper in list(_helpers):
        helper.after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
