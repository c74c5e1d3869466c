"""What `etcdsem.aio` does if no event loop is running.

A coroutine function does nothing until its result is awaited. A plain function that calls
``sem.acquire()`` without awaiting it would therefore continue without a lease, with only a "never
awaited" warning. So these functions raise an error in the call itself.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from etcdsem.errors import WrongEventLoop

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound=type)


def running_loop(what: str) -> asyncio.AbstractEventLoop:
    """The running event loop. Without one it raises WrongEventLoop; `what` names the operation."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise WrongEventLoop(
            f"{what} of etcdsem.aio needs a running event loop, and no event loop is running here. "
            "In plain functions, including plain functions in Dask tasks, use the blocking "
            "library: from etcdsem import Semaphore. Otherwise await it in a coroutine: "
            "async def main(): ..., then asyncio.run(main())"
        ) from None


def needs_loop(function: Callable[P, R]) -> Callable[P, R]:
    """Make a coroutine function raise WrongEventLoop if it is called without a running loop."""
    what = f"{function.__name__}()"

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        running_loop(what)
        return function(*args, **kwargs)

    return _marked(checked)


def methods_need_loop(cls: C) -> C:
    """Apply `needs_loop` to the public coroutine methods that a class defines."""
    for name, member in list(vars(cls).items()):
        if not name.startswith("_") and inspect.iscoroutinefunction(member):
            setattr(cls, name, needs_loop(member))
    return cls


def _marked(function: Callable[P, R]) -> Callable[P, R]:
    """Mark a coroutine function, since frameworks check for one to know how to call it."""
    marked: Any = function
    if sys.version_info >= (3, 12):
        return inspect.markcoroutinefunction(marked)
    # Python 3.11 has no mark that `inspect.iscoroutinefunction` respects, only asyncio's own.
    marked._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]
    return marked  # type: ignore[no-any-return]
