"""The driver of procedures in an event loop, one rule at a time, on the etcd in memory."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import pytest

import etcdsem
from etcdsem import aio
from etcdsem.aio import Lease, Semaphore
from etcdsem.core.commands import Command, Failure, Procedure, RevokeLease, Transact, Wait, perform
from etcdsem.core.lease_manager import revoke_until_gone
from etcdsem.drivers.aio import Over
from etcdsem.drivers.aio_clock import AioMailbox
from etcdsem.testing.aio import Memory, MemoryClient, memory
from tests.helpers.event_loop import run

T = TypeVar("T")


def in_memory(work: Callable[[Memory], Coroutine[Any, Any, T]]) -> T:
    """Run a test with an etcd in memory."""

    async def main() -> T:
        async with memory() as etcd:
            return await work(etcd)

    return run(main())


def meddle(
    client: MemoryClient,
    kind: type[Command[Any]],
    meddling: Callable[[Callable[[], Awaitable[object]]], Awaitable[object]],
) -> None:
    """Perform the next command of a kind in another way."""
    engine = client._driver
    perform = engine._perform
    todo = [meddling]

    async def performed(command: Command[Any]) -> object:
        if isinstance(command, kind) and todo:
            return await todo.pop()(lambda: perform(command))
        return await perform(command)

    engine._perform = performed  # type: ignore[method-assign]


async def turns(count: int = 5) -> None:
    """Let the others run."""
    for _ in range(count):
        await asyncio.sleep(0)


# ---------------------------------------------------------------- the mailbox


def test_notes_come_in_their_order() -> None:
    """Those that were there before somebody waits, and those that come meanwhile."""

    async def main() -> None:
        box, time = AioMailbox(), 100.0
        for note in "abc":
            box.put(note)
        assert [await box.next(lambda: time, 0.0) for _ in range(4)] == ["a", "b", "c", None]
        waiting = asyncio.create_task(box.next(lambda: time, float("inf")))
        await turns()
        box.put("d")
        box.put("e")
        assert await waiting == "d"
        assert await box.next(lambda: time, 0.0) == "e"

    run(main())


def test_a_wait_that_was_cancelled_takes_no_note() -> None:
    """What arrives then is for whoever waits next."""

    async def main() -> None:
        box = AioMailbox()
        waiting = asyncio.create_task(box.next(lambda: 0.0, 60.0))
        await turns()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        box.put("a")
        assert await box.next(lambda: 0.0, 60.0) == "a"

    run(main())


def test_a_wait_ends_by_the_clock_of_its_client() -> None:
    """A timer of the loop that comes early is no reason to end it: the clock decides."""

    async def main() -> None:
        clock = iter([0.0, 0.5, 1.5])
        assert await AioMailbox().next(lambda: next(clock), 1.0) is None
        assert list(clock) == []

    run(main())


# ---------------------------------------------------------------- cancellation


def test_what_runs_beside_the_callers_is_cancelled_by_nobody() -> None:
    """A revocation in the background is made again when its task is cancelled."""

    async def main(etcd: Memory) -> None:
        client = etcd.client()
        sem = await Semaphore(1, "db", client=client)
        await sem.acquire()
        (lease,) = sem.leases
        tasks = asyncio.all_tasks()
        revoking = asyncio.Event()

        async def never(perform: Callable[[], Awaitable[object]]) -> object:
            revoking.set()
            await asyncio.Event().wait()
            return None

        meddle(client, RevokeLease, never)
        client._driver.spawn(revoke_until_gone(client._driver, int(lease.id, 16), 30.0), "settle")
        (settling,) = asyncio.all_tasks() - tasks
        await revoking.wait()
        settling.cancel()
        await settling
        assert etcd.leases() == []

    in_memory(main)


def test_an_error_does_not_shield_what_follows() -> None:
    """Only a cancellation does: who waits after a failed request can still be cancelled."""

    async def main(etcd: Memory) -> None:
        client = etcd.client()
        engine = client._driver
        steps: list[str] = []

        def procedure() -> Procedure[None]:
            try:
                yield from perform(RevokeLease(77, 1.0))  # there is none
            except Failure:
                steps.append("failed")
            try:
                yield from perform(Wait(engine.mailbox(), float("inf")))
            finally:
                steps.append("ended")

        task = asyncio.create_task(engine.run(procedure()))
        while not steps:
            await asyncio.sleep(0)
        await turns()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert steps == ["failed", "ended"]

    in_memory(main)


def test_closing_waits_for_what_is_under_way() -> None:
    """An acquire that was called before comes to its end, and is not cut off in the middle."""

    async def main(etcd: Memory) -> None:
        client = etcd.client()
        sem = await Semaphore(1, "db", client=client)
        asking, go_on = asyncio.Event(), asyncio.Event()

        async def slowly(perform: Callable[[], Awaitable[object]]) -> object:
            asking.set()
            await go_on.wait()
            return await perform()

        meddle(client, Transact, slowly)
        acquiring = asyncio.create_task(sem.acquire())
        await asking.wait()
        closing = asyncio.create_task(client.close())
        await turns(20)
        assert not closing.done()
        go_on.set()
        with pytest.raises(etcdsem.EtcdSemError, match="its client was closed"):
            await acquiring
        await closing
        assert etcd.keys("/etcdsem/db/leases/") == {}
        assert etcd.leases() == []

    in_memory(main)


def test_a_closed_client_performs_nothing() -> None:
    """Neither through itself, nor through what it had given out before."""

    async def main(etcd: Memory) -> None:
        client = etcd.client()
        sem = await Semaphore(1, "db", client=client)
        await sem.acquire()
        (lease,) = sem.leases
        engine = client._driver
        await client.close()
        await client.close()
        with pytest.raises(etcdsem.EtcdSemError, match="closed"):
            await sem.acquire()
        with pytest.raises(etcdsem.EtcdSemError, match="closed"):
            _ = client._driver
        assert not lease.valid
        assert await lease.release() is False
        with pytest.raises(Over):
            await engine.run(revoke_until_gone(engine, 5, 30.0))
        assert etcd.leases() == []

    in_memory(main)


# ---------------------------------------------------------------- blocks


@pytest.mark.parametrize("way", ["with", "hold"])
def test_a_block_whose_lease_was_lost_says_so(way: str) -> None:
    """At its end; an error of the body comes out instead, and after it nothing is held."""

    async def main(etcd: Memory) -> None:
        sem = await Semaphore(1, "db", client=etcd.client())

        def block() -> contextlib.AbstractAsyncContextManager[object]:
            return sem if way == "with" else sem.hold()

        with pytest.raises(etcdsem.LeaseLost):
            async with block():
                await etcd.expire(sem.leases[0])
        with pytest.raises(KeyError):
            async with block():
                await etcd.expire(sem.leases[0])
                raise KeyError
        assert sem.leases == ()
        async with block():
            assert await sem.get_value() == 1
        assert await sem.get_value() == 0

    in_memory(main)


def test_a_decorated_function_holds_a_lease_while_it_runs() -> None:
    """Each call one of its own; also when it raises, nothing is kept."""

    async def main(etcd: Memory) -> None:
        sem = await Semaphore(2, "db", client=etcd.client())
        held: list[int] = []

        @sem
        async def work(error: type[BaseException] | None = None) -> str:
            await asyncio.sleep(0)
            held.append(await sem.get_value())
            if error is not None:
                raise error
            return "done"

        assert await work() == "done"
        with pytest.raises(KeyError):
            await work(KeyError)
        assert held == [1, 1]
        assert await sem.get_value() == 0

    in_memory(main)


@pytest.mark.parametrize("kind", ["function", "coroutine function"])
def test_on_lost_runs_in_the_loop(kind: str) -> None:
    """Once, with the lease; a coroutine function is awaited, and its error is logged."""

    async def main(etcd: Memory) -> None:
        told: list[Lease] = []

        async def later(lease: Lease) -> None:
            await asyncio.sleep(0)
            told.append(lease)

        on_lost: Callable[[Lease], object] = later if kind != "function" else told.append
        sem = await Semaphore(1, "db", client=etcd.client(), on_lost=on_lost)
        await sem.acquire()
        (lease,) = sem.leases
        await etcd.expire(lease)
        await etcd.settle()
        await turns()
        assert told == [lease]
        assert lease.lost.is_set()
        assert await lease.release() is False

    in_memory(main)


def test_an_error_in_the_background_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """And harms nobody else."""

    async def main(etcd: Memory) -> None:
        client = etcd.client()
        sem = await Semaphore(1, "db", client=client)

        def wrong() -> None:
            raise KeyError("on_wait")

        client._driver.call(wrong, "on_wait")
        await turns()
        assert await sem.acquire()

    in_memory(main)
    assert "error in on_wait" in caplog.text


def test_a_handler_that_raises_harms_no_lease() -> None:
    """The error is the event loop's to tell; the step that logged, the heartbeat too, goes on."""

    class Full(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError("no space left on device")

    async def main(etcd: Memory) -> None:
        told: list[object] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: told.append(context["exception"]))
        client = etcd.client()
        short = await Semaphore(1, "short", client=client, max_hold="1s")
        kept = await Semaphore(1, "kept", client=client, lease_timeout="3s")
        await kept.acquire()
        await short.acquire()
        (lost,), (lease,) = short.leases, kept.leases
        await etcd.advance("10s")
        assert lost.lost.is_set()
        assert lease.valid
        assert await lost.release() is False
        assert await kept.release() is True
        assert [str(error) for error in told] == ["no space left on device"] * len(told)
        assert told

    handler = Full()
    logging.getLogger("etcdsem").addHandler(handler)
    try:
        in_memory(main)
    finally:
        logging.getLogger("etcdsem").removeHandler(handler)


# ---------------------------------------------------------------- loops


def test_a_client_of_another_loop_is_refused() -> None:
    """Also one whose loop has ended; and where no loop runs it cannot be used at all."""
    client = aio.connect("127.0.0.1:1")
    with pytest.raises(etcdsem.WrongEventLoop, match="no event loop"):
        _ = client._driver

    async def use() -> None:
        _ = client._driver

    async def elsewhere() -> None:
        with pytest.raises(etcdsem.WrongEventLoop, match="another event loop: make"):
            await asyncio.to_thread(asyncio.run, use())

    async def main() -> None:
        await use()
        await elsewhere()

    asyncio.run(main())
    with pytest.raises(etcdsem.WrongEventLoop, match="has ended"):
        asyncio.run(use())


def test_a_closed_default_client_is_replaced() -> None:
    """Code that closes the loop's default client harms nobody who comes later in that loop."""

    async def main() -> None:
        first = aio.default_client()
        assert aio.default_client() is first
        await first.close()
        second = aio.default_client()
        assert second is not first
        _ = second._driver
        await second.close()

    run(main())
