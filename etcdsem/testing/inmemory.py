"""An in-memory etcd for unit tests, and its clients: the library itself, without a network.

1. Its clients are ordinary `etcdsem.Client` objects; only the layers below the engine differ:
   requests go to `EtcdModel`, and time is `VirtualTime`. Nothing is implemented twice: watches are
   resumed by the library's own `WatchBook`.
2. Each client stands for a separate process. Any number of threads may use them.
3. All effects of a call (a lease that ends, a hand-over, a callback) have happened when the call
   returns. Nothing loads protobuf.
4. What etcd tells a client goes through the line's `inbox`. The next thread that comes by without
   holding a lock delivers it under the engine's lock.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Self

from etcdsem import sync
from etcdsem.clock import boot_time
from etcdsem.core.commands import Mailbox, Txn, TxnReply
from etcdsem.drivers import threads
from etcdsem.errors import InvalidSetting
from etcdsem.model import Duration
from etcdsem.testing.base import SETTINGS, BaseMemory, MemoryWire
from etcdsem.testing.virtual import PATIENCE, VirtualMailbox, VirtualTime
from etcdsem.validation import seconds


class _Line(MemoryWire):
    """The calls, watches, renewals and clock of a blocking client in one object."""

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
        return VirtualMailbox(self._clock, self.place)

    def wait(self, box: Mailbox, until: float) -> object:
        if not isinstance(box, VirtualMailbox):
            raise AssertionError("the mailbox belongs to another driver")
        return self._clock.wait(box, until)

    def start(self, function: Callable[[], None], name: str) -> None:
        self._clock.start(function, name)

    def busy(self) -> AbstractContextManager[object]:
        return self._clock.busy()


class MemoryClient(sync.Client):
    """A client of an in-memory etcd."""

    def __init__(self, memory: Memory, *, prefix: str | None = None) -> None:
        super().__init__(SETTINGS, prefix=prefix)
        self._memory = memory
        self._line: _Line | None = None

    def __reduce__(self) -> tuple[object, ...]:
        return self._memory.reduced(self.prefix)

    def _dial(
        self, guard: AbstractContextManager[Any], renewed: Callable[[int, float], None]
    ) -> threads.Backend:
        line = self._line = self._memory._dial(guard, renewed)
        return threads.Backend(line, line, line, line)

    @property
    def requests(self) -> Counter[str]:
        """Number of requests to etcd by kind: txn, read, grant, revoke, keepalives."""
        return Counter(self._line.counters) if self._line is not None else Counter()


class Memory(BaseMemory):
    """An in-memory etcd; created by `etcdsem.testing.memory()`.

    As a context manager it closes its clients at the end. Durations are seconds, ``"1m30s"``, or a
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
        """Close all clients; waiting threads get an error. Closing twice is harmless."""
        for client in self._clients:
            client.close()
        self._time.settle()
        self._time.end()
        self._time.settle()

    # -- clients

    def client(self, *, prefix: str | None = None) -> MemoryClient:
        """Create a client that behaves as if it ran in another process."""
        client = MemoryClient(self, prefix=prefix)
        self._clients.append(client)
        return client

    @contextlib.contextmanager
    def default(self, client: sync.Client | None = None) -> Iterator[sync.Client]:
        """Within the block, semaphores without an explicit client use this etcd.

        Yields the client that they use: `client`, or a new one. Code that calls
        `etcdsem.connect()` itself and other processes are unaffected.
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
        """Let time pass, including everything that happens in it: leases are refreshed, or end;
        threads that wait until then are woken.
        """
        self._time.move(seconds(duration, what="advance"))

    def suspend(self, duration: Duration) -> None:
        """Let time pass for etcd while all clients are suspended, as if the machine slept."""
        self._time.jump(seconds(duration, what="suspend"))

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Wait until other threads have done something (joined a queue, say); time stands still.

        Raises TimeoutError if the condition is not met within 30 real seconds.
        """
        until = boot_time() + PATIENCE
        while not condition():
            if boot_time() > until:
                raise TimeoutError(f"{condition!r} was not met; time stands still: call advance()?")
            time.sleep(0.001)
        self._time.settle()

    # -- faults

    def cut(self, *clients: sync.Client) -> None:
        """Make etcd unreachable for these clients, or for all."""
        self._cut_wires(self._of(clients), True)
        self._happen()

    def restore(self, *clients: sync.Client) -> None:
        """Make etcd reachable again for these clients, or for all."""
        self._cut_wires(self._of(clients), False)
        self._happen()

    def pause(self, *clients: sync.Client) -> None:
        """Suspend these clients (or all) like a stopped process: they refresh nothing and receive
        nothing until `resume`. Threads that call them meanwhile may hang.
        """
        self._pause_wires(self._of(clients), True)
        self._happen()

    def resume(self, *clients: sync.Client) -> None:
        """Resume these clients, or all."""
        self._pause_wires(self._of(clients), False)
        with self._time.lock:
            self._time.wake_due()
        self._happen()

    def _of(self, clients: Sequence[sync.Client]) -> list[MemoryWire] | None:
        if not clients:
            return None
        wires: list[MemoryWire] = []
        for client in clients:
            if not isinstance(client, MemoryClient) or client._memory is not self:
                raise InvalidSetting(f"{client!r} is not a client of this etcd")
            _ = client._driver  # its line is created on first use
            if client._line is not None:
                wires.append(client._line)
        return wires

    def _happen(self) -> None:
        self._time.stir()
        self._time.settle()

    # -- what an operator does with etcdctl

    def put(self, key: str, value: str) -> None:
        """Write a key without a lease, as ``etcdctl put`` does."""
        self._put(key, value)
        self._happen()

    def delete(self, key: str, *, prefix: bool = False) -> int:
        """Delete a key, or with `prefix` all keys that start with it. Returns their number."""
        deleted = self._delete(key, prefix=prefix)
        self._happen()
        return deleted

    def expire(self, lease: sync.Lease | str) -> None:
        """End an etcd lease and delete its keys. `lease` is a `Lease`, or its ID in hex.

        Half a second passes first, so that a holder watches its key and notices at once. Raises
        InvalidSetting if there is no such lease.
        """
        self._time.move(0.5)
        self._revoke(lease if isinstance(lease, str) else lease.id)
        self._happen()


def memory(*, autojump: Duration = "1h") -> Memory:
    """Create an in-memory etcd for tests: no server, no network, and its time stands still.

    Args:
        autojump: if the thread that created it waits itself, nobody could move time; so after
            50 ms without activity time jumps from one event to the next, by at most this duration.
            ``0`` disables that: only `advance` moves time.

    Returns:
        A `Memory`; best used in a ``with`` block.
    """
    return Memory(autojump=autojump)
