"""``etcdsem run A B -- COMMAND``: leases of several semaphores, handled as one.

1. NAMES are the words before ``--``, if all of them are valid names. Each may carry its limit:
   ``A=5``.
2. A `MultiLease` makes several leases look like one to the rest of the code: it is valid while all
   of them are, and ends when the first of them does.
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
    """Whether `word` has the form NAME or NAME=N."""
    return _NAME.fullmatch(word) is not None


def read_names(words: Sequence[str], limit: int | None) -> tuple[tuple[str, int | None], ...]:
    """Return names and limits; `limit` is the value of --limit, which works with one name only.

    Raises:
        click.UsageError: the names cannot be combined like that.
        InvalidName, InvalidSetting: a name or a limit is invalid.
    """
    from etcdsem.model import MAX_SEMAPHORES
    from etcdsem.validation import check_limit, check_name

    if limit is not None and (len(words) > 1 or "=" in words[0]):
        first = words[0].partition("=")[0]
        raise click.UsageError(
            f"--limit works with one NAME only: write the limits with the names, {first}={limit}"
            + ("" if len(words) == 1 else f" {words[1].partition('=')[0]}=N")
        )
    if len(words) > MAX_SEMAPHORES:
        raise click.UsageError(f"too many semaphores: {len(words)} (maximum {MAX_SEMAPHORES})")
    named: dict[str, int | None] = {}
    for word in words:
        name, equals, number = word.partition("=")
        if check_name(name) in named:
            raise click.UsageError(f"{name} was given twice")
        if equals and re.fullmatch("[0-9]{1,20}", number) is None:
            raise InvalidSetting(f"invalid limit in {word!r}: expected NAME=N")
        named[name] = check_limit(int(number)) if equals else limit
    return tuple(named.items())


def acquire_multi(
    semaphores: Sequence[Semaphore], timeout: float | None, on_wait: Callable[..., object]
) -> MultiLease | None:
    """Acquire all semaphores, or return None on timeout.

    `on_wait` is called with the name of each semaphore it has to wait for.
    """
    from etcdsem import acquire_all

    leases = acquire_all(*semaphores, timeout=timeout, on_wait=on_wait)
    return None if leases is None else MultiLease(leases)


class MultiLease:
    """Several leases as one: valid while all are. Its attributes are those of the first to end."""

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
        """Release all of them. Returns False if any was lost, or etcd did not answer."""
        done = [lease.release() for lease in self.leases]
        return all(done)


def described(lease: Lease) -> dict[str, Any]:
    """Return a lease's entry in ETCDSEM_LEASES."""
    return {
        "name": lease.name,
        "slot": lease.slot,
        "fencing_token": lease.fencing_token,
        "lease_id": lease.id,
        "limit": lease.limit,
    }
