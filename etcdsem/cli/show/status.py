"""What an operator does: look (``ls``, ``status``) and change (``limit``, ``pause``, ...).

Each takes ``--json``: one object on one line, described in docs/cli.md. Keys may be added to it;
none is renamed or taken away.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import click

from etcdsem.cli import exit_codes
from etcdsem.cli.options import WholeNumber, connect, connection_options, name_argument
from etcdsem.cli.output import (
    age,
    clean,
    echo,
    echo_json,
    flush,
    limit_text,
    pause_data,
    pause_text,
    rate_data,
    rich_table,
    say,
    span,
    stamp,
    table,
    until_text,
    used,
)
from etcdsem.cli.run.acquire_worker import quiet_library
from etcdsem.cli.show.live_view import (
    LiveView,
    Screen,
    cut,
    interval_option,
    is_screen,
    print_repeatedly,
    read_interval,
)
from etcdsem.errors import EtcdSemError, InvalidSetting

if TYPE_CHECKING:
    from rich.console import RenderableType

    from etcdsem import Client, Holder, Junk, Overview, Status, Waiter

F = TypeVar("F", bound=Callable[..., Any])

_NUMBERS: Final = frozenset(
    {"SLOT", "PLACE", "PID", "TOKEN", "FOR", "AGO", "ENDS", "TTL", "LIMIT", "HELD"}
    | {"WEIGHT", "WAITING"}
)

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object instead.")


# ---------------------------------------------------------------- ls


@click.command()
@json_option
@connection_options
@click.pass_context
def ls(ctx: click.Context, /, as_json: bool) -> None:
    """List all semaphores below the prefix: limit, slots held, and how many wait. Of a rate limit
    HELD is how many starts count in the running period.

    \b
    Examples:
      etcdsem ls
      etcdsem ls --json | jq '.semaphores[] | select(.waiting > 0).name'
    """
    with connect(ctx) as client:
        found = client.overview()
        prefix = client.prefix
    if as_json:
        echo_json({"semaphores": [overview_data(one) for one in found]})
        return
    if not found:
        say(f"there is no semaphore below {prefix}; etcdsem run NAME --limit N -- ... makes one")
        return
    rows: list[tuple[str, ...]] = [
        (
            one.name,
            limit_text(one.max_leases, one.rate) + (" paused" if one.pause else ""),
            str(used(one.held, one.rate)),
            str(one.waiting),
        )
        for one in found
    ]
    table(("NAME", "LIMIT", "HELD", "WAITING"), rows, _NUMBERS)
    for one in found:
        if one.junk:
            say(f"{one.name}: {one.junk} strange keys are left out; see etcdsem status {one.name}")


def overview_data(one: Overview) -> dict[str, Any]:
    """A semaphore as `ls` and `top` tell it."""
    return {
        "name": one.name,
        "limit": one.max_leases,
        "held": one.held,
        "waiting": one.waiting,
        "junk": one.junk,
        "waiting_since": stamp(one.waiting_since),
        "overbooked": one.overbooked,
        "paused": pause_data(one.pause),
        "rate": str(one.rate) if one.rate else None,
    }


# ---------------------------------------------------------------- status


@click.command()
@name_argument
@json_option
@click.option(
    "-W", "--watch", is_flag=True, help="Again and again, until q or Ctrl-C; on a terminal live."
)
@interval_option
@connection_options
@click.pass_context
def status(ctx: click.Context, /, name: str, as_json: bool, watch: bool, interval: str) -> int:
    """Show who holds a lease of NAME and who waits for one, since when, and how long each would
    last if its holder were gone (TTL).

    Exit code 78 if there is no such semaphore.

    \b
    Examples:
      etcdsem status gpu
      etcdsem status gpu --watch
      etcdsem status gpu --json | jq -r '.holders[].host'
    """
    every = read_interval(interval)
    client = connect(ctx)

    def look() -> Status:
        return client.status(name)

    if watch and not as_json and is_screen():
        quiet_library()
        return LiveView(look, _picture, every=every, close=client.close).run()
    if watch:
        quiet_library()
        show = partial(_print_status, as_json=as_json)
        return print_repeatedly(look, show, every=every, count=0, close=client.close)
    with client:
        _print_status(look(), as_json=as_json)
    return exit_codes.OK


_BOTH: Final = 9
"""Lines from which there is room for holders and waiters."""

_DROPPED: Final = ((90, "LABELS"), (64, "LEASE"), (64, "TOKEN"), (40, "TTL"))
"""Columns that narrower terminals have no room for."""

_WITH_WANTS: Final = 52


def _fitting(header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> RenderableType:
    gone = {title for least, title in _DROPPED if width < least}
    if "WANTS" in header and width < _WITH_WANTS:
        gone |= {"TTL", "FOR"}  # what one wants says more of why it waits
    kept = [place for place, title in enumerate(header) if title not in gone]
    return rich_table(
        [header[place] for place in kept],
        [[row[place] for place in kept] for row in rows],
        _NUMBERS,
        folded=False,
    )


def _print_status(seen: Status, which: int = 1, *, as_json: bool) -> None:
    if as_json:
        echo_json(_status_data(seen))
    else:
        if which > 1:
            echo("")
        _show(seen)
    flush()


def _picture(seen: Status, screen: Screen, trouble: str) -> RenderableType:
    """The same, for a terminal of that size: the holders, and as many in line as fit."""
    from rich.console import Group
    from rich.text import Text

    def line(text: str, style: str) -> Text:
        return Text(cut(text, screen.width), style=style, no_wrap=True)

    header, *holders = _holder_rows(seen)
    titles, *waiters = _waiter_rows(seen)
    both = bool(waiters) and screen.height >= _BOTH
    head = [clean(_headline(seen))]
    if len(head[0]) > screen.width and screen.height >= _BOTH:
        head = [clean(part) for part in _headline_parts(seen)]
    used_up = len(head) - 1 + (6 if both else 4)  # the rest: titles, blanks, the foot
    space = max(1, screen.height - used_up)
    some = holders[: max(space // 2, space - len(waiters)) if both else space]
    rest = waiters[: space - len(some)] if both else []
    parts: list[RenderableType] = [*(line(text, "bold") for text in head), Text("")]
    parts.append(_fitting(header, some, screen.width))
    if rest:
        parts += [Text(""), _fitting(titles, rest, screen.width)]
    more = len(holders) - len(some) + len(waiters) - len(rest) + len(seen.junk)
    hidden = f"{len(holders) - len(some)} holders, {len(waiters) - len(rest)} in line"
    foot = f"q quit   not shown: {hidden}, {len(seen.junk)} strange keys" if more else "q quit"
    parts.append(line(trouble or foot, "bold red" if trouble else "dim"))
    return Group(*parts)


def _status_data(seen: Status) -> dict[str, Any]:
    return {
        "name": seen.name,
        "limit": seen.max_leases,
        "held": seen.held,
        "waiting": len(seen.waiters),
        "revision": seen.revision,
        "holders": [holder_data(one) for one in seen.holders],
        "waiters": [_waiter_data(one) for one in seen.waiters],
        "junk": [asdict(one) for one in seen.junk],
        "paused": pause_data(seen.pause),
        "rate": str(seen.rate) if seen.rate else None,
    }


def holder_data(one: Holder) -> dict[str, Any]:
    """A holder as JSON tells it."""
    return {
        "slot": one.slot,
        "owner": one.owner,
        "host": one.host,
        "pid": one.pid,
        "client": one.client,
        "lease": one.lease_id,
        "fencing_token": one.fencing_token,
        "acquired_at": stamp(one.acquired_at),
        "ttl": one.ttl,
        "labels": dict(one.labels),
        "over_limit": one.over_limit,
        "weight": one.weight,
        "max_hold": one.max_hold,
        "ends_at": stamp(one.ends_at),
    }


def _waiter_data(one: Waiter) -> dict[str, Any]:
    return {
        "position": one.position,
        "owner": one.owner,
        "host": one.host,
        "pid": one.pid,
        "client": one.client,
        "lease": one.lease_id,
        "since": stamp(one.since),
        "ttl": one.ttl,
        "labels": dict(one.labels),
        "weight": one.weight,
        "priority": one.priority,
        "eager": one.eager,
    }


_HOLDERS: Final = ("SLOT", "HOLDER", "WEIGHT", "FOR", "ENDS", "TTL", "TOKEN", "LEASE", "LABELS")
_WAITERS: Final = ("PLACE", "WAITER", "WANTS", "FOR", "TTL", "LEASE", "LABELS")
_OF_RATES: Final = {"HOLDER": "STARTED BY", "FOR": "AGO"}


def _headline(seen: Status) -> str:
    return "; ".join(_headline_parts(seen))


def _headline_parts(seen: Status) -> list[str]:
    """How much is in use, and, if nothing goes on, why."""
    waiting = f"{len(seen.waiters)} waiting"
    if seen.max_leases is None:
        limit = "limit unreadable, nothing is granted"
        parts = [f"{seen.name}: {limit}, {seen.held} held, {waiting}"]
    elif seen.rate is not None:
        data = rate_data(seen)
        after = data["next_free"]
        parts = [f"{seen.name}: rate {seen.rate}, {data['used']} used, {waiting}"]
        if after:
            parts.append(f"next free in {until_text(after)}")
    else:
        parts = [f"{seen.name}: limit {seen.max_leases}, {seen.held} held, {waiting}"]
    if seen.pause is not None:
        parts.append(pause_text(seen.pause))
    elif seen.waiters and seen.max_leases is not None:
        free, wanted = seen.max_leases - seen.held, seen.waiters[0].weight
        if 0 < free < wanted:
            parts.append(f"{free} free, kept for the first in line, who wants {wanted}")
    return parts


def _show(seen: Status) -> None:
    echo(clean(_headline(seen)))
    if seen.holders:
        echo("")
        header, *rows = _holder_rows(seen)
        table(header, rows, _NUMBERS)
    if seen.waiters:
        echo("")
        titles, *rows = _waiter_rows(seen)
        table(titles, rows, _NUMBERS)
    for one in seen.junk:
        say(f"left out: {one.key}: {one.reason}")


def _holder_rows(seen: Status) -> list[tuple[str, ...]]:
    """The titles, and the rows below. When a lease ends, and how many slots it has, are columns
    only if there is something to say.
    """
    rows: list[tuple[str, ...]] = [
        tuple(_OF_RATES.get(title, title) for title in _HOLDERS) if seen.rate else _HOLDERS,
        *(
            (
                f"{one.slot}{' over limit' if one.over_limit else ''}",
                one.owner,
                str(one.weight),
                age(one.acquired_at),
                _ends(one),
                _ttl(one.ttl),
                str(one.fencing_token),
                one.lease_id,
                _pairs(one.labels),
            )
            for one in seen.holders
        ),
    ]
    unsaid = []
    if all(one.max_hold is None for one in seen.holders):
        unsaid.append("ENDS")
    if all(one.weight == 1 for one in seen.holders):
        unsaid.append("WEIGHT")
    return _without(rows, [_HOLDERS.index(title) for title in unsaid])


def _without(rows: Sequence[tuple[str, ...]], gone: Sequence[int]) -> list[tuple[str, ...]]:
    """The same without some columns."""
    return [tuple(cell for place, cell in enumerate(row) if place not in gone) for row in rows]


def _ends(one: Holder) -> str:
    """When it has been held for as long as its holder means to, at the latest."""
    if one.max_hold is None:
        return "-"
    if one.ends_at is None:
        return "?"
    return f"in {span(max(0.0, (one.ends_at - datetime.now(UTC)).total_seconds()))}"


def _waiter_rows(seen: Status) -> list[tuple[str, ...]]:
    """The titles, and the rows below. What they want is a column only if one wants something
    special.
    """
    rows: list[tuple[str, ...]] = [
        _WAITERS,
        *(
            (
                str(one.position),
                one.owner,
                _wants(one),
                age(one.since),
                _ttl(one.ttl),
                one.lease_id,
                _pairs(one.labels),
            )
            for one in seen.waiters
        ),
    ]
    special = any(_wants(one) != "-" for one in seen.waiters)
    return _without(rows, [] if special else [_WAITERS.index("WANTS")])


def _wants(one: Waiter) -> str:
    """What it wants beyond one slot in its turn."""
    words = [f"weight {one.weight}"] if one.weight > 1 else []
    words += [f"priority {one.priority}"] if one.priority else []
    words += ["eager"] if one.eager else []
    return ", ".join(words) or "-"


def _ttl(seconds: float | None) -> str:
    return "?" if seconds is None else span(seconds)


def _pairs(labels: Mapping[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in labels.items())


# ---------------------------------------------------------------- limit, evict, close


class _Signed(click.Command):
    """A command that takes -2 for an argument, not for an option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.ignore_unknown_options = any(re.fullmatch("-[0-9]+", one) for one in args)
        return super().parse_args(ctx, args)


