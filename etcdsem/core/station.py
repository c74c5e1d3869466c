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
from typing import Literal, NamedTuple, Protocol

from etcdsem.core.batching import PASSED_AT_MOST, Batch, Group, deal
from etcdsem.core.commands import Env, Event, Failure, KeyValue, Mailbox, TxnReply, Watch
from etcdsem.core.decisions import candidates, light, without_holders
from etcdsem.core.holding import verify
from etcdsem.core.keys import (
    ORDINARY,
    Identity,
    Keys,
    Limit,
    Queued,
    Wants,
    addressee,
    lease_hex,
    read_limit,
)
from etcdsem.core.leases import TICK, Keeper, TtlLease
from etcdsem.core.transactions import (
    MAX_LISTED,
    Gave,
    Held,
    Look,
    Mine,
    Take,
    batch,
    pass_all,
    read_batch,
    read_pass_all,
)
from etcdsem.model import duration_text, warning_ahead

FIRST_CONTACT = 10.0
"""Seconds to try to reach etcd when this client has never reached it."""

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

FORGET_AFTER = 60.0
"""Seconds after which a station that nobody uses may be forgotten, where there are many."""

RECENT = 256
"""Slots that were given back lately, and are remembered."""


# ---------------------------------------------------------------- notes to waiters


class Letter(NamedTuple):
    """A slot was granted; or it was evicted from the line."""

    kv: KeyValue


class Duty(NamedTuple):
    """Look whether something needs healing: a slot was freed, the limit has changed."""

    reread: bool
    """True: events may have been missed, so read everything again."""


class TooHeavy(NamedTuple):
    """The limit is lower than what is waited for."""


class Over(NamedTuple):
    """The semaphore was closed, at a revision; news for those who had joined before it."""

    revision: int


class Denied(NamedTuple):
    """etcd refuses our user what waiting needs."""

    error: Failure


class OutOfLine(NamedTuple):
    """The place in line is lost."""

    reason: str


class Watched(NamedTuple):
    """The station's watches are up; or `error` says why they can't be."""

    error: Failure | None


class Waiting:
    """One local waiter. Its place in line is known once JOIN was answered."""

    __slots__ = ("box", "created", "lease", "since", "wants", "watch", "who")

    def __init__(
        self, lease: TtlLease, who: bytes, box: Mailbox, since: float, wants: Wants = ORDINARY
    ) -> None:
        self.wants = wants
        self.lease = lease
        self.since = since
        self.who = who
        self.box = box
        self.created = 0  # the waiter key's create revision
        self.watch: Watch | None = None

    def lost(self, reason: str) -> None:
        """Its lease is over, and the place in line with it."""
        self.box.put(OutOfLine(reason))


# ---------------------------------------------------------------- grants

GrantState = Literal["held", "releasing", "released", "lost"]


class Several:
    """Some watches that are cancelled together."""

    __slots__ = ("_watches",)

    def __init__(self, watches: list[Watch]) -> None:
        self._watches = watches

    def cancel(self) -> None:
        """No more of it."""
        for watch in self._watches:
            watch.cancel()


