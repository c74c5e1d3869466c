"""What the two semaphores share: settings, the leases held here, and what each method does."""

from __future__ import annotations

import logging
import math
import os
import socket
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from etcdsem.core import admin, inspection, lifecycle, rates
from etcdsem.core.acquire import acquire
from etcdsem.core.commands import Procedure
from etcdsem.core.grants import Grant
from etcdsem.core.keys import ORDINARY, Demand
from etcdsem.core.limits import check_kind, why_full
from etcdsem.core.registration import Registration, registered
from etcdsem.core.release import release
from etcdsem.core.request import AcquireRequest
from etcdsem.core.semaphore import SemaphoreState
from etcdsem.drivers.base import Driver
from etcdsem.errors import (
    AcquireTimeout,
    InvalidSetting,
    ReleasedTooOften,
)
from etcdsem.facade.client import draining, operator, pausing, penalizing, resuming
from etcdsem.facade.entered_blocks import EnteredBlocks
from etcdsem.facade.lease import OWNERS, BaseLease
from etcdsem.facade.registering import register_limit, register_rate
from etcdsem.intervals import read_intervals
from etcdsem.model import Duration, Status, duration_text
from etcdsem.validation import (
    UNNAMED_EXPIRES,
    check_limit,
    check_max_waiting,
    check_name,
    check_prefix,
    check_priority,
    check_text,
    check_weight,
    environment,
    expires_seconds,
    linger_seconds,
    max_hold_seconds,
    read_labels,
    read_rate,
    seconds,
)


def read_demand(weight: int, priority: int, backfill: bool, eager: bool | None) -> Demand:
    """What an acquire asks for; raises InvalidSetting for invalid arguments."""
    if eager is not None:
        warnings.warn("eager= is now called backfill=", DeprecationWarning, stacklevel=3)
        backfill = backfill or eager
    return Demand(check_weight(weight), check_priority(priority), bool(backfill))


L = TypeVar("L", bound=BaseLease)


class Named:
    """What a semaphore and a rate limit have in common: name, labels and owner."""

    _package = "etcdsem"
    _fleeting: tuple[str, ...] = ()
    """Attributes that are not pickled; `_start_empty` creates them."""
    _is_rate = False
    _registration: Registration | None = None
    """What to register again once the name has expired; None if it stays."""

    def __init__(
        self,
        name: str,
        *,
        labels: Mapping[str, str] | None,
        prefix: str | None,
        owner: str | None,
    ) -> None:
        self.name = check_name(name)
        self._prefix = None if prefix is None else check_prefix(prefix)
        self.labels = read_labels(labels)
        self.owner = owner or environment("ETCDSEM_OWNER")
        if self.owner is not None:
            check_text(self.owner, what="owner")
        self._start_empty()

    def _start_empty(self) -> None:
        pass

    def __getstate__(self) -> dict[str, Any]:
        return {key: it for key, it in self.__dict__.items() if key not in self._fleeting}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start_empty()

    @property
    def _key_name(self) -> str:
        """The name under which it is in etcd."""
        return self.name

    def _registering(self, state: SemaphoreState) -> Procedure[None]:
        raise NotImplementedError

    def _pausing(self, state: SemaphoreState, reason: str | None) -> Procedure[bool]:
        return pausing(state, self.owner or operator(), reason, rate=self._is_rate)

    def _penalizing(
        self, state: SemaphoreState, duration: Duration, reason: str | None
    ) -> Procedure[bool]:
        by = self.owner or operator()
        return penalizing(state, by, duration, reason, rate=self._is_rate)

    def _resuming(self, state: SemaphoreState) -> Procedure[bool]:
        return resuming(state, rate=self._is_rate)