@click.command(cls=_Signed)
@name_argument
@click.argument("number", metavar="[N|+N|-N]", required=False)
@json_option
@connection_options
@click.pass_context
def limit(ctx: click.Context, /, name: str, number: str | None, as_json: bool) -> None:
    """Show the limit of NAME, or change it for everybody at once: to N, or by +N or -N.

    +N and -N count from the limit that is registered when the change is made, also if somebody else
    changes it at the same time.

    Raised, waiters get the new room. Lowered, nobody is interrupted: nobody gets in until enough
    have left. 0 lets nobody in until it is raised again; what is paused stays paused. Prints the
    old and the new limit.

    \b
    Examples:
      etcdsem limit gpu
      etcdsem limit gpu 5
      etcdsem limit gpu +1
      etcdsem limit gpu -2
    """
    change = None if number is None else _read_change(number)
    with connect(ctx) as client:
        if change is None:
            known = client.limit(name)
            if as_json:
                echo_json({"name": name, "limit": known})
            elif known is None:
                raise EtcdSemError(
                    f"{name}: what is stored as its limit is no number; set one: "
                    f"etcdsem limit {name} N"
                )
            else:
                echo(str(known))
            return
        if change.relative:
            old, new = _change_by(client, name, change.number)
        else:
            old, new = client.resize(name, change.number)
        now = client.station(name).limit
    if as_json:
        echo_json({"name": name, "old": old, "new": new})
    else:
        echo(f"{clean(name)}: {limit_text(old, None)} -> {new}")
        if now is not None and now.paused:
            say(f"{name} is paused, and stays so; to go on: etcdsem resume {name}")


