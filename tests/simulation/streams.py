"""The watch stream and the keepalive stream of a simulated client."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from etcdsem.core.commands import (
    Event,
    Failure,
    Listener,
)
from etcdsem.core.watchbook import (
    CancelWatch,
    WatchBook,
    WatchEntry,
    WatchHandle,
    WatchRequest,
    WatchResponse,
)
from etcdsem.testing.watch_server import WatchServer

if TYPE_CHECKING:
    from tests.simulation.client import SimClient


class _Stream:
    """What both streams share: message order in each direction, and generations."""

    def __init__(self, client: SimClient) -> None:
        self.client = client
        self.generation = 0
        self.open = True
        self._up = 0.0
        self._down = 0.0

    def up(self, function: Callable[..., object], *args: Any) -> None:
        """Send to etcd, in order."""
        link, world = self.client.link, self.client.world
        moment = max(self._up, world.now + self.client.delay()) + 1e-6
        if moment < link.up_until:
            if link.drops:
                self._lose()
                return
            moment = link.up_until + 1e-6
        self._up = moment
        world.at(moment, self._if_current, self.generation, function, args)

    def down(self, function: Callable[..., object], *args: Any) -> None:
        """Send to the client, in order."""
        link, world = self.client.link, self.client.world
        moment = max(self._down, world.now + self.client.delay()) + 1e-6
        if moment < link.down_until:
            if link.drops:
                self._lose()
                return
            moment = link.down_until + 1e-6
        self._down = moment
        world.at(moment, self._receive, self.generation, function, args)

    def _receive(self, generation: int, function: Callable[..., object], args: Any) -> None:
        self.client.run(self._if_current, generation, function, args, stream=self)

    def _if_current(self, generation: int, function: Callable[..., object], args: Any) -> None:
        if generation == self.generation and self.open and not self.client.crashed:
            function(*args)

    def _lose(self) -> None:
        """A message is lost, and so the stream breaks; a PING notices that after a while."""
        world = self.client.world
        generation = self.generation
        world.after(8.0 + 3 * world.rng.random(), self._cut_if, generation)

    def _cut_if(self, generation: int) -> None:
        if generation == self.generation:
            self.cut()

    def cut(self) -> None:
        """Break the connection; it is opened again soon."""
        raise NotImplementedError


class _CountedListener:
    """A listener whose events and gaps are counted and traced."""

    __slots__ = ("client", "listener")

    def __init__(self, client: SimClient, listener: Listener) -> None:
        self.client = client
        self.listener = listener

    def created(self, revision: int) -> None:
        self.listener.created(revision)

    def events(self, events: Sequence[Event]) -> None:
        self.client.world.counters["watch events"] += len(events)
        self.client.trace("hears", events)
        self.listener.events(events)

    def gap(self, reason: str) -> None:
        self.client.world.counters["watch gaps"] += 1
        self.listener.gap(reason)

    def refused(self, error: Failure) -> None:
        self.listener.refused(error)


class WatchStream(_Stream):
    """All watches of a client, resumed by the library's own `WatchBook` when the stream breaks."""

    def __init__(self, client: SimClient) -> None:
        super().__init__(client)
        self.book = WatchBook()
        self.connected = True
        self._server = WatchServer(client.world.etcd, self._answer)

    def add(
        self, listener: Listener, key: bytes, end: bytes, start: int, only: str | None
    ) -> WatchHandle:
        """Request a watch."""
        entry = WatchEntry(_CountedListener(self.client, listener), key, end, start, only)
        self._send(self.book.add(entry))
        return WatchHandle(self, entry)

    def remove(self, entry: WatchEntry) -> None:
        """Cancel a watch, even one that etcd has not created yet."""
        self.book.remove(entry)
        self._send(CancelWatch(entry.id))

    def _send(self, request: WatchRequest) -> None:
        """Send a request. A cancel reaches etcd at once: the book ignores later events anyway."""
        if isinstance(request, CancelWatch):
            self._server.serve(request)
        elif self.connected:
            self.up(self._create, request)

    def _create(self, request: WatchRequest) -> None:
        if not any(entry.id == request.id for entry in self.book.entries):
            return  # cancelled before it arrived
        world = self.client.world
        if world.etcd.leading:
            self._server.serve(request)
        else:
            world.after(0.05, self._if_current, self.generation, self._create, (request,))

    def _answer(self, response: WatchResponse) -> None:
        self.down(self._hear, response)

    def _hear(self, response: WatchResponse) -> None:
        tell, send = self.book.heard(response)
        for one in tell:
            one()
        for request in send:
            self._send(request)

    def cut(self) -> None:
        if self.client.crashed:
            return
        self.client.world.counters["watch streams cut"] += 1
        self.close()
        self.client.world.after(self.client.world.rng.random() * 1.0, self._reopen)

    def close(self) -> None:
        """Close etcd's end."""
        self.generation += 1
        self.connected = False
        self._server.close()

    def _reopen(self) -> None:
        client = self.client
        if client.crashed or self.connected:
            return
        if client.paused or client.link.up_until > client.world.now:
            client.world.after(0.2 + client.world.rng.random(), self._reopen)
            return
        self.connected = True
        for request in self.book.reopened():
            self._send(request)


class RenewalStream(_Stream):
    """The keepalive stream of a client; etcd serves it serially."""

    def __init__(self, client: SimClient) -> None:
        super().__init__(client)
        self._queue: deque[int] = deque()
        self._busy = False

    def send(self, lease_id: int) -> None:
        """Request a renewal."""
        self.client.world.counters["renewals"] += 1
        self.up(self._arrive, lease_id)

    def _arrive(self, lease_id: int) -> None:
        self._queue.append(lease_id)
        self._next()

    def _next(self) -> None:
        while self._queue and not self._busy:
            lease_id = self._queue.popleft()
            self._busy = True
            generation = self.generation
            self.client.world.etcd.keep_alive(lease_id, partial(self._answer, generation, lease_id))

    def _answer(self, generation: int, lease_id: int, ttl: int) -> None:
        if generation != self.generation:
            return
        self._busy = False
        self.down(self.on_answer, lease_id, ttl)
        self._next()

    def on_answer(self, lease_id: int, ttl: int) -> None:
        """Process etcd's answer to a renewal."""
        self.client.session.leases.renewed(lease_id, float(ttl))

    def restart(self) -> None:
        """Switch to another connection; what is in progress is dropped, at least its answer."""
        self.generation += 1
        self._queue = deque()
        self._busy = False

    def cut(self) -> None:
        self.client.world.counters["renewal streams cut"] += 1
        self.restart()
