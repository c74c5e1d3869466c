"""The driver of `Streams` for threads: one daemon thread per client connects and moves bytes.

Every request makes sure that this thread exists or was requested, so that no interruption and no
error leaves a client without it.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from etcdsem.client_lock import ClientLock, Job
from etcdsem.core.backoff import Backoff
from etcdsem.core.commands import Failure, NotConnected, Refused
from etcdsem.etcd.connection import Connection
from etcdsem.etcd.grpc_protocol import RpcError
from etcdsem.etcd.streams import LONGEST_PAUSE, OPEN_TIMEOUT, SHORTEST_PAUSE, Streams

log = logging.getLogger("etcdsem")


class ThreadStreams(Streams):
    """All watches and renewals of a client, driven by a thread."""

    _connection: Connection
    _guard: ClientLock

    def __init__(
        self,
        connection: Connection,
        guard: ClientLock,
        on_renewed: Callable[[int, float], None],
    ) -> None:
        super().__init__(connection, guard, on_renewed)
        self._job: Job | None = None  # the thread until it has begun
        self._thread: threading.Thread | None = None  # the thread once it has begun
        self._carrier: Any = None  # the present connection
        self._complaint = ""  # the refusal that was logged, until there is a connection
        self._bell = threading.Lock()  # wakes the thread when not connected; ringing takes no lock
        self._bell.acquire()

    def close(self) -> None:
        """End the streams and their thread."""
        self._closed = True
        carrier, thread = self._carrier, self._thread
        self._ring()
        if carrier is None:
            self._connection.close()  # ends a connection attempt of the thread
        else:
            carrier.wake()
        if thread is not None and thread is not threading.current_thread():
            thread.join(1.0)

    def _wake(self) -> None:
        carrier = self._carrier
        if carrier is not None:
            carrier.wake()
            return
        self._ring()
        if self._thread is None and not self._closed and not self._guard.waits(self._job):
            self._job = self._guard.start(self._run, "etcdsem-streams")

    def _ring(self) -> None:
        try:
            self._bell.release()
        except RuntimeError:
            pass  # it rings already

    # -- the thread

    def _run(self) -> None:
        with self._lock:
            if self._thread is not None:
                return  # it was requested twice
            self._thread, self._job = threading.current_thread(), None
        try:
            self._work()
        finally:
            self._thread = None

    def _work(self) -> None:
        backoff = Backoff(SHORTEST_PAUSE, LONGEST_PAUSE)
        while not self._closed:
            if not self._wanted:
                self._bell.acquire()
                continue
            heard = False
            try:
                heard = self._one_connection()
            except Exception as error:
                if not self._closed:
                    self._log(logging.ERROR, "etcdsem: error in the streams", error=error)
            if heard:
                backoff.reset()
            if not self._closed:
                time.sleep(SHORTEST_PAUSE)
                self._bell.acquire(timeout=backoff.take(random.random()))

    def _one_connection(self) -> bool:
        """Connect, and follow the streams to their end. True if anything was received."""
        try:
            carrier = self._connect()
        except Refused as failure:
            if str(failure) != self._complaint:  # each renewal tries again
                self._complaint = str(failure)
                self._log(
                    logging.WARNING, "etcdsem: nothing can be watched or renewed: %s", failure
                )
            self._refused(failure)
            return False
        except Failure as failure:
            self._log(logging.DEBUG, "etcdsem: the streams could not be opened: %s", failure)
            self._unreached()
            return False
        try:
            return self._follow(carrier)
        finally:
            self._carrier = None
            carrier.close()
            self._disconnected()

    def _connect(self) -> Any:
        link, token = self._connection.open_streams(OPEN_TIMEOUT)
        try:
            carrier = link.transport.connect_streams(OPEN_TIMEOUT)
        except NotConnected:
            self._connection.leave(link)
            raise
        self._connected(link, token)
        self._complaint = ""
        self._carrier = carrier
        return carrier

    def _follow(self, carrier: Any) -> bool:
        heard = False
        try:
            while not self._closed and not self._restart:
                self._flush(carrier)
                news = carrier.wait()
                for stream, message in news:
                    heard = heard or not isinstance(message, RpcError)
                    self._heard(stream, message)
                self._connection.sweep()
        except RpcError as error:
            if not self._closed:
                self._log(*self._broke(error))
        return heard

    def _log(
        self, level: int, message: str, *args: object, error: BaseException | None = None
    ) -> None:
        self._guard.log(partial(log.log, level, message, *args, exc_info=error))
        self._guard.settle()
