"""Semaphores, rate limits and `hold_all` as decorators: a lease is held while the body runs."""

from __future__ import annotations

import contextlib
import functools
import gc
import inspect
import itertools
import types
import warnings
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import pytest

import etcdsem
import etcdsem.testing
from etcdsem import RateLimit, Semaphore, aio
from etcdsem.facade.decorators import decorate

Function = Callable[..., Any]


class Place(NamedTuple):
    """A semaphore in an etcd in memory."""

    sem: Semaphore
    etcd: etcdsem.testing.Memory

    def body(self, value: int = 1) -> int:
        """What each body does: it looks whether it holds a lease."""
        assert self.sem.get_value() == 1
        return value


@pytest.fixture
def place() -> Iterator[Place]:
    """A semaphore that nobody holds, neither before nor after."""
    with etcdsem.testing.memory() as etcd, etcd.default():
        sem = Semaphore(1, "s")
        yield Place(sem, etcd)
        assert sem.get_value() == 0


# -- what can be decorated, and how it is used


def plain(body: Function) -> Function:
    def function(value: int) -> int:
        """Documented."""
        return body(value)  # type: ignore[no-any-return]

    return function


def generator(body: Function) -> Function:
    def function(value: int) -> Generator[int, int, int]:
        """Documented."""
        sent = yield body(value)
        return body(sent)  # type: ignore[no-any-return]

    return function


def context_manager(body: Function) -> Function:
    @contextlib.contextmanager
    def function(value: int) -> Iterator[int]:
        """Documented."""
        yield body(value)
        body()

    return function


def use_plain(function: Function, *arguments: int) -> int:
    return function(*arguments)  # type: ignore[no-any-return]


def use_generator(function: Function, *arguments: int) -> int:
    made = function(*arguments)
    assert next(made) == 7
    with pytest.raises(StopIteration) as stop:
        made.send(7)
    return stop.value.value  # type: ignore[no-any-return]


def use_context_manager(function: Function, *arguments: int) -> int:
    with function(*arguments) as value:
        return value  # type: ignore[no-any-return]


KINDS = {
    "plain": (plain, use_plain),
    "generator": (generator, use_generator),
    "context manager": (context_manager, use_context_manager),
}


class Method:
    """Functions that are decorated in a class."""

    def __init__(self, body: Function) -> None:
        self.body = body

    def plain(self, value: int) -> int:
        return self.body(value)  # type: ignore[no-any-return]

    def generator(self, value: int) -> Generator[int, int, int]:
        sent = yield self.body(value)
        return self.body(sent)  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def context_manager(self, value: int) -> Iterator[int]:
        yield self.body(value)
        self.body()

    def __call__(self, value: int) -> Generator[int, int, int]:
        return (yield from self.generator(value))


@pytest.mark.parametrize("kind", KINDS)
def test_the_lease_is_held_while_the_body_runs(place: Place, kind: str) -> None:
    """From its first step to its last; neither before nor after."""
    make, use = KINDS[kind]
    function = make(place.body)
    held = place.sem(function)
    for _ in range(2):
        assert use(held, 7) == 7
        assert place.sem.get_value() == 0
    assert held.__doc__ == "Documented."
    assert held.__name__ == "function"
    assert inspect.unwrap(held) is inspect.unwrap(function)
    assert inspect.signature(held) == inspect.signature(function)
    assert inspect.isgeneratorfunction(held) == inspect.isgeneratorfunction(function)
    assert not inspect.iscoroutinefunction(held)


@pytest.mark.parametrize("kind", KINDS)
def test_partials_and_bound_methods(place: Place, kind: str) -> None:
    """They are of the kind of their function."""
    make, use = KINDS[kind]
    assert use(place.sem(functools.partial(make(place.body), 7))) == 7
    bound = getattr(Method(place.body), kind.replace(" ", "_"))
    assert use(place.sem(bound), 7) == 7
    assert use(place.sem(functools.partial(functools.partial(bound), 7))) == 7


