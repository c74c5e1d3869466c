"""``etcdsem run``: wait for a lease, run a command while it is held, end with its exit code.

Here is what was asked for; `job.py` does it.
"""

from __future__ import annotations

from typing import Any

import click

from etcdsem.cli.options import connection_options, name_argument
from etcdsem.cli.run.job import Plan, run_job
from etcdsem.cli.run.job_metrics import check_metrics_file
from etcdsem.cli.run.multi import could_be_name, read_names
from etcdsem.cli.run.request import ORDINARY, read_grace, read_request, request_options

_NAMES = "etcdsem.names"


class _RunCommand(click.Command):
    """Options may stand before and after NAME; from the command's first word on, all is its own.

    Several names need a ``--`` between them and the command.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        several = self._several(args)
        if several is None:
            return super().parse_args(ctx, self._apart(args))
        ours, ctx.meta[_NAMES], command = several
        return super().parse_args(ctx, [*ours, "--", ctx.meta[_NAMES][0], *command])

    def _several(self, args: list[str]) -> tuple[list[str], list[str], list[str]] | None:
        """Our options, the names, and the command, where several names stand before a ``--``."""
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


def _is_ours(word: str, valued: frozenset[str], known: frozenset[str]) -> bool:
    """Is it an option of ours, or several letters of them?"""
    if word.startswith("--"):
        return word.partition("=")[0] in known
    for letter in word[1:]:
        if f"-{letter}" not in known:
            return False
        if f"-{letter}" in valued:
            return True
    return len(word) > 1


def _lacks_value(word: str, valued: frozenset[str]) -> bool:
    """Is the value of this option the next word?"""
    if word.startswith("--"):
        return word in valued
    for place, letter in enumerate(word[1:], start=2):  # -nq, -nl 3, -l3
        if f"-{letter}" in valued:
            return place == len(word)
    return False


_HELP = """\
Wait for a lease of the semaphore NAME, run COMMAND while it is held, give it back, and end
with COMMAND's exit code.

No shell is put in between. Standard input, output, error and the terminal are COMMAND's own;
all that follows NAME's first word that is no option, or --, is COMMAND's.

\b
Examples:
  etcdsem run gpu --limit 3 -- python train.py --epochs 7
  etcdsem run backup -l 1 -n -E 0 -- /usr/local/bin/backup    skip it if it runs
  etcdsem run api --rate 100/1m -- curl https://api.example.com/
  etcdsem run api -l 5 --rate 100/1m -- python job.py         5 at a time, 100 a minute
  etcdsem run db=5 gpu=2 -- python train.py                   a lease of each, or wait
  etcdsem run licence -w 10m -- sh -c 'solver --seat "$ETCDSEM_SLOT"'

\b
COMMAND finds in its environment:
  ETCDSEM_NAME            the semaphore
  ETCDSEM_SLOT            which of the N it has: 0 to N-1, nobody else has the same
  ETCDSEM_SLOTS           all that it has, with --weight: 0,3,4 (the first is ETCDSEM_SLOT)
  ETCDSEM_WEIGHT          how many those are
  ETCDSEM_FENCING_TOKEN   a number that grows with every grant
  ETCDSEM_LEASE_ID        the etcd lease, as etcdctl prints it
  ETCDSEM_LIMIT           N
  ETCDSEM_LEASES          all leases: [{"name":..,"slot":..,"fencing_token":..,...}]
With --limit and --rate it needs both: a lease, and a start of the rate limit NAME.rate.
With --rate alone it finds ETCDSEM_NAME, ETCDSEM_RATE and ETCDSEM_WAITED (seconds).

Of several NAMES, which need a -- after them, it has a lease of each or none; it waits in one
line at a time, and holds the others meanwhile only if it was crowded out three times. Limits
are written with the names: A=5 B=2. The losing of any one counts. The variables of one lease
are those of the first NAME.

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


@click.command(cls=_RunCommand, short_help="Run a command while holding a lease.", help=_HELP)
@request_options
@click.option(
    "--rate",
    metavar="N/PERIOD",
    help="100/1m: at most 100 starts in any minute, registered under NAME. COMMAND starts in its "
    "turn, and may last as long as it likes; it holds no lease.",
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
    "--metrics-file",
    metavar="PATH",
    help="At the end, write there how it went (waited, held, lost, exit code), for node_exporter's "
    "textfile collector: PATH ends in .prom.",
)
@connection_options
@name_argument
@click.argument("command", metavar="-- COMMAND...", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def run(ctx: click.Context, /, **given: Any) -> int:
    """Run a command while holding a lease."""
    return run_job(ctx, _plan(**given))


def _plan(
    *,
    name: str,
    on_lost: str,
    kill_after: str | None,
    metrics_file: str | None,
    command: tuple[str, ...],
    **given: Any,
) -> Plan:
    """Check all that can be checked without etcd."""
    if not command:
        raise click.UsageError(
            f"what is to be run? etcdsem run {name} [options] -- COMMAND...",
            ctx=click.get_current_context(),
        )
    words = click.get_current_context().meta.get(_NAMES, [name])
    if "=" in name and len(words) == 1 and could_be_name(command[0]) and "=" in command[0]:
        raise click.UsageError(f"several names need a -- after them: {name} {command[0]} ... --")
    (first, limit), *more = read_names(words, given.pop("limit"))
    for option, ordinary in ORDINARY.items():
        if more and given[option] != ordinary:
            raise click.UsageError(
                f"--{option} is for one NAME only. For it take them one within the other, always "
                f"in the order of the names: etcdsem run A --{option} ... -- etcdsem run B -- ..."
            )
    if more and given["rate"] is not None:
        raise click.UsageError("--rate is for one NAME only")
    request = read_request(name=first, limit=limit, more=more, **given)
    return Plan(
        request=request,
        terminate=on_lost == "terminate",
        kill_after=read_grace("--kill-after", kill_after, request),
        metrics_file=check_metrics_file(metrics_file),
        command=command,
    )