class BaseSemaphore(Named, Generic[L]):
    """A semaphore's settings, and the leases that this object holds."""

    _fleeting: tuple[str, ...] = ("_blocks", "_leases")
    _rate_registration: Registration | None = None
    expires = 0
    """Seconds after which the name leaves etcd if nobody uses it; 0: never."""

    def __init__(
        self,
        max_leases: int | None,
        name: str | None,
        *,
        lease_timeout: Duration | None,
        refresh_interval: Duration | None,
        on_lost: Callable[[L], object] | None,
        labels: Mapping[str, str] | None,
        prefix: str | None,
        owner: str | None,
        raise_on_loss: bool,
        max_hold: Duration | None,
        rate: str | None,
        linger: Duration | None,
        max_waiting: int | None,
        expires: Duration | None = None,
    ) -> None:
        self.max_leases = None if max_leases is None else check_limit(max_leases)
        super().__init__(
            name if name is not None else f"semaphore-{os.urandom(16).hex()}",
            labels=labels,
            prefix=prefix,
            owner=owner,
        )
        self.lease_timeout, self.refresh_interval = read_intervals(lease_timeout, refresh_interval)
        self.on_lost = on_lost
        self.raise_on_loss = raise_on_loss
        self.max_hold = max_hold_seconds(max_hold)
        self.rate = None if rate is None else read_rate(rate)
        self.linger = linger_seconds(linger)
        self.max_waiting = check_max_waiting(max_waiting)
        self.expires = self._expires(expires, given=name is not None)
        self._any_block = rate is None or rate.count("/") == 1
        if self.rate is not None:
            check_name(self._rate_name)
        self._refresh_leases = True

    def _expires(self, expires: Duration | None, *, given: bool) -> int:
        """The setting in seconds; by default a name that was not `given` expires."""
        period = self.rate.period if self.rate is not None else 0.0
        if expires is None and not given:
            return max(UNNAMED_EXPIRES, math.ceil(2 * period))
        if expires is not None and self.max_leases is None:
            raise InvalidSetting("expires: give max_leases, too")
        return expires_seconds(expires, period=period)

    def _start_empty(self) -> None:
        self._leases: list[L] = []
        self._blocks: EnteredBlocks[Any] = EnteredBlocks()  # of ``with semaphore:``

    def __repr__(self) -> str:
        return f"<{self._package}.Semaphore {self.name!r}, {len(self.leases)} held here>"

    @property
    def _rate_name(self) -> str:
        return f"{self.name}.rate"

    def _rate_state(self, state: SemaphoreState) -> SemaphoreState:
        """The state of this semaphore's rate limit."""
        return state.session.semaphore(state.prefix, self._rate_name)

    def _owner_shown(self) -> str:
        return self.owner or f"{socket.gethostname()}:{os.getpid()}"

    # -- what the methods do

    def _acquiring(
        self,
        state: SemaphoreState,
        limit: float | None,
        on_wait: Callable[[], object] | None,
        lease_of: Callable[[Grant], L],
        *,
        demand: Demand,
    ) -> Procedure[L | None]:
        # The lease is created in the procedure, so that no interruption comes between the grant
        # and the listing.
        until = math.inf if limit is None else state.session.env.now() + limit
        request = self._request(state, on_wait, demand)
        while True:
            grant = yield from registered(
                [(state, self._registration)],
                lambda: acquire(state, request, until, once=limit == 0),
            )
            if grant is None:
                return None
            try:  # Ctrl-C may interrupt at any byte code
                if self.rate is not None:
                    paced = yield from self._paced(state, grant, until, on_wait, once=limit == 0)
                    if not paced:
                        return None
                    if not grant.valid(state.session.env.now()):
                        grant.let_go()  # lost while it waited for the permit: start over
                        continue
                return self._list(grant, lease_of)
            except BaseException:
                yield from self._unlist(grant)
                raise

    def _paced(
        self,
        state: SemaphoreState,
        grant: Grant,
        until: float,
        on_wait: Callable[[], object] | None,
        *,
        once: bool,
    ) -> Procedure[bool]:
        """Wait for a permit of the rate limit while holding a slot; without one, release it."""
        identity = state.session.identity(self.owner, self.labels)
        request = rates.permit_request(identity, on_wait)
        grant.lease.paused = not self._refresh_leases
        there = self._rate_state(state)
        started = yield from registered(
            [(there, self._rate_registration)],
            lambda: rates.start(there, request, until, once=once),
        )
        if started is None:
            yield from release(grant)
        return started is not None

    def _request(
        self, state: SemaphoreState, on_wait: Callable[[], object] | None, demand: Demand = ORDINARY
    ) -> AcquireRequest:
        return AcquireRequest(
            self.lease_timeout,
            self.refresh_interval,
            state.session.identity(self.owner, self.labels, self.max_hold),
            on_wait,
            self.max_leases,
            demand,
            self.max_hold,
            self.linger,
            max_waiting=self.max_waiting,
        )

    def _list(self, grant: Grant, lease_of: Callable[[Grant], L]) -> L:
        lease = lease_of(grant)
        self._leases.append(lease)
        grant.lease.paused = not self._refresh_leases
        return lease

    def _unlist(self, grant: Grant) -> Procedure[None]:
        """Release a grant that did not reach its caller because of an interruption."""
        for lease in list(self._leases):
            if lease._grant is grant:
                self._forget(lease)
        yield from release(grant)

    def _oldest(self) -> L:
        """The lease that `release` gives back. A lost one comes first: its former holder will call
        `release` too, and must not give back a lease that is in use.
        """
        leases = self._releasable()
        if len(leases) == 1:
            return leases[0]
        lease = min(leases, key=lambda one: (OWNERS.index(one.owner), one.valid), default=None)
        if lease is None:
            raise ReleasedTooOften("Released too often")
        return lease

    def _releasable(self) -> tuple[L, ...]:
        return self.leases

    def _releasing(self, driver: Driver) -> Procedure[bool | None]:
        """Release the oldest lease. It is chosen in the same step in which its release begins, so
        no two calls take the same one. None: it belongs to another driver.
        """
        lease = self._oldest()
        if lease._driver is not driver:
            return None
        return (yield from lease._releasing())

    def _no_lease(self, state: SemaphoreState, timeout: Duration | None) -> AcquireTimeout:
        reason = why_full(state.limit, self.name, state.session.env.wall()) or (
            f"no lease was free {within(timeout)}; to see the holders: etcdsem status {self.name}"
        )
        return AcquireTimeout(f"semaphore {self.name!r}: {reason}")

    def _forget(self, lease: BaseLease) -> bool:
        """Remove it from the list; False if it was not listed."""
        try:
            self._leases.remove(lease)  # type: ignore[arg-type]  # it is one of ours
        except ValueError:
            return False
        return True

    @property
    def leases(self) -> tuple[L, ...]:
        """The leases that this object holds in this process, oldest first."""
        return tuple(lease for lease in list(self._leases) if lease._here)

    def _registering(self, state: SemaphoreState) -> Procedure[None]:
        self._registration = yield from register_limit(state, self.max_leases, self.expires)
        if self.rate is not None:
            there = self._rate_state(state)
            self._rate_registration = yield from register_rate(
                there, self.rate, self.expires, any_block=self._any_block
            )

    def _resizing(self, state: SemaphoreState, max_leases: int) -> Procedure[None]:
        number = check_limit(max_leases, least=0)
        yield from admin.resize(state, number)
        if number:
            self.max_leases = number
            if self._registration is not None:
                self._registration.wanted = number

    def _draining(
        self, state: SemaphoreState, timeout: Duration | None, reason: str | None
    ) -> Procedure[bool]:
        by = self.owner or operator()
        return draining(state, by, timeout, reason, None, rate=self._is_rate)

    def _status(self, state: SemaphoreState, *, ttl: bool) -> Procedure[Status]:
        seen = yield from inspection.status(state, ttl=ttl)
        check_kind(state, rate=self._is_rate)
        return seen

    def _counting(self, state: SemaphoreState) -> Procedure[int]:
        held = yield from inspection.held(state)
        check_kind(state, rate=self._is_rate)
        return held

    def _closing(self, state: SemaphoreState) -> Procedure[None]:
        self._registration = None
        closing = yield from lifecycle.close(state, force=True, rate=self._is_rate)
        if closing.holders or closing.waiters:
            state.session.env.log(
                logging.WARNING,
                "semaphore %s was closed while in use: %d held (%s), %d waiting",
                self.name,
                len(closing.holders),
                ", ".join(closing.holders) or "-",
                len(closing.waiters),
            )

    @property
    def refresh_leases(self) -> bool:
        """Whether this object's leases are refreshed; False pauses that, for tests."""
        return self._refresh_leases

    @refresh_leases.setter
    def refresh_leases(self, on: bool) -> None:
        self._refresh_leases = bool(on)
        for lease in self.leases:
            lease._grant.lease.paused = not on


def within(timeout: Duration | None) -> str:
    """Format a timeout that came first: ``within 5s``, or ``at once``."""
    given = seconds(timeout or 0)
    return f"within {duration_text(given)}" if given else "at once"


def check_dask_arguments(register: bool, scheduler_rpc: None) -> bool:
    """Refuse arguments of Dask's semaphore that have no meaning here; returns `register`."""
    if scheduler_rpc is not None:
        raise TypeError(
            "scheduler_rpc is a connection to Dask's scheduler, which etcdsem does not use. Pass "
            "the etcd to use as client=, for example client=etcdsem.connect('host:2379')"
        )
    if not isinstance(register, bool):  # newer Dask has scheduler_rpc in this place
        raise TypeError(
            f"register must be True or False, not {type(register).__name__}; pass the etcd to use "
            "as client="
        )
    return register
