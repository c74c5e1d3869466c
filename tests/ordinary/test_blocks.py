"""Blocks that one thread or task enters and another leaves: generators driven by a pool, ExitStack,
FastAPI's dependencies, fixtures. Each gives back what it has entered, and holds it until then.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
import pytest
from fastapi import Depends, FastAPI
from fastapi.responses import StreamingResponse

from etcdsem import AcquireTimeout, EtcdSemError, Semaphore, aio, hold_all
from tests.helpers.event_loop import run as run_loop
from tests.helpers.waiting import eventually
from tests.ordinary.running import Run, play

if TYPE_CHECKING:
    from etcdsem import Client
    from etcdsem.server import EtcdServer

T = TypeVar("T")

Block = Callable[[Semaphore], AbstractContextManager[Any]]

BLOCKS: dict[str, Block] = {
    "with": lambda sem: sem,
    "hold": lambda sem: sem.hold(),
    "hold_all": lambda sem: hold_all(sem),
}

ORDERS = [(0, 1, 2), (1, 0, 2), (1, 2, 0), (2, 1, 0)]
"""In which three blocks are left."""


def in_thread(function: Callable[[], T]) -> T:
    """Run something in a thread that ends after it."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result(30)


def tokens(sem: Semaphore | aio.Semaphore) -> list[int]:
    """The fencing tokens of what the object holds."""
    return [lease.fencing_token for lease in sem.leases]


@pytest.fixture(params=BLOCKS)
def block(request: pytest.FixtureRequest) -> Block:
    return BLOCKS[request.param]


def body(block: AbstractContextManager[Any]) -> Generator[int]:
    """A user's generator that holds a lease while it is used."""
    with block:
        yield from itertools.count()


# -- threads


@pytest.mark.parametrize("lives", [True, False], ids=["living", "ended"])
def test_another_thread_leaves(client: Client, name: str, block: Block, lives: bool) -> None:
    """The lease is held until the block is left, also when the thread that entered has ended."""
    sem = Semaphore(2, name, client=client)
    with ThreadPoolExecutor(1) as first:
        rows = body(block(sem))
        assert first.submit(next, rows).result(30) == 0
        if not lives:
            first.shutdown()
        gc.collect()
        assert sem.get_value() == 1
        assert len(sem.leases) == 1
        assert in_thread(lambda: next(rows)) == 1
        in_thread(rows.close)
        assert tokens(sem) == []
        assert sem.get_value() == 0


@pytest.mark.parametrize("lives", [True, False], ids=["living", "ended"])
def test_an_exit_stack(client: Client, name: str, block: Block, lives: bool) -> None:
    """An ExitStack that was filled in one thread is closed in another."""
    sem = Semaphore(2, name, client=client)
    stack = contextlib.ExitStack()
    with ThreadPoolExecutor(1) as first:
        for _ in range(2):
            first.submit(stack.enter_context, block(sem)).result(30)
        if not lives:
            first.shutdown()
        gc.collect()
        assert sem.get_value() == 2
        in_thread(stack.close)
        assert sem.get_value() == 0
        assert sem.leases == ()


def test_a_block_is_left_by_an_exception_in_another_thread(
    client: Client, name: str, block: Block
) -> None:
    """What the body raises comes out, whichever thread it is raised in."""
    sem = Semaphore(1, name, client=client)

    def rows() -> Generator[int]:
        with block(sem):
            yield 0
            raise KeyError("mine")

    one = rows()
    in_thread(lambda: next(one))
    with pytest.raises(KeyError, match="mine"):
        in_thread(lambda: next(one))
    assert sem.get_value() == 0


@pytest.mark.parametrize("threads", [False, True], ids=["one thread", "threads"])
@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_each_gives_back_its_own(
    client: Client, name: str, block: Block, order: tuple[int, ...], threads: bool
) -> None:
    """Generators that are closed in any order: each gives back the lease that it has entered."""
    sem = Semaphore(3, name, client=client)
    call = in_thread if threads else _here
    generators = [body(block(sem)) for _ in range(3)]
    own: list[int] = []
    for one in generators:
        call(one.__next__)
        own += [token for token in tokens(sem) if token not in own]
    assert len(own) == 3
    left = list(own)
    for place in order:
        call(generators[place].close)
        left.remove(own[place])
        assert tokens(sem) == left
    assert sem.get_value() == 0


def _here(function: Callable[[], T]) -> T:
    return function()


