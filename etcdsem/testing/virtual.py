"""Time that moves only on request, for threads that wait for it.

1. A thread of a client is *busy* from the moment it is started, enters a procedure or is woken,
   until it waits here or is done. Before each step, the thread that moves time lets all of them
   come to rest. So nobody sleeps, and nothing that is due in between is skipped.
2. Lock order: an engine's lock first, then `lock`; an engine's is never taken with `lock` held.
   `lock` guards everything below, and the model of etcd.
3. If a thread blocks somewhere else (in a user's callback), the others wait for it for `PATIENCE`
   seconds of real time; then time moves without it, and a warning names it.
4. After `end` nobody waits any more: each wait ends at once, as if its time had come.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from etcdsem.clock import boot_time
from etcdsem.core.commands import NotApplied

log = logging.getLogger("etcdsem")

PATIENCE = 30.0
"""Real seconds to wait for busy threads before time moves without them."""

STILLNESS = 0.05
"""Real seconds without activity before time passes automatically."""


class World(Protocol):
    """What happens by itself as time passes (the model of etcd)."""

    def next_time(self) -> float: ...
    def advance(self, now: float, /) -> None: ...


class Place:
    """A process: threads that wait together, and can be suspended together."""

    __slots__ = ("paused",)

    def __init__(self) -> None:
        self.paused = False


class _Sleeper:
    """One thread's wait. It is woken once; from then on the thread is busy."""

    __slots__ = ("box", "event", "name", "thread", "until", "woken")

    def __init__(self, box: VirtualMailbox, until: float, thread: int, name: str) -> None:
        self.box = box
        self.until = until
        self.thread = thread
        self.name = name
        self.event = threading.Event()
        self.woken = False


class VirtualMailbox:
    """A mailbox at which one thread at a time waits."""

    __slots__ = ("notes", "place", "sleeper", "time")

    def __init__(self, time: VirtualTime, place: Place) -> None:
        self.time = time
        self.place = place
        self.notes: deque[Any] = deque()
        self.sleeper: _Sleeper | None = None

    def put(self, note: Any, /) -> None:
        with self.time.lock:
            self.notes.append(note)
            if self.sleeper is not None and not self.place.paused:
                self.time.wake(self.sleeper)


