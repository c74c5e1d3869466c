"""What lies in etcd under ``<prefix>/<name>/``, and how it is written and read.

    max_leases               the limit, plain text: 5, 5 paused by ..., 100/1m (a rate limit)
    leases/<slot>            a holder's record; attached to the holder's etcd lease
    waiters/<client>/<lease> a waiter's record; attached to the waiter's etcd lease
    contended                "1" while somebody waits, or waited since the last clear
    priorities               "1" while somebody with a priority waits, or waited since the last look
    grants/<client>/<lease>  the letter that tells a waiter its slot, attached to its etcd lease; or
                             that it was evicted, attached to a lease that nobody refreshes

1. Key names come from a small set that is used again and again: a dead name costs every later
   read of its prefix until etcd is compacted.
2. A client's id is ``<host>.<pid>.<random>``. It says who without a record, so the list of
   waiters that travels from holder to holder needs no records for most of them.
3. Whatever anybody may have put here by hand is read without raising: what cannot be right is
   left out, and named (`Junk`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

from etcdsem.core.commands import KeyValue
from etcdsem.model import (
    MAX_LIMIT,
    MAX_PRIORITY,
    MAX_WEIGHT,
    Holder,
    Junk,
    Pause,
    Rate,
    Waiter,
    seconds,
)

MAX_LETTER = 4096
"""Bytes after which the list of waiters in a letter is cut; etcd takes 1.5 MiB in a request."""

CARRIED = "carries_limit"
"""The field of a record that tells which limit its program was told, where that is not the one in
force: after a resize, programs go on with the number that they carry."""

MAX_HOLD = "max_hold"
"""The field of a record with the seconds after which its holder ends the lease."""

_SPECIAL = re.compile(rb'"(weight|priority|eager)"')
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
        "priorities",
        "rights",
        "waiters",
        "waiters_end",
    )

    def __init__(self, prefix: str, name: str, client: str) -> None:
        self.name = name
        self.base = f"{prefix}/{name}/".encode()
        self.base_end = self.base[:-1] + b"0"  # "0" follows "/"
        self.max_leases = self.base + b"max_leases"
        self.contended = self.base + b"contended"
        self.priorities = self.base + b"priorities"
        self.rights = self.base + b"leases/rights"  # never there, see transactions.join
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
    paused: bool = False
    """True while an operator has paused it: nothing is granted, and the number is kept."""
    rate: Rate | None = None
    """Not None for a rate limit; `number` is then how many blocks of starts it has."""
    note: str = ""
    """What stands after `` paused``."""

    @property
    def room(self) -> int:
        """How many slots may be granted."""
        return 0 if self.paused else self.number or 0

    @property
    def pause(self) -> Pause | None:
        """Who paused it, since when, and why, as far as that was written down."""
        return _read_pause(self.note) if self.paused else None


def read_limit(kv: KeyValue) -> Limit:
    """Read ``max_leases``. Spaces around are forgiven, and nothing else that is not one of:

    ``5``, ``5 paused``, ``100/1m`` (a rate), ``10000/1m/50`` (a rate, in blocks of 50), either
    with `` paused``, after which anything may stand: who paused it, since when, why. A space at
    its end says that it is the registered limit still, though a pause has been written to it.
    """
    head, _, rest = kv.value.strip(_AROUND).partition(b" ")
    words = rest.split(None, 1)
    paused = words[:1] == [b"paused"]
    number, rate = _read_number(head) if paused or not rest else (None, None)
    return Limit(
        number=number,
        revision=kv.mod_revision,
        registered=kv.create_revision == kv.mod_revision or kv.value.endswith(_STILL),
        text=kv.value[:60].decode("utf-8", "replace"),
        paused=paused and number is not None,
        rate=rate,
        note=words[1][:_NOTE].decode("utf-8", "replace") if paused and len(words) > 1 else "",
    )


_AROUND = b" \t\r\n"
_STILL = b" "
_NOTE = 2048  # bytes: an owner and a reason of 253 characters each, and some words
_PAUSED = re.compile(
    r"by (?P<by>.+?) since (?P<since>\d{4}-\d\d-\d\dT[0-9:.]+Z)(?:, (?P<reason>.*))?", re.DOTALL
)


def write_paused(kv: KeyValue, by: str, wall: float, reason: str | None) -> bytes:
    """``max_leases`` as it is, but paused: by whom, when (`wall`), why."""
    note = f"paused by {by} since {_timestamp(wall)}" + (f", {reason}" if reason else "")
    return b"%s %s%s" % (_head(kv), note.encode(), _still(kv))


def write_resumed(kv: KeyValue) -> bytes:
    """``max_leases`` as it is, but not paused."""
    return _head(kv) + _still(kv)


def write_resized(kv: KeyValue, limit: int | Rate) -> bytes:
    """``max_leases`` with another number or rate; a pause stays."""
    rest = kv.value.strip(_AROUND)[len(_head(kv)) :]
    return str(limit).encode() + (rest if read_limit(kv).paused else b"")


def _head(kv: KeyValue) -> bytes:
    return kv.value.strip(_AROUND).partition(b" ")[0]


def _still(kv: KeyValue) -> bytes:
    return _STILL if read_limit(kv).registered else b""


def _read_pause(note: str) -> Pause:
    match = _PAUSED.fullmatch(note)
    if match is None:
        return Pause("", None, note)  # somebody paused it by hand
    return Pause(match["by"], _when(match.groupdict(), "since"), match["reason"] or "")


def _read_number(text: bytes) -> tuple[int | None, Rate | None]:
    first, *others = text.split(b"/")
    if not _DIGITS.fullmatch(first):
        return None, None
    number = int(first)
    if not others:
        return (number if number <= MAX_LIMIT else None), None
    try:
        period = seconds(others[0].decode("ascii"))
    except ValueError:
        return None, None
    blocks = others[1:] or [b"1"]
    if len(blocks) > 1 or not _DIGITS.fullmatch(blocks[0]) or not 0 < period < math.inf:
        return None, None
    block = int(blocks[0])
    slots = number // block if block else MAX_LIMIT + 1
    if slots > MAX_LIMIT:
        return None, None
    return slots, Rate(number, period, block)


# ---------------------------------------------------------------- records


class Wants(NamedTuple):
    """What is wanted beyond one slot in its turn."""

    weight: int = 1
    """How many slots."""
    priority: int = 0
    """Higher ones are served first."""
    eager: bool = False
    """To pass those who want more slots than are free."""


ORDINARY = Wants()


class Identity(NamedTuple):
    """Who asks: what people will read in etcd. `extras` is what the client's id does not say."""

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
        return cls(client, _dump(extras) if extras else b"")

    def wanting(self, wants: Wants) -> Identity:
        """The same, who wants something special."""
        if wants == ORDINARY:
            return self
        extras = json.loads(self.extras) if self.extras else {}
        return Identity(self.client, _dump({**extras, **_special(wants)}))

    def carrying(self, told: int | None, limit: Limit) -> Identity:
        """The same, of a program that was told another limit than is in force; None: told none."""
        if told is None or told == limit.number:
            return self
        extras = json.loads(self.extras) if self.extras else {}
        return Identity(self.client, _dump({**extras, CARRIED: told}))


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
    """What must travel with a waiter: its owner if it chose one, its labels, what it wants."""
    fields = _load(value)
    extras: dict[str, object] = {}
    owner = _text(fields.get("owner"))
    if owner and owner != f"{fields.get('host')}:{fields.get('pid')}":
        extras["owner"] = owner
    labels = _labels(fields)
    if labels:
        extras["labels"] = labels
    carried = _carried(fields)
    if carried is not None:
        extras[CARRIED] = carried
    extras.update(_special(_wants(fields)))
    max_hold = _max_hold(fields)
    if max_hold is not None:
        extras[MAX_HOLD] = max_hold
    return _dump(extras) if extras else b""


