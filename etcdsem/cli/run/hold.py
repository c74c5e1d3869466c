"""``etcdsem hold``: keep a lease until stopped, and tell other containers. For sidecars.

    waiting ──granted──> held ──INT, QUIT, TERM, HUP──> released, 0
                          └──lost, or about to be──> not ready ──> 70 (or when it is stopped)

1. It reports "ready" (see `ready_file.py`) only while the lease is certainly held by the local
   clock, and withdraws it `--notice` before the lease could end, so that the work has that long to
   stop.
2. On a stop it first withdraws "ready", then releases the lease, at once.
3. With ``--on-lost kill-pod`` the work is killed before "ready" is withdrawn, so that no probe can
   end it in a way that counts as success; and also at the start, when a sidecar that was killed
   with its lease is started again beside its work.
"""

from __future__ import annotations

import json
import signal
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from etcdsem.cli import exit_codes
from etcdsem.cli.arguments import name_argument
from etcdsem.cli.logs import quiet_library
from etcdsem.cli.options import connection_options
from etcdsem.cli.output import echo, flush, say, span
from etcdsem.cli.run.acquire_worker import (
    connect_for,
    give_back,
    stopped_while_waiting,
    wait_for_lease,
)
from etcdsem.cli.run.outage import Outage
from etcdsem.cli.run.pod import LOSS_ACTIONS, kill_others, require_shared_processes
from etcdsem.cli.run.ready_file import ReadyData, ReadyFile, check, ready_data, serve_ready
from etcdsem.cli.run.request import LeaseRequest, read_grace, read_request, request_options
from etcdsem.cli.run.supervisor import ends_soon, slack
from etcdsem.cli.signals import STOPPING, Signals, Stopped
from etcdsem.intervals import missed_after

if TYPE_CHECKING:
    from etcdsem import Client, Lease


class _Plan(NamedTuple):
    request: LeaseRequest
    on_lost: str
    notice: float
    file: str | None
    port: str | None
    as_json: bool


def _check_now(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    """Run ``--check PATH``, which replaces the whole command whatever else is given."""
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
    help="Keep a file at PATH while the lease is held: one line of JSON that describes the lease.",
)
@click.option(
    "--ready-port",
    metavar="[HOST:]PORT",
    help="Serve /readyz (200 while the lease is held, else 503) and /livez on this port.",
)
@click.option(
    "--on-lost",
    type=click.Choice(LOSS_ACTIONS),
    default="terminate",
    help="When the lease is lost: exit with code 70; keep running until stopped, without becoming "
    "ready again; or do that and kill all other processes of the Kubernetes pod, which must have "
    "shareProcessNamespace: true.  [terminate]",
)
@click.option(
    "--notice",
    metavar="DURATION",
    help="Treat a lease that cannot be refreshed as lost this long before it ends, so that the "
    "work has time to stop.  [5s, or a third of --lease-timeout]",
)
@click.option(
    "--check",
    metavar="PATH",
    is_eager=True,
    expose_value=False,
    callback=_check_now,
    help="Only check the ready file PATH: exit with code 0 if it says that the lease is held now, "
    "else 1. Does not contact etcd. Use it as a probe in images without other programs.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the lease as JSON when granted.")
