"""What one client knows: of itself (`Session`), and of each semaphore it uses (`Station`).

1. Nothing here suspends or talks to etcd; procedures and watches change this state step by step,
   under the client's lock.
2. A station's watches are up before anybody joins the line, and stay for a while after the last
   local waiter has gone. They are hints: what they say is checked in transactions, and what they
   may have missed is read again from time to time by the waiter on duty.
3. The waiter on duty is the first of a station's local waiters. It alone heals and reads again,
   for all of them, in its own time. When it goes, the next one has the duty.
4. A grant is held, releasing, released or lost; lost is final and told once.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from etcdsem.core.commands import Env, Event, Failure, KeyValue, Mailbox, Watch
from etcdsem.core.keys import Identity, Keys, Limit, Queued, lease_hex, read_limit
from etcdsem.core.leases import Keeper, TtlLease
from etcdsem.core.transactions import Mine

log = logging.getLogger("etcdsem")

REREAD = (5.0, 15.0)
"""Seconds between two reads of what watches should have told: several etcd releases lose delete
events. Drawn anew each time, so that clients don't read in step."""

WATCH_AFTER_LAST_WAITER = 30.0
"""Seconds that a station's watches outlive its last local waiter."""

WATCH_HELD_AFTER = 0.3
"""Seconds for which a slot must be held before its key is watched for eviction. Shorter ones
would cost a watch each, and are over before anybody could evict them."""

WATCH_WAITER_AFTER = 3.0
"""The same for a waiter's key."""


# ---------------------------------------------------------------- notes to waiters


class Letter(NamedTuple):
    """A slot was granted."""

    kv: KeyValue


class Duty(NamedTuple):
    """Look whether something needs healing: a slot was freed, the limit has changed."""

    reread: bool
    """True: events may have been missed, so read everything again."""


class Over(NamedTuple):
    """The semaphore was closed, at a revision; news for those who had joined before it."""

    revision: int


class OutOfLine(NamedTuple):
    """The place in line is lost."""

    reason: str


class Watched(NamedTuple):
    """The station's watches are up; or `error` says why they can't be."""

    error: Failure | None


class Waiting:
    """One local waiter. Its place in line is known once JOIN was answered."""

    __slots__ = ("box", "created", "lease", "since", "watch", "who")

    def __init__(self, lease: TtlLease, who: bytes, box: Mailbox, since: float) -> None:
        self.lease = lease
        self.since = since
        self.who = who
        self.box = box
        self.created = 0  # the waiter key's create revision
        self.watch: Watch | None = None


# ---------------------------------------------------------------- grants

GrantState = Literal["held", "releasing", "released", "lost"]


class Grant:
    """A slot that was granted to this client."""

    __slots__ = (
        "acquired_wall",
        "lease",
        "letter",
        "limit",
        "lost_reason",
        "on_lost",
        "queue",
        "since",
        "slot",
        "state",
        "station",
        "token",
        "watch",
        "who",
    )

    def __init__(
        self,
        station: Station,
        lease: TtlLease,
        who: bytes,
        slot: int,
        token: int,
        *,
        letter: bool,
        queue: tuple[Queued, ...],
    ) -> None:
        self.station = station
        self.lease = lease
        self.who = who
        self.slot = slot
        self.token = token
        self.letter = letter
        self.queue = queue  # who comes next, as far as is known
        self.limit = station.limit.room if station.limit else 0
        self.since = station.session.env.now()
        self.acquired_wall = station.session.env.wall()
        self.state: GrantState = "held"
        self.lost_reason = ""
        self.on_lost: Callable[[Grant], None] | None = None
        self.watch: Watch | None = None
        lease.on_lost = self.lost
        station.grants[lease.id] = self

    @property
    def mine(self) -> Mine:
        """What a transaction needs to give it back."""
        return Mine(self.slot, self.token, self.who, self.letter)

    def valid(self, now: float) -> bool:
        """Is it held, and its lease not past its deadline?"""
        return self.state == "held" and self.lease.valid(now)

    def lost(self, reason: str) -> None:
        """The lease is over before it was released."""
        if self.state != "held":
            return
        self.state = "lost"
        self.lost_reason = reason
        self.detach()
        self.station.session.losses += 1
        tell, self.on_lost = self.on_lost, None
        if tell is not None:
            tell(self)

    def detach(self) -> None:
        """Watched and listed no more."""
        self.station.grants.pop(self.lease.id, None)
        self.lease.on_lost = None
        if self.watch is not None:
            self.watch.cancel()
            self.watch = None


# ---------------------------------------------------------------- listeners


