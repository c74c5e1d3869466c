"""Values in records: texts and moments."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any


def timestamp(wall: float) -> str:
    """A moment of the wall clock, as records show it."""
    return datetime.fromtimestamp(wall, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def text_of(value: object) -> str:
    """A text of somebody else, cut to what is shown."""
    return value[:253] if isinstance(value, str) else ""


def moment_of(fields: Mapping[str, Any], moment: str) -> datetime | None:
    """The moment of that name, if a record says a possible one."""
    try:
        when = datetime.fromisoformat(text_of(fields.get(moment)))
    except ValueError:
        return None
    return when if when.tzinfo else when.replace(tzinfo=UTC)
