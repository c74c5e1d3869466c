"""``etcdsem hold``: keep a lease until stopped, and let the neighbours know. For sidecars.

    in line ──granted──> held ──INT, QUIT, TERM, HUP──> given back, 0
                          └──lost, or nearly──> not ready ──> 70 (or, with warn, until stopped)

1. "Ready" (see `ready_file.py`) is said only while the lease is surely held by the local clock, and
   taken back `--notice` before it could end: those who stop at that have so long to do it.
2. At a stop "ready" is taken back first, then the lease is given back, at once.
"""

from __future__ import annotations

import json
import signal
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from etcdsem.cli import exit_codes
from etcdsem.cli.logs import quiet_library
from etcdsem.cli.options import connection_options, name_argument
from etcdsem.cli.output import echo, flush, say
from etcdsem.cli.run.acquire_worker import connect_for, give_back, stopped_in_line, wait_for_lease
from etcdsem.cli.run.ready_file import ReadyData, ReadyFile, check, ready_data, serve_ready
from etcdsem.cli.run.request import LeaseRequest, read_grace, read_request, request_options
from etcdsem.cli.run.supervisor import ends_soon, slack
from etcdsem.cli.signals import STOPPING, Signals, Stopped

if TYPE_CHECKING:
    from etcdsem import Client, Lease


class _Plan(NamedTuple):
    request: LeaseRequest
    terminate: bool
    notice: float
    file: str | None
    port: str | None
    as_json: bool


