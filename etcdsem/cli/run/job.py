"""One run of ``etcdsem run``, from joining the queue to the exit.

1. The watchdog and the launcher are forked, and signal handlers installed, first and while the
   process is single-threaded. Only then is etcd contacted.
2. The command runs only while the lease is held: see `supervisor.py`.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from typing import TYPE_CHECKING, Final, NamedTuple

import click

from etcdsem.cli import exit_codes
from etcdsem.cli.logs import quiet_library
from etcdsem.cli.output import say
from etcdsem.cli.run.acquire_worker import (
    connect_for,
    give_back,
    stopped_while_waiting,
    wait_for_leases,
    wait_for_permit,
)
from etcdsem.cli.run.job_metrics import JobMetrics
from etcdsem.cli.run.launcher import Launcher
from etcdsem.cli.run.multi import MultiLease, described
from etcdsem.cli.run.process_group import ProcessGroup
from etcdsem.cli.run.ready_file import ReadyFile, ready_data
from etcdsem.cli.run.request import LeaseRequest
from etcdsem.cli.run.supervisor import HeldLease, Policy, Supervisor, slack
from etcdsem.cli.run.terminal import Terminal
from etcdsem.cli.run.watchdog import Watchdog
from etcdsem.cli.signals import Signals, Stopped, all_blocked
from etcdsem.clock import boot_time

if TYPE_CHECKING:
    from etcdsem import Client, Lease


_CREDENTIALS: Final = tuple(
    f"{owner}_{what}"
    for owner in ("ETCDSEM", "ETCDCTL")
    for what in ("USER", "PASSWORD", "PASSWORD_FILE", "CERT", "KEY")
)
"""The variables that --drop-credentials keeps from the command."""


class Plan(NamedTuple):
    """The checked command line."""

    request: LeaseRequest
    terminate: bool
    kill_after: float
    metrics_file: str | None
    drop_credentials: bool
    ready_file: str | None
    command: tuple[str, ...]


def run_job(ctx: click.Context, plan: Plan) -> int:
    """Carry out the plan and return the exit code."""
    _open_standard_streams()
    signals, terminal = Signals(), Terminal()
    with JobMetrics(plan.metrics_file, plan.request) as metrics:
        metrics.code = _run_job(ctx, plan, metrics, signals, terminal)
    terminal.pass_on_key()
    late = signals.end()
    return exit_codes.by_signal(late) if late else metrics.code


def _run_job(
    ctx: click.Context, plan: Plan, metrics: JobMetrics, signals: Signals, terminal: Terminal
) -> int:
    code = _cannot_run(plan.command[0])
    if code:
        return code
    ready = None if plan.ready_file is None else ReadyFile(plan.ready_file)
    client = connect_for(ctx, plan.request)
    quiet_library()
    with all_blocked():
        try:
            watchdog = Watchdog()
            launcher = Launcher(
                plan.command,
                inherited=(*signals.fds, *terminal.fds, watchdog.fd),
                dropped=_CREDENTIALS if plan.drop_credentials else (),
            )
        except OSError as error:  # a watchdog that was started ends with us
            what = f"a process for {plan.command[0]}"
            raise exit_codes.CannotStart(what, error.strerror) from error
        terminal.watch_keys(launcher.pid)
        signals.install()
    job = _Job(plan, client, signals, terminal, watchdog, launcher, metrics, ready)
    try:
        return job.run()
    except Stopped as stopped:
        return stopped_while_waiting(stopped, plan.request.shown)
    finally:
        job.end()


class _Job:
    def __init__(
        self,
        plan: Plan,
        client: Client,
        signals: Signals,
        terminal: Terminal,
        watchdog: Watchdog,
        launcher: Launcher,
        metrics: JobMetrics,
        ready: ReadyFile | None,
    ) -> None:
        self._plan = plan
        self._client = client
        self._signals = signals
        self._terminal = terminal
        self._watchdog = watchdog
        self._launcher = launcher
        self._metrics = metrics
        self._ready = ready
        self._launched = False
        self._lease: Lease | MultiLease | None = None

    def run(self) -> int:
        if self._plan.request.only_rate:
            return self._run_at_rate()
        self._lease = wait_for_leases(self._plan.request, self._client, self._signals)
        if self._lease is None:
            return self._plan.request.conflict_code
        self._metrics.granted()
        self._signals.hear_stop()
        self._signals.stop(0)  # last check: nothing is started yet
        return self._hold(self._lease)

    def _run_at_rate(self) -> int:
        """Run the command when its permit is granted. There is no lease that could be lost."""
        request = self._plan.request
        permit = wait_for_permit(request, self._client, self._signals)
        if permit is None:
            return request.conflict_code
        self._metrics.granted()
        self._signals.hear_stop()
        self._signals.stop(0)  # last check; the permit is used up either way
        additions = {
            "ETCDSEM_NAME": request.name,
            "ETCDSEM_RATE": str(request.rate),
            "ETCDSEM_WAITED": f"{permit.waited:.3f}",
        }
        return self._supervise(_Nothing(), additions, math.inf, ttl=math.inf, terminate=False)

    def end(self) -> None:
        """Release everything that is still held."""
        if self._ready is not None:
            self._ready.remove()
        if not self._launched:
            self._terminal.end(self._launcher.pid)
            self._launcher.give_up()
            self._watchdog.done()
        give_back(self._plan.request.shown, self._lease, self._client)

    def _hold(self, lease: Lease | MultiLease) -> int:
        """Run the command while the lease is held."""
        plan = self._plan
        self._report()
        deadline = boot_time() + lease.remaining if plan.terminate else math.inf
        return self._supervise(
            lease, _additions(lease), deadline, ttl=lease.ttl, terminate=plan.terminate
        )

    def _supervise(
        self,
        lease: HeldLease,
        additions: dict[str, str],
        deadline: float,
        *,
        ttl: float,
        terminate: bool,
    ) -> int:
        plan, pid = self._plan, self._launcher.pid
        terminal = self._terminal.wanted()
        group = ProcessGroup(pid)
        self._watchdog.arm(pid, deadline)
        self._launched = True
        number = self._launcher.go(additions, terminal=terminal)
        self._terminal.lent = terminal
        policy = Policy(
            terminate=terminate,
            ttl=ttl,
            kill_after=plan.kill_after,
            refresh=plan.request.refresh,
        )
        supervisor = Supervisor(
            plan.request.name,
            lease,
            group,
            self._watchdog,
            self._signals,
            self._terminal,
            policy,
            self._client._driver.starved,
            self._report,
        )
        if not number:
            _let_go_of_streams()
        code = supervisor.run()
        self._metrics.ended(lost=supervisor.lost or not lease.valid)
        if number:
            return _not_started(plan.command[0], number)
        return exit_codes.LOST if supervisor.lost else code

    def _report(self) -> None:
        """Keep the ready file up to date: until when the lease is held, and the command may run."""
        held, plan = self._lease, self._plan
        if self._ready is None or held is None:
            return
        good = held.remaining - (plan.kill_after + slack(held.ttl) if plan.terminate else 0.0)
        if good > 0:
            lease = held.leases[0] if isinstance(held, MultiLease) else held
            self._ready.refresh(ready_data(lease, good))
        else:
            self._ready.remove()


class _Nothing:
    """Stands in for the lease of a command under a rate limit, which holds none."""

    remaining = math.inf
    valid = True
    lost_reason = ""
    max_hold = None
    hold_remaining = None


def _additions(held: Lease | MultiLease) -> dict[str, str]:
    """Return the command's additional environment: the first lease, and all of them as JSON."""
    leases = held.leases if isinstance(held, MultiLease) else (held,)
    lease = leases[0]
    return {
        "ETCDSEM_NAME": lease.name,
        "ETCDSEM_SLOT": str(lease.slot),
        "ETCDSEM_SLOTS": ",".join(map(str, lease.slots)),
        "ETCDSEM_WEIGHT": str(lease.weight),
        "ETCDSEM_FENCING_TOKEN": str(lease.fencing_token),
        "ETCDSEM_LEASE_ID": lease.id,
        "ETCDSEM_LIMIT": str(lease.limit),
        "ETCDSEM_LEASES": json.dumps([described(one) for one in leases], separators=(",", ":")),
    }


