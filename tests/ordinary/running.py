"""Runs an ordinary program in a process of its own, and checks what it left behind.

A scenario is a function of a test module that takes a `Run`. `play` runs it in a new process:
if it stands still, faulthandler prints the stacks of all threads and ends it. Every run ends with
the same check (`Run.finish`): each slot can be acquired at once from a new client, no lease and no
thread is left, and nothing unexpected was logged or raised.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import importlib
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import etcdsem
from etcdsem import Semaphore
from etcdsem.drivers.base import Driver
from tests.helpers import guard
from tests.helpers.history import assert_clean
from tests.helpers.waiting import comes_true
from tests.ordinary.interleave import StandsStill, all_stacks

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer

STALLED = 20.0
"""Seconds in which no thread of a crowd has done anything."""

MOST_SAID = 20
"""How many wrong things a program prints."""

ROOT = Path(__file__).parents[2]

PATIENCE = 10.0
"""Seconds within which everything must have been given back, and threads must have ended."""

STANDSTILL = 40.0
"""Seconds after the end of the work at which a run that goes on is taken to stand still."""


class Run:
    """One run of a scenario: its clients and threads, and what went wrong."""

    def __init__(self, endpoint: str, name: str, seconds: float, options: dict[str, Any]) -> None:
        self.endpoint = endpoint
        self.name = name
        self.seconds = seconds
        self.options = options
        self.wrong: list[str] = []
        self.expected: list[str] = []
        """Patterns of log messages that this scenario expects, at any level."""
        self.counts: Counter[str] = Counter()
        self.records: list[logging.LogRecord] = []
        self.lease_ids: set[int] = set()  # all that this process has ever asked for
        self._lock = threading.Lock()
        self._threads = set(threading.enumerate())
        self._clients: list[etcdsem.Client] = []
        self._inside: Counter[str] = Counter()
        self.until = time.monotonic() + seconds

    # -- for scenarios

    def client(self, **options: Any) -> etcdsem.Client:
        """A client that `finish` closes."""
        client = etcdsem.connect(self.endpoint, **options)
        self._clients.append(client)
        return client

    def going(self) -> bool:
        """Is there time left, and nothing wrong so far?"""
        return time.monotonic() < self.until and not self.wrong

    def note(self, wrong: str) -> None:
        """Something is wrong. Said at once, since the program may stand still from now on."""
        self.wrong.append(wrong)
        if len(self.wrong) <= MOST_SAID:
            print(f"WRONG: {wrong}", flush=True)

    def check(self, right: object, what: str) -> None:
        """Note what is wrong, unless it is right."""
        if not right:
            self.note(what)

    def count(self, what: str, number: int = 1) -> None:
        """Count something, from any thread."""
        with self._lock:
            self.counts[what] += number

    @contextlib.contextmanager
    def inside(self, limit: int, what: str = "bodies") -> Iterator[None]:
        """Around a body that runs with a lease: at most `limit` at a time."""
        with self._lock:
            self._inside[what] += 1
            self.counts["bodies"] += 1
            if self._inside[what] > limit:
                self.note(f"{self._inside[what]} {what} at a time, the limit is {limit}")
        try:
            yield
        finally:
            with self._lock:
                self._inside[what] -= 1

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        """An exception of this block is something wrong; the block ends with it."""
        try:
            yield
        except StandsStill as error:  # nothing more can be checked, and the end would not come
            print(f"WRONG: {error}", flush=True)
            os._exit(2)
        except BaseException:
            self.note(traceback.format_exc())

    def crowd(self, number: int, work: Callable[[int], object]) -> None:
        """So many threads that each repeat some work (given their number) until time is up."""

        def repeat(index: int) -> None:
            with self.noting():
                while self.going():
                    work(index)

        threads = [threading.Thread(target=repeat, args=(n,)) for n in range(number)]
        for one in threads:
            one.daemon = True  # those that stand still must not keep the program
            one.start()
        seen, since = dict(self.counts), time.monotonic()
        while alive := [one for one in threads if one.is_alive()]:
            alive[0].join(0.5)
            if seen != self.counts:
                seen, since = dict(self.counts), time.monotonic()
            elif time.monotonic() > since + STALLED:
                raise StandsStill(f"nothing has happened for {STALLED:g} s:\n{all_stacks()}")

    async def tasks(self, number: int, work: Callable[[int], Coroutine[Any, Any, object]]) -> None:
        """The same with tasks of this event loop."""

        async def repeat(index: int) -> None:
            with self.noting():
                while self.going():
                    await work(index)

        await asyncio.gather(*map(repeat, range(number)))

    def eventually(self, condition: Callable[[], object], what: str) -> bool:
        """Wait for something; wrong if it does not come about."""
        right = comes_true(condition, PATIENCE)
        self.check(right, what)
        return bool(right)

    def nothing_held(self, sem: Semaphore) -> None:
        """The object lists no lease, at once or soon: another thread may give them back."""
        if not comes_true(lambda: not sem.leases, PATIENCE):
            self.note(f"still held by {sem}: {sem.leases}")

    # -- the end

    def finish(self) -> None:
        """The check at the end of each run; the clients of the run are still open then."""
        with etcdsem.connect(self.endpoint) as fresh:
            if any(seen.name == self.name for seen in fresh.overview()):
                self._acquire_all(fresh, self.name, fresh.limit(self.name) or 0)
            for one in self._clients:
                with self.noting():
                    one.close()
            mine = fresh._driver.session.leases.live
            connection = fresh._driver.connection

            def left() -> set[int]:
                return self.lease_ids.intersection(connection.leases(5.0)).difference(mine)

            if not comes_true(lambda: not left(), PATIENCE):
                self.note(f"leases are left in etcd: {sorted(left())}")
        if not comes_true(lambda: not self._extra_threads(), PATIENCE):
            self.note(f"threads are left: {self._extra_threads()}\n{all_stacks()}")
        for violation in guard.take_violations():
            self.note(violation)
        for record in list(self.records):
            text = record.getMessage()
            if any(re.search(pattern, text) for pattern in self.expected):
                continue
            if record.levelno >= logging.WARNING or record.exc_info:
                trace = logging.Formatter().format(record)
                self.note(f"logged at {record.levelname}: {trace}")

    def _acquire_all(self, fresh: etcdsem.Client, name: str, limit: int) -> None:
        """Each slot can be acquired at once by a new client."""
        sem = Semaphore(limit, name, client=fresh)
        if not comes_true(lambda: sem.get_value() == 0, PATIENCE):
            held = [f"slot {one.slot} (lease {one.lease_id})" for one in sem.holders()]
            self.note(f"{name}: after the end there are still held: {', '.join(held)}")
        leases = [sem.acquire_lease(timeout=0) for _ in range(limit)]
        slots = {lease.slot for lease in leases if lease is not None}
        if slots != set(range(limit)):
            self.note(f"{name}: of {limit} slots only {sorted(slots)} could be acquired")
        for lease in leases:
            if lease is not None and not lease.release():
                self.note(f"{name}: {lease} was not released")

    def _extra_threads(self) -> list[threading.Thread]:
        return [one for one in threading.enumerate() if one not in self._threads]


Scenario = Callable[[Run], None]


# ---------------------------------------------------------------- the test's side


class Program:
    """A scenario in a process of its own."""

    def __init__(
        self, scenario: Scenario, etcd: EtcdServer, name: str, seconds: float, **options: Any
    ) -> None:
        self.etcd = etcd
        self.name = name
        self.limit = 2 * STANDSTILL + seconds
        where = f"{scenario.__module__}:{scenario.__qualname__}"
        given = json.dumps([etcd.endpoint, name, seconds, options])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.ordinary.running", where, given],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def result(self) -> dict[str, int]:
        """What it counted; fails if anything was wrong, also in etcd's own history."""
        try:
            said, _ = self.process.communicate(timeout=self.limit)
        except subprocess.TimeoutExpired:
            self.process.kill()
            said, _ = self.process.communicate()
            raise AssertionError(f"the program did not end:\n{said}") from None
        assert self.process.returncode == 0, f"exit code {self.process.returncode}:\n{said}"
        assert_clean(self.etcd, self.name)
        counts: dict[str, int] = json.loads(said.splitlines()[-1])
        return counts

    def outcome(self) -> dict[str, int] | AssertionError:
        """The same, with a failure as a result."""
        try:
            return self.result()
        except AssertionError as error:
            return error