def _text(value: object) -> str:
    return value[:253] if isinstance(value, str) else ""


def _labels(fields: Mapping[str, Any]) -> dict[str, str]:
    labels = fields.get("labels")
    if not isinstance(labels, dict):
        return {}
    return {str(k)[:63]: _text(v) for k, v in list(labels.items())[:16]}


def _carried(fields: Mapping[str, Any]) -> int | None:
    carried = fields.get(CARRIED)
    return carried if isinstance(carried, int) and not isinstance(carried, bool) else None


def _wants(fields: Mapping[str, Any]) -> Wants:
    return Wants(
        _number(fields.get("weight"), 1, MAX_WEIGHT, ORDINARY.weight),
        _number(fields.get("priority"), -MAX_PRIORITY, MAX_PRIORITY, ORDINARY.priority),
        fields.get("eager") is True,
    )


def _number(value: object, least: int, most: int, default: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        return default
    return value


def _special(wants: Wants) -> dict[str, object]:
    """What is not as ordinary, as it is written into records."""
    named = zip(Wants._fields, wants, ORDINARY, strict=True)
    return {name: value for name, value, ordinary in named if value != ordinary}


def _max_hold(fields: Mapping[str, Any]) -> float | None:
    max_hold = fields.get(MAX_HOLD)
    if isinstance(max_hold, bool) or not isinstance(max_hold, int | float):
        return None
    return max_hold if 0 < max_hold <= _LONGEST else None


_LONGEST = 1e12  # seconds: nobody means more, and datetime cannot say it


def _when(fields: Mapping[str, Any], moment: str) -> datetime | None:
    try:
        when = datetime.fromisoformat(_text(fields.get(moment)))
    except ValueError:
        return None
    return when if when.tzinfo else when.replace(tzinfo=UTC)


class Stated(NamedTuple):
    """What a record says that is of use beside its key."""

    when: datetime | None
    """Since when, by the clock of whoever wrote it."""
    carried: int | None
    """The limit that its program was told, if that is not the one in force."""
    wants: Wants
    """What its lease holds, or waits for."""
    max_hold: float | None
    """Seconds after which its holder ends it."""


def stated(kv: KeyValue) -> Stated:
    """Read a holder's or a waiter's record; what cannot be read is None."""
    fields = _load(kv.value)
    return Stated(
        _when(fields, "acquired") or _when(fields, "since"),
        _carried(fields),
        _wants(fields),
        _max_hold(fields),
    )


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

    @property
    def wants(self) -> Wants:
        """What it waits for."""
        return _wants(_load(self.extras)) if _SPECIAL.search(self.extras) else ORDINARY

    @property
    def weight(self) -> int:
        """How many slots it waits for."""
        return self.wants.weight

    @property
    def place(self) -> tuple[int, int]:
        """Who is served before others: by priority, then in the order in which they came."""
        return -self.wants.priority, self.created


def _fault_of_waiter(keys: Keys, kv: KeyValue) -> str | None:
    match = _WHO.fullmatch(kv.key[len(keys.waiters) :])
    if match is None:
        return "not a waiter's key: expected waiters/<client>/<lease>"
    if kv.lease == 0:
        return "has no etcd lease, so nobody can be granted in its place; delete it"
    if kv.lease != int(match[2], 16):
        return "is attached to another etcd lease than the one it names; delete it"
    return None


def waits(keys: Keys, kv: KeyValue) -> bool:
    """Is this the key of somebody who can be granted a slot?"""
    return _fault_of_waiter(keys, kv) is None


def read_queue(keys: Keys, kvs: Iterable[KeyValue]) -> tuple[Queued, ...]:
    """The waiters in the order given, without those that cannot be right."""
    return tuple(
        Queued(kv.key[len(keys.waiters) :], kv.lease, kv.create_revision, _extras(kv.value))
        for kv in kvs
        if _fault_of_waiter(keys, kv) is None
    )


def write_list(queue: Iterable[Queued]) -> list[bytes]:
    """The lines of a letter that list waiters."""
    return [b"\n%s %d %s" % (q.who, q.created, q.extras) for q in queue]


def write_letter(slots: Sequence[int], lines: Iterable[bytes]) -> bytes:
    """A letter: the slot or slots, and the waiters who are next as far as the sender knows.

    A long list is cut: it is only a hint, and each level of a PASS carries a letter.
    """
    letter = b"slot " + b",".join([b"%d" % slot for slot in slots]) + b"".join(lines)
    end = letter.find(b"\n", MAX_LETTER) if len(letter) > MAX_LETTER else -1
    return letter if end < 0 else letter[:end]


def read_letter(value: bytes, known: int = 0) -> tuple[tuple[int, ...], tuple[Queued, ...]] | None:
    """The slots and the queue in a letter, or None if nobody of ours wrote it.

    The queue is left unread if it has nobody who came after revision `known`.
    """
    head, *lines = value.split(b"\n")
    slots = head[5:].split(b",")
    if not head.startswith(b"slot ") or not all(map(_DIGITS.fullmatch, slots)):
        return None
    queue: list[Queued] = []
    if known and lines:
        words = lines[-1].split(b" ", 2)
        if len(words) > 1 and words[1].isdigit() and int(words[1]) <= known:
            lines = []
    for line in lines:
        who, created, extras = (*line.split(b" ", 2), b"", b"")[:3]
        match = _WHO.fullmatch(who)
        if match is None or not created.isdigit():
            return None
        queue.append(Queued(who, int(match[2], 16), int(created), extras))
    return tuple(map(int, slots)), tuple(queue)


_EVICTED = re.compile(rb"evicted (by .{1,300})", re.DOTALL)


def write_eviction(by: str, wall: float) -> bytes:
    """The letter that tells a waiter that it was evicted: by whom, when (`wall`)."""
    return f"evicted by {by} at {_timestamp(wall)}".encode()


def read_eviction(value: bytes) -> str | None:
    """By whom and when, if a letter says that; else None."""
    match = _EVICTED.fullmatch(value)
    return match[1].decode("utf-8", "replace") if match else None


def addressee(keys: Keys, letter: bytes) -> int:
    """The lease of the waiter that a letter's key names; 0 if it is no letter's name."""
    match = _WHO.fullmatch(letter[len(keys.grants) :])
    return int(match[2], 16) if match else 0


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
                weight=_wants(fields).weight,
                max_hold=_max_hold(fields),
            )
        )
    return holders, junk