@pytest.mark.parametrize("kind", KINDS)
def test_methods_and_static_methods(place: Place, kind: str) -> None:
    """In a class the decorator stands above `def`; above @staticmethod it works too."""
    _, use = KINDS[kind]
    name = kind.replace(" ", "_")
    function = vars(Method)[name]

    class Decorated(Method):
        method = place.sem(function)
        static = place.sem(staticmethod(functools.partial(function, Method(place.body))))

    one = Decorated(place.body)
    assert use(one.method, 7) == 7
    assert use(one.static, 7) == 7
    assert use(Decorated.static, 7) == 7


def test_objects_that_are_called(place: Place) -> None:
    """Their kind is that of their `__call__`; a class is called like a function."""
    assert use_generator(place.sem(Method(place.body)), 7) == 7

    class Made:
        def __init__(self) -> None:
            place.body()

    assert isinstance(place.sem(Made)(), Made)


@pytest.mark.parametrize("end", ["close", "throw", "collect"])
def test_a_generator_that_is_not_run_to_its_end(place: Place, end: str) -> None:
    """Closed, thrown into or dropped: the lease is back. One that was not begun holds none."""
    ended: list[str] = []

    @place.sem
    def function() -> Iterator[int]:
        try:
            yield place.body()
        finally:
            place.body()
            ended.append(end)

    not_begun = function()
    assert place.sem.get_value() == 0
    not_begun.close()  # type: ignore[attr-defined]
    made: Any = function()
    assert next(made) == 1
    if end == "close":
        made.close()
    elif end == "throw":
        with pytest.raises(KeyError):
            made.throw(KeyError())
    else:
        del made
        gc.collect()
    assert ended == [end]


def test_what_is_thrown_into_a_generator_arrives(place: Place) -> None:
    """It may go on; and wrong arguments are told before there is a lease."""

    @place.sem
    def function(first: str) -> Iterator[str]:
        try:
            yield first
        except KeyError:
            yield "went on"

    made: Any = function("a")
    assert next(made) == "a"
    assert made.throw(KeyError()) == "went on"
    made.close()
    with place.sem, pytest.raises(TypeError, match="missing"):
        next(function())  # type: ignore[call-arg]


def test_a_context_manager_may_swallow_an_error(place: Place) -> None:
    """As without the decorator; another error comes out."""

    @place.sem
    @contextlib.contextmanager
    def function() -> Iterator[None]:
        with contextlib.suppress(KeyError):
            yield

    with function():
        place.body()
        raise KeyError
    for error in (ValueError("mine"), StopIteration("mine")):
        with pytest.raises(type(error), match="mine"), function():
            raise error


def test_no_lease_no_body(place: Place) -> None:
    """A body that gets no lease in time does not begin."""
    begun: list[str] = []

    @place.sem.hold(timeout=0)
    def plain() -> None:
        begun.append("plain")

    held = decorate(generator(begun.append), lambda: place.sem.hold(timeout=0))
    with place.sem:
        with pytest.raises(etcdsem.AcquireTimeout):
            plain()
        with pytest.raises(etcdsem.AcquireTimeout):
            next(held(1))
    assert not begun


# -- the others


def test_rate_limits(place: Place) -> None:
    """A start is waited for when the body begins."""
    api = RateLimit("r", 1, "1m")
    began: list[float] = []

    def body(value: int) -> int:
        began.append(place.etcd.now)
        return value

    @api
    @contextlib.contextmanager
    def managed() -> Iterator[int]:
        yield body(1)

    @api
    def generated() -> Iterator[int]:
        yield body(1)

    waits = [generated(), generated()]
    assert api.status().held == 0
    assert [next(one) for one in waits] == [1, 1]
    assert api(body)(2) == 2
    with managed() as value:
        assert value == 1
    assert all(60 < later - sooner < 61 for sooner, later in itertools.pairwise(began))
    with pytest.raises(TypeError, match=r"from etcdsem\.aio import RateLimit"):
        api(an_async_function)


