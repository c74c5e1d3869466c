"""The history of the etcd model, and its watches."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

from etcdsem.core.commands import Event, Refused

WATCH_TICK = 0.1
"""Seconds between two rounds of serving watchers that start in the past (watchable_store.go,
`syncWatchersLoop`)."""

END_OF_KEYS = b"\0"
"""As the end of a range: all keys from its start on."""


class Revision(NamedTuple):
    """The changes of one revision, in the order in which they were written."""

    number: int
    events: tuple[Event, ...]


class Sink(Protocol):
    """Receives the events of a watch of the model."""

    def created(self, revision: int) -> None:
        """The watch exists; `revision` is the store's."""

    def events(self, events: list[Event]) -> None:
        """Events in revision order."""

    def compacted(self, revision: int) -> None:
        """The watch is over: the history that it asked for is compacted, up to `revision`."""


class ModelWatch:
    """A watch of the model. `next_revision` is the first that it has not reported."""

    __slots__ = ("end", "etcd", "key", "next_revision", "only", "open", "sink", "synced")

    def __init__(
        self,
        etcd: WatchableHistory,
        sink: Sink,
        key: bytes,
        end: bytes,
        next_revision: int,
        only: str | None,
    ) -> None:
        self.etcd = etcd
        self.sink = sink
        self.key = key
        self.end = end
        self.next_revision = next_revision
        self.only = only
        self.open = True
        self.synced = False

    def cancel(self) -> None:
        """Stop reporting to the sink."""
        if self.open:
            self.open = False
            self.etcd._forget(self)

    def wants(self, event: Event) -> bool:
        """Is the event in this watch's range, and of the requested kind?"""
        key = event.kv.key
        if not self.end:
            within = key == self.key
        else:
            within = self.key <= key and (self.end == END_OF_KEYS or key < self.end)
        return within and self.only in (None, event.kind)


class WatchableHistory:
    """The revisions since the last compaction, and the watches that follow them."""

    def __init__(self, now: float) -> None:
        self.now = now
        self.revision = 1
        self.compacted = 0
        self.loses: Callable[[Event], bool] = lambda _event: False
        """Which events a synced watch never reports; several etcd releases lose deletes."""
        self.observers: list[Callable[[Revision], None]] = []
        """Called after each revision, before any watch receives it."""
        self._history: list[Revision] = []  # those after `compacted`
        self._synced: list[ModelWatch] = []
        self._unsynced: list[ModelWatch] = []
        self._catch_up_at = math.inf

    def watch(
        self, sink: Sink, key: bytes, end: bytes = b"", *, start: int = 0, only: str | None = None
    ) -> ModelWatch:
        """Watch a key or a range from revision `start` on; 0: from the next one on."""
        watch = ModelWatch(self, sink, key, end, start or self.revision + 1, only)
        sink.created(self.revision)
        if watch.next_revision > self.revision:
            watch.synced = True
            self._synced.append(watch)
        else:
            if not self._unsynced:
                self._catch_up_at = _next_tick(self.now, WATCH_TICK)
            self._unsynced.append(watch)
        return watch

    def compact(self, revision: int) -> None:
        """Delete the history before `revision`."""
        if not self.compacted < revision <= self.revision:
            raise Refused("etcdserver: mvcc: required revision has been compacted, or is to come")
        self.compacted = revision
        self._history = [entry for entry in self._history if entry.number >= revision]

    def _forget(self, watch: ModelWatch) -> None:
        (self._synced if watch.synced else self._unsynced).remove(watch)

    def _catch_up(self) -> None:
        waiting, self._unsynced = self._unsynced, []
        for watch in waiting:
            if watch.next_revision < self.compacted:
                watch.open = False
                watch.sink.compacted(self.compacted)
                continue
            events = [
                event
                for entry in self._history
                if entry.number >= watch.next_revision
                for event in entry.events
                if watch.wants(event)
            ]
            watch.next_revision = self.revision + 1
            watch.synced = True
            self._synced.append(watch)
            if events:
                watch.sink.events(events)

    def _publish(self, revision: Revision) -> None:
        """Add a new revision, and report it to observers and watches."""
        self._history.append(revision)
        for observer in self.observers:
            observer(revision)
        for watch in list(self._synced):
            if revision.number < watch.next_revision or not watch.open:
                continue
            watch.next_revision = revision.number + 1
            events = [event for event in revision.events if watch.wants(event)]
            events = [event for event in events if not self.loses(event)]
            if events:
                watch.sink.events(events)


def _next_tick(after: float, period: float) -> float:
    """The first tick strictly after a time."""
    return (math.floor(after / period + 1e-9) + 1) * period
