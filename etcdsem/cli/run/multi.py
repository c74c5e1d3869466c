"""``etcdsem run A B -- COMMAND``: a lease of each of several semaphores, as if it were one.

1. NAMES are words before a ``--`` that could all be names. Each may carry its limit: ``A=5``.
2. To the line and to the supervisor several leases are one (`MultiLease`), which is valid while all
   of them are and ends when the first of them does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from etcdsem.errors import InvalidSetting

if TYPE_CHECKING:
    from etcdsem import Lease, Semaphore

_NAME = re.compile(r"[A-Za-z0-9._][A-Za-z0-9._-]*(=[0-9]*)?")


def could_be_name(word: str) -> bool:
    """Can it be NAME or NAME=N?"""
    return _NAME.fullmatch(word) is not None


def read_names(words: Sequence[str], limit: int | None) -> tuple[tuple[str, int | None], ...]:
    """Names and limits; `limit` is that of --limit, which is for one name only."""
    from etcdsem.model import MAX_SEMAPHORES, check_limit, check_name

    if limit is not None and (len(words) > 1 or "=" in words[0]):
        first = words[0].partition("=")[0]
        raise click.UsageError(
            f"--limit is for one NAME only: write the limits with the names, {first}={limit}"
            + ("" if len(words) == 1 else f" {words[1].partition('=')[0]}=N")
        )
    if len(words) > MAX_SEMAPHORES:
        raise click.UsageError(f"{len(words)} semaphores at once: give at most {MAX_SEMAPHORES}")
    named: dict[str, int | None] = {}
    for word in words:
        name, equals, number = word.partition("=")
        if check_name(name) in named:
            raise click.UsageError(f"{name} was given twice")
        if equals and re.fullmatch("[0-9]{1,20}", number) is None:
            raise InvalidSetting(f"{word!r}: write NAME=N, at most N hold NAME at a time")
        named[name] = check_limit(int(number)) if equals else limit
    return tuple(named.items())


def acquire_multi(
    semaphores: Sequence[Semaphore], timeout: float | None, on_wait: Callable[..., object]
) -> MultiLease | None:
    """All of them or None; `on_wait` is called with the name of the one that is waited for."""
    from etcdsem import acquire_all

    leases = acquire_all(*semaphores, timeout=timeout, on_wait=on_wait)
    return None if leases is None else MultiLease(leases)


class MultiLease:
    """Several leases as one: valid while all are. What it says is said of the first to end."""

    def __init__(self, leases: Sequence[Lease]) -> None:
        self.leases = tuple(leases)

    @property
    def ends_first(self) -> str:
        """The name of the semaphore whose lease ends first, or has ended."""
        return self._first.name

    @property
    def _first(self) -> Lease:
        return min(self.leases, key=lambda lease: lease.remaining)

    @property
    def remaining(self) -> float:
        return self._first.remaining

    @property
    def valid(self) -> bool:
        return all(lease.valid for lease in self.leases)

    @property
    def lost_reason(self) -> str:
        return self._first.lost_reason

    @property
    def ttl(self) -> float:
        return min(lease.ttl for lease in self.leases)

    @property
    def max_hold(self) -> float | None:
        return self._first.max_hold

    @property
    def hold_remaining(self) -> float | None:
        bounds = [one.hold_remaining for one in self.leases if one.hold_remaining is not None]
        return min(bounds, default=None)

    def release(self) -> bool:
        """Give all of them back. False if any was lost, or etcd could not be told."""
        done = [lease.release() for lease in self.leases]
        return all(done)


def described(lease: Lease) -> dict[str, Any]:
    """A lease for ETCDSEM_LEASES."""
    return {
        "name": lease.name,
        "slot": lease.slot,
        "fencing_token": lease.fencing_token,
        "lease_id": lease.id,
        "limit": lease.limit,
    }
