"""The command ``etcdsem``: finds and loads the subcommand, and exits with its code.

1. `etcdsem --help` and usage errors load neither protobuf nor rich, nor any other subcommand.
2. Every expected error is one line on stderr and a code of `exit_codes.py`. ``ETCDSEM_DEBUG=1``
   also prints its traceback.
3. If the reader of stdout goes away, the command exits quietly, as with SIGPIPE.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NamedTuple, NoReturn

import click

from etcdsem.cli import exit_codes
from etcdsem.cli.options import connection_options
from etcdsem.cli.output import OutputError, flush, say
from etcdsem.cli.signals import die_of, raise_on_sigint, unblock_signals
from etcdsem.errors import EtcdSemError, InvalidSetting


class _Entry(NamedTuple):
    """A command: the module that defines a function of its name, and its text in the overview."""

    module: str
    short_help: str


_COMMANDS: dict[str, _Entry] = {
    "run": _Entry("run.command", "Run a command while holding a lease."),
    "hold": _Entry("run.hold", "Keep a lease until stopped: for sidecars."),
    "check": _Entry("run.check", "Check that a lease could be acquired."),
    "ls": _Entry("show.ls", "List all semaphores with limits and usage."),
    "status": _Entry("show.status", "Show the holders and waiters of a semaphore."),
    "limit": _Entry("admin.limit", "Show or change a limit."),
    "rate": _Entry("admin.rate", "Show or change a rate limit."),
    "pause": _Entry("admin.pause", "Stop granting leases until resumed."),
    "resume": _Entry("admin.pause", "Resume granting leases."),
    "drain": _Entry("admin.drain", "Pause and wait until no lease is held."),
    "prune": _Entry("admin.prune", "Let unused names expire."),
    "apply": _Entry("admin.apply", "Set limits from a file."),
    "export": _Entry("admin.export", "Print the limits as a file for apply."),
    "evict": _Entry("admin.evict", "End one lease."),
    "close": _Entry("admin.close", "Remove a semaphore."),
    "top": _Entry("show.top", "Show all semaphores live."),
    "exporter": _Entry("exporter.command", "Serve metrics of all semaphores for Prometheus."),
    "doctor": _Entry("doctor.command", "Check etcd, the connection to it, and the semaphores."),
    "bench": _Entry("bench.command", "Measure etcd and find what limits its throughput."),
    "completion": _Entry("completion", "Print a shell completion script."),
    "demo": _Entry("demo", "Watch a dozen real jobs share a limit of 3."),
    "dev": _Entry("dev", "Start a temporary etcd on this machine."),
}


_SECTIONS: dict[str, tuple[str, ...]] = {
    "Run jobs": ("run", "hold", "check"),
    "Inspect semaphores": ("ls", "status", "top"),
    "Change semaphores": ("limit", "rate", "pause", "resume", "drain", "evict", "close", "prune"),
    "Limits as code": ("apply", "export"),
    "Monitor and diagnose": ("doctor", "exporter", "bench"),
    "Try it out": ("dev", "demo"),
}
"""The groups of the overview; commands in no group come last."""


class _Commands(click.Group):
    """A group that loads a command only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = _COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command = getattr(import_module(f"etcdsem.cli.{entry.module}"), cmd_name)
        assert isinstance(command, click.Command)
        command.short_help = entry.short_help  # click would cut it for completion
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, *rest = args
        if name == "help" and ctx.resilient_parsing:
            return None, None, rest  # completes the commands
        if name == "help" and rest not in ([], ["help"]):
            return super().resolve_command(ctx, [*self._known(ctx, rest[0]), "--help"])
        if name == "help":
            click.echo(ctx.get_help())
            ctx.exit()
        if not ctx.resilient_parsing and not name.startswith("-"):
            self._known(ctx, name)
        return super().resolve_command(ctx, args)

    @staticmethod
    def _known(ctx: click.Context, name: str) -> list[str]:
        """Return the name of a command in a list. Raises UsageError, with a suggestion."""
        if name in _COMMANDS:
            return [name]
        from difflib import get_close_matches

        similar = get_close_matches(name.lower(), _COMMANDS, n=1)
        hint = f". Did you mean {similar[0]!r}?" if similar else ""
        raise click.UsageError(f"No such command {name!r}{hint}", ctx=ctx)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _written():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with _written():
            return super().invoke(ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        grouped = {name for names in _SECTIONS.values() for name in names}
        rest = tuple(name for name in _COMMANDS if name not in grouped)
        for title, names in {**_SECTIONS, "Other": rest}.items():
            lines = [(name, _COMMANDS[name].short_help) for name in names if name in _COMMANDS]
            if lines:
                with formatter.section(title):
                    formatter.write_dl(lines)


@contextmanager
def _written() -> Iterator[None]:
    """Turn write errors of click itself (help, version) into OutputError; click would exit 1."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EPIPE, errno.ENOSPC, errno.EIO) and error.filename is None:
            raise OutputError from error
        raise


def _show_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from etcdsem import __version__

        click.echo(f"etcdsem {__version__}")
        ctx.exit()


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Connection settings are also read from ETCDSEM_ENDPOINTS, ETCDSEM_CACERT, "
    "ETCDSEM_CERT, ETCDSEM_KEY, ETCDSEM_USER, ETCDSEM_PASSWORD, ETCDSEM_PASSWORD_FILE and "
    "ETCDSEM_PREFIX, or from the equivalent ETCDCTL_ variables. Lease settings: "
    "ETCDSEM_LEASE_TIMEOUT, ETCDSEM_REFRESH_INTERVAL, ETCDSEM_VALIDATION_INTERVAL, "
    "ETCDSEM_ETCD_WAIT, ETCDSEM_OWNER and ETCDSEM_LABELS.",
)
@connection_options
@click.option(
    "-V",
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Print the version and exit.",
)
def cli() -> None:
    """A distributed counting semaphore on etcd: at most N at a time, on any number of machines.

    \b
      etcdsem run gpu --limit 3 -- python train.py    run at most 3 at a time
      etcdsem status gpu                              show holders and waiters
      etcdsem limit gpu 5                             change the limit to 5
    """


def main() -> NoReturn:
    """Run the command line and exit."""
    unblock_signals()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        code = _outcome()
        flush()
    except OutputError as error:
        code = _cannot_write(error.__cause__)
    finally:
        raise_on_sigint(False)
    if isinstance(code, exit_codes.BySignal):
        die_of(code.number)
    sys.exit(code)


def _outcome() -> int:
    """Run the command line and return the exit code."""
    try:
        raise_on_sigint(True)
        result: Any = cli.main(prog_name="etcdsem", standalone_mode=False)
        return result if isinstance(result, int) else exit_codes.OK
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return exit_codes.USAGE
    except click.ClickException as error:
        say(_usage_line(error))
        return exit_codes.USAGE
    except (KeyboardInterrupt, click.Abort):
        return exit_codes.by_signal(signal.SIGINT)
    except EtcdSemError as error:
        return report(error)
    except (RuntimeError, MemoryError, OSError) as error:
        cannot_start = exit_codes.no_room(error)
        if cannot_start is None:
            raise
        return report(cannot_start)


def report(error: EtcdSemError) -> int:
    """Print an error, with a traceback if ETCDSEM_DEBUG is set, and return its exit code."""
    if os.environ.get("ETCDSEM_DEBUG"):
        import traceback

        traceback.print_exception(error)
    say(_with_typed_option(str(error)) if type(error) is InvalidSetting else error)
    return exit_codes.code_for(error)


def _with_typed_option(message: str) -> str:
    """Replace the setting or option that a message begins with by the option as it was typed."""
    found = re.match(r"(--)?[a-z][a-z_-]*(?=[: ])", message)
    command = next((word for word in sys.argv[1:] if word in _COMMANDS), None)
    if found is None or command is None:
        return message
    flag = _FLAGS.get(found[0], "--" + found[0].removeprefix("--").replace("_", "-"))
    entry = cli.get_command(click.Context(cli), command)
    for param in entry.params if entry is not None else ():
        typed = _typed(param) if flag in param.opts else None
        if typed is not None:
            return typed + message[found.end() :]
    return message


_FLAGS = {"max_leases": "--limit"}
"""Options that are named differently from the setting."""


def _typed(param: click.Parameter) -> str | None:
    """Return which of its options was typed last; None if it was not given."""
    words = sys.argv[1:]
    words = words[: words.index("--")] if "--" in words else words
    typed = None
    for word in words:
        for option in param.opts:
            short = len(option) == 2
            if word == option or word.startswith(option if short else f"{option}="):
                typed = option
    return typed


def _usage_line(error: click.ClickException) -> str:
    if isinstance(error, click.BadParameter) and error.param is not None and not error.param_hint:
        typed = _typed(error.param)
        error.param_hint = repr(typed) if typed is not None else None
    message = " ".join(error.format_message().split()).rstrip(".")
    context = getattr(error, "ctx", None)
    where = context.command_path if context is not None else "etcdsem"
    return f"{message} (see: {where} --help)"


def _cannot_write(error: BaseException | None) -> int:
    """Report that stdout is closed or full, or exit quietly if its reader went away."""
    if sys.stdout is not None:  # the rest of the buffer must not fail again at exit
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    if isinstance(error, BrokenPipeError):
        return exit_codes.SIGNAL + signal.SIGPIPE
    reason = error.strerror if isinstance(error, OSError) else error
    say(f"cannot write to standard output: {reason}")
    return exit_codes.NOT_DONE
