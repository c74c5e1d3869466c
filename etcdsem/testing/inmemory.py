"""An etcd in memory for unit tests, and clients of it: the library itself, without a network.

1. A client of it is an `etcdsem.Client` like any other. Only what lies below the engine is
   another: requests go to `EtcdModel`, and time is `VirtualTime`. Nothing is implemented twice:
   watches are resumed by the library's own `WatchBook`.
2. Each client stands for a process of its own. Any number of threads may use them.
3. What a call here brings about (a lease that ends, a hand-over, a callback) has happened when
   the call returns. Nothing loads protobuf.
4. What etcd tells a client goes through the line's `inbox` and is delivered under the engine's
   lock, by whichever thread comes by next without holding one.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TypeVar

from etcdsem import sync
from etcdsem.clock import boot_time
from etcdsem.core.commands import (
    Delete,
    DeleteReply,
    LeaseNotFound,
    Listener,
    Mailbox,
    NotApplied,
    NotConnected,
    Txn,
    TxnReply,
)
from etcdsem.core.keys import lease_hex
from etcdsem.core.watchbook import WatchBook, WatchEntry, WatchRequest, WatchResponse
from etcdsem.errors import EtcdSemError, InvalidSetting
from etcdsem.etcd.settings import ConnectionSettings, Endpoint
from etcdsem.model import Duration, seconds
from etcdsem.testing.model import EtcdModel
from etcdsem.testing.virtual import PATIENCE, Box, Place, VirtualTime
from etcdsem.testing.watch_server import WatchServer

T = TypeVar("T")

_ENDPOINT = "in-memory"

SETTINGS = ConnectionSettings((Endpoint(_ENDPOINT, _ENDPOINT),))
"""What stands for the settings of a client in memory."""


class _Watch:
    """A watch that can be cancelled."""

    __slots__ = ("_entry", "_wire")

    def __init__(self, wire: Wire, entry: WatchEntry) -> None:
        self._wire = wire
        self._entry = entry

    def cancel(self) -> None:
        self._wire.remove(self._entry)


class Time(Protocol):
    """What a wire needs to know of time; `lock` guards the model too."""

    @property
    def lock(self) -> AbstractContextManager[Any]: ...
    @property
    def now(self) -> float: ...
    @property
    def ended(self) -> bool: ...
    @property
    def deliver(self) -> Callable[[], bool]: ...


class Wire:
    """What lies between one client and the etcd in memory, for threads and for coroutines."""

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
        """Tell what has come; without locks."""
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
                    raise NotConnected("it was cut off (etcdsem.testing)", _ENDPOINT)
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
    ) -> _Watch:
        entry = WatchEntry(listener, key, end, start, only)
        with self._time.lock:
            self._send([self._book.add(entry)])
        return _Watch(self, entry)

    def remove(self, entry: WatchEntry) -> None:
        """Cancel a watch: its listener hears nothing more."""
        with self._time.lock:
            request = self._book.remove(entry)
            if request is not None:
                self._send([request])

    def _send(self, requests: Iterable[WatchRequest]) -> None:
        """With the lock held: etcd gets them, if it can be reached."""
        if not self.cut and not self._closed:
            for request in requests:
                self._server.serve(request)

    def _hear(self, response: WatchResponse) -> None:
        """With the lock held: etcd answers. Listeners are told by `deliver`."""
        tell, send = self._book.heard(response)
        self.inbox.extend(tell)
        self._send(send)

    def set_cut(self, cut: bool) -> None:
        """With the lock held: the way to etcd is gone, or there again."""
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


class _Line(Wire):
    """Calls, watches, renewals and the clock of a blocking client, in one."""

    def __init__(
        self,
        memory: Memory,
        guard: AbstractContextManager[Any],
        renewed: Callable[[int, float], None],
    ) -> None:
        super().__init__(memory, memory._time, guard, renewed)
        self._clock = memory._time

    def transact(self, txn: Txn, timeout: float) -> TxnReply:
        return self.ask("txn" if txn.compare else "read", lambda: self._model.transact(txn))

    def grant(self, lease_id: int, ttl: int, timeout: float) -> float:
        return self.ask("grant", lambda: float(self._model.grant(lease_id, ttl)))

    def revoke(self, lease_id: int, timeout: float) -> None:
        self.ask("revoke", lambda: self._model.revoke(lease_id))

    def times_to_live(self, lease_ids: Sequence[int], timeout: float) -> tuple[float | None, ...]:
        return self.ask("time_to_live", lambda: tuple(map(self._model.time_to_live, lease_ids)))

    def mailbox(self) -> Mailbox:
        return Box(self._clock, self.place)

    def wait(self, box: Mailbox, until: float) -> object:
        if not isinstance(box, Box):
            raise AssertionError("a mailbox of another driver")
        return self._clock.wait(box, until)

    def start(self, function: Callable[[], None], name: str) -> None:
        self._clock.start(function, name)

    def busy(self) -> AbstractContextManager[object]:
        return self._clock.busy()


class MemoryClient(sync.Client):
    """A client of an etcd in memory."""

    def __init__(self, memory: Memory, *, prefix: str | None = None) -> None:
        super().__init__(SETTINGS, prefix=prefix)
        self._memory = memory
        self._line: _Line | None = None

    def __reduce__(self) -> tuple[object, ...]:
        return self._memory.reduced(self.prefix)

    def _dial(
        self, guard: AbstractContextManager[Any], renewed: Callable[[int, float], None]
    ) -> sync.Line:
        line = self._line = self._memory._dial(guard, renewed)
        return sync.Line(line, line, line, line)

    @property
    def requests(self) -> Counter[str]:
        """How often it has asked etcd for what: txn, read, grant, revoke, keepalives."""
        return Counter(self._line.counters) if self._line is not None else Counter()


class BaseMemory:
    """The keys and leases of an etcd in memory, and the ways to it."""

    def __init__(self) -> None:
        self.id = uuid.uuid4().hex
        self._pid = os.getpid()
        self._model = EtcdModel()
        self._began = time.time()
        self._cut = False  # also for clients that are still to come
        self._wires: list[Wire] = []
        self._unpickled: dict[str, object] = {}  # clients that were pickled, by prefix
        _memories[self.id] = self

    _time: Time

    def client(self, *, prefix: str | None = None) -> object:
        """A client of it."""
        raise NotImplementedError

    def reduced(self, prefix: str) -> tuple[object, ...]:
        """How a client of it is pickled."""
        return _rebuild, (self.id, os.getpid(), prefix)

    def _deliver(self) -> bool:
        return max([wire.deliver() for wire in list(self._wires)], default=False)

    def _own(self) -> None:
        if os.getpid() != self._pid:
            raise EtcdSemError(
                f"an etcd in memory lives in one process: it was made in {self._pid}, and this "
                f"is {os.getpid()}"
            )

    @property
    def now(self) -> float:
        """Seconds since it was made, by its own clock."""
        return self._time.now

    def get(self, key: str) -> str | None:
        """The value of a key, or None."""
        with self._time.lock:
            kv = self._model.get(key.encode())
        return kv.value.decode() if kv is not None else None

    def keys(self, prefix: str = "") -> dict[str, str]:
        """All keys that begin with a prefix, and their values."""
        with self._time.lock:
            kvs = self._model.keys()
        return {
            kv.key.decode(): kv.value.decode() for kv in kvs if kv.key.startswith(prefix.encode())
        }

    def leases(self) -> list[str]:
        """All etcd leases, in hex as ``etcdctl lease list`` prints them."""
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

    def _cut_wires(self, wires: list[Wire] | None, cut: bool) -> None:
        with self._time.lock:
            if wires is None:
                self._cut = cut
            for wire in list(self._wires) if wires is None else wires:
                wire.set_cut(cut)

    def _pause_wires(self, wires: list[Wire] | None, paused: bool) -> None:
        with self._time.lock:
            for wire in list(self._wires) if wires is None else wires:
                wire.place.paused = paused


def _rebuild(memory_id: str, pid: int, prefix: str) -> object:
    memory = _memories.get(memory_id)
    if memory is None or pid != os.getpid():
        raise EtcdSemError(
            f"this was pickled with an etcd in memory, which was only in process {pid}, "
            "and while it lasted"
        )
    if prefix not in memory._unpickled:
        memory._unpickled[prefix] = memory.client(prefix=prefix)
    return memory._unpickled[prefix]


_memories: weakref.WeakValueDictionary[str, BaseMemory] = weakref.WeakValueDictionary()


class Memory(BaseMemory):
    """An etcd in memory; made by `etcdsem.testing.memory()`.

    As a context manager it closes its clients at the end. Times are seconds, or ``"1m30s"``, or a
    timedelta.
    """

    def __init__(self, *, autojump: Duration = "1h") -> None:
        super().__init__()
        self._time: VirtualTime = VirtualTime(
            self._model, by_itself=seconds(autojump, what="autojump")
        )
        self._time.deliver = self._deliver
        self._clients: list[MemoryClient] = []

    def __repr__(self) -> str:
        return f"<etcdsem.testing.Memory, {len(self.keys())} keys, at {self.now:g} s>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all clients; threads that wait get an error. Closing twice is fine."""
        for client in self._clients:
            client.close()
        self._time.settle()
        self._time.end()
        self._time.settle()

    # -- clients

    def client(self, *, prefix: str | None = None) -> MemoryClient:
        """A new client: as if of another process."""
        client = MemoryClient(self, prefix=prefix)
        self._clients.append(client)
        return client

    @contextlib.contextmanager
    def default(self, client: sync.Client | None = None) -> Iterator[sync.Client]:
        """Within the block, semaphores that were given no client use this etcd.

        Gives the client that they use: `client`, or a new one. It does not reach code that calls
        `etcdsem.connect()` itself, nor other processes.
        """
        chosen = client if client is not None else self.client()
        former = sync.swap_default_client(chosen)
        try:
            yield chosen
        finally:
            sync.swap_default_client(former)

    def _dial(
        self, guard: AbstractContextManager[Any], renewed: Callable[[int, float], None]
    ) -> _Line:
        self._own()
        line = _Line(self, guard, renewed)
        with self._time.lock:
            self._wires.append(line)
        return line

    # -- time

    def advance(self, duration: Duration) -> None:
        """Let time pass, with everything that happens meanwhile: leases are refreshed, or end;
        who waits in another thread until then is woken.
        """
        self._time.move(seconds(duration, what="advance"))

    def suspend(self, duration: Duration) -> None:
        """Let time pass for etcd while all clients stand still, as when the machine slept."""
        self._time.jump(seconds(duration, what="suspend"))

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Wait until other threads have done something (stand in line, say); time stands still.

        Raises TimeoutError when the condition has not come about within 30 real seconds.
        """
        until = boot_time() + PATIENCE
        while not condition():
            if boot_time() > until:
                raise TimeoutError(f"{condition!r} did not come about; time stands still: advance?")
            time.sleep(0.001)
        self._time.settle()

    # -- troubles

    def cut(self, *clients: sync.Client) -> None:
        """Etcd is away: for these clients, or for all."""
        self._cut_wires(self._of(clients), True)
        self._happen()

    def restore(self, *clients: sync.Client) -> None:
        """Etcd is there again: for these clients, or for all."""
        self._cut_wires(self._of(clients), False)
        self._happen()

    def pause(self, *clients: sync.Client) -> None:
        """These clients (or all) stand still, like a process that was stopped: they refresh
        nothing and hear nothing until `resume`. Threads that call them meanwhile may hang.
        """
        self._pause_wires(self._of(clients), True)
        self._happen()

    def resume(self, *clients: sync.Client) -> None:
        """They go on."""
        self._pause_wires(self._of(clients), False)
        with self._time.lock:
            self._time.wake_due()
        self._happen()

    def _of(self, clients: Sequence[sync.Client]) -> list[Wire] | None:
        if not clients:
            return None
        wires: list[Wire] = []
        for client in clients:
            if not isinstance(client, MemoryClient) or client._memory is not self:
                raise InvalidSetting(f"{client!r} is no client of this etcd")
            _ = client.engine  # its line is made on first use
            if client._line is not None:
                wires.append(client._line)
        return wires

    def _happen(self) -> None:
        self._time.stir()
        self._time.settle()

    # -- what an operator does with etcdctl

    def put(self, key: str, value: str) -> None:
        """Write a key, with no lease, as ``etcdctl put`` does."""
        self._put(key, value)
        self._happen()

    def delete(self, key: str, *, prefix: bool = False) -> int:
        """Delete a key, or all that begin so; gives how many there were."""
        deleted = self._delete(key, prefix=prefix)
        self._happen()
        return deleted

    def expire(self, lease: sync.Lease | str) -> None:
        """End an etcd lease, with its keys: a `Lease`, or its id in hex.

        Half a second passes before: by then a holder watches its key, and so is told at once.
        Raises InvalidSetting if there is none.
        """
        self._time.move(0.5)
        self._revoke(lease if isinstance(lease, str) else lease.id)
        self._happen()


def _after(prefix: bytes) -> bytes:
    """The end of the range of all keys that begin with a prefix."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else b"\0"


def memory(*, autojump: Duration = "1h") -> Memory:
    """An etcd in memory, for tests: no server, no network, and its time stands still.

    Args:
        autojump: when the thread that made it has to wait itself, nobody could move time; so
            after a short stillness (50 ms) time jumps from one event to the next, for so long at
            most. ``0``: never, only `advance` moves time.

    Returns:
        A `Memory`; best used in a ``with`` block.
    """
    return Memory(autojump=autojump)
