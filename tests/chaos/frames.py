"""A proxy that parses HTTP/2 frames, and can silence the watches while everything else works."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

from tests.etcd.proxy import Proxy

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS = 0, 1


class MutingProxy(Proxy):
    """While `muted`, it drops what etcd sends on Watch streams, frame by frame.

    gRPC writes the path of a call as plain text when it is new to a connection, and a client opens
    its watch stream first on its connection for streams.
    """

    def __init__(self, target: str) -> None:
        self.muted = False
        self.silenced = 0  # number of dropped frames
        self._watches: dict[socket.socket, set[int]] = {}
        super().__init__(target)

    def _pump(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        client = source if way == "up" else sink
        watches = self._watches.setdefault(client, set())
        threading.current_thread().name = f"muting-{way}"
        try:
            if way == "up":
                sink.sendall(_exactly(source, len(_PREFACE)))
            for kind, stream, frame in _frames(source):
                if way == "up" and kind == _HEADERS and b"/etcdserverpb.Watch/Watch" in frame:
                    watches.add(stream)
                if way == "down" and kind == _DATA and self.muted and stream in watches:
                    self.silenced += 1
                    continue
                sink.sendall(frame)
        except (OSError, ValueError, EOFError):
            pass
        finally:
            for end in (source, sink):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)


def _frames(source: socket.socket) -> Iterator[tuple[int, int, bytes]]:
    while True:
        head = _exactly(source, 9)
        length = int.from_bytes(head[:3], "big")
        stream = int.from_bytes(head[5:], "big") & 0x7FFFFFFF
        yield head[3], stream, head + _exactly(source, length)


def _exactly(source: socket.socket, count: int) -> bytes:
    got = b""
    while len(got) < count:
        more = source.recv(count - len(got))
        if not more:
            raise EOFError
        got += more
    return got
