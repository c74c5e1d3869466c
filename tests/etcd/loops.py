"""Asyncio connections and streams for tests that know only the blocking ones."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from queue import SimpleQueue
from typing import Any, Self, TypeVar

from etcdsem.core.commands import Listener
from etcdsem.etcd.aio_connection import AioConnection
from etcdsem.etcd.aio_streams import AioStreams
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

    def start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """A task for a stream."""
        task = self.loop.create_task(work, name=name)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

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


class _Streams:
    """What tests ask of streams, done in their loop."""

    def __init__(self, guard: LoopThread, streams: AioStreams) -> None:
        self._guard = guard
        self._streams = streams

    def watch(self, listener: Listener, key: bytes, end: bytes = b"", **more: Any) -> _Watch:
        return _Watch(
            self._guard, self._guard.call(self._streams.watch, listener, key, end, **more)
        )

    def renew(self, lease_id: int) -> None:
        self._guard.call(self._streams.renew, lease_id)

    def restart(self) -> None:
        self._guard.call(self._streams.restart)

    def close(self) -> None:
        self._guard.call(self._streams.close)

    @property
    def _keepalive(self) -> object:
        return self._guard.call(lambda: self._streams._keepalive)


class AioLine:
    """A connection in a loop, possibly through a proxy, with both streams."""

    def __init__(self, endpoint: str) -> None:
        self.guard = LoopThread()
        self.connection = AioConnection(read_settings(endpoint))
        self.renewed: SimpleQueue[tuple[int, float]] = SimpleQueue()
        streams = self.guard.call(
            AioStreams,
            self.connection,
            self.guard.start,
            lambda lease, ttl: self.renewed.put((lease, ttl)),
        )
        self.watches = self.keepalives = _Streams(self.guard, streams)

    def renew(self, lease: int) -> None:
        """As the heartbeat does."""
        self.keepalives.renew(lease)

    def close(self) -> None:
        """End it all."""
        self.watches.close()
        self.guard.do(self.connection.close())
        self.guard.stop()
