"""Unary calls in an event loop: connecting, deadlines, cancellation, goodbyes, loss, forks."""

from __future__ import annotations

import _socket
import asyncio
import functools
import gc
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from h2.settings import SettingCodes

from etcdsem import server
from etcdsem.core.commands import Compare, Misconfigured, NotApplied, NotConnected, Put, Txn
from etcdsem.etcd import aio_transport, aio_wire, rpc
from etcdsem.etcd.aio_connection import AioConnection
from etcdsem.etcd.aio_transport import AioTransport, CallWire
from etcdsem.etcd.call_connection import IDLE_TIME
from etcdsem.etcd.dialing import Dialer
from etcdsem.etcd.grpc_protocol import NOT_PROCESSED, RpcError
from etcdsem.etcd.http2 import Http2
from etcdsem.etcd.methods import METHODS
from etcdsem.etcd.settings import read_settings
from etcdsem.server import EtcdServer
from tests.etcd.h2_server import Conversation, H2Server
from tests.etcd.proxy import Proxy
from tests.helpers.connections import sockets
from tests.helpers.event_loop import eventually, run
from tests.helpers.tls import serving
from tests.security.authority import Authority

if TYPE_CHECKING:
    from tests.helpers.tls import TlsEtcd

STATUS = METHODS["status"][0]
RANGE = METHODS["range"][0]


def transport(endpoint: str, **options: Any) -> AioTransport:
    """Calls to that endpoint."""
    settings = read_settings(endpoint, **options)
    return AioTransport(Dialer(settings, settings.endpoints[0]))


async def ask(one: AioTransport, timeout: float = 5.0, path: str = STATUS) -> bytes:
    """A call that any server answers."""
    return await one.call(path, b"", timeout, None)


async def version(one: AioTransport, timeout: float = 5.0) -> str:
    """What an etcd says."""
    return str(rpc.StatusResponse.FromString(await ask(one, timeout)).version)


def with_server(
    work: Callable[[H2Server, AioTransport], Coroutine[Any, Any, None]],
    **options: Any,
) -> None:
    """Run a test with a scripted server; nothing may be left open at its end."""

    async def main() -> None:
        before = open_sockets()
        async with H2Server(**options) as scripted:
            one = transport(scripted.endpoint)
            await work(scripted, one)
            one.close()
        await eventually(lambda: sockets() <= before)

    run(main())


def open_sockets() -> int:
    """How many are open, those of former tests' garbage left out."""
    gc.collect()
    return sockets()


def answers_nothing(talk: Conversation, stream: int) -> None:
    """No answer yet."""


# ---------------------------------------------------------------- connecting


def test_one_attempt_to_connect_serves_all() -> None:
    """It is made for the first call; callers who are cancelled meanwhile do not end it."""

    async def main(scripted: H2Server, one: AioTransport) -> None:
        assert not scripted.talks
        calls = [asyncio.create_task(ask(one)) for _ in range(100)]
        await asyncio.sleep(0)
        for call in calls[::2]:
            call.cancel()
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert [answer == b"" for answer in answers] == [False, True] * 50
        assert len(scripted.talks) == 1

    with_server(main)


def test_cancelled_at_any_moment() -> None:
    """A fresh connection, a call that is cancelled after so many turns of the loop: another call
    is answered all the same, and nothing is left open.
    """

    async def main() -> None:
        async with H2Server() as scripted:
            before = open_sockets()
            for turns in range(40):
                one = transport(scripted.endpoint)
                first, second = asyncio.create_task(ask(one)), asyncio.create_task(ask(one))
                for _ in range(turns):
                    await asyncio.sleep(0)
                first.cancel()
                assert await second == b""
                assert await ask(one) == b""
                one.close()
            await eventually(lambda: sockets() <= before)

    run(main())


def test_closed_at_any_moment() -> None:
    """The same with a close: the call fails at once, as one that was not sent or is unknown."""

    async def main() -> None:
        async with H2Server(answers_nothing) as scripted:
            before = open_sockets()
            for turns in range(40):
                one = transport(scripted.endpoint)
                call = asyncio.create_task(ask(one, 60))
                for _ in range(turns):
                    await asyncio.sleep(0)
                one.close()
                with pytest.raises((NotApplied, RpcError), match="closed"):
                    await call
                with pytest.raises(NotApplied, match="closed"):
                    await ask(one)
            await eventually(lambda: sockets() <= before)

    run(main())