class _Change(NamedTuple):
    """A limit as it was given: a number, or (relative) what to add to the present one."""

    number: int
    relative: bool


def _read_change(text: str) -> _Change:
    if re.fullmatch("[+-]?[0-9]{1,20}", text) is None:
        raise InvalidSetting(
            f"{text!r} is not a limit; give a whole number (5), or a change of the present limit "
            "(+1, -2)"
        )
    return _Change(int(text), text[0] in "+-")


def _change_by(client: Client, name: str, difference: int) -> tuple[int | None, int | None]:
    from etcdsem.core import operating

    procedure = operating.change_by(client.station(name), difference)
    change = client.run(procedure, f"change the limit of {name!r}")
    return change.before.number, change.after.number


reason_option = click.option(
    "--reason", metavar="TEXT", help="Shown to whoever looks why nothing goes on."
)


@click.command(short_help="Grant no more leases until resumed.")
@name_argument
@reason_option
@json_option
@connection_options
@click.pass_context
def pause(ctx: click.Context, /, name: str, reason: str | None, as_json: bool) -> None:
    """Grant no lease of NAME, to anybody, until `etcdsem resume NAME`.

    Who holds one is not disturbed. Who waits goes on waiting, and keeps its place; who doesn't
    wait is told that nothing is free. Slots that are given back stay free. `status`, `ls` and `top`
    say who paused it (ETCDSEM_OWNER, else user@host), since when, and why. To pause what is paused
    changes nothing.

    \b
    Examples:
      etcdsem pause gpu --reason "new driver, back at 10:00"
      etcdsem resume gpu
    """
    with connect(ctx) as client:
        changed = client.pause(name, reason=reason)
        now = client.station(name).limit
    known = now.pause if now is not None else None
    if as_json:
        echo_json({"name": name, "changed": changed, "paused": pause_data(known)})
    elif changed:
        echo(f"{clean(name)}: paused")
    else:
        told = pause_text(known) if known is not None else "paused"
        echo(clean(f"{name}: it is {told}; nothing was changed"))