class Ear:
    """A listener made of functions."""

    __slots__ = ("_created", "_events", "_gap", "_refused")

    def __init__(
        self,
        events: Callable[[Sequence[Event]], None],
        *,
        created: Callable[[], None] = lambda: None,
        gap: Callable[[], None] = lambda: None,
        refused: Callable[[Failure], None] = lambda error: None,
    ) -> None:
        self._events = events
        self._created = created
        self._gap = gap
        self._refused = refused

    def created(self, revision: int) -> None:
        self._created()

    def events(self, events: Sequence[Event]) -> None:
        self._events(events)

    def gap(self, reason: str) -> None:
        self._gap()

    def refused(self, error: Failure) -> None:
        self._refused(error)


class Station:
    """One semaphore, as one client sees it."""

    def __init__(self, session: Session, prefix: str, name: str) -> None:
        self.session = session
        self.keys = Keys(prefix, name, session.client)
        self.limit: Limit | None = None
        self.grants: dict[int, Grant] = {}
        self.waiting: dict[int, Waiting] = {}  # in the order in which they came; by lease id
        self.favourite: int | None = None  # the slot released last
        self.quiet_since = -math.inf  # when the last local waiter left
        self.duty_due = False
        self._watches: list[Watch] = []
        self._pending = 0  # watches not yet created
        self._expecting: list[Mailbox] = []

    @property
    def name(self) -> str:
        """The semaphore's name."""
        return self.keys.name

    # -- the limit

    def learn(self, limit: Limit | None, at: int) -> None:
        """The limit as it was read at revision `at`; old news is left aside."""
        if limit is None:
            if self.limit is None or self.limit.revision <= at:
                self.limit = None
            return
        if self.limit is not None and limit.revision < self.limit.revision:
            return
        if limit.number is None and (self.limit is None or self.limit.revision < limit.revision):
            log.error(
                "semaphore %s: its limit in etcd reads %r, which is no number from 0 to 99999; "
                "nothing is granted until it is mended, e.g. with: etcdctl put %s 5",
                self.name,
                limit.text,
                self.keys.max_leases.decode(),
            )
        raised = self.limit is not None and limit.room > self.limit.room
        self.limit = limit
        if raised:
            self.call_duty(reread=False)

    # -- local waiters

    def enter(self, waiting: Waiting) -> None:
        """Somebody is about to join the line."""
        self.waiting[waiting.lease.id] = waiting

    def exit(self, waiting: Waiting) -> None:
        """Somebody has left the line, granted or not; the duty may pass on."""
        first = self.on_duty(waiting)
        if self.waiting.pop(waiting.lease.id, None) is None:
            return
        if waiting.watch is not None:
            waiting.watch.cancel()
            waiting.watch = None
        if not self.waiting:
            self.quiet_since = self.session.env.now()
            self.duty_due = False
        elif first:
            self.call_duty(reread=False, renew=self.duty_due)

    def on_duty(self, waiting: Waiting) -> bool:
        """Is this the waiter who looks after the semaphore for all of this client's?"""
        return next(iter(self.waiting.values()), None) is waiting

    def call_duty(self, *, reread: bool, renew: bool = True) -> None:
        """Something may need healing: wake the waiter on duty."""
        first = next(iter(self.waiting.values()), None)
        if first is not None:
            self.duty_due = self.duty_due or renew
            first.box.put(Duty(reread))

    # -- watches

    @property
    def watching(self) -> bool:
        """Are all watches up?"""
        return bool(self._watches) and self._pending == 0

    def expect_watches(self, box: Mailbox) -> None:
        """Set the watches up if they are not; `box` gets a `Watched` when they are up."""
        self._expecting.append(box)
        if self._watches:
            return
        keys, env = self.keys, self.session.env
        self._pending = 3

        def ear(events: Callable[[Sequence[Event]], None]) -> Ear:
            return Ear(events, created=self._created, gap=self._gap, refused=self._refused)

        self._watches = [
            env.watch(ear(self._letters), keys.my_grants, keys.my_grants_end, only="put"),
            env.watch(ear(self._freed), keys.leases, keys.leases_end, only="delete"),
            env.watch(ear(self._limits), keys.max_leases),
        ]
        self.session.watched(self)

    def drop_watches(self) -> None:
        """Nobody has waited for a while."""
        watches, self._watches = self._watches, []
        self._pending = 0
        for watch in watches:
            watch.cancel()

    def _created(self) -> None:
        self._pending -= 1
        if self._pending == 0:
            self._tell_watched(None)

    def _refused(self, error: Failure) -> None:
        self.drop_watches()
        self._tell_watched(error)

    def _tell_watched(self, error: Failure | None) -> None:
        expecting, self._expecting = self._expecting, []
        for box in expecting:
            box.put(Watched(error))

    def _gap(self) -> None:
        self.call_duty(reread=True)

    def _letters(self, events: Sequence[Event]) -> None:
        for event in events:
            if event.kind == "put":
                self.deliver(event.kv)

    def deliver(self, kv: KeyValue) -> None:
        """A letter has come; its waiter decides whether it is for this stay in line."""
        waiting = self.waiting.get(kv.lease)
        if waiting is not None:
            waiting.box.put(Letter(kv))

    def _freed(self, events: Sequence[Event]) -> None:
        self.call_duty(reread=False)

    def _limits(self, events: Sequence[Event]) -> None:
        kv = events[-1].kv
        if events[-1].kind == "put":
            self.learn(read_limit(kv), kv.mod_revision)
        elif self.limit is None or kv.mod_revision >= self.limit.revision:
            self.over(kv.mod_revision)  # else it is old news: it was registered again since

    def over(self, revision: int) -> None:
        """The semaphore was known no more at a revision: all who wait are told."""
        self.learn(None, revision)
        for waiting in self.waiting.values():
            waiting.box.put(Over(revision))

    # -- chores of the heartbeat

    def tidy(self, now: float) -> float:
        """Watch what has been held or waited for long; drop watches nobody needs."""
        env, due = self.session.env, math.inf
        for grant in list(self.grants.values()):
            if grant.watch is None and grant.state == "held":
                if now >= grant.since + WATCH_HELD_AFTER:
                    grant.watch = env.watch(
                        Ear(self._judge(grant)), self.keys.slot(grant.slot), start=grant.token + 1
                    )
                else:
                    due = min(due, grant.since + WATCH_HELD_AFTER)
        for waiting in list(self.waiting.values()):
            if waiting.watch is None and waiting.created:
                if now >= waiting.since + WATCH_WAITER_AFTER:
                    waiting.watch = env.watch(
                        Ear(self._missing(waiting)),
                        self.keys.waiter(waiting.who),
                        start=waiting.created + 1,
                        only="delete",
                    )
                else:
                    due = min(due, waiting.since + WATCH_WAITER_AFTER)
        if self._watches and not self.waiting and not self._expecting:
            if now >= self.quiet_since + WATCH_AFTER_LAST_WAITER:
                self.drop_watches()
            else:
                due = min(due, self.quiet_since + WATCH_AFTER_LAST_WAITER)
        return due

    def _judge(self, grant: Grant) -> Callable[[Sequence[Event]], None]:
        def events(events: Sequence[Event]) -> None:
            for event in events:
                if event.kv.mod_revision > grant.token and grant.state == "held":
                    what = "deleted" if event.kind == "delete" else "overwritten"
                    reason = f"its key in etcd was {what} (evicted by hand, or closed)"
                    self.session.keeper.lose(grant.lease, reason)

        return events

    def _missing(self, waiting: Waiting) -> Callable[[Sequence[Event]], None]:
        # The key goes when the slot is granted too; then the letter came at the same revision,
        # perhaps on another way. So this is a reason to look, not a verdict.
        def events(events: Sequence[Event]) -> None:
            if waiting.lease.id in self.waiting:
                self.call_duty(reread=True, renew=False)

        return events