def test_nested_blocks(client: Client, name: str, block: Block) -> None:
    """Of blocks in each other the inner one is left first."""
    sem = Semaphore(2, name, client=client)
    with block(sem):
        first = tokens(sem)
        with block(sem):
            assert len(sem.leases) == 2
        assert tokens(sem) == first
    assert tokens(sem) == []


def test_one_hold_object_entered_again(client: Client, name: str) -> None:
    """What `hold()` gives can be entered again or refuses; nothing is left of it either way."""
    sem = Semaphore(3, name, client=client)
    held = sem.hold()
    with held as lease:
        with contextlib.suppress(RuntimeError, TypeError, AttributeError), held as second:
            assert second is not lease
            assert second.valid
            assert lease.valid
        assert lease.valid
    with contextlib.suppress(RuntimeError, TypeError, AttributeError), held as again:
        assert again.valid
    assert sem.leases == ()
    assert sem.get_value() == 0


def test_a_lost_lease_and_two_blocks(client: Client, name: str) -> None:
    """One of two blocks loses its lease; when both are left, nothing is held."""
    sem = Semaphore(2, name, client=client)
    first, second = body(sem), body(sem)
    next(first)
    lost = sem.leases[0]
    next(second)
    client.evict(name, slot=lost.slot)
    assert lost.lost.wait(15)
    in_thread(second.close)
    assert sem.leases == () or tokens(sem) == [lost.fencing_token]
    with contextlib.suppress(EtcdSemError):
        first.close()
    assert sem.get_value() == 0


# -- pools and frameworks, for a while


def pool(run: Run) -> None:
    """Generators of a pool: each step in whatever thread is free, closed in any order."""
    sem = Semaphore(4, run.name, client=run.client())
    blocks = list(BLOCKS.values())

    def drive(number: int, pool: ThreadPoolExecutor) -> None:
        def rows() -> Iterator[int]:
            with blocks[number % len(blocks)](sem), run.inside(4):
                yield from range(3)

        one = rows()
        for _ in one:
            pool.submit(lambda: next(one, None)).result(30)
        run.count("driven")

    def work(number: int) -> None:
        with ThreadPoolExecutor(2) as pool:  # whose threads end while others work on
            for _ in range(5):
                drive(number, pool)

    run.crowd(8, work)
    run.check(not sem.leases, f"still held: {sem.leases}")


def test_a_pool(etcd: EtcdServer, name: str, seconds: float) -> None:
    assert play(pool, etcd, name, seconds)["driven"] > 10


def web(run: Run) -> None:
    """A FastAPI app under load."""
    limit = 2
    sem = Semaphore(limit, run.name, client=run.client())
    app = _app(run, sem, limit)

    async def load() -> None:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as browser:
            paths = itertools.cycle(["/plain", "/awaited", "/streamed", "/failing", "/held"])

            async def ask(_number: int) -> None:
                path = next(paths)
                response = await browser.get(path, timeout=30)
                right = 418 if path == "/failing" else 200
                run.check(response.status_code == right, f"{path}: {response.status_code}")
                run.count("answered")

            await run.tasks(12, ask)

    asyncio.run(load())
    run.check(not sem.leases, f"still held: {sem.leases}")
    run.expected.append("HTTP Request")


def _app(run: Run, sem: Semaphore, limit: int) -> FastAPI:
    from fastapi import HTTPException

    app = FastAPI()

    def with_block() -> Iterator[None]:
        with sem, run.inside(limit):
            yield

    def with_hold() -> Iterator[None]:
        with sem.hold() as lease, run.inside(limit):
            yield
            run.check(lease.valid, "the lease was given back while the request was served")

    @app.get("/plain")
    def plain(_: None = Depends(with_block)) -> int:
        return run.counts["answered"]

    @app.get("/awaited")
    async def awaited(_: None = Depends(with_block)) -> int:
        await asyncio.sleep(0.001)
        return run.counts["answered"]

    @app.get("/held")
    def held(_: None = Depends(with_hold)) -> int:
        return run.counts["answered"]

    @app.get("/failing")
    def failing(_: None = Depends(with_block)) -> int:
        raise HTTPException(418)

    @app.get("/streamed")
    def streamed() -> StreamingResponse:
        def rows() -> Iterator[str]:
            with sem, run.inside(limit):
                for _ in range(3):
                    yield "row\n"

        return StreamingResponse(rows())

    return app


def test_fastapi(etcd: EtcdServer, name: str, seconds: float) -> None:
    assert play(web, etcd, name, seconds)["answered"] > 10


# -- asyncio

AsyncBlock = Callable[[aio.Semaphore], AbstractAsyncContextManager[Any]]

