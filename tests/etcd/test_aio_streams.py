"""Streams in an event loop, beyond what both kinds have in common (`test_streams`)."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from etcdsem.client_lock import ClientLock
from etcdsem.core.commands import Event, Failure, NotConnected, Put, Txn
from etcdsem.etcd import rpc, stream_connection
from etcdsem.etcd.aio_connection import AioConnection
from etcdsem.etcd.aio_streams import AioStreams
from etcdsem.etcd.connection import Connection
from etcdsem.etcd.settings import read_settings
from etcdsem.etcd.stream_thread import ThreadStreams
from etcdsem.etcd.streams import KEEPALIVE, LONGEST_PAUSE, WATCH
from tests.etcd.h2_server import Conversation, H2Server
from tests.helpers.connections import sockets
from tests.helpers.event_loop import eventually, run

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer


class Ear:
    """Notes what it hears; fails as often as it is told to."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.failing = 0
        self.then: Callable[[], object] = lambda: None

    def _hear(self, what: Any) -> None:
        self.heard.append(what)
        self.then()
        if self.failing:
            self.failing -= 1
            raise ValueError("this listener fails")

    def created(self, revision: int) -> None:
        self._hear("created")

    def events(self, events: Sequence[Event]) -> None:
        for event in events:
            self._hear(event.kv.value)

    def gap(self, reason: str) -> None:
        self._hear("gap")

    def refused(self, error: Failure) -> None:
        self._hear("refused")


class Client:
    """A connection and its streams."""

    def __init__(self, *endpoints: str) -> None:
        self.connection = AioConnection(read_settings(list(endpoints)))
        self.renewed: list[int] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.streams = AioStreams(
            self.connection, self.start, lambda lease, ttl: self.renewed.append(lease)
        )

    def start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self.tasks.add(task)
        return task

    async def put(self, value: bytes) -> None:
        await self.connection.transact(Txn((), (Put(b"/a/x", value),)), 10)

    async def close(self) -> None:
        self.streams.close()
        await self.connection.close()
        for task in self.tasks:
            task.cancel()


def with_client(work: Callable[[Client], Coroutine[Any, Any, None]], *endpoints: str) -> None:
    """Run a test with a client; no socket may be left open."""

    async def main() -> None:
        before = sockets()
        client = Client(*endpoints)
        await work(client)
        await client.close()
        assert sockets() <= before

    run(main())


def served(talk: Conversation, stream: int, data: bytes) -> None:
    """A watch is created, a lease renewed; one message in each piece of data."""
    if talk.paths[stream] == WATCH:
        create = rpc.WatchRequest.FromString(data[5:]).create_request
        answer = rpc.WatchResponse(watch_id=create.watch_id, created=True)
        talk.answer(stream, answer.SerializeToString(), end=False)
    elif talk.paths[stream] == KEEPALIVE:
        lease = rpc.LeaseKeepAliveRequest.FromString(data[5:]).ID
        renewed = rpc.LeaseKeepAliveResponse(ID=lease, TTL=9)
        talk.answer(stream, renewed.SerializeToString(), end=False)


def streaming(scripted: H2Server) -> list[Conversation]:
    """The connections that carry streams."""
    return [talk for talk in scripted.talks if WATCH in talk.paths.values()]


def with_server(work: Callable[[H2Server, Client], Coroutine[Any, Any, None]]) -> None:
    """The same with a scripted server."""

    async def main() -> None:
        async with H2Server() as scripted:
            scripted.on_data = served
            client = Client(scripted.endpoint)
            await work(scripted, client)
            await client.close()

    run(main())


