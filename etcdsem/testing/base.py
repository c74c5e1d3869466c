"""The parts that the in-memory etcds for threads and for coroutines share: keys and connections.

A client receives events and renewals through the `inbox` of its wire. The next thread that comes
by without holding a lock delivers it under the client's guard.
"""

from __future__ import annotations

import os
import time
import uuid
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Literal, Protocol, TypeVar

from etcdsem.core.commands import (
    Delete,
    DeleteReply,
    LeaseNotFound,
    Listener,
    NotApplied,
    NotConnected,
    Txn,
)
from etcdsem.core.keys import lease_hex
from etcdsem.core.watchbook import WatchBook, WatchEntry, WatchHandle, WatchRequest, WatchResponse
from etcdsem.errors import EtcdSemError, InvalidSetting
from etcdsem.etcd.settings import ConnectionSettings, Endpoint
from etcdsem.testing.model import EtcdModel
from etcdsem.testing.virtual import Place
from etcdsem.testing.watch_server import WatchServer

T = TypeVar("T")

_ENDPOINT = "in-memory"

SETTINGS = ConnectionSettings((Endpoint(_ENDPOINT, _ENDPOINT),))
"""Placeholder for the connection settings of an in-memory client."""


class Time(Protocol):
    """What a wire needs to know of time; `lock` also guards the model."""

    @property
    def lock(self) -> AbstractContextManager[Any]: ...
    @property
    def now(self) -> float: ...
    @property
    def ended(self) -> bool: ...
    @property
    def deliver(self) -> Callable[[], bool]: ...


class MemoryWire:
    """The connection between one client and the in-memory etcd, for threads and coroutines."""

    def __init__(
        self,
        memory: BaseMemory,
        time: Time,
        guard: AbstractContextManager[Any],
        renewed: Callable[[int, float], None],
    ) -> None:
        self.counters: Counter[str] = Counter()
        self.inbox: deque[Callable[[], None]] = deque()
        self.place = Place()
        self.cut = memory._cut
        self._memory = memory
        self._time = time
        self._model = memory._model
        self._guard = guard
        self._renewed = renewed
        self._book = WatchBook()
        self._server = WatchServer(self._model, self._hear)
        self._generation = 0  # of the keepalive stream
        self._closed = False

    def deliver(self) -> bool:
        """Deliver the inbox. Called without locks. True if there was anything."""
        told = False
        while self.inbox and not self.place.paused:
            with self._guard:
                with self._time.lock:
                    tell = self.inbox.popleft() if self.inbox else None
                if tell is not None:
                    tell()
                    told = True
        return told

    # -- calls

    def ask(self, name: str, function: Callable[[], T]) -> T:
        self._time.deliver()
        try:
            with self._time.lock:
                self.counters[name] += 1
                if self._closed or self._time.ended:
                    raise NotApplied("the client was closed", _ENDPOINT)
                if self.cut:
                    raise NotConnected("cut off by etcdsem.testing", _ENDPOINT)
                return function()
        finally:
            self._time.deliver()

    # -- the watch stream

    def watch(
        self,
        listener: Listener,
        key: bytes,
        end: bytes = b"",
        *,
        start: int = 0,
        only: Literal["put", "delete"] | None = None,
    ) -> WatchHandle:
        entry = WatchEntry(listener, key, end, start, only)
        with self._time.lock:
            self._send([self._book.add(entry)])
        return WatchHandle(self, entry)

    def remove(self, entry: WatchEntry) -> None:
        """Cancel a watch: its listener is not called any more."""
        with self._time.lock:
            request = self._book.remove(entry)
            if request is not None:
                self._send([request])

    def _send(self, requests: Iterable[WatchRequest]) -> None:
        """Send requests to etcd if it is reachable. Called with the lock held."""
        if not self.cut and not self._closed:
            for request in requests:
                self._server.serve(request)

    def _hear(self, response: WatchResponse) -> None:
        """Process a response of etcd. Called with the lock held; `deliver` tells the listeners."""
        tell, send = self._book.heard(response)
        self.inbox.extend(tell)
        self._send(send)

    def set_cut(self, cut: bool) -> None:
        """Cut or restore the connection. Called with the lock held."""
        if cut == self.cut:
            return
        self.cut = cut
        self._generation += 1
        if cut:
            self._server.close()
        else:
            self._send(self._book.reopened())

    # -- the keepalive stream

    def renew(self, lease_id: int) -> None:
        with self._time.lock:
            self.counters["keepalives"] += 1
            if not self.cut and not self._closed:
                answer = partial(self._answered, self._generation, lease_id)
                self._model.keep_alive(lease_id, answer)

    def _answered(self, generation: int, lease_id: int, ttl: int) -> None:
        self.inbox.append(partial(self._tell_renewed, generation, lease_id, ttl))

    def _tell_renewed(self, generation: int, lease_id: int, ttl: int) -> None:
        if generation == self._generation:
            self._renewed(lease_id, float(ttl))

    def restart(self) -> None:
        self._generation += 1

    # -- the clock

    def now(self) -> float:
        return self._time.now

    def wall(self) -> float:
        return self._memory._began + self._time.now

    def close(self) -> None:
        with self._time.lock:
            self._closed = True
            self._server.close()
            for entry in list(self._book.entries):
                self._book.remove(entry)
            if self in self._memory._wires:
                self._memory._wires.remove(self)


