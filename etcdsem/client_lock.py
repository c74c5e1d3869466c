"""A client's lock, and work that is deferred until the lock is free.

1. Nothing foreign is called under the lock: no thread is started, no callback called, no record
   logged. Each of them may block, take a lock of its own, or call this client again. So they are
   noted, and done by the next thread that releases the lock.
2. A requested thread stays noted until it has really begun. If it could not be started (the process
   is at its limit of threads or memory), the next thread that releases the lock tries again.
3. A thread that serves the whole client (the heartbeat, a stream) must not wait for a log handler.
   It passes its records to a separate thread; only if that cannot be started it logs by itself. Any
   other thread logs its own records at the end of its call: during the call, others may wait for
   what it does next, and one of them may hold the handler's lock. Before it waits, it passes its
   records on.
4. A finalizer or a signal handler may run in a thread that is inside the client. `inside` detects
   that. What it requests is noted and done elsewhere, or refused, since it would wait for what its
   own thread must do next. Noting takes no lock.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from types import TracebackType

from etcdsem import exit_hooks
from etcdsem.clock import boot_time

log = logging.getLogger("etcdsem")

AGAIN_AFTER = 0.2
"""Seconds after which the start of a thread that has not begun is retried."""

MOST_RECORDS = 1000
"""Maximum number of log records that wait for a slow handler; the oldest are dropped first."""


class _Thread(threading.local):
    """The state of the present thread."""

    inside: tuple[ClientLock, ...] = ()
    """The clients whose code it runs, the innermost last. Never changed in place: a finalizer may
    run anywhere, and leaves it unchanged."""
    serves = False
    """True for a thread that serves the whole client and must not wait for foreign code."""
    records: deque[Callable[[], object]] = deque()  # noqa: RUF012 - if a finalizer runs below
    """Records that this thread must log."""

    def __init__(self) -> None:
        self.records = deque()


class Job:
    """A function to run once, in its own thread."""

    __slots__ = ("failed", "function", "name", "next_try", "serves")

    def __init__(self, function: Callable[[], object], name: str, *, serves: bool) -> None:
        self.function = function
        self.name = name
        self.serves = serves
        self.next_try = 0.0
        self.failed = ""  # why the thread could not be started


class ClientLock:
    """A context manager; when it exits, noted work is done.

    `start` starts a daemon thread; it raises RuntimeError or MemoryError if it cannot.
    """

    def __init__(self, start: Callable[[Callable[[], None], str], None] | None = None) -> None:
        self.lock = threading.RLock()
        self._start_thread = start or _start_thread
        self._jobs: dict[Job, None] = {}  # until they have begun
        self._actions: deque[Callable[[], object]] = deque()  # our own: quick and idempotent
        self._records: deque[Callable[[], object]] = deque(maxlen=MOST_RECORDS)
        """Of the threads that serve the client; logged by the reporter."""
        self._reporter: Job | None = None
        self.closed = False  # stop waiting for threads that cannot be started

    def __enter__(self) -> None:
        self.lock.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.lock.release()
        self.settle()

    @property
    def held(self) -> bool:
        """Does this thread hold the lock?"""
        owned: bool = self.lock._is_owned()  # type: ignore[attr-defined]  # as Condition asks
        return owned

    # -- noting work; none of this takes a lock

    def start(self, function: Callable[[], object], name: str, *, serves: bool = True) -> Job:
        """Run a function in a daemon thread. `serves`: it serves the whole client, and calls
        nothing foreign.
        """
        job = self.note(function, name, serves=serves)
        if not self.held:
            self.settle()
        return job

    def note(self, function: Callable[[], object], name: str, *, serves: bool = True) -> Job:
        """The same, but leave the start to the next thread that releases the lock."""
        job = Job(function, name, serves=serves)
        self._jobs[job] = None
        return job

    def waits(self, job: Job | None) -> bool:
        """Was the job noted, and has it not begun yet?"""
        return job in self._jobs

    def after(self, action: Callable[[], object]) -> None:
        """Defer a quick action of our own, which must be harmless when it is done twice."""
        self._actions.append(action)

    def log(self, record: Callable[[], object]) -> None:
        """Defer a log record. Threads that do not serve the client log it as their call ends."""
        (self._records if _thread.serves else _thread.records).append(record)

    @property
    def starved(self) -> str:
        """Why a serving thread could not be started; empty if all were."""
        return next((job.failed for job in list(self._jobs) if job.failed and job.serves), "")

    @property
    def unstarted(self) -> str:
        """Why a thread, also one for a callback, could not be started; empty if all could."""
        return next((job.failed for job in list(self._jobs) if job.failed), "")

    # -- doing it

    def settle(self) -> None:
        """Do the noted work, unless this thread holds the lock."""
        mine = _thread.records
        if (mine or self._jobs or self._actions or self._records) and not self.held:
            self._act()
            if self._jobs:
                self._start_jobs()
            if not _thread.inside:
                self._report(mine)
                self._report(self._records)
            elif self._records:
                self._report_elsewhere()

    def hand_over_records(self) -> None:
        """Have the records of this thread logged elsewhere, since it is about to wait."""
        mine = _thread.records
        if mine:
            self._records.extend(mine)
            mine.clear()
            self._report_elsewhere()

    def _act(self) -> None:
        while self._actions:
            try:
                action = self._actions[0]
                action()
                self._actions.remove(action)  # only now: an interruption may come anywhere
            except (IndexError, ValueError):
                pass  # another thread was faster

    def _start_jobs(self) -> None:
        now = boot_time()
        for job in list(self._jobs):
            if now < job.next_try:
                continue
            job.next_try = now + AGAIN_AFTER
            try:
                self._start_thread(partial(self._run, job), job.name)
                job.failed = ""
            except (RuntimeError, MemoryError) as error:
                why = str(error) or type(error).__name__
                if not job.failed and not exit_hooks.over():  # Python 3.12 starts none at exit
                    message = "etcdsem: the thread %s cannot be started: %s; trying again"
                    self.log(partial(log.warning, message, job.name, why))
                job.failed = why

    def _run(self, job: Job) -> None:
        if self._jobs.pop(job, self) is self:
            return  # it was started twice
        if job.serves:
            _thread.serves = True
            _thread.inside = (self,)
            self._serve(job)
            return
        try:
            job.function()
        finally:
            self.settle()  # log its records

    def _serve(self, job: Job) -> None:
        try:
            job.function()
        finally:
            self.settle()
            while not self.closed and any(job.failed for job in list(self._jobs)):
                # Perhaps no other thread will release the lock.
                time.sleep(AGAIN_AFTER)
                self.settle()

    @staticmethod
    def _report(records: deque[Callable[[], object]]) -> None:
        """Log outside of everything: a handler may well use this client."""
        outer, _thread.inside = _thread.inside, ()
        try:
            while records:
                try:
                    record = records.popleft()
                except IndexError:
                    return  # another thread was faster
                try:
                    record()
                except Exception:  # from a filter; logging deals with those of handlers
                    sys.excepthook(*sys.exc_info())
        finally:
            _thread.inside = outer

    def _report_elsewhere(self) -> None:
        reporter = self._reporter
        if reporter is None:
            reporter = self._reporter = self.note(self._report_all, "etcdsem-log", serves=False)
        if reporter in self._jobs:
            self._start_jobs()
        if reporter.failed:
            self._report(self._records)

    def _report_all(self) -> None:
        try:
            while self._records:
                self._report(self._records)
        finally:
            self._reporter = None


def _start_thread(function: Callable[[], None], name: str) -> None:
    threading.Thread(target=function, name=name, daemon=True).start()


# ---------------------------------------------------------------- threads inside a client


def enter(lock: ClientLock) -> None:
    """Mark that this thread begins to work for a client."""
    _thread.inside += (lock,)


def leave() -> None:
    """Mark that this thread has finished working for the client."""
    _thread.inside = _thread.inside[:-1]


def inside() -> ClientLock | None:
    """The lock of the client whose code this thread is running, or None. If there is one, the
    caller is a finalizer or a signal handler, and must not wait or start a thread.
    """
    if _thread.inside and not _on_the_stack():
        _thread.inside = ()  # an interruption came between `enter` and `leave`
    within = _thread.inside
    return within[-1] if within else None


def elsewhere(own: ClientLock, function: Callable[[], object], name: str) -> None:
    """Run a function in its own thread. The thread is started now, or, if this thread is inside a
    client, when it leaves that client.
    """
    within = inside()
    if within is None:
        own.start(function, name, serves=False)
    else:
        within.note(function, name, serves=False)


MARKED: set[object] = {ClientLock._serve.__code__}
"""The code objects of functions that work for a client."""

_OUTSIDE = ClientLock._report.__code__


def _on_the_stack() -> bool:
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code in MARKED:
            return True
        if frame.f_code is _OUTSIDE:
            return False
        frame = frame.f_back  # type: ignore[assignment]
    return False


_thread = _Thread()
