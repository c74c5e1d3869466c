"""A helper process that refreshes leases for a program whose interpreter is busy.

1. A lease is handed over when it is granted and taken back when it is released or lost, through a
   pipe. The helper renews what it was handed, and nothing else; when in doubt it stops. It never
   revokes anything.
2. What it has renewed stands in shared memory: when the renewal was sent (on the clock that both
   processes share), and the TTL that etcd answered. So the program knows it in the very moment in
   which it asks whether a lease is valid, however long it was busy.
3. It ends with its parent, also if that is killed: the pipe ends, the kernel says so, and it looks
   who its parent is. What it kept ends by its TTL then.
4. A parent that is stopped (SIGSTOP, Ctrl-Z, a debugger) is not kept alive, nor one whose heartbeat
   has not been seen for `limit` seconds: a program that hangs must not keep its slots for ever.
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
from etcdsem.keeper.table import ORDER, RECORDS, Table, open_memory

if TYPE_CHECKING:
    from etcdsem.core.leases import TtlLease
    from etcdsem.etcd.settings import ConnectionSettings

log = logging.getLogger("etcdsem")

_LONGEST_PAUSE = 60.0
"""Seconds between two starts of a helper that ends again and again; one that has run for so long
counts as sound."""

_FAILURES = (OSError, MemoryError, RuntimeError, subprocess.SubprocessError)
"""What a start may end with where processes, threads, files or memory have run out."""


class _Helper:
    """One helper process and the pipe to it."""

    def __init__(self, settings: ConnectionSettings, limit: float, memory: int) -> None:
        """Start it. Raises EtcdSemError. `memory`: the descriptor of the shared memory."""
        if reason := interpreter.why_not():
            raise EtcdSemError(f"cannot be started: {reason}")
        # The kernel's signal at the parent's death really comes at the death of its *thread*.
        main = threading.current_thread() is threading.main_thread()
        command = interpreter.python(
            "from etcdsem.keeper_process import main; main()",
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
                start_new_session=True,  # Ctrl-C is not for it
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
        """How it has ended."""
        code = self._process.returncode
        return f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"

    def tell(self, order: bytes) -> bool:
        """False: it did not hear. Then it must not go on, and is killed."""
        try:
            if os.write(self._pipe, order) == len(order):
                return True
        except OSError:
            pass  # it has ended, or stands still
        self.kill()
        return False

    def kill(self) -> None:
        """End it at once, without waiting for that."""
        with contextlib.suppress(OSError):
            self._process.kill()

    def end(self, grace: float) -> None:
        """Close the pipe, which tells it to end, and see that it does."""
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
        """In a forked child: there is nothing to wait for."""
        self.let_go()
        self._process.returncode = 0


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__


F = TypeVar("F", bound=Callable[..., None])


def _never_raises(method: F) -> F:
    """For what the heartbeat or a release calls: an error ends the helper, and nothing else."""

    @functools.wraps(method)
    def call(self: KeeperProcess, *arguments: Any) -> None:
        try:
            method(self, *arguments)
        except Exception as error:
            self._distrust(error)

    return call  # type: ignore[return-value]


class KeeperProcess:
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
            limit: seconds for which the helper goes on without a sign of life.
            start: starts a function, with that name, where it may block; None: in a thread.
            write_log: logs, as `logging.Logger.log`, where it may block.
        """
        self._settings = settings
        self._limit = limit
        self._start = start or _start_thread
        self._log = write_log or log.log
        self._pid = os.getpid()
        self._places: dict[int, int] = {}  # of the leases that are handed over
        self._free = list(range(RECORDS - 1, 0, -1))
        self._made: deque[_Helper] = deque()  # by a thread, to be taken by the next beat
        self._starting = False  # such a thread is on its way
        self._failures = 0  # since a helper was sound
        self._said = ""  # what was logged of them
        self._next_try = 0.0
        self._closed = False
        with contextlib.ExitStack() as stack:
            try:
                self._memory = open_memory()
                stack.callback(os.close, self._memory)
                self._table = Table(self._memory)
                stack.callback(self._table.close)
                self._table.beat()
            except _FAILURES as error:
                message = f"the keeper process cannot be started: {_text(error)}"
                raise EtcdSemError(message) from error
            try:
                self._helper: _Helper | None = _Helper(settings, limit, self._memory)
            except EtcdSemError as error:
                raise EtcdSemError(f"the keeper process {error}") from error
            stack.pop_all()
        _keepers.add(self)

    @property
    def pid(self) -> int:
        """The helper's; 0 while there is none."""
        return self._helper.pid if self._helper is not None else 0

    @_never_raises
    def hand_over(self, lease: TtlLease) -> None:
        """From now on the helper renews it."""
        if self._helper is None or self._pid != os.getpid() or not self._free:
            return
        place = self._places[lease.id] = self._free.pop()
        self._table.clear(place)
        if self._helper.tell(_order(b"K", lease, place)):
            lease.elsewhere = lambda: self._table.read(place, lease.id)

    @_never_raises
    def take_back(self, lease: TtlLease) -> None:
        """From now on it does not."""
        place = self._places.pop(lease.id, None)
        if place is None or self._helper is None or self._pid != os.getpid():
            return
        lease.elsewhere = None
        self._table.forbid(place)
        self._helper.tell(_order(b"D", lease, place))
        self._free.insert(0, place)

    @_never_raises
    def tend(self, lease: TtlLease) -> None:
        """Now and then, for each lease that should be with the helper: is it?"""
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
        """A sign of life, at each heartbeat; starts another helper if this one has ended."""
        if self._closed or self._pid != os.getpid():
            return
        self._table.beat()
        starting = self._starting  # looked at first: what was made before it ended is there now
        if self._helper is None and self._made:
            self._helper = self._made.popleft()
            self._log(logging.INFO, "etcdsem: another keeper process has started")
        if self._helper is not None and self._helper.ended:
            self._bury(self._helper)
        if self._helper is None and not starting and boot_time() >= self._next_try:
            self._start_another()

    def _bury(self, helper: _Helper) -> None:
        """It has ended: what it kept is handed to the next one."""
        self._helper = None
        helper.let_go()
        self._places.clear()
        self._free = list(range(RECORDS - 1, 0, -1))
        if boot_time() - helper.since >= _LONGEST_PAUSE:
            self._failures, self._said = 0, ""
        if self._failures == 0:
            self._failures = 1
            message = "etcdsem: the keeper process has ended (%s); starting another"
            self._log(logging.WARNING, message, helper.how)
        else:
            self._failed(f"has ended ({helper.how})")

    def _start_another(self) -> None:
        """In a thread, since that takes its time."""
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
            self._made.append(_Helper(self._settings, self._limit, memory))
            if self._closed:
                self._end_those_made()
        except EtcdSemError as error:
            self._failed(str(error))
        finally:
            os.close(memory)
            self._starting = False

    def _failed(self, what: str) -> None:
        """Try again after a pause that grows. The log is told only what is new."""
        pause = min(_LONGEST_PAUSE, 0.5 * 2 ** min(self._failures, 10))
        self._failures += 1
        self._next_try = boot_time() + pause
        level = logging.ERROR if what != self._said else logging.DEBUG
        self._said = what
        self._log(
            level,
            "etcdsem: the keeper process %s; leases are refreshed by this process alone. The next "
            "try is in %gs, later ones take longer; ETCDSEM_DEBUG=1 shows the keeper's own errors",
            what,
            pause,
        )

    def _distrust(self, error: Exception) -> None:
        """Something went wrong here: a helper that may not have heard must not go on."""
        helper = self._helper
        if helper is not None:
            helper.kill()
        self._failed(f"was killed: {type(error).__name__}: {error}")

    @_never_raises
    def close(self) -> None:
        """The helper ends."""
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
        with contextlib.suppress(IndexError):  # the thread that made them may do it, too
            while True:
                self._made.popleft().end(1.0)

    def after_fork_in_child(self) -> None:
        """The child has no part in it; its copy of the pipe must not keep the helper alive."""
        helper, self._helper = self._helper, None
        for one in (helper, *self._made):
            if one is not None:
                one.is_not_ours()


def _order(kind: bytes, lease: TtlLease, place: int) -> bytes:
    return ORDER.pack(kind, lease.id, place, lease.ttl, lease.refresh, lease.sent, lease.bound)


def _start_thread(function: Callable[[], object], name: str) -> None:
    threading.Thread(target=function, name=name, daemon=True).start()


_keepers: weakref.WeakSet[KeeperProcess] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for keeper in list(_keepers):
        keeper.after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
