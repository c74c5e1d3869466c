"""Time that only moves when it is told to, for threads that wait for it.

1. A thread of a client is *busy* from the moment it is started, enters a procedure or is woken,
   until it waits here or is done. Whoever moves time lets all of them come to rest before each
   step, so nobody sleeps, and nothing is skipped that is due in between.
2. Locks: an engine's lock first, then `lock`; an engine's is never taken with `lock` held.
   `lock` guards everything below, and the model of etcd.
3. A thread that blocks somewhere else (in a user's callback) is waited for during `PATIENCE`
   seconds of real time; then time moves without it, and a warning names it.
4. After `end` nobody waits any more: each wait is over at once, as if its time had come.
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
"""Real seconds of stillness before time passes by itself."""


class World(Protocol):
    """What happens on its own as time passes (the model of etcd)."""

    def next_time(self) -> float: ...
    def advance(self, now: float, /) -> None: ...


class Place:
    """Where threads wait together, and can be held up together: a process."""

    __slots__ = ("paused",)

    def __init__(self) -> None:
        self.paused = False


class _Sleeper:
    """One thread's wait. `woken` once; from then on the thread is busy."""

    __slots__ = ("box", "event", "name", "thread", "until", "woken")

    def __init__(self, box: Box, until: float, thread: int, name: str) -> None:
        self.box = box
        self.until = until
        self.thread = thread
        self.name = name
        self.event = threading.Event()
        self.woken = False


class Box:
    """A mailbox; one thread at a time waits at it."""

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

    `by_itself`: when the thread that made it waits here, nobody can move time; then so many
    seconds at most pass by themselves, from one event to the next.
    """

    def __init__(self, world: World, *, by_itself: float) -> None:
        self.lock = threading.RLock()
        self.now = 0.0
        self.ended = False
        self.deliver: Callable[[], bool] = lambda: False
        """Tells clients what etcd has to say; called without locks. True if there was any."""
        self._world = world
        self._by_itself = by_itself
        self._owner = threading.get_ident()
        self._rest = threading.Condition(self.lock)  # told when a thread is busy no more
        self._busy: dict[int, str] = {}  # by thread
        self._starting = 0  # threads that are not yet among the busy ones
        self._stirred = 0  # how often somebody came from outside
        self._seen = -1  # that number when time began to pass by itself
        self._flown = 0.0  # seconds that have passed by themselves since
        self._sleepers: set[_Sleeper] = set()

    # -- busy threads

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Around what a thread does for a client."""
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
        """Run a function in a daemon thread, busy from now on."""

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
        """Something came from outside: what has to happen now is seen to before time moves."""
        with self.lock:
            self._stirred += 1

    def _others_busy(self) -> list[str]:
        me = threading.get_ident()
        names = [name for thread, name in self._busy.items() if thread != me]
        return names + ["a new thread"] * self._starting

    # -- waiting

    def wait(self, box: Box, until: float) -> object:
        """The next note in a box; None when `until` comes first."""
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
                        raise NotApplied("the etcd in memory was closed")
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
        """With the lock held: a thread goes on, and is busy from now on."""
        if not sleeper.woken:
            sleeper.woken = True
            self._busy[sleeper.thread] = sleeper.name
            self._sleepers.discard(sleeper)
            sleeper.event.set()

    def wake_due(self) -> None:
        """With the lock held: wake whose time has come, or who has a note."""
        for sleeper in list(self._sleepers):
            box = sleeper.box
            if self.ended or (not box.place.paused and (sleeper.until <= self.now or box.notes)):
                self.wake(sleeper)

    def _sleep(self, sleeper: _Sleeper) -> None:
        if self._by_itself > 0 and threading.get_ident() == self._owner:
            self._let_time_fly(sleeper)
        # The main thread looks up now and then: the kernel may give Ctrl-C to another thread.
        main = threading.current_thread() is threading.main_thread()
        while not sleeper.event.wait(0.5 if main else None):
            pass

    def _let_time_fly(self, sleeper: _Sleeper) -> None:
        """Nobody else moves time: go from one event to the next until this wait is over."""
        while not sleeper.woken:
            if self._seen != self._stirred:  # other threads may be at work outside: let them
                self._seen, self._flown = self._stirred, 0.0
                if sleeper.event.wait(STILLNESS):
                    return
                continue
            if self._flown >= self._by_itself:
                log.warning(
                    "etcdsem: %g s have passed by themselves and this wait goes on; another thread "
                    "must end it, or advance()",
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
        """Let everything that is to happen now happen."""
        until = boot_time() + PATIENCE
        while True:
            while self.deliver():
                pass
            with self.lock:
                others = self._others_busy()
                if not others:
                    return
                if boot_time() >= until:
                    log.warning("etcdsem: time goes on without %s", ", ".join(sorted(others)))
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
        """Move by some seconds, event by event."""
        self.settle()
        target = self.now + seconds
        while self.now < target:
            self.step(target)

    def jump(self, seconds: float) -> None:
        """Move by some seconds in which no thread of a client gets to run."""
        self.settle()
        with self.lock:
            target = self.now + seconds
            self._world.advance(target)
            self.now = target
            self.wake_due()
        self.settle()

    def end(self) -> None:
        """No more waiting."""
        with self.lock:
            self.ended = True
            self.wake_due()
