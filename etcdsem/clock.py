"""The clock that determines whether a lease is valid."""

from __future__ import annotations

import time

_CLOCK: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boot_time() -> float:
    """Seconds on a clock that also counts suspension, if the system has one."""
    return time.clock_gettime(_CLOCK)
