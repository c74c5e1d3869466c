"""All semaphores under a prefix, as seen by watching the keys: a snapshot, then events.

    stale ──begin()──> loading ──load()──> live ──lost()──> stale
                          └──abandon()──> stale

1. Events that arrive while a snapshot is read wait for it; those that it contains already are
   ignored. While stale, events are dropped because the next snapshot will contain them.
2. Watches are hints: `expect()` compares the number of keys with what etcd counted at a revision,
   once all events up to it must have arrived (a later one has, or `LATE` seconds have passed). If
   they differ, the view becomes stale.
3. What the keys show of the end of a lease:
   - its slot's key is overwritten: it was handed over, so it was given back;
   - deleted while nobody waits: given back, *or* lost (expired, revoked, evicted). The two look
     alike, and are counted as given back;
   - deleted while somebody waits, and the mark `contended` unchanged: none of our programs gives a
     slot back like that (it hands over, or deletes the mark, or puts it again, or there is
     surplus). So it was lost.
4. Both leases and slots are counted: a lease of weight 3 is one lease in three slots. It has ended
   when the first of its slots has, regardless of how many follow.
5. The slots of a rate limit stand for starts, or blocks of them. They are counted as starts; how a
   slot ended is of no interest.
6. After a gap the counts are lower bounds: only the difference across the gap is seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import groupby
from typing import Literal, NamedTuple, TypeAlias

from etcdsem.core.commands import Event, KeyValue
from etcdsem.core.keys import (
    ORDINARY,
    Demand,
    Keys,
    Limit,
    Stated,
    read_limit,
    slot_number,
    stated,
    waits,
)
from etcdsem.model import Rate
from etcdsem.validation import check_name

LATE = 5.0
"""Seconds after which a missing event is considered lost. With a busy etcd or a busy reader, events
are late by more than the time between two scrapes."""


Grant: TypeAlias = tuple[int, int]
"""An etcd lease and the revision of the grant, since leases are reused."""


class Present(NamedTuple):
    """A holder or a waiter."""

    token: int
    since: float
    """On the view's clock."""
    carried: int | None
    """The limit that the program carries if it is not the one in force."""
    lease: int
    demand: Demand = ORDINARY
    """What a waiter requests."""
    said: datetime | None = None
    """When it began, by its writer's clock."""

    @property
    def grant(self) -> Grant:
        """The grant that a holder's slot belongs to."""
        return self.lease, self.token


