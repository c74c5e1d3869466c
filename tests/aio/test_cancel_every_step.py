"""Cancelled at every single step of acquire, work and release: nothing is left behind.

As `tests/faults/test_every_step.py` does for threads. A task can be cancelled before a command is
performed, while it is under way, after it was performed (its result is lost), or so that the
cancellation waits for the next await; and again while it cleans up.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest

import etcdsem
from etcdsem import aio
from etcdsem.aio import Semaphore
from etcdsem.core.commands import Command, RevokeLease
from tests.helpers.cancelling import Canceller
from tests.helpers.connections import leases_of
from tests.helpers.event_loop import eventually, run, until
from tests.helpers.history import judge, read_history

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

MOST_STEPS = 16


async def use(sem: Semaphore, *, full: bool) -> None:
    """One cycle; with `full` somebody else holds the only slot, so the line is joined and left."""
    with contextlib.suppress(etcdsem.AcquireTimeout):
        async with sem.hold(timeout=0.1 if full else 10):
            await asyncio.sleep(0)


async def sabotaged(
    etcd: EtcdServer, name: str, step: int, when: str, *, full: bool, again: bool
) -> tuple[bool, list[int]]:
    """Cancel a task at a step. Was it hit, and which etcd leases had it asked for?"""
    async with aio.connect(etcd.endpoint) as client:
        sem = await Semaphore(1, name, client=client, lease_timeout=5)
        canceller = Canceller(client, step, when, again=again)
        task = canceller.victim = asyncio.create_task(use(sem, full=full))
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert sem.leases == ()
        await eventually(lambda: client._driver.session.leases.revocations == 0)
        assert not client._driver.session.grants()
        return canceller.hit, canceller.made


@pytest.mark.parametrize("again", [False, True], ids=["once", "again"])
@pytest.mark.parametrize("when", ["before", "during", "after", "pending"])
@pytest.mark.parametrize("full", [False, True], ids=["free", "full"])
def test_nothing_is_left_behind(
    etcd: EtcdServer, name: str, full: bool, when: str, again: bool
) -> None:
    """No key, no etcd lease, no permit stays; the next one is served at once."""

    async def main() -> int:
        async with aio.connect(etcd.endpoint) as holder:
            other = await Semaphore(1, name, client=holder)
            if full:
                await other.acquire()
            held = await other.get_value()
            made: list[int] = []
            for step in range(1, MOST_STEPS):
                hit, leases = await sabotaged(etcd, name, step, when, full=full, again=again)
                made += leases

                async def calm() -> bool:
                    status = await other.status(ttl=False)
                    return status.held == held and not status.waiters

                await until(calm)
                if not full:
                    assert await other.acquire(timeout=10)
                    await other.release()
                if not hit:
                    break
            if full:
                await other.release()

            async def ended() -> bool:
                # A grant that was cancelled may land after it was revoked: then it has no key,
                # and nobody renews it.
                return not await asyncio.to_thread(leases_of, etcd) & set(made)

            await until(ended)
            return step

    steps = run(main())
    assert steps > 3, "hardly a step was hit"
    verdict = judge(read_history(etcd, name), name)
    assert not verdict.wrong, verdict.wrong[:5]
    keys = {key.removeprefix(f"/etcdsem/{name}/") for key in verdict.left}
    assert keys <= {"max_leases", "contended"}


@pytest.mark.parametrize("full", [False, True], ids=["free", "full"])
def test_cancelled_in_each_iteration_of_the_loop(etcd: EtcdServer, name: str, full: bool) -> None:
    """As anyio's cancel scopes do it: when the cancellation comes out, the slot is free, or the
    queue was left, wherever it struck.
    """

    async def cycle(holder: aio.Client, step: int) -> bool:
        async with aio.connect(etcd.endpoint) as client:
            sem = await Semaphore(1, f"{name}-{step}", client=client)
            other = await Semaphore(1, f"{name}-{step}", client=holder)
            if full:
                await other.acquire()
            canceller = Canceller(client, step, "before", again=False, forever=True)
            task = canceller.victim = asyncio.create_task(use(sem, full=full))
            with contextlib.suppress(asyncio.CancelledError):
                await task
            if step > 1:  # at the first step, the etcd lease has no key yet
                assert client._driver.session.leases.revocations == 0, f"step {step}"
            status = await other.status(ttl=False)
            assert (status.held, len(status.waiters)) == (int(full), 0), f"step {step}"
            return canceller.hit

    async def main() -> int:
        async with aio.connect(etcd.endpoint) as holder:
            step = 1
            while await cycle(holder, step):
                step += 1
            return step

    assert run(main()) > 3, "hardly a step was hit"


@pytest.mark.parametrize("times", [1, 3])
def test_cancelled_again_while_it_cleans_up(etcd: EtcdServer, name: str, times: int) -> None:
    """The clean-up goes on to its end, and only then the cancellation comes out: no second
    revocation has to be made in the background.
    """

    async def main() -> None:
        async with aio.connect(etcd.endpoint) as holder, aio.connect(etcd.endpoint) as client:
            other = await Semaphore(1, name, client=holder)
            await other.acquire()
            sem = await Semaphore(1, name, client=client)
            perform = client._driver._perform
            revoking, go_on = asyncio.Event(), asyncio.Event()

            async def slowly(command: Command[Any]) -> object:
                if isinstance(command, RevokeLease):
                    revoking.set()
                    await go_on.wait()
                return await perform(command)

            client._driver._perform = slowly  # type: ignore[method-assign]
            task = asyncio.create_task(sem.acquire())
            await until(lambda: _waiting(other, 1))
            task.cancel()
            await revoking.wait()
            for _ in range(times):
                task.cancel()
                for _ in range(5):
                    await asyncio.sleep(0)
            done = task.done()
            go_on.set()
            assert not done
            with pytest.raises(asyncio.CancelledError):
                await task
            assert client._driver.session.leases.revocations == 0
            assert await other.waiters() == ()

    run(main())


@pytest.mark.parametrize("how", ["wait_for", "timeout", "group"])
def test_the_usual_ways_to_be_cancelled(etcd: EtcdServer, name: str, how: str) -> None:
    """wait_for, timeout() and a task group that fails: out of the line, and all is well."""

    async def main() -> None:
        async with aio.connect(etcd.endpoint) as client:
            sem = await Semaphore(1, name, client=client)
            async with sem:
                match how:
                    case "wait_for":
                        with pytest.raises(TimeoutError):
                            await asyncio.wait_for(sem.acquire(), 0.2)
                    case "timeout":
                        with pytest.raises(TimeoutError):
                            async with asyncio.timeout(0.2), sem:
                                pytest.fail("the body ran without a lease")
                    case _:
                        with pytest.raises(ExceptionGroup):
                            async with asyncio.TaskGroup() as group:
                                for _ in range(5):
                                    group.create_task(sem.acquire())
                                await until(lambda: _waiting(sem, 5))
                                raise KeyError("the group fails")
                assert await sem.waiters() == ()
            assert await sem.get_value() == 0
            assert await sem.acquire(timeout=0)

    run(main())


async def _waiting(sem: Semaphore, count: int) -> bool:
    return len(await sem.waiters()) == count