@click.command(short_help="Grant leases again.")
@name_argument
@json_option
@connection_options
@click.pass_context
def resume(ctx: click.Context, /, name: str, as_json: bool) -> None:
    """Grant leases of NAME again after `etcdsem pause` or `drain`: who waits is served at once, in
    order. To resume what is not paused changes nothing.

    \b
    Example:
      etcdsem resume gpu
    """
    with connect(ctx) as client:
        changed = client.resume(name)
    if as_json:
        echo_json({"name": name, "changed": changed, "paused": None})
    else:
        echo(f"{clean(name)}: {'resumed' if changed else 'it is not paused; nothing was changed'}")


@click.command()
@name_argument
@click.option("--slot", metavar="N", type=WholeNumber(min=0), help="The holder of this slot.")
@click.option("--lease", metavar="ID", help="The holder or waiter with this lease, in hex.")
@json_option
@connection_options
@click.pass_context
def evict(
    ctx: click.Context, /, name: str, slot: int | None, lease: str | None, as_json: bool
) -> None:
    """End one lease of NAME. Its holder is told, `etcdsem run` ends its command, and the slot
    goes to the next in line at once. A waiter stops waiting: `run` and `hold` exit with 70.

    Exit code 1 if nobody is there.

    \b
    Examples:
      etcdsem evict gpu --slot 2
      etcdsem evict gpu --lease 694d7c1e2a3b4c5d
    """
    if (slot is None) == (lease is None):
        raise click.UsageError("give either --slot or --lease")
    if lease is not None and re.fullmatch("[0-9A-Fa-f]{1,16}", lease) is None:
        raise click.UsageError(f"{lease!r} is no lease: give it in hex, as etcdsem status shows it")
    with connect(ctx) as client:
        gone = client.evict(name, slot=slot, lease=lease)
    kind = type(gone).__name__.lower()
    if as_json:
        echo_json({"name": name, "evicted": kind, kind: _evicted_data(gone)})
    else:
        echo(f"{clean(name)}: evicted {clean(_evicted_text(gone))}")


