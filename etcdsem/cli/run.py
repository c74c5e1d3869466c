"""``etcdsem run``: wait for a lease, run a command while it is held, end with its exit code.

1. Before anything else, while single-threaded: the guardian and the launcher are forked, and
   signals are heard. Only then is etcd talked to.
2. `with` the lease the command runs, without it it does not: see `supervisor.py` for how.
3. Whatever ends this, everything is given back first; if etcd cannot be told within two seconds,
   the TTL does it.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import shutil
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from etcdsem.cli import codes
from etcdsem.cli.groups import ProcessGroup
from etcdsem.cli.guardian import Guardian, boottime
from etcdsem.cli.launcher import Launcher
from etcdsem.cli.options import DIAL_TIMEOUT, connect, connection_options
from etcdsem.cli.signals import Signals, Stopped
from etcdsem.cli.supervisor import Policy, Supervisor, slack
from etcdsem.cli.terminal import Terminal
from etcdsem.cli.text import exact, say
from etcdsem.cli.waiting import Picture
from etcdsem.errors import EtcdUnavailable, InvalidSetting, SemaphoreClosed

if TYPE_CHECKING:
    from etcdsem import Client, Lease, Semaphore

LAST_WORDS = 2.0
"""Seconds for telling etcd at the end."""


class Plan(NamedTuple):
    """What was asked for, checked."""

    name: str
    limit: int | None
    wait: float | None
    conflict_code: int
    ttl: int
    refresh: float
    terminate: bool
    kill_after: float
    labels: Mapping[str, str]
    quiet: bool
    command: tuple[str, ...]


# ---------------------------------------------------------------- the command line


class _RunCommand(click.Command):
    """Options may stand before and after NAME; from the command's first word on, all is its own."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, self._apart(args))

    def _apart(self, args: list[str]) -> list[str]:
        """The same arguments with all of our options in front of a ``--``."""
        valued = self._options_with_value()
        ours: list[str] = []
        words: list[str] = []
        rest = iter(args)
        for word in rest:
            if word == "--":
                words.extend(rest)
            elif not word.startswith("-") or word == "-":
                words.append(word)
                if len(words) == 2:
                    words.extend(rest)
            else:
                ours.append(word)
                if _lacks_value(word, valued):
                    ours.extend(value for value in [next(rest, None)] if value is not None)
        return [*ours, "--", *words]

    def _options_with_value(self) -> frozenset[str]:
        return frozenset(
            spelling
            for option in self.params
            if isinstance(option, click.Option) and not option.is_flag
            for spelling in option.opts
        )


def _lacks_value(word: str, valued: frozenset[str]) -> bool:
    """Is the value of this option the next word?"""
    if word.startswith("--"):
        return word in valued
    for place, letter in enumerate(word[1:], start=2):  # -nq, -nl 3, -l3
        if f"-{letter}" in valued:
            return place == len(word)
    return False