class Session:
    """The core's state of one client."""

    def __init__(self, env: Env, client: str) -> None:
        self.env = env
        self.client = client
        self.keeper = Keeper(env)
        self.stations: dict[tuple[str, str], Station] = {}
        self.losses = 0
        self.closed = False
        self.until = math.inf  # when it must have ended, once it is closed
        self.reread = REREAD
        self.keeper.chores.append(self._tidy)

    def station(self, prefix: str, name: str) -> Station:
        """The station for a semaphore."""
        station = self.stations.get((prefix, name))
        if station is None:
            station = self.stations[prefix, name] = Station(self, prefix, name)
        return station

    def grace(self, now: float) -> float:
        """Seconds that a request may last: without bound, until the client is closed."""
        return max(0.1, self.until - now)

    def who(self, lease: TtlLease) -> bytes:
        """How a waiter or holder with this lease is named in keys."""
        return f"{self.client}/{lease_hex(lease.id)}".encode()

    def identity(self, owner: str | None, labels: dict[str, str]) -> Identity:
        """Who asks."""
        return Identity.of(self.client, owner, labels)

    def watched(self, station: Station) -> None:
        """A station has opened watches (the heartbeat closes them some day)."""
        self.keeper.box.put(None)

    def grants(self) -> list[Grant]:
        """All that is held."""
        return [grant for station in self.stations.values() for grant in station.grants.values()]

    def _tidy(self, now: float) -> float:
        due = math.inf
        for key, station in list(self.stations.items()):
            next_due = station.tidy(now)
            due = min(due, next_due)
            used = station.grants or station.waiting or next_due < math.inf
            if not used and len(self.stations) > 1000:
                del self.stations[key]  # a program that makes up names as it goes
        return due
