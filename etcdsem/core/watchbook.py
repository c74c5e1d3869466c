"""The state of the watches on a watch stream, without the stream itself. Every driver uses it.

1. Each watch remembers the next revision to report (`next`). A watch that was created without one
   is pinned to the revision at which it was created.
2. On a new stream every watch is created again, from its next revision, under a new ID. Responses
   with IDs of former streams are unknown and ignored. No event is reported twice or skipped.
3. If that revision was compacted away, the watch starts again at the present, and its listener
   learns of the gap *after* the new watch is up, so a read at that time misses nothing.
4. A watch that is refused gets one retry after a new login before its listener is notified: etcd
   before 3.5.8 or so also reports "permission denied" for an expired token.
5. Nothing is reported to a cancelled watch, not even what had arrived before.
6. `created` comes with `canceled` when a watch is refused; older releases then send the ID -1.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

from etcdsem.core.commands import AccessDenied, Event, Failure, Listener

T = TypeVar("T")
Telling = Callable[[], None]


class CreateWatch(NamedTuple):
    """A request to watch a key or a range from revision `start` on; 0: from its creation on."""

    id: int
    key: bytes
    end: bytes
    start: int
    only: str | None
    """``put`` or ``delete``: events of this kind only."""


class CancelWatch(NamedTuple):
    """A request to end a watch."""

    id: int


WatchRequest = CreateWatch | CancelWatch


class WatchResponse(NamedTuple):
    """A response of etcd on a watch stream."""

    id: int
    revision: int = 0
    created: bool = False
    canceled: bool = False
    compacted: int = 0
    """The revision up to which the history was compacted, if that is why it was canceled."""
    reason: str = ""
    events: Sequence[Event] = ()


class WatchEntry:
    """One watch, across all streams."""

    __slots__ = (
        "cancelled",
        "denied",
        "end",
        "gap",
        "id",
        "key",
        "listener",
        "next",
        "only",
        "told",
    )

    def __init__(
        self, listener: Listener, key: bytes, end: bytes, start: int, only: str | None
    ) -> None:
        self.listener = listener
        self.key = key
        self.end = end
        self.next = start  # the first revision not yet reported; 0: from whenever it is created
        self.only = only
        self.id = 0  # on the present stream
        self.told = False  # has `created` been reported?
        self.gap = ""  # the reason of a gap to report once it is created again
        self.cancelled = False
        self.denied = False  # was it refused with the previous login?

    def telling(self, tell: Callable[[T], None], what: T) -> Telling:
        """A call that tells the listener, unless the watch has been cancelled by then."""
        return lambda: None if self.cancelled else tell(what)


class _Remover(Protocol):
    """The watches of a client, on any stream."""

    def remove(self, entry: WatchEntry) -> None:
        """Cancel a watch: its listener is not called any more."""


class WatchHandle:
    """A watch that can be cancelled."""

    __slots__ = ("_entry", "_watches")

    def __init__(self, watches: _Remover, entry: WatchEntry) -> None:
        self._watches = watches
        self._entry = entry

    def cancel(self) -> None:
        """Cancel the watch: its listener is not called any more."""
        self._watches.remove(self._entry)


class WatchBook:
    """All watches of a client, and what each response means for them."""

    def __init__(self, whoami: str = "") -> None:
        self.whoami = whoami  # the user name, for messages
        self.entries: dict[WatchEntry, None] = {}
        self.needs_login = False
        self._ids: dict[int, WatchEntry] = {}
        self._pending: deque[WatchEntry] = deque()
        self._last_id = 0

    def add(self, entry: WatchEntry) -> WatchRequest:
        """Add a watch; returns the request to send."""
        self.entries[entry] = None
        return self._create(entry)

    def remove(self, entry: WatchEntry) -> WatchRequest | None:
        """Cancel a watch; returns the request to send, or None."""
        entry.cancelled = True
        if entry not in self.entries:
            return None
        del self.entries[entry]
        if entry in self._pending:
            return None  # it will be cancelled when it is created
        self._ids.pop(entry.id, None)
        return CancelWatch(entry.id)

    def reopened(self) -> list[WatchRequest]:
        """Start on a new stream; returns the requests that create all watches again."""
        self._ids.clear()
        self._pending.clear()
        self.needs_login = False
        return [self._create(entry) for entry in self.entries]

    def _create(self, entry: WatchEntry) -> WatchRequest:
        self._last_id += 1
        entry.id = self._last_id
        self._ids[entry.id] = entry
        self._pending.append(entry)
        return CreateWatch(entry.id, entry.key, entry.end, entry.next, entry.only)

    def heard(self, response: WatchResponse) -> tuple[list[Telling], list[WatchRequest]]:
        """Process a response; returns what to tell the listeners, and what to send."""
        if response.canceled:
            return self._refused(response)
        entry = self._ids.get(response.id)
        if entry is None:
            return [], []
        if response.created:
            return self._created(entry, response)
        return self._events(entry, response), []

    def _created(
        self, entry: WatchEntry, response: WatchResponse
    ) -> tuple[list[Telling], list[WatchRequest]]:
        if entry in self._pending:
            self._pending.remove(entry)
        if entry.cancelled:
            self._ids.pop(entry.id, None)
            return [], [CancelWatch(response.id)]
        entry.denied = False
        revision = response.revision
        if entry.next == 0:
            entry.next = revision + 1
        tell: list[Telling] = []
        if not entry.told:
            entry.told = True
            tell.append(entry.telling(entry.listener.created, revision))
        if entry.gap:
            reason, entry.gap = entry.gap, ""
            tell.append(entry.telling(entry.listener.gap, reason))
        return tell + self._events(entry, response), []

    def _events(self, entry: WatchEntry, response: WatchResponse) -> list[Telling]:
        events = [one for one in response.events if one.kv.mod_revision >= entry.next]
        if not events or entry.cancelled:
            return []
        entry.next = events[-1].kv.mod_revision + 1
        return [entry.telling(entry.listener.events, events)]

    def refuse_all(self, failure: Failure) -> list[Telling]:
        """The login failed, so there is no stream; returns what to tell the listeners."""
        return [self._drop(entry, failure) for entry in list(self.entries)]

    def _drop(self, entry: WatchEntry, failure: Failure) -> Telling:
        self.entries.pop(entry, None)
        entry.cancelled = True
        return lambda: entry.listener.refused(failure)

    def _refused(self, response: WatchResponse) -> tuple[list[Telling], list[WatchRequest]]:
        entry = self._ids.pop(response.id, None)
        if entry is None and response.created and self._pending:
            entry = self._pending[0]  # an older etcd sends -1, and answers in order
        if entry is None:
            return [], []  # the answer to our own cancel
        if entry in self._pending:
            self._pending.remove(entry)
        if entry.cancelled:
            return [], []
        reason = response.reason
        if response.compacted:
            entry.next = 0
            entry.gap = f"compacted at revision {response.compacted}"
            return [], [self._create(entry)]
        if "permission denied" in reason:
            if entry.denied:
                key = entry.key.decode(errors="replace")
                return [self._drop(entry, AccessDenied(f"watch {key}: {reason}{self.whoami}"))], []
            entry.denied = True
            self.needs_login = True
            return [], []
        if "auth" in reason or "token" in reason or "user name" in reason:
            self.needs_login = True  # the whole stream has the old token, so it is reopened
            return [], []
        return [], [self._create(entry)]