def play(
    scenario: Scenario, etcd: EtcdServer, name: str, seconds: float, **options: Any
) -> dict[str, int]:
    """Run a scenario to its end; gives what it counted."""
    return Program(scenario, etcd, name, seconds, **options).result()


# ---------------------------------------------------------------- the process's side


class _Collector(logging.Handler):
    """Keeps each record."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    def emit(self, record: logging.LogRecord) -> None:
        self.run.records.append(record)


def _observe(run: Run) -> None:
    """Note what is logged, what threads and finalizers raise, and which leases are ours."""
    guard.install()
    random_id = Driver.random_id

    def noted_id(self: Driver) -> int:
        made = random_id(self)
        run.lease_ids.add(made)
        return made

    Driver.random_id = noted_id  # type: ignore[method-assign]
    logging.getLogger("etcdsem").setLevel(logging.DEBUG)
    logging.getLogger().addHandler(_Collector(run))

    def thread_raised(hook: threading.ExceptHookArgs) -> None:
        trace = traceback.format_exception(hook.exc_type, hook.exc_value, hook.exc_traceback)
        run.note(f"a thread raised:\n{''.join(trace)}")

    def unraisable(hook: sys.UnraisableHookArgs) -> None:
        trace = traceback.format_exception(hook.exc_type, hook.exc_value, hook.exc_traceback)
        run.note(f"{hook.err_msg or 'ignored in'} {hook.object!r}:\n{''.join(trace)}")

    threading.excepthook = thread_raised
    sys.unraisablehook = unraisable


def main() -> int:
    """Run the scenario that the arguments name."""
    where, given = sys.argv[1:]
    module, _, function = where.partition(":")
    scenario: Scenario = getattr(importlib.import_module(module), function)
    endpoint, name, seconds, options = json.loads(given)
    faulthandler.enable()
    faulthandler.dump_traceback_later(seconds + STANDSTILL, exit=True)
    sys.setswitchinterval(1e-5)  # threads meet each other at more places
    run = Run(endpoint, name, seconds, options)
    _observe(run)
    with run.noting():
        scenario(run)
    with run.noting():
        run.finish()
    print(json.dumps(run.counts), flush=True)
    return 1 if run.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