@connection_options
@name_argument
@click.pass_context
def hold(ctx: click.Context, /, **given: Any) -> int:
    """Wait for a lease of the semaphore NAME and keep it until stopped.

    Use it for work that `etcdsem run` cannot wrap. As a Kubernetes sidecar (an init container
    with restartPolicy Always), its startup probe keeps the main container from starting before
    the lease is held, and the lease ends with the pod. With --on-lost kill-pod the main container
    is killed when the lease is lost.

    \b
    Examples:
      etcdsem hold gpu -l 3 --ready-port 8086
      etcdsem hold gpu -l 3 --ready-file /run/etcdsem/ready
      etcdsem hold --check /run/etcdsem/ready                is it held?
      etcdsem hold maintenance -l 1 -n && echo it was ours   until Ctrl-C

    INT, QUIT, TERM and HUP release the lease at once, with exit code 0; while waiting, they leave
    the queue, with exit code 128+N. If this process is killed, the slot becomes free after
    --lease-timeout, and the ready file then no longer passes --check.

    \b
    Exit codes:
      0  stopped while holding            75 gave up waiting (see -E)
      64 usage error                      77 login or permission denied
      69 etcd is unreachable              78 not registered, or with another limit
      70 the lease was lost               1  the ready file cannot be written
      128+N stopped by signal N while waiting

    Durations are in seconds, or like 250ms, 30s, 1m30s, 2h.
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
    if on_lost == "kill-pod":
        require_shared_processes()
    return _Plan(
        request=request,
        on_lost=on_lost,
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
        return stopped_while_waiting(stopped, plan.request.name)
    finally:
        holding.end()


class _Holding:
    """One run of the command, from joining the queue to the exit."""

    def __init__(self, plan: _Plan, client: Client, signals: Signals) -> None:
        self._plan = plan
        self._client = client
        self._signals = signals
        self._lease: Lease | None = None
        self._lock = threading.Lock()
        self._warned = False
        self._ready = False  # guarded by the lock, for the port's threads
        self._file = None if plan.file is None else ReadyFile(plan.file)
        self._port = None if plan.port is None else serve_ready(plan.port, self._reported)

    def run(self) -> int:
        """Wait, hold until stopped or lost, and return the exit code."""
        request = self._plan.request
        self._kill_pod()
        if self._port is not None and not request.quiet:
            say(f"serving probes on port {self._port.port}: /readyz, /livez")
        lease = self._lease = wait_for_lease(request, self._client, self._signals)
        if lease is None:
            return request.conflict_code
        self._signals.stop(0)  # last check: readiness has not been reported yet
        if not self._announce(lease):
            return exit_codes.NOT_DONE
        stopped = self._keep(lease)
        if stopped is None:
            self._kill_pod()
        self._withdraw()
        if stopped is not None:
            if not request.quiet:
                say(f"{request.name}: {signal.Signals(stopped).name}, releasing the lease")
            return exit_codes.OK
        if not lease.valid:
            reason = lease.lost_reason or "it could not be refreshed in time"
            say(f"the lease on {request.name!r} was lost: {reason}")
        if self._plan.on_lost != "terminate":
            say("WARNING: it will not be acquired again; waiting until stopped")
            while not set(self._signals.wait(1.0)) & set(STOPPING):
                self._kill_pod()
        return exit_codes.LOST

    def _kill_pod(self) -> None:
        if self._plan.on_lost != "kill-pod" or kill_others() or self._warned:
            return
        self._warned = True
        say(
            "WARNING: cannot kill the pod's processes of other users: give this container the "
            "runAsUser of the main container"
        )

    def end(self) -> None:
        """Release everything that is still held."""
        self._withdraw()
        give_back(self._plan.request.name, self._lease, self._client)
        if self._port is not None:
            self._port.close()

    def _announce(self, lease: Lease) -> bool:
        data = ready_data(lease, self._good_for(lease))
        if self._file is not None and not self._file.show(data):
            return False
        with self._lock:
            self._ready = True
        if self._plan.as_json:
            echo(json.dumps(data))
            flush()
        elif not self._plan.request.quiet:
            say(
                f"{lease.name}: {lease._slots_shown()} of {lease.limit} "
                f"{'is' if lease.weight == 1 else 'are'} held "
                f"(fencing token {lease.fencing_token}, lease {lease.id})"
            )
        return True

    def _keep(self, lease: Lease) -> int | None:
        """Hold until a signal says to stop (its number) or the lease is lost (None)."""
        tick = max(0.05, min(1.0, lease.ttl / 10))
        outage = Outage(missed_after(self._plan.request.refresh, lease.ttl), say)
        while (left := self._good_for(lease)) > 0:
            for number in self._signals.wait(min(tick, left)):
                if number in STOPPING:
                    return number
            outage.look_at_lease(
                lease.ttl, lease.remaining, lease.hold_remaining, lambda: self._outlook(lease)
            )
            data = ready_data(lease, self._good_for(lease))
            if self._file is not None and lease.valid:
                self._file.refresh(data)
        if lease.valid:
            say(ends_soon(lease.name, lease, self._client._driver.starved()))
        return None

    def _outlook(self, lease: Lease) -> str:
        left = span(self._good_for(lease))
        return f"the lease on {lease.name!r} will count as lost in {left} unless it answers"

    def _good_for(self, lease: Lease) -> float:
        """Return for how many seconds the lease still counts as held."""
        if not lease.valid:
            return 0.0
        return max(0.0, lease.remaining - self._plan.notice - slack(lease.ttl))

    def _withdraw(self) -> None:
        with self._lock:
            self._ready = False
        if self._file is not None:
            self._file.remove()

    def _reported(self) -> ReadyData | None:
        """Return what the port reports, evaluated per probe even if the main thread is busy."""
        with self._lock:
            lease = self._lease if self._ready else None
        if lease is None:
            return None
        good = self._good_for(lease)
        return ready_data(lease, good) if good > 0 else None
