# Generated from etcdsem/aio/semaphore.py by tests/make_blocking.py: edit that file.
"""`Semaphore`: a counting semaphore that lives in etcd."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from etcdsem.facade.semaphore import check_dask_arguments, read_demand
from etcdsem.model import Duration, Holder, Status, Waiter
from etcdsem.sync.blocks import HoldBlock, LeasingSemaphore
from etcdsem.sync.client import Client
from etcdsem.sync.lease import Lease


class Semaphore(LeasingSemaphore):
    """A counting semaphore that lives in etcd, shared by any processes anywhere.

    The blocking class registers it in its constructor, which asks etcd and may therefore block for
    the client's `dial_timeout`; with ``register=False`` it does not.

    Args:
        max_leases: the limit, if the semaphore is new; else it must equal the registered limit,
            unless an operator has resized it. None takes what is registered.
        name: 1 to 128 of ``A-Z a-z 0-9 . _ -``; None generates a unique name.
        register: write the limit to etcd if the semaphore is new: the blocking class at once, that
            of `etcdsem.aio` when it is awaited (``Semaphore(...)``) or first used.
        scheduler_rpc: for compatibility with Dask; must be None. Use `client`.
        loop: for compatibility with Dask; ignored.
        client: from `connect()`, or (blocking class only) a python-etcd3 client; None: the default
            client, which belongs to the process, or in `etcdsem.aio` to the event loop.
        lease_timeout: etcd frees a slot this long after the last refresh of its lease. Whole
            seconds, at least 2; default ``ETCDSEM_LEASE_TIMEOUT``, else, if Dask is loaded, its
            ``distributed.scheduler.locks.lease-timeout``, else 30 s.
        refresh_interval: seconds between refreshes; default ``ETCDSEM_REFRESH_INTERVAL``, else a
            third of the lease timeout.
        on_lost: called once with each `Lease` that is lost: by the blocking class in a thread of
            its own, in `etcdsem.aio` in the event loop, where it may be a coroutine function.
        labels: shown to operators, at most 16, together with those of ``ETCDSEM_LABELS``.
        prefix: of the keys in etcd; default the client's, else ``/etcdsem``.
        owner: the name that operators see; default ``ETCDSEM_OWNER``, else ``host:pid``.
        raise_on_loss: whether a block raises LeaseLost at its end if its lease was lost.
        max_hold: a lease ends this long after its grant, by this machine's clock: it is lost, and
            the next waiter gets the slot at once. A warning is logged when a tenth of it, at most
            60 s, is left. None: no maximum.
        rate: ``"100/1m"``: a limit on the leases that begin per period. Each lease needs a permit
            of the rate limit ``<name>.rate``, which is registered too (see `RateLimit`); the call
            waits for the lease, then for the permit while it holds the lease. `max_hold` counts
            meanwhile. `close` does not remove the rate limit.
        linger: a released slot stays with its client for this long, at most 1 s, and the next
            acquire of the same client with the same settings takes it without asking etcd: for
            programs that acquire and release many times a second. In etcd the slot stays held, and
            its fencing token stays the same. It is given back at once when anybody waits, and at
            the latest at the first release 1 s after etcd granted it. None: given back at once.
        max_waiting: how many callers may wait in the queue, on all machines together; one that
            would wait beyond them gets `QueueFull` at once. 0: never wait. None: any number.
        expires: a new name leaves etcd when nobody has used it for this long (to within a minute),
            at least 10 minutes: ``"7d"``. Holders, waiters and calls of acquire use it. An object
            that finds it gone registers it again. None: it stays, and a generated name expires
            after a day.

    Raises:
        InconsistentLimit: another limit is registered, or one that cannot be read.
        InvalidName, InvalidSetting: an argument is invalid.
        TypeError: `scheduler_rpc` was given, or `client` is not a client.
        EtcdUnavailable, PermissionDenied, EtcdRefused: it could not be registered.
    """

    def __init__(
        self,
        max_leases: int | None = 1,
        name: str | None = None,
        register: bool = True,
        scheduler_rpc: None = None,
        loop: object = None,
        *,
        client: Client | None = None,
        lease_timeout: Duration | None = None,
        refresh_interval: Duration | None = None,
        on_lost: Callable[[Lease], object] | None = None,
        labels: Mapping[str, str] | None = None,
        prefix: str | None = None,
        owner: str | None = None,
        raise_on_loss: bool = True,
        max_hold: Duration | None = None,
        rate: str | None = None,
        linger: Duration | None = None,
        max_waiting: int | None = None,
        expires: Duration | None = None,
    ) -> None:
        self._bind(client, register=check_dask_arguments(register, scheduler_rpc))
        super().__init__(
            max_leases,
            name,
            lease_timeout=lease_timeout,
            refresh_interval=refresh_interval,
            on_lost=on_lost,
            labels=labels,
            prefix=prefix,
            owner=owner,
            raise_on_loss=raise_on_loss,
            max_hold=max_hold,
            rate=rate,
            linger=linger,
            max_waiting=max_waiting,
            expires=expires,
        )
        self._register_now()

    def acquire(
        self,
        timeout: Duration | None = None,
        *,
        weight: int = 1,
        priority: int = 0,
        backfill: bool = False,
        eager: bool | None = None,
    ) -> bool:
        """Wait for a lease. A cancelled call leaves the queue, and gives back what was granted.

        Args:
            timeout: seconds, ``"1m30s"`` or a timedelta. None waits forever, 0 tries once.
            weight: slots that the lease takes, 1 to 32: all or none.
            priority: -100 to 100. The highest waits least, equals in order of arrival. Held leases
                are never preempted.
            backfill: take a free slot while the first waiter needs more than are free. Many such
                calls can starve that waiter.
            eager: deprecated name of `backfill`.

        Returns:
            True if a lease was granted, False if the timeout came first. The call may last
            slightly longer while it leaves the queue.

        Raises:
            SemaphoreClosed: the semaphore is not registered (any more).
            QueueFull: as many as `max_waiting` wait already.
            Evicted: an operator removed this waiter (`evict`).
            WeightExceedsLimit: `weight` exceeds the limit, or a limit lowered meanwhile (not 0).
            EtcdUnavailable: etcd was unreachable for the whole timeout; without one, for the
                client's `dial_timeout` at first contact, or later for 60 s.
            EtcdSemError: no thread could be started to refresh the lease, or the client is closed.
        """
        return self._acquired(timeout, read_demand(weight, priority, backfill, eager))

    def acquire_lease(
        self,
        timeout: Duration | None = None,
        *,
        weight: int = 1,
        priority: int = 0,
        backfill: bool = False,
        eager: bool | None = None,
        on_wait: Callable[[], object] | None = None,
    ) -> Lease | None:
        """Like `acquire`, but returns the `Lease`, or None.

        `on_wait` is called once the call has to wait: by the blocking class in a thread of its own,
        in `etcdsem.aio` in the event loop, where it may be a coroutine function.
        """
        demand = read_demand(weight, priority, backfill, eager)
        return self._acquired_lease(timeout, on_wait, demand)

    def release(self) -> bool:
        """Give back this object's oldest lease: a lost one first, one that a caller or a block has
        in hand (`acquire_lease`, `hold`, ``with``) last. Any thread or task may call this.

        Returns:
            True if etcd confirmed it. False if etcd did not within about 5 seconds (the TTL will
            free the slot), or the lease was lost before (a warning is logged), or this is a
            finalizer or signal handler that interrupted etcdsem: then another thread gives the
            lease back a moment later.

        Raises:
            ReleasedTooOften: this object holds no lease; nothing changes in etcd.
            WrongEventLoop: it was acquired in another event loop.
        """
        return self._release_oldest()

    def hold(
        self,
        timeout: Duration | None = None,
        *,
        weight: int = 1,
        priority: int = 0,
        backfill: bool = False,
        eager: bool | None = None,
    ) -> HoldBlock:
        """Hold a lease for the length of a ``with`` block, which gives the `Lease`.
        Arguments as for `acquire`. It is also a decorator: ``@semaphore.hold("5s")``.

        Raises:
            AcquireTimeout: the timeout came first; the body did not run.
            LeaseLost: at the end of the block, if the lease was lost (see `raise_on_loss`).
        """
        return HoldBlock(self, timeout, read_demand(weight, priority, backfill, eager))

    def _block(self) -> HoldBlock:
        return self.hold()

    def get_value(self) -> int:
        """The number of slots held now, by anyone."""
        return self._run(self._counting(self._state()), "count the leases of")

    def resize(self, max_leases: int) -> None:
        """Change the limit for everybody while it is in use. Waiters get new slots at once; leases
        above a lowered limit stay held. 0 grants nothing. A pause stays in force.
        """
        self._run(self._resizing(self._state(), max_leases), "resize")

    def drain(self, timeout: Duration | None = None, *, reason: str | None = None) -> bool:
        """Pause it and wait until nobody holds a lease, this object included. It stays paused.

        Args:
            timeout: seconds, ``"1m30s"`` or a timedelta. None waits forever, 0 checks once.
            reason: as for `pause`. A semaphore that is already paused keeps its reason.

        Returns:
            True if it has no holder, False if it has one at the timeout.

        Raises:
            EtcdSemError: somebody resumed it meanwhile.
        """
        return self._run(self._draining(self._state(), timeout, reason), "drain")

    def status(self, *, ttl: bool = True) -> Status:
        """Holders and waiters at one revision. `ttl`: also ask how long each lease has left."""
        return self._run(self._status(self._state(), ttl=ttl), "look at")

    def holders(self) -> tuple[Holder, ...]:
        """The holders now, in the order of their slots."""
        return (self.status()).holders

    def waiters(self) -> tuple[Waiter, ...]:
        """The waiters now, in the order in which they will be served."""
        return (self.status()).waiters

    def close(self) -> None:
        """Remove the semaphore from etcd, for everybody. Closing twice is fine.

        If it is in use, a warning names the holders. They lose their leases, and waiters get
        SemaphoreClosed at once.
        """
        self._run(self._closing(self._state()), "close")


__all__ = ["Semaphore"]
