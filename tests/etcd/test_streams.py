"""The watch stream and the keepalive stream on a real etcd: breaks, restarts, compaction."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import pytest

from etcdsem.client_lock import ClientLock
from etcdsem.core.commands import Delete, Event, Failure, Put, Txn
from etcdsem.etcd.connection import Connection
from etcdsem.etcd.settings import read_settings
from etcdsem.etcd.stream_thread import ThreadStreams
from tests.etcd.loops import AioLine
from tests.etcd.proxy import Proxy
from tests.helpers.waiting import eventually

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer


class Ear:
    """Hands on what it hears; checks that the guard is held."""

    def __init__(self, guard: Any) -> None:
        self.box: SimpleQueue[tuple[str, Any]] = SimpleQueue()
        self._guard = guard

    def _hear(self, what: str, more: Any) -> None:
        assert self._guard.held
        self.box.put((what, more))

    def created(self, revision: int) -> None:
        self._hear("created", revision)

    def events(self, events: Sequence[Event]) -> None:
        for event in events:
            self._hear(event.kind, event.kv.value)

    def gap(self, reason: str) -> None:
        self._hear("gap", reason)

    def refused(self, error: Failure) -> None:
        self._hear("refused", error)

    def next(self) -> tuple[str, Any]:
        """Wait for what comes next."""
        return self.box.get(timeout=20)


class Line:
    """A connection, possibly through a proxy, with both streams."""

    def __init__(self, endpoint: str) -> None:
        self.guard = ClientLock()
        self.connection = Connection(read_settings(endpoint))
        self.renewed: SimpleQueue[tuple[int, float]] = SimpleQueue()
        self.watches = self.keepalives = ThreadStreams(
            self.connection, self.guard, lambda lease, ttl: self.renewed.put((lease, ttl))
        )

    def renew(self, lease: int) -> None:
        """As the heartbeat does."""
        with self.guard:
            self.keepalives.renew(lease)

    def close(self) -> None:
        """End it all."""
        self.watches.close()
        self.connection.close()


@pytest.fixture
def proxy(fresh_etcd: EtcdServer) -> Iterator[Proxy]:
    """A proxy before an etcd of the test's own."""
    with Proxy(fresh_etcd.endpoint) as one:
        yield one


@pytest.fixture(params=[Line, AioLine], ids=["threads", "asyncio"])
def line(proxy: Proxy, request: pytest.FixtureRequest) -> Iterator[Line]:
    """Streams through the proxy: those of threads, and those of an event loop."""
    one = request.param(proxy.endpoint)
    yield one
    one.close()


@pytest.fixture
def direct(fresh_etcd: EtcdServer) -> Iterator[Connection]:
    """A connection past the proxy."""
    one = Connection(read_settings(fresh_etcd.endpoint))
    yield one
    one.close()


def put(connection: Connection, value: int, key: bytes = b"/w/k") -> None:
    """Write a number."""
    connection.transact(Txn((), (Put(key, b"%d" % value),)), 10)


def test_no_event_is_missed_or_doubled_over_breaks(
    line: Line, proxy: Proxy, direct: Connection
) -> None:
    """Twenty breaks, writes before, between and after: all told once, in order."""
    ear = Ear(line.guard)
    line.watches.watch(ear, b"/w/", b"/w0")
    assert ear.next()[0] == "created"
    for turn in range(20):
        put(direct, 2 * turn)
        proxy.reset()
        put(direct, 2 * turn + 1)
    told = [ear.next() for _ in range(40)]
    assert told == [("put", b"%d" % number) for number in range(40)]
    assert ear.box.empty()


def test_a_restart_of_etcd(line: Line, fresh_etcd: EtcdServer, direct: Connection) -> None:
    """Etcd is killed and started again: the watch goes on where it was."""
    ear = Ear(line.guard)
    line.watches.watch(ear, b"/w/", b"/w0")
    assert ear.next()[0] == "created"
    put(direct, 1)
    assert ear.next() == ("put", b"1")
    fresh_etcd.kill()
    fresh_etcd.restart()
    put(direct, 2)
    assert ear.next() == ("put", b"2")


def test_compaction_during_a_break(line: Line, proxy: Proxy, direct: Connection) -> None:
    """What was compacted away is told as a gap, and the watch goes on."""
    ear = Ear(line.guard)
    line.watches.watch(ear, b"/w/", b"/w0")
    assert ear.next()[0] == "created"
    proxy.down = "drop"
    proxy.reset()
    for number in range(5):
        put(direct, number)
    direct.compact(direct.status(5).revision, 5)
    put(direct, 5)
    proxy.down = "pass"
    proxy.reset()
    assert ear.next()[0] == "gap"
    put(direct, 6)
    seen = ear.next()
    assert seen in (("put", b"5"), ("put", b"6"))