class BaseMemory:
    """The keys and leases of an in-memory etcd, and the connections to it."""

    def __init__(self) -> None:
        self.id = uuid.uuid4().hex
        self._pid = os.getpid()
        self._model = EtcdModel()
        self._began = time.time()
        self._cut = False  # also applies to future clients
        self._wires: list[MemoryWire] = []
        self._unpickled: dict[str, object] = {}  # unpickled clients by prefix
        _memories[self.id] = self

    _time: Time

    def client(self, *, prefix: str | None = None) -> object:
        """Create a client."""
        raise NotImplementedError

    def reduced(self, prefix: str) -> tuple[object, ...]:
        """The pickled form of a client."""
        return _rebuild, (self.id, os.getpid(), prefix)

    def _deliver(self) -> bool:
        return max([wire.deliver() for wire in list(self._wires)], default=False)

    def _own(self) -> None:
        if os.getpid() != self._pid:
            raise EtcdSemError(
                f"an in-memory etcd lives in one process: it was created in process {self._pid}, "
                f"and this is process {os.getpid()}"
            )

    @property
    def now(self) -> float:
        """Seconds since it was created, by its own clock."""
        return self._time.now

    def get(self, key: str) -> str | None:
        """The value of a key, or None."""
        with self._time.lock:
            kv = self._model.get(key.encode())
        return kv.value.decode() if kv is not None else None

    def keys(self, prefix: str = "") -> dict[str, str]:
        """All keys that start with `prefix`, and their values."""
        with self._time.lock:
            kvs = self._model.keys()
        return {
            kv.key.decode(): kv.value.decode() for kv in kvs if kv.key.startswith(prefix.encode())
        }

    def leases(self) -> list[str]:
        """All etcd lease IDs, in hex as printed by ``etcdctl lease list``."""
        with self._time.lock:
            return sorted(map(lease_hex, self._model.leases))

    def _put(self, key: str, value: str) -> None:
        with self._time.lock:
            self._model.put(key.encode(), value.encode())

    def _delete(self, key: str, *, prefix: bool) -> int:
        with self._time.lock:
            end = _after(key.encode()) if prefix else b""
            reply = self._model.transact(Txn((), (Delete(key.encode() or b"\0", end),))).replies[0]
        return reply.deleted if isinstance(reply, DeleteReply) else 0

    def _revoke(self, lease_id: str) -> None:
        try:
            with self._time.lock:
                self._model.revoke(int(lease_id, 16))
        except (LeaseNotFound, ValueError) as error:
            raise InvalidSetting(f"etcd has no lease {lease_id!r}") from error

    def _cut_wires(self, wires: list[MemoryWire] | None, cut: bool) -> None:
        with self._time.lock:
            if wires is None:
                self._cut = cut
            for wire in list(self._wires) if wires is None else wires:
                wire.set_cut(cut)

    def _pause_wires(self, wires: list[MemoryWire] | None, paused: bool) -> None:
        with self._time.lock:
            for wire in list(self._wires) if wires is None else wires:
                wire.place.paused = paused


def _rebuild(memory_id: str, pid: int, prefix: str) -> object:
    memory = _memories.get(memory_id)
    if memory is None or pid != os.getpid():
        raise EtcdSemError(
            f"this was pickled with an in-memory etcd of process {pid}, which can be used only in "
            "that process and while it exists"
        )
    if prefix not in memory._unpickled:
        memory._unpickled[prefix] = memory.client(prefix=prefix)
    return memory._unpickled[prefix]


_memories: weakref.WeakValueDictionary[str, BaseMemory] = weakref.WeakValueDictionary()


def _after(prefix: bytes) -> bytes:
    """The end of the range of all keys that start with `prefix`."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else b"\0"
