"""The output of ``--json``: one object on one line, described in docs/cli.md.

Keys may be added; none is renamed or removed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from etcdsem.cli.output import echo, used

if TYPE_CHECKING:
    from etcdsem.model import Holder, Junk, Overview, Pause, Status, Waiter

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def echo_json(data: Mapping[str, Any]) -> None:
    """Write one JSON object on one line to stdout. Raises OutputError."""
    echo(json.dumps(data, default=str))


def stamp(moment: datetime | None) -> str | None:
    """Format a time for JSON: RFC 3339, UTC, with a Z."""
    if moment is None:
        return None
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def pause_data(pause: Pause | None) -> dict[str, str | None] | None:
    """Return the JSON data of a pause; None if it is not paused."""
    if pause is None:
        return None
    return {
        "by": pause.by,
        "since": stamp(pause.since),
        "until": stamp(pause.until),
        "reason": pause.reason,
    }


def rate_data(seen: Status) -> dict[str, Any]:
    """Return the JSON data of a rate limit. A block counts as used as soon as a client has it."""
    from etcdsem import Client

    rate = seen.rate
    if rate is None:
        return {}
    after = Client.next_free(seen)
    taken = used(seen.held, rate)
    return {
        "rate": str(rate),
        "limit": rate.starts,
        "period": rate.period,
        "block": rate.block,
        "used": taken,
        "free": max(0, rate.block * (seen.max_leases or 0) - taken),
        "waiting": len(seen.waiters),
        "next_free": round(after, 1) if after < math.inf else None,
        "paused": pause_data(seen.pause),
    }


def list_data(found: Iterable[Overview]) -> dict[str, Any]:
    """Return the JSON data of `ls`."""
    return {"semaphores": [overview_data(one) for one in found]}


def status_data(seen: Status) -> dict[str, Any]:
    """Return the JSON data of `status`."""
    return {
        "name": seen.name,
        "limit": seen.max_leases,
        "held": seen.held,
        "waiting": len(seen.waiters),
        "revision": seen.revision,
        "holders": [holder_data(one) for one in seen.holders],
        "waiters": [waiter_data(one) for one in seen.waiters],
        "junk": [junk_data(one) for one in seen.junk],
        "paused": pause_data(seen.pause),
        "rate": str(seen.rate) if seen.rate else None,
        "used": used(seen.held, seen.rate),
        "next_free": rate_data(seen).get("next_free"),
        "applied": seen.applied,
        "drift": seen.drift,
        "expires_in": seen.expires_in,
    }


def overview_data(one: Overview) -> dict[str, Any]:
    """Return the JSON data of a semaphore in `ls` and `top`."""
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
        "used": used(one.held, one.rate),
        "applied": one.applied,
        "drift": one.drift,
        "expires": one.expires,
    }


def junk_data(one: Junk) -> dict[str, str]:
    """Return the JSON data of an unrecognized key."""
    return {"key": one.key, "reason": one.reason}


def holder_data(one: Holder) -> dict[str, Any]:
    """Return the JSON data of a holder."""
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


def waiter_data(one: Waiter) -> dict[str, Any]:
    """Return the JSON data of a waiter."""
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
        "eager": one.backfill,  # the old name of the next
        "backfill": one.backfill,
    }
