"""What the blocking and the asyncio rate limit share: settings, and what the methods do."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping

from etcdsem.core import admin, inspection, lifecycle, rates
from etcdsem.core.commands import Procedure
from etcdsem.core.limits import learn_limit
from etcdsem.core.registration import registered
from etcdsem.core.semaphore import SemaphoreState
from etcdsem.errors import InvalidSetting
from etcdsem.facade.registering import register_rate
from etcdsem.facade.semaphore import Named
from etcdsem.model import Denied, Duration, Permit, Status
from etcdsem.validation import check_max_waiting, expires_seconds, make_rate


class BaseRateLimit(Named):
    """A rate limit's settings."""

    _is_rate = True
    expires = 0
    """Seconds after which the name leaves etcd if nobody uses it; 0: never."""

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
        max_waiting: int | None,
        expires: Duration | None = None,
    ) -> None:
        super().__init__(name, labels=labels, prefix=prefix, owner=owner)
        if (limit is None) != (period is None):
            raise InvalidSetting(
                f"rate limit {name!r}: give both the limit and the period, or neither to take "
                "what is registered"
            )
        self.wanted = None if limit is None or period is None else make_rate(limit, period, block)
        self._any_block = block is None
        self.max_waiting = check_max_waiting(max_waiting)
        self.expires = expires_seconds(expires, period=self.wanted.period if self.wanted else 0.0)
        if self.expires and self.wanted is None:
            raise InvalidSetting("expires: give the limit and the period, too")

    def __repr__(self) -> str:
        return f"<{self._package}.RateLimit {self.name!r}, {self.wanted or 'as registered'}>"

    def _acquiring(
        self,
        state: SemaphoreState,
        timeout: float | None,
        on_wait: Callable[[], object] | None = None,
    ) -> Procedure[Permit | None]:
        until = math.inf if timeout is None else state.session.env.now() + timeout
        identity = state.session.identity(self.owner, self.labels)
        request = rates.permit_request(identity, on_wait, self.max_waiting)
        granted = yield from registered(
            [(state, self._registration)],
            lambda: rates.start(state, request, until, once=timeout == 0),
        )
        return Permit(granted.waited) if granted is not None else None

    def _trying(self, state: SemaphoreState) -> Procedure[Permit | Denied]:
        permit = yield from self._acquiring(state, 0.0)
        if permit is not None:
            return permit
        seen = yield from inspection.status(state, ttl=False)
        return Denied(rates.next_free(seen, state.session.env.wall()))

    def _registering(self, state: SemaphoreState) -> Procedure[None]:
        if self.wanted is None:
            rates.rate_of(state, (yield from learn_limit(state)))
            return
        self._registration = yield from register_rate(
            state, self.wanted, self.expires, any_block=self._any_block
        )

    def _resizing(self, state: SemaphoreState, limit: int, period: Duration) -> Procedure[None]:
        wanted = make_rate(limit, period, None)
        yield from admin.resize(state, wanted)
        self.wanted = wanted
        if self._registration is not None:
            self._registration.wanted = wanted

    def _status(self, state: SemaphoreState, *, ttl: bool) -> Procedure[Status]:
        seen = yield from inspection.status(state, ttl=ttl)
        if state.limit is not None:
            rates.rate_of(state, state.limit)
        return seen

    def _closing(self, state: SemaphoreState) -> Procedure[None]:
        self._registration = None
        closing = yield from lifecycle.close(state, force=True, rate=self._is_rate)
        if closing.waiters:
            state.session.env.log(
                logging.WARNING,
                "rate limit %s was closed while %d waited",
                self.name,
                len(closing.waiters),
            )


__all__ = ["BaseRateLimit"]
