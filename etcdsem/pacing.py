"""What the blocking and the asyncio rate limit share: settings, and what the methods do."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping

from etcdsem.core import inspection, lifecycle, operating, rates
from etcdsem.core.commands import Procedure
from etcdsem.core.limits import learn_limit
from etcdsem.core.station import Station
from etcdsem.errors import AcquireTimeout, InvalidSetting
from etcdsem.model import Duration, Later, Start, Status, make_rate
from etcdsem.shell import Named, register_rate


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

    def _ask(self, station: Station, on_wait: Callable[[], object] | None = None) -> rates.Ask:
        return rates.Ask(station.session.identity(self.owner, self.labels), on_wait)

    def _starting(
        self,
        station: Station,
        timeout: float | None,
        on_wait: Callable[[], object] | None = None,
    ) -> Procedure[Start | None]:
        until = math.inf if timeout is None else station.session.env.now() + timeout
        ask = self._ask(station, on_wait)
        started = yield from rates.start(station, ask, until, once=timeout == 0)
        return Start(started.waited) if started is not None else None

    def _trying(self, station: Station) -> Procedure[Start | Later]:
        start = yield from self._starting(station, 0.0)
        if start is not None:
            return start
        seen = yield from inspection.status(station, ttl=False)
        return Later(rates.next_free(seen, station.session.env.wall()))

    def _registering(self, station: Station) -> Procedure[None]:
        if self.wanted is None:
            rates.rate_of(station, (yield from learn_limit(station)))
            return
        yield from register_rate(station, self.wanted, any_block=self._any_block)

    def _resizing(self, station: Station, limit: int, period: Duration) -> Procedure[None]:
        wanted = make_rate(limit, period, None)
        yield from operating.resize(station, wanted)
        self.wanted = wanted

    def _status(self, station: Station, *, ttl: bool) -> Procedure[Status]:
        seen = yield from inspection.status(station, ttl=ttl)
        if station.limit is not None:
            rates.rate_of(station, station.limit)
        return seen

    def _closing(self, station: Station) -> Procedure[None]:
        closing = yield from lifecycle.close(station, force=True, rate=self._is_rate)
        if closing.waiters:
            station.session.env.log(
                logging.WARNING,
                "rate limit %s was closed while %d waited",
                self.name,
                len(closing.waiters),
            )

    def _in_time(self, start: Start | None, timeout: Duration | None) -> Start:
        if start is None:
            raise AcquireTimeout(
                f"rate limit {self.name!r}: no start was free within {timeout!r}; who used them: "
                f"etcdsem rate {self.name}"
            )
        return start


__all__ = ["BaseRateLimit"]
