"""What an operator does: ``ls``, ``status``, ``limit``, ``evict``, ``close``.

Each takes ``--json``: one object on one line, described in docs/cli.md. Keys may be added to it;
none is renamed or taken away.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from etcdsem.cli import codes
from etcdsem.cli.options import connect, connection_options
from etcdsem.cli.text import age, clean, echo, echo_json, flush, say, span, stamp, table
from etcdsem.errors import EtcdSemError, InvalidSetting

if TYPE_CHECKING:
    from etcdsem import Client, Holder, Junk, Status, Waiter

F = TypeVar("F", bound=Callable[..., Any])

_NUMBERS: Final = frozenset(
    {"SLOT", "PLACE", "PID", "TOKEN", "FOR", "TTL", "LIMIT", "HELD"} | {"WAITING"}
)

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object instead.")


# ---------------------------------------------------------------- ls


@click.command()
@json_option
@connection_options
@click.pass_context
def ls(ctx: click.Context, /, as_json: bool) -> None:
    """List all semaphores below the prefix: limit, leases held, and how many wait.

    \b
    Examples:
      etcdsem ls
      etcdsem ls --json | jq '.semaphores[] | select(.waiting > 0).name'
    """
    with connect(ctx) as client:
        found = client.overview()
        prefix = client.prefix
    if as_json:
        echo_json({"semaphores": [_line(asdict(one)) for one in found]})
        return
    if not found:
        say(f"there is no semaphore below {prefix}; etcdsem run NAME --limit N -- ... makes one")
        return
    rows = [(one.name, _limit(one.max_leases), str(one.held), str(one.waiting)) for one in found]
    table(("NAME", "LIMIT", "HELD", "WAITING"), rows, _NUMBERS)
    for one in found:
        if one.junk:
            say(f"{one.name}: {one.junk} strange keys are left out; see etcdsem status {one.name}")


def _line(one: dict[str, Any]) -> dict[str, Any]:
    return {"name": one["name"], "limit": one["max_leases"]} | {
        key: one[key] for key in ("held", "waiting", "junk")
    }


def _limit(number: int | None) -> str:
    return "?" if number is None else str(number)


# ---------------------------------------------------------------- status


@click.command()
@click.argument("name", metavar="NAME")
@json_option
@click.option("--watch", is_flag=True, help="Again every two seconds, until Ctrl-C.")
@connection_options
@click.pass_context
def status(ctx: click.Context, /, name: str, as_json: bool, watch: bool) -> None:
    """Show who holds a lease of NAME and who waits for one, since when, and how long each would
    last if its holder were gone (TTL).

    Exit code 78 if there is no such semaphore.

    \b
    Examples:
      etcdsem status gpu
      etcdsem status gpu --watch
      etcdsem status gpu --json | jq -r '.holders[].host'
    """
    with connect(ctx) as client:
        while True:
            seen = client.status(name)
            if as_json:
                echo_json(_status_data(seen))
            else:
                if watch:
                    click.clear()
                _show(seen)
            if not watch:
                return
            flush()
            time.sleep(2)


def _status_data(seen: Status) -> dict[str, Any]:
    return {
        "name": seen.name,
        "limit": seen.max_leases,
        "held": seen.held,
        "waiting": len(seen.waiters),
        "revision": seen.revision,
        "holders": [_holder_data(one) for one in seen.holders],
        "waiters": [_waiter_data(one) for one in seen.waiters],
        "junk": [asdict(one) for one in seen.junk],
    }


def _holder_data(one: Holder) -> dict[str, Any]:
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
    }


def _show(seen: Status) -> None:
    limit = "limit unreadable, nothing is granted" if seen.max_leases is None else None
    limit = limit or f"limit {seen.max_leases}"
    echo(f"{clean(seen.name)}: {limit}, {seen.held} held, {len(seen.waiters)} waiting")
    if seen.holders:
        echo("")
        rows = [
            (
                f"{one.slot}{' over limit' if one.over_limit else ''}",
                one.owner,
                age(one.acquired_at),
                _ttl(one.ttl),
                str(one.fencing_token),
                one.lease_id,
                _pairs(one.labels),
            )
            for one in seen.holders
        ]
        table(("SLOT", "HOLDER", "FOR", "TTL", "TOKEN", "LEASE", "LABELS"), rows, _NUMBERS)
    if seen.waiters:
        echo("")
        lines = [
            (
                str(one.position),
                one.owner,
                age(one.since),
                _ttl(one.ttl),
                one.lease_id,
                _pairs(one.labels),
            )
            for one in seen.waiters
        ]
        table(("PLACE", "WAITER", "FOR", "TTL", "LEASE", "LABELS"), lines, _NUMBERS)
    for one in seen.junk:
        say(f"left out: {one.key}: {one.reason}")


def _ttl(seconds: float | None) -> str:
    return "?" if seconds is None else span(seconds)


def _pairs(labels: Mapping[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in labels.items())


# ---------------------------------------------------------------- limit, evict, close


@click.command()
@click.argument("name", metavar="NAME")
@click.argument("number", metavar="[N]", type=int, required=False)
@json_option
@connection_options
@click.pass_context
def limit(ctx: click.Context, /, name: str, number: int | None, as_json: bool) -> None:
    """Show the limit of NAME, or change it to N, at once and for everybody.

    Raised, waiters get the new room. Lowered, nobody is interrupted: nobody gets in until enough
    have left. 0 lets nobody in until it is raised again. Prints the old and the new limit.

    \b
    Examples:
      etcdsem limit gpu
      etcdsem limit gpu 5
    """
    with connect(ctx) as client:
        if number is None:
            now = client.limit(name)
            if as_json:
                echo_json({"name": name, "limit": now})
            elif now is None:
                raise EtcdSemError(
                    f"{name}: what is stored as its limit is no number; set one: "
                    f"etcdsem limit {name} N"
                )
            else:
                echo(str(now))
            return
        old, new = client.resize(name, number)
    if as_json:
        echo_json({"name": name, "old": old, "new": new})
    else:
        echo(f"{clean(name)}: {_limit(old)} -> {new}")


@click.command()
@click.argument("name", metavar="NAME")
@click.option("--slot", metavar="N", type=click.IntRange(min=0), help="The holder of this slot.")
@click.option("--lease", metavar="ID", help="The holder or waiter with this lease, in hex.")
@json_option
@connection_options
@click.pass_context
def evict(
    ctx: click.Context, /, name: str, slot: int | None, lease: str | None, as_json: bool
) -> None:
    """End one lease of NAME. Its holder is told, `etcdsem run` ends its command, and the slot
    goes to the next in line at once; a waiter loses its place.

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
        gone = _evict(client, name, slot, lease)
    kind = type(gone).__name__.lower()
    if as_json:
        echo_json({"name": name, "evicted": kind, kind: _evicted_data(gone)})
    else:
        echo(f"{clean(name)}: evicted {clean(_evicted_text(gone))}")


