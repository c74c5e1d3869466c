"""What the blocking and the asyncio rate limit share: settings, and what the methods do."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping

from etcdsem.core import admin, inspection, lifecycle, rates
from etcdsem.core.commands import Procedure
from etcdsem.core.limits import learn_limit, why_full
from etcdsem.core.semaphore import SemaphoreState
from etcdsem.errors import AcquireTimeout, InvalidSetting
from etcdsem.facade.semaphore import Named, register_rate, within
from etcdsem.model import Denied, Duration, Permit, Status
from etcdsem.validation import make_rate


class BaseRateLimit(Named):
    """A rate limit's settings."""

    _is_rate = True

    def __init__(
        self,
        name: str,
        limit: int | None,
        period: Duration | None,
        *,
        block: int | None,
        labels: Mapping[str, str] | None,
        prefix: str | None,
        owner: str | None,
    ) -> None:
        super().__init__(name, labels=labels, prefix=prefix, owner=owner)
        if (limit is None) != (period is None):
            raise InvalidSetting(
                f"rate limit {name!r}: give both the limit and the period, or neither to take "
                "what is registered"
            )
        self.wanted = None if limit is None or period is None else make_rate(limit, period, block)
        self._any_block = block is None

    def __repr__(self) -> str:
        return f"<{self._package}.RateLimit {self.name!r}, {self.wanted or 'as registered'}>"

    def _acquiring(
        self,
        state: SemaphoreState,
        timeout: float | None,
        on_wait: Callable[[], object] | None = None,
        *,
        cost: int = 1,
    ) -> Procedure[Permit | None]:
        until = math.inf if timeout is None else state.session.env.now() + timeout
        identity = state.session.identity(self.owner, self.labels)
        request = rates.permit_request(identity, on_wait)
        started = yield from rates.start(state, request, until, once=timeout == 0, cost=cost)
        return Permit(started.waited, cost) if started is not None else None

    def _trying(self, state: SemaphoreState, cost: int) -> Procedure[Permit | Denied]:
        permit = yield from self._acquiring(state, 0.0, cost=cost)
        if permit is not None:
            return permit
        seen = yield from inspection.status(state, ttl=False)
        return Denied(rates.next_free(seen, state.session.env.wall(), cost))

    def _none_in_time(self, state: SemaphoreState, timeout: Duration | None) -> AcquireTimeout:
        reason = why_full(state.limit, self.name) or (
            f"no permit was free {within(timeout)}; see: etcdsem rate {self.name}"
        )
        return AcquireTimeout(f"rate limit {self.name!r}: {reason}")

    def _registering(self, state: SemaphoreState) -> Procedure[None]:
        if self.wanted is None:
            rates.rate_of(state, (yield from learn_limit(state)))
            return
        yield from register_rate(state, self.wanted, any_block=self._any_block)

    def _resizing(self, state: SemaphoreState, limit: int, period: Duration) -> Procedure[None]:
        wanted = make_rate(limit, period, None)
        yield from admin.resize(state, wanted)
        self.wanted = wanted

    def _status(self, state: SemaphoreState, *, ttl: bool) -> Procedure[Status]:
        seen = yield from inspection.status(state, ttl=ttl)
        if state.limit is not None:
            rates.rate_of(state, state.limit)
        return seen

    def _closing(self, state: SemaphoreState) -> Procedure[None]:
        closing = yield from lifecycle.close(state, force=True, rate=self._is_rate)
        if closing.waiters:
            state.session.env.log(
                logging.WARNING,
                "rate limit %s was closed while %d waited",
                self.name,
                len(closing.waiters),
            )


__all__ = ["BaseRateLimit"]
