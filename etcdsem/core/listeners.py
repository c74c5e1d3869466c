"""Listeners of watches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from etcdsem.core.commands import Event, Failure, Watch


class CallbackListener:
    """A listener that calls functions."""

    __slots__ = ("_created", "_events", "_gap", "_refused")

    def __init__(
        self,
        events: Callable[[Sequence[Event]], None],
        *,
        created: Callable[[], None] = lambda: None,
        gap: Callable[[], None] = lambda: None,
        refused: Callable[[Failure], None] = lambda error: None,
    ) -> None:
        self._events = events
        self._created = created
        self._gap = gap
        self._refused = refused

    def created(self, revision: int) -> None:
        self._created()

    def events(self, events: Sequence[Event]) -> None:
        self._events(events)

    def gap(self, reason: str) -> None:
        self._gap()

    def refused(self, error: Failure) -> None:
        self._refused(error)


class WatchGroup:
    """Watches that are cancelled together."""

    __slots__ = ("_watches",)

    def __init__(self, watches: list[Watch]) -> None:
        self._watches = watches

    def cancel(self) -> None:
        """Cancel all of them."""
        for watch in self._watches:
            watch.cancel()