def test_a_server_that_says_nothing() -> None:
    """It accepts, and is silent: certain that nothing was sent. So for each caller's deadline."""

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            one = transport(f"127.0.0.1:{listener.getsockname()[1]}")
            long = asyncio.create_task(ask(one, 1.2))
            with pytest.raises(NotConnected, match="sends nothing"):
                await ask(one, 0.2)
            with pytest.raises(NotConnected, match="sends nothing"):
                await long
            one.close()

    run(main())


@pytest.mark.parametrize(
    ("says", "match"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "not etcd's client port"),
        (b"\x15\x03\x01\x00\x02\x02\x0a", "wants TLS"),
        (b"", "closed at once"),
    ],
)
def test_a_server_of_another_kind(says: bytes, match: str) -> None:
    """What it is, in plain words."""

    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(24)
            writer.write(says)
            writer.close()

        listener = await asyncio.start_server(serve, "127.0.0.1", 0)
        one = transport("127.0.0.1:%d" % listener.sockets[0].getsockname()[1])  # noqa: UP031
        with pytest.raises(NotConnected, match=match):
            await ask(one)
        one.close()
        listener.close()

    run(main())


def resolved(monkeypatch: pytest.MonkeyPatch, answer: Callable[[], Any]) -> list[str]:
    """Let a name server answer so for etcd.test; gives what it was asked."""
    real, asked = socket.getaddrinfo, []

    def getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
        if host != "etcd.test":
            return real(host, *arguments, **options)
        if options.get("flags"):
            raise socket.gaierror(socket.EAI_NONAME, "not a literal address")
        asked.append(host)
        return answer()

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


def test_a_name_with_several_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that do not answer are passed by; that which did is tried first the next time."""

    async def main() -> None:
        async with H2Server() as scripted:
            port = int(scripted.endpoint.rpartition(":")[2])
            tcp = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
            hosts = ["127.0.0.9", "127.0.0.8", "127.0.0.1"]
            asked = resolved(monkeypatch, lambda: [(*tcp, (host, port)) for host in hosts])
            one = transport(f"etcd.test:{port}")
            assert await ask(one) == b""
            scripted.talks[0].hang_up()
            await eventually(lambda: one._wire is not None and one._wire.over)
            hosts[0] = "192.0.2.1"  # nobody answers there, nor refuses
            assert await ask(one) == b""
            assert len(asked) == 2
            one.close()

    run(main())


def test_a_name_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller's deadline holds, the loop goes on, and so does its end."""
    answer = socket.socketpair()
    asked = resolved(monkeypatch, lambda: answer[0].recv(1) and [])

    async def main() -> None:
        one = transport("etcd.test:2379")
        with pytest.raises(NotConnected, match="name server"):
            await ask(one, 0.2)
        one.close()

    run(main())
    assert asked
    for end in answer:
        end.close()


def test_names_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """No such host; no name server; and a name that can be none."""

    def fail(code: int) -> Callable[[], Any]:
        def answer() -> Any:
            raise socket.gaierror(code, "no luck")

        return answer

    async def refused(host: str, match: str) -> None:
        one = transport(f"{host}:2379")
        with pytest.raises(NotConnected, match=match):
            await ask(one, 2)
        one.close()

    resolved(monkeypatch, fail(socket.EAI_NONAME))
    run(refused("etcd.test", "no such host"))
    resolved(monkeypatch, fail(socket.EAI_AGAIN))
    run(refused("etcd.test", "cannot be looked up: no luck"))
    run(refused("a" * 70, "no such host"))


