"""How a sidecar tells its neighbours that the lease is held: a file, and a port for probes.

1. The file is there while the lease is held, and at no other time: one line of JSON, written aside
   and moved into place, so nobody reads half of it. It is removed before the lease is given back.
2. A holder that is killed or stopped cannot remove it. So the file says until when the lease is
   good (`good_until`, on the machine's clock since boot), and is written again with each renewal:
   a file whose time has passed means nothing, see `check()`.
3. ``GET /readyz``: 200 and the same JSON while the lease is held, else 503. ``GET /livez``: 200 as
   long as there is anybody to answer.
"""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from etcdsem.cli.json_output import stamp
from etcdsem.cli.output import say
from etcdsem.clock import boot_time
from etcdsem.errors import InvalidSetting
from etcdsem.posix import boot_id

if TYPE_CHECKING:
    from socketserver import BaseRequestHandler, TCPServer

    from etcdsem import Lease

ReadyData = Mapping[str, Any]


def ready_data(lease: Lease, good_for: float) -> ReadyData:
    """What is told of a lease that is good for so many seconds; described in docs/cli.md."""
    return {
        "name": lease.name,
        "slot": lease.slot,
        "slots": list(lease.slots),
        "limit": lease.limit,
        "fencing_token": lease.fencing_token,
        "lease": lease.id,
        "acquired_at": stamp(lease.acquired_at),
        "ttl": lease.ttl,
        "pid": os.getpid(),
        "boot_id": boot_id(),
        "good_until": round(boot_time() + good_for, 3),
    }


class ReadyFile:
    """The file at `path`, ours from now on: what an earlier holder left there is removed."""

    def __init__(self, path: str) -> None:
        """Raises InvalidSetting if nothing could be written there."""
        self._path = path
        self._aside_path = f"{path}.{os.getpid()}.tmp"
        self._failed = False
        try:
            if os.path.exists(path) and not os.path.isfile(path):
                raise OSError(errno.EEXIST, "what is there is no file")
            self._aside(b"")  # to see that it can be done, before queueing for it
            _remove(self._aside_path)
            self.remove()
        except OSError as error:
            raise InvalidSetting(f"--ready-file {path}: {error.strerror}") from None

    def show(self, told: ReadyData) -> bool:
        """Write it. False if that fails; a file that was there goes stale by itself."""
        try:
            self._write(json.dumps(told).encode() + b"\n")
        except OSError as error:
            if not self._failed:
                say(f"cannot write --ready-file {self._path}: {error.strerror}")
            self._failed = True
            return False
        self._failed = False
        return True

    def _write(self, text: bytes) -> None:
        self._aside(text)
        try:
            os.replace(self._aside_path, self._path)
        except OSError:
            _remove(self._aside_path)
            raise

    def _aside(self, text: bytes) -> None:
        try:
            with open(self._aside_path, "wb") as file:
                file.write(text)
        except OSError:
            _remove(self._aside_path)
            raise

    def remove(self) -> None:
        """See to it that it is not there."""
        _remove(self._path)


def check(path: str) -> str | None:
    """None if the ready file says that the lease is held now; else what is wrong."""
    try:
        with open(path, encoding="utf-8") as file:
            told = json.load(file)
        until, boot = float(told["good_until"]), told["boot_id"]
    except OSError as error:
        return f"{path}: {error.strerror}"
    except (ValueError, KeyError, TypeError):
        return f"{path}: it is no ready file"
    if boot != boot_id():
        return f"{path}: it was written before the machine started"
    if boot_time() >= until:
        return f"{path}: its holder has not refreshed it for too long"
    return None


class ReadyPort:
    """An HTTP server for probes, on all addresses or on one."""

    def __init__(self, where: str, told: Callable[[], ReadyData | None]) -> None:
        """`where` is PORT or HOST:PORT; `told` gives what is held. Raises InvalidSetting."""
        host, port = _address(where)
        try:
            self._server = listen(host, port, _handler(told))
        except OSError as error:
            reason = error.strerror or error
            raise InvalidSetting(f"--ready-port {where}: {reason}") from None
        self.port = int(self._server.server_address[1])
        threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="ready-port", daemon=True
        ).start()

    def close(self) -> None:
        """Answer no more."""
        self._server.server_close()


def _handler(told: Callable[[], ReadyData | None]) -> type[BaseRequestHandler]:
    """What answers one probe."""
    from http.server import BaseHTTPRequestHandler

    class Probe(BaseHTTPRequestHandler):
        timeout = 10  # who connects and says nothing is not waited for
        server_version, sys_version = "etcdsem", ""

        def do_GET(self) -> None:
            now = told()
            match self.path.partition("?")[0]:
                case "/readyz":
                    self._answer(200 if now else 503, now or {"held": False})
                case "/livez":
                    self._answer(200, {"held": now is not None})
                case _:
                    self._answer(404, {"paths": ["/readyz", "/livez"]})

        do_HEAD = do_GET

        def _answer(self, code: int, body: ReadyData) -> None:
            text = json.dumps(body).encode() + b"\n"
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            """A probe every second is no news."""

    return Probe


def listen(host: str, port: int, handler: type[BaseRequestHandler]) -> TCPServer:
    """On one address, or on every one: of both families, where there is IPv6.

    Not `http.server.HTTPServer`, which asks the DNS for a name of ours that nobody wants.
    """
    import socket
    from socketserver import TCPServer, ThreadingMixIn

    everywhere = not host and socket.has_dualstack_ipv6()

    class Server(ThreadingMixIn, TCPServer):
        address_family = socket.AF_INET6 if everywhere or ":" in host else socket.AF_INET
        allow_reuse_address = True
        daemon_threads = True

        def server_bind(self) -> None:
            if everywhere:
                self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            super().server_bind()

        def handle_error(self, *_: object) -> None:
            """A prober that went away is no news either."""

    return Server((host, port), handler)


def _address(where: str) -> tuple[str, int]:
    host, _, port = where.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise InvalidSetting(f"--ready-port {where!r}: give PORT or HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass
