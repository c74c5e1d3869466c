"""Waiting for a lease and releasing it, shared by `run` and `hold`.

1. A thread waits in the queue, so that the main thread can handle signals. A signal to stop raises
   `Stopped`; `give_back()` then closes the client, which leaves the queue.
2. However the command ends, everything is released; if etcd does not answer within two seconds,
   the leases end by their TTL.
"""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import click

from etcdsem.cli import exit_codes
from etcdsem.cli.options import DIAL_TIMEOUT, connect
from etcdsem.cli.output import exact, pause_text, say
from etcdsem.cli.progress import ProgressLine
from etcdsem.cli.run.contact import ContactReport
from etcdsem.cli.run.multi import acquire_multi
from etcdsem.cli.run.request import LeaseRequest
from etcdsem.cli.signals import Signals, Stopped
from etcdsem.cli.worker import StarvedCheck, Worker
from etcdsem.clock import boot_time
from etcdsem.errors import EtcdSemError, EtcdUnavailable, QueueFull, SemaphoreClosed

if TYPE_CHECKING:
    from etcdsem import Client, Lease, Permit, Semaphore
    from etcdsem.cli.run.multi import MultiLease

T = TypeVar("T")

_Acquire: TypeAlias = Callable[[float | None, Callable[..., None]], T | None]
"""Takes the seconds that are left, and a callback for when it has to wait."""

RELEASE_TIMEOUT = 2.0
"""Seconds for releasing everything at the end."""

_TICK = 0.5
"""Seconds between two checks while waiting."""


class _TooLong(BaseException):
    """The release took longer than `RELEASE_TIMEOUT`."""


def connect_for(ctx: click.Context, request: LeaseRequest) -> Client:
    """Return a client that gives up on an etcd that does not answer after --etcd-wait, or after
    --wait if that is shorter.
    """
    client = connect(ctx)
    first = request.etcd_wait or DIAL_TIMEOUT
    client.settings = replace(
        client.settings,
        dial_timeout=min(first, request.wait or first),
        patience=request.etcd_wait,
    )
    return client


def wait_for_lease(request: LeaseRequest, client: Client, signals: Signals) -> Lease | None:
    """Wait for a lease; return None, and print a message, when the time is up."""

    def ready() -> _Acquire[Lease]:
        semaphore = _semaphore(request, client, signals)
        return lambda left, on_wait: semaphore.acquire_lease(
            left,
            weight=request.weight,
            priority=request.priority,
            backfill=request.backfill,
            on_wait=on_wait,
        )

    return _wait(ready, request, client, signals, "no lease was free", "status")


def wait_for_leases(
    request: LeaseRequest, client: Client, signals: Signals
) -> Lease | MultiLease | None:
    """Wait for a lease of each semaphore, if several are named, like `wait_for_lease()`."""
    if not request.more:
        return wait_for_lease(request, client, signals)

    def ready() -> _Acquire[MultiLease]:
        semaphores = [_semaphore(one, client, signals) for one in _each(request)]
        return lambda left, on_wait: acquire_multi(semaphores, left, on_wait)

    return _wait(ready, request, client, signals, "no lease was free", "status")


def wait_for_permit(request: LeaseRequest, client: Client, signals: Signals) -> Permit | None:
    """Wait for a permit of a rate limit, like `wait_for_lease()`."""

    def ready() -> _Acquire[Permit]:
        from etcdsem import RateLimit

        rate = request.rate
        if rate is None:
            raise AssertionError("no rate requested")
        limit = RateLimit(
            request.name,
            rate.starts,
            rate.period,
            block=rate.block,
            client=client,
            labels=request.labels,
            max_waiting=request.max_waiting,
            expires=request.expires or None,
        )
        return lambda left, on_wait: limit.acquire(left, cost=request.cost, on_wait=on_wait)

    return _wait(ready, request, client, signals, "no permit was free", "rate")


def _wait(
    ready: Callable[[], _Acquire[T]],
    request: LeaseRequest,
    client: Client,
    signals: Signals,
    none: str,
    command: str,
) -> T | None:
    """Wait for what `ready` acquires; return None, and print a message, if there is no hope."""
    try:
        return _acquired(ready, request, client, signals, none, command)
    except QueueFull as full:
        say(str(full))
        return None


