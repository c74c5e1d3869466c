"""Calls when endpoints are dead, paused, strange, or swallow the answer; and the login."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Event, Thread, main_thread
from types import FrameType
from typing import TYPE_CHECKING

import pytest

from etcdsem import server
from etcdsem.clock import boot_time
from etcdsem.core.commands import (
    AccessDenied,
    Compare,
    LeaseExists,
    NotApplied,
    NotConnected,
    OutcomeUnknown,
    Put,
    Range,
    Txn,
)
from etcdsem.etcd.call_connection import IDLE_TIME
from etcdsem.etcd.connection import Connection
from etcdsem.etcd.grpc_protocol import NOT_PROCESSED, RpcError
from etcdsem.etcd.transport import MOST
from etcdsem.posix import process_stat
from tests.etcd.proxy import Proxy
from tests.helpers.connections import connected, leads, secured, there
from tests.helpers.waiting import eventually

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer


def put(connection: Connection, key: str, timeout: float = 5.0) -> None:
    """Write something."""
    connection.transact(Txn((), (Put(key.encode(), b"x"),)), timeout)


def test_a_dead_endpoint_is_passed_by(etcd: EtcdServer, name: str) -> None:
    """The first of the list is dead: the call goes to the next, and stays there."""
    with connected("127.0.0.1:1", etcd.endpoint) as connection:
        put(connection, name)
        assert there(connection, name)
        assert connection.status(5).endpoint == etcd.endpoint


def test_nobody_listens() -> None:
    """A clear failure, certain that nothing was sent, within the deadline."""
    began = time.monotonic()
    with connected("127.0.0.1:1", "127.0.0.1:2") as connection:
        with pytest.raises(NotConnected, match=r"(?i)connect") as caught:
            put(connection, "x", timeout=3)
        assert caught.value.endpoint.startswith("127.0.0.1:")
    assert time.monotonic() - began < 6


def test_a_stopped_member_is_left(etcd_binary: str, name: str) -> None:
    """SIGSTOP: the write's outcome is unknown, and the next call goes elsewhere."""
    with server.start_cluster(3, binary=etcd_binary) as members:
        followers = [m for m in members if not leads(m)]
        with connected(followers[0].endpoint, followers[1].endpoint) as connection:
            put(connection, name)
            followers[0].pause()
            eventually(lambda: process_stat(followers[0].pid).state == "T")
            try:
                with pytest.raises(OutcomeUnknown):
                    put(connection, name, timeout=1)
                put(connection, f"{name}/2", timeout=5)
                assert connection.status(5).endpoint == followers[1].endpoint
            finally:
                followers[0].resume()


def test_an_answer_that_is_lost(etcd: EtcdServer, name: str) -> None:
    """The request was applied, the answer swallowed: unknown, never "not applied"."""
    with Proxy(etcd.endpoint) as proxy, connected(proxy.endpoint) as connection:
        connection.status(5)
        proxy.down = "drop"
        with pytest.raises(OutcomeUnknown):
            put(connection, name, timeout=1)
        with connected(etcd.endpoint) as other:
            assert there(other, name)


def test_a_connection_that_breaks_under_a_call(etcd: EtcdServer, name: str) -> None:
    """Reset while the request is held: unknown; it was not applied, but who could know?"""
    with Proxy(etcd.endpoint) as proxy, connected(proxy.endpoint) as connection:
        connection.status(5)
        proxy.up = "hold"
        failures: list[BaseException] = []

        def call() -> None:
            try:
                put(connection, name, timeout=5)
            except OutcomeUnknown as failure:
                failures.append(failure)

        thread = Thread(target=call)
        thread.start()
        thread.join(0.3)
        proxy.reset()
        thread.join(10)
        assert len(failures) == 1
        proxy.up = "pass"
        until = time.monotonic() + 10
        while True:  # a new connection, all is well; its first try may have been reset too
            try:
                put(connection, name)
                break
            except NotConnected:
                assert time.monotonic() < until


def test_lost_connections_make_room_for_others(etcd: EtcdServer, name: str) -> None:
    """However many have broken, and whoever keeps the failures with their tracebacks."""
    kept = []
    with connected(etcd.endpoint) as connection:
        put(connection, name)
        transport = connection._link().transport
        for _ in range(MOST + 1):
            (one,) = transport._idle
            one.used = boot_time()  # it is taken without a look
            one.sock.shutdown(socket.SHUT_WR)
            with pytest.raises(OutcomeUnknown) as caught:
                put(connection, name)
            kept.append(caught.value)
            put(connection, name, timeout=1.0)
        assert len(transport._alive) == 1


