"""A TCP server with a thread for each connection, and a bound on both."""

from __future__ import annotations

import contextlib
import socket
import threading
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, Final

MOST_CONNECTIONS: Final = 32
"""How many connections are served at a time. With more, the oldest one is dropped: a probe takes
milliseconds, so it is one that sends or reads slowly."""


class BoundedServer(ThreadingMixIn, TCPServer):
    """Serves at most `MOST_CONNECTIONS`, with at most twice as many threads."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *arguments: Any) -> None:
        self._lock = threading.Lock()
        self._running = 0
        self._open: dict[socket.socket, None] = {}  # the oldest first
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread, and drop the oldest one if there are too many."""
        if not self._admit(request):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread was started
            self._ended(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection in this thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._ended(request)

    def _admit(self, request: socket.socket) -> bool:
        oldest = None
        with self._lock:
            if self._running >= 2 * MOST_CONNECTIONS:
                return False  # those that were dropped are still being answered
            self._running += 1
            self._open[request] = None
            if len(self._open) > MOST_CONNECTIONS:
                oldest = next(iter(self._open))
                del self._open[oldest]
        if oldest is not None:
            with contextlib.suppress(OSError):  # it has just ended
                oldest.shutdown(socket.SHUT_RDWR)
        return True

    def _ended(self, request: socket.socket) -> None:
        with self._lock:
            self._running -= 1
            self._open.pop(request, None)
