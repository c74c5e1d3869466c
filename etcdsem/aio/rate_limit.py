"""`RateLimit`: a limit on the permits in any window of time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Self, TypeVar

from etcdsem.aio.bound import Bound
from etcdsem.aio.client import Client
from etcdsem.aio.loop_check import methods_need_loop  # asyncio only
from etcdsem.core.commands import Procedure
from etcdsem.core.settle import Paid
from etcdsem.facade.decorators import AsyncDecorator
from etcdsem.facade.rate_limit import (
    BaseRateLimit,
    LimitPart,
    Settled,
    acquiring,
    check_limits,
    costs_of,
    none_in_time,
    trying,
)
from etcdsem.model import BasePermit, Denied, Duration, Status
from etcdsem.validation import check_cost, timeout_seconds

T = TypeVar("T")


@dataclass(frozen=True)
class Permit(BasePermit):
    """A permit that a rate limit granted, or several, from this moment. Always true."""

    _settled: Settled | None = field(default=None, repr=False, compare=False)
    _limit: RateLimit | RateLimits | None = field(default=None, repr=False, compare=False)

    async def settle(self, used: int | Sequence[int]) -> None:
        """Tell how many permits were really used, once that is known. Does not wait for etcd.

        Slots that are wholly unused go to the next waiters at once. What was used beyond the cost
        is taken in the background, in the queue like any start: those who come later pay for it.
        If the program ends before that, it is not taken. Only the first call counts. After the
        period nothing is given back.

        Args:
            used: 0 or more; with several limits one number for each, or one for all.
        """
        if self._settled is not None and self._limit is not None:
            await self._limit._run(self._settled.settling(used), "settle")


def _permit(
    limit: RateLimit | RateLimits, parts: Sequence[LimitPart], paid: Sequence[Paid]
) -> Permit:
    return Permit(paid[0].started.waited, parts[0].cost, Settled(paid, parts), limit)


@methods_need_loop  # asyncio only
class RateLimit(AsyncDecorator, Bound, BaseRateLimit):
    """At most `limit` permits in any window of `period`, for any processes anywhere.

    A permit is for a moment, not a span: there is nothing to release. ``async with limit:`` waits
    for a permit and runs the body; how long the body takes does not count.

    Args:
        name: 1 to 128 of ``A-Z a-z 0-9 . _ -``; must not be the name of a semaphore.
        limit: permits per period. Without `limit` and `period` the registered rate applies. Or
            several windows, which apply all at once: ``["60/1m", "100000/1d"]``. Each is a rate
            limit in etcd, here ``<name>.1m`` and ``<name>.24h``.
        period: seconds, ``"1m"`` or a timedelta; at least 0.1 s.
        client: from `connect()`; default: the default client.
        block: permits that a process takes at a time. Default 1 up to 256 permits per period,
            above that as many as make 256 blocks. A process uses a block within 5 % of the
            period, and forfeits the rest.
        labels: shown to operators, at most 16, together with those of ``ETCDSEM_LABELS``.
        prefix: of the keys in etcd; default the client's, else ``/etcdsem``.
        owner: the name that operators see; default ``ETCDSEM_OWNER``, else ``host:pid``.
        expires: a new name leaves etcd when nobody has used it for this long (to within a minute),
            at least 10 minutes and two periods: ``"7d"``. An object that finds it gone
            registers it again. None: it stays.
        register: write the rate to etcd if it is new: the blocking class at once, that of
            `etcdsem.aio` when it is awaited (``await RateLimit(...)``) or first used.
        max_waiting: how many callers may wait; one that would wait beyond them gets `QueueFull` at
            once. 0: never wait. Default: any number. With blocks, those of other processes count
            only as one for each process.

    Raises:
        InconsistentLimit: another rate is registered.
        WrongKind: the name belongs to a semaphore.
        InvalidName, InvalidSetting: an argument is invalid.
        EtcdUnavailable, PermissionDenied, EtcdRefused: it could not be registered.
    """

    _class_name = "RateLimit"

    def __init__(
        self,
        name: str,
        limit: int | Sequence[str] | None = None,
        period: Duration | None = None,
        *,
        client: Client | None = None,
        block: int | None = None,
        labels: Mapping[str, str] | None = None,
        prefix: str | None = None,
        owner: str | None = None,
        register: bool = True,
        max_waiting: int | None = None,
        expires: Duration | None = None,
    ) -> None:
        self._bind(client, register=register)
        super().__init__(
            name,
            limit,
            period,
            block=block,
            labels=labels,
            prefix=prefix,
            owner=owner,
            max_waiting=max_waiting,
            expires=expires,
        )
        self._register_now()

    async def acquire(
        self,
        timeout: Duration | None = None,
        *,
        cost: int = 1,
        on_wait: Callable[[], object] | None = None,
    ) -> Permit | None:
        """Wait for a permit, or for several at once. Waiters are served in order of arrival: nobody
        passes one that waits for many.

        Args:
            timeout: seconds, ``"1m30s"`` or a timedelta. None waits forever, 0 tries once.
            cost: how many permits it takes, for example the tokens of a request. They are taken in
                whole blocks; what is left of the last one stays usable by this client for 5 % of
                the period.
            on_wait: called once the call has to wait, as for `Semaphore.acquire_lease`.

        Returns:
            A `Permit`, which has the seconds `waited`; None if there was no permit until the
            timeout.

        Raises:
            WeightExceedsLimit: the cost exceeds the limit, or 256 blocks.
            SemaphoreClosed: the rate limit is not registered (any more).
            QueueFull: as many as `max_waiting` wait already.
            EtcdUnavailable: etcd was unreachable for the whole timeout.
        """
        limit, parts = timeout_seconds(timeout), self._parts(cost)
        paid = await self._run(acquiring(parts, limit, on_wait), "acquire")
        return None if paid is None else _permit(self, parts, paid)

    async def try_acquire(self, *, cost: int = 1) -> Permit | Denied:
        """A `Permit` if there is one now, else `Denied`, which is false and has `retry_after`, and
        the `name` of the window that is free last.

        Raises:
            WeightExceedsLimit: as for `acquire`.
        """
        parts = self._parts(cost)
        paid = await self._run(trying(parts), "acquire")
        return paid if isinstance(paid, Denied) else _permit(self, parts, paid)

    def start(self, timeout: Duration | None = None, *, cost: int = 1) -> StartBlock:
        """A block that begins with a permit, which it gives: ``async with api.start(cost=1200) as
        permit:``. Arguments as for `acquire`. It is also a decorator.

        Raises:
            AcquireTimeout: the timeout came first; the body did not run.
            WeightExceedsLimit: as for `acquire`.
        """
        return StartBlock(self, timeout, check_cost(cost))

    def _parts(self, cost: int | Sequence[int]) -> list[LimitPart]:
        (number,) = costs_of(1, cost)
        return [LimitPart(self, self._state(), number)]

    @staticmethod
    def all(*limits: RateLimit) -> RateLimits:
        """Several rate limits together, for example of requests and of their tokens: a start takes
        permits of each, all or none.

        Args:
            limits: different ones, of the same client. One may have several windows.

        Raises:
            InvalidSetting: they cannot be used together.
        """
        return RateLimits(*limits)

    async def __aenter__(self) -> Self:
        await self.acquire()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        pass

    def _block(self) -> Self:
        return self

    async def resize(self, limit: int, period: Duration) -> None:
        """Change the rate for everybody while it is in use. Permits already granted still count."""
        await self._run(self._resizing(self._state(), limit, period), "resize")

    async def status(self, *, ttl: bool = True) -> Status:
        """The permits in use (as `holders`) and the waiters, at one revision. With several
        windows: those of the tight one, and all `windows`.
        """
        return await self._run(self._status(self._state(), ttl=ttl), "look at")

    async def close(self) -> None:
        """Remove it from etcd, for everybody. Waiters get SemaphoreClosed. Permits that were
        granted are forgotten: a rate limit registered later under this name starts at zero.
        """
        self._to_register = False
        await self._run(self._closing(self._state()), "close")


@methods_need_loop  # asyncio only
class RateLimits:
    """Several rate limits together, from `RateLimit.all`: a start takes permits of each at one
    moment, or none. Costs are given for each limit, in their order, or one for all.

    It collects the permits in the order of the limits' prefixes and names, and keeps what it has,
    unspent, while it waits for the next. So there is no deadlock, and each limit keeps its order.
    """

    def __init__(self, *limits: RateLimit) -> None:
        check_limits(limits, RateLimit)
        self.limits = limits

    async def acquire(
        self,
        timeout: Duration | None = None,
        *,
        cost: int | Sequence[int] = 1,
        on_wait: Callable[[], object] | None = None,
    ) -> Permit | None:
        """Wait for permits of all limits. Arguments and errors as for `RateLimit.acquire`; `cost`
        may be one number for each limit, and `on_wait` is called once for each in whose queue the
        call waits.
        """
        limit, parts = timeout_seconds(timeout), self._parts(cost)
        paid = await self._run(acquiring(parts, limit, on_wait), "acquire")
        return None if paid is None else _permit(self, parts, paid)

    async def try_acquire(self, *, cost: int | Sequence[int] = 1) -> Permit | Denied:
        """A `Permit` if all have permits now, else `Denied`, with the `name` of the limit that is
        free last.
        """
        parts = self._parts(cost)
        paid = await self._run(trying(parts), "acquire")
        return paid if isinstance(paid, Denied) else _permit(self, parts, paid)

    def start(
        self, timeout: Duration | None = None, *, cost: int | Sequence[int] = 1
    ) -> StartBlock:
        """A block that begins with permits of all limits, as `RateLimit.start`."""
        return StartBlock(self, timeout, costs_of(len(self.limits), cost))

    async def status(self, *, ttl: bool = True) -> tuple[Status, ...]:
        """The status of each limit. The tight one has the largest `next_free`."""
        return tuple([await limit.status(ttl=ttl) for limit in self.limits])

    def _parts(self, cost: int | Sequence[int]) -> list[LimitPart]:
        costs = costs_of(len(self.limits), cost)
        return [
            LimitPart(one, one._state(), of) for one, of in zip(self.limits, costs, strict=True)
        ]

    async def _run(self, procedure: Procedure[T], what: str) -> T:
        for limit in self.limits:  # asyncio only
            await limit._ready()  # asyncio only
        return await self.limits[0]._run(procedure, what)


class StartBlock(AsyncDecorator, AbstractAsyncContextManager[Permit, None]):
    """The block of ``async with api.start()``. It may be entered any number of times."""

    _class_name = "RateLimit"

    def __init__(
        self, limit: RateLimit | RateLimits, timeout: Duration | None, cost: int | Sequence[int]
    ) -> None:
        self._limit, self._timeout, self._cost = limit, timeout, cost

    def _block(self) -> Self:
        return self

    async def __aenter__(self) -> Permit:
        limit, parts = timeout_seconds(self._timeout), self._limit._parts(self._cost)
        paid = await self._limit._run(acquiring(parts, limit), "acquire")
        if paid is None:
            raise none_in_time(parts, self._timeout)
        return _permit(self._limit, parts, paid)

    async def __aexit__(self, *exc_info: object) -> None:
        pass


__all__ = ["Permit", "RateLimit", "RateLimits", "StartBlock"]
