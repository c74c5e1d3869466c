"""``etcdsem run``: wait for a lease, run a command while holding it, exit with its exit code.

This module parses the command line; `job.py` runs the job.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from etcdsem.cli.arguments import name_argument
from etcdsem.cli.options import WholeNumber, connection_options
from etcdsem.cli.run.job import Plan, run_job
from etcdsem.cli.run.job_metrics import check_metrics_file
from etcdsem.cli.run.multi import could_be_name, read_names
from etcdsem.cli.run.request import ORDINARY, read_grace, read_request, request_options
from etcdsem.validation import check_cost

_NAMES = "etcdsem.names"


class _RunCommand(click.Command):
    """Accepts options before and after NAME; everything from COMMAND's first word on is COMMAND's.

    Several names must be separated from the command by ``--``.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        several = self._several(args)
        if several is None:
            return super().parse_args(ctx, self._apart(args))
        ours, ctx.meta[_NAMES], command = several
        return super().parse_args(ctx, [*ours, "--", ctx.meta[_NAMES][0], *command])

    def _several(self, args: list[str]) -> tuple[list[str], list[str], list[str]] | None:
        """Split into our options, the names and the command if several names precede a ``--``."""
        if "--" not in args:
            return None
        valued, known = self._options_with_value(), self._options()
        ours: list[str] = []
        names: list[str] = []
        rest = iter(args[: args.index("--")])
        for word in rest:
            if not word.startswith("-"):
                names.append(word)
                continue
            if not _is_ours(word, valued, known):
                return None
            ours.append(word)
            if _lacks_value(word, valued):
                ours.extend(value for value in [next(rest, None)] if value is not None)
        if len(names) < 2 or not all(map(could_be_name, names)):
            return None
        return ours, names, args[args.index("--") + 1 :]

    def _options(self) -> frozenset[str]:
        options = (option for option in self.params if isinstance(option, click.Option))
        return frozenset(("--help", *(spelling for option in options for spelling in option.opts)))

    def _apart(self, args: list[str]) -> list[str]:
        """Return the same arguments with all of our options moved in front of a ``--``."""
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


def _is_ours(word: str, valued: frozenset[str], known: frozenset[str]) -> bool:
    """Whether it is one of our options, or several short ones in one word."""
    if word.startswith("--"):
        return word.partition("=")[0] in known
    for flag in word[1:]:
        if f"-{flag}" not in known:
            return False
        if f"-{flag}" in valued:
            return True
    return len(word) > 1


def _lacks_value(word: str, valued: frozenset[str]) -> bool:
    """Whether the value of this option is the next word."""
    if word.startswith("--"):
        return word in valued
    for place, flag in enumerate(word[1:], start=2):  # -nq, -nl 3, -l3
        if f"-{flag}" in valued:
            return place == len(word)
    return False


_HELP = """\
Wait for a lease of the semaphore NAME, run COMMAND while holding it, release it, and exit
with COMMAND's exit code.

COMMAND is executed without a shell and inherits standard input, output, error and the
terminal. Options may precede or follow NAME; everything after --, or from the first other
word after NAME, belongs to COMMAND.

\b
Examples:
  etcdsem run gpu --limit 3 -- python train.py --epochs 7
  etcdsem run backup -l 1 -n -E 0 -- /usr/local/bin/backup   skip if running
  etcdsem run api --rate 100/1m -- curl https://api.example.com/
  etcdsem run tokens --rate 90000/1m --cost 1200 -- ./ask.sh
  etcdsem run api -l 5 --rate 100/1m -- python job.py        both limits apply
  etcdsem run db=5 gpu=2 -- python train.py                  a lease of each
  etcdsem run licence -w 10m -- sh -c 'solver --seat "$ETCDSEM_SLOT"'

\b
Environment variables set for COMMAND:
  ETCDSEM_NAME            name of the semaphore
  ETCDSEM_SLOT            the slot held, 0 to N-1; no other holder has it
  ETCDSEM_SLOTS           all slots held, with --weight: 0,3,4 (the first is
                          ETCDSEM_SLOT)
  ETCDSEM_WEIGHT          number of slots held
  ETCDSEM_FENCING_TOKEN   a number that increases with every grant
  ETCDSEM_LEASE_ID        the etcd lease, as printed by etcdctl
  ETCDSEM_LIMIT           the limit, N
  ETCDSEM_LEASES          JSON: [{"name":..,"slot":..,"fencing_token":..,...}]
With --rate and without --limit, only ETCDSEM_NAME, ETCDSEM_RATE and
ETCDSEM_WAITED (in seconds) are set.

With --limit and --rate, COMMAND needs both a lease and a permit of the rate limit
NAME.rate.

With several NAMES, COMMAND runs once it has a lease of each; a -- must follow the names.
Write the limits with the names: A=5 B=2. It waits in one queue at a time, and only after
three failed attempts does it hold some leases while waiting for others. Losing any one of
the leases counts as a loss. The single-lease variables describe the first NAME.

While waiting, INT, QUIT, TERM and HUP leave the queue at once. While COMMAND runs, these
signals and USR1 and USR2 are forwarded to its process group; a COMMAND that ignores them
keeps running and keeps its lease. If the lease is lost, COMMAND's process group gets
SIGTERM, and SIGKILL after --kill-after, both before another client can get the slot. If
this process is killed or stopped, COMMAND is killed. Processes that COMMAND moves to other
process groups or leaves behind are not tracked.

\b
Exit codes: COMMAND's own; 128+N if signal N ended COMMAND or the wait;
  64 usage error                    77 login or permission denied
  69 etcd is unreachable            78 not registered, or with another limit
  70 the lease was lost             126 COMMAND cannot be executed
  75 gave up waiting (see -E)       127 COMMAND was not found

Durations are in seconds, or like 250ms, 30s, 1m30s, 2h.
"""


