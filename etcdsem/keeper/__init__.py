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
import logging
import os
import pickle
import subprocess
import sys
import threading
import weakref
from typing import TYPE_CHECKING

from etcdsem.errors import EtcdSemError
from etcdsem.keeper.table import ORDER, RECORDS, Table, open_memory

if TYPE_CHECKING:
    from etcdsem.core.leases import TtlLease
    from etcdsem.etcd.settings import ConnectionSettings

log = logging.getLogger("etcdsem")

_RUN = "import sys; sys.path[:] = {path!r}; from etcdsem.keeper_process import main; main()"


class KeeperProcess:
    """The program's side. Every method is quick, and may be called under a lock."""

    def __init__(self, settings: ConnectionSettings, limit: float) -> None:
        self._settings = settings
        self._limit = limit
        self._pid = os.getpid()
        self._memory = open_memory()
        self._table = Table(self._memory)
        self._places: dict[int, int] = {}  # of the leases that are handed over
        self._free = list(range(RECORDS - 1, 0, -1))
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe = -1
        self._start()
        _keepers.add(self)

    def _start(self) -> None:
        # The kernel's signal at the parent's death really comes at the death of its *thread*.
        main = threading.current_thread() is threading.main_thread()
        self._table.beat()
        command = [
            sys.executable,
            "-c",
            _RUN.format(path=[os.path.abspath(one) for one in sys.path]),
            str(self._memory),
            str(os.getpid()),
            "thread" if main else "-",
        ]
        errors = None if os.environ.get("ETCDSEM_DEBUG") else subprocess.DEVNULL
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                pass_fds=[self._memory],
                start_new_session=True,  # Ctrl-C is not for it
            )
        except OSError as error:
            raise EtcdSemError(f"the keeper process cannot be started: {error}") from error
        assert process.stdin is not None
        self._process = process
        # Popen's file object would complain, and flush, in a forked child.
        self._pipe = os.dup(process.stdin.fileno())
        process.stdin.close()
        secrets = pickle.dumps((self._settings, self._settings.password, self._limit))
        os.write(self._pipe, len(secrets).to_bytes(4, "big") + secrets)  # fits into any pipe
        os.set_blocking(self._pipe, False)

    def hand_over(self, lease: TtlLease) -> None:
        """From now on the helper renews it."""
        if self._pipe < 0 or self._pid != os.getpid() or not self._free:
            return
        place = self._places[lease.id] = self._free.pop()
        self._table.clear(place)
        if self._tell(b"K", lease, place):
            lease.elsewhere = lambda: self._table.read(place, lease.id)

    def take_back(self, lease: TtlLease) -> None:
        """From now on it does not."""
        place = self._places.pop(lease.id, None)
        if place is None or self._pid != os.getpid():
            return
        lease.elsewhere = None
        self._table.forbid(place)
        self._tell(b"D", lease, place)
        self._free.insert(0, place)

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

    def beat(self) -> None:
        """A sign of life, at each heartbeat; starts another helper if this one has ended."""
        if self._pid != os.getpid() or self._pipe < 0:
            return
        self._table.beat()
        if self._process is not None and self._process.poll() is not None:
            log.warning("etcdsem: the keeper process has ended; starting another")
            self._places.clear()
            self._free = list(range(RECORDS - 1, 0, -1))
            os.close(self._pipe)
            self._pipe = -1
            try:
                self._start()
            except EtcdSemError as error:
                log.error("etcdsem: %s; leases are refreshed by this process alone", error)

    def _tell(self, kind: bytes, lease: TtlLease, place: int) -> bool:
        order = ORDER.pack(kind, lease.id, place, lease.ttl, lease.refresh, lease.sent, lease.bound)
        try:
            return os.write(self._pipe, order) == len(order)
        except (BrokenPipeError, BlockingIOError):
            # It has ended, or stands still: a helper that hears nothing must not go on.
            if self._process is not None:
                self._process.kill()
            return False

    def close(self) -> None:
        """The helper ends."""
        if self._pid != os.getpid() or self._pipe < 0:
            return
        os.close(self._pipe)
        self._pipe = -1
        if self._process is not None:
            try:
                self._process.wait(1.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._table.close()
        os.close(self._memory)

    def after_fork_in_child(self) -> None:
        """The child has no part in it; its copy of the pipe must not keep the helper alive."""
        if self._pipe >= 0:
            with contextlib.suppress(OSError):
                os.close(self._pipe)
            self._pipe = -1
        if self._process is not None:
            self._process.returncode = 0  # not its child: nothing to wait for


_keepers: weakref.WeakSet[KeeperProcess] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for keeper in list(_keepers):
        keeper.after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
