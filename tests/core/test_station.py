"""A station's watches, on the etcd in memory with its own time."""

from __future__ import annotations

import math

import etcdsem.testing
from etcdsem import Semaphore
from etcdsem.core import procedures
from etcdsem.core.keys import Queued
from etcdsem.core.station import WATCH_AFTER_LAST_WAITER


def test_watches_outlast_the_moment_before_their_first_waiter_is_in_line() -> None:
    """The heartbeat may tidy up between the watches' confirmation and the waiter's JOIN; later it
    closes watches that nobody came to use.
    """
    with etcdsem.testing.memory(autojump=0) as etcd:
        client = etcd.client()
        sem = Semaphore(1, "db", client=client)
        assert sem.acquire()  # the heartbeat beats while there is a lease
        station, engine = client.station("db"), client.engine
        assert engine.run(procedures.watch(station, math.inf))
        with engine.lock:
            due = station.tidy(engine.now())
        assert station.watching
        assert due <= engine.now() + WATCH_AFTER_LAST_WAITER
        etcd.advance(WATCH_AFTER_LAST_WAITER + 1)
        assert not station.watching


def test_who_was_served_does_not_come_back_into_line() -> None:
    """Threads open their letters in any order, so an older list may be learned after a newer one:
    it names those who were served meanwhile.
    """
    with etcdsem.testing.memory(autojump=0) as etcd:
        station = etcd.client().station("db")
        line = tuple(Queued(b"host.1.a/%016x" % n, n, 100 + n, b"") for n in range(4))
        station.served(line[1].created)  # a letter of a newer sender
        station.learn_line(line, line[-1].created)
        assert station.line == line[2:]
        station.forget_line()
        station.learn_line(line, 200)  # a look that was answered late
        assert station.line == line[2:]
