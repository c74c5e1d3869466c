"""What the two drivers share: everything that needs neither a thread nor an event loop.

A driver performs the commands that the core's procedures yield. `Driver` is what the core sees of
it (its `Env`).
"""

from __future__ import annotations

import inspect
import math
import os
import random
import socket
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

from etcdsem.core.commands import Env, Listener, Mailbox, Procedure, Watch
from etcdsem.core.keys import client_id
from etcdsem.core.leases import TICK, TtlLease
from etcdsem.core.session import Session
from etcdsem.errors import InvalidSetting
from etcdsem.etcd.settings import ConnectionSettings as ConnectionSettings  # for the facades
from etcdsem.etcd.settings import read_settings
from etcdsem.model import Duration
from etcdsem.process_stats import follow
from etcdsem.validation import dask_setting, environment, seconds

EXIT_GRACE = 2.0
"""Seconds for giving everything back when the interpreter, or the event loop, ends."""

MIN_VALIDATION_INTERVAL = 0.1
"""Seconds. Each read costs etcd one transaction per client that waits or holds."""

LONGEST_NAP = 5.0
"""Seconds after which a wait looks at the clock again: threads and event loops wait on a clock
that stands still while the machine is suspended; deadlines do not.
"""


class WatchStream(Protocol):
    """The watch stream. Never blocks; calls listeners later, under the driver's lock."""

    def watch(
        self,
        listener: Listener,
        key: bytes,
        end: bytes = b"",
        *,
        start: int = 0,
        only: Literal["put", "delete"] | None = None,
    ) -> Watch: ...
    def close(self) -> None: ...


class KeepaliveStream(Protocol):
    """The keepalive stream. Never blocks; replies arrive later, under the driver's lock."""

    def renew(self, lease_id: int) -> None: ...
    def restart(self) -> None: ...
    def close(self) -> None: ...


class TimeSource(Protocol):
    """The part of a driver's clock that does not wait."""

    def now(self) -> float: ...
    def wall(self) -> float: ...
    def mailbox(self) -> Mailbox: ...


class LeaseHelper(Protocol):
    """A process that also refreshes leases; see `etcdsem.renewal_helper`."""

    @property
    def pid(self) -> int: ...
    def hand_over(self, lease: TtlLease) -> None: ...
    def take_back(self, lease: TtlLease) -> None: ...
    def tend(self, lease: TtlLease) -> None: ...
    def beat(self) -> None: ...
    def close(self) -> None: ...


class Driver(Env):
    """A driver of procedures, except for the parts that wait."""

    helper: LeaseHelper | None = None
    _start_beside: Callable[[Callable[[], object], str], object] | None = None
    """Starts a function that may block in a thread; None: `threading.Thread` does."""

    def __init__(self, watches: WatchStream, renewals: KeepaliveStream, clock: TimeSource) -> None:
        self._watches = watches
        self._renewals = renewals
        self._clock = clock
        self.now = clock.now  # type: ignore[method-assign]  # called a dozen times a cycle
        self.pid = os.getpid()
        self.session = Session(self, client_id(socket.gethostname(), self.pid, os.urandom(4).hex()))
        follow(self.session)
        every = read_validation_interval()
        if every is not None:
            self.session.reread = (every / 2, every * 3 / 2)

    @property
    def here(self) -> bool:
        """Whether its leases can be used in this process (and event loop)."""
        return self.pid == os.getpid()

    def start_helper(self, settings: ConnectionSettings, limit: float | None) -> None:
        """Start a helper process that also refreshes held leases; None: start none."""
        if limit is None:
            return
        from etcdsem.renewal_helper import RenewalHelper

        self.helper = RenewalHelper(settings, limit, start=self._start_beside, write_log=self.log)
        self.session.leases.chores.append(self._tend)

    def _tend(self, now: float) -> float:
        if self.helper is None:
            return math.inf
        self.helper.beat()
        grants = self.session.grants()
        for grant in grants:
            self.helper.tend(grant.lease)
        return now + TICK if grants else math.inf

    def stop_helper(self) -> None:
        """End the helper process: the client is being closed."""
        helper, self.helper = self.helper, None
        if helper is not None:
            helper.close()

    def now(self) -> float:
        return self._clock.now()

    def wall(self) -> float:
        return self._clock.wall()

    def mailbox(self) -> Mailbox:
        return self._clock.mailbox()

    def watch(
        self,
        listener: Listener,
        key: bytes,
        end: bytes = b"",
        *,
        start: int = 0,
        only: Literal["put", "delete"] | None = None,
    ) -> Watch:
        return self._watches.watch(listener, key, end, start=start, only=only)

    def renew(self, lease_id: int) -> None:
        self._renewals.renew(lease_id)

    def restart_renewals(self) -> None:
        self._renewals.restart()

    def _renewed(self, lease_id: int, ttl: float) -> None:
        self.session.leases.renewed(lease_id, ttl)

    def after(self, action: Callable[[], object]) -> None:
        """Run something short once the client's lock is free."""
        action()

    def random(self) -> float:
        return random.random()

    def random_id(self) -> int:
        return (int.from_bytes(os.urandom(8), "big") >> 2) + 1


def closed_generator(procedure: Procedure[Any]) -> bool:
    """Whether a procedure has ended."""
    return inspect.getgeneratorstate(procedure) == inspect.GEN_CLOSED


def connect_settings(
    endpoints: str | Sequence[str] | None, dial_timeout: Duration | None, **given: str | None
) -> ConnectionSettings:
    """The settings for the arguments of `connect`; raises InvalidSetting for invalid ones."""
    options: dict[str, Any] = dict(given)
    if dial_timeout is not None:
        options["dial_timeout"] = seconds(dial_timeout, what="dial_timeout")
    return read_settings(endpoints, **options)


def read_validation_interval() -> float | None:
    """Mean seconds between two reads that check what the watches reported; None: the default."""
    what, given = "ETCDSEM_VALIDATION_INTERVAL", environment("ETCDSEM_VALIDATION_INTERVAL")
    if given is None:
        given = dask_setting("lease-validation-interval")
        what = (
            "Dask's distributed.scheduler.locks.lease-validation-interval (used without "
            "ETCDSEM_VALIDATION_INTERVAL)"
        )
    if given is None:
        return None
    every = seconds(given, what=what)
    if not MIN_VALIDATION_INTERVAL <= every < math.inf:
        raise InvalidSetting(f"{what} must be at least {MIN_VALIDATION_INTERVAL}s, not {given!r}")
    return every