def test_addresses_of_all_kinds(
    etcd_binary: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """IPv4, IPv6, a name, a Unix socket."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    monkeypatch.chdir(tmp_path)
    (port,) = server.free_ports(1)
    urls = f"unix://etcd.sock:1,http://127.0.0.1:{port},http://[::1]:{port}"

    async def main(version_there: str) -> None:
        for endpoint in (
            f"127.0.0.1:{port}",
            f"[::1]:{port}",
            f"localhost:{port}",
            f"unix://{tmp_path}/etcd.sock:1",
        ):
            one = transport(endpoint)
            assert await version(one) == version_there
            one.close()
        missing = transport("unix:///no/such.sock")
        with pytest.raises(NotConnected, match="No such file"):
            await ask(missing)

    with EtcdServer(
        binary=etcd_binary, port=port, extra_args=["--listen-client-urls", urls]
    ) as etcd:
        etcd.launch()
        etcd.wait_healthy()
        run(main(server.binary_version(etcd_binary)))


# ---------------------------------------------------------------- TLS


def tls_connection(endpoint: str, authority: Authority, **options: Any) -> AioConnection:
    """A connection that trusts the authority."""
    return AioConnection(read_settings(f"https://{endpoint}", cacert=authority.path, **options))


async def write(connection: AioConnection, key: str, value: bytes = b"x") -> None:
    """Write what is not there yet."""
    txn = Txn((Compare(key.encode(), "create", "=", 0),), (Put(key.encode(), value),))
    assert (await connection.transact(txn, 20)).succeeded


def test_tls(etcd_binary: str, tmp_path: Path) -> None:
    """More calls at a time than etcd allows streams behind TLS (250), and long ones; by the name
    too.
    """
    authority = Authority(tmp_path)

    async def main(etcd: TlsEtcd) -> None:
        for host in (etcd.endpoint, f"localhost:{etcd.port}"):
            connection = tls_connection(host, authority)
            await asyncio.gather(*(write(connection, f"{host}/{n}") for n in range(1000)))
            await asyncio.gather(
                *(write(connection, f"{host}/long/{n}", b"x" * 1_000_000) for n in range(8))
            )
            request = rpc.RangeRequest(key=f"{host}/long/".encode(), range_end=b"~")
            answer = await connection._link().transport.call(
                RANGE, request.SerializeToString(), 20, None
            )
            assert len(answer) > 8_000_000
            await connection.close()

    with serving(authority.issue("server"), binary=etcd_binary) as etcd:
        run(main(etcd))


def test_mutual_tls(etcd_binary: str, tmp_path: Path) -> None:
    """With a client's certificate it works; without, and for each mistake, it says what to do."""
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")
    ours, foreign = authority.issue("worker"), stranger.issue("foreign")

    async def refused(endpoint: str, match: str, kind: type = Misconfigured, **more: str) -> None:
        one = transport(endpoint, **more)
        with pytest.raises(kind, match=match):
            await ask(one)
        one.close()

    async def main(etcd: TlsEtcd) -> None:
        connection = tls_connection(etcd.endpoint, authority, cert=ours.cert, key=ours.key)
        await write(connection, "x")
        await connection.close()
        where, ca = f"https://{etcd.endpoint}", authority.path
        await refused(where, "wants a client certificate", cacert=ca)
        foreigner: dict[str, Any] = {"cert": foreign.cert, "key": foreign.key}
        await refused(where, "wants a client certificate", cacert=ca, **foreigner)
        await refused(where, "not signed by an authority", cacert=stranger.path)
        await refused(etcd.endpoint, "https://", NotConnected)
        await refused(f"https://127.0.0.1:{etcd.metrics_port}", "does not speak TLS", cacert=ca)

    options = ("--client-cert-auth", "--trusted-ca-file", authority.path)
    with serving(authority.issue("server"), *options, binary=etcd_binary) as etcd:
        run(main(etcd))


def test_certificates_that_are_wrong(etcd_binary: str, tmp_path: Path) -> None:
    """Expired, or for another host."""
    authority = Authority(tmp_path)
    for pair, match in (
        (authority.issue("old", expired=True), "has expired"),
        (authority.issue("elsewhere", hosts=("etcd.example",)), "not for the host"),
    ):

        async def main(endpoint: str, match: str = match) -> None:
            one = transport(f"https://{endpoint}", cacert=authority.path)
            with pytest.raises(Misconfigured, match=match):
                await ask(one)
            one.close()

        with serving(pair, binary=etcd_binary) as etcd:
            run(main(etcd.endpoint))


def test_tls_without_http2(tmp_path: Path) -> None:
    """A web server behind TLS; and one that hangs in the handshake."""
    authority = Authority(tmp_path)
    pair = authority.issue("web")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert, pair.key)

    async def main() -> None:
        async with H2Server(tls=context) as web:
            one = transport(f"https://{web.endpoint}", cacert=authority.path)
            with pytest.raises(Misconfigured, match="not on HTTP/2"):
                await ask(one)
            one.close()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            one = transport(f"https://127.0.0.1:{port}", cacert=authority.path)
            with pytest.raises(NotConnected, match="no answer in time"):
                await ask(one, 0.3)
            one.close()

    run(main())