class SemaphoreView:
    """One semaphore, or one rate limit."""

    __slots__ = (
        "acquired",
        "applied",
        "contended",
        "ended",
        "grants",
        "held",
        "junk",
        "keys",
        "limit",
        "lost",
        "overbooked",
        "rate",
        "released",
        "waiting",
    )

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        self.limit: Limit | None = None
        self.rate: Rate | None = None  # rate limits only: the rate that was last readable
        self.applied: str | None = None  # the limit that `etcdsem apply` set last
        self.contended = False
        self.held: dict[int, Present] = {}
        self.grants: dict[Grant, int] = {}  # current grants, and the number of their slots
        self.ended: set[Grant] = set()  # those that have lost a slot, and are counted as ended
        self.waiting: dict[bytes, Present] = {}
        self.junk: set[bytes] = set()
        self.acquired = 0  # leases; for a rate limit starts
        self.released = 0
        self.lost = 0
        self.overbooked = 0  # slots granted beyond the limit; must always stay 0

    @property
    def name(self) -> str:
        """The semaphore's name."""
        return self.keys.name

    @property
    def room(self) -> int:
        """Number of slots that may be granted."""
        return self.limit.room if self.limit else 0

    @property
    def empty(self) -> bool:
        """Is nothing left of it?"""
        return not (self.limit or self.held or self.waiting or self.junk)

    @property
    def next_wants(self) -> int:
        """Number of slots that the first waiter needs; 0 if nobody waits."""
        waiting = list(self.waiting.values())
        if not waiting:
            return 0
        return min(waiting, key=lambda one: (-one.demand.priority, one.token)).demand.weight

    def drifting(self) -> int:
        """How many holders and waiters carry a limit that is not the one in force."""
        number = self.limit.number if self.limit else None
        if number is None:
            return 0
        present = (*list(self.held.values()), *list(self.waiting.values()))
        return sum(one.carried not in (None, number) for one in present)

    def step(self, events: Sequence[Event], now: float) -> None:
        """Apply the events of one revision."""
        held, granted = len(self.held), self.acquired
        gone = [event.kv.key for event in events if event.kind == "delete"]
        freed = any(key.startswith(self.keys.leases) for key in gone)
        mark_stays = self.contended and all(e.kv.key != self.keys.contended for e in events)
        orderly = not (freed and mark_stays) or self._surplus()
        for event in events:
            self._apply(event, now, orderly=orderly)
        if self.acquired > granted:
            self.overbooked += max(0, len(self.held) - max(self.room, held))

    def _surplus(self) -> bool:
        """Does any key sort above the limit? Then slots are given back without a hand-over."""
        above = self.keys.slot(self.room)
        return any(slot >= self.room for slot in self.held) or any(
            key >= above for key in self.junk if key.startswith(self.keys.leases)
        )

    def _apply(self, event: Event, now: float, *, orderly: bool) -> None:
        kv, keys, gone = event.kv, self.keys, event.kind == "delete"
        if kv.key.startswith(keys.leases):
            self._apply_slot(kv, now, gone=gone, orderly=orderly)
        elif kv.key.startswith(keys.waiters):
            self.junk.discard(kv.key)
            self.waiting.pop(kv.key, None)
            if not gone and waits(keys, kv):
                self.waiting[kv.key] = _present(kv, now)
            elif not gone:
                self.junk.add(kv.key)
        elif kv.key == keys.max_leases:
            self._learn(None if gone else read_limit(kv))
        elif kv.key == keys.contended:
            self.contended = not gone
        elif kv.key == keys.applied:
            self.applied = None if gone else read_limit(kv).plain

    def _learn(self, limit: Limit | None) -> None:
        self.limit = limit
        if limit is not None and limit.number is not None:
            if (limit.rate is None) is not (self.rate is None):
                self.acquired = self.released = self.lost = self.overbooked = 0  # another kind
            self.rate = limit.rate

    def _apply_slot(self, kv: KeyValue, now: float, *, gone: bool, orderly: bool) -> None:
        self.junk.discard(kv.key)
        slot = slot_number(self.keys, kv.key)
        if slot is None:
            if not gone:
                self.junk.add(kv.key)
            return
        before = self.held.pop(slot, None)
        ours = not gone and kv.lease != 0
        if before is not None:
            self._end(before.grant, lost=not (ours or (gone and orderly)))
        if ours:
            self.held[slot] = one = _present(kv, now)
            if one.grant not in self.grants:
                self.acquired += self.rate.block if self.rate else 1
            self.grants[one.grant] = self.grants.get(one.grant, 0) + 1
        elif not gone:
            self.junk.add(kv.key)

    def _end(self, grant: Grant, *, lost: bool) -> None:
        """A slot of a grant was freed or went to another grant."""
        if grant not in self.ended:
            self.lost += lost
            self.released += not lost
        self.grants[grant] -= 1
        if self.grants[grant]:
            self.ended.add(grant)
        else:
            del self.grants[grant]
            self.ended.discard(grant)

    def differ(self, before: SemaphoreView) -> None:
        """Take over the counts of `before`, and count what must have happened since."""
        if self.limit is not None and self.limit.number is None:
            self.rate = before.rate
        if (self.rate is None) is (before.rate is None):
            self.acquired, self.released = before.acquired, before.released
            self.lost, self.overbooked = before.lost, before.overbooked
        for slot, one in list(self.held.items()):
            then = before.held.get(slot)
            if then is not None and then.token == one.token:
                self.held[slot] = one._replace(since=then.since)
        block = self.rate.block if self.rate else 1
        self.acquired += block * len(self.grants.keys() - before.grants.keys())
        for grant, slots in before.grants.items():
            now = self.grants.get(grant, 0)
            self.released += now < slots and grant not in before.ended
            if now and (now < slots or grant in before.ended):
                self.ended.add(grant)
        for key, then in before.waiting.items():
            one_now = self.waiting.get(key)
            if one_now is not None and one_now.token == then.token:
                self.waiting[key] = one_now._replace(since=then.since)


State = Literal["stale", "loading", "live"]


