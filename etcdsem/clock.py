"""The clock that determines whether a lease is valid."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

_CLOCK: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

boot_time: Callable[[], float] = partial(time.clock_gettime, _CLOCK)
"""Seconds on a clock that also counts suspension, if the system has one. Called about 30 times per
acquire and release, so it is not a function of its own."""