@pytest.mark.parametrize("kind", KINDS)
def test_hold_all(place: Place, kind: str) -> None:
    """Its block is a decorator too, as often as the function is called."""
    other = Semaphore(1, "other")
    make, use = KINDS[kind]

    def body(value: int = 1) -> int:
        assert other.get_value() == 1
        return place.body(value)

    held = etcdsem.hold_all(place.sem, other)(make(body))
    assert [use(held, 7) for _ in range(2)] == [7, 7]
    assert other.get_value() == 0


# -- what is refused


async def an_async_function() -> None:
    """Documented."""


async def an_async_generator() -> AsyncIterator[int]:
    yield 1


class AsyncCall:
    """An object with an async `__call__`."""

    async def __call__(self) -> None:
        pass

    async def method(self) -> AsyncIterator[int]:
        yield 1


@types.coroutine
def an_old_coroutine() -> Generator[None, None, None]:
    yield


ASYNC: dict[str, Function] = {
    "coroutine function": an_async_function,
    "async generator function": an_async_generator,
    "async context manager": contextlib.asynccontextmanager(an_async_generator),
    "partial": functools.partial(functools.partial(an_async_function)),
    "partial of an async generator function": functools.partial(an_async_generator),
    "object with an async __call__": AsyncCall(),
    "partial of such an object": functools.partial(AsyncCall()),
    "method": AsyncCall().method,
    "static method": staticmethod(an_async_function),
    "types.coroutine": an_old_coroutine,
    "method of etcdsem.aio": aio.Semaphore(1, "a").acquire,
}


@pytest.mark.parametrize("what", ASYNC)
def test_async_functions_are_refused(place: Place, what: str) -> None:
    """At decoration, with the import that is right for them."""
    with pytest.raises(TypeError, match=r"from etcdsem\.aio import Semaphore"):
        place.sem(ASYNC[what])


NO_FUNCTIONS: dict[str, Any] = {
    "class method": classmethod(lambda cls: None),
    "property": property(lambda self: None),
    "partialmethod": functools.partialmethod(plain),
    "number": 3,
}


@pytest.mark.parametrize("what", NO_FUNCTIONS)
def test_what_is_no_function(place: Place, what: str) -> None:
    """The message says where the decorator belongs."""
    with pytest.raises(TypeError, match=r"cannot be decorated.*directly above `def`"):
        place.sem(NO_FUNCTIONS[what])


def in_disguise(function: Function) -> Function:
    """A decorator as many are: what it gives looks like a plain function."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def in_bad_disguise(function: Function) -> Function:
    """One that does not even tell what it wraps."""
    return lambda *args, **kwargs: function(*args, **kwargs)


@pytest.mark.parametrize("wrap", [in_disguise, in_bad_disguise, functools.lru_cache])
@pytest.mark.parametrize(
    "what", ["coroutine function", "async generator function", "async context manager"]
)
def test_async_functions_in_disguise(place: Place, wrap: Function, what: str) -> None:
    """What looks like a plain function raises when it is called, and leaves nothing behind."""
    held = place.sem(wrap(ASYNC[what]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "never awaited"
        with pytest.raises(TypeError, match=r"would run without the block.*directly above"):
            held()
        gc.collect()


@pytest.mark.parametrize("wrap", [in_disguise, functools.lru_cache])
def test_generators_in_disguise(place: Place, wrap: Function) -> None:
    """The same for those; a context manager also in a bad disguise."""
    for make in (generator, context_manager):
        with pytest.raises(TypeError, match=r"would run without the block.*directly above"):
            place.sem(wrap(make(place.body)))(7)
        with pytest.raises(TypeError, match="would run without the block"):
            place.sem(functools.partial(wrap(make(place.body)), 7))()
    with pytest.raises(TypeError, match="would run without the block"):
        place.sem(in_bad_disguise(context_manager(place.body)))(7)


def test_a_plain_function_may_return_a_generator(place: Place) -> None:
    """One whose body is not the function's own: what is lazy by intention."""
    held = place.sem(lambda: (place.sem.get_value() for _ in range(2)))
    assert list(held()) == [0, 0]

    def block() -> AbstractContextManager[Any, Any]:
        return place.sem.hold()

    assert list(decorate(lambda: generator(lambda value: value)(3), block)()) == [3]
