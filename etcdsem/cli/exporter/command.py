"""``etcdsem exporter``: all semaphores as metrics for Prometheus, until stopped.

It runs on whatever etcd does: without etcd it serves ``etcdsem_up 0``. `collector.py` says what it
serves; here are the command and its HTTP server.
"""

from __future__ import annotations

import json
import signal
import threading
from typing import TYPE_CHECKING, Any

import click

from etcdsem.cli import exit_codes
from etcdsem.cli.logs import log_to_stderr
from etcdsem.cli.options import connect, connection_options
from etcdsem.cli.output import clean, say
from etcdsem.cli.run.ready_file import listen
from etcdsem.cli.signals import STOPPING, Signals
from etcdsem.errors import EtcdSemError, InvalidSetting

if TYPE_CHECKING:
    from socketserver import BaseRequestHandler, TCPServer

    from etcdsem.cli.exporter.collector import SemaphoreCollector

DEFAULT_LISTEN = "127.0.0.1:9379"


@click.command(short_help="Serve metrics of all semaphores for Prometheus.")
@click.option(
    "--listen",
    "where",
    metavar="[HOST]:PORT",
    default=DEFAULT_LISTEN,
    help="Where to serve. In a pod: :9379, which is every address; there is no password. Port 0 "
    f"takes a free one.  [{DEFAULT_LISTEN}]",
)
@connection_options
@click.pass_context
def exporter(ctx: click.Context, /, where: str) -> int:
    """Serve metrics of all semaphores below the prefix for Prometheus, until stopped.

    /metrics has, for each semaphore, limit, held, waiting, oldest wait, grants, losses and more;
    docs/metrics.md explains each. /livez answers 200 as long as the exporter runs, /readyz as
    long as etcd answers, else 503. Without etcd, /metrics says etcdsem_up 0.

    It only reads: a role that may read the prefix is enough. It watches etcd, so a scrape costs
    little; one exporter for each prefix is enough. It needs prometheus-client:
    pip install 'etcdsem[metrics]'.

    \b
    Examples:
      etcdsem exporter
      etcdsem exporter --listen :9379 --endpoints https://etcd-0:2379 --cacert ca.crt

    \b
    Exit codes: 128+N when signal N stopped it (INT, QUIT, TERM, HUP)
      64 usage; the address cannot be served
      1  prometheus-client is not installed
    """
    host, port = _address(where)
    _need_prometheus_client()
    signals = Signals()
    signals.install()
    signals.have_no_children()
    with connect(ctx) as client:
        from etcdsem.cli.exporter.collector import SemaphoreCollector

        log_to_stderr()
        collector = SemaphoreCollector(client)
        try:
            server = listen(host, port, _handler(collector))
        except OSError as error:
            raise InvalidSetting(f"--listen {where}: {error.strerror or error}") from None
        address, port = server.server_address[:2]
        say(f"metrics of {client.prefix} are served on http://{_shown(address)}:{port}/metrics")
        threading.Thread(target=collector.up, daemon=True).start()  # count from now on
        stopped = _serve(server, signals)
        say(f"{signal.Signals(stopped).name}: ended")
        return exit_codes.SIGNAL + stopped


def _serve(server: TCPServer, signals: Signals) -> int:
    """Until a signal says to stop; gives its number."""
    threading.Thread(target=server.serve_forever, args=(0.1,), name="exporter", daemon=True).start()
    try:
        while True:
            for number in signals.wait(60.0):
                if number in STOPPING:
                    return number
    finally:
        server.shutdown()
        server.server_close()


def _need_prometheus_client() -> None:
    from etcdsem.metrics import prometheus_client

    try:
        prometheus_client()
    except ModuleNotFoundError as error:
        raise EtcdSemError(str(error)) from error


def _address(where: str) -> tuple[str, int]:
    host, colon, port = where.rpartition(":")
    if not (colon and port.isascii() and port.isdigit() and int(port) <= 65535):
        raise InvalidSetting(f"--listen {where!r}: give HOST:PORT, or :PORT for every address")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _shown(host: object) -> str:
    text = clean(host)
    return f"[{text}]" if ":" in text else text


def _handler(collector: SemaphoreCollector) -> type[BaseRequestHandler]:
    """What answers one request."""
    from http.server import BaseHTTPRequestHandler

    from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
    from prometheus_client.exposition import choose_encoder

    registry = CollectorRegistry()
    registry.register(collector)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)

    class Answer(BaseHTTPRequestHandler):
        timeout = 10  # who connects and says nothing is not waited for
        server_version, sys_version = "etcdsem", ""

        def do_GET(self) -> None:
            match self.path.partition("?")[0]:
                case "/metrics":
                    encode, kind = choose_encoder(self.headers.get("Accept", ""))
                    self._answer(200, kind, encode(registry))
                case "/readyz":
                    up = collector.up()
                    self._answer_json(200 if up else 503, {"etcd": up})
                case "/livez":
                    self._answer_json(200, {"alive": True})
                case _:
                    self._answer_json(404, {"paths": ["/metrics", "/readyz", "/livez"]})

        do_HEAD = do_GET

        def _answer_json(self, code: int, body: dict[str, Any]) -> None:
            self._answer(code, "application/json", json.dumps(body).encode() + b"\n")

        def _answer(self, code: int, kind: str, body: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """A scrape every half minute is no news."""

    return Answer


__all__ = ["exporter"]
