"""What lies in etcd under ``<prefix>/<name>/``, and how it is written and read.

    max_leases               the limit, plain text
    leases/<slot>            a holder's record; attached to the holder's etcd lease
    waiters/<client>/<lease> a waiter's record; attached to the waiter's etcd lease
    contended                "1" while somebody waits, or waited since the last clear
    grants/<client>/<lease>  the letter that tells a waiter its slot; attached to its etcd lease

1. Key names come from a small set that is used again and again: a dead name costs every later
   read of its prefix until etcd is compacted.
2. A client's id is ``<host>.<pid>.<random>``. It says who without a record, so the list of
   waiters that travels from holder to holder needs no records for most of them.
3. Whatever anybody may have put here by hand is read without raising: what cannot be right is
   left out, and named (`Junk`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from etcdsem.core.commands import KeyValue
from etcdsem.model import MAX_LIMIT, Holder, Junk, Waiter

MAX_LETTER = 4096
"""Bytes after which the list of waiters in a letter is cut; etcd takes 1.5 MiB in a request."""

_DIGITS = re.compile(rb"[0-9]{1,9}")
_SLOT = re.compile(rb"[0-9]{5}")
_WHO = re.compile(rb"([A-Za-z0-9_-]{1,63}\.[0-9]{1,10}\.[A-Za-z0-9]{1,16})/([0-9a-f]{16})")


class Keys:
    """The key names of one semaphore, as one client uses them."""

    __slots__ = (
        "base",
        "base_end",
        "contended",
        "grants",
        "leases",
        "leases_end",
        "max_leases",
        "my_grants",
        "my_grants_end",
        "my_waiters",
        "my_waiters_end",
        "name",
        "waiters",
        "waiters_end",
    )

    def __init__(self, prefix: str, name: str, client: str) -> None:
        self.name = name
        self.base = f"{prefix}/{name}/".encode()
        self.base_end = self.base[:-1] + b"0"  # "0" follows "/"
        self.max_leases = self.base + b"max_leases"
        self.contended = self.base + b"contended"
        self.leases = self.base + b"leases/"
        self.leases_end = self.base + b"leases/:"  # ":" follows "9": slots only
        self.waiters = self.base + b"waiters/"
        self.waiters_end = self.base + b"waiters0"
        self.grants = self.base + b"grants/"
        self.my_waiters = self.waiters + client.encode() + b"/"
        self.my_waiters_end = self.my_waiters[:-1] + b"0"
        self.my_grants = self.grants + client.encode() + b"/"
        self.my_grants_end = self.my_grants[:-1] + b"0"

    def slot(self, number: int) -> bytes:
        """The key of a slot."""
        return self.leases + b"%05d" % number

    def waiter(self, who: bytes) -> bytes:
        """The key of a waiter; `who` is ``<client>/<lease>``."""
        return self.waiters + who

    def letter(self, who: bytes) -> bytes:
        """The key of the letter for a waiter."""
        return self.grants + who


def lease_hex(lease_id: int) -> str:
    """An etcd lease's id as etcdctl prints it."""
    return f"{lease_id:016x}"


def client_id(host: str, pid: int, unique: str) -> str:
    """The id of a client, from which its host and process can be read."""
    return f"{re.sub('[^A-Za-z0-9_-]', '-', host)[:63] or 'unknown'}.{pid}.{unique}"


# ---------------------------------------------------------------- the limit


class Limit(NamedTuple):
    """The stored limit. `number` is None if it cannot be read: then nothing is granted."""

    number: int | None
    revision: int
    registered: bool
    """True while the limit is the one with which the semaphore was first registered."""
    text: str

    @property
    def room(self) -> int:
        """How many slots may be granted."""
        return self.number or 0


def read_limit(kv: KeyValue) -> Limit:
    """Read ``max_leases``. Spaces around the number are forgiven, nothing else is."""
    text = kv.value.strip(b" \t\r\n")
    number = int(text) if _DIGITS.fullmatch(text) else None
    if number is not None and number > MAX_LIMIT:
        number = None
    return Limit(
        number=number,
        revision=kv.mod_revision,
        registered=kv.create_revision == kv.mod_revision,
        text=kv.value[:60].decode("utf-8", "replace"),
    )


# ---------------------------------------------------------------- records


class Identity(NamedTuple):
    """Who asks: what people will read in etcd. `extras` is what the client's id does not say."""

    client: str
    extras: bytes

    @classmethod
    def of(cls, client: str, owner: str | None, labels: Mapping[str, str]) -> Identity:
        """Build one. The default owner is ``host:pid``, which is not stored in the extras."""
        extras: dict[str, object] = {}
        if owner:
            extras["owner"] = owner
        if labels:
            extras["labels"] = dict(labels)
        return cls(client, _dump(extras) if extras else b"")