# ---------------------------------------------------------------- deadlines


def test_a_late_answer_harms_nobody() -> None:
    """The call fails at its deadline. As the server answers others, the connection stays, and the
    late answer is dropped.
    """
    late: list[int] = []

    def hear(talk: Conversation, stream: int) -> None:
        if talk.paths[stream] == RANGE:
            late.append(stream)
        else:
            talk.answer(stream)

    async def main(scripted: H2Server, one: AioTransport) -> None:
        slow = asyncio.create_task(ask(one, 0.3, RANGE))
        while not slow.done():
            assert await ask(one) == b""
            await asyncio.sleep(0.02)
        with pytest.raises(RpcError, match="DEADLINE_EXCEEDED"):
            await slow
        assert one._wire is not None
        assert len(one._wire.http2.streams) == 1
        scripted.talks[0].answer(late[0])
        assert await ask(one) == b""
        assert not one._wire.http2.streams
        assert len(scripted.talks) == 1

    with_server(main, on_request=hear)


def test_a_silent_connection_is_left() -> None:
    """Nothing has arrived up to a deadline: the next call gets a new connection; the old one is
    closed once its last answer has come. Nothing is reset.
    """
    silent = False
    late: list[tuple[Conversation, int]] = []

    def hear(talk: Conversation, stream: int) -> None:
        if silent:
            late.append((talk, stream))
        else:
            talk.answer(stream)

    async def main(scripted: H2Server, one: AioTransport) -> None:
        nonlocal silent
        assert await ask(one) == b""
        silent = True
        long = asyncio.create_task(ask(one, 20))
        with pytest.raises(RpcError, match="DEADLINE_EXCEEDED"):
            await ask(one, 0.2)
        silent = False
        assert await ask(one) == b""
        assert len(scripted.talks) == 2
        first = scripted.talks[0]
        assert not first.over.is_set()
        for talk, stream in late:
            talk.answer(stream)
        assert await long == b""
        await asyncio.wait_for(first.over.wait(), 10)

    with_server(main, on_request=hear)


def test_a_silent_connection_is_closed_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if no answer ever comes."""
    monkeypatch.setattr(aio_transport, "ASIDE_TIME", 0.2)

    async def main(scripted: H2Server, one: AioTransport) -> None:
        with pytest.raises(RpcError, match="DEADLINE_EXCEEDED"):
            await ask(one, 0.2)
        await asyncio.wait_for(scripted.talks[0].over.wait(), 10)

    with_server(main, on_request=answers_nothing)


def test_a_loop_that_stood_still_hears_the_answer() -> None:
    """The deadline passed while the answer lay in the socket: it was in time."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with Proxy(await there()) as proxy:
            one = transport(proxy.endpoint)
            assert await ask(one) == b""
            call = asyncio.create_task(ask(one, 0.3))
            await asyncio.sleep(0)
            wire = one._wire
            assert wire is not None
            loop.remove_reader(wire._fd)  # as a loop that looks at its timers first
            assert await call == b""
            one.close()

    async def there() -> str:
        await scripted.__aenter__()
        return scripted.endpoint

    scripted = H2Server()
    run(main())


