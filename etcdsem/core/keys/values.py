"""Values in records: texts and times."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any


def timestamp(wall: float) -> str:
    """A wall-clock time in the format of records."""
    return datetime.fromtimestamp(wall, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def text_of(value: object) -> str:
    """A foreign text, cut to the length that is shown; empty if it is not a string."""
    return value[:253] if isinstance(value, str) else ""


def moment_of(fields: Mapping[str, Any], moment: str) -> datetime | None:
    """The time in the field `moment`; None if it is missing or invalid."""
    try:
        when = datetime.fromisoformat(text_of(fields.get(moment)))
    except ValueError:
        return None
    return when if when.tzinfo else when.replace(tzinfo=UTC)