# ---------------------------------------------------------------- the command


def _cannot_run(command: str) -> int:
    """Return 0 if the command looks executable; else report why not, before joining the queue."""
    if shutil.which(command) is not None:
        return exit_codes.OK
    places = [""] if os.path.dirname(command) else os.get_exec_path()
    if not any(os.path.exists(os.path.join(place, command)) for place in places if command):
        return _not_started(command, errno.ENOENT)
    return _not_started(command, errno.EACCES)


def _not_started(command: str, number: int) -> int:
    if number == errno.ENOENT:
        what = "the interpreter in its first line" if os.path.exists(command) else "no such command"
        say(f"cannot run {command!r}: not found ({what})")
        return exit_codes.NOT_FOUND
    if number in exit_codes.NO_ROOM:
        say(f"cannot run {command!r}: {os.strerror(number)}")
        return exit_codes.UNAVAILABLE
    hint = "; is its #! line missing?" if number == errno.ENOEXEC else ""
    say(f"cannot run {command!r}: {os.strerror(number)}{hint}")
    return exit_codes.CANNOT_EXECUTE


def _open_standard_streams() -> None:
    """Make sure that none of our pipes becomes the command's standard input, output or error.

    A stream that was closed is closed again when the command is executed.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _let_go_of_streams() -> None:
    """Close our copies of standard input and output, so that the command can really close them."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):
        os.dup2(null, fd)
    os.close(null)
