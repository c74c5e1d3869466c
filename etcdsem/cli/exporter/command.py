"""``etcdsem exporter``: serve metrics of all semaphores for Prometheus, until stopped.

It keeps running while etcd is unreachable, and then serves ``etcdsem_up 0``. `collector.py` defines
the metrics; this module has the command and its HTTP server.
"""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING

import click

from etcdsem.cli import exit_codes
from etcdsem.cli.http_server import (
    HttpServer,
    Pages,
    Response,
    Route,
    json_response,
    no_pages,
    read_address,
)
from etcdsem.cli.logs import log_to_stderr
from etcdsem.cli.options import connect, connection_options
from etcdsem.cli.output import say
from etcdsem.cli.signals import STOPPING, Signals
from etcdsem.errors import EtcdSemError

if TYPE_CHECKING:
    from etcdsem import Client
    from etcdsem.cli.exporter.collector import SemaphoreCollector

DEFAULT_LISTEN = "127.0.0.1:9379"


@click.command(short_help="Serve metrics of all semaphores for Prometheus.")
@click.option(
    "--listen",
    "where",
    metavar="[HOST]:PORT",
    default=DEFAULT_LISTEN,
    help="Address to serve on, without authentication. In a pod use :9379, i.e. all addresses. "
    f"Port 0 picks a free port.  [{DEFAULT_LISTEN}]",
)
@click.option(
    "--web/--no-web",
    default=None,
    help="Also serve the pages, which show owners and labels.  [only on a loopback address]",
)
@connection_options
@click.pass_context
def exporter(ctx: click.Context, /, where: str, web: bool | None) -> int:
    """Serve metrics of all semaphores below the prefix for Prometheus, until stopped.

    Also serves a page for people: / has what `top` shows, with a link to the holders and waiters of
    each semaphore. /api/status is the JSON of `ls`, /api/status/NAME that of `status NAME`.

    /metrics has the limit, holders, waiters, oldest wait, grants, losses and more of each
    semaphore; see docs/metrics.md. /livez returns 200 while the exporter runs. /readyz returns 200
    while etcd answers, else 503. Without etcd, /metrics has etcdsem_up 0.

    It only reads, so a role with read permission on the prefix is enough. It watches etcd, so
    scrapes are cheap. Run one exporter per prefix. Requires prometheus-client:
    pip install 'etcdsem[metrics]'.

    \b
    Examples:
      etcdsem exporter
      etcdsem exporter --listen :9379 --web --endpoints https://etcd-0:2379

    \b
    Exit codes: 128+N if stopped by signal N (INT, QUIT, TERM, HUP);
      64 usage error, or it cannot listen on the address
      1  prometheus-client is not installed
    """
    read_address(where, option="--listen", port_alone=False)
    _need_prometheus_client()
    return _serve(ctx, where, web)


def _serve(ctx: click.Context, where: str, web: bool | None) -> int:
    signals = Signals()
    signals.install()
    signals.have_no_children()
    with connect(ctx) as client:
        from etcdsem.cli.exporter.collector import SemaphoreCollector

        log_to_stderr()
        collector = SemaphoreCollector(client)
        pages = _pages(client, collector, where, web)
        routes = _routes(collector)
        server = HttpServer(where, routes, option="--listen", port_alone=False, pages=pages)
        say(f"serving metrics of {client.prefix} on {server.url}/metrics")
        if pages is not no_pages:
            say(f"serving pages for a browser on {server.url}/")
        threading.Thread(target=collector.up, daemon=True).start()  # start counting now
        try:
            stopped = _until_stopped(signals)
        finally:
            server.close()
        say(f"{signal.Signals(stopped).name}: stopped")
        return exit_codes.by_signal(stopped)


def _need_prometheus_client() -> None:
    from etcdsem.metrics import prometheus_client

    try:
        prometheus_client()
    except ModuleNotFoundError as error:
        raise EtcdSemError(str(error)) from error


def _until_stopped(signals: Signals) -> int:
    """Wait for a signal to stop, and return its number."""
    while True:
        for number in signals.wait(60.0):
            if number in STOPPING:
                return number


def _pages(client: Client, collector: SemaphoreCollector, where: str, web: bool | None) -> Pages:
    from etcdsem.cli.exporter import pages

    host, _ = read_address(where, option="--listen", port_alone=False)
    if web or (web is None and pages.is_loopback(host)):
        return pages.Pages(client, collector.mirror, any_host=bool(web))
    return no_pages


def _routes(collector: SemaphoreCollector) -> dict[str, Route]:
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