def _evict(
    client: Client, name: str, slot: int | None, lease: str | None
) -> Holder | Waiter | Junk:
    from etcdsem.model import check_name

    check_name(name)
    try:
        return client.evict(name, slot=slot, lease=lease)
    except InvalidSetting as error:  # the arguments were fine, but nobody is there
        raise EtcdSemError(str(error)) from error


def _evicted_data(gone: Holder | Waiter | Junk) -> dict[str, Any]:
    from etcdsem.model import Holder, Waiter

    match gone:
        case Holder():
            return _holder_data(gone)
        case Waiter():
            return _waiter_data(gone)
    return asdict(gone)


def _evicted_text(gone: Holder | Waiter | Junk) -> str:
    from etcdsem.model import Holder, Waiter

    match gone:
        case Holder():
            return f"{gone.owner} from slot {gone.slot} (lease {gone.lease_id})"
        case Waiter():
            return f"{gone.owner} from place {gone.position} in line (lease {gone.lease_id})"
    return f"{gone.key}, which {gone.reason}"


@click.command()
@click.argument("name", metavar="NAME")
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
        return codes.CONFIG
    if as_json:
        data = {"holders": list(closing.holders), "waiters": list(closing.waiters)}
        echo_json({"name": name, "closed": closing.done, **data})
    users = f"{len(closing.holders)} held, {len(closing.waiters)} waiting"
    if not closing.done:
        say(f"{name} is in use ({users}): not closed; --force does it all the same")
        return codes.NOT_DONE
    if not as_json:
        echo(
            f"{clean(name)}: closed" + (f" ({users})" if closing.holders or closing.waiters else "")
        )
    return codes.OK