def test_more_calls_than_the_server_takes() -> None:
    """They wait for their turn; at their deadline they were not sent. A cancelled one never is."""
    held: list[int] = []

    async def main(scripted: H2Server, one: AioTransport) -> None:
        assert await ask(one) == b""
        scripted.on_request = lambda talk, stream: held.append(stream)
        first = [asyncio.create_task(ask(one, 20)) for _ in range(2)]
        await eventually(lambda: len(held) == 2)
        waits = asyncio.create_task(ask(one, 0.2, "/waits"))
        cancelled = asyncio.create_task(ask(one, 20, "/cancelled"))
        patient = asyncio.create_task(ask(one, 20, "/patient"))
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(RpcError, match="accepts no more") as caught:
            await waits
        assert caught.value.code == NOT_PROCESSED
        talk = scripted.talks[0]
        for stream in held:
            talk.answer(stream)
        await asyncio.gather(*first)
        scripted.on_request = lambda talk, stream: talk.answer(stream)
        await eventually(lambda: len(held) == 3 or patient.done())
        for stream in held[2:]:
            talk.answer(stream)
        await patient
        assert set(talk.paths.values()) == {STATUS, "/patient"}

    with_server(main, settings={SettingCodes.MAX_CONCURRENT_STREAMS: 2})


# ---------------------------------------------------------------- ends of a connection


def test_a_request_larger_than_the_window() -> None:
    """It goes on as soon as the server allows it: 46 times here, within the deadline."""

    async def main(scripted: H2Server, one: AioTransport) -> None:
        assert await one.call(STATUS, bytes(3_000_000), 5, None) == b""

    with_server(main)


def test_pings_of_the_server_are_answered() -> None:
    """A moment later, however many calls there are, and if there are none."""
    pings = 0

    def hear(talk: Conversation, stream: int) -> None:
        nonlocal pings
        if talk.pongs == pings:  # as etcd does
            pings += 1
            talk.h2.ping(b"12345678")
        talk.answer(stream)

    async def main(scripted: H2Server, one: AioTransport) -> None:
        for number in (1, 2, 3):
            await ask(one)
            await ask(one)
            await eventually(functools.partial(answered, scripted, number))

    def answered(scripted: H2Server, number: int) -> bool:
        (talk,) = scripted.talks
        return talk.pongs == pings == number

    with_server(main, on_request=hear)


def test_an_idle_connection_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next call gets a new one."""
    monkeypatch.setattr(aio_transport, "IDLE_TIME", 0.1)

    async def main(scripted: H2Server, one: AioTransport) -> None:
        for number in range(2):
            assert await ask(one) == b""
            await asyncio.wait_for(scripted.talks[number].over.wait(), 10)
        assert len(scripted.talks) == 2

    with_server(main)


def test_a_server_that_asks_for_a_sign_of_life() -> None:
    """Its PING is answered, whether a call is under way or not."""
    held: list[int] = []

    async def main(scripted: H2Server, one: AioTransport) -> None:
        assert await ask(one) == b""
        talk = scripted.talks[0]
        for asked in (1, 2):
            talk.h2.ping(b"are you?")
            talk.flush()
            await eventually(lambda asked=asked: talk.pongs == asked)  # type: ignore[misc]
            scripted.on_request = lambda talk, stream: held.append(stream)
            call = asyncio.create_task(ask(one))
            await eventually(lambda asked=asked: len(held) == asked)  # type: ignore[misc]
        for stream in held:
            talk.answer(stream)
        await call

    with_server(main)


def test_an_old_connection_is_not_used_again() -> None:
    """After a sleep of the machine, which the loop's timers have not seen."""

    async def main(scripted: H2Server, one: AioTransport) -> None:
        await ask(one)
        assert one._wire is not None
        one._wire.used -= 2 * IDLE_TIME
        await ask(one)
        assert len(scripted.talks) == 2

    with_server(main)


def test_a_goodbye() -> None:
    """GOAWAY: what was processed is answered there, the rest says that it was not; new calls get a
    new connection, and the old one is closed.
    """

    async def main(scripted: H2Server, one: AioTransport) -> None:
        held: list[int] = []
        scripted.on_request = lambda talk, stream: held.append(stream)
        first, second = (asyncio.create_task(ask(one)) for _ in range(2))
        await eventually(lambda: len(held) == 2)
        talk = scripted.talks[0]
        talk.answer(held[0], end=False)
        talk.say_goodbye(last=held[0])
        with pytest.raises(RpcError) as caught:
            await second
        assert caught.value.code == NOT_PROCESSED
        scripted.on_request = lambda talk, stream: talk.answer(stream)
        assert await ask(one) == b""
        assert len(scripted.talks) == 2
        assert not talk.over.is_set()
        trailers = b"\x10\x0bgrpc-status\x010"
        size = len(trailers)
        talk.send_raw(size.to_bytes(3, "big") + b"\1\5" + held[0].to_bytes(4, "big") + trailers)
        assert await first == b""
        await asyncio.wait_for(talk.over.wait(), 10)

    with_server(main)


