"""A copy of all semaphores under a prefix that follows etcd.

1. One watch on the prefix keeps the copy up to date. `refresh()` costs etcd one count of keys,
   which shows whether etcd answers and whether the copy is complete. Only if it is not, all keys
   are read.
2. `refresh()` ends within seconds, whatever etcd does.
3. Nothing blocks under the engine's lock; `_turn` lets one thread at a time query etcd.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from etcdsem.core import transactions
from etcdsem.core.commands import Event, Failure, NotApplied, OutcomeUnknown, Procedure, Range, Txn
from etcdsem.core.error_mapping import public_error
from etcdsem.core.listeners import CallbackListener
from etcdsem.core.mirror import PrefixView, SemaphoreView
from etcdsem.core.retry import transact
from etcdsem.errors import EtcdSemError
from etcdsem.model import Overview

if TYPE_CHECKING:
    from etcdsem.core.commands import Watch
    from etcdsem.sync import Client

log = logging.getLogger("etcdsem")

PATIENCE = 3.0
"""Seconds for a refresh; Prometheus waits for 10 s by default."""


class PrefixMirror:
    """A copy of everything under a client's prefix."""

    def __init__(self, client: Client) -> None:
        self._driver = client._driver
        self._view = PrefixView(client.prefix)
        self.prefix = self._view.prefix
        self.full_reads = 0
        """How often all keys were read."""
        self._turn = threading.Lock()
        self._watch: Watch | None = None
        self._watching = threading.Event()
        self._refused: Failure | None = None
        self.trouble = ""
        """Why the copy could not be brought up to date; empty if it was."""
        self.updated_at: float | None = None
        """When it was last brought up to date, by time.monotonic()."""
        self._asked_at = 0.0

    def refresh(self) -> bool:
        """Bring the copy up to date. False if etcd does not answer in time."""
        began = time.monotonic()
        with self._turn:
            if self._asked_at > began:  # another thread asked while this one waited for its turn
                return not self.trouble
            self._asked_at = time.monotonic()
            try:
                self._ask()
                trouble = ""
            except Failure as failure:
                trouble = str(public_error(failure, "read the semaphores"))
            except EtcdSemError as error:
                trouble = str(error)
            if not trouble:
                self.updated_at = time.monotonic()
            if trouble != self.trouble:
                self.trouble = trouble
                log.warning("%s", trouble or "etcd answers again")
        return not trouble

    @contextmanager
    def semaphores(self) -> Iterator[tuple[float, Sequence[SemaphoreView]]]:
        """The time, and all semaphores and rate limits by name. They may change after the block."""
        with self._driver.turn:
            now = self._driver.now()
            yield now, [line for _, line in sorted(self._view.lines.items())]

    def overview(self) -> list[Overview]:
        """What `Client.overview()` would return, from the copy."""
        with self.semaphores() as (_, views):
            return [_overview(view) for view in views if view.limit or view.held or view.waiting]

    def knows(self, name: str) -> bool:
        """Whether the copy has anything of a semaphore or rate limit."""
        with self._driver.turn:
            return name.encode() in self._view.lines

    def _ask(self) -> None:
        driver, view = self._driver, self._view
        until = driver.now() + PATIENCE
        self._listen(until)
        if view.state == "live":
            keys = Range(view.start, view.end, count_only=True)
            counted = driver.run(self._read(keys, until))
            with driver.turn:
                view.expect(counted[0], counted[1], driver.now())
        while view.state != "live":
            if driver.now() >= until:
                raise NotApplied("events were missed repeatedly while all keys were read")
            self._read_all(until)

    def _listen(self, until: float) -> None:
        """Make sure that the watch is up; raises a Failure if it cannot be."""
        driver, view = self._driver, self._view
        with driver.turn:
            if self._watch is None:
                self._refused = None
                self._watching.clear()
                listener = CallbackListener(
                    self._events,
                    created=self._watching.set,
                    gap=view.lost,
                    refused=self._no_watch,
                )
                self._watch = driver.watch(listener, view.start, view.end)
        if not self._watching.wait(max(0.0, until - driver.now())):
            raise NotApplied("no watch could be set up in time")
        if self._refused is not None:
            raise self._refused

    def _events(self, events: Sequence[Event]) -> None:
        self._view.apply(events, self._driver.now())

    def _no_watch(self, error: Failure) -> None:
        self._watch, self._refused = None, error
        self._view.lost()
        self._watching.set()

    def _read_all(self, until: float) -> None:
        driver, view = self._driver, self._view
        with driver.turn:
            view.begin()
        try:
            driver.run(self._load(until))
        finally:
            with driver.turn:
                if view.state == "loading":
                    view.abandon()
        self.full_reads += 1

    def _load(self, until: float) -> Procedure[None]:
        view, session = self._view, self._driver.session
        scan = Txn((), (Range(view.start, view.end),))
        reply = yield from transact(session, scan, until)
        kvs = transactions.as_range(reply.replies[0]).kvs
        view.load(kvs, reply.revision, session.env.now(), session.env.wall())

    def _read(self, keys: Range, until: float) -> Procedure[tuple[int, int]]:
        """(revision, number of keys); retried once if that may help."""
        session = self._driver.session
        for last in (False, True):
            try:
                reply = yield from transact(session, Txn((), (keys,)), until)
                return reply.revision, transactions.as_range(reply.replies[0]).count
            except (NotApplied, OutcomeUnknown):
                if last or session.env.now() >= until:
                    raise
        raise AssertionError("two attempts gave neither an answer nor a failure")


def _overview(view: SemaphoreView) -> Overview:
    first = min(view.waiting.values(), key=lambda one: one.token, default=None)
    limit = view.limit
    return Overview(
        name=view.name,
        max_leases=limit.number if limit else None,
        held=len(view.held),
        waiting=len(view.waiting),
        junk=len(view.junk),
        waiting_since=first.said if first else None,
        pause=limit.pause if limit else None,
        rate=limit.rate if limit else None,
        applied=view.applied,
        expires=bool(limit and limit.lease),
    )


__all__ = ["PrefixMirror", "SemaphoreView"]
