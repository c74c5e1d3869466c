"""The decorators of etcdsem.aio: a lease is held while the body of an async function runs."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import inspect
import types
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from typing import Any, NamedTuple

import pytest

import etcdsem
from etcdsem import aio
from etcdsem.aio import RateLimit, Semaphore
from etcdsem.facade.decorators import decorate_async
from etcdsem.testing.aio import Memory, memory
from tests.helpers.event_loop import eventually, run

Function = Callable[..., Any]


class Place(NamedTuple):
    """A semaphore in an etcd in memory."""

    sem: Semaphore
    etcd: Memory

    async def body(self, value: int = 1) -> int:
        """What each body does: it looks whether it holds a lease."""
        assert await self.sem.get_value() == 1
        return value


def at(scene: Callable[[Place], Awaitable[object]]) -> None:
    """Run a scene with a semaphore that nobody holds, neither before nor after."""

    async def main() -> None:
        async with memory() as etcd:
            with etcd.default():
                sem = await Semaphore(1, "s")
                await scene(Place(sem, etcd))
                assert await sem.get_value() == 0

    run(main())


# -- what can be decorated, and how it is used


def coroutine(body: Function) -> Function:
    async def function(value: int) -> int:
        """Documented."""
        return await body(value)  # type: ignore[no-any-return]

    return function


def generator(body: Function) -> Function:
    async def function(value: int) -> AsyncGenerator[int, int]:
        """Documented."""
        sent = yield await body(value)
        yield await body(sent)

    return function


def context_manager(body: Function) -> Function:
    @contextlib.asynccontextmanager
    async def function(value: int) -> AsyncIterator[int]:
        """Documented."""
        yield await body(value)
        await body()

    return function


async def use_coroutine(function: Function, *arguments: int) -> int:
    return await function(*arguments)  # type: ignore[no-any-return]


async def use_generator(function: Function, *arguments: int) -> int:
    made = function(*arguments)
    assert await anext(made) == 7
    sent: int = await made.asend(8)
    assert sent == 8
    with pytest.raises(StopAsyncIteration):
        await anext(made)
    return sent - 1


async def use_context_manager(function: Function, *arguments: int) -> int:
    async with function(*arguments) as value:
        return value  # type: ignore[no-any-return]


KINDS = {
    "coroutine": (coroutine, use_coroutine),
    "generator": (generator, use_generator),
    "context manager": (context_manager, use_context_manager),
}


class Methods:
    """Functions that are decorated in a class."""

    def __init__(self, body: Function) -> None:
        self.body = body

    async def coroutine(self, value: int) -> int:
        return await self.body(value)  # type: ignore[no-any-return]

    async def generator(self, value: int) -> AsyncGenerator[int, int]:
        sent = yield await self.body(value)
        yield await self.body(sent)

    @contextlib.asynccontextmanager
    async def context_manager(self, value: int) -> AsyncIterator[int]:
        yield await self.body(value)
        await self.body()

    async def __call__(self, value: int) -> int:
        return await self.coroutine(value)


@pytest.mark.parametrize("kind", KINDS)
def test_the_lease_is_held_while_the_body_runs(kind: str) -> None:
    """From its first step to its last; neither before nor after."""
    make, use = KINDS[kind]

    async def scene(place: Place) -> None:
        function = make(place.body)
        held = place.sem(function)
        for _ in range(2):
            assert await use(held, 7) == 7
            assert await place.sem.get_value() == 0
        assert held.__doc__ == "Documented."
        assert held.__name__ == "function"
        assert inspect.unwrap(held) is inspect.unwrap(function)
        assert inspect.signature(held) == inspect.signature(function)
        for question in (inspect.iscoroutinefunction, inspect.isasyncgenfunction):
            assert question(held) == question(function)

    at(scene)


@pytest.mark.parametrize("kind", KINDS)
def test_partials_methods_and_static_methods(kind: str) -> None:
    """They are of the kind of their function."""
    make, use = KINDS[kind]
    name = kind.replace(" ", "_")

    async def scene(place: Place) -> None:
        sem, methods = place.sem, Methods(place.body)
        bound, function = getattr(methods, name), vars(Methods)[name]

        class Decorated(Methods):
            method = sem(function)
            static = sem(staticmethod(functools.partial(function, methods)))

        assert await use(sem(functools.partial(make(place.body), 7))) == 7
        assert await use(sem(bound), 7) == 7
        assert await use(sem(functools.partial(functools.partial(bound), 7))) == 7
        assert await use(Decorated(place.body).method, 7) == 7
        assert await use(Decorated(place.body).static, 7) == 7

    at(scene)


def test_objects_that_are_called() -> None:
    """Their kind is that of their `__call__`; methods of etcdsem.aio are coroutine functions."""

    async def scene(place: Place) -> None:
        assert await place.sem(Methods(place.body))(7) == 7
        assert await place.sem(place.sem.get_value)() == 1

        @types.coroutine
        def old() -> Generator[Any, Any, int]:
            return (yield from place.body(5).__await__())

        assert await place.sem(old)() == 5

    at(scene)


@pytest.mark.parametrize("end", ["aclose", "athrow", "collect", "cancel"])
def test_an_async_generator_that_is_not_run_to_its_end(end: str) -> None:
    """Closed, thrown into, dropped or cancelled: the lease is back. One that was not begun holds
    none.
    """
    ended: list[str] = []

    async def scene(place: Place) -> None:
        @place.sem
        async def function() -> AsyncGenerator[int, None]:
            try:
                yield await place.body()
                await asyncio.Event().wait()
            finally:
                await place.body()
                ended.append(end)

        await function().aclose()
        assert await place.sem.get_value() == 0
        made = function()
        assert await anext(made) == 1
        if end == "aclose":
            await made.aclose()
        elif end == "athrow":
            with pytest.raises(KeyError):
                await made.athrow(KeyError())
        elif end == "cancel":
            task = asyncio.ensure_future(anext(made))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            del made
            gc.collect()
            await eventually(lambda: not place.sem.leases)
        assert ended == [end]

    at(scene)


def test_what_is_thrown_into_an_async_generator_arrives() -> None:
    """It may go on; what it raises itself comes out; wrong arguments are told at once."""

    async def scene(place: Place) -> None:
        @place.sem
        async def function(first: str) -> AsyncGenerator[str, None]:
            try:
                yield first
            except KeyError:
                yield "went on"
            raise OSError("mine")

        made = function("a")
        assert await anext(made) == "a"
        assert await made.athrow(KeyError()) == "went on"
        with pytest.raises(OSError, match="mine"):
            await anext(made)
        made = function("a")
        await anext(made)
        with pytest.raises(RuntimeError):  # as Python has it for async generators
            await made.athrow(StopAsyncIteration())
        async with place.sem:
            with pytest.raises(TypeError, match="missing"):
                await anext(function())  # type: ignore[call-arg]

    at(scene)


def test_a_context_manager_may_swallow_an_error() -> None:
    """As without the decorator; another error comes out."""

    async def scene(place: Place) -> None:
        @place.sem
        @contextlib.asynccontextmanager
        async def function() -> AsyncIterator[None]:
            with contextlib.suppress(KeyError):
                yield

        async with function():
            await place.body()
            raise KeyError
        for error in (ValueError("mine"), StopAsyncIteration("mine")):
            with pytest.raises(type(error), match="mine"):
                async with function():
                    raise error

    at(scene)


@pytest.mark.parametrize("kind", KINDS)
def test_no_lease_no_body(kind: str) -> None:
    """A body that gets no lease in time does not begin, and nothing is left un-awaited."""
    make, use = KINDS[kind]
    begun: list[int] = []

    async def body(value: int) -> None:
        begun.append(value)

    async def scene(place: Place) -> None:
        held = decorate_async(make(body), lambda: place.sem.hold(timeout=0))
        async with place.sem:
            with pytest.raises(etcdsem.AcquireTimeout):
                await use(held, 7)

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "never awaited"
        at(scene)
        gc.collect()
    assert not begun


# -- the others


@pytest.mark.parametrize("kind", KINDS)
def test_rate_limits(kind: str) -> None:
    """A start is waited for when the body begins."""
    make, use = KINDS[kind]

    async def scene(place: Place) -> None:
        api = await RateLimit("r", 1, "1m")
        began: list[float] = []

        async def body(value: int = 1) -> int:
            began.append(place.etcd.now)
            return value

        held = api(make(body))
        assert await use(held, 7) == 7
        task = asyncio.ensure_future(use(held, 7))
        await place.etcd.advance("55s")
        assert not task.done()
        await place.etcd.advance("10s")
        assert await task == 7
        assert 60 < began[-1] - began[0] < 66

    at(scene)


@pytest.mark.parametrize("kind", KINDS)
def test_hold_all(kind: str) -> None:
    """Its block is a decorator too, as often as the function is called."""
    make, use = KINDS[kind]

    async def scene(place: Place) -> None:
        other = await Semaphore(1, "other")

        async def body(value: int = 1) -> int:
            assert await other.get_value() == 1
            return await place.body(value)

        held: Function = aio.hold_all(place.sem, other)(make(body))
        assert [await use(held, 7) for _ in range(2)] == [7, 7]
        assert await other.get_value() == 0

    at(scene)


# -- what is refused


def a_generator() -> Iterator[int]:
    yield 1


class Call:
    """An object that is called like a plain function."""

    def __call__(self) -> None:
        pass


PLAIN: dict[str, Function] = {
    "function": lambda: None,
    "function in C": len,
    "class": Call,
    "generator function": a_generator,
    "context manager": contextlib.contextmanager(a_generator),
    "partial": functools.partial(a_generator),
    "object": Call(),
    "method": Call().__call__,
    "static method": staticmethod(a_generator),
}


@pytest.mark.parametrize("what", PLAIN)
def test_plain_functions_are_refused(what: str) -> None:
    """At decoration, with the import that is right for them."""
    with pytest.raises(TypeError, match="from etcdsem import Semaphore"):
        Semaphore(1, "s")(PLAIN[what])
    with pytest.raises(TypeError, match="from etcdsem import RateLimit"):
        RateLimit("r", 1, "1m")(PLAIN[what])


@pytest.mark.parametrize(
    "what",
    [classmethod(lambda cls: None), property(lambda self: None), 3],
    ids=["class method", "property", "number"],
)
def test_what_is_no_function(what: Any) -> None:
    """The message says where the decorator belongs."""
    with pytest.raises(TypeError, match=r"cannot be decorated.*directly above `def`"):
        Semaphore(1, "s")(what)


def in_disguise(function: Function) -> Function:
    """A decorator as many are: what it gives looks like a plain function."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


@pytest.mark.parametrize("kind", KINDS)
def test_async_functions_in_disguise(kind: str) -> None:
    """What wraps an async function and looks like a plain one is refused, with what to do."""
    make, _ = KINDS[kind]
    with pytest.raises(TypeError, match=r"around an async function.*directly above the `def`"):
        Semaphore(1, "s")(in_disguise(make(Place.body)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_coroutine_function_that_returns_another_body(kind: str) -> None:
    """That would run after the block; it is closed, and the call raises."""
    make, _ = KINDS[kind]

    async def scene(place: Place) -> None:
        function = make(place.body)

        @place.sem
        async def outer() -> object:
            return function(7)

        with pytest.raises(TypeError, match="would run without the block"):
            await outer()

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "never awaited"
        at(scene)
        gc.collect()
