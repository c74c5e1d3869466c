"""What an operator asks of a client."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar, overload

from etcdsem.aio.loop_check import methods_need_loop  # asyncio only
from etcdsem.core import declare, inspection, lifecycle
from etcdsem.core.commands import Procedure
from etcdsem.facade.client import BaseClient
from etcdsem.model import (
    CloseResult,
    Duration,
    Holder,
    Junk,
    LimitChange,
    LimitInfo,
    LimitRefusal,
    Overview,
    Pruned,
    Rate,
    Status,
    Waiter,
)

T = TypeVar("T")


@methods_need_loop  # asyncio only
class OperatorCalls(BaseClient):
    """A client's calls by name, for semaphores and rate limits that this program need not use."""

    async def _run(self, procedure: Procedure[T], what: str) -> T:
        raise NotImplementedError

    async def overview(self) -> list[Overview]:
        """All semaphores under the prefix: limit, held slots, waiters."""
        listing = inspection.overview(self._session, self.prefix)
        return await self._run(listing, "list the semaphores")

    async def status(self, name: str, *, ttl: bool = True) -> Status:
        """One semaphore at one revision: its holders and waiters.

        Args:
            name: the semaphore, or the rate limit.
            ttl: also ask etcd how many seconds each lease has left, for all holders and the first
                256 waiters. This costs one request per lease; many are in flight at once.

        Raises:
            SemaphoreClosed: it is not registered.
        """
        reading = inspection.status(self._state(name), ttl=ttl)
        return await self._run(reading, f"look at {name!r}")

    async def limit(self, name: str) -> int | None:
        """The limit in force; None if the stored value is not a number."""
        return await self._run(self._reading_limit(name), f"read the limit of {name!r}")

    async def limit_info(self, name: str) -> LimitInfo:
        """The limit or the rate in force, and whether it is paused.

        `known_limit` returns what this client last saw, without asking etcd.

        Raises:
            SemaphoreClosed: it is not registered.
        """
        return await self._run(self._reading_info(name), f"read the limit of {name!r}")

    @overload
    async def resize(self, name: str, max_leases: int) -> tuple[int | None, int]: ...
    @overload
    async def resize(self, name: str, max_leases: Rate) -> tuple[Rate | None, Rate]: ...
    async def resize(
        self, name: str, max_leases: int | Rate
    ) -> tuple[int | Rate | None, int | Rate]:
        """Change the limit of a semaphore, or the rate of a rate limit, while it is in use.

        A limit of 0 grants nothing until it is raised. Leases above a lowered limit stay held, and
        a pause stays in force.

        Args:
            name: the semaphore, or the rate limit.
            max_leases: the new limit, or the new rate.

        Returns:
            The old value (None if the stored value was invalid) and the new one.

        Raises:
            SemaphoreClosed: it is not registered.
            WrongKind: a rate was given for a semaphore, or a number for a rate limit.
        """
        what = "rate" if isinstance(max_leases, Rate) else "limit"
        return await self._run(self._resizing(name, max_leases), f"change the {what} of {name!r}")

    async def plan_limits(
        self, limits: Mapping[str, int | Rate], *, prune: bool = False
    ) -> list[LimitChange]:
        """What must change in etcd so that these limits apply: `etcdsem apply --dry-run`.

        Args:
            limits: by name, the limit of a semaphore (0 to 99,999) or the rate of a rate limit.
            prune: also remove the other names whose limits were applied.

        Returns:
            The changes in the order of their names; empty if there is nothing to change.

        Raises:
            WrongKind: a name is a semaphore in etcd and has a rate here, or the other way round.
            InvalidName, InvalidSetting: a name or a limit is invalid.
        """
        return await self._run(self._planning(limits, prune=prune), "compare the limits")

    async def apply_limits(self, changes: Iterable[LimitChange]) -> list[LimitRefusal]:
        """Make the changes of a plan, each in one transaction. A pause stays in force.

        A change of a name that has changed since it was planned is not made, and no name is removed
        while it has holders or waiters.

        Returns:
            The changes that were not made, each with the reason.
        """
        carrying_out = declare.carry_out(self._session, self.prefix, list(changes))
        return await self._run(carrying_out, "apply the limits")

    async def prune(self, idle: Duration, *, pattern: str = "*", dry_run: bool = False) -> Pruned:
        """Let names expire that nobody holds or waits for now, and that do not expire yet.

        etcd does not record when a name was last used, so each of them gets the time `idle` from
        now: it leaves etcd then, unless somebody uses it before. Whoever uses a name keeps it, but
        programs of etcdsem 0.1.0 do not. Names whose limits were applied stay, and rate limits
        while permits count. Keys that were left over of names without a limit are deleted.

        Args:
            idle: seconds, ``"7d"`` or a timedelta; at least 10 minutes.
            pattern: only names that match this shell pattern.
            dry_run: change nothing.

        Returns:
            The names that expire now, and those of which keys were deleted.
        """
        pruning = self._pruning(idle, pattern, dry_run=dry_run)
        return await self._run(pruning, "prune the names")

    async def resize_by(self, name: str, difference: int) -> tuple[int, int]:
        """Add to the limit of a semaphore while it is in use. A pause stays in force.

        The difference applies to the stored limit at the moment of the write, so concurrent calls
        add up.

        Returns:
            The old limit and the new one.

        Raises:
            SemaphoreClosed: it is not registered.
            InvalidSetting: the sum is not a valid limit; nothing was changed.
            EtcdUnavailable: etcd's reply was lost, and the limit has changed; whether this call or
                another client changed it is unknown.
        """
        return await self._run(self._resizing_by(name, difference), f"change the limit of {name!r}")

    async def pause(self, name: str, *, reason: str | None = None) -> bool:
        """Grant no leases until `resume`. Current holders are unaffected. Waiters keep their place,
        and a try without waiting finds the semaphore full.

        Args:
            name: the semaphore, or the rate limit.
            reason: at most 253 printable characters, shown to operators.

        Returns:
            False if it was already paused; then nothing was changed. A pause by `penalize` is
            replaced.

        Raises:
            SemaphoreClosed: it is not registered.
        """
        return await self._run(self._pausing(name, reason), f"pause {name!r}")

    async def penalize(self, name: str, duration: Duration, *, reason: str | None = None) -> bool:
        """Grant no leases for a time. etcd ends this by itself, even if this program dies.

        Args:
            name: the semaphore, or the rate limit.
            duration: seconds, ``"30s"`` or a timedelta, from now; at most 365 days. etcd counts
                whole seconds, and at least its shortest lease (2 s by default), so it may last up
                to 2 s longer.
            reason: as for `pause`.

        Returns:
            False if it is already paused for at least as long; then nothing was changed.
            `known_limit` has the pause that is in force. A shorter pause by `penalize` is replaced.

        Raises:
            SemaphoreClosed: it is not registered.
        """
        return await self._run(self._penalizing(name, duration, reason), f"pause {name!r}")

    async def resume(self, name: str) -> bool:
        """Grant leases again. Waiters are served at once, in order.

        Returns:
            False if it was not paused; then nothing was changed.

        Raises:
            SemaphoreClosed: it is not registered.
        """
        return await self._run(self._resuming(name), f"resume {name!r}")

    async def drain(
        self,
        name: str,
        timeout: Duration | None = None,
        *,
        reason: str | None = None,
        on_wait: Callable[[], object] | None = None,
    ) -> bool:
        """Pause a semaphore and wait until it has no holder. It stays paused until `resume`.

        Args:
            name: the semaphore.
            timeout: seconds, ``"1m30s"`` or a timedelta. None waits forever, 0 checks once.
            reason: as for `pause`. A semaphore that is already paused keeps its reason.
            on_wait: called once it is paused and has holders, as for `Semaphore.acquire_lease`.

        Returns:
            True if it has no holder, False if it has one at the timeout.

        Raises:
            SemaphoreClosed: it is not registered (any more).
            EtcdSemError: somebody resumed it meanwhile.
            EtcdUnavailable: etcd was unreachable at the timeout (without one: for 60 s).
        """
        draining = self._draining(name, timeout, reason, on_wait)
        return await self._run(draining, f"drain {name!r}")

    async def evict(
        self, name: str, *, slot: int | None = None, lease: str | None = None
    ) -> Holder | Waiter | Junk:
        """Revoke one lease. If it belongs to a waiter, its acquire raises `Evicted`.

        Args:
            name: the semaphore, or the rate limit.
            slot: the slot whose holder is evicted.
            lease: or the lease ID, in hex as `status` shows it.

        Raises:
            NobodyThere: nobody has that slot or lease.
        """
        return await self._run(self._evicting(name, slot, lease), f"evict from {name!r}")

    async def close_semaphore(self, name: str, *, force: bool = False) -> CloseResult:
        """Remove a semaphore from etcd; without `force` only if it has no holders and no waiters.

        Returns:
            A `CloseResult`: whether it was removed, and who held or waited.
        """
        closing = lifecycle.close(self._state(name), force=force)
        return await self._run(closing, f"close {name!r}")


__all__ = ["OperatorCalls"]
