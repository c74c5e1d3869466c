"""The etcd leases of one client: a pool, the heartbeat that renews them, and how they end.

1. A lease is never renewed after its deadline: etcd answers such a renewal only when the lease is
   gone, and until then holds up all other renewals on the stream.
2. A lease that was part of a write with an unknown outcome is never used again. It is revoked until
   etcd confirms that it is gone (`revoke_until_gone`), so that a late write finds no lease and
   fails.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

from etcdsem.core.backoff import Backoff
from etcdsem.core.commands import (
    AccessDenied,
    Env,
    Failure,
    GrantLease,
    LeaseExists,
    LeaseNotFound,
    NotApplied,
    Procedure,
    Refused,
    RevokeLease,
    Wait,
    perform,
)
from etcdsem.core.leases import COMPLAIN_EVERY, RPC_TIMEOUT, TICK, TtlLease, margin
from etcdsem.core.stats import ClientStats

INTERRUPTED_PATIENCE = 1.5
"""Seconds for which an interruption waits until a lease has been ended."""


class LeaseManager:
    """All etcd leases of a client, and the pool of spare ones.

    The pool holds returned leases, so it grows to the highest concurrency so far. Spares are kept
    alive for a while and then left to expire.
    """

    def __init__(self, env: Env) -> None:
        self.env = env
        self.stats = ClientStats()
        self.live: dict[int, TtlLease] = {}  # leases that must be kept alive: busy and spare
        self.spares: dict[int, list[TtlLease]] = {}
        self.box = env.mailbox()  # wakes the heartbeat
        self.beating = False  # a heartbeat is running, or was spawned
        self._complained = -math.inf  # when an error of the heartbeat was last logged
        self.revoking: dict[int, int] = {}  # lease id: number of its revocations in progress
        self.closed = False
        self.until = math.inf  # once the client is closed: when everything must have ended
        self.ended: set[int] = set()  # the leases that were revoked when the client was closed
        self.last_contact = -math.inf  # when etcd last answered
        self.others: dict[int, Callable[[float], None]] = {}
        """Leases that others renew, and what is called with the TTL in an answer; see `name_lease`.
        """
        self.chores: list[Callable[[float], float]] = []
        """Called by the heartbeat with the time; each returns the time of its next call."""

    # -- the pool

    def take_spare(self, wanted: int) -> TtlLease | None:
        """A spare lease with most of its time left, or None."""
        now = self.env.now()
        spares = self.spares.get(wanted, [])
        for place in range(len(spares) - 1, -1, -1):  # the most recently used was renewed last
            lease = spares[place]
            if now < lease.deadline - lease.ttl / 3:
                del spares[place]
                lease.state = "busy"
                return lease
        return None

    def adopt(self, lease: TtlLease) -> None:
        """Keep a new lease alive from now on."""
        self.live[lease.id] = lease
        if not self.beating and not self.closed:
            self.beating = True
            self.env.spawn(heartbeat(self), "heartbeat")
        elif lease.ttl < 4 * TICK:
            self.box.put(None)

    def give_back(self, lease: TtlLease) -> None:
        """Return a lease to the pool, only after a definite outcome."""
        lease.on_lost = None
        lease.paused = False
        if lease.bound < math.inf:
            lease.bind(0.0, math.inf)
        if lease.state != "busy":
            return
        if self.closed:
            self.revoke_later(lease)
            return
        lease.state = "spare"
        lease.idle_since = self.env.now()
        self.spares.setdefault(lease.wanted, []).append(lease)

    def _unspare(self, lease: TtlLease) -> None:
        # Do not rely on its state: an interruption may come between the two changes.
        spares = self.spares.get(lease.wanted, [])
        if lease in spares:
            spares.remove(lease)

    def retire(self, lease: TtlLease) -> None:
        """Stop keeping it alive; the caller revokes it, or has done so."""
        lease.on_lost = None
        self._unspare(lease)
        if lease.state in ("busy", "spare"):
            lease.state = "retired"
        self.live.pop(lease.id, None)

    def leave(self, lease: TtlLease) -> None:
        """Stop renewing it without ending it: its TTL does that."""
        if lease.state == "busy":
            lease.on_lost = None
            lease.state = "retired"
            self.live.pop(lease.id, None)

    def revoke_later(self, lease: TtlLease) -> None:
        """Revoke a lease that was part of a write with an unknown outcome, in the background."""
        if lease.state == "busy":
            self.retire(lease)
            self.revoke_id_later(lease.id, lease.ttl)

    def revoke_id_later(self, lease_id: int, ttl: float) -> None:
        """The same for a lease whose grant may not even have been applied."""
        self.revoking[lease_id] = self.revoking.get(lease_id, 0) + 1
        self.env.spawn(self._revoke_in_background(lease_id, ttl), "settle")

    def _revoke_in_background(self, lease_id: int, ttl: float) -> Procedure[None]:
        try:
            yield from revoke_until_gone(self.env, lease_id, ttl, lambda: self.until)
        finally:
            self.revoking[lease_id] -= 1
            if not self.revoking[lease_id]:
                del self.revoking[lease_id]

    @property
    def revocations(self) -> int:
        """Number of revocations in progress."""
        return sum(self.revoking.values())

    # -- renewals

    def renewed(self, lease_id: int, ttl: float) -> None:
        """Record etcd's answer to a renewal; a `ttl` of 0 or less means that the lease is gone."""
        lease = self.live.get(lease_id)
        if lease is None and lease_id in self.others:
            self.last_contact = self.env.now()
            self.others[lease_id](ttl)
            return
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
        """Is it past its deadline, as far as this process and its keeper know?"""
        if lease.elsewhere is not None:
            lease.catch_up()
        return lease.overdue or now >= lease.deadline

    def lose(self, lease: TtlLease, reason: str) -> None:
        """Mark a lease as lost, and notify its user once."""
        self.live.pop(lease.id, None)
        if lease.state == "spare":
            lease.state = "gone"
        self._unspare(lease)
        if lease.state != "busy":
            return
        lease.state = "lost"
        tell, lease.on_lost = lease.on_lost, None
        self.revoke_id_later(lease.id, lease.ttl)
        if tell is not None:
            tell(reason)

    def beat(self, now: float) -> float:
        """Renew the leases that are due, and mark lost ones. Returns the time of the next beat."""
        late = False
        next_beat = math.inf
        for lease in list(self.live.values()):
            try:
                due = self._look_after(lease, now)
            except Exception as error:  # the others still need their renewal
                self.complain(error)
                due = now + TICK
            late = late or (lease.asked is not None and now >= due)
            next_beat = min(next_beat, due)
        if late:
            for lease in self.live.values():
                lease.asked = None
            self.stats.renewals_late += 1
            self.env.restart_renewals()
            return now
        return next_beat

    def _look_after(self, lease: TtlLease, now: float) -> float:
        """Renew a lease if it is due, or mark it as lost. Returns the next time to check."""
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
        """Log an error of the heartbeat, which continues; at most once in `COMPLAIN_EVERY`."""
        now = self.env.now()
        if now >= self._complained + COMPLAIN_EVERY:
            self._complained = now
            self.env.log(logging.ERROR, "etcdsem: error in the heartbeat", error=error)

    def pulse(self, now: float) -> float:
        """A beat, and the chores. Returns the time of the next one."""
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
        """Is it left to expire: paused by the user, or a spare that was idle for long?"""
        return lease.paused or (lease.state == "spare" and now - lease.idle_since > 2 * lease.ttl)


