"""What the blocking and the asyncio rate limit share: settings, and what the methods do."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from etcdsem.core import admin, forecast, inspection, lifecycle, rates, settle
from etcdsem.core.commands import Procedure
from etcdsem.core.limits import learn_limit, rate_of, why_full
from etcdsem.core.registration import Registration, registered
from etcdsem.core.semaphore import SemaphoreState
from etcdsem.errors import AcquireTimeout, InvalidSetting
from etcdsem.facade.registering import register_rate
from etcdsem.facade.semaphore import Named, within
from etcdsem.model import (
    MAX_SEMAPHORES,
    Denied,
    Duration,
    Rate,
    Status,
    duration_text,
)
from etcdsem.validation import (
    check_cost,
    check_max_waiting,
    check_name,
    expires_seconds,
    make_rate,
    read_rate,
)


class BaseRateLimit(Named):
    """A rate limit's settings. With several windows it stands for as many rate limits in etcd."""

    _is_rate = True
    expires = 0
    """Seconds after which the name leaves etcd if nobody uses it; 0: never."""

    def __init__(
        self,
        name: str,
        limit: int | Sequence[str] | None,
        period: Duration | None,
        *,
        block: int | None,
        labels: Mapping[str, str] | None,
        prefix: str | None,
        owner: str | None,
        max_waiting: int | None,
        expires: Duration | None = None,
    ) -> None:
        super().__init__(name, labels=labels, prefix=prefix, owner=owner)
        self.wanted: Rate | None = None
        self.windows: Mapping[str, Rate] = {}
        self._any_block = block is None
        self._registrations: dict[str, Registration | None] = {}
        self.max_waiting = check_max_waiting(max_waiting)
        if isinstance(limit, Sequence) and not isinstance(limit, str):
            self.windows = _windows(name, limit, period, block)
            self._expires_after(expires)
            return
        if (limit is None) != (period is None):
            raise InvalidSetting(
                f"rate limit {name!r}: give both the limit and the period, or neither to take "
                "what is registered"
            )
        if limit is not None and period is not None:
            self.wanted = make_rate(limit, period, block)
        self._expires_after(expires)

    def _expires_after(self, expires: Duration | None) -> None:
        rates = [*self.windows.values()] or ([self.wanted] if self.wanted is not None else [])
        longest = max((rate.period for rate in rates), default=0.0)
        self.expires = expires_seconds(expires, period=longest)
        if self.expires and not rates:
            raise InvalidSetting("expires: give the limit and the period, too")

    @property
    def _key_name(self) -> str:
        return next(iter(self.windows), self.name)

    def __repr__(self) -> str:
        rate = ", ".join(map(str, self.windows.values())) or self.wanted or "as registered"
        return f"<{self._package}.RateLimit {self.name!r}, {rate}>"

    def _states(self, state: SemaphoreState) -> list[SemaphoreState]:
        """The state of each window, from that of the first."""
        if not self.windows:
            return [state]
        return [state.session.semaphore(state.prefix, name) for name in self.windows]

    def _registering(self, state: SemaphoreState) -> Procedure[None]:
        for one in self._states(state):
            wanted = self.windows.get(one.name, self.wanted)
            if wanted is None:
                rate_of(one, (yield from learn_limit(one)))
                continue
            any_block = wanted.block == 1 if self.windows else self._any_block
            self._registrations[one.name] = yield from register_rate(
                one, wanted, self.expires, any_block=any_block
            )

    def _resizing(self, state: SemaphoreState, limit: int, period: Duration) -> Procedure[None]:
        if self.windows:
            raise InvalidSetting(
                f"rate limit {self.name!r} has several windows: resize one of them, for example "
                f"RateLimit({state.name!r}).resize(...)"
            )
        wanted = make_rate(limit, period, None)
        yield from admin.resize(state, wanted)
        self.wanted = wanted
        if (registration := self._registrations.get(state.name)) is not None:
            registration.wanted = wanted

    def _pausing(self, state: SemaphoreState, reason: str | None) -> Procedure[bool]:
        change = super()._pausing
        return self._changing_each(state, lambda one: change(one, reason))

    def _penalizing(
        self, state: SemaphoreState, duration: Duration, reason: str | None
    ) -> Procedure[bool]:
        change = super()._penalizing
        return self._changing_each(state, lambda one: change(one, duration, reason))

    def _resuming(self, state: SemaphoreState) -> Procedure[bool]:
        return self._changing_each(state, super()._resuming)

    def _changing_each(
        self, state: SemaphoreState, change: Callable[[SemaphoreState], Procedure[bool]]
    ) -> Procedure[bool]:
        """Change each window; whether one of them was changed."""
        done = False
        for one in self._states(state):
            done = (yield from change(one)) or done
        return done

    def _status(self, state: SemaphoreState, *, ttl: bool) -> Procedure[Status]:
        seen = []
        for one in self._states(state):
            window = yield from inspection.status(one, ttl=ttl)
            if one.limit is not None:
                rate_of(one, one.limit)
            opens = forecast.next_free(window, state.session.env.wall())
            seen.append(replace(window, next_free=opens))
        tight = max(seen, key=lambda window: window.next_free or 0.0)
        return replace(tight, windows=tuple(seen)) if self.windows else tight

    def _closing(self, state: SemaphoreState) -> Procedure[None]:
        self._registrations.clear()
        for one in self._states(state):
            closing = yield from lifecycle.close(one, force=True, rate=self._is_rate)
            if closing.waiters:
                state.session.env.log(
                    logging.WARNING,
                    "rate limit %s was closed while %d waited",
                    one.name,
                    len(closing.waiters),
                )


