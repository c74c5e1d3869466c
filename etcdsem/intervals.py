"""The lease timeout and the refresh interval."""

from __future__ import annotations

from typing import NamedTuple

from etcdsem.core.leases import TICK, margin
from etcdsem.errors import InvalidSetting
from etcdsem.model import Duration
from etcdsem.validation import (
    DEFAULT_LEASE_TIMEOUT,
    dask_setting,
    environment,
    lease_timeout_seconds,
    seconds,
)


class Intervals(NamedTuple):
    """The lease timeout and the refresh interval, in seconds."""

    lease_timeout: int
    refresh: float

    @property
    def spare(self) -> float:
        """Seconds from a failed refresh until the lease counts as lost."""
        return self.lease_timeout - margin(self.lease_timeout) - self.refresh


def missed_after(refresh: float, ttl: float) -> float:
    """Seconds after the last answered refresh at which the next one has certainly been missed."""
    return refresh + TICK + max(1.0, ttl / 10)


def since_refresh(ttl: float, remaining: float) -> float:
    """Seconds since the last answered refresh of a lease that has `remaining` seconds left."""
    return ttl - margin(ttl) - remaining


def read_intervals(lease_timeout: Duration | None, refresh_interval: Duration | None) -> Intervals:
    """The given values, else those of the environment, else the defaults. Raises InvalidSetting."""
    timeout = _lease_timeout(lease_timeout)
    given = refresh_interval
    if given is None and lease_timeout is None:
        given = environment("ETCDSEM_REFRESH_INTERVAL")
    if given is None:
        return Intervals(timeout, timeout / 3)
    interval = seconds(given, what="refresh_interval")
    if not 0 < interval < timeout - margin(timeout):
        raise InvalidSetting(
            f"refresh_interval {given!r} does not fit into a lease timeout of {timeout}s: refresh "
            f"at least once before it ends, better three times ({timeout / 3:.3g}s)"
        )
    return Intervals(timeout, interval)


def _lease_timeout(given: Duration | None) -> int:
    if given is None:
        given = environment("ETCDSEM_LEASE_TIMEOUT")
    if given is not None:
        return lease_timeout_seconds(given)
    given = dask_setting("lease-timeout")
    if given is None:
        given = DEFAULT_LEASE_TIMEOUT
    what = (
        "Dask's distributed.scheduler.locks.lease-timeout (used without lease_timeout= and "
        "ETCDSEM_LEASE_TIMEOUT)"
    )
    return lease_timeout_seconds(given, what=what)
