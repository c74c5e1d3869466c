"""Semaphores and rate limits as decorators: the block lasts as long as the function's body runs.

The body of a generator function, a coroutine function or a context manager runs after the call has
returned. So each kind of function gets a wrapper of the same kind, which enters the block when the
body begins and leaves it when the body ends. Anything that cannot be held that long is a TypeError.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
import types
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Iterator,
)
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Literal, ParamSpec, TypeAlias, TypeVar, overload

P = ParamSpec("P")
R = TypeVar("R")
Lazy = TypeVar("Lazy", bound="AsyncIterator[Any] | AbstractAsyncContextManager[Any, Any]")

Function: TypeAlias = Callable[..., Any]
Block: TypeAlias = Callable[[], "AbstractContextManager[Any, Any]"]
"""Creates the context manager for one run of the body."""
AsyncBlock: TypeAlias = Callable[[], "AbstractAsyncContextManager[Any, Any]"]

Kind: TypeAlias = Literal[
    "function",
    "generator function",
    "context manager",
    "coroutine function",
    "async generator function",
    "async context manager",
]
ASYNC = ("coroutine function", "async generator function", "async context manager")


class Decorator:
    """An object that decorates blocking functions."""

    _class_name = "Semaphore"

    def _block(self) -> AbstractContextManager[Any, Any]:
        raise NotImplementedError

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Decorate a function: each call enters the block, and leaves it when the body has ended.

        The body of a generator function lasts from the first `next` to its end or its `close`, that
        of a ``@contextmanager`` function from enter to exit.

        Raises:
            TypeError: the function is async (use `etcdsem.aio`), or it is not a function. A plain
                function that returns a coroutine, or another object whose body has not begun,
                raises it when it is called.
        """
        return decorate(function, self._block, self._class_name)


