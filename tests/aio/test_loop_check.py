"""etcdsem.aio where no event loop runs: the call itself says so, and does nothing silently."""

from __future__ import annotations

import asyncio
import gc
import inspect
import sys
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

import etcdsem
from etcdsem import aio, sync
from tests.helpers.event_loop import run

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

SEMAPHORE, LIMIT = aio.Semaphore(1, "s"), aio.RateLimit("r", 1, "1m")


def is_coroutine_function(function: object) -> bool:
    """As frameworks ask; until 3.11 only asyncio's function respects a mark."""
    if sys.version_info >= (3, 12):
        return inspect.iscoroutinefunction(function)
    return asyncio.iscoroutinefunction(function)


def coroutine_functions(thing: type) -> set[str]:
    """The public coroutine functions of a class."""
    public = (name for name in dir(thing) if not name.startswith("_"))
    return {name for name in public if is_coroutine_function(getattr(thing, name))}


CALLS: dict[str, Callable[[], object]] = {
    "acquire": SEMAPHORE.acquire,
    "acquire with a timeout": lambda: SEMAPHORE.acquire(timeout=1),
    "acquire_lease": SEMAPHORE.acquire_lease,
    "release": SEMAPHORE.release,
    "register": SEMAPHORE.register,
    "get_value": SEMAPHORE.get_value,
    "resize": lambda: SEMAPHORE.resize(2),
    "pause": SEMAPHORE.pause,
    "resume": SEMAPHORE.resume,
    "drain": SEMAPHORE.drain,
    "status": SEMAPHORE.status,
    "holders": SEMAPHORE.holders,
    "waiters": SEMAPHORE.waiters,
    "close": SEMAPHORE.close,
    "acquire a start": LIMIT.acquire,
    "try_acquire": LIMIT.try_acquire,
    "acquire_all": lambda: aio.acquire_all(SEMAPHORE),
    "close a client": lambda: aio.connect("127.0.0.1:1").close(),
    "overview": lambda: aio.connect("127.0.0.1:1").overview(),
    "the default client": lambda: SEMAPHORE.client,
}


@pytest.mark.parametrize("what", CALLS)
def test_the_call_itself_raises(what: str) -> None:
    """Nothing has to be awaited for it, and the message says what to use instead."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "never awaited"
        with pytest.raises(etcdsem.WrongEventLoop, match=r"no event loop.*from etcdsem import"):
            CALLS[what]()
        gc.collect()


@pytest.mark.parametrize("kind", ["Client", "Semaphore", "Lease", "RateLimit"])
def test_every_coroutine_method_is_checked(kind: str) -> None:
    """What blocks in the other library is a coroutine function still, and each raises in the call,
    before it looks at its arguments.
    """
    cls = getattr(aio, kind)
    found = coroutine_functions(cls)
    blocking = vars(getattr(sync, kind)).items()
    methods = {name for name, one in blocking if inspect.isfunction(one) and name[0] != "_"}
    assert methods - {"hold", "start", "check"} <= found
    for name in found:
        with pytest.raises(etcdsem.WrongEventLoop, match=rf"^{name}\(\) of etcdsem\.aio"):
            getattr(cls, name)()


def test_a_lease_outside_of_its_loop(etcd: EtcdServer, name: str) -> None:
    """A plain function that gives a lease back would keep it; so would one that waits for its loss
    take it for lost at once.
    """
    leases: list[aio.Lease] = []

    async def main() -> None:
        async with aio.connect(etcd.endpoint) as client:
            sem = await aio.Semaphore(1, name, client=client)
            async with sem.hold() as lease:
                leases.append(lease)
                for call in (lease.release, lease.lost.wait, sem.acquire):
                    with pytest.raises(etcdsem.WrongEventLoop):  # a thread of a pool has no loop
                        assert await asyncio.to_thread(call)
                lease.check()

    run(main())
    calls: list[Callable[[], Any]] = [leases[0].release, leases[0].lost.wait]
    for call in calls:
        with pytest.raises(etcdsem.WrongEventLoop, match="no event loop"):
            call()


def test_what_the_check_leaves_as_it_was() -> None:
    """Names, signatures and docstrings are those of the coroutine function."""
    method = aio.Semaphore.acquire
    assert method.__name__ == "acquire"
    assert method.__qualname__ == "Semaphore.acquire"
    assert (method.__doc__ or "").startswith("Wait for a lease.")
    assert "timeout" in inspect.signature(SEMAPHORE.acquire).parameters
    assert not is_coroutine_function(aio.Semaphore.hold)
