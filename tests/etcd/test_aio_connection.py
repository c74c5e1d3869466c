"""Calls from an event loop: dead endpoints, lost answers, cancellation, the login."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from etcdsem import server
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
from etcdsem.etcd.aio_connection import AioConnection
from etcdsem.etcd.aio_transport import CallWire
from etcdsem.etcd.settings import read_settings
from etcdsem.posix import process_stat
from tests.etcd.proxy import Proxy
from tests.helpers.connections import connected, leads, secured, sockets, there
from tests.helpers.event_loop import eventually, run

if TYPE_CHECKING:
    from etcdsem.server import EtcdServer


def wire_of(connection: AioConnection) -> CallWire:
    """The connection that calls take now."""
    wire = connection._link().transport._wire
    assert wire is not None
    return wire


def dial(*endpoints: str, user: str | None = None, password: str | None = None) -> AioConnection:
    """A connection; to be made in a loop."""
    return AioConnection(read_settings(list(endpoints), user=user, password=password))


async def put(connection: AioConnection, key: str, timeout: float = 5.0) -> None:
    """Write something."""
    await connection.transact(Txn((), (Put(key.encode(), b"x"),)), timeout)


async def write(connection: AioConnection, key: str) -> None:
    """A write as the core makes them: after a comparison."""
    txn = Txn((Compare(key.encode(), "create", "=", 0),), (Put(key.encode(), b"x"),))
    await connection.transact(txn, 5.0)


def test_a_dead_endpoint_is_passed_by(etcd: EtcdServer, name: str) -> None:
    """Hundreds of tasks at once: one probe each finds the dead one and the live one."""

    async def main() -> None:
        connection = dial("127.0.0.1:1", etcd.endpoint)
        await asyncio.gather(*(put(connection, f"{name}/{n}") for n in range(300)))
        await connection.close()
        with pytest.raises(NotApplied, match="closed"):
            await put(connection, name)

    run(main())
    with connected(etcd.endpoint) as connection:
        assert there(connection, f"{name}/299")


def test_nobody_listens() -> None:
    """A clear failure, certain that nothing was sent, within the deadline."""

    async def main() -> None:
        connection = dial("127.0.0.1:1", "127.0.0.1:2")
        with pytest.raises(NotConnected, match=r"(?i)connect"):
            await put(connection, "x", timeout=3)
        await connection.close()

    began = time.monotonic()
    run(main())
    assert time.monotonic() - began < 8


def test_an_answer_that_is_lost(etcd: EtcdServer, name: str) -> None:
    """Applied, but the answer was swallowed, or the caller was cancelled: never "not applied"."""

    async def main() -> None:
        with Proxy(etcd.endpoint) as proxy:
            connection = dial(proxy.endpoint)
            await put(connection, name)
            proxy.down = "drop"
            with pytest.raises(OutcomeUnknown):
                await put(connection, f"{name}/1", timeout=1)
            proxy.down = "pass"
            proxy.reset()
            until = time.monotonic() + 10
            while True:  # the first new connection may have been reset too
                try:
                    await put(connection, f"{name}/2", timeout=10)
                    break
                except NotConnected:
                    assert time.monotonic() < until
            proxy.down = "drop"
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(put(connection, f"{name}/3"), 0.5)
            await connection.close()

    run(main())
    with connected(etcd.endpoint) as connection:
        assert all(there(connection, f"{name}/{number}") for number in (1, 2, 3))


def test_calls_that_are_given_up_leak_nothing(etcd: EtcdServer, name: str) -> None:
    """Each is left to its end, and then forgotten. (grpc.aio leaked 800 bytes for each.)"""
    in_use = memory_in_use()

    async def give_up(connection: AioConnection, times: int) -> int:
        given_up = 0
        for _ in range(times):
            task = asyncio.create_task(write(connection, name))
            await asyncio.sleep(0)  # it has been sent
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            given_up += task.cancelled()
        await put(connection, name)
        await eventually(lambda: not wire_of(connection).http2.streams)
        return given_up

    async def main() -> tuple[int, int]:
        connection = dial(etcd.endpoint)
        await put(connection, name)
        await give_up(connection, 500)
        before = in_use()
        given_up = await give_up(connection, 2000)
        grown = in_use() - before
        await connection.close()
        return given_up, grown

    given_up, grown = run(main())
    assert given_up > 1000
    assert grown < 200 * given_up


def test_calls_that_are_given_up_do_not_heap_up(etcd: EtcdServer, name: str) -> None:
    """Where etcd is silent: at their deadline the connection is left, and closed in the end."""

    async def main() -> None:
        with Proxy(etcd.endpoint) as proxy:
            connection = dial(proxy.endpoint)
            await put(connection, name)
            silent = wire_of(connection)
            proxy.up = "hold"
            writes = [asyncio.create_task(put(connection, name, 0.5)) for _ in range(100)]
            await asyncio.sleep(0)
            for task in writes:
                task.cancel()
            await asyncio.wait(writes)
            assert len(silent.http2.streams) == 100
            await eventually(lambda: not silent.usable)
            await eventually(lambda: silent.over)
            assert not silent.http2.streams
            await connection.close()

    run(main())


def memory_in_use() -> Callable[[], int]:
    """Gives how much this process has allocated, by the C library."""

    class Info(ctypes.Structure):
        """Of mallinfo2(3)."""

        _fields_ = [(f"field{number}", ctypes.c_size_t) for number in range(10)]

    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        pytest.skip("this C library has no mallinfo2")
    mallinfo2.restype = Info

    def in_use() -> int:
        gc.collect()
        return int(mallinfo2().field7)

    return in_use


def test_a_read_that_is_given_up_harms_nobody(any_fresh_etcd: EtcdServer, name: str) -> None:
    """Cancelled while it reads, it would crash an etcd from 3.5.0 to 3.5.4: the caller is gone at
    once, and the call is left to its end.
    """
    look = Txn((), (Range(name.encode(), name.encode() + b"~"),) * 4)

    async def main() -> None:
        connection = dial(any_fresh_etcd.endpoint)
        for number in range(20):
            keys = (f"{name}/{number}/{n}".encode() for n in range(100))
            fresh = (Compare(name.encode(), "create", "=", 0),)
            await connection.transact(Txn(fresh, tuple(Put(key, b"x" * 100) for key in keys)), 5)
        began = time.monotonic()
        await connection.transact(look, 5)
        took = time.monotonic() - began
        given_up = 0
        for number in range(30):
            read = asyncio.create_task(connection.transact(look, 5))
            await asyncio.sleep(took * number / 30)
            read.cancel()
            await asyncio.wait([read])
            given_up += read.cancelled()
            assert any_fresh_etcd.running
        assert given_up >= 3  # the others were answered before
        await connection.close()

    run(main())
    assert any_fresh_etcd.running


def test_tasks_that_somebody_else_cancels(etcd: EtcdServer, name: str) -> None:
    """The end of a loop cancels all tasks, ours too: it is no cancellation of who waits for them,
    and they are made again.
    """

    async def main() -> None:
        connection = dial(etcd.endpoint)
        before = asyncio.all_tasks()
        mine = {asyncio.create_task(put(connection, f"{name}/{n}")) for n in range(3)}
        cancelled = 0
        while not all(task.done() for task in mine):
            for task in asyncio.all_tasks() - before - mine:
                cancelled += cancelled < 5 and task.cancel()
            await asyncio.sleep(0)
        assert cancelled == 5
        await asyncio.gather(*mine)
        await connection.close()

    run(main())


def test_a_stopped_member_is_left(etcd_binary: str, name: str) -> None:
    """SIGSTOP: the write's outcome is unknown, and the next call goes elsewhere."""

    async def main(first: EtcdServer, second: EtcdServer) -> None:
        connection = dial(first.endpoint, second.endpoint)
        await put(connection, name)
        first.pause()
        await eventually(lambda: process_stat(first.pid).state == "T")
        try:
            with pytest.raises(OutcomeUnknown):
                await put(connection, name, timeout=1)
            await put(connection, f"{name}/2", timeout=5)
        finally:
            first.resume()
        await connection.close()

    with server.start_cluster(3, binary=etcd_binary) as members:
        run(main(*[member for member in members if not leads(member)]))


