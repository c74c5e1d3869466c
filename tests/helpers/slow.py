"""Selection of what runs only with `--all`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def sample(values: Iterable[Any], quick: int = 1) -> list[Any]:
    """Values of a parameter: the first ones always run, the others only with `--all`."""
    return [
        value if number < quick else pytest.param(value, marks=pytest.mark.slow)
        for number, value in enumerate(values)
    ]
