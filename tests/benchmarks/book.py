"""The file of results: written after each measurement, so that an interrupted run is not lost.

    {"machine": {...}, "settings": {...}, "speed": [{"row", "contestant", "round", "rate", ...}],
     "start": {...}, "memory": {...}, "churn": {...}, "crash": {...}, "sizing": {...}}

Each script adds its own part and leaves the others alone.
"""

from __future__ import annotations

import json
import os
import statistics
from pathlib import Path
from typing import Any


class Book:
    """Results, in a file or (path None) nowhere."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.parts: dict[str, Any] = {}
        if path is not None and path.exists() and path.stat().st_size:
            self.parts = json.loads(path.read_text())

    def put(self, part: str, value: Any) -> None:
        """Replace a part, and write the file."""
        self.parts[part] = value
        if self.path is not None:
            new = self.path.with_name(f"{self.path.name}.new")
            new.write_text(json.dumps(self.parts, indent=1) + "\n")
            os.replace(new, self.path)

    @property
    def speed(self) -> list[dict[str, Any]]:
        """The measurements."""
        found: list[dict[str, Any]] = self.parts.get("speed", [])
        return found

    def contestants(self, row: str) -> list[str]:
        """Who took part in a row, in the order in which they first came."""
        return list(dict.fromkeys(one["contestant"] for one in self.speed if one["row"] == row))

    def rounds(self, row: str, contestant: str, field: str = "rate") -> dict[int, float]:
        """A figure in each round."""
        return {
            one["round"]: one[field]
            for one in self.speed
            if one["row"] == row and one["contestant"] == contestant and field in one
        }

    def median(self, row: str, contestant: str, field: str = "rate") -> float | None:
        """Over the rounds; None if it was not measured."""
        found = self.rounds(row, contestant, field)
        return statistics.median(found.values()) if found else None

    def ratio(
        self, one: tuple[str, str], other: tuple[str, str], field: str = "rate"
    ) -> float | None:
        """The median of the quotients of each round, one (row, contestant) by another: what drifts
        from round to round does not show in it. None if they have no round in common.
        """
        above, below = self.rounds(*one, field), self.rounds(*other, field)
        both = [above[n] / below[n] for n in above if below.get(n)]
        return statistics.median(both) if both else None
