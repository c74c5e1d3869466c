"""etcd leases: where they come from, how they are kept alive, and when they are lost.

1. A lease is valid until *the send time of the last answered renewal, plus the TTL, less a
   margin*, by the local clock. etcd starts counting when a renewal arrives, so it cannot end the
   lease sooner. Past that moment the lease is lost, whatever etcd says; lost is final.
2. A lease is never renewed after its deadline: etcd answers such a renewal only when the lease
   is gone, and holds up all others on the stream until then.
3. A lease whose part in a write is uncertain is never used again: it is revoked until etcd says
   that it is gone (`settle`), so that a late write finds no lease and fails.
4. A holder may set itself a bound (max_hold). The deadline is never later than that, whatever is
   renewed; it belongs to the grant, so a lease that goes back to the pool has none.
5. A state is one word. Only these steps exist:

       spare -> busy        take()
       busy  -> spare       give_back(), after a definite outcome only
       busy  -> lost        lose(): deadline passed, or etcd or a watch says so
       busy  -> settled     settle_later()
       spare -> gone        deadline passed while idle
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Literal

from etcdsem.core.backoff import Backoff
from etcdsem.core.commands import (
    AccessDenied,
    Env,
    Failure,
    GrantLease,
    LeaseExists,
    LeaseNotFound,
    Mailbox,
    NotApplied,
    Procedure,
    Refused,
    RevokeLease,
    Wait,
    perform,
)
from etcdsem.core.tally import Tallies
from etcdsem.model import duration_text

RPC_TIMEOUT = 4.0
"""Seconds for one call: long enough for an election (1 s by default), short enough to try
another member before a lease of 15 s is lost."""

TICK = 0.5
"""Seconds between two looks at the leases while there are any."""

COMPLAIN_EVERY = 60.0
"""Seconds between two log records of what goes wrong in the heartbeat."""

State = Literal["spare", "busy", "lost", "settled", "gone"]


def margin(ttl: float) -> float:
    """Seconds before etcd's own deadline at which a lease counts as lost.

    1 % for clocks that run at different rates, and a tenth of a second to act upon it.
    """
    return 0.1 + 0.01 * ttl


class TtlLease:
    """One etcd lease of this client."""

    __slots__ = (
        "asked",
        "bound",
        "deadline",
        "elsewhere",
        "id",
        "idle_since",
        "max_hold",
        "on_lost",
        "overdue",
        "paused",
        "refresh",
        "sent",
        "state",
        "told",
        "ttl",
        "wanted",
    )

    def __init__(self, lease_id: int, wanted: int, ttl: float, sent: float) -> None:
        self.id = lease_id
        self.wanted = wanted  # the TTL that was asked for; pools are sorted by it
        self.ttl = ttl  # the TTL that etcd granted, which counts
        self.sent = sent  # when the last answered grant or renewal was sent
        self.max_hold = math.inf  # seconds for which the present grant may be held
        self.bound = math.inf  # when they are over
        self.deadline = sent + ttl - margin(ttl)  # and not later than the bound
        self.asked: float | None = None  # when the renewal that is under way was sent
        self.refresh = ttl / 3
        self.state: State = "busy"
        self.idle_since = sent
        self.paused = False  # the user paused the refresh (tests)
        self.on_lost: Callable[[str], None] | None = None
        self.elsewhere: Callable[[], tuple[float, float] | None] | None = None
        """A keeper process renews it too: gives when the last renewal that was answered was sent,
        and the TTL that was answered."""
        self.told: Mailbox | None = None  # who wants to know of the next renewal
        self.overdue = False  # somebody was told that it is past its deadline: lost is final

    def valid(self, now: float) -> bool:
        """May its owner rely on it now?"""
        if self.state != "busy":
            return False
        if now >= self.deadline:
            self.catch_up()
            self.overdue = now >= self.deadline
        return not self.overdue

    def renewed(self, sent: float, ttl: float) -> None:
        """A renewal that was sent then was answered."""
        if sent >= self.sent:
            self.sent = sent
            self.ttl = ttl
            self.deadline = min(sent + ttl - margin(ttl), self.bound)

    def bind(self, now: float, max_hold: float) -> None:
        """It was granted now, and is held no longer than that; infinite: as long as it lasts."""
        self.max_hold, self.bound = max_hold, now + max_hold
        self.deadline = min(self.sent + self.ttl - margin(self.ttl), self.bound)

    def overrun(self, now: float) -> str:
        """Why it is over, if that is because it was held for too long; else empty."""
        if now < self.bound or self.deadline < self.bound:
            return ""
        return f"held longer than its max_hold of {duration_text(self.max_hold)}"

    def catch_up(self) -> None:
        """Take over what a keeper process has renewed. etcd has answered it, so the lease has
        lived all the time, however late we look.
        """
        seen = self.elsewhere() if self.elsewhere is not None and not self.overdue else None
        if seen is not None:
            self.renewed(*seen)


class Keeper:
    """All etcd leases of a client, and the pool of spare ones.

    The pool holds what was given back, so it grows to the concurrency that was seen. Spares are
    kept alive for a while and then left to expire.
    """

    def __init__(self, env: Env) -> None:
        self.env = env
        self.tallies = Tallies()
        self.leases: dict[int, TtlLease] = {}  # those that must be kept alive: busy and spare
        self.spares: dict[int, list[TtlLease]] = {}
        self.box = env.mailbox()  # wakes the heartbeat
        self.beating = False  # a heartbeat runs, or was spawned
        self._complained = -math.inf  # when an error of the heartbeat was logged
        self.unsettled: dict[int, int] = {}  # lease id: how many revocations of it are under way
        self.closed = False
        self.until = math.inf  # when all must have ended, once it is closed
        self.ended: set[int] = set()  # the leases that the end of the client has revoked
        self.last_contact = -math.inf  # when etcd answered last
        self.chores: list[Callable[[float], float]] = []
        """Called by the heartbeat with the time; each gives the time it wants to be called next."""

    # -- from and to the pool

    def take_spare(self, wanted: int) -> TtlLease | None:
        """A spare lease with most of its time left, if there is one."""
        now = self.env.now()
        spares = self.spares.get(wanted, [])
        for place in range(len(spares) - 1, -1, -1):  # the one used last was renewed last
            lease = spares[place]
            if now < lease.deadline - lease.ttl / 3:
                del spares[place]
                lease.state = "busy"
                return lease
        return None

    def adopt(self, lease: TtlLease) -> None:
        """Keep a new lease alive from now on."""
        self.leases[lease.id] = lease
        if not self.beating and not self.closed:
            self.beating = True
            self.env.spawn(heartbeat(self), "heartbeat")
        elif lease.ttl < 4 * TICK:
            self.box.put(None)

    def give_back(self, lease: TtlLease) -> None:
        """Back to the pool; only after a definite outcome."""
        lease.on_lost = None
        lease.paused = False
        if lease.bound < math.inf:
            lease.bind(0.0, math.inf)
        if lease.state != "busy":
            return
        if self.closed:
            self.settle_later(lease)
            return
        lease.state = "spare"
        lease.idle_since = self.env.now()
        self.spares.setdefault(lease.wanted, []).append(lease)

    def _unspare(self, lease: TtlLease) -> None:
        # Not by its state: an interruption may strike between the two.
        spares = self.spares.get(lease.wanted, [])
        if lease in spares:
            spares.remove(lease)

    def retire(self, lease: TtlLease) -> None:
        """Keep it alive no longer; the caller revokes it, or has."""
        lease.on_lost = None
        self._unspare(lease)
        if lease.state in ("busy", "spare"):
            lease.state = "settled"
        self.leases.pop(lease.id, None)

    def leave(self, lease: TtlLease) -> None:
        """Renew it no more, and do not end it: that is left to its TTL."""
        if lease.state == "busy":
            lease.on_lost = None
            lease.state = "settled"
            self.leases.pop(lease.id, None)

    def settle_later(self, lease: TtlLease) -> None:
        """End a lease whose part in a write is uncertain, beside what the caller does."""
        if lease.state == "busy":
            self.retire(lease)
            self.settle_id(lease.id, lease.ttl)

    def settle_id(self, lease_id: int, ttl: float) -> None:
        """The same for a lease that we may not even have got."""
        self.unsettled[lease_id] = self.unsettled.get(lease_id, 0) + 1
        self.env.spawn(self._settle(lease_id, ttl), "settle")

    def _settle(self, lease_id: int, ttl: float) -> Procedure[None]:
        try:
            yield from settle(self.env, lease_id, ttl, lambda: self.until)
        finally:
            self.unsettled[lease_id] -= 1
            if not self.unsettled[lease_id]:
                del self.unsettled[lease_id]

    @property
    def settling(self) -> int:
        """How many revocations are under way."""
        return sum(self.unsettled.values())

    # -- what the heartbeat hears

    def renewed(self, lease_id: int, ttl: float) -> None:
        """Etcd has answered a renewal; `ttl` 0 or less: there is no such lease any more."""
        lease = self.leases.get(lease_id)
        if lease is None or lease.asked is None:
            return
        sent, lease.asked = lease.asked, None
        now = self.last_contact = self.env.now()
        if ttl <= 0:
            self.lose(lease, "etcd has ended its lease (it expired there, or was revoked)")
        elif self._late(lease, now):
            self.lose(lease, lease.overrun(now) or _LATE)
        else:
            lease.renewed(sent, ttl)
        if lease.told is not None:
            lease.told.put(None)

    @staticmethod
    def _late(lease: TtlLease, now: float) -> bool:
        """Is it past its deadline, as far as anybody knows?"""
        if lease.elsewhere is not None:
            lease.catch_up()
        return lease.overdue or now >= lease.deadline

    def lose(self, lease: TtlLease, reason: str) -> None:
        """A lease is over. Its user is told once."""
        self.leases.pop(lease.id, None)
        if lease.state == "spare":
            lease.state = "gone"
        self._unspare(lease)
        if lease.state != "busy":
            return
        lease.state = "lost"
        tell, lease.on_lost = lease.on_lost, None
        self.settle_id(lease.id, lease.ttl)
        if tell is not None:
            tell(reason)

    def beat(self, now: float) -> float:
        """Renew what is due, mark what is lost. Gives the time of the next beat."""
        late = False
        next_beat = math.inf
        for lease in list(self.leases.values()):
            try:
                due = self._look_after(lease, now)
            except Exception as error:  # the others need their renewal all the same
                self.complain(error)
                due = now + TICK
            late = late or (lease.asked is not None and now >= due)
            next_beat = min(next_beat, due)
        if late:
            for lease in self.leases.values():
                lease.asked = None
            self.tallies.renewals_late += 1
            self.env.restart_renewals()
            return now
        return next_beat

    def _look_after(self, lease: TtlLease, now: float) -> float:
        """Renew a lease if it is due, or mark it as lost. Gives the next time to look."""
        if self._late(lease, now):
            self.lose(lease, lease.overrun(now) or _LATE)
            return math.inf
        due = lease.sent + lease.refresh
        if lease.asked is None and now >= due and not self._unrefreshed(lease, now):
            self.env.renew(lease.id)
            lease.asked = now
        if lease.asked is not None:
            due = lease.asked + max(1.0, lease.ttl / 6)
        elif self._unrefreshed(lease, now):
            due = lease.deadline
        return min(due, lease.deadline)

    def complain(self, error: Exception) -> None:
        """Something went wrong in the heartbeat, which goes on; tell it now and then."""
        now = self.env.now()
        if now >= self._complained + COMPLAIN_EVERY:
            self._complained = now
            self.env.log(logging.ERROR, "etcdsem: error in the heartbeat", error=error)

    def pulse(self, now: float) -> float:
        """A beat, and the chores. Gives the time of the next one."""
        until = self.beat(now)
        for chore in self.chores:
            try:
                until = min(until, chore(now))
            except Exception as error:
                self.complain(error)
                until = min(until, now + TICK)
        return until

    @staticmethod
    def _unrefreshed(lease: TtlLease, now: float) -> bool:
        """Is it left to its end: paused by the user, or a spare that was idle for long?"""
        return lease.paused or (lease.state == "spare" and now - lease.idle_since > 2 * lease.ttl)


_LATE = "no renewal was answered in time (etcd away, or this program stood still)"


def heartbeat(keeper: Keeper) -> Procedure[None]:
    """Keep the leases alive until there is none left. One runs for each client; whatever goes
    wrong, it goes on, for nobody else would tell that a lease is lost.
    """
    try:
        while not keeper.closed:
            try:
                now = keeper.env.now()
                until = keeper.pulse(now)
                if not keeper.leases and until == math.inf:
                    return  # nothing to keep; the next lease starts it again
                if until > now:
                    yield from perform(Wait(keeper.box, min(until, now + TICK)))
            except Exception as error:
                keeper.complain(error)
    finally:
        keeper.beating = False


def take(keeper: Keeper, wanted: int) -> Procedure[TtlLease]:
    """A lease, from the pool or from etcd."""
    spare = keeper.take_spare(wanted)
    if spare is not None:
        return spare
    while True:
        lease_id = keeper.env.random_id()
        sent = keeper.env.now()
        try:
            ttl = yield from perform(GrantLease(lease_id, wanted, RPC_TIMEOUT))
            lease = TtlLease(lease_id, wanted, ttl, sent)
            keeper.adopt(lease)
            return lease
        except LeaseExists:
            continue  # somebody else's: ids are random, so this is once in a lifetime
        except (NotApplied, Refused):
            raise
        except BaseException:  # also an interruption after it was granted
            adopted = keeper.leases.get(lease_id)
            if adopted is not None:
                keeper.retire(adopted)
            keeper.settle_id(lease_id, float(wanted))
            raise


def freshen(keeper: Keeper, lease: TtlLease, need: float, until: float) -> Procedure[bool]:
    """Have `need` seconds left before the lease's deadline; False if that cannot be had in time."""
    env = keeper.env
    while lease.valid(env.now()):
        now = env.now()
        if lease.deadline - now >= need:
            return True
        if now >= until or need > lease.ttl - margin(lease.ttl):
            return False
        box = lease.told = env.mailbox()
        try:
            if lease.asked is None:
                env.renew(lease.id)
                lease.asked = now
            yield from perform(Wait(box, min(until, now + TICK)))
        finally:
            lease.told = None
    return False


def settle(
    env: Env, lease_id: int, ttl: float, end: Callable[[], float] = lambda: math.inf
) -> Procedure[None]:
    """Revoke a lease until etcd says that it is gone, or its TTL has passed, or `end`.

    After that no write that carries the lease can take effect, however late it lands.
    """
    until = env.now() + ttl + 2.0
    backoff = Backoff(0.05, 2.0)
    box = env.mailbox()
    while True:
        try:
            yield from perform(RevokeLease(lease_id, RPC_TIMEOUT))
            return
        except (LeaseNotFound, AccessDenied):
            return  # gone; or not ours to end: it expires, since nobody renews it
        except Failure:
            pass
        now = env.now()
        if now >= min(until, end()):
            return
        yield from perform(Wait(box, now + backoff.take(env.random())))