def test_filters_and_cancel(line: Line, direct: Connection) -> None:
    """Only deletes, only puts; nothing after a cancel."""
    deletes, puts, none = Ear(line.guard), Ear(line.guard), Ear(line.guard)
    line.watches.watch(deletes, b"/w/", b"/w0", only="delete")
    line.watches.watch(puts, b"/w/", b"/w0", only="put")
    cancelled = line.watches.watch(none, b"/w/", b"/w0")
    for ear in (deletes, puts, none):
        assert ear.next()[0] == "created"
    cancelled.cancel()
    put(direct, 1)
    direct.transact(Txn((), (Delete(b"/w/k"),)), 5)
    put(direct, 2)
    assert deletes.next()[0] == "delete"
    assert [puts.next(), puts.next()] == [("put", b"1"), ("put", b"2")]
    assert deletes.box.empty()
    assert none.box.empty()


def test_renewals(line: Line, direct: Connection) -> None:
    """A lease is renewed; one that is gone is told with a TTL of 0."""
    direct.grant(111, 60, 5)
    line.renew(111)
    assert line.renewed.get(timeout=10) == (111, 60.0)
    direct.revoke(111, 5)
    line.renew(111)
    lease, ttl = line.renewed.get(timeout=10)
    assert (lease, ttl <= 0) == (111, True)


def test_late_answers_of_a_former_stream_are_dropped(
    line: Line, proxy: Proxy, direct: Connection
) -> None:
    """After a restart only the new stream is heard."""
    direct.grant(111, 60, 5)
    direct.grant(222, 60, 5)
    line.renew(111)
    assert line.renewed.get(timeout=10)[0] == 111
    proxy.down = "hold"
    line.renew(111)
    with line.guard:
        line.keepalives.restart()
    proxy.down = "pass"
    line.renew(222)
    assert line.renewed.get(timeout=10)[0] == 222
    assert line.renewed.empty()


def test_a_broken_keepalive_stream_is_opened_again(
    line: Line, proxy: Proxy, direct: Connection
) -> None:
    """The next renewal opens a new one."""
    direct.grant(111, 60, 5)
    line.renew(111)
    assert line.renewed.get(timeout=10)[0] == 111
    proxy.reset()
    eventually(lambda: line.keepalives._keepalive is None)

    def renewed() -> bool:
        line.renew(111)
        return not line.renewed.empty()

    eventually(renewed)


class Interrupted(BaseException):
    """Raised by a signal handler."""


def fails_once(kind: type, name: str, error: BaseException, patch: pytest.MonkeyPatch) -> None:
    """The next call of a method raises, and has no effect."""

    def fail(*_arguments: object, **_options: object) -> Any:
        patch.undo()
        raise error

    patch.setattr(kind, name, fail)


def test_an_interruption_while_the_thread_is_asked_for(
    fresh_etcd: EtcdServer, direct: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked for again."""
    direct.grant(7, 60, 5)
    line = Line(fresh_etcd.endpoint)
    fails_once(ClientLock, "start", Interrupted(), monkeypatch)
    with pytest.raises(Interrupted):
        line.renew(7)
    line.renew(7)
    assert line.renewed.get(timeout=20)[0] == 7
    line.close()


def test_an_error_while_connecting(
    fresh_etcd: EtcdServer, direct: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it is, the thread tries again."""
    direct.grant(7, 60, 5)
    line = Line(fresh_etcd.endpoint)
    fails_once(Connection, "open_streams", MemoryError(), monkeypatch)
    line.renew(7)
    assert line.renewed.get(timeout=20)[0] == 7
    line.close()


def test_close_ends_all_threads(fresh_etcd: EtcdServer) -> None:
    """No thread is left, whether the streams were used or not."""
    before = set(threading.enumerate())
    for used in (False, True):
        line = Line(fresh_etcd.endpoint)
        if used:
            ear = Ear(line.guard)
            line.watches.watch(ear, b"/w/", b"/w0")
            assert ear.next()[0] == "created"
            line.renew(5)
            line.renewed.get(timeout=10)
        line.close()
        eventually(lambda: set(threading.enumerate()) <= before)