def _check_now(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    """``--check PATH``: the whole command, whatever else is given."""
    if value is None or ctx.resilient_parsing:
        return
    wrong = check(value)
    if wrong is not None:
        say(f"not held: {wrong}")
    ctx.exit(exit_codes.OK if wrong is None else exit_codes.NOT_DONE)


@click.command(short_help="Keep a lease until stopped: for sidecars.")
@request_options
@click.option(
    "--ready-file",
    metavar="PATH",
    help="Write PATH while the lease is held: one line of JSON that tells of it.",
)
@click.option(
    "--ready-port",
    metavar="[HOST:]PORT",
    help="Serve /readyz (200 while the lease is held, else 503) and /livez there.",
)
@click.option(
    "--on-lost",
    type=click.Choice(["terminate", "warn"]),
    default="terminate",
    help="When the lease is lost: end, with code 70, or stay without ever being ready again, "
    "until stopped.  [terminate]",
)
@click.option(
    "--notice",
    metavar="DURATION",
    help="A lease that cannot be refreshed counts as lost that long before it ends: the time "
    "for others to stop.  [5s, or a third of --lease-timeout]",
)
@click.option(
    "--check",
    metavar="PATH",
    is_eager=True,
    expose_value=False,
    callback=_check_now,
    help="Instead of all this: does the ready file PATH say that the lease is held now? Exit "
    "code 0 or 1, without asking etcd. A probe for images that have no other program.",
)
@click.option("--json", "as_json", is_flag=True, help="When granted, print the lease as JSON.")
@connection_options
@name_argument
@click.pass_context
def hold(ctx: click.Context, /, **given: Any) -> int:
    """Wait for a lease of the semaphore NAME and keep it until stopped.

    For work that cannot be wrapped by `etcdsem run`: as a Kubernetes sidecar (an init container
    with restartPolicy Always) its startup probe keeps the main container from starting before the
    lease is held, and the lease ends with the pod. The main container may take /readyz as its
    liveness probe, and so is ended when the lease is lost.

    \b
    Examples:
      etcdsem hold gpu -l 3 --ready-port 8086
      etcdsem hold gpu -l 3 --ready-file /run/etcdsem/ready
      etcdsem hold --check /run/etcdsem/ready                is it held?
      etcdsem hold maintenance -l 1 -n && echo it was ours   in a terminal: Ctrl-C gives it back

    INT, QUIT, TERM and HUP give the lease back at once, and the exit code is 0; while it waits
    they leave the line, with 128+N. If this process is killed, the slot is free after
    --lease-timeout; the ready file then says so by itself to --check.

    \b
    Exit codes:
      0  stopped while it held            75 gave up waiting (see -E)
      64 usage                            77 etcd refuses the credentials or the key
      69 etcd cannot be reached           78 not registered, or with another limit
      70 the lease was lost               1  the ready file cannot be written
      128+N stopped by signal N while it waited

    Durations are seconds, or like 250ms, 30s, 1m30s, 2h.
    """
    return _run(ctx, _plan(**given))


def _plan(
    *,
    on_lost: str,
    notice: str | None,
    ready_file: str | None,
    ready_port: str | None,
    as_json: bool,
    **given: Any,
) -> _Plan:
    request = read_request(**given)
    return _Plan(
        request=request,
        terminate=on_lost == "terminate",
        notice=read_grace("--notice", notice, request),
        file=ready_file,
        port=ready_port,
        as_json=as_json,
    )


def _run(ctx: click.Context, plan: _Plan) -> int:
    signals = Signals()
    signals.install()
    signals.have_no_children()
    client = connect_for(ctx, plan.request)
    quiet_library()
    holding = _Holding(plan, client, signals)
    try:
        return holding.run()
    except Stopped as stopped:
        return stopped_in_line(stopped, plan.request.name)
    finally:
        holding.end()


class _Holding:
    """From the line to the end."""

    def __init__(self, plan: _Plan, client: Client, signals: Signals) -> None:
        self._plan = plan
        self._client = client
        self._signals = signals
        self._lease: Lease | None = None
        self._lock = threading.Lock()
        self._ready = False  # guarded by the lock, for the port's threads
        self._file = None if plan.file is None else ReadyFile(plan.file)
        self._port = None if plan.port is None else serve_ready(plan.port, self._told)

    def run(self) -> int:
        """Gives the exit code."""
        request = self._plan.request
        if self._port is not None and not request.quiet:
            say(f"probes are answered on port {self._port.port}: /readyz, /livez")
        lease = self._lease = wait_for_lease(request, self._client, self._signals)
        if lease is None:
            return request.conflict_code
        self._signals.stop(0)  # a last look: nobody was told yet
        if not self._announce(lease):
            return exit_codes.NOT_DONE
        stopped = self._keep(lease)
        self._withdraw()
        if stopped is not None:
            if not request.quiet:
                say(f"{request.name}: {signal.Signals(stopped).name}, the lease is given back")
            return exit_codes.OK
        if not lease.valid:
            reason = lease.lost_reason or "it could not be refreshed in time"
            say(f"the lease on {request.name!r} was lost: {reason}")
        if not self._plan.terminate:
            say("WARNING: it stays lost until this is stopped")
            while not set(self._signals.wait(60.0)) & set(STOPPING):
                pass
        return exit_codes.LOST

    def end(self) -> None:
        """Let go of everything that is still held."""
        self._withdraw()
        give_back(self._plan.request.name, self._lease, self._client)
        if self._port is not None:
            self._port.close()

    def _announce(self, lease: Lease) -> bool:
        told = ready_data(lease, self._good_for(lease))
        if self._file is not None and not self._file.show(told):
            return False
        with self._lock:
            self._ready = True
        if self._plan.as_json:
            echo(json.dumps(told))
            flush()
        elif not self._plan.request.quiet:
            say(
                f"{lease.name}: {lease._slots_shown()} of {lease.limit} "
                f"{'is' if lease.weight == 1 else 'are'} held "
                f"(fencing token {lease.fencing_token}, lease {lease.id})"
            )
        return True

    def _keep(self, lease: Lease) -> int | None:
        """Until a signal says to stop (its number) or the lease is lost (None)."""
        tick = max(0.05, min(1.0, lease.ttl / 10))
        shown = 0.0
        while (left := self._good_for(lease)) > 0:
            for number in self._signals.wait(min(tick, left)):
                if number in STOPPING:
                    return number
            told = ready_data(lease, self._good_for(lease))
            if self._file is not None and told["good_until"] > shown + 0.1 and lease.valid:
                shown = told["good_until"]
                self._file.show(told)
        if lease.valid:
            say(ends_soon(lease.name, lease))
        return None

    def _good_for(self, lease: Lease) -> float:
        """Seconds for which it counts as held."""
        if not lease.valid:
            return 0.0
        return max(0.0, lease.remaining - self._plan.notice - slack(lease.ttl))

    def _withdraw(self) -> None:
        with self._lock:
            self._ready = False
        if self._file is not None:
            self._file.remove()

    def _told(self) -> ReadyData | None:
        """What the port says; decided anew for each probe, also when the main thread is busy."""
        with self._lock:
            lease = self._lease if self._ready else None
        if lease is None:
            return None
        good = self._good_for(lease)
        return ready_data(lease, good) if good > 0 else None
