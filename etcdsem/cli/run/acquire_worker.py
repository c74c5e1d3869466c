"""In line for a lease, and its giving back: what `run` and `hold` do alike.

1. A thread stands in line, so that the main one hears signals. One that says to stop raises
   `Stopped`; `give_back()` then closes the client, and with it leaves the line.
2. Whatever ends the command, everything is given back; if etcd cannot be told within two seconds,
   the TTL does it.
"""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import click

from etcdsem.cli import exit_codes
from etcdsem.cli.options import DIAL_TIMEOUT, connect
from etcdsem.cli.output import exact, say
from etcdsem.cli.progress import ProgressLine
from etcdsem.cli.run.multi import acquire_multi
from etcdsem.cli.run.request import LeaseRequest
from etcdsem.cli.signals import Signals, Stopped
from etcdsem.cli.worker import Worker
from etcdsem.clock import boot_time
from etcdsem.errors import EtcdUnavailable, SemaphoreClosed

if TYPE_CHECKING:
    from etcdsem import Client, Lease, Semaphore, Start
    from etcdsem.cli.run.multi import MultiLease

T = TypeVar("T")

_Acquire: TypeAlias = Callable[[float | None, Callable[..., None]], T | None]
"""Gets the seconds that are left, and whom to tell that one has to wait."""

LAST_WORDS = 2.0
"""Seconds for telling etcd at the end."""


def connect_for(ctx: click.Context, request: LeaseRequest) -> Client:
    """A client that gives up on an etcd that never answered after --wait, if that is short."""
    return connect(ctx, dial_timeout=min(DIAL_TIMEOUT, request.wait or DIAL_TIMEOUT))


def wait_for_lease(request: LeaseRequest, client: Client, signals: Signals) -> Lease | None:
    """In line, until it is our turn; None when the time was up (and that is said)."""

    def ready() -> _Acquire[Lease]:
        semaphore = _semaphore(request, client, signals)
        return lambda left, on_wait: semaphore.acquire_lease(
            left,
            weight=request.weight,
            priority=request.priority,
            backfill=request.eager,
            on_wait=on_wait,
        )

    return _wait(ready, request, client, signals, "no lease was free", "status")


def wait_for_leases(
    request: LeaseRequest, client: Client, signals: Signals
) -> Lease | MultiLease | None:
    """The same for a lease of each of several semaphores, if several are named."""
    if not request.more:
        return wait_for_lease(request, client, signals)

    def ready() -> _Acquire[MultiLease]:
        semaphores = [_semaphore(one, client, signals) for one in _each(request)]
        return lambda left, on_wait: acquire_multi(semaphores, left, on_wait)

    return _wait(ready, request, client, signals, "no lease was free", "status")


def wait_for_start(request: LeaseRequest, client: Client, signals: Signals) -> Start | None:
    """The same for a start of a rate limit."""

    def ready() -> _Acquire[Start]:
        from etcdsem import RateLimit

        rate = request.rate
        if rate is None:
            raise AssertionError("no rate is wanted")
        limit = RateLimit(
            request.name,
            rate.starts,
            rate.period,
            block=rate.block,
            client=client,
            labels=request.labels,
        )
        return lambda left, on_wait: limit.acquire(left, on_wait=on_wait)

    return _wait(ready, request, client, signals, "no start was free", "rate")


def _wait(
    ready: Callable[[], _Acquire[T]],
    request: LeaseRequest,
    client: Client,
    signals: Signals,
    none: str,
    command: str,
) -> T | None:
    until = math.inf if request.wait is None else boot_time() + request.wait
    progress = ProgressLine(client, request.name, quiet=request.quiet)
    in_touch = threading.Event()  # etcd has answered

    def call() -> T | None:
        acquire = ready()
        in_touch.set()
        left = None if until == math.inf else max(0.0, until - boot_time())
        return acquire(left, progress.start)

    worker = Worker(call, signals, name="acquire")
    try:
        while not worker.done:
            left = until - boot_time()
            if request.wait and left <= 0 and not in_touch.is_set():
                raise EtcdUnavailable(
                    f"{request.name}: etcd cannot be reached within --wait {exact(request.wait)}. "
                    "Check that it runs and that the endpoints are right (ETCDSEM_ENDPOINTS)."
                )
            signals.stop(min(left, 60.0) if left > 0 else 1.0)
        result = worker.result()
    finally:
        progress.stop()
    if result is None:
        waited = f" within {exact(request.wait)}" if request.wait else ""
        if request.more:
            say(f"{request.shown}: not all had a free lease{waited} (see: etcdsem ls)")
        else:
            say(f"{request.name}: {none}{waited} (see: etcdsem {command} {request.name})")
    return result


def stopped_in_line(stopped: Stopped, shown: str) -> int:
    """Say that a signal has ended the wait; gives the exit code."""
    say(f"{signal.Signals(stopped.number).name} while waiting for {shown}: left the line")
    return exit_codes.SIGNAL + stopped.number


def give_back(name: str, lease: Lease | MultiLease | None, client: Client) -> None:
    """Let go of everything that is still held."""

    def tell() -> None:
        if lease is not None:
            lease.release()
        client.close()

    worker = threading.Thread(target=tell, daemon=True)
    worker.start()
    worker.join(LAST_WORDS)
    if worker.is_alive() and lease is not None:
        say(
            f"note: etcd could not be told that the lease on {name} is free; "
            f"it ends by itself within {exact(lease.ttl)}"
        )


def _semaphore(request: LeaseRequest, client: Client, signals: Signals) -> Semaphore:
    """First contact with etcd: the limit is registered, or found to be."""
    from etcdsem import Semaphore

    try:
        return Semaphore(
            request.limit,
            request.name,
            client=client,
            lease_timeout=request.ttl,
            refresh_interval=request.refresh,
            labels=request.labels,
            max_hold=request.max_hold,
            rate=None if request.rate is None else str(request.rate),
            on_lost=lambda lease: signals.wake(),
        )
    except SemaphoreClosed:
        raise SemaphoreClosed(
            f"{request.name} is not registered yet: give "
            f"{f'{request.name}=N' if request.one_of else '--limit N'} to do so"
        ) from None


def _each(request: LeaseRequest) -> list[LeaseRequest]:
    """The same request for each of several semaphores."""
    named = ((request.name, request.limit), *request.more)
    return [request._replace(name=name, limit=limit, more=(), one_of=True) for name, limit in named]