@click.command(cls=_RunCommand, short_help="Run a command while holding a lease.", help=_HELP)
@request_options
@click.option(
    "--rate",
    metavar="N/PERIOD",
    help="Grant at most N permits in any PERIOD, e.g. 100/1m; registered under NAME. COMMAND "
    "starts when it gets a permit, holds no lease, and may run for any length of time.",
)
@click.option(
    "--cost",
    metavar="N",
    type=WholeNumber(),
    help="With --rate: take N permits, all at once.  [1]",
)
@click.option(
    "--on-lost",
    type=click.Choice(["terminate", "warn"]),
    default="terminate",
    help="When the lease is lost: terminate COMMAND before another can start, or only warn.  "
    "[terminate]",
)
@click.option(
    "--kill-after",
    metavar="DURATION",
    help="Time from SIGTERM to SIGKILL when the lease is lost.  [5s, or a third of "
    "--lease-timeout]",
)
@click.option(
    "--metrics-file",
    metavar="PATH",
    help="On exit, write metrics of this run (waited, held, lost, exit code) to PATH for "
    "node_exporter's textfile collector. PATH must end in .prom.",
)
@click.option(
    "--ready-file",
    metavar="PATH",
    help="Keep a file at PATH while COMMAND runs with the lease, for probes: `etcdsem hold --check "
    "PATH`. With several NAMES it describes the first lease.",
)
@click.option(
    "--drop-credentials",
    is_flag=True,
    help="Remove etcd's user, password, password file, client certificate and key from COMMAND's "
    "environment (ETCDSEM_ and ETCDCTL_ variables).",
)
@connection_options
@name_argument
@click.argument("command", metavar="-- COMMAND...", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def run(ctx: click.Context, /, **given: Any) -> int:
    """Run a command while holding a lease."""
    return run_job(ctx, _plan(**given))


def _refuse_with_several(given: Mapping[str, Any]) -> None:
    """Raise UsageError for options that do not work with several names."""
    for option, ordinary in ORDINARY.items():
        if given[option] != ordinary:
            raise click.UsageError(
                f"--{option} works with one NAME only. Nest the commands instead, always in the "
                f"order of the names: etcdsem run A --{option} ... -- etcdsem run B -- ..."
            )
    if given["rate"] is not None:
        raise click.UsageError("--rate works with one NAME only")


def _read_cost(cost: int | None, rate: str | None, limit: int | None) -> int:
    if cost is not None and (rate is None or limit is not None):
        raise click.UsageError("--cost is a number of permits: give --rate, and no -l")
    return 1 if cost is None else check_cost(cost, what="--cost")


def _plan(
    *,
    name: str,
    on_lost: str,
    kill_after: str | None,
    metrics_file: str | None,
    drop_credentials: bool,
    ready_file: str | None,
    command: tuple[str, ...],
    **given: Any,
) -> Plan:
    """Check everything that can be checked without etcd."""
    if not command:
        raise click.UsageError(
            f"no command given; usage: etcdsem run {name} [options] -- COMMAND...",
            ctx=click.get_current_context(),
        )
    words = click.get_current_context().meta.get(_NAMES, [name])
    if "=" in name and len(words) == 1 and could_be_name(command[0]) and "=" in command[0]:
        raise click.UsageError(
            f"several names must be followed by --: {name} {command[0]} ... -- COMMAND..."
        )
    (first, limit), *more = read_names(words, given.pop("limit"))
    if more:
        _refuse_with_several(given)
    if ready_file is not None and given["rate"] is not None and limit is None:
        raise click.UsageError("--ready-file applies to leases: with --rate, also give -l N")
    cost = _read_cost(given.pop("cost"), given["rate"], limit)
    request = read_request(name=first, limit=limit, more=more, **given)._replace(cost=cost)
    return Plan(
        request=request,
        terminate=on_lost == "terminate",
        kill_after=read_grace("--kill-after", kill_after, request),
        metrics_file=check_metrics_file(metrics_file),
        drop_credentials=drop_credentials,
        ready_file=ready_file,
        command=command,
    )