class Grant:
    """A slot that was granted to this client, or several with one lease.

    Those with one lease come and go together: if one of them is taken, all are lost.
    """

    __slots__ = (
        "acquired_wall",
        "counted",
        "lease",
        "letter",
        "limit",
        "lost_reason",
        "on_lost",
        "overbooked",
        "since",
        "slot",
        "slots",
        "spent",
        "state",
        "station",
        "token",
        "warn_at",
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
        more: tuple[int, ...] = (),
    ) -> None:
        self.station = station
        self.lease = lease
        self.who = who
        self.slot = slot
        self.slots = (slot, *more)
        self.token = token
        self.letter = letter
        self.limit = (station.limit.number or 0) if station.limit else 0
        self.since = station.session.env.now()
        self.acquired_wall = station.session.env.wall()
        self.state: GrantState = "held"
        self.lost_reason = ""
        self.counted = False  # the program has got it, so what becomes of it is counted
        self.overbooked = False  # lost, and the program has not let go of it
        self.on_lost: Callable[[Grant], None] | None = None
        self.watch: Watch | None = None
        self.warn_at = math.inf  # when its end by max_hold is near
        self.spent = False  # a start of a rate limit, handed out: not to be given back yet
        lease.on_lost = self.lost
        weight = len(self.slots)
        station.grants[lease.id] = self  # together, whatever interrupts; see `detach`
        station.tally.active += 1
        station.tally.slots += weight
        for one in self.slots:
            station.recent.pop(one, None)
            station.held[one] = self

    @property
    def mine(self) -> Mine:
        """What a transaction needs to give it back."""
        return Mine(self.slot, self.token, self.who, self.letter, self.slots[1:])

    def valid(self, now: float) -> bool:
        """Is it held, and its lease not past its deadline?"""
        return self.state == "held" and self.lease.valid(now)

    def count(self, waited: float) -> None:
        """The program gets it, after `waited` seconds."""
        self.counted = True
        tally = self.station.tally
        tally.granted(waited)
        if self.state == "lost":  # on the way
            tally.losses += 1
            tally.held.observe(self.station.session.env.now() - self.since)

    def bind(self, max_hold: float) -> None:
        """Hold it no longer than that, counted from the grant."""
        self.lease.bind(self.since, max_hold)
        self.warn_at = self.lease.bound - warning_ahead(max_hold)
        if max_hold <= 2 * TICK:
            self.station.session.keeper.box.put(None)

    def warn(self, now: float) -> None:
        """Its end by max_hold is near."""
        self.warn_at = math.inf
        self.station.session.env.log(
            logging.WARNING,
            "semaphore %s: the lease of slot %d (fencing token %d) has been held for %s, and ends "
            "in %s: its max_hold is %s",
            self.station.name,
            self.slot,
            self.token,
            duration_text(round(now - self.since, 1)),
            duration_text(round(max(0.0, self.lease.bound - now), 1)),
            duration_text(self.lease.max_hold),
        )

    def lost(self, reason: str) -> None:
        """The lease is over before it was released."""
        if self.state != "held":
            return
        self.detach()
        self.count_lost(reason)
        self.station.tally.overbooked += 1
        self.overbooked = True
        tell, self.on_lost = self.on_lost, None
        if tell is not None:
            tell(self)

    def taken(self, how: str) -> None:
        """Its key in etcd was seen deleted or overwritten."""
        if self.state == "held":
            reason = f"its key in etcd was {how} (evicted by hand, or closed)"
            self.station.session.keeper.lose(self.lease, reason)

    def count_lost(self, reason: str) -> None:
        """From now on it is lost, and has always been told so."""
        self.state = "lost"
        self.lost_reason = reason
        self.station.session.losses += 1
        self.station.tally.losses += self.counted

    def given_back(self) -> None:
        """From now on it is free, or somebody else's."""
        self.state = "released"
        self.station.tally.released += self.counted

    def leave(self) -> None:
        """Rely on it no more, and leave it in etcd until its TTL is over."""
        self.state = "released"
        self.detach()
        self.station.session.keeper.leave(self.lease)

    def let_go(self) -> None:
        """The program knows that it is lost, and acts upon it no more."""
        if self.overbooked:
            self.overbooked = False
            self.station.tally.overbooked -= 1

    def detach(self) -> None:
        """Watched and listed no more."""
        station = self.station
        if station.grants.pop(self.lease.id, None) is not None:
            station.tally.active -= 1
            station.tally.slots -= len(self.slots)
            if self.counted:
                station.tally.held.observe(station.session.env.now() - self.since)
            for slot in self.slots:
                if station.held.get(slot) is self:  # else it was taken by hand, and granted again
                    del station.held[slot]
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


class Purse(Protocol):
    """The starts of a rate limit that this client has, see `rates`."""

    def wake_giver(self) -> None:
        """The client is being closed: nothing is given back any more."""


_NO_LIMIT = Limit(0, 0, registered=False, text="")
"""Closed meanwhile: nobody takes anything, and nothing is handed over."""