_LATE = "no renewal was answered in time (etcd was unavailable, or this program was suspended)"


def heartbeat(manager: LeaseManager) -> Procedure[None]:
    """Keep the leases alive until none is left. Each client runs one. It survives any error, since
    nothing else would report a lost lease.
    """
    try:
        while not manager.closed:
            try:
                now = manager.env.now()
                until = manager.pulse(now)
                if not manager.live and until == math.inf:
                    return  # nothing to keep alive; the next lease starts it again
                if until > now:
                    yield from perform(Wait(manager.box, min(until, now + TICK)))
            except Exception as error:
                manager.complain(error)
    finally:
        manager.beating = False


def take_lease(manager: LeaseManager, wanted: int) -> Procedure[TtlLease]:
    """A lease, from the pool or newly granted by etcd. `wanted`: its TTL in seconds."""
    return manager.take_spare(wanted) or (yield from grant_lease(manager, wanted))


def grant_lease(manager: LeaseManager, wanted: int) -> Procedure[TtlLease]:
    """A lease newly granted by etcd."""
    while True:
        lease_id = manager.env.random_id()
        sent = manager.env.now()
        try:
            ttl = yield from perform(GrantLease(lease_id, wanted, RPC_TIMEOUT))
            lease = TtlLease(lease_id, wanted, ttl, sent)
            manager.adopt(lease)
            return lease
        except LeaseExists:
            continue  # another client's lease: ids are random, so this hardly ever happens
        except (NotApplied, Refused):
            raise
        except BaseException:  # includes an interruption after the grant
            adopted = manager.live.get(lease_id)
            if adopted is not None:
                manager.retire(adopted)
            manager.revoke_id_later(lease_id, float(wanted))
            raise


def freshen(manager: LeaseManager, lease: TtlLease, need: float, until: float) -> Procedure[bool]:
    """Make sure that `need` seconds are left before the lease's deadline; False if that is not
    possible until `until`.
    """
    env = manager.env
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


def end_interrupted(manager: LeaseManager, lease: TtlLease) -> Procedure[None]:
    """End the lease of an interrupted procedure now, while its caller still waits; continue in the
    background if that takes longer than `INTERRUPTED_PATIENCE`.
    """
    manager.retire(lease)
    try:
        yield from perform(RevokeLease(lease.id, INTERRUPTED_PATIENCE))
    except LeaseNotFound:
        pass
    except BaseException:
        manager.revoke_id_later(lease.id, lease.ttl)


def revoke_until_gone(
    env: Env, lease_id: int, ttl: float, end: Callable[[], float] = lambda: math.inf
) -> Procedure[None]:
    """Revoke a lease until etcd confirms that it is gone, or its TTL has passed, or `end`.

    After that no write that carries the lease can take effect, however late it arrives.
    """
    until = env.now() + ttl + 2.0
    backoff = Backoff(0.05, 2.0)
    box = env.mailbox()
    while True:
        try:
            yield from perform(RevokeLease(lease_id, RPC_TIMEOUT))
            return
        except (LeaseNotFound, AccessDenied):
            return  # gone; or we may not end it, and it expires since nobody renews it
        except Failure:
            pass
        now = env.now()
        if now >= min(until, end()):
            return
        yield from perform(Wait(box, now + backoff.take(env.random())))