def test_thousands_of_tasks(etcd: EtcdServer, name: str) -> None:
    """They share one connection, and all are answered."""

    async def main() -> None:
        connection = dial(etcd.endpoint)
        before = sockets()
        for _ in range(2):
            await asyncio.gather(*(put(connection, f"{name}/{n}", 30) for n in range(3000)))
            assert sockets() == before + 1
        await connection.close()
        assert sockets() == before

    run(main())
    with connected(etcd.endpoint) as connection:
        assert there(connection, f"{name}/2999")


def test_a_connection_that_breaks_under_many_calls(etcd: EtcdServer, name: str) -> None:
    """Answered means applied, "not applied" is true, all others are unknown; then all works."""
    outcomes: dict[int, str] = {}

    async def one(connection: AioConnection, number: int) -> None:
        try:
            await put(connection, f"{name}/{number}", 10)
            outcomes[number] = "applied"
        except NotApplied:
            outcomes[number] = "not applied"
        except OutcomeUnknown:
            outcomes[number] = "unknown"

    async def main() -> None:
        with Proxy(etcd.endpoint) as proxy:
            connection = dial(proxy.endpoint)
            await put(connection, name)
            tasks = []
            for number in range(600):
                tasks.append(asyncio.create_task(one(connection, number)))
                if number % 100 == 50:
                    await asyncio.sleep(0.002)
                    proxy.reset()
            await asyncio.gather(*tasks)
            await one(connection, 600)
            await one(connection, 601)
            await connection.close()

    run(main())
    assert len(outcomes) == 602
    assert outcomes[601] == "applied"
    with connected(etcd.endpoint) as connection:
        for number, outcome in outcomes.items():
            if outcome != "unknown":
                assert there(connection, f"{name}/{number}") == (outcome == "applied"), number