def _dump(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def _timestamp(wall: float) -> str:
    return datetime.fromtimestamp(wall, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def record(client: str, extras: bytes, lease_id: int, moment: str, wall: float) -> bytes:
    """One line of JSON that tells people who holds or waits; `moment` names the time."""
    host, pid, _ = client.rsplit(".", 2)
    head = (
        f'{{"owner":"{host}:{pid}","host":"{host}","pid":{pid},"client":"{client}",'
        f'"lease":"{lease_hex(lease_id)}","{moment}":"{_timestamp(wall)}"'
    )
    if not extras:
        return head.encode() + b"}"
    fields = json.loads(head + "}")
    fields.update(json.loads(extras))
    return _dump(fields)


def _load(value: bytes) -> dict[str, Any]:
    """A record's fields; empty if somebody wrote something else there."""
    try:
        fields = json.loads(value)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _extras(value: bytes) -> bytes:
    """What must travel with a waiter: its owner if it chose one, its labels."""
    fields = _load(value)
    extras: dict[str, object] = {}
    owner = _text(fields.get("owner"))
    if owner and owner != f"{fields.get('host')}:{fields.get('pid')}":
        extras["owner"] = owner
    labels = _labels(fields)
    if labels:
        extras["labels"] = labels
    return _dump(extras) if extras else b""


def _text(value: object) -> str:
    return value[:253] if isinstance(value, str) else ""


def _labels(fields: Mapping[str, Any]) -> dict[str, str]:
    labels = fields.get("labels")
    if not isinstance(labels, dict):
        return {}
    return {str(k)[:63]: _text(v) for k, v in list(labels.items())[:16]}


def _when(fields: Mapping[str, Any], moment: str) -> datetime | None:
    try:
        when = datetime.fromisoformat(_text(fields.get(moment)))
    except ValueError:
        return None
    return when if when.tzinfo else when.replace(tzinfo=UTC)


# ---------------------------------------------------------------- the queue


class Queued(NamedTuple):
    """A waiter as those who hand over know it. `created` tells this stay in line from others."""

    who: bytes
    lease: int
    created: int
    extras: bytes

    @property
    def client(self) -> str:
        """The waiter's client id."""
        return self.who.split(b"/")[0].decode()


def _fault_of_waiter(keys: Keys, kv: KeyValue) -> str | None:
    match = _WHO.fullmatch(kv.key[len(keys.waiters) :])
    if match is None:
        return "not a waiter's key: expected waiters/<client>/<lease>"
    if kv.lease == 0:
        return "has no etcd lease, so nobody can be granted in its place; delete it"
    if kv.lease != int(match[2], 16):
        return "is attached to another etcd lease than the one it names; delete it"
    return None


def read_queue(keys: Keys, kvs: Iterable[KeyValue]) -> tuple[Queued, ...]:
    """The waiters in the order given, without those that cannot be right."""
    return tuple(
        Queued(kv.key[len(keys.waiters) :], kv.lease, kv.create_revision, _extras(kv.value))
        for kv in kvs
        if _fault_of_waiter(keys, kv) is None
    )


def write_letter(slot: int, queue: Iterable[Queued]) -> bytes:
    """A letter: the slot, and the waiters who are next as far as the sender knows.

    A long list is cut: it is only a hint, and each level of a PASS carries a letter.
    """
    letter = b"slot %d" % slot
    for q in queue:
        letter += b"\n%s %d %s" % (q.who, q.created, q.extras)
        if len(letter) > MAX_LETTER:
            break
    return letter


def read_letter(value: bytes) -> tuple[int, tuple[Queued, ...]] | None:
    """The slot and the queue in a letter, or None if nobody of ours wrote it."""
    head, *lines = value.split(b"\n")
    if not head.startswith(b"slot ") or not _DIGITS.fullmatch(head[5:]):
        return None
    queue = []
    for line in lines:
        who, created, extras = (*line.split(b" ", 2), b"", b"")[:3]
        match = _WHO.fullmatch(who)
        if match is None or not created.isdigit():
            return None
        queue.append(Queued(who, int(match[2], 16), int(created), extras))
    return int(head[5:]), tuple(queue)


# ---------------------------------------------------------------- slots, for decisions and people


def slot_number(keys: Keys, key: bytes) -> int | None:
    """Which slot a key below ``leases/`` stands for; None if it is no slot's name."""
    text = key[len(keys.leases) :]
    return int(text) if _SLOT.fullmatch(text) else None


def read_holders(
    keys: Keys, kvs: Iterable[KeyValue], limit: Limit | None
) -> tuple[list[Holder], list[Junk]]:
    """Who holds, in the order of their slots, and what cannot be right."""
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
                    "has no etcd lease, so it blocks its slot until somebody deletes it "
                    f"(etcdsem evict {keys.name} --slot {slot})",
                )
            )
            continue
        fields = _load(kv.value)
        pid = fields.get("pid")
        holders.append(
            Holder(
                slot=slot,
                owner=_text(fields.get("owner")),
                host=_text(fields.get("host")),
                pid=pid if isinstance(pid, int) else None,
                client=_text(fields.get("client")),
                lease_id=lease_hex(kv.lease),
                fencing_token=kv.mod_revision,
                acquired_at=_when(fields, "acquired"),
                labels=_labels(fields),
                over_limit=limit is not None and limit.number is not None and slot >= limit.number,
            )
        )
    return holders, junk


def read_waiters(keys: Keys, kvs: Iterable[KeyValue]) -> tuple[list[Waiter], list[Junk]]:
    """Who waits, in line, and what cannot be right."""
    waiters: list[Waiter] = []
    junk: list[Junk] = []
    for kv in kvs:
        fault = _fault_of_waiter(keys, kv)
        if fault is not None:
            junk.append(_junk(kv, fault))
            continue
        fields = _load(kv.value)
        client = kv.key[len(keys.waiters) :].split(b"/")[0].decode()
        host, pid, _ = client.rsplit(".", 2)
        waiters.append(
            Waiter(
                position=len(waiters) + 1,
                owner=_text(fields.get("owner")) or f"{host}:{pid}",
                host=host,
                pid=int(pid),
                client=client,
                lease_id=lease_hex(kv.lease),
                since=_when(fields, "since"),
                labels=_labels(fields),
            )
        )
    return waiters, junk


def _junk(kv: KeyValue, reason: str) -> Junk:
    return Junk(kv.key.decode("utf-8", "backslashreplace"), reason)