ASYNC_BLOCKS: dict[str, AsyncBlock] = {
    "with": lambda sem: sem,
    "hold": lambda sem: sem.hold(),
    "hold_all": lambda sem: aio.hold_all(sem),
}


@pytest.fixture(params=ASYNC_BLOCKS)
def async_block(request: pytest.FixtureRequest) -> AsyncBlock:
    return ASYNC_BLOCKS[request.param]


async def fixture(block: AbstractAsyncContextManager[Any]) -> AsyncGenerator[int]:
    """A fixture of a test framework: entered in one task, left in another."""
    async with block:
        for number in itertools.count():
            yield number


async def in_task(function: Callable[[], Any]) -> Any:
    """Run something in a task of its own."""

    async def work() -> Any:
        return await function()

    return await asyncio.create_task(work())


@contextlib.asynccontextmanager
async def async_semaphore(etcd: EtcdServer, name: str, limit: int) -> AsyncIterator[aio.Semaphore]:
    async with aio.connect(etcd.endpoint) as client:
        sem = await aio.Semaphore(limit, name, client=client)
        yield sem
        assert sem.leases == ()
        assert await sem.get_value() == 0


@pytest.mark.parametrize("tasks", [False, True], ids=["one task", "tasks"])
@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_each_fixture_gives_back_its_own(
    etcd: EtcdServer, name: str, async_block: AsyncBlock, order: tuple[int, ...], tasks: bool
) -> None:
    """Fixtures are set up and torn down in tasks of their own, in any order."""

    async def main() -> None:
        async def here(function: Callable[[], Any]) -> Any:
            return await function()

        call = in_task if tasks else here
        async with async_semaphore(etcd, name, 3) as sem:
            fixtures = [fixture(async_block(sem)) for _ in range(3)]
            own: list[int] = []
            for one in fixtures:
                await call(one.__anext__)
                own += [token for token in tokens(sem) if token not in own]
            left = list(own)
            for place in order:
                await call(fixtures[place].aclose)
                left.remove(own[place])
                assert tokens(sem) == left

    run_loop(main())


def test_an_async_exit_stack(etcd: EtcdServer, name: str, async_block: AsyncBlock) -> None:
    """An AsyncExitStack that was filled in one task is closed in another."""

    async def main() -> None:
        async with async_semaphore(etcd, name, 2) as sem:
            stack = contextlib.AsyncExitStack()
            for _ in range(2):
                await in_task(lambda: stack.enter_async_context(async_block(sem)))
            assert await sem.get_value() == 2
            await in_task(stack.aclose)

    run_loop(main())


def test_one_async_hold_object_entered_again(etcd: EtcdServer, name: str) -> None:
    """What `hold()` gives can be entered again or refuses, also by two tasks at a time; nothing
    is left of it either way.
    """

    async def main() -> None:
        async with async_semaphore(etcd, name, 3) as sem:
            held = sem.hold()
            async with held as lease:
                with contextlib.suppress(RuntimeError, TypeError):
                    async with held as second:
                        assert second is not lease
                        assert second.valid
                        assert lease.valid
                assert lease.valid
            both = asyncio.Barrier(2)

            async def use() -> None:
                with contextlib.suppress(RuntimeError, TypeError):
                    async with held as mine:
                        with contextlib.suppress(TimeoutError):
                            await asyncio.wait_for(both.wait(), 0.5)
                        assert mine.valid

            await asyncio.gather(use(), use())

    run_loop(main())


def test_a_full_semaphore_leaves_no_block_behind(client: Client, name: str) -> None:
    """A block that could not be entered is not one that can be left."""
    sem = Semaphore(1, name, client=client)
    rows = body(sem)
    in_thread(lambda: next(rows))
    with pytest.raises(AcquireTimeout):
        in_thread(lambda: sem.hold(timeout=0).__enter__())
    assert len(sem.leases) == 1
    in_thread(rows.close)
    assert sem.get_value() == 0


def test_waiting_blocks(client: Client, name: str) -> None:
    """A block that still waits has nothing that another could give back."""
    sem = Semaphore(1, name, client=client)
    first, second = body(sem), body(sem)
    in_thread(lambda: next(first))
    own = tokens(sem)
    entering = threading.Thread(target=second.__next__, daemon=True)
    entering.start()
    eventually(sem.waiters)
    assert tokens(sem) == own
    in_thread(first.close)
    entering.join(30)
    assert len(sem.leases) == 1
    assert tokens(sem) != own
    in_thread(second.close)
    assert sem.get_value() == 0
