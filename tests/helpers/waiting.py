"""Polling for conditions that have no handle to wait on."""

from __future__ import annotations

import time
from collections.abc import Callable


def comes_true(condition: Callable[[], object], seconds: float) -> bool:
    """Wait until the condition is true; False if it is not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def eventually(
    condition: Callable[[], object], seconds: float = 20.0, *, what: str = "the condition"
) -> None:
    """Wait until the condition is true; `what` names it in the failure."""
    assert comes_true(condition, seconds), f"after {seconds:g} s it is still not true: {what}"