class Station:
    """One semaphore, as one client sees it."""

    def __init__(self, session: Session, prefix: str, name: str) -> None:
        self.session = session
        self.keys = Keys(prefix, name, session.client)
        self.tally = session.tallies.of((prefix, name))
        self.limit: Limit | None = None
        self.asked_at = 0.0  # when somebody asked for it: he may be about to use it
        self.grants: dict[int, Grant] = {}  # by lease id
        self.held: dict[int, Grant] = {}  # the same by slot: no use in trying those
        self.waiting: dict[int, Waiting] = {}  # in the order in which they came; by lease id
        self.recent: dict[int, None] = {}  # slots given back lately and likely free, oldest first
        self.contended = False  # does somebody stand in line, as far as is known
        self.group = Group(self._batch)  # those who take or give back while nobody is in line
        # Those who hand over: one after the other, else they would try the same waiters.
        self.passing: Group[Mine, bool | Look] = Group(self._pass_all, lanes=1, most=PASSED_AT_MOST)
        self.line: tuple[Queued, ...] = ()  # who is in line: all who came up to `line_until`
        self.line_until = 0  # a revision
        self.served_until = 0  # who came up to this revision is out of line, whatever is heard
        self.purse: Purse | None = None  # of a rate limit: the starts that are in use here
        self.quiet_since = -math.inf  # when the last local waiter left
        self.duty_due = False
        self.healing = False  # one of the local waiters is at it
        self.crowd = 0  # how many clients waited when this one looked last
        self._watches: list[Watch] = []
        self._pending = 0  # watches not yet created
        self._expecting: list[Mailbox] = []
        self._verify_at = math.inf  # when the slots that are held are read again
        self._blocked: tuple[Queued, Watch] | None = None  # who is waited for to leave, see block()
        self._blocked_at = 0  # the revision at which that was seen

    @property
    def name(self) -> str:
        """The semaphore's name."""
        return self.keys.name

    # -- the limit

    def learn(self, limit: Limit | None, at: int) -> None:
        """The limit as it was read at revision `at`; old news is left aside."""
        if limit is None:
            if self.limit is None or self.limit.revision <= at:
                self.limit = self.tally.max_leases = None
            return
        if self.limit is not None and limit.revision <= self.limit.revision:
            return
        if limit.number is None:
            self.session.env.log(
                logging.ERROR,
                "semaphore %s: its limit in etcd reads %r, which is no number from 0 to 99999; "
                "nothing is granted until it is mended, e.g. with: etcdctl put %s 5",
                self.name,
                limit.text,
                self.keys.max_leases.decode(),
            )
        raised = self.limit is not None and limit.room > self.limit.room
        self.limit = limit
        self.tally.max_leases, self.tally.paused = limit.number, limit.paused
        if limit.number is not None:
            self.tally.rate = limit.rate
        if raised:
            self.call_duty(reread=False)
        for waiting in self.waiting.values():
            if waiting.wants.weight > limit.room > 0:
                waiting.box.put(TooHeavy())

    # -- slots

    def freed(self, slot: int) -> None:
        """We have given a slot back: it is the first to be tried again."""
        self.recent.pop(slot, None)
        self.recent[slot] = None
        if len(self.recent) > RECENT:
            del self.recent[next(iter(self.recent))]

    def candidates(self, limit: Limit) -> list[int]:
        """The slots to try now. The one given back last goes to one who asks, not to the next."""
        favourite = self.recent.popitem()[0] if self.recent else None
        alone = favourite is not None and not self.group.busy and 4 * len(self.held) <= limit.room
        few = alone or self.contended
        return candidates(limit, favourite, self.session.env.random(), self.held, few=few)

    @property
    def may_share(self) -> bool:
        """Is it worth while to share a transaction with others of this client?"""
        return self.group.busy and not self.contended

    def _batch(self, parts: Sequence[Take | Mine]) -> Batch[Held | Gave]:
        """For several who take or give back."""
        env, limit = self.session.env, self.limit or _NO_LIMIT
        hands = deal(parts, limit, reversed(self.recent), self.held, env.random())
        for hand in hands:
            for slot in hand:
                self.recent.pop(slot, None)

        def read(reply: TxnReply) -> Sequence[Held | Gave | None]:
            self.contended = not reply.succeeded
            return read_batch(reply, parts, hands)

        return batch(self.keys, limit, parts, hands, env.wall()), read

    # -- the line

    def learn_line(self, line: tuple[Queued, ...], until: int) -> None:
        """Who waits of all who came up to a revision. The later that is, the more recent the news:
        nobody gets into a line but at its end. It may name some who were served meanwhile, since
        threads open their letters, and read their answers, in any order.
        """
        if until < self.line_until:
            return
        if len(line) > MAX_LISTED:
            line = line[:MAX_LISTED]
            until = line[-1].created
        self.line, self.line_until = line, until
        self.served(self.served_until)

    def saw_line(self, seen: Look) -> None:
        """The same from a look. With priorities in use nothing is remembered: somebody may come to
        any place.
        """
        if seen.priorities:
            self.forget_line()
        else:
            self.learn_line(seen.queue, seen.until)

    def forget_line(self) -> None:
        """What is known of the line is of no use."""
        self.line, self.line_until = (), 0

    def served(self, created: int) -> None:
        """A waiter who came then was served, so all who came before are out of line, too."""
        self.served_until = max(self.served_until, created)
        gone = 0
        for queued in self.line:
            if queued.created > self.served_until:
                break
            gone += 1
        if gone:
            self.line = self.line[gone:]

    def _pass_all(self, mines: Sequence[Mine]) -> Batch[bool | Look]:
        """For several who hand over to those in line."""
        line, until = light(without_holders(self.line, mines), self.line_until)
        limit = self.limit or _NO_LIMIT

        def read(reply: TxnReply) -> Sequence[bool | Look | None]:
            came_to = read_pass_all(self.keys, reply, mines, line)
            if isinstance(came_to, Look):
                return [came_to] * len(mines)
            if line:
                self.served(line[: len(mines)][-1].created)
            if came_to.line is not None:
                self.learn_line(*came_to.line)
            if came_to.cleared:
                self.contended = False
            return [True if done else None for done in came_to.done]

        return pass_all(self.keys, limit, mines, line, until, self.session.env.wall()), read

    # -- local waiters

    @property
    def eager(self) -> bool:
        """Is one of them eager? Who passes others must be looked for in all of the line."""
        return any(waiting.wants.eager for waiting in self.waiting.values())

    def enter(self, waiting: Waiting) -> None:
        """Somebody is about to join the line."""
        self.waiting[waiting.lease.id] = waiting

    def misses(self, seen: Look) -> bool:
        """Is one of them not in line any more who had joined before this look? Then it was granted
        a slot, or somebody has deleted its key.
        """
        line = {queued.who for queued in seen.queue}
        return any(
            0 < waiting.created <= seen.revision and waiting.who not in line
            for waiting in self.waiting.values()
        )

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

    def block(self, head: Queued | None, at: int) -> None:
        """At a revision there was room, but not enough for the first in line. If it leaves, who
        stands behind it may have room; no slot is freed then, so its key is watched. None: nobody
        is in the way.
        """
        if at < self._blocked_at:
            return
        self._blocked_at = at
        if self._blocked is not None:
            if head is not None and self._blocked[0].created == head.created:
                return
            self._blocked[1].cancel()
            self._blocked = None
        if head is not None and self.waiting:
            key = self.keys.waiter(head.who)
            ear = Ear(self._freed, gap=self._gap)
            watch = self.session.env.watch(ear, key, start=at + 1, only="delete")
            self._blocked = head, watch

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

    def drop_watches(self) -> None:
        """Nobody has waited for a while."""
        watches, self._watches = self._watches, []
        self._pending = 0
        if self._blocked is not None:
            watches.append(self._blocked[1])
            self._blocked = None
        for watch in watches:
            watch.cancel()

    def _created(self) -> None:
        self._pending -= 1
        if self._pending == 0:
            self._tell_watched(None)

    def _refused(self, error: Failure) -> None:
        self.drop_watches()
        self._tell_watched(error)
        self.denied(error)

    def _tell_watched(self, error: Failure | None) -> None:
        self.quiet_since = self.session.env.now()  # who expects them is not in line yet
        self.session.watched(self)
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
        waiting = self.waiting.get(kv.lease) or self.waiting.get(addressee(self.keys, kv.key))
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

    def denied(self, error: Failure) -> None:
        """Etcd refuses our user: waiting would be for ever, so all who wait are told."""
        for waiting in self.waiting.values():
            waiting.box.put(Denied(error))

    # -- chores of the heartbeat

    def tidy(self, now: float) -> float:
        """Watch what has been held or waited for long; drop watches nobody needs."""
        env, due = self.session.env, math.inf
        for grant in list(self.grants.values()):
            if grant.warn_at < math.inf:
                if now >= grant.warn_at:
                    grant.warn(now)
                else:
                    due = min(due, grant.warn_at)
            if grant.watch is None and grant.state == "held" and not grant.spent:
                if now >= grant.since + WATCH_HELD_AFTER:
                    ear = Ear(self._judge(grant), gap=self._verify)
                    start = grant.token + 1
                    watches = [env.watch(ear, self.keys.slot(s), start=start) for s in grant.slots]
                    grant.watch = watches[0] if len(watches) == 1 else Several(watches)
                else:
                    due = min(due, grant.since + WATCH_HELD_AFTER)
        for waiting in list(self.waiting.values()):
            if waiting.watch is None and waiting.created:
                if now >= waiting.since + WATCH_WAITER_AFTER:
                    waiting.watch = env.watch(
                        _WaiterEar(self, waiting),
                        self.keys.waiter(waiting.who),
                        start=waiting.created + 1,
                        only="delete",
                    )
                else:
                    due = min(due, waiting.since + WATCH_WAITER_AFTER)
        due = min(due, self._verify_in_time(now))
        if self._watches and not self.waiting and not self._expecting:
            if now >= self.quiet_since + WATCH_AFTER_LAST_WAITER:
                self.drop_watches()
            else:
                due = min(due, self.quiet_since + WATCH_AFTER_LAST_WAITER)
        return due

    def _verify_in_time(self, now: float) -> float:
        """Read from time to time what is held for long; gives the next time."""
        if not any(grant.watch is not None for grant in self.grants.values()):
            self._verify_at = math.inf
        elif now >= self._verify_at:
            self._verify()
        elif self._verify_at == math.inf:
            self._verify_at = self.session.next_reread()
        return self._verify_at

    def _verify(self) -> None:
        self._verify_at = self.session.next_reread()
        self.session.env.spawn(verify(self), "verify")

    def _judge(self, grant: Grant) -> Callable[[Sequence[Event]], None]:
        def events(events: Sequence[Event]) -> None:
            for event in events:
                if event.kv.mod_revision > grant.token:
                    grant.taken("deleted" if event.kind == "delete" else "overwritten")

        return events


