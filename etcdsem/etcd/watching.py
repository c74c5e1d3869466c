"""The watch stream of a client, blocking: one stream, one daemon thread, any number of watches.

1. `watch` and `cancel` never block, and may be called with or without the guard held.
2. Listeners are told in the stream's thread, under the guard. The order of locks is guard, then
   ours; ours is never held while a listener is told.
3. A stream that ends is opened again, at the next endpoint if this one failed, until `close`. A
   login that is refused is not tried again before somebody asks for another watch.
"""

from __future__ import annotations

import logging
import random
import threading
from functools import partial
from typing import Any, Literal, Protocol

import grpc

from etcdsem.client_lock import ClientLock
from etcdsem.core.commands import AccessDenied, Failure, Listener
from etcdsem.etcd.connection import Connection, Stream
from etcdsem.etcd.requests import Requests, join
from etcdsem.etcd.watchbook import WatchBook, WatchEntry

log = logging.getLogger("etcdsem")

LONGEST_PAUSE = 1.0
"""Seconds between two attempts to open the stream."""


class _Remover(Protocol):
    def remove(self, entry: WatchEntry) -> None: ...


class WatchHandle:
    """A watch that can be cancelled."""

    __slots__ = ("_entry", "_stream")

    def __init__(self, stream: _Remover, entry: WatchEntry) -> None:
        self._stream = stream
        self._entry = entry

    def cancel(self) -> None:
        """The listener hears nothing more."""
        self._stream.remove(self._entry)


class WatchStream:
    """All watches of a client on one stream."""

    def __init__(self, connection: Connection, guard: ClientLock) -> None:
        self._connection = connection
        self._guard = guard
        self._lock = threading.RLock()  # a finalizer may come back
        self._book = WatchBook(connection.whoami)
        self._requests = Requests()
        self._stream: Stream | None = None
        self._running = False  # a thread was asked for
        self._thread: threading.Thread | None = None  # and has begun
        self._closed = threading.Event()

    def watch(
        self,
        listener: Listener,
        key: bytes,
        end: bytes = b"",
        *,
        start: int = 0,
        only: Literal["put", "delete"] | None = None,
    ) -> WatchHandle:
        """Ask for a watch; the stream is opened for the first one."""
        entry = WatchEntry(listener, key, end, start, only)
        with self._lock:
            self._requests.put(self._book.add(entry))
            start = not self._running and not self._closed.is_set()
            self._running = self._running or start
        if start:
            self._guard.start(self._run, "etcdsem-watch")
        return WatchHandle(self, entry)

    def remove(self, entry: WatchEntry) -> None:
        """Ask for no more of it."""
        with self._lock:
            request = self._book.remove(entry)
            if request is not None:
                self._requests.put(request)

    def close(self) -> None:
        """End the stream and its thread."""
        self._closed.set()
        with self._lock:
            stream = self._stream
            requests = self._requests
        requests.end()
        if stream is not None:
            stream.call.cancel()
        join(self._thread)
        requests.join()

    # -- the stream's thread

    def _run(self) -> None:
        self._thread = threading.current_thread()
        pause = 0.01
        while not self._closed.is_set():
            try:
                heard = self._one_stream()
            except AccessDenied as failure:
                self._log(logging.WARNING, "etcdsem: nothing can be watched: %s", failure)
                if self._give_up(failure):
                    return
                heard = False
            except Failure as failure:
                self._log(
                    logging.DEBUG, "etcdsem: the watch stream could not be opened: %s", failure
                )
                heard = False
            except Exception as error:
                if self._closed.is_set():
                    return
                self._log(logging.ERROR, "etcdsem: error in the watch stream", error=error)
                heard = False
            pause = 0.01 if heard else min(pause * 2, LONGEST_PAUSE)
            self._closed.wait(pause * (0.5 + random.random()))

    def _give_up(self, failure: Failure) -> bool:
        """All watches are refused, and the thread ends; False if one was asked for meanwhile."""
        with self._guard:
            with self._lock:
                tell = self._book.refuse_all(failure)
            for one in tell:
                one()
            with self._lock:
                if self._book.entries:
                    return False
                self._running = False
                return True

    def _log(
        self, level: int, message: str, *args: object, error: BaseException | None = None
    ) -> None:
        self._guard.log(partial(log.log, level, message, *args, exc_info=error))
        self._guard.settle()

    def _one_stream(self) -> bool:
        """Open a stream and follow it to its end. True if it said anything."""
        with self._lock:
            requests = Requests()
            for request in self._book.reopened():
                requests.put(request)
            self._requests.end()  # of the former stream
            self._requests = requests
        stream = self._connection.open_stream("watch", iter(requests), timeout=5.0)
        with self._lock:
            self._stream = stream
        heard = False
        try:
            for response in stream.call:
                heard = True
                self._connection.counters["watch_events"] += len(response.events)
                self._hear(response)
                if self._book.needs_login:
                    self._connection.forget_login(stream)
                    break
                if self._closed.is_set():
                    break
        except grpc.RpcError as error:
            if not self._closed.is_set():
                failure = self._connection.stream_broke(stream, error)
                self._log(logging.DEBUG, "etcdsem: the watch stream broke: %s", failure)
        finally:
            requests.end()
            stream.call.cancel()
            requests.join()
        return heard

    def _hear(self, response: Any) -> None:
        with self._guard:
            with self._lock:
                tell, send = self._book.heard(response)
                for request in send:
                    self._requests.put(request)
            for one in tell:
                one()
