"""A TCP proxy on loopback that can hold, drop or reset what passes through it."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from types import TracebackType
from typing import Self


class Proxy:
    """Passes bytes both ways between its clients and one address, unless told otherwise.

    `up` (to the server) and `down` (to the client) are each "pass", "hold" (keep, and deliver
    later) or "drop" (throw away).
    """

    def __init__(self, target: str, *, host: str = "127.0.0.1", port: int = 0) -> None:
        target_host, _, target_port = target.rpartition(":")
        self._target = (target_host, int(target_port))
        self._listener = socket.create_server((host, port))
        self.endpoint = f"{host}:{self._listener.getsockname()[1]}"
        self.up = "pass"
        self.down = "pass"
        self.failing = 0  # so many of the next connections break as soon as they are made
        self.passed_up = threading.Event()  # something has gone to the server
        self._lock = threading.Lock()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closed = True
        self._listener.close()
        self.reset()

    def reset(self) -> None:
        """Break all connections."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
                if self.failing:
                    self.failing -= 1
                    client.close()
                    continue
                server = socket.create_connection(self._target, 5)
            except OSError:
                continue
            with self._lock:
                self._pairs.append((client, server))
            threading.Thread(target=self._pump, args=(client, server, "up"), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client, "down"), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        held = b""
        try:
            while not self._closed:
                if getattr(self, way) != "hold" and held:
                    sink.sendall(held)
                    held = b""
                if not select.select([source], [], [], 0.02)[0]:
                    continue
                data = source.recv(65536)
                if not data:
                    break
                mode = getattr(self, way)
                if mode == "hold":
                    held += data
                elif mode == "pass":
                    if way == "up":
                        self.passed_up.set()
                    sink.sendall(data)
        except (OSError, ValueError):
            pass
        finally:
            for end in (source, sink):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