def read_waiters(keys: Keys, kvs: Iterable[KeyValue]) -> tuple[list[Waiter], list[Junk]]:
    """Who waits, in the order in which they will be served, and what cannot be right."""
    waiters: list[tuple[tuple[int, int], Waiter]] = []
    junk: list[Junk] = []
    for kv in kvs:
        fault = _fault_of_waiter(keys, kv)
        if fault is not None:
            junk.append(_junk(kv, fault))
            continue
        fields = _load(kv.value)
        client = kv.key[len(keys.waiters) :].split(b"/")[0].decode()
        host, pid, _ = client.rsplit(".", 2)
        wants = _wants(fields)
        one = Waiter(
            position=0,
            owner=_text(fields.get("owner")) or f"{host}:{pid}",
            host=host,
            pid=int(pid),
            client=client,
            lease_id=lease_hex(kv.lease),
            since=_when(fields, "since"),
            labels=_labels(fields),
            weight=wants.weight,
            priority=wants.priority,
            eager=wants.eager,
        )
        waiters.append(((-wants.priority, kv.create_revision), one))
    waiters.sort(key=lambda pair: pair[0])
    return [replace(one, position=at) for at, (_, one) in enumerate(waiters, 1)], junk


def _junk(kv: KeyValue, reason: str) -> Junk:
    return Junk(kv.key.decode("utf-8", "backslashreplace"), reason)
