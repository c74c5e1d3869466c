"""The HTTP server of probes and scrapes: what bounds its connections and threads."""

from __future__ import annotations

import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from etcdsem.cli.bounded_server import MOST_CONNECTIONS
from etcdsem.cli.http_server import HttpServer, Response, json_response
from tests.helpers.waiting import eventually

MANY = 159


@contextmanager
def serving(route: Callable[[], object]) -> Iterator[HttpServer]:
    """A server whose path /x calls a function."""

    def answer(accept: str) -> Response:
        route()
        return json_response(200, {})

    server = HttpServer("127.0.0.1:0", {"/x": answer}, option="--listen", port_alone=False)
    try:
        yield server
    finally:
        server.close()


def threads() -> int:
    """How many threads serve connections."""
    return sum("process_request_thread" in thread.name for thread in threading.enumerate())


def send(stack: ExitStack, server: HttpServer, text: bytes) -> socket.socket:
    """A connection that has sent something."""
    connection = stack.enter_context(socket.create_connection((server.host, server.port)))
    connection.sendall(text)
    return connection


def get(server: HttpServer) -> int:
    """The status of an answer."""
    with urllib.request.urlopen(f"{server.url}/x", timeout=10) as answer:
        return int(answer.status)


def test_connections_that_send_slowly_are_dropped() -> None:
    """The oldest go first; a probe is answered."""
    with serving(lambda: None) as server, ExitStack() as stack:
        slow = [send(stack, server, b"GET /x HTTP/1.1\r\nX: ") for _ in range(MANY)]
        assert get(server) == 200
        eventually(lambda: threads() < MOST_CONNECTIONS)
        slow[0].settimeout(10)
        assert slow[0].recv(1) == b""
        slow[-1].sendall(b"y\r\n\r\n")
        slow[-1].settimeout(10)
        assert slow[-1].recv(12) == b"HTTP/1.0 200"


def test_answers_that_take_long_have_a_bound() -> None:
    """Even those of connections that were dropped; after that all is as before."""
    go = threading.Event()
    with serving(go.wait) as server, ExitStack() as stack:
        for _ in range(MANY):
            send(stack, server, b"GET /x HTTP/1.1\r\n\r\n")
        eventually(lambda: threads() == 2 * MOST_CONNECTIONS)
        last = send(stack, server, b"GET /x HTTP/1.1\r\n\r\n")
        last.settimeout(10)
        assert last.recv(1) == b""  # refused at once, so all of them were seen
        assert threads() == 2 * MOST_CONNECTIONS
        go.set()
        eventually(lambda: threads() == 0)
        assert get(server) == 200
