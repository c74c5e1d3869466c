"""A small HTTP server for probes and scrapes: one function per path.

It does no DNS lookups and keeps no log. It answers GET and HEAD; a path without a function may be a
page, and any other path gets a 404 that lists the known paths.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from etcdsem.errors import InvalidSetting

if TYPE_CHECKING:
    from socketserver import BaseRequestHandler, TCPServer


class Response(NamedTuple):
    """The response to one request."""

    status: int
    content_type: str
    body: bytes
    headers: Mapping[str, str] = MappingProxyType({})
    """Further headers."""


Route = Callable[[str], Response]
"""Called with the request's Accept header."""

Pages = Callable[[str, str], Response | None]
"""Called with the path and the Host header of a request that has no `Route`; may return None."""


def no_pages(path: str, host: str) -> None:
    """Have no pages."""


def json_response(status: int, data: Mapping[str, Any]) -> Response:
    """Return a response of one line of JSON."""
    return Response(status, "application/json", json.dumps(data).encode() + b"\n")


class HttpServer:
    """Serves until `close()`, in threads of its own."""

    def __init__(
        self,
        where: str,
        routes: Mapping[str, Route],
        *,
        option: str,
        port_alone: bool,
        pages: Pages = no_pages,
    ) -> None:
        """Listen on `where`, see `read_address()`; without a host on all addresses.

        Raises:
            InvalidSetting: it cannot listen there; the message names `option`.
        """
        host, port = read_address(where, option=option, port_alone=port_alone)
        try:
            self._server = _listen(host, port, _handler(routes, pages))
        except OSError as error:
            reason = error.strerror or error
            raise InvalidSetting(f"{option} {where}: cannot listen: {reason}") from None
        address = self._server.server_address
        self.host, self.port = str(address[0]), int(address[1])
        threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="http-server", daemon=True
        ).start()

    @property
    def url(self) -> str:
        """The base URL of the server."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()


def read_address(where: str, *, option: str, port_alone: bool) -> tuple[str, int]:
    """Split HOST:PORT, or a bare PORT if `port_alone`; the host may be empty.

    Raises:
        InvalidSetting: it has another form; the message names `option`.
    """
    host, colon, port = where.rpartition(":")
    is_port = port.isascii() and port.isdigit() and int(port) <= 65535
    if not is_port or not (colon or port_alone):
        form = "PORT or HOST:PORT" if port_alone else "HOST:PORT, or :PORT for every address"
        raise InvalidSetting(f"invalid {option} {where!r}: expected {form}")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _handler(routes: Mapping[str, Route], pages: Pages) -> type[BaseRequestHandler]:
    from http.server import BaseHTTPRequestHandler

    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # for a client that connects and sends nothing
        server_version, sys_version = "etcdsem", ""

        def do_GET(self) -> None:
            route = routes.get(self.path.partition("?")[0])
            answer = (
                route(self.headers.get("Accept", ""))
                if route is not None
                else pages(self.path, self.headers.get("Host", ""))
            ) or json_response(404, {"paths": list(routes)})
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Type", answer.content_type)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            """Log nothing: probes come every second."""

    return Handler


def _listen(host: str, port: int, handler: type[BaseRequestHandler]) -> TCPServer:
    """Listen on one address, or on all: of both families if IPv6 is available.

    Does not use `http.server.HTTPServer`, which looks up a DNS name for the host that is not used.
    """
    import socket

    from etcdsem.cli.bounded_server import BoundedServer

    everywhere = not host and socket.has_dualstack_ipv6()

    class Server(BoundedServer):
        address_family = socket.AF_INET6 if everywhere or ":" in host else socket.AF_INET
        allow_reuse_address = True

        def server_bind(self) -> None:
            if everywhere:
                self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            super().server_bind()

        def handle_error(self, *_: object) -> None:
            """Ignore clients that went away."""

    return Server((host, port), handler)