class AsyncDecorator:
    """An object that decorates coroutine functions and other async functions."""

    _class_name = "Semaphore"

    def _block(self) -> AbstractAsyncContextManager[Any, Any]:
        raise NotImplementedError

    @overload
    def __call__(
        self, function: Callable[P, Awaitable[R]]
    ) -> Callable[P, Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(self, function: Callable[P, Lazy]) -> Callable[P, Lazy]: ...
    def __call__(self, function: Function) -> Function:
        """Decorate a function: each call enters the block, and leaves it when the body has ended.

        The body of an async generator function lasts from its first item to its end or its
        `aclose`, that of an ``@asynccontextmanager`` function from enter to exit.

        Raises:
            TypeError: the function is not async (use the blocking library), or it is not a
                function.
        """
        return decorate_async(function, self._block, self._class_name)


def decorate(
    function: Callable[P, R], block: Block, class_name: str = "Semaphore"
) -> Callable[P, R]:
    """Wrap a function so that its body runs in a block.

    Args:
        function: a plain function, a generator function or a ``@contextmanager`` function; also a
            partial of one, a method, or a callable object.
        block: creates the context manager for one run of the body.
        class_name: "Semaphore" or "RateLimit", for messages.

    Raises:
        TypeError: its body could not run in the block.
    """
    call: Any = function
    if isinstance(call, staticmethod):
        return staticmethod(decorate(call.__func__, block, class_name))
    kind = kind_of(call)
    if kind in ASYNC:
        raise TypeError(
            f"{_shown(call)} is {_with_article(kind)}, which needs the asyncio library: "
            f"from etcdsem.aio import {class_name}"
        )
    held: Callable[P, R] = _HOLD[kind](call, block)
    return held


def decorate_async(
    function: Function, block: AsyncBlock, class_name: str = "Semaphore"
) -> Function:
    """Like `decorate`, for coroutine functions, async generator functions and
    ``@asynccontextmanager`` functions.
    """
    call: Any = function
    if isinstance(call, staticmethod):
        return staticmethod(decorate_async(call.__func__, block, class_name))
    kind = kind_of(call)
    if kind not in ASYNC and kind_of(_below(call)) in ASYNC:
        raise TypeError(
            f"{_shown(call)} is {_with_article(kind)} around an async function; {_ADVICE}"
        )
    if kind not in ASYNC:
        raise TypeError(
            f"{_shown(call)} is {_with_article(kind)}, which needs the blocking library: "
            f"from etcdsem import {class_name}"
        )
    held: Function = _HOLD[kind](call, block)
    return held


# ---------------------------------------------------------------- a wrapper for each kind


def _function(call: Function, block: Block) -> Function:
    below = _below(call)

    @functools.wraps(call)
    def held(*args: Any, **kwargs: Any) -> Any:
        with block():
            return _begun(call(*args, **kwargs), below)

    return held


def _generator(call: Function, block: Block) -> Function:
    @functools.wraps(call)
    def held(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        body = call(*args, **kwargs)  # outside the block: wrong arguments need no lease
        with block():
            return (yield from body)

    return held


def _context_manager(call: Function, block: Block) -> Function:
    @contextlib.contextmanager
    @functools.wraps(call)
    def held(*args: Any, **kwargs: Any) -> Iterator[Any]:
        with block(), call(*args, **kwargs) as value:
            yield value

    return held


def _coroutine(call: Function, block: AsyncBlock) -> Function:
    @functools.wraps(call)
    async def held(*args: Any, **kwargs: Any) -> Any:
        async with block():
            return _begun(await call(*args, **kwargs), None)

    return held


def _async_generator(call: Function, block: AsyncBlock) -> Function:
    @functools.wraps(call)
    async def held(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        body = call(*args, **kwargs)
        async with block(), contextlib.aclosing(body):
            try:
                item = await anext(body)
                while True:
                    try:
                        sent = yield item
                    except GeneratorExit:
                        raise  # this wrapper is being closed, and aclosing closes the body
                    except BaseException as error:
                        item = await body.athrow(error)
                    else:
                        item = await body.asend(sent)
            except StopAsyncIteration:
                return

    return held


def _async_context_manager(call: Function, block: AsyncBlock) -> Function:
    @contextlib.asynccontextmanager
    @functools.wraps(call)
    async def held(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        async with block(), call(*args, **kwargs) as value:
            yield value

    return held


_HOLD: dict[Kind, Callable[[Function, Any], Function]] = {
    "function": _function,
    "generator function": _generator,
    "context manager": _context_manager,
    "coroutine function": _coroutine,
    "async generator function": _async_generator,
    "async context manager": _async_context_manager,
}

_ADVICE = (
    "its body would run without the block: put the decorator directly above the `def` of the "
    "function whose body it is"
)


def _begun(result: R, below: object) -> R:
    """Return what a function returned. Raises TypeError for an object whose body has not begun,
    since it would run after the block; the object is closed, so that nobody runs it.

    A plain function may return a generator unless it is that of the function `below` its wrappers.
    """
    lazy: Any = result
    if isinstance(lazy, Coroutine):
        lazy.close()
    elif isinstance(lazy, types.GeneratorType):
        if lazy.gi_code is not getattr(below, "__code__", None) and not inspect.isawaitable(lazy):
            return result
        lazy.close()
    elif isinstance(lazy, contextlib._GeneratorContextManager):
        lazy.gen.close()
    elif not isinstance(lazy, types.AsyncGeneratorType | contextlib._AsyncGeneratorContextManager):
        return result
    raise TypeError(f"the decorated function returned a {type(lazy).__name__}; {_ADVICE}")


# ---------------------------------------------------------------- what is decorated


def kind_of(function: object) -> Kind:
    """The kind of a function, determined through partials, methods and callable objects.

    Raises TypeError if it is not a function.
    """
    if not callable(function):
        raise TypeError(
            f"a {type(function).__name__} object cannot be decorated: put the decorator directly "
            "above `def`, below @classmethod, @property and the like"
        )
    call: Any = function
    while not _is_coroutine_function(call):
        inner = _called_by(call)
        if inner is None:
            return _kind_by_code(call.__code__) if inspect.isfunction(call) else "function"
        call = inner
    return "coroutine function"


def _kind_by_code(code: types.CodeType) -> Kind:
    if code is _CONTEXT_MANAGER:
        return "context manager"
    if code is _ASYNC_CONTEXT_MANAGER:
        return "async context manager"
    if code.co_flags & inspect.CO_ITERABLE_COROUTINE:  # by types.coroutine
        return "coroutine function"
    if code.co_flags & inspect.CO_ASYNC_GENERATOR:
        return "async generator function"
    return "generator function" if code.co_flags & inspect.CO_GENERATOR else "function"


def _nothing() -> Any:
    return None


# contextlib creates all its context managers with one function each.
_CONTEXT_MANAGER = contextlib.contextmanager(_nothing).__code__
_ASYNC_CONTEXT_MANAGER = contextlib.asynccontextmanager(_nothing).__code__


def _is_coroutine_function(call: object) -> bool:
    if sys.version_info < (3, 12) and (asyncio := sys.modules.get("asyncio")) is not None:
        # A plain function that returns coroutines can be marked for asyncio only.
        return bool(asyncio.iscoroutinefunction(call))
    return inspect.iscoroutinefunction(call)


def _called_by(call: Any) -> Any:
    """What a partial, a method or a callable object runs; None for anything else."""
    if isinstance(call, functools.partial):
        return call.func
    if inspect.ismethod(call):
        return call.__func__
    if inspect.isroutine(call) or inspect.isclass(call):
        return None
    inner = type(call).__call__
    return inner if inspect.isfunction(inner) else None


def _below(call: Any) -> Any:
    """The function below all wrappers, partials and methods."""
    while True:
        inner = _called_by(call)
        if inner is None:
            inner = getattr(call, "__wrapped__", None)
        if inner is None:
            return call
        call = inner


def _shown(call: Any) -> str:
    return str(getattr(call, "__qualname__", None) or repr(call))


def _with_article(kind: Kind) -> str:
    return f"a{'n' if kind.startswith('a') else ''} {'plain ' * (kind == 'function')}{kind}"


__all__ = ["AsyncDecorator", "Decorator", "decorate", "decorate_async"]
