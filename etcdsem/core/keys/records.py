"""The records that holders and waiters store about themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

from etcdsem.core.commands import KeyValue
from etcdsem.core.keys.layout import CARRIED, MAX_HOLD, lease_hex
from etcdsem.core.keys.limit import Limit
from etcdsem.core.keys.values import moment_of, text_of, timestamp
from etcdsem.validation import MAX_PRIORITY, MAX_SLOTS


class Demand(NamedTuple):
    """What is requested; by default one slot in FIFO order."""

    weight: int = 1
    """Number of slots."""
    priority: int = 0
    """Higher priorities are served first."""
    backfill: bool = False
    """May pass waiters that need more slots than are free."""


ORDINARY = Demand()


class Identity(NamedTuple):
    """Who acquires, for people to read in etcd. `extras` is what the client ID does not contain."""

    client: str
    extras: bytes

    @classmethod
    def of(
        cls,
        client: str,
        owner: str | None,
        labels: Mapping[str, str],
        *,
        max_hold: float | None = None,
    ) -> Identity:
        """Build one. The default owner is ``host:pid``, which is not stored in the extras."""
        extras: dict[str, object] = {}
        if owner:
            extras["owner"] = owner
        if labels:
            extras["labels"] = dict(labels)
        if max_hold is not None:
            extras[MAX_HOLD] = int(max_hold) if max_hold == int(max_hold) else max_hold
        return cls(client, dump(extras) if extras else b"")

    def demanding(self, demand: Demand) -> Identity:
        """A copy that requests something special."""
        if demand == ORDINARY:
            return self
        extras = json.loads(self.extras) if self.extras else {}
        return Identity(self.client, dump({**extras, **_special(demand)}))

    def carrying(self, told: int | None, limit: Limit) -> Identity:
        """A copy for a program that carries another limit than the one in force; None: carries
        none.
        """
        if told is None or told == limit.number:
            return self
        extras = json.loads(self.extras) if self.extras else {}
        return Identity(self.client, dump({**extras, CARRIED: told}))


def dump(value: object) -> bytes:
    """One line of JSON, as short as possible."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def record(client: str, extras: bytes, lease_id: int, moment: str, wall: float) -> bytes:
    """One line of JSON that shows people who holds or waits; `moment` names the time field."""
    if not extras:
        return b'%s%s"}' % (plain_start(client, lease_id, moment), timestamp(wall).encode())
    fields = json.loads(f'{_head(client)}"{lease_hex(lease_id)}"}}')
    fields.update(json.loads(extras))
    fields[moment] = timestamp(wall)  # last: see plain_start
    return dump(fields)


def plain_start(client: str, lease_id: int, moment: str) -> bytes:
    """How a record without extras begins, up to the time, and no other record does."""
    return f'{_head(client)}"{lease_hex(lease_id)}","{moment}":"'.encode()


@lru_cache(64)
def _head(client: str) -> str:
    host, pid, _ = client.rsplit(".", 2)
    return f'{{"owner":"{host}:{pid}","host":"{host}","pid":{pid},"client":"{client}","lease":'


def load_record(value: bytes) -> dict[str, Any]:
    """The fields of a record; empty if it is not one."""
    try:
        fields = json.loads(value)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def extras_of(value: bytes) -> bytes:
    """What must travel with a waiter: an owner if it has chosen one, its labels, its requests."""
    fields = load_record(value)
    extras: dict[str, object] = {}
    owner = text_of(fields.get("owner"))
    if owner and owner != f"{fields.get('host')}:{fields.get('pid')}":
        extras["owner"] = owner
    labels = labels_of(fields)
    if labels:
        extras["labels"] = labels
    carried = _carried(fields)
    if carried is not None:
        extras[CARRIED] = carried
    extras.update(_special(demand_of(fields)))
    max_hold = max_hold_of(fields)
    if max_hold is not None:
        extras[MAX_HOLD] = max_hold
    return dump(extras) if extras else b""


def labels_of(fields: Mapping[str, Any]) -> dict[str, str]:
    """The labels in a record."""
    labels = fields.get("labels")
    if not isinstance(labels, dict):
        return {}
    return {str(k)[:63]: text_of(v) for k, v in list(labels.items())[:16]}


def _carried(fields: Mapping[str, Any]) -> int | None:
    carried = fields.get(CARRIED)
    return carried if isinstance(carried, int) and not isinstance(carried, bool) else None


def demand_of(fields: Mapping[str, Any]) -> Demand:
    """Number of slots, priority and eagerness in a record."""
    return Demand(
        _number(fields.get("weight"), 1, MAX_SLOTS, ORDINARY.weight),
        _number(fields.get("priority"), -MAX_PRIORITY, MAX_PRIORITY, ORDINARY.priority),
        fields.get("eager") is True,
    )


def _number(value: object, least: int, most: int, default: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        return default
    return value


def _special(demand: Demand) -> dict[str, object]:
    """The fields that differ from the default, as they are written into records."""
    named = zip(("weight", "priority", "eager"), demand, ORDINARY, strict=True)
    return {name: value for name, value, ordinary in named if value != ordinary}


def max_hold_of(fields: Mapping[str, Any]) -> float | None:
    """The max_hold in a record, in seconds; None if it is missing or invalid."""
    max_hold = fields.get(MAX_HOLD)
    if isinstance(max_hold, bool) or not isinstance(max_hold, int | float):
        return None
    return max_hold if 0 < max_hold <= _LONGEST else None


_LONGEST = 1e12  # seconds: nobody needs more, and datetime cannot represent it


class Stated(NamedTuple):
    """The fields of a record that are useful beside its key."""

    when: datetime | None
    """The start of the hold or wait, by its writer's clock."""
    carried: int | None
    """The limit that its program carries, if that is not the one in force."""
    demand: Demand
    """What its lease holds, or waits for."""
    max_hold: float | None
    """Seconds after which its holder ends it."""


def stated(kv: KeyValue) -> Stated:
    """Parse a holder's or a waiter's record; unreadable fields are None."""
    fields = load_record(kv.value)
    return Stated(
        moment_of(fields, "acquired") or moment_of(fields, "since"),
        _carried(fields),
        demand_of(fields),
        max_hold_of(fields),
    )