def test_a_goodbye_is_no_failure(etcd: EtcdServer, name: str) -> None:
    """A connection repeats what was not processed, once, and nobody notices."""

    async def main() -> None:
        told = 0

        def hear(talk: Conversation, stream: int) -> None:
            nonlocal told
            if talk.paths[stream] == METHODS["txn"][0] and not told:
                told += 1
                talk.say_goodbye(last=stream - 2)
            else:
                talk.answer(stream)

        async with H2Server(hear) as scripted:
            connection = AioConnection(read_settings(scripted.endpoint))
            reply = await connection.transact(Txn((), (Put(b"x", b"y"),)), 5)
            assert not reply.succeeded  # an empty answer
            assert told == 1
            assert len(scripted.talks) == 2
            await connection.close()

    run(main())


def test_what_was_not_sent_was_not_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not read: at the bound the connection is given up. What had no byte in
    the socket was certainly not applied; what had some is unknown.
    """
    monkeypatch.setattr(aio_wire, "MOST_UNSENT", 1_000_000)

    async def main() -> None:
        closed = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(bytes(3) + b"\4" + bytes(5))  # SETTINGS
            await closed.wait()
            writer.close()

        listener = await asyncio.start_server(serve, "127.0.0.1", 0)
        one = transport("127.0.0.1:%d" % listener.sockets[0].getsockname()[1])  # noqa: UP031
        token = "x" * 15_000
        work = (one.call(STATUS, b"", 20, f"{token}{n}") for n in range(2000))
        calls = [asyncio.create_task(call) for call in work]
        await eventually(lambda: one._wire is not None and one._wire._blocked)
        with pytest.raises(RpcError, match="does not read"):
            await ask(one)
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        codes = [error.code for error in outcomes if isinstance(error, RpcError)]
        assert len(codes) == 2000
        assert codes[0] == "UNAVAILABLE"
        first = codes.index(NOT_PROCESSED)
        assert 10 < first < 1950
        assert set(codes[first:]) == {NOT_PROCESSED}
        assert set(codes[:first]) == {"UNAVAILABLE"}
        one.close()
        closed.set()
        listener.close()

    run(main())


def test_a_lost_connection_is_known_before_the_next_call() -> None:
    """The server has hung up between two calls: the second is sent on a new connection."""

    async def main(scripted: H2Server, one: AioTransport) -> None:
        for number in range(3):
            assert await ask(one) == b""
            scripted.talks[number].hang_up()
            await eventually(lambda: one._wire is not None and one._wire.over)

    with_server(main)


# ---------------------------------------------------------------- loops, interruptions, forks


def test_loop_after_loop(etcd: EtcdServer) -> None:
    """Closed or not, ended or just left: no file of a former loop stays open."""

    async def work(*, close: bool) -> None:
        one = transport(etcd.endpoint)
        await asyncio.gather(*(version(one) for _ in range(10)))
        call = asyncio.create_task(version(one))
        await asyncio.sleep(0)
        if close:
            one.close()
            with pytest.raises(RpcError, match="closed"):
                await call
        else:
            await call

    asyncio.run(work(close=True))
    before = open_sockets()
    for number in range(10):
        asyncio.run(work(close=number % 2 == 0))
    loop = asyncio.new_event_loop()
    loop.run_until_complete(work(close=False))
    loop.close()
    del loop
    assert sockets() <= before + 6  # those that were left, until they are collected
    assert open_sockets() == before


class Interrupted(KeyboardInterrupt):
    """Raised by a signal handler; asyncio lets only this kind and SystemExit pass."""


@pytest.mark.parametrize(
    ("kind", "step"),
    [(Http2, "receive"), (Http2, "request"), (CallWire, "_heard"), (CallWire, "flush")],
)
def test_a_signal_handler_that_raises(
    kind: type, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the midst of a step: it comes out of the loop, the connection is given up, the others hear
    of it at once, and the next call has another connection.
    """
    loop = asyncio.new_event_loop()
    real, armed = getattr(kind, step), False

    def strike(*arguments: Any, **options: Any) -> Any:
        nonlocal armed
        result = real(*arguments, **options)
        if armed:
            armed = False
            raise Interrupted
        return result

    monkeypatch.setattr(kind, step, strike)
    scripted = H2Server()

    async def begin() -> AioTransport:
        await scripted.__aenter__()
        one = transport(scripted.endpoint)
        await ask(one)
        return one

    async def finish() -> None:
        outcomes = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 10)
        for outcome in outcomes:
            assert outcome == b"" or isinstance(outcome, RpcError | Interrupted)
        assert await ask(one) == b""
        assert len(scripted.talks) == 2
        one.close()
        await scripted.__aexit__()
        await asyncio.sleep(0.01)

    one = loop.run_until_complete(begin())
    calls = [loop.create_task(ask(one)) for _ in range(3)]
    armed = True
    with pytest.raises(Interrupted):
        loop.run_until_complete(asyncio.sleep(10))
    loop.run_until_complete(finish())
    loop.close()