def test_who_waits_for_a_connection_has_its_turn(
    etcd: EtcdServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads that call without a break do not keep all connections among themselves."""
    monkeypatch.setattr("etcdsem.etcd.transport.MOST", 2)
    done = [0] * 6
    everybody = Event()

    def work(number: int) -> None:
        while not everybody.is_set() and not failures:
            try:
                put(connection, f"{name}/{number}")
            except NotApplied as failure:
                failures.append(failure)
            done[number] += 1
            if min(done) >= 20:
                everybody.set()

    failures: list[NotApplied] = []
    with connected(etcd.endpoint) as connection:
        put(connection, name)
        transport = connection._link().transport
        transport._idle.append(transport._dial(boot_time() + 5))  # both are there
        threads = [Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert not failures
        assert everybody.is_set()
        assert len(transport._alive) == 2


def test_an_old_connection_is_not_used_again(etcd: EtcdServer, name: str) -> None:
    """A load balancer may have dropped it without a word, and so may the sleep of a machine."""
    with Proxy(etcd.endpoint) as proxy, connected(proxy.endpoint) as connection:
        put(connection, name)
        (one,) = connection._link().transport._idle
        one.used -= 2 * IDLE_TIME
        put(connection, name)
        (other,) = connection._link().transport._idle
        assert other is not one


def test_interrupted_while_the_client_is_closed(etcd: EtcdServer, name: str) -> None:
    """The connection of that call does not stay open."""
    with connected(etcd.endpoint) as connection:
        put(connection, name)
        transport = connection._link().transport
        (one,) = transport._idle
        transport.close()
        transport._set_aside(one)
        assert not transport._aside


def test_what_was_not_processed_is_repeated_in_time_only(etcd: EtcdServer) -> None:
    """A call whose time is over is not sent once more, for then its outcome would be unknown."""
    with connected(etcd.endpoint) as connection:
        connection._link().trusted = True
        for timeout, failure in ((60.0, None), (0.0, NotApplied)):
            calling = connection.calling("txn", b"", timeout)
            next(calling)
            error = RpcError(NOT_PROCESSED, "the server says so")
            if failure is None:
                assert calling.throw(error).name == "txn"
            else:
                with pytest.raises(failure):
                    calling.throw(error)


def test_a_failure_is_no_cycle(etcd: EtcdServer, name: str) -> None:
    """What a failed call has referred to goes with its failure: no collector need come by."""
    with connected(etcd.endpoint) as connection:
        put(connection, name)
        (one,) = connection._link().transport._idle
        one.used = boot_time()
        one.sock.shutdown(socket.SHUT_WR)
        gone = weakref.ref(one)
        del one
        gc.disable()
        try:
            with pytest.raises(OutcomeUnknown):
                put(connection, name)
            assert gone() is None
        finally:
            gc.enable()


def test_http_servers_are_not_etcd() -> None:
    """A web server is told apart from an etcd that is away."""

    class Handler(BaseHTTPRequestHandler):
        """Answers nothing useful."""

    web = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=web.serve_forever, daemon=True).start()
    try:
        where = f"127.0.0.1:{web.server_port}"
        with connected(where) as connection, pytest.raises(NotConnected) as seen:
            put(connection, "x", timeout=4)
        assert seen.value.detail
    finally:
        web.shutdown()
        web.server_close()


def test_a_lease_of_that_id_exists(etcd: EtcdServer) -> None:
    """Granting an id twice is told as such."""
    with connected(etcd.endpoint) as connection:
        lease = 77_000_000 + os.getpid()
        connection.grant(lease, 5, 5)
        with pytest.raises(LeaseExists):
            connection.grant(lease, 5, 5)
        assert lease in connection.leases(5)
        connection.revoke(lease, 5)


def test_a_closed_connection_says_so(etcd: EtcdServer) -> None:
    """After close nothing is sent."""
    with connected(etcd.endpoint) as connection:
        connection.status(5)
        connection.close()
        with pytest.raises(NotApplied, match="closed"):
            put(connection, "x")


def test_logins(any_fresh_etcd: EtcdServer) -> None:
    """The right password works, a wrong one and none are refused, other keys are too."""
    secured(any_fresh_etcd)
    where = any_fresh_etcd.endpoint
    with connected(where, user="job", password="secret") as connection:
        put(connection, "/etcdsem/x")
        with pytest.raises(AccessDenied, match="permission denied"):
            put(connection, "/other/x")
        assert connection.counters["login"] == 1
        # A restart forgets all tokens: one new login, and the caller notices nothing.
        any_fresh_etcd.restart()
        connection.leave(connection._link())
        put(connection, "/etcdsem/y")
        assert connection.counters["login"] == 2
    with (
        connected(where, user="job", password="wrong") as connection,
        pytest.raises(AccessDenied, match="job"),
    ):
        put(connection, "/etcdsem/x")
    with connected(where) as connection, pytest.raises(AccessDenied):
        put(connection, "/etcdsem/x")


CTRL_C = """
import sys
from etcdsem.core.commands import Put, Txn
from etcdsem.etcd.connection import Connection
from etcdsem.etcd.settings import read_settings
connection = Connection(read_settings(sys.argv[1]))
connection.status(5)
print("ready", flush=True)
sys.stdin.readline()
try:
    connection.transact(Txn((), (Put(b"/ctrl-c", b""),)), 60)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def test_ctrl_c_in_a_call(etcd: EtcdServer) -> None:
    """KeyboardInterrupt comes out of a blocking call at once."""
    with Proxy(etcd.endpoint) as proxy:
        process = subprocess.Popen(
            [sys.executable, "-c", CTRL_C, proxy.endpoint],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        proxy.down = "drop"
        proxy.passed_up.clear()
        process.stdin.write("\n")
        process.stdin.flush()
        assert proxy.passed_up.wait(10)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "interrupted\n"
        assert time.monotonic() - began < 5
        process.kill()
        process.communicate()


class TimeIsUp(TimeoutError):
    """What a signal handler of the user's raises, as many do."""


@pytest.fixture
def strike() -> Iterator[Callable[[], None]]:
    """Has a signal handler raise in the main thread; to be called by another one."""

    def handle(_signal: int, _frame: FrameType | None) -> None:
        raise TimeIsUp

    former = signal.signal(signal.SIGALRM, handle)
    yield lambda: signal.pthread_kill(main_thread().ident or 0, signal.SIGALRM)
    signal.signal(signal.SIGALRM, former)


def test_a_time_limit_of_the_users_in_a_call(
    etcd: EtcdServer, name: str, strike: Callable[[], None]
) -> None:
    """It passes, and is not taken for the socket's; the next call has another connection."""
    with Proxy(etcd.endpoint) as proxy, connected(proxy.endpoint) as connection:
        put(connection, name)
        proxy.down = "drop"
        proxy.passed_up.clear()

        def strike_then() -> None:
            if proxy.passed_up.wait(10):
                strike()

        Thread(target=strike_then).start()
        with pytest.raises(TimeIsUp):
            put(connection, name, timeout=60)
        proxy.down = "pass"
        assert there(connection, name)


def test_a_time_limit_of_the_users_while_connecting(strike: Callable[[], None]) -> None:
    """The same, before a server has said anything."""
    with socket.create_server(("127.0.0.1", 0)) as silent:

        def serve() -> None:
            with silent.accept()[0] as one:
                one.recv(1)
                strike()
                ended.wait(10)

        ended = Event()
        Thread(target=serve).start()
        with connected(f"127.0.0.1:{silent.getsockname()[1]}") as connection:
            with pytest.raises(TimeIsUp):
                put(connection, "x", timeout=60)
            ended.set()


@pytest.mark.parametrize(
    ("txn", "whole"),
    [
        (Txn((), (Range(b"a"), Range(b"b", b"c"))), True),
        (Txn((Compare(b"a", "create", "=", 0),), (Put(b"a", b"x"),)), False),
    ],
    ids=["read", "write"],
)
def test_a_read_must_not_be_cancelled(txn: Txn, whole: bool) -> None:
    """It would crash etcd 3.5.0 to 3.5.6: whoever makes the call is told to leave it to its end."""
    with connected("127.0.0.1:1") as connection:
        connection._link().trusted = True  # no probe
        assert next(connection.transacting(txn, 1.0)).whole == whole


def test_connections_under_way_count(etcd: EtcdServer, name: str) -> None:
    """However many threads begin at the same moment, they share `MOST` connections."""
    with Proxy(etcd.endpoint) as proxy, connected(proxy.endpoint) as connection:
        put(connection, name)
        threads = [Thread(target=put, args=(connection, f"{name}/{n}", 20)) for n in range(60)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(proxy._pairs) <= MOST
        assert all(there(connection, f"{name}/{n}") for n in range(60))


def test_all_wait_for_one_that_cannot_connect() -> None:
    """Those that wait for a connection are told why there is none, not that all are busy."""
    failures: list[BaseException] = []

    def call(connection: Connection) -> None:
        try:
            put(connection, "x", timeout=1)
        except NotConnected as failure:
            failures.append(failure)

    with socket.create_server(("127.0.0.1", 0)) as deaf:
        where = f"127.0.0.1:{deaf.getsockname()[1]}"
        with connected(where) as connection:
            threads = [Thread(target=call, args=(connection,)) for _ in range(3 * MOST)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
    assert len(failures) == 3 * MOST
