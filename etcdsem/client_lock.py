"""A client's lock, and what is noted under it to be done once it is free.

1. Nothing foreign is called under the lock: no thread is started, no callback called, no record
   logged. Each of them may block, or take a lock of its own, or come back to us. So they are noted,
   and done by the next thread that leaves the lock.
2. A thread that was asked for stays noted until it has really begun. Whoever leaves the lock starts
   it again where that failed (the process is at its limit of threads or memory).
3. A thread that serves all of a client (the heartbeat, a stream) must not wait for a log handler.
   It hands its records to a thread of their own; only where none can be had it logs by itself.
   Any other thread logs its own when its call is over: in the midst of it, others may wait for what
   it does next, and one of them may have the handler's lock. Before it waits, it hands them over.
4. A finalizer or a signal handler may strike in a thread that is inside the client. `inside` tells;
   what it wants is noted too, and done elsewhere, or refused: it would wait for what its own thread
   is to do next. To note something takes no lock.
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
"""Seconds after which a thread that has not begun is started again."""

MOST_RECORDS = 1000
"""Log records that may wait for a slow handler; the oldest go first."""


class _Thread(threading.local):
    """What is known of the present thread."""

    inside: tuple[ClientLock, ...] = ()
    """Of the clients that it is in, the innermost last. Never changed in place: a finalizer may
    strike anywhere, and leaves it as it was."""
    serves = False
    """It serves all of a client, so it must not wait for foreign code."""
    records: deque[Callable[[], object]] = deque()  # noqa: RUF012 - if a finalizer strikes below
    """What this thread is to log."""

    def __init__(self) -> None:
        self.records = deque()


class Job:
    """A function that shall run once, in a thread of its own."""

    __slots__ = ("failed", "function", "name", "next_try", "serves")

    def __init__(self, function: Callable[[], object], name: str, *, serves: bool) -> None:
        self.function = function
        self.name = name
        self.serves = serves
        self.next_try = 0.0
        self.failed = ""  # why the thread could not be started


class ClientLock:
    """Use it as a context manager: at its end, what was noted is done.

    `start` starts a daemon thread; it raises RuntimeError or MemoryError where it cannot.
    """

    def __init__(self, start: Callable[[Callable[[], None], str], None] | None = None) -> None:
        self.lock = threading.RLock()
        self._start_thread = start or _start_thread
        self._jobs: dict[Job, None] = {}  # until they have begun
        self._actions: deque[Callable[[], object]] = deque()  # ours: quick, harmless when repeated
        self._records: deque[Callable[[], object]] = deque(maxlen=MOST_RECORDS)
        """Of the threads that serve all; the reporter logs them."""
        self._reporter: Job | None = None
        self.closed = False  # threads that cannot be started are waited for no more

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
        """Does this thread hold it?"""
        owned: bool = self.lock._is_owned()  # type: ignore[attr-defined]  # as Condition asks
        return owned

    # -- what is noted; all of it takes no lock

    def start(self, function: Callable[[], object], name: str, *, serves: bool = True) -> Job:
        """Run a function in a daemon thread. `serves`: it serves all of the client, and calls
        nothing foreign.
        """
        job = self.note(function, name, serves=serves)
        if not self.held:
            self.settle()
        return job

    def note(self, function: Callable[[], object], name: str, *, serves: bool = True) -> Job:
        """The same, but leave it to the next thread that leaves the lock."""
        job = Job(function, name, serves=serves)
        self._jobs[job] = None
        return job

    def waits(self, job: Job | None) -> bool:
        """Was it noted, and has not begun yet?"""
        return job in self._jobs

    def after(self, action: Callable[[], object]) -> None:
        """Do something of ours that is quick, and harmless when it is done twice."""
        self._actions.append(action)

    def log(self, record: Callable[[], object]) -> None:
        """Log something. A thread that does not serve all logs its own, before its call returns."""
        (self._records if _thread.serves else _thread.records).append(record)

    @property
    def starved(self) -> str:
        """Why a thread that serves all could not be started; empty if there is none."""
        return next((job.failed for job in list(self._jobs) if job.failed and job.serves), "")

    # -- and done

    def settle(self) -> None:
        """Do what was noted, unless this thread holds the lock."""
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
        """This thread will wait: what it has noted so far is logged elsewhere."""
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
                self._actions.remove(action)  # only now: an interruption may strike anywhere
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
                if not job.failed and not exit_hooks.over():  # Python 3.12 starts none then
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
            self.settle()  # what it has logged

    def _serve(self, job: Job) -> None:
        try:
            job.function()
        finally:
            self.settle()
            while not self.closed and any(job.failed for job in list(self._jobs)):
                # Nobody else may come by.
                time.sleep(AGAIN_AFTER)
                self.settle()

    @staticmethod
    def _report(records: deque[Callable[[], object]]) -> None:
        """Log, outside of everything: a handler may well use this client."""
        outer, _thread.inside = _thread.inside, ()
        try:
            while records:
                try:
                    record = records.popleft()
                except IndexError:
                    return  # another thread was faster
                try:
                    record()
                except Exception:  # a filter's; handlers' are logging's business
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


# ---------------------------------------------------------------- who is inside


def enter(lock: ClientLock) -> None:
    """This thread begins to work for a client."""
    _thread.inside += (lock,)


def leave() -> None:
    """It is done with that."""
    _thread.inside = _thread.inside[:-1]


def inside() -> ClientLock | None:
    """The lock of the client that this thread is working in: then whoever asks is a finalizer or a
    signal handler, and must neither wait nor start a thread.
    """
    if _thread.inside and not _on_the_stack():
        _thread.inside = ()  # an interruption has struck between `enter` and `leave`
    within = _thread.inside
    return within[-1] if within else None


def elsewhere(own: ClientLock, function: Callable[[], object], name: str) -> None:
    """Run a function in a thread of its own, started by whoever may start one: this thread once it
    leaves the client that it is in, else now.
    """
    within = inside()
    if within is None:
        own.start(function, name, serves=False)
    else:
        within.note(function, name, serves=False)


MARKED: set[object] = {ClientLock._serve.__code__}
"""The code of functions that work for a client."""

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