def test_a_signal_handler_that_raises_right_after_sending(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python runs a handler between the return of `send` and the next step, where nobody knows yet
    how much has gone out: no call that was sent is taken for one that was not.
    """
    loop = asyncio.new_event_loop()
    answered = []

    def send(sock: Any, data: bytes) -> int:
        _socket.socket.send(sock, data)
        raise Interrupted

    scripted = H2Server(lambda talk, stream: answered.append(stream))

    async def main() -> None:
        async with scripted:
            one = transport(scripted.endpoint)
            calls = [loop.create_task(ask(one, 60)) for _ in range(5)]
            await eventually(lambda: len(answered) == 5)
            calls += [loop.create_task(ask(one, 60)) for _ in range(5)]  # sent at a time
            loop.call_soon(monkeypatch.setattr, socket.socket, "send", send)
            outcomes.extend(await asyncio.gather(*calls, return_exceptions=True))
            one.close()

    outcomes: list[Any] = []
    task = loop.create_task(main())
    with pytest.raises(Interrupted):
        loop.run_until_complete(task)
    monkeypatch.undo()
    loop.run_until_complete(task)
    loop.close()
    assert len(outcomes) == 10
    assert {outcome.code for outcome in outcomes} == {"UNAVAILABLE"}


FORK = """
import asyncio, os, sys
from etcdsem.etcd.aio_transport import AioTransport, CallWire
from etcdsem.etcd.methods import METHODS
from etcdsem.etcd.dialing import Dialer
from etcdsem.etcd.http2 import Http2
from etcdsem.etcd.settings import read_settings

settings = read_settings(sys.argv[1])
def make():
    return AioTransport(Dialer(settings, settings.endpoints[0]))
async def ask(one):
    assert await one.call(METHODS["status"][0], b"", 5, None)
async def child():
    one = make()
    await ask(one)
    one.close()
def sockets():
    return sum(os.readlink(f"/proc/self/fd/{fd}").startswith("socket:[")
               for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}"))
async def main():
    none = sockets()
    one = make()
    await ask(one)
    wire = one._wire
    for ends in (os._exit, sys.exit):
        pid = os.fork()
        if pid == 0:
            print("inherited", sockets() - none, flush=True)
            asyncio.run(child())
            ends(0)
        print("ended", os.waitpid(pid, 0)[1], flush=True)
        await ask(one)
        assert one._wire is wire and not wire.over
    one.close()
asyncio.run(main())
"""


def test_a_forked_child(etcd: EtcdServer) -> None:
    """It has closed what it inherited, without a word on it, and connects by itself, however it
    ends; the parent goes on with its own connection.
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", "-c", FORK, etcd.endpoint],
        env={**os.environ, "PYTHONDEVMODE": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("ended")]
    assert lines == ["ended 0", "ended 0"], done.stdout + done.stderr