def test_leases(etcd: EtcdServer) -> None:
    """Made, asked for in crowds, ended."""
    first = int.from_bytes(os.urandom(6), "big") + 1

    async def main() -> None:
        connection = dial(etcd.endpoint)
        ids = [first + number for number in range(200)]
        assert await connection.grant(first, 60, 5) == 60
        with pytest.raises(LeaseExists):
            await connection.grant(first, 60, 5)
        left = await connection.times_to_live(ids, 5)
        assert 50 < (left[0] or 0) <= 60
        assert left[1:] == (-1.0,) * 199
        await connection.revoke(first, 5)
        assert await connection.times_to_live(ids[:1], 5) == (-1.0,)
        await connection.close()

    run(main())


def test_logins(fresh_etcd: EtcdServer) -> None:
    """A crowd logs in once; so it does after a restart that forgot all tokens."""
    secured(fresh_etcd)

    async def main() -> None:
        connection = dial(fresh_etcd.endpoint, user="job", password="secret")
        requests = connection.counters

        async def crowd() -> None:
            await asyncio.gather(*(put(connection, f"/etcdsem/{n}") for n in range(200)))

        await crowd()
        with pytest.raises(AccessDenied, match="permission denied"):
            await put(connection, "/other/x")
        asked = requests["login"]
        await asyncio.to_thread(fresh_etcd.restart)
        connection.leave(connection._link())
        await crowd()
        assert requests["login"] > asked
        await connection.close()
        wrong = dial(fresh_etcd.endpoint, user="job", password="wrong")
        with pytest.raises(AccessDenied, match="job"):
            await put(wrong, "/etcdsem/x")
        await wrong.close()

    run(main())
