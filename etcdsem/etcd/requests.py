"""What a stream sends, and the thread that sends it.

gRPC takes a stream's requests from an iterator, in a thread of its own. A daemon thread that is
still in gRPC when the interpreter ends may die holding a lock of the stream, and the stream's
`__del__` then waits for that lock for ever (seen once in thirty exits). So whoever closes a
stream waits for its threads.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

JOIN_TIMEOUT = 1.0
"""Seconds to wait for a thread of a stream that was cancelled."""


class Requests:
    """The requests of one stream, in order, until `end`."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Any] = SimpleQueue()
        self._sender: threading.Thread | None = None

    def put(self, request: Any) -> None:
        """Send a request; never blocks."""
        self._queue.put(request)

    def end(self) -> None:
        """Send no more."""
        self._queue.put(None)

    def __iter__(self) -> Iterator[Any]:
        self._sender = threading.current_thread()
        while (request := self._queue.get()) is not None:
            yield request

    def join(self) -> None:
        """Wait until gRPC's thread has ended."""
        join(self._sender)


def join(thread: threading.Thread | None) -> None:
    """Wait for a thread, unless it is our own."""
    if thread is not None and thread is not threading.current_thread():
        thread.join(JOIN_TIMEOUT)
