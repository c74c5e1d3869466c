"""``etcdsem demo``: a dozen real jobs share a limit of 3 against a service that allows no 4th.

Everything is real: a temporary etcd, an HTTP service that answers 429 to one request too many,
and jobs that are started as ``etcdsem run ... -- python job``. The live table comes from etcd, the
chart and the count at the end from what the service itself saw.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import click

from etcdsem import interpreter
from etcdsem.cli import exit_codes
from etcdsem.cli.options import WholeNumber
from etcdsem.errors import EtcdSemError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from etcdsem.model import Status
    from etcdsem.server import EtcdServer
    from etcdsem.sync import Client

NAME = "demo-api"
COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "red")
_JOB = "import sys, urllib.request as r; r.urlopen(sys.argv[1], timeout=60).read()"


@dataclass
class Visit:
    """One request, as the service saw it."""

    job: str
    slot: int
    began: float
    ended: float | None = None


@dataclass
class Service:
    """An HTTP service that serves at most `limit` requests at a time and refuses any more."""

    limit: int
    work: float
    visits: list[Visit] = field(default_factory=list)
    refused: int = 0
    most: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _inside: int = 0

    def start(self) -> str:
        """Serve on a free loopback port, and return the URL."""
        service = self

        class ServiceHandler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                _, job, slot = self.path.split("/")
                self.send_response(200 if service.serve(job, int(slot)) else 429)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Log nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), ServiceHandler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self._server.server_port}"

    def stop(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()

    def serve(self, job: str, slot: int) -> bool:
        """Serve one request. Returns False if it was one too many."""
        with self._lock:
            if self._inside >= self.limit:
                self.refused += 1
                return False
            self._inside += 1
            self.most = max(self.most, self._inside)
            visit = Visit(job, slot, time.monotonic())
            self.visits.append(visit)
        # Jobs of different lengths, so that the chart is not a chessboard.
        time.sleep(self.work * (0.6 + 0.2 * (sum(job.encode()) % 5)))
        with self._lock:
            self._inside -= 1
            visit.ended = time.monotonic()
        return True


@click.command()
@click.option(
    "--jobs", default=12, show_default=True, type=WholeNumber(1, 50), help="Number of jobs."
)
@click.option(
    "--limit", default=3, show_default=True, type=WholeNumber(1, 20), help="Jobs at a time."
)
@click.option("--work", default=1.0, show_default=True, help="Seconds of work per job, roughly.")
@click.option("--without", is_flag=True, help="Run the jobs without etcdsem, to see them refused.")
def demo(jobs: int, limit: int, work: float, without: bool) -> None:
    """Watch a dozen real jobs share a limit of 3.

    Starts a temporary etcd, an HTTP service that refuses a 4th simultaneous request, and 12 jobs
    under `etcdsem run demo-api --limit 3`. Prints a timeline and the number of refusals at the
    end.

    \b
    Examples:
      etcdsem demo
      etcdsem demo --jobs 30 --limit 5 --work 0.5
      etcdsem demo --without
    """
    from rich.console import Console

    from etcdsem.sync import connect

    if reason := interpreter.why_not():
        raise EtcdSemError(f"cannot start the demo's jobs from here, because {reason}")
    console, service = Console(highlight=False), Service(limit, work)
    with ExitStack() as stack:
        if not without:
            etcd = _start_etcd(stack)
            client = stack.enter_context(connect(etcd.endpoint))
            console.print(f"etcd {etcd.version} on {etcd.endpoint}, for this demo only")
        url = service.start()
        stack.callback(service.stop)
        console.print(f"service on {url}: {limit} requests at a time, more get 429")
        began = time.monotonic()
        if without:
            running = [_start([sys.executable, "-c", _JOB, f"{url}/{i:02}/0"]) for i in range(jobs)]
            stack.callback(_end_all, running)
        else:
            running = [_start_under_limit(etcd.endpoint, limit, url, i) for i in range(jobs)]
            stack.callback(_end_all, running)
            _watch(console, client, running, limit)
        failed = sum(job.wait() != 0 for job in running)
    _report(console, service, jobs, failed, began)
    if failed and not without:
        sys.exit(1)


def _start_etcd(stack: ExitStack) -> EtcdServer:
    from etcdsem import server

    try:
        return stack.enter_context(server.start())
    except server.EtcdNotFound as error:
        click.echo(f"etcdsem: {error}", err=True)
        sys.exit(exit_codes.UNAVAILABLE)


def _start(command: list[str], **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _start_under_limit(endpoint: str, limit: int, url: str, number: int) -> subprocess.Popen[bytes]:
    run = ("run", NAME, "--limit", str(limit), "--label", f"job={number:02}")
    wrapper = interpreter.python("from etcdsem.cli.main import main; main()", *run)
    work = f"import os, sys\nsys.argv[1] += os.environ['ETCDSEM_SLOT']\n{_JOB}"
    command = [sys.executable, "-c", work, f"{url}/{number:02}/"]
    return _start([*wrapper, "--", *command], ETCDSEM_ENDPOINTS=endpoint)


def _end_all(running: list[subprocess.Popen[bytes]]) -> None:
    for job in running:
        if job.poll() is None:
            job.terminate()
    for job in running:
        job.wait()


# ---------------------------------------------------------------- the picture


def _watch(
    console: Console, client: Client, running: list[subprocess.Popen[bytes]], limit: int
) -> None:
    from rich.live import Live

    from etcdsem.errors import SemaphoreClosed

    with Live(console=console, refresh_per_second=10, transient=True) as live:
        while any(job.poll() is None for job in running):
            try:
                live.update(_picture(client.status(NAME, ttl=False), running, limit))
            except SemaphoreClosed:
                pass  # no job has registered it yet
            time.sleep(0.1)


def _picture(status: Status, running: list[subprocess.Popen[bytes]], limit: int) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"semaphore {status.name}: {status.held} of {limit} held", min_width=58)
    table.add_column("slot", justify="right")
    table.add_column("held by")
    table.add_column("fencing token", justify="right")
    holders = {holder.slot: holder for holder in status.holders}
    for slot in range(limit):
        holder = holders.get(slot)
        shown = f"job {holder.labels.get('job', '?')} (pid {holder.pid})" if holder else "free"
        style = COLOURS[slot % len(COLOURS)] if holder else "dim"
        token = str(holder.fencing_token) if holder else ""
        table.add_row(str(slot), Text(shown, style=style), token)
    queue = " ".join(waiter.labels.get("job", "?") for waiter in status.waiters)
    done = sum(job.poll() is not None for job in running)
    table.caption = f"queue: {queue or '-'}   done: {done} of {len(running)}"
    return table


def _report(console: Console, service: Service, jobs: int, failed: int, began: float) -> None:
    from rich.text import Text

    ended = max((visit.ended or began for visit in service.visits), default=began)
    first = min((visit.began for visit in service.visits), default=began)
    width = max(20, min(console.width - 12, 90))
    scale = width / max(0.001, ended - first)
    console.print("\nwhat the service saw (digits are slots, time runs to the right):")
    for visit in sorted(service.visits, key=lambda visit: visit.began):
        start = int((visit.began - first) * scale)
        length = max(1, int(((visit.ended or ended) - visit.began) * scale))
        line = Text(f"job {visit.job} |" + " " * start)
        line.append(str(visit.slot) * length, style=COLOURS[visit.slot % len(COLOURS)])
        console.print(line, no_wrap=True, overflow="crop")
    served = len(service.visits)
    style = "bold green" if service.refused == 0 and not failed else "bold red"
    console.print(
        f"jobs: {jobs}   served: {served}   most at a time: {service.most} (limit {service.limit})"
        f"   in {ended - began:.1f} s"
    )
    console.print(Text(f"refusals: {service.refused}", style=style))
