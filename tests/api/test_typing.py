"""The public types, as a user's type checker sees them: most of this is checked by mypy alone."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from typing import assert_type

import pytest

import etcdsem
from etcdsem import (
    Client,
    CloseResult,
    Denied,
    Duration,
    Lease,
    Permit,
    RateLimit,
    ReleasedTooOften,
    Semaphore,
    aio,
)


def wait_for_a_permit(api: RateLimit) -> float:
    """The pattern of docs/rate-limits.md."""
    while not (permit := api.try_acquire()):
        assert_type(permit, Denied)
        time.sleep(permit.retry_after)
    assert_type(permit, Permit)
    return permit.waited


async def wait_for_a_permit_in_a_loop(api: aio.RateLimit) -> float:
    """The same, awaited."""
    if not (permit := await api.try_acquire()):
        assert_type(permit, Denied)
        return permit.retry_after
    assert_type(permit, aio.Permit)
    return permit.waited


def blocking(sem: Semaphore, api: RateLimit, client: Client, patience: Duration) -> None:
    """The results of the blocking library."""
    assert_type(sem.acquire(patience), bool)
    assert_type(sem.acquire_lease(), Lease | None)
    assert_type(sem.release(), bool)
    assert_type(sem.leases, tuple[Lease, ...])
    assert_type(sem.get_value(), int)
    with sem as same, sem.hold(timeout=patience) as lease:
        assert_type(same, Semaphore)
        assert_type(lease, Lease)
    with etcdsem.hold_all(sem, sem) as leases:
        assert_type(leases, tuple[Lease, ...])
    assert_type(api.acquire(patience), Permit | None)
    removed = client.close_semaphore("a")
    assert_type(removed, CloseResult)
    assert_type(removed.holders, tuple[str, ...])


async def in_a_loop(
    sem: aio.Semaphore, api: aio.RateLimit, client: aio.Client, patience: Duration
) -> None:
    """The results of the asyncio library."""
    assert_type(await sem, aio.Semaphore)
    assert_type(await sem.acquire(patience), bool)
    assert_type(await sem.acquire_lease(), aio.Lease | None)
    assert_type(await sem.release(), bool)
    assert_type(sem.leases, tuple[aio.Lease, ...])
    assert_type(await sem.get_value(), int)
    async with sem as same, sem.hold(timeout=patience) as lease:
        assert_type(same, aio.Semaphore)
        assert_type(lease, aio.Lease)
    async with aio.hold_all(sem, sem) as leases:
        assert_type(leases, tuple[aio.Lease, ...])
    assert_type(await aio.acquire_all(sem, sem), tuple[aio.Lease, ...] | None)
    assert_type(await api.acquire(patience), aio.Permit | None)
    assert_type(await client.close_semaphore("a"), CloseResult)


def decorated(sem: Semaphore, api: RateLimit) -> None:
    """A decorated function has the type that it had."""

    @sem
    def plain(number: int) -> str:
        return str(number)

    @api
    def generated(number: int) -> Generator[int, None, str]:
        yield number
        return ""

    @etcdsem.hold_all(sem)
    @contextmanager
    def managed(number: int) -> Generator[str, None, None]:
        yield str(number)

    assert_type(plain(3), str)
    assert_type(generated(number=3), Generator[int, None, str])
    with managed(3) as text:
        assert_type(text, str)


async def decorated_in_a_loop(sem: aio.Semaphore, api: aio.RateLimit) -> None:
    """So has an async one; a plain function is refused."""

    @sem
    async def awaited(number: int) -> str:
        return str(number)

    @api
    async def generated(number: int) -> AsyncIterator[int]:
        yield number

    @aio.hold_all(sem)
    @asynccontextmanager
    async def managed(number: int) -> AsyncGenerator[str, None]:
        yield str(number)

    assert_type(await awaited(3), str)
    assert_type(generated(number=3), AsyncIterator[int])
    async with managed(3) as text:
        assert_type(text, str)
    sem(len)  # type: ignore[arg-type]


def test_a_duration_may_be_written_in_these_ways() -> None:
    """Duration is public, and what is no duration is refused by a type checker."""
    given: list[Duration] = [1, 0.5, "1m30s", timedelta(seconds=3)]
    wrong: Duration = None  # type: ignore[assignment]
    assert len(given) == 4
    assert wrong is None


@pytest.mark.parametrize("kind", [RuntimeError, ValueError])
def test_released_too_often_is_both(kind: type[Exception]) -> None:
    """`RuntimeError` as Dask's, `ValueError` as that of `threading.BoundedSemaphore`."""
    with pytest.raises(kind):
        raise ReleasedTooOften("Released too often")
