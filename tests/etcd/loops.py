"""Asyncio connections and streams for tests that know only the blocking ones."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from queue import SimpleQueue
from typing import Any, Self, TypeVar

from etcdsem.core.commands import Listener
from etcdsem.etcd.aio_connection import AioConnection
from etcdsem.etcd.aio_streams import AioKeepaliveStream, AioWatchStream
from etcdsem.etcd.settings import read_settings

T = TypeVar("T")


class LoopThread:
    """An event loop in a thread; it stands for the guard that blocking streams have."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something in the loop, and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def call(self, function: Callable[..., T], *args: Any, **more: Any) -> T:
        """Call something in the loop."""

        async def work() -> T:
            return function(*args, **more)

        return self.do(work())

    def start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """A task for a stream."""
        task = self.loop.create_task(work, name=name)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    @property
    def held(self) -> bool:
        return threading.current_thread() is self._thread

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass

    def stop(self) -> None:
        """End the loop; no task may be left."""
        self.do(self._idle())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()

    async def _idle(self) -> None:
        async with asyncio.timeout(15):
            while self.tasks:
                await asyncio.sleep(0.01)


class _Watch:
    def __init__(self, guard: LoopThread, watch: Any) -> None:
        self._guard = guard
        self._watch = watch

    def cancel(self) -> None:
        self._guard.call(self._watch.cancel)


class _Watches:
    def __init__(self, guard: LoopThread, stream: AioWatchStream) -> None:
        self._guard = guard
        self._stream = stream

    def watch(self, listener: Listener, key: bytes, end: bytes = b"", **more: Any) -> _Watch:
        watch = self._guard.call(self._stream.watch, listener, key, end, **more)
        return _Watch(self._guard, watch)


class _Keepalives:
    def __init__(self, guard: LoopThread, stream: AioKeepaliveStream) -> None:
        self._guard = guard
        self._stream = stream

    def restart(self) -> None:
        self._guard.call(self._stream.restart)

    @property
    def _requests(self) -> object:
        return self._guard.call(lambda: self._stream._requests)


class AioLine:
    """A connection in a loop, possibly through a proxy, with both streams."""

    def __init__(self, endpoint: str) -> None:
        self.guard = LoopThread()
        connection = AioConnection(read_settings(endpoint))
        self.connection = connection
        self.renewed: SimpleQueue[tuple[int, float]] = SimpleQueue()
        start = self.guard.start
        self._watching = self.guard.call(AioWatchStream, connection, start)
        self._keeping = self.guard.call(
            AioKeepaliveStream, connection, start, lambda lease, ttl: self.renewed.put((lease, ttl))
        )
        self.watches = _Watches(self.guard, self._watching)
        self.keepalives = _Keepalives(self.guard, self._keeping)

    def renew(self, lease: int) -> None:
        """As the heartbeat does."""
        self.guard.call(self._keeping.renew, lease)

    def close(self) -> None:
        """End it all."""
        self.guard.call(self._watching.close)
        self.guard.call(self._keeping.close)
        self.guard.do(self.connection.close())
        self.guard.stop()
