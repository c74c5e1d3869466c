"""``etcdsem exporter``: all semaphores as metrics for Prometheus, until stopped.

It runs on whatever etcd does: without etcd it serves ``etcdsem_up 0``. `collector.py` says what it
serves; here are the command and its HTTP server.
"""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING

import click

from etcdsem.cli import exit_codes
from etcdsem.cli.http_server import HttpServer, Response, Route, json_response, read_address
from etcdsem.cli.logs import log_to_stderr
from etcdsem.cli.options import connect, connection_options
from etcdsem.cli.output import say
from etcdsem.cli.signals import STOPPING, Signals
from etcdsem.errors import EtcdSemError

if TYPE_CHECKING:
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
    read_address(where, option="--listen", port_alone=False)
    _need_prometheus_client()
    signals = Signals()
    signals.install()
    signals.have_no_children()
    with connect(ctx) as client:
        from etcdsem.cli.exporter.collector import SemaphoreCollector

        log_to_stderr()
        collector = SemaphoreCollector(client)
        server = HttpServer(where, _routes(collector), option="--listen", port_alone=False)
        say(f"metrics of {client.prefix} are served on {server.url}/metrics")
        threading.Thread(target=collector.up, daemon=True).start()  # count from now on
        try:
            stopped = _until_stopped(signals)
        finally:
            server.close()
        say(f"{signal.Signals(stopped).name}: ended")
        return exit_codes.SIGNAL + stopped


def _need_prometheus_client() -> None:
    from etcdsem.metrics import prometheus_client

    try:
        prometheus_client()
    except ModuleNotFoundError as error:
        raise EtcdSemError(str(error)) from error


def _until_stopped(signals: Signals) -> int:
    """The number of the signal that said to stop."""
    while True:
        for number in signals.wait(60.0):
            if number in STOPPING:
                return number


def _routes(collector: SemaphoreCollector) -> dict[str, Route]:
    """What is served."""
    from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
    from prometheus_client.exposition import choose_encoder

    registry = CollectorRegistry()
    registry.register(collector)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)

    def metrics(accept: str) -> Response:
        encode, content_type = choose_encoder(accept)
        return Response(200, content_type, encode(registry))

    def ready(accept: str) -> Response:
        up = collector.up()
        return json_response(200 if up else 503, {"etcd": up})

    def live(accept: str) -> Response:
        return json_response(200, {"alive": True})

    return {"/metrics": metrics, "/readyz": ready, "/livez": live}