class VirtualTime:
    """A clock, and the threads that wait for it.

    `by_itself`: if the thread that created it waits here, nobody can move time; then at most this
    many seconds pass automatically, from one event to the next.
    """

    def __init__(self, world: World, *, by_itself: float) -> None:
        self.lock = threading.RLock()
        self.now = 0.0
        self.ended = False
        self.deliver: Callable[[], bool] = lambda: False
        """Tells clients what etcd has reported; called without locks. True if there was anything.
        """
        self._world = world
        self._by_itself = by_itself
        self._owner = threading.get_ident()
        self._rest = threading.Condition(self.lock)  # notified when a thread is no longer busy
        self._busy: dict[int, str] = {}  # by thread
        self._starting = 0  # threads that are not yet among the busy ones
        self._stirred = 0  # number of calls from outside
        self._seen = -1  # that number when time began to pass automatically
        self._flown = 0.0  # seconds that have passed automatically since then
        self._sleepers: set[_Sleeper] = set()

    # -- busy threads

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Wraps what a thread does for a client."""
        me = threading.get_ident()
        with self.lock:
            outermost = me not in self._busy
            if outermost:
                self._busy[me] = threading.current_thread().name
                self._stirred += 1
        try:
            yield
        finally:
            if outermost:
                self.deliver()
                with self.lock:
                    self._busy.pop(me, None)
                    self._rest.notify_all()

    def start(self, function: Callable[[], None], name: str) -> None:
        """Run a function in a daemon thread, which is busy from now on."""

        def run() -> None:
            me = threading.get_ident()
            with self.lock:
                self._starting -= 1
                self._busy[me] = name
            try:
                function()
            finally:
                self.deliver()
                with self.lock:
                    self._busy.pop(me, None)
                    self._rest.notify_all()

        with self.lock:
            self._starting += 1
        try:
            threading.Thread(target=run, name=name, daemon=True).start()
        except RuntimeError:
            with self.lock:
                self._starting -= 1
            raise

    def stir(self) -> None:
        """Record a call from outside: its effects must happen before time moves."""
        with self.lock:
            self._stirred += 1

    def _others_busy(self) -> list[str]:
        me = threading.get_ident()
        names = [name for thread, name in self._busy.items() if thread != me]
        return names + ["a new thread"] * self._starting

    # -- waiting

    def wait(self, box: VirtualMailbox, until: float) -> object:
        """The next note in a box; None if the time `until` comes first."""
        self.deliver()
        while True:
            with self.lock:
                due = until <= self.now
                if not box.place.paused or self.ended:
                    if box.notes:
                        return box.notes.popleft()
                    if due:
                        return None
                if self.ended:
                    if until == math.inf:
                        raise NotApplied("the in-memory etcd was closed")
                    self.now = until
                    return None
                me = threading.get_ident()
                sleeper = box.sleeper = _Sleeper(box, until, me, self._busy.pop(me))
                self._sleepers.add(sleeper)
                self._rest.notify_all()
            try:
                self._sleep(sleeper)
            finally:
                with self.lock:
                    box.sleeper = None
                    self.wake(sleeper)  # if it was interrupted

    def wake(self, sleeper: _Sleeper) -> None:
        """Let a thread continue, busy from now on. Called with the lock held."""
        if not sleeper.woken:
            sleeper.woken = True
            self._busy[sleeper.thread] = sleeper.name
            self._sleepers.discard(sleeper)
            sleeper.event.set()

    def wake_due(self) -> None:
        """Wake threads whose time has come or that have a note. Called with the lock held."""
        for sleeper in list(self._sleepers):
            box = sleeper.box
            if self.ended or (not box.place.paused and (sleeper.until <= self.now or box.notes)):
                self.wake(sleeper)

    def _sleep(self, sleeper: _Sleeper) -> None:
        if self._by_itself > 0 and threading.get_ident() == self._owner:
            self._let_time_fly(sleeper)
        # The main thread wakes up regularly: the kernel may deliver Ctrl-C to another thread.
        main = threading.current_thread() is threading.main_thread()
        while not sleeper.event.wait(0.5 if main else None):
            pass

    def _let_time_fly(self, sleeper: _Sleeper) -> None:
        """Nobody else moves time, so go from event to event until this wait is over."""
        while not sleeper.woken:
            if self._seen != self._stirred:  # other threads may be at work outside: let them
                self._seen, self._flown = self._stirred, 0.0
                if sleeper.event.wait(STILLNESS):
                    return
                continue
            if self._flown >= self._by_itself:
                log.warning(
                    "etcdsem: %g s have passed automatically and this wait continues; another "
                    "thread must end it, or advance()",
                    self._flown,
                )
                while self._seen == self._stirred and not sleeper.event.wait(STILLNESS):
                    pass
                continue
            before = self.now
            self.step(before + self._by_itself - self._flown)
            self._flown += self.now - before

    # -- moving

    def settle(self) -> None:
        """Let everything happen that can happen now."""
        until = boot_time() + PATIENCE
        while True:
            while self.deliver():
                pass
            with self.lock:
                others = self._others_busy()
                if not others:
                    return
                if boot_time() >= until:
                    log.warning("etcdsem: time continues without %s", ", ".join(sorted(others)))
                    return
                self._rest.wait(0.5)

    def step(self, limit: float) -> None:
        """Move to the next event, but not beyond `limit`, and let it happen."""
        self.settle()
        with self.lock:
            waits = [s.until for s in self._sleepers if not s.box.place.paused]
            moment = max(self.now, min([limit, self._world.next_time(), *waits]))
            self._world.advance(moment)
            self.now = moment
            self.wake_due()
        self.settle()

    def move(self, seconds: float) -> None:
        """Move by `seconds`, event by event."""
        self.settle()
        target = self.now + seconds
        while self.now < target:
            self.step(target)

    def jump(self, seconds: float) -> None:
        """Move by `seconds` during which no thread of a client runs."""
        self.settle()
        with self.lock:
            target = self.now + seconds
            self._world.advance(target)
            self.now = target
            self.wake_due()
        self.settle()

    def end(self) -> None:
        """End all waiting."""
        with self.lock:
            self.ended = True
            self.wake_due()
