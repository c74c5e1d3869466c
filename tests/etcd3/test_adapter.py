"""Calls and streams over a channel of grpcio, on a real etcd. Needs no python-etcd3."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from etcdsem.core.commands import NotApplied, NotConnected, Refused
from etcdsem.etcd import etcd3_adapter, rpc
from etcdsem.etcd.etcd3_adapter import GrpcStreams, GrpcTransport
from etcdsem.etcd.grpc_protocol import NOT_CONNECTED, RpcError
from etcdsem.etcd.settings import parse_endpoints
from etcdsem.server import EtcdServer
from tests.helpers.waiting import eventually

grpc = pytest.importorskip("grpc", reason="grpcio is not installed here")

RANGE, PUT = "/etcdserverpb.KV/Range", "/etcdserverpb.KV/Put"
KEEPALIVE = "/etcdserverpb.Lease/LeaseKeepAlive"
WATCH = "/etcdserverpb.Watch/Watch"
READ = rpc.RangeRequest(key=b"adapter").SerializeToString()
NO_LEASE = rpc.LeaseKeepAliveRequest(ID=4711).SerializeToString()


@pytest.fixture(params=["etcd"])
def channel(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A channel to an etcd that tests share, or to one of the test's own."""
    server = request.getfixturevalue(request.param)
    with grpc.insecure_channel(server.endpoint) as one:
        yield one


@pytest.fixture
def transport(channel: Any) -> Iterator[GrpcTransport]:
    """Ours over it."""
    made = GrpcTransport(channel, parse_endpoints("etcd:2379")[0])
    yield made
    made.close()
    eventually(lambda: not etcd3_adapter._under_way)


own_etcd = pytest.mark.parametrize("channel", ["fresh_etcd"], indirect=True)


@pytest.fixture
def standing(fresh_etcd: EtcdServer) -> Iterator[None]:
    """The etcd of the test's own stands still."""
    fresh_etcd.pause()
    threads = Path(f"/proc/{fresh_etcd.pid}/task")
    eventually(lambda: all(") T " in (one / "stat").read_text() for one in threads.iterdir()))
    yield
    fresh_etcd.resume()


def read(transport: GrpcTransport, timeout: float = 10.0, *, whole: bool = False) -> Any:
    """A call that brings a message."""
    return rpc.RangeResponse.FromString(transport.call(RANGE, READ, timeout, None, whole=whole))


def heard(streams: GrpcStreams) -> list[tuple[Any, bytes | RpcError]]:
    """What streams say next."""
    while True:
        if found := streams.wait():
            return found


def test_a_call(transport: GrpcTransport) -> None:
    """Bytes go, bytes come."""
    assert read(transport).header.revision >= 1


def test_an_error_of_etcd(transport: GrpcTransport) -> None:
    """It comes as its gRPC status."""
    with pytest.raises(RpcError) as caught:
        transport.call("/etcdserverpb.Lease/LeaseRevoke", NO_LEASE, 10.0, None)
    assert caught.value.code == "NOT_FOUND"
    assert "requested lease not found" in caught.value.details


def test_many_calls(transport: GrpcTransport) -> None:
    """In the order of the requests; None for one that failed."""
    found = transport.call_many(RANGE, [READ, b"\xff", READ], 10.0, None)
    assert [one is None for one in found] == [False, True, False]


def test_nobody_listens() -> None:
    """It is certain that nothing was sent, and the reason is told."""
    endpoint = parse_endpoints("127.0.0.1:1")[0]
    with grpc.insecure_channel(endpoint.address) as channel:
        transport = GrpcTransport(channel, endpoint)
        with pytest.raises(NotConnected, match=r"^Failed to connect .*refused") as caught:
            transport.call(PUT, READ, 10.0, None)
        assert caught.value.endpoint == "127.0.0.1:1"
        assert transport.call_many(PUT, [READ], 10.0, None) == [None]
        streams = transport.connect_streams(5.0)
        streams.open(WATCH, None)
        ((_, error),) = heard(streams)
        assert isinstance(error, RpcError)
        assert error.code == NOT_CONNECTED
        streams.close()


@own_etcd
@pytest.mark.usefixtures("standing")
def test_no_answer_in_time(transport: GrpcTransport) -> None:
    """A call is cancelled at its deadline."""
    with pytest.raises(RpcError, match="DEADLINE_EXCEEDED"):
        read(transport, 0.05)
    eventually(lambda: not etcd3_adapter._under_way)


