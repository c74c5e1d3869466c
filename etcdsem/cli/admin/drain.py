"""``etcdsem drain``: pause a semaphore, and wait until it has no holders.

However it ends, the semaphore stays paused; a message says so and names the command to resume it.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import click

from etcdsem.cli import exit_codes
from etcdsem.cli.admin.pause import reason_option
from etcdsem.cli.arguments import name_argument
from etcdsem.cli.json_output import echo_json, holder_data, json_option, pause_data
from etcdsem.cli.logs import quiet_library
from etcdsem.cli.options import connect, connection_options
from etcdsem.cli.output import age, clean, echo, exact, owner_text, say
from etcdsem.cli.progress import Progress, ProgressLine
from etcdsem.cli.signals import Signals, Stopped
from etcdsem.cli.worker import StarvedCheck, Worker

if TYPE_CHECKING:
    from etcdsem import Client, Holder, Status

_NAMED: Final = 3
"""Holders to name; the others are counted."""


@click.command(short_help="Pause and wait until no lease is held.")
@name_argument
@click.option(
    "-w",
    "--wait",
    "--timeout",
    "wait",
    metavar="DURATION",
    help="Give up after this long, but stay paused. 0 checks once.  [wait forever]",
)
@reason_option
@click.option("-q", "--quiet", is_flag=True, help="Print nothing while waiting.")
@json_option
@connection_options
@click.pass_context
def drain(
    ctx: click.Context,
    /,
    name: str,
    wait: str | None,
    reason: str | None,
    quiet: bool,
    as_json: bool,
) -> int:
    """Pause NAME like `etcdsem pause`, and wait until no lease of it is held.

    NAME stays paused until `etcdsem resume NAME`. While waiting, the remaining holders are shown.
    INT, QUIT, TERM and HUP end the wait, not the pause.

    \b
    Examples:
      etcdsem drain gpu --reason "new driver" && ./upgrade.sh; etcdsem resume gpu
      etcdsem drain gpu --wait 10m || etcdsem status gpu

    \b
    Exit codes:
      0  no lease is held                 75 leases are still held after --wait
      1  it was resumed meanwhile         128+N stopped by signal N
    """
    from etcdsem.validation import timeout_seconds

    limit = timeout_seconds(wait, what="--wait")
    client = connect(ctx)
    quiet_library()
    signals = Signals()
    signals.install()
    with client:
        try:
            empty = _drain(client, name, signals, timeout=limit, reason=reason, quiet=quiet)
        except Stopped as stopped:
            return _stopped(client, name, stopped.number)
        seen = None if empty and not as_json else client.status(name, ttl=False)
    return _report(name, limit, seen, empty=empty, as_json=as_json)


def _stopped(client: Client, name: str, number: int) -> int:
    known = client.known_limit(name)
    paused = known is not None and known.pause is not None
    say(f"{signal.Signals(number).name}: {_stays(name) if paused else 'stopped'}")
    return exit_codes.by_signal(number)


def _report(
    name: str, limit: float | None, seen: Status | None, *, empty: bool, as_json: bool
) -> int:
    """Report the outcome and return the exit code."""
    holders = seen.holders if seen is not None and not empty else ()
    if as_json:
        pause = pause_data(seen.pause) if seen is not None else None
        data = [holder_data(one) for one in holders]
        echo_json({"name": name, "drained": empty, "holders": data, "paused": pause})
    if not empty:
        after = f" after {exact(limit)}" if limit else ""
        number = len(_by_lease(holders))
        left = f"{number} holder{'s' * (number != 1)} left{after}"
        say(f"{name}: {left} ({_named(holders)}); {_stays(name)}")
        return exit_codes.CONFLICT
    if not as_json:
        echo(f"{clean(name)}: paused and drained; to resume: etcdsem resume {clean(name)}")
    return exit_codes.OK


def _stays(name: str) -> str:
    return f"{name} stays paused; to resume: etcdsem resume {name}"


def _named(holders: Sequence[Holder]) -> str:
    """Return the owners of the oldest leases, and how long they have held them."""
    oldest = sorted(_by_lease(holders), key=lambda one: one.fencing_token)
    named = [f"{owner_text(one.owner)} for {age(one.acquired_at)}" for one in oldest[:_NAMED]]
    if len(oldest) > _NAMED:
        named.append(f"{len(oldest) - _NAMED} more")
    return ", ".join(named) or "the last one has just ended"


def _by_lease(holders: Sequence[Holder]) -> list[Holder]:
    """Return one holder for each lease: there is one for each slot."""
    return list({(one.lease_id, one.fencing_token): one for one in holders}.values())


class _Holders(ProgressLine):
    """Shows the remaining holders."""

    def _describe(self, status: Status) -> Progress:
        held = f"{len(_by_lease(status.holders))} still held"
        return Progress(self._name, held, held, _named(status.holders), doing="draining")


def _drain(
    client: Client,
    name: str,
    signals: Signals,
    *,
    timeout: float | None,
    reason: str | None,
    quiet: bool,
) -> bool:
    progress = _Holders(client, name, quiet=quiet)

    def call() -> bool:
        return client.drain(name, timeout, reason=reason, on_wait=progress.start)

    worker = Worker(call, signals, name="drain")
    check_threads = StarvedCheck(client)
    try:
        while not worker.done:
            check_threads()
            signals.stop(0.5)
        return worker.result()
    finally:
        progress.stop()
