"""What a watch stream does, decided without a stream. Every driver uses it.

1. Each watch remembers the next revision it has to tell (`next`). A watch that was created
   without one is pinned to the revision at which it was created.
2. A new stream gets every watch again, from its next revision, under a new id; answers to ids of
   former streams are unknown and left aside. Nothing is told twice, nothing is left out.
3. If that revision was compacted away, the watch starts again at the present, and its listener
   is told of the gap *after* the new watch is up: what is read then misses nothing.
4. A watch that is refused gets one more try after a new login, before its listener is told: etcd
   before 3.5.8 or so calls a token that has run out, too, "permission denied".
5. Nothing is told of a cancelled watch, not even what had arrived before.
6. `created` comes with `canceled` when a watch is refused; older releases then give the id -1.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

from etcdsem.core.commands import AccessDenied, Event, Failure, Listener

T = TypeVar("T")
Telling = Callable[[], None]


class CreateWatch(NamedTuple):
    """A request: watch a key or a range from revision `start` on; 0: from its creation on."""

    id: int
    key: bytes
    end: bytes
    start: int
    only: str | None
    """``put`` or ``delete``: events of this kind only."""


class CancelWatch(NamedTuple):
    """A request: end a watch."""

    id: int


WatchRequest = CreateWatch | CancelWatch


class WatchResponse(NamedTuple):
    """What etcd answers on a watch stream."""

    id: int
    revision: int = 0
    created: bool = False
    canceled: bool = False
    compacted: int = 0
    """The revision up to which the history is gone, if that is why it was canceled."""
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
        self.next = start  # the first revision not yet told; 0: from whenever it is created
        self.only = only
        self.id = 0  # on the present stream
        self.told = False  # has `created` been told?
        self.gap = ""  # why a gap must be told once it is created again
        self.cancelled = False
        self.denied = False  # was it refused with the login before this one?

    def telling(self, tell: Callable[[T], None], what: T) -> Telling:
        """Tell the listener, unless the watch has been cancelled by then."""
        return lambda: None if self.cancelled else tell(what)


class _Remover(Protocol):
    """The watches of a client, on whichever stream."""

    def remove(self, entry: WatchEntry) -> None:
        """Cancel a watch: its listener hears nothing more."""


class WatchHandle:
    """A watch that can be cancelled."""

    __slots__ = ("_entry", "_watches")

    def __init__(self, watches: _Remover, entry: WatchEntry) -> None:
        self._watches = watches
        self._entry = entry

    def cancel(self) -> None:
        """The listener hears nothing more."""
        self._watches.remove(self._entry)


class WatchBook:
    """All watches of a client, and what a response means for them."""

    def __init__(self, whoami: str = "") -> None:
        self.whoami = whoami  # as which user we ask, for messages
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
        """Cancel a watch; returns the request to send, if there is one."""
        entry.cancelled = True
        if entry not in self.entries:
            return None
        del self.entries[entry]
        if entry in self._pending:
            return None  # cancelled when it is created
        self._ids.pop(entry.id, None)
        return CancelWatch(entry.id)

    def reopened(self) -> list[WatchRequest]:
        """Start on a new stream; returns the requests that set all watches up again."""
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
        """Take in a response; returns what to tell the listeners, and what to send."""
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
        """There is no login, and so no stream: what to tell the listeners."""
        return [self._drop(entry, failure) for entry in list(self.entries)]

    def _drop(self, entry: WatchEntry, failure: Failure) -> Telling:
        self.entries.pop(entry, None)
        entry.cancelled = True
        return lambda: entry.listener.refused(failure)

    def _refused(self, response: WatchResponse) -> tuple[list[Telling], list[WatchRequest]]:
        entry = self._ids.pop(response.id, None)
        if entry is None and response.created and self._pending:
            entry = self._pending[0]  # an older etcd says -1; it answers in order
        if entry is None:
            return [], []  # the answer to a cancel of ours
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
            self.needs_login = True  # the whole stream has the old token: it is opened again
            return [], []
        return [], [self._create(entry)]
