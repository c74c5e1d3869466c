"""``etcdsem completion``, and the completion of semaphore names from etcd.

Pressing the tab key takes two seconds at most and shows no errors: if etcd does not answer, there
are no suggestions.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Final

import click

from etcdsem.cli.options import connect, connection_options
from etcdsem.cli.output import echo

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from etcdsem import Overview

PATIENCE: Final = 1.5
"""Seconds that etcd has to return the names."""

VARIABLE: Final = "_ETCDSEM_COMPLETE"


@click.command(short_help="Print a shell completion script.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@connection_options
@click.pass_context
def completion(ctx: click.Context, /, shell: str) -> None:
    """Print a completion script for SHELL.

    It completes commands, options and semaphore names. Names are read from etcd, for at most two
    seconds, using the settings in the environment and on the typed command line.

    \b
    Examples:
      eval "$(etcdsem completion bash)"    in ~/.bashrc
      eval "$(etcdsem completion zsh)"     in ~/.zshrc
      etcdsem completion fish > ~/.config/fish/completions/etcdsem.fish
    """
    from click.shell_completion import ShellComplete, get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise AssertionError(f"click does not know {shell}")
    program = ctx.find_root().command
    script = ShellComplete.source(kind(program, {}, "etcdsem", VARIABLE)).strip()
    if shell == "fish":  # click's script cuts a description at its first comma
        script = script.replace('string split ","', 'string split --max 1 ","')
    echo(script)


def complete_name(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return the semaphores whose names begin with `incomplete`; none if etcd does not answer."""
    from click.shell_completion import CompletionItem

    return [
        CompletionItem(one.name, help=f"{one.held} held, {one.waiting} waiting")
        for one in _known(ctx)
        if one.name.startswith(incomplete)
    ]


def _known(ctx: click.Context) -> list[Overview]:
    found: list[Overview] = []
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)  # warnings and errors would garble the prompt
    try:
        client = connect(ctx, dial_timeout=PATIENCE)
        _ = client.id  # load what a connection needs before the clock runs
    except Exception:
        return found

    def ask() -> None:
        try:
            with client:
                found.extend(client.overview())
        except Exception:
            found.clear()

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE + 0.5)
    if asking.is_alive():
        os._exit(0)  # closing the client might take as long again
    return found