def _windows(
    name: str, limits: Sequence[str], period: Duration | None, block: int | None
) -> dict[str, Rate]:
    """The names in etcd, and their rates."""
    if period is not None or block is not None:
        raise InvalidSetting(f"rate limit {name!r}: write periods and blocks into the windows")
    wanted = [read_rate(limit) for limit in limits]
    windows = {check_name(f"{name}.{duration_text(rate.period)}"): rate for rate in wanted}
    if not 1 <= len(wanted) <= MAX_SEMAPHORES or len(windows) < len(wanted):
        raise InvalidSetting(
            f"rate limit {name!r}: give 1 to {MAX_SEMAPHORES} windows of different periods, not "
            f"{list(limits)}"
        )
    return windows


class LimitPart(NamedTuple):
    """A rate limit, its state in the core, and what a start costs of it."""

    limit: BaseRateLimit
    state: SemaphoreState
    cost: int


def check_limits(limits: Sequence[object], kind: type[BaseRateLimit]) -> None:
    """Raise TypeError or InvalidSetting if these cannot be used together."""
    ours = [limit for limit in limits if isinstance(limit, kind)]
    if len(ours) < len(limits):
        raise TypeError(f"RateLimit.all takes rate limits of {kind._package}")
    if len({id(limit.client) for limit in ours}) > 1:  # type: ignore[attr-defined]
        raise InvalidSetting("RateLimit.all takes rate limits of the same client")
    if not 1 <= sum(len(limit.windows) or 1 for limit in ours) <= MAX_SEMAPHORES:
        raise InvalidSetting(f"RateLimit.all takes 1 to {MAX_SEMAPHORES} windows in all")


def costs_of(
    limits: int, cost: int | Sequence[int], *, least: int = 1, what: str = "cost"
) -> list[int]:
    """The cost for each of so many rate limits: the same for all, or one for each."""
    costs = [*cost] if isinstance(cost, Sequence) else [cost] * limits
    if len(costs) != limits:
        raise InvalidSetting(f"{what}: give one number, or one for each of the {limits} limits")
    return [check_cost(one, least=least, what=what) for one in costs]


def acquiring(
    parts: Sequence[LimitPart], timeout: float | None, on_wait: Callable[[], object] | None = None
) -> Procedure[list[settle.Paid] | None]:
    """What a start has got of all these rate limits, or None."""
    env = parts[0].state.session.env
    until = math.inf if timeout is None else env.now() + timeout
    wanted: list[rates.StartRequest] = []
    pairs: list[tuple[SemaphoreState, Registration | None]] = []
    for limit, state, cost in parts:
        identity = state.session.identity(limit.owner, limit.labels)
        request = rates.permit_request(identity, on_wait, limit.max_waiting)
        for one in limit._states(state):
            wanted.append(rates.StartRequest(one, request, cost))
            pairs.append((one, limit._registrations.get(one.name)))
    if len({one.semaphore for one in wanted}) < len(wanted):
        raise InvalidSetting("a rate limit, or a window, was given twice")
    started = yield from registered(
        pairs, lambda: rates.start_all(wanted, until, once=timeout == 0)
    )
    return None if started is None else [*map(settle.Paid, wanted, started)]


def trying(parts: Sequence[LimitPart]) -> Procedure[list[settle.Paid] | Denied]:
    """The same at once, or when to come back."""
    paid = yield from acquiring(parts, 0.0)
    if paid is not None:
        return paid
    denied = []
    for limit, state, cost in parts:
        for one in limit._states(state):
            seen = yield from inspection.status(one, ttl=False)
            wait = forecast.next_free(seen, state.session.env.wall(), cost)
            denied.append(Denied(wait, one.name))
    return max(denied, key=lambda one: one.retry_after)


class Settled:
    """The start behind a permit, until it is settled."""

    def __init__(self, paid: Sequence[settle.Paid], parts: Sequence[LimitPart]) -> None:
        self._paid = tuple(paid)
        self._sizes = [len(part.limit.windows) or 1 for part in parts]
        self.done = False

    def settling(self, used: int | Sequence[int]) -> Procedure[None]:
        """Settle it, once; `used` as the cost was given."""
        numbers = costs_of(len(self._sizes), used, least=0, what="used")
        each = [n for n, size in zip(numbers, self._sizes, strict=True) for _ in range(size)]
        for paid, number in zip(self._paid, each, strict=True):
            if not self.done:
                settle.settle(paid, number)
        self.done = True
        return
        yield


def none_in_time(parts: Sequence[LimitPart], timeout: Duration | None) -> AcquireTimeout:
    """The error of a block that does not begin."""
    names = [one.name for part in parts for one in part.limit._states(part.state)]
    shown = ", ".join(map(repr, names))
    wall = parts[0].state.session.env.wall()
    reasons = [why_full(part.state.limit, part.state.name, wall) for part in parts]
    reason = next(filter(None, reasons), "") or (
        f"no permit was free {within(timeout)}; see: etcdsem rate {names[0]}"
    )
    return AcquireTimeout(f"rate limit{'s' * (len(names) > 1)} {shown}: {reason}")


__all__ = [
    "BaseRateLimit",
    "LimitPart",
    "Settled",
    "acquiring",
    "check_limits",
    "costs_of",
    "none_in_time",
    "trying",
]