@click.command(cls=_RunCommand, short_help="Run a command while holding a lease.")
@click.option(
    "-l",
    "--limit",
    metavar="N",
    type=int,
    help="At most N hold NAME at a time: registers it if it is new, else N must be what is "
    "registered. Without it, whatever is registered.",
)
@click.option(
    "-w", "--wait", "--timeout", "wait", metavar="DURATION", help="Give up after that. [for ever]"
)
@click.option("-n", "--nonblock", is_flag=True, help="Don't wait: the same as --wait 0.")
@click.option(
    "-E",
    "--conflict-exit-code",
    metavar="N",
    type=click.IntRange(0, 255),
    default=codes.CONFLICT,
    help="The exit code when it gave up.  [75]",
)
@click.option(
    "-t",
    "--lease-timeout",
    metavar="DURATION",
    help="The slot is free this long after we were last heard of. Seconds, at least 2.  [30s]",
)
@click.option(
    "--on-lost",
    type=click.Choice(["terminate", "warn"]),
    default="terminate",
    help="When the lease is lost: end the command before another can start, or only say so.  "
    "[terminate]",
)
@click.option(
    "--kill-after",
    metavar="DURATION",
    help="From SIGTERM to SIGKILL when the lease is lost.  [5s, or a third of --lease-timeout]",
)
@click.option(
    "--label",
    "labels",
    metavar="KEY=VALUE",
    multiple=True,
    help="Shown to operators. May be repeated.",
)
@click.option("-q", "--quiet", is_flag=True, help="Say nothing while waiting.")
@connection_options
@click.argument("name", metavar="NAME")
@click.argument("command", metavar="-- COMMAND...", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def run(ctx: click.Context, /, **given: Any) -> int:
    """Wait for a lease of the semaphore NAME, run COMMAND while it is held, give it back, and end
    with COMMAND's exit code.

    No shell is put in between. Standard input, output, error and the terminal are COMMAND's own;
    all that follows NAME's first word that is no option, or --, is COMMAND's.

    \b
    Examples:
      etcdsem run gpu --limit 3 -- python train.py --epochs 7
      etcdsem run backup -l 1 -n -E 0 -- /usr/local/bin/backup    skip it if it runs
      etcdsem run licence -w 10m -- sh -c 'solver --seat "$ETCDSEM_SLOT"'

    \b
    COMMAND finds in its environment:
      ETCDSEM_NAME            the semaphore
      ETCDSEM_SLOT            which of the N it has: 0 to N-1, nobody else has the same
      ETCDSEM_FENCING_TOKEN   a number that grows with every grant
      ETCDSEM_LEASE_ID        the etcd lease, as etcdctl prints it
      ETCDSEM_LIMIT           N

    While it waits, INT, QUIT, TERM and HUP leave the line at once. While COMMAND runs they, USR1
    and USR2 are passed on to its process group; a COMMAND that ignores them goes on, and keeps
    its lease. If the lease is lost, COMMAND's process group gets SIGTERM, and SIGKILL after
    --kill-after, both before another can have the slot. If this process is killed or stopped,
    COMMAND is killed. Processes that COMMAND puts into other process groups, and those that it
    leaves behind, are not followed.

    \b
    Exit codes: COMMAND's own; 128+N when signal N ended it, or the waiting;
      64 usage                          77 etcd refuses the credentials or the key
      69 etcd cannot be reached         78 not registered, or with another limit
      70 the lease was lost             126 COMMAND cannot be run
      75 gave up waiting (see -E)       127 COMMAND was not found

    Durations are seconds, or like 250ms, 30s, 1m30s, 2h.
    """
    return _run(ctx, _plan(**given))


def _plan(
    *,
    name: str,
    limit: int | None,
    wait: str | None,
    nonblock: bool,
    conflict_exit_code: int,
    lease_timeout: str | None,
    on_lost: str,
    kill_after: str | None,
    labels: Sequence[str],
    quiet: bool,
    command: tuple[str, ...],
) -> Plan:
    """Check all that can be checked without etcd."""
    from etcdsem.model import check_limit, check_name, timeout_seconds
    from etcdsem.sync import read_intervals

    if not command:
        raise click.UsageError(
            f"what is to be run? etcdsem run {name} [options] -- COMMAND...",
            ctx=click.get_current_context(),
        )
    if nonblock and wait is not None:
        raise click.UsageError("--nonblock and --wait exclude each other")
    ttl, refresh = read_intervals(lease_timeout, None)
    return Plan(
        name=check_name(name),
        limit=None if limit is None else check_limit(limit),
        wait=0.0 if nonblock else timeout_seconds(wait, what="--wait"),
        conflict_code=conflict_exit_code,
        ttl=ttl,
        refresh=refresh,
        terminate=on_lost == "terminate",
        kill_after=_kill_after(kill_after, ttl, refresh),
        labels=_labels(labels),
        quiet=quiet,
        command=command,
    )


def _kill_after(given: str | None, ttl: int, refresh: float) -> float:
    """After a refresh that failed there must be time for one more, for SIGTERM and for SIGKILL."""
    from etcdsem.core.leases import margin
    from etcdsem.model import seconds

    room = ttl - margin(ttl) - slack(ttl) - refresh
    if given is None:
        return min(5.0, ttl / 3, max(0.0, 0.9 * room))
    wanted = seconds(given, what="--kill-after")
    if not 0 <= wanted < room:
        raise InvalidSetting(
            f"--kill-after {given} does not fit into a lease timeout of {ttl}s that is refreshed "
            f"every {exact(refresh)}: give less than {exact(room)}, or a longer --lease-timeout"
        )
    return wanted


def _labels(given: Sequence[str]) -> dict[str, str]:
    from etcdsem.model import check_labels

    labels = {}
    for label in given:
        key, equals, value = label.partition("=")
        if not equals:
            raise InvalidSetting(f"--label {label!r}: write KEY=VALUE")
        labels[key] = value
    return check_labels(labels)


# ---------------------------------------------------------------- the run


def _run(ctx: click.Context, plan: Plan) -> int:
    code = _cannot_run(plan.command[0])
    if code:
        return code
    client = connect(ctx, dial_timeout=min(DIAL_TIMEOUT, plan.wait or DIAL_TIMEOUT))
    _quiet_library()
    _open_standard_streams()
    signals, terminal = Signals(), Terminal()
    guardian = Guardian()
    launcher = Launcher(plan.command, inherited=(*signals.fds, *terminal.fds, guardian.fd))
    signals.install()
    job = _Job(plan, client, signals, terminal, guardian, launcher)
    try:
        return job.run()
    except Stopped as stopped:
        say(f"{signal.Signals(stopped.number).name} while waiting for {plan.name}: left the line")
        return codes.SIGNAL + stopped.number
    finally:
        job.end()


class _Job:
    """One run, from the line to the end."""

    def __init__(
        self,
        plan: Plan,
        client: Client,
        signals: Signals,
        terminal: Terminal,
        guardian: Guardian,
        launcher: Launcher,
    ) -> None:
        self._plan = plan
        self._client = client
        self._signals = signals
        self._terminal = terminal
        self._guardian = guardian
        self._launcher = launcher
        self._launched = False
        self._lease: Lease | None = None

    def run(self) -> int:
        self._lease = self._wait()
        if self._lease is None:
            say(self._gave_up())
            return self._plan.conflict_code
        self._signals.hear_stop()
        self._signals.stop(0)  # a last look: nothing is started yet
        return self._hold(self._lease)

    def end(self) -> None:
        """Let go of everything that is still held."""
        if not self._launched:
            self._launcher.give_up()
            self._guardian.done()
        worker = threading.Thread(target=self._give_back, daemon=True)
        worker.start()
        worker.join(LAST_WORDS)
        if worker.is_alive() and self._lease is not None:
            say(
                f"note: etcd could not be told that the lease on {self._plan.name} is free; "
                f"it ends by itself within {exact(self._lease.ttl)}"
            )

    def _give_back(self) -> None:
        if self._lease is not None:
            self._lease.release()
        self._client.close()

    # ---------------------------------------------------------------- waiting

    def _wait(self) -> Lease | None:
        """In line, until it is our turn; None when the time was up.

        A thread stands in line, so that this one hears signals. If one says to stop, `end()`
        closes the client, and with it leaves the line.
        """
        plan = self._plan
        until = math.inf if plan.wait is None else boottime() + plan.wait
        line = _Line(self._semaphore, until, self._signals.wake)
        picture = Picture(self._client, plan.name, quiet=plan.quiet)
        line.start(picture.start)
        try:
            while not line.over:
                left = until - boottime()
                if plan.wait and left <= 0 and not line.in_touch:
                    raise EtcdUnavailable(
                        f"{plan.name}: etcd cannot be reached within --wait {exact(plan.wait)}. "
                        "Check that it runs and that the endpoints are right (ETCDSEM_ENDPOINTS)."
                    )
                self._signals.stop(min(left, 60.0) if left > 0 else 1.0)
            return line.result()
        finally:
            picture.stop()

    def _semaphore(self) -> Semaphore:
        """First contact with etcd: the limit is registered, or found to be."""
        from etcdsem import Semaphore

        plan = self._plan
        try:
            return Semaphore(
                plan.limit,
                plan.name,
                client=self._client,
                lease_timeout=plan.ttl,
                refresh_interval=plan.refresh,
                labels=plan.labels,
                on_lost=lambda lease: self._signals.wake(),
            )
        except SemaphoreClosed:
            raise SemaphoreClosed(
                f"{plan.name} is not registered yet: give --limit N to do so"
            ) from None

    def _gave_up(self) -> str:
        plan = self._plan
        waited = f" within {exact(plan.wait)}" if plan.wait else ""
        return f"{plan.name}: no lease was free{waited} (see: etcdsem status {plan.name})"

    # ---------------------------------------------------------------- holding

    def _hold(self, lease: Lease) -> int:
        """Run the command while the lease is held."""
        plan, pid = self._plan, self._launcher.pid
        deadline = boottime() + lease.remaining if plan.terminate else math.inf
        terminal = self._terminal.wanted()
        group = ProcessGroup(pid)
        self._guardian.arm(pid, deadline)
        self._launched = True
        number = self._launcher.go(_additions(lease), terminal=terminal)
        self._terminal.lent = terminal
        policy = Policy(terminate=plan.terminate, ttl=lease.ttl, kill_after=plan.kill_after)
        supervisor = Supervisor(
            plan.name, lease, group, self._guardian, self._signals, self._terminal, policy
        )
        if not number:
            _let_go_of_streams()
        code = supervisor.run()
        if number:
            return _not_started(plan.command[0], number)
        return codes.LOST if supervisor.lost else code


def _additions(lease: Lease) -> dict[str, str]:
    return {
        "ETCDSEM_NAME": lease.name,
        "ETCDSEM_SLOT": str(lease.slot),
        "ETCDSEM_FENCING_TOKEN": str(lease.fencing_token),
        "ETCDSEM_LEASE_ID": lease.id,
        "ETCDSEM_LIMIT": str(lease.limit),
    }


class _Line:
    """A thread that stands in line."""

    def __init__(
        self, semaphore: Callable[[], Semaphore], until: float, done: Callable[[], None]
    ) -> None:
        self._semaphore = semaphore
        self._until = until
        self._done = done
        self._lease: Lease | None = None
        self._error: BaseException | None = None
        self.in_touch = False
        """Etcd has answered."""
        self.over = False
        """There is a result."""

    def start(self, on_wait: Callable[[], None]) -> None:
        threading.Thread(target=self._run, args=(on_wait,), name="line", daemon=True).start()

    def result(self) -> Lease | None:
        """What came of it: a lease, None when the time was up, or the error."""
        if self._error is not None:
            raise self._error
        return self._lease

    def _run(self, on_wait: Callable[[], None]) -> None:
        try:
            semaphore = self._semaphore()
            self.in_touch = True
            left = None if self._until == math.inf else max(0.0, self._until - boottime())
            self._lease = semaphore.acquire_lease(left, on_wait=on_wait)
        except BaseException as error:
            self._error = error
        self.over = True
        self._done()


# ---------------------------------------------------------------- the command


def _cannot_run(command: str) -> int:
    """0 if it looks as if the command can be run; else say why not, before queueing for it."""
    if shutil.which(command) is not None:
        return codes.OK
    places = [""] if os.path.dirname(command) else os.get_exec_path()
    if not any(os.path.exists(os.path.join(place, command)) for place in places if command):
        return _not_started(command, errno.ENOENT)
    return _not_started(command, errno.EACCES)


def _not_started(command: str, number: int) -> int:
    if number == errno.ENOENT:
        what = "the interpreter in its first line" if os.path.exists(command) else "no such command"
        say(f"cannot run {command!r}: not found ({what})")
        return codes.NOT_FOUND
    hint = "; does its first line lack a #!" if number == errno.ENOEXEC else ""
    say(f"cannot run {command!r}: {os.strerror(number)}{hint}")
    return codes.CANNOT_EXECUTE


def _open_standard_streams() -> None:
    """None of our pipes may become the command's standard input, output or error."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def _let_go_of_streams() -> None:
    """Standard input and output are the command's: when it closes them, they are closed."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):
        os.dup2(null, fd)
    os.close(null)


def _quiet_library() -> None:
    """What the library logs is for programs; what we say is for people."""
    logger = logging.getLogger("etcdsem")
    if os.environ.get("ETCDSEM_DEBUG"):
        logging.basicConfig(level=logging.DEBUG, format="%(relativeCreated)d %(name)s %(message)s")
    else:
        logger.addHandler(logging.NullHandler())
        logger.propagate = False


__all__ = ["run"]