class _WaiterEar:
    """Listens for the end of a waiter's key; small, since there may be thousands.

    The key goes when the slot is granted too; then the letter came at the same revision, perhaps
    on another way. So this is a reason to look, not a verdict.
    """

    __slots__ = ("_station", "_waiting")

    def __init__(self, station: Station, waiting: Waiting) -> None:
        self._station = station
        self._waiting = waiting

    def created(self, revision: int) -> None:
        pass

    def events(self, events: Sequence[Event]) -> None:
        if self._waiting.lease.id in self._station.waiting:
            self._station.call_duty(reread=True, renew=False)

    def gap(self, reason: str) -> None:
        self._station.call_duty(reread=True)

    def refused(self, error: Failure) -> None:
        pass


class Session:
    """The core's state of one client."""

    def __init__(self, env: Env, client: str) -> None:
        self.env = env
        self.client = client
        self._plain = Identity.of(client, None, {})  # of most who ask
        self.keeper = Keeper(env)
        self.tallies = self.keeper.tallies
        self.stations: dict[tuple[str, str], Station] = {}
        self.losses = 0
        self.closed = False
        self.reread = REREAD
        self.first_contact = FIRST_CONTACT
        self.keeper.chores.append(self._tidy)

    def station(self, prefix: str, name: str) -> Station:
        """The station for a semaphore."""
        station = self.stations.get((prefix, name))
        if station is None:  # without the lock: of several threads, all get the first one's
            station = self.stations.setdefault((prefix, name), Station(self, prefix, name))
        station.asked_at = self.env.now()
        return station

    @property
    def reached(self) -> bool:
        """Has etcd ever answered this client?"""
        return self.keeper.last_contact > -math.inf

    def next_reread(self) -> float:
        """When to read again what watches may have missed."""
        low, high = self.reread
        return self.env.now() + low + (high - low) * self.env.random()

    def grace(self, now: float) -> float:
        """Seconds that a request may last: without bound, until the client is closed."""
        return max(0.1, self.keeper.until - now)

    def who(self, lease: TtlLease) -> bytes:
        """How a waiter or holder with this lease is named in keys."""
        return f"{self.client}/{lease_hex(lease.id)}".encode()

    def identity(
        self, owner: str | None, labels: dict[str, str], max_hold: float | None = None
    ) -> Identity:
        """Who asks."""
        if not owner and not labels and max_hold is None:
            return self._plain
        return Identity.of(self.client, owner, labels, max_hold=max_hold)

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
            tally = station.tally
            busy = station.grants or station.waiting or tally.pending or tally.overbooked
            idle = not busy and next_due == math.inf and now > station.asked_at + FORGET_AFTER
            if idle and len(self.stations) > 1000:
                del self.stations[key]  # a program that makes up names as it goes
                self.tallies.forget(key)
        return due