@own_etcd
@pytest.mark.usefixtures("standing")
def test_what_must_not_be_cancelled(
    transport: GrpcTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is left alone after its deadline, and cancelled once it has had more time."""
    with pytest.raises(RpcError, match="DEADLINE_EXCEEDED"):
        read(transport, 0.05, whole=True)
    transport.sweep()
    ((_, call),) = transport._aside
    assert call.is_active()
    later = time.clock_gettime(time.CLOCK_BOOTTIME) + etcd3_adapter.ASIDE_TIME + 1
    monkeypatch.setattr(etcd3_adapter, "boot_time", lambda: later)
    transport.sweep()
    assert not call.is_active()
    assert not transport._aside


@own_etcd
@pytest.mark.usefixtures("standing")
def test_an_interruption(transport: GrpcTransport) -> None:
    """It comes out of the call, which is cancelled."""

    class Interrupted(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupted

    def strike() -> None:
        eventually(lambda: etcd3_adapter._under_way)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    former = signal.signal(signal.SIGUSR1, interrupt)
    try:
        killer = threading.Thread(target=strike)
        killer.start()
        with pytest.raises(Interrupted):
            read(transport, 60.0)
        killer.join()
    finally:
        signal.signal(signal.SIGUSR1, former)
    eventually(lambda: not etcd3_adapter._under_way)


def test_a_wall_clock_that_stands_still(
    transport: GrpcTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deadlines are not kept by it."""
    monkeypatch.setattr(time, "time", lambda: 1_000_000_000.0)
    assert read(transport).header.revision >= 1


@own_etcd
@pytest.mark.usefixtures("standing")
def test_close_ends_a_call_that_is_under_way(transport: GrpcTransport) -> None:
    """Its outcome is unknown; what comes later is not applied. The channel stays open."""
    ended: list[BaseException] = []

    def call() -> None:
        try:
            read(transport, 60.0)
        except BaseException as error:
            ended.append(error)

    caller = threading.Thread(target=call)
    caller.start()
    eventually(lambda: etcd3_adapter._under_way)
    transport.close()
    caller.join(10)
    assert [str(one)[:9] for one in ended] == ["CANCELLED"]
    for refused in (
        lambda: read(transport),
        lambda: transport.call_many(RANGE, [READ], 1.0, None),
        lambda: transport.connect_streams(1.0),
    ):
        with pytest.raises(NotApplied, match="the client was closed"):
            refused()
    assert transport.channel.unary_unary(RANGE)


def test_their_channel_is_closed(channel: Any, transport: GrpcTransport) -> None:
    """Calls are refused, and streams end."""
    streams = transport.connect_streams(5.0)
    keepalive = streams.open(KEEPALIVE, None)
    streams.send(keepalive, NO_LEASE)
    assert heard(streams)
    channel.close()
    ((stream, error),) = heard(streams)
    assert stream is keepalive
    assert isinstance(error, RpcError)
    late = streams.open(KEEPALIVE, None)
    ((stream, error),) = heard(streams)
    assert stream is late
    assert "was closed" in str(error)
    with pytest.raises(Refused, match="the etcd3 client whose channel we use was closed"):
        read(transport)
    with pytest.raises(Refused):
        transport.call_many(RANGE, [READ], 1.0, None)
    streams.close()


def test_streams(transport: GrpcTransport) -> None:
    """Any number of them, told apart; what is sent before it is begun goes, too."""
    streams = transport.connect_streams(5.0)
    first, second = streams.open(KEEPALIVE, None), streams.open(KEEPALIVE, None)
    for stream in (first, second, first):
        streams.send(stream, NO_LEASE)
    news: list[Any] = []
    while len(news) < 3:
        news += heard(streams)
    assert sorted(id(stream) for stream, _ in news) == sorted(map(id, (first, first, second)))
    assert {rpc.LeaseKeepAliveResponse.FromString(message).TTL for _, message in news} == {0}
    streams.close()
    assert not any(thread.is_alive() for thread in (*first.threads, *second.threads))
    assert len(first.threads) == 2


def test_a_stream_that_etcd_ends(transport: GrpcTransport) -> None:
    """Its error is its last message."""
    streams = transport.connect_streams(5.0)
    stream = streams.open("/etcdserverpb.Lease/NoSuchMethod", None)
    ((other, error),) = heard(streams)
    assert other is stream
    assert isinstance(error, RpcError)
    assert error.code == "UNIMPLEMENTED"
    streams.close()


def test_waiting_ends_by_a_wake(transport: GrpcTransport) -> None:
    """From any thread, also before the waiting has begun."""
    streams = transport.connect_streams(5.0)
    streams.wake()
    assert streams.wait() == []
    thread = threading.Thread(target=streams.wake)
    thread.start()
    assert streams.wait() == []
    thread.join()
    streams.close()


def test_close_ends_streams(transport: GrpcTransport) -> None:
    """Those that are open end with an error, those that are not begun never begin."""
    streams = transport.connect_streams(5.0)
    stream = streams.open(KEEPALIVE, None)
    streams.send(stream, NO_LEASE)
    assert heard(streams)
    transport.close()
    ((_, error),) = heard(streams)
    assert isinstance(error, RpcError)
    streams.open(WATCH, None)
    ((_, error),) = heard(streams)
    assert "the client was closed" in str(error)
    streams.close()


def test_no_thread_for_a_stream(transport: GrpcTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends, and says why."""
    start = threading.Thread.start

    def fail(thread: threading.Thread) -> None:
        if thread.name == "etcdsem-etcd3":  # grpcio does not survive it
            raise RuntimeError("can't start new thread")
        start(thread)

    streams = transport.connect_streams(5.0)
    stream = streams.open(KEEPALIVE, None)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        ((other, error),) = heard(streams)
    assert other is stream
    assert "no stream can be opened" in str(error)
    streams.close()