def _evicted_data(gone: Holder | Waiter | Junk) -> dict[str, Any]:
    from etcdsem.model import Holder, Waiter

    match gone:
        case Holder():
            return holder_data(gone)
        case Waiter():
            return _waiter_data(gone)
    return asdict(gone)


def _evicted_text(gone: Holder | Waiter | Junk) -> str:
    from etcdsem.model import Holder, Waiter

    match gone:
        case Holder():
            all_of = f", all {gone.weight} slots" if gone.weight > 1 else ""
            return f"{gone.owner} from slot {gone.slot} (lease {gone.lease_id}{all_of})"
        case Waiter():
            return f"{gone.owner} from place {gone.position} in line (lease {gone.lease_id})"
    return f"{gone.key}, which {gone.reason}"


@click.command()
@name_argument
@click.option(
    "--force", is_flag=True, help="Even while it is in use: all holders lose their lease."
)
@json_option
@connection_options
@click.pass_context
def close(ctx: click.Context, /, name: str, force: bool, as_json: bool) -> int:
    """Remove the semaphore NAME from etcd.

    While somebody holds or waits, nothing is done (exit code 1), unless --force is given; then
    they lose their leases and are told that it was closed.

    \b
    Examples:
      etcdsem close gpu
      etcdsem close gpu --force
    """
    with connect(ctx) as client:
        closing = client.close_semaphore(name, force=force)
    if not closing.known:
        say(f"{name} is not known: there is nothing to close (see: etcdsem ls)")
        return exit_codes.CONFIG
    if as_json:
        data = {"holders": list(closing.holders), "waiters": list(closing.waiters)}
        echo_json({"name": name, "closed": closing.done, **data})
    users = f"{len(closing.holders)} held, {len(closing.waiters)} waiting"
    if not closing.done:
        say(f"{name} is in use ({users}): not closed; --force does it all the same")
        return exit_codes.NOT_DONE
    if not as_json:
        echo(
            f"{clean(name)}: closed" + (f" ({users})" if closing.holders or closing.waiters else "")
        )
    return exit_codes.OK
