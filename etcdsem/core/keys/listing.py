"""Holders and waiters, for decisions and for display."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime

from etcdsem.core.commands import KeyValue
from etcdsem.core.keys.layout import SLOT, Keys, lease_hex, owner_of
from etcdsem.core.keys.limit import Limit
from etcdsem.core.keys.permit import read_permit
from etcdsem.core.keys.queue import fault_of_waiter
from etcdsem.core.keys.records import demand_of, labels_of, load_record, max_hold_of
from etcdsem.core.keys.values import moment_of, text_of
from etcdsem.model import Holder, Junk, Waiter


def slot_number(keys: Keys, key: bytes) -> int | None:
    """The slot number of a key under ``leases/``; None if it does not name a slot."""
    text = key[len(keys.leases) :]
    return int(text) if SLOT.fullmatch(text) else None


def permit_slot(keys: Keys, key: bytes) -> int | None:
    """The slot number of a key under ``permits/``; None if it does not name a slot."""
    text = key[len(keys.permits) :]
    return int(text) if SLOT.fullmatch(text) else None


def read_holders(
    keys: Keys, kvs: Iterable[KeyValue], limit: Limit | None
) -> tuple[list[Holder], list[Junk]]:
    """The holders in slot order, and the invalid keys."""
    holders: list[Holder] = []
    junk: list[Junk] = []
    for kv in kvs:
        slot = slot_number(keys, kv.key)
        if slot is None:
            junk.append(_junk(kv, "not a slot's key: expected leases/<five digits>"))
            continue
        if kv.lease == 0:
            junk.append(
                _junk(
                    kv,
                    "has no etcd lease, so it blocks its slot until it is deleted "
                    f"(etcdsem evict {keys.name} --slot {slot})",
                )
            )
            continue
        fields = load_record(kv.value)
        pid = fields.get("pid")
        holders.append(
            Holder(
                slot=slot,
                owner=text_of(fields.get("owner")),
                host=text_of(fields.get("host")),
                pid=pid if isinstance(pid, int) else None,
                client=text_of(fields.get("client")),
                lease_id=lease_hex(kv.lease),
                fencing_token=kv.mod_revision,
                acquired_at=moment_of(fields, "acquired"),
                labels=labels_of(fields),
                over_limit=limit is not None and limit.number is not None and slot >= limit.number,
                weight=demand_of(fields).weight,
                max_hold=max_hold_of(fields),
            )
        )
    return holders, junk


def read_permits(keys: Keys, kvs: Iterable[KeyValue], wall: float) -> dict[int, Holder]:
    """The holders that the records of permits name, by slot, as far as their time is not over by
    this clock. One whose lease has ended has no other key.
    """
    found: dict[int, Holder] = {}
    for kv in kvs:
        slot, permit = permit_slot(keys, kv.key), read_permit(kv)
        left = permit.left(wall) if permit else 0.0
        if slot is None or permit is None or not left:
            continue
        host, pid = owner_of(permit.client)
        found[slot] = Holder(
            slot=slot,
            owner=f"{host}:{pid}" if host else "",
            host=host,
            pid=pid,
            client=permit.client,
            lease_id="",
            fencing_token=kv.mod_revision,
            acquired_at=datetime.fromtimestamp(permit.since, UTC),
            ttl=left,
        )
    return found


def read_waiters(keys: Keys, kvs: Iterable[KeyValue]) -> tuple[list[Waiter], list[Junk]]:
    """The waiters in the order in which they will be served, and the invalid keys."""
    waiters: list[tuple[tuple[int, int], Waiter]] = []
    junk: list[Junk] = []
    for kv in kvs:
        fault = fault_of_waiter(keys, kv)
        if fault is not None:
            junk.append(_junk(kv, fault))
            continue
        fields = load_record(kv.value)
        client = kv.key[len(keys.waiters) :].split(b"/")[0].decode()
        host, pid, _ = client.rsplit(".", 2)
        demand = demand_of(fields)
        one = Waiter(
            position=0,
            owner=text_of(fields.get("owner")) or f"{host}:{pid}",
            host=host,
            pid=int(pid),
            client=client,
            lease_id=lease_hex(kv.lease),
            since=moment_of(fields, "since"),
            labels=labels_of(fields),
            weight=demand.weight,
            priority=demand.priority,
            backfill=demand.backfill,
        )
        waiters.append(((-demand.priority, kv.create_revision), one))
    waiters.sort(key=lambda pair: pair[0])
    return [replace(one, position=at) for at, (_, one) in enumerate(waiters, 1)], junk


def _junk(kv: KeyValue, reason: str) -> Junk:
    return Junk(kv.key.decode("utf-8", "backslashreplace"), reason, kv.key)