def _acquired(
    ready: Callable[[], _Acquire[T]],
    request: LeaseRequest,
    client: Client,
    signals: Signals,
    none: str,
    command: str,
) -> T | None:
    until = math.inf if request.wait is None else boot_time() + request.wait
    progress = ProgressLine(client, request.name, quiet=request.quiet)
    connected = threading.Event()  # etcd has answered

    def call() -> T | None:
        acquire = ready()
        connected.set()
        left = None if until == math.inf else max(0.0, until - boot_time())
        return acquire(left, progress.start)

    worker = Worker(call, signals, name="acquire")
    check_threads = StarvedCheck(client)
    contact = ContactReport(client, request, until, progress.note)
    try:
        while not worker.done:
            check_threads()
            contact.look(connected=connected.is_set())
            left = until - boot_time()
            if request.wait and left <= 0 and not connected.is_set():
                raise EtcdUnavailable(
                    f"{request.name}: could not reach etcd within --wait {exact(request.wait)}. "
                    "Check that it is running and that ETCDSEM_ENDPOINTS is correct."
                )
            signals.stop(min(left, _TICK) if left > 0 else _TICK)
        contact.look(connected=connected.is_set())  # an outage may just have ended
        result = _result(worker)
    finally:
        progress.stop()
    if result is None:
        waited = f" within {exact(request.wait)}" if request.wait else ""
        _say_why(request, client, f"{none}{waited} (see: etcdsem {command} {request.name})", waited)
    return result


def _say_why(request: LeaseRequest, client: Client, full: str, waited: str) -> None:
    """Report that the time is up."""
    if request.more:
        say(f"{request.shown}: not all of them had a free lease{waited} (see: etcdsem ls)")
    else:
        say(_why_full(client, request.name) or f"{request.name}: {full}")


def _why_full(client: Client, name: str) -> str:
    """Why nothing can be granted, and what to do; empty if it is only full."""
    known = client.known_limit(name)
    if known is None:
        return ""
    if known.pause is not None:
        return f"{name}: {pause_text(known.pause)} (to resume: etcdsem resume {name})"
    if known.max_leases is None:
        return (
            f"{name}: its limit in etcd reads {known.text!r}, so nothing is granted (to fix it: "
            f"etcdsem limit {name} 5)"
        )
    return (
        "" if known.max_leases else f"{name}: its limit is 0 (to raise it: etcdsem limit {name} 5)"
    )


def stopped_while_waiting(stopped: Stopped, shown: str) -> exit_codes.BySignal:
    """Report that a signal has ended the wait, and return the exit code."""
    say(f"{signal.Signals(stopped.number).name} while waiting for {shown}: left the queue")
    return exit_codes.by_signal(stopped.number)


def give_back(name: str, lease: Lease | MultiLease | None, client: Client) -> None:
    """Release the lease, if there is one, and close the client, within `RELEASE_TIMEOUT`."""

    def release() -> None:
        if lease is not None:
            lease.release()
        client.close()

    if not _in_time(release) and lease is not None:
        say(
            f"note: could not release the lease on {name}: etcd does not answer; "
            f"it will expire within {exact(lease.ttl)}"
        )


def _in_time(function: Callable[[], None]) -> bool:
    """Call a function in a thread; return False if it takes longer than `RELEASE_TIMEOUT`."""
    worker = threading.Thread(target=function, daemon=True)
    try:
        worker.start()
    except (RuntimeError, MemoryError):
        return _in_time_here(function)
    worker.join(RELEASE_TIMEOUT)
    return not worker.is_alive()


def _in_time_here(function: Callable[[], None]) -> bool:
    """The same in this thread, since no other can be started. An alarm interrupts the function."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, RELEASE_TIMEOUT)
        try:
            function()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except _TooLong:
        return False
    finally:
        signal.signal(signal.SIGALRM, before)
    return True


def _result(worker: Worker[T]) -> T:
    """Return the outcome of an acquire. Raises CannotStart where the library names no kind."""
    try:
        return worker.result()
    except EtcdSemError as error:
        if type(error) is EtcdSemError and "cannot start a thread" in str(error):
            raise exit_codes.CannotStart("a thread", "the lease would not be refreshed") from error
        raise


def _semaphore(request: LeaseRequest, client: Client, signals: Signals) -> Semaphore:
    """Contact etcd for the first time: register the limit, or check the registered one."""
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
            max_waiting=request.max_waiting,
            rate=None if request.rate is None else str(request.rate),
            on_lost=lambda lease: signals.wake(),
            expires=(request.limit is not None and request.expires) or None,
        )
    except SemaphoreClosed:
        raise SemaphoreClosed(
            f"{request.name} is not registered yet: give "
            f"{f'{request.name}=N' if request.one_of else '--limit N'} to register it"
        ) from None


def _each(request: LeaseRequest) -> list[LeaseRequest]:
    """Split a request for several semaphores into one for each."""
    named = ((request.name, request.limit), *request.more)
    return [request._replace(name=name, limit=limit, more=(), one_of=True) for name, limit in named]