class PrefixView:
    """All semaphores under a prefix."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.start = f"{prefix}/".encode()
        self.end = self.start[:-1] + b"0"  # "0" follows "/"
        self.state: State = "stale"
        self.lines: dict[bytes, SemaphoreView] = {}
        self._known: set[bytes] = set()  # every key, also those that belong to no semaphore
        self._revision = 0  # everything up to this revision was seen
        self._waiting: list[tuple[Sequence[Event], float]] = []
        self._expected: tuple[int, int, float] | None = None  # revision, number of keys, since

    # -- the snapshot

    def begin(self) -> None:
        """A snapshot is about to be read."""
        self.state = "loading"
        self._waiting.clear()

    def abandon(self) -> None:
        """The snapshot could not be read."""
        self.state = "stale"
        self._waiting.clear()

    lost = abandon
    """Events were missed."""

    def load(self, kvs: Iterable[KeyValue], revision: int, now: float, wall: float) -> None:
        """Load all keys at a revision. `now` is the view's clock, `wall` the clock of records.

        If events that were missed during the read may be later than the snapshot, the view stays
        stale.
        """
        if self.state != "loading":
            return
        before, self.lines = self.lines, {}
        self._known = set()
        self._revision, self._expected = revision, None
        for kv in kvs:
            self._known.add(kv.key)
            line = self._line(kv.key)
            if line is not None:
                line.step((Event("put", kv),), now - _age(stated(kv), wall))
        for name, line in self.lines.items():
            line.acquired = line.released = line.lost = line.overbooked = 0
            if name in before:
                line.differ(before[name])
        self._drop_empty(list(self.lines))
        self.state = "live"
        waiting, self._waiting = self._waiting, []
        for events, came in waiting:
            self.apply(events, came)

    # -- events

    def apply(self, events: Sequence[Event], now: float) -> None:
        """Apply events of a watch, in revision order."""
        if self.state == "loading":
            self._waiting.append((events, now))
            return
        for revision, some in groupby(events, key=lambda event: event.kv.mod_revision):
            if self.state != "live":
                return
            if revision > self._revision:
                self._check(revision)
                self._step(list(some), now)
                self._revision = revision

    def _step(self, events: Sequence[Event], now: float) -> None:
        touched: dict[bytes, list[Event]] = {}
        for event in events:
            key = event.kv.key
            if event.kind == "put":
                self._known.add(key)
            else:
                self._known.discard(key)
            touched.setdefault(self._name(key), []).append(event)
        for some in touched.values():
            line = self._line(some[0].kv.key)
            if line is not None:
                line.step(some, now)
        self._drop_empty(touched)

    # -- is it complete?

    def expect(self, revision: int, keys: int, now: float) -> None:
        """Record that etcd counted `keys` keys at a revision. They are compared at the first event
        after it, or by a call `LATE` seconds later; until then further counts are ignored.
        """
        if self._expected is not None and self._revision <= self._expected[0]:
            if now < self._expected[2] + LATE:
                return
            self._check(self._expected[0] + 1)
        self._expected = (revision, keys, now) if self._revision <= revision else None

    def _check(self, revision: int) -> None:
        """All events before `revision` have arrived: compare the counts if that is due."""
        if self._expected is None or revision <= self._expected[0]:
            return
        (_, keys, _), self._expected = self._expected, None
        if keys != len(self._known):
            self.lost()

    # -- names

    def _name(self, key: bytes) -> bytes:
        return key[len(self.start) :].partition(b"/")[0]

    def _line(self, key: bytes) -> SemaphoreView | None:
        """The semaphore that a key belongs to; None if its name is not valid."""
        name = self._name(key)
        line = self.lines.get(name)
        if line is None:
            try:
                line = SemaphoreView(Keys(self.prefix, check_name(name.decode()), ""))
            except ValueError:
                return None
            self.lines[name] = line
        return line

    def _drop_empty(self, names: Iterable[bytes]) -> None:
        for name in names:
            line = self.lines.get(name)
            if line is not None and line.empty:
                del self.lines[name]


def _present(kv: KeyValue, now: float) -> Present:
    said = stated(kv)
    return Present(kv.mod_revision, now, said.carried, kv.lease, said.demand, said.when)


def _age(said: Stated, wall: float) -> float:
    """Seconds since the time in a record, by a clock that may differ from its writer's."""
    moment: datetime | None = said.when
    return 0.0 if moment is None else max(0.0, wall - moment.timestamp())