def test_a_listener_that_fails(fresh_etcd: EtcdServer, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged; the next event is told, on the same connection."""

    async def work(client: Client) -> None:
        ear = Ear()
        client.streams.watch(ear, b"/a/", b"/a0")
        await eventually(lambda: ear.heard == ["created"])
        wire = client.streams._wire
        ear.failing = 1
        for value in (b"1", b"2", b"3"):
            await client.put(value)
        await eventually(lambda: ear.heard == ["created", b"1", b"2", b"3"])
        assert client.streams._wire is wire

    with_client(work, fresh_etcd.endpoint)
    (record,) = [one for one in caplog.records if one.name == "etcdsem" and one.exc_info]
    assert record.getMessage() == "etcdsem: error in the streams"


def test_nothing_is_told_after_a_close(fresh_etcd: EtcdServer) -> None:
    """Not even what has arrived with what made the listener close."""

    async def work(client: Client) -> None:
        ear = Ear()
        client.streams.watch(ear, b"/a/", b"/a0")
        client.streams.watch(Ear(), b"/b/", b"/b0")
        ear.then = client.streams.close
        await eventually(lambda: ear.heard)
        await client.put(b"1")
        client.streams.watch(ear, b"/a/", b"/a0")
        client.streams.renew(5)
        await asyncio.sleep(0.05)
        assert ear.heard == ["created"]
        assert client.streams._wire is None

    with_client(work, fresh_etcd.endpoint)


def test_thousands_of_renewals_and_watches(fresh_etcd: EtcdServer) -> None:
    """Asked for in one turn of the loop, each is answered; no connection is made before."""

    async def work(client: Client) -> None:
        before = sockets()
        await asyncio.sleep(0.05)
        assert sockets() == before
        ears = [Ear() for _ in range(1000)]
        for number, ear in enumerate(ears):
            client.streams.watch(ear, b"/a/x" if number % 2 else b"/b")
        for lease in range(1, 2001):
            client.streams.renew(lease)
        await eventually(lambda: all(ear.heard for ear in ears))
        await eventually(lambda: len(client.renewed) == 2000)
        await client.put(b"1")
        await eventually(lambda: all(len(ear.heard) == 2 for ear in ears[1::2]))
        assert all(ear.heard == ["created"] for ear in ears[::2])
        assert before < sockets() <= before + 2  # that for calls may have been idle for long

    with_client(work, fresh_etcd.endpoint)


def test_a_silent_peer_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as it answers, the connection stays; once it does not, another one is made."""
    monkeypatch.setattr(stream_connection, "PING_AFTER", 0.02)
    monkeypatch.setattr(stream_connection, "PING_TIMEOUT", 0.3)

    async def work(scripted: H2Server, client: Client) -> None:
        ear = Ear()
        client.streams.watch(ear, b"/a/")
        await eventually(lambda: streaming(scripted) and streaming(scripted)[0].pings >= 3)
        assert ear.heard == ["created"]
        assert len(streaming(scripted)) == 1
        scripted.reads.clear()
        first = client.streams._wire
        await eventually(lambda: client.streams._wire is not first)
        scripted.reads.set()
        await eventually(lambda: len(streaming(scripted)) == 2)

    with_server(work)


def test_a_goodbye() -> None:
    """The peer will close the connection: the streams move to another one at once."""

    async def work(scripted: H2Server, client: Client) -> None:
        ear = Ear()
        client.streams.watch(ear, b"/a/")
        await eventually(lambda: ear.heard)
        streaming(scripted)[0].say_goodbye(last=1)
        await eventually(lambda: len(streaming(scripted)) == 2)
        client.streams.renew(7)
        await eventually(lambda: client.renewed == [7])
        assert ear.heard == ["created"]  # that it was created again is not told

    with_server(work)


def refuse(talk: Conversation, stream: int) -> None:
    """As a proxy does with what its rules do not allow."""
    talk.h2.send_headers(stream, [(":status", "403")], end_stream=True)
    talk.flush()


def refused_watches(talk: Conversation, stream: int, data: bytes) -> None:
    """Leases are renewed, nothing can be watched."""
    if talk.paths[stream] == WATCH:
        refuse(talk, stream)
    else:
        served(talk, stream, data)


def test_refused_watches_do_not_end_leases() -> None:
    """The answers of renewals under way are heard before the streams are opened again."""

    async def work(scripted: H2Server, client: Client) -> None:
        scripted.on_data = refused_watches
        client.streams.watch(Ear(), b"/a/")
        for number in range(1, 6):
            client.streams.renew(number)
            await eventually(lambda: number in client.renewed)  # noqa: B023

    with_server(work)


def test_refused_watches_do_not_end_leases_of_threads() -> None:
    """The same."""

    async def main() -> None:
        async with H2Server() as scripted:
            scripted.on_data = refused_watches
            connection, renewed = Connection(read_settings(scripted.endpoint)), []
            streams = ThreadStreams(
                connection, ClientLock(), lambda lease, ttl: renewed.append(lease)
            )
            streams.watch(Ear(), b"/a/")
            for number in range(1, 6):
                streams.renew(number)
                await eventually(lambda: number in renewed)  # noqa: B023
            streams.close()
            connection.close()

    run(main())


def test_refused_streams_are_asked_for_with_longer_and_longer_breaks() -> None:
    """An etcd without a leader refuses all streams; thousands of clients are not to storm it."""

    async def work(scripted: H2Server, client: Client) -> None:
        scripted.on_data = lambda talk, stream, data: refuse(talk, stream)
        client.streams.watch(Ear(), b"/a/")
        await eventually(lambda: client.streams._backoff.pause == LONGEST_PAUSE)

    with_server(work)


def test_refused_streams_of_threads_have_said_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the breaks become longer."""
    said: list[bool] = []
    real = ThreadStreams._one_connection

    def one_connection(streams: ThreadStreams) -> bool:
        said.append(real(streams))
        return said[-1]

    async def main() -> None:
        async with H2Server() as scripted:
            scripted.on_data = lambda talk, stream, data: refuse(talk, stream)
            connection = Connection(read_settings(scripted.endpoint))
            streams = ThreadStreams(connection, ClientLock(), lambda lease, ttl: None)
            streams.watch(Ear(), b"/a/")
            await eventually(lambda: len(said) == 3)
            streams.close()
            connection.close()
            assert not any(said)

    monkeypatch.setattr(ThreadStreams, "_one_connection", one_connection)
    run(main())


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
def test_the_task_that_connects_is_cancelled(fresh_etcd: EtcdServer) -> None:
    """By a program that cancels all tasks: before it began, or after so many turns of the loop.
    Whoever asks next has another one started.
    """

    async def main(client: Client) -> None:
        for turns in range(8):
            lease = 100 + turns
            await client.connection.grant(lease, 60, 5)
            client.streams.restart()
            await asyncio.sleep(0)
            client.streams.renew(lease)
            for _ in range(turns):
                await asyncio.sleep(0)
            for task in client.tasks:
                task.cancel()
            await asyncio.sleep(0)
            client.streams.renew(lease)
            await eventually(functools.partial(client.renewed.__contains__, lease))

    with_client(main, fresh_etcd.endpoint)


def test_an_error_while_connecting(fresh_etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is, it is logged, and the task tries again."""

    async def fail(*_arguments: object) -> Any:
        monkeypatch.undo()
        raise MemoryError

    async def main(client: Client) -> None:
        await client.connection.grant(7, 60, 5)
        monkeypatch.setattr(AioConnection, "open_streams", fail)
        client.streams.renew(7)
        await eventually(lambda: client.renewed == [7])

    with_client(main, fresh_etcd.endpoint)


def test_close_at_any_moment(fresh_etcd: EtcdServer) -> None:
    """While it connects too: nothing stays open, no task is left."""

    async def main() -> None:
        before = sockets()
        for turns in range(60):
            client = Client(fresh_etcd.endpoint)
            client.streams.watch(Ear(), b"/a/")
            client.streams.renew(1)
            for _ in range(turns):
                await asyncio.sleep(0)
            await client.close()
        await eventually(lambda: sockets() <= before)

    run(main())


def test_no_etcd_there() -> None:
    """It is tried again, with pauses; a call says why."""

    async def main() -> None:
        client = Client("127.0.0.1:1")
        client.streams.watch(Ear(), b"/a/")
        client.streams.renew(1)
        with pytest.raises(NotConnected, match="Connection refused"):
            await client.put(b"1")
        await eventually(lambda: client.streams._backoff.pause > 0.05)
        assert not client.streams._renewals  # the heartbeat will ask again
        await client.close()
        for task in client.tasks:
            with suppress(asyncio.CancelledError):
                await task

    run(main())
