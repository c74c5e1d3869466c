"""The floors of `floors`, with bare calls on our own transport in place of grpcio's.

What etcdsem costs beside these is its own doing; what these cost beside those is the transport's.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Iterator

from etcdsem.etcd import rpc
from etcdsem.etcd.aio_transport import AioTransport
from etcdsem.etcd.dialing import Dialer
from etcdsem.etcd.grpc_protocol import RpcError
from etcdsem.etcd.settings import read_settings
from etcdsem.etcd.streams import WATCH
from etcdsem.etcd.transport import Transport
from tests.benchmarks.floors import (
    baton_key,
    baton_number,
    give_back_request,
    put_request,
    take_request,
    watch_request,
)
from tests.benchmarks.load import Load, run_threads

TXN = "/etcdserverpb.KV/Txn"


def _dialer(load: Load) -> Dialer:
    settings = read_settings(load.endpoint)
    return Dialer(settings, settings.endpoints[0])


def _succeeded(answer: bytes) -> bool:
    succeeded: bool = rpc.TxnResponse.FromString(answer).succeeded
    return succeeded


def two(load: Load) -> None:
    """Threads that each take a key of their own and give it back."""
    transport = Transport(_dialer(load))

    def work(number: int) -> Iterator[None]:
        key = f"/floor/{load.name}/{number}".encode()
        take = take_request(key).SerializeToString()
        give_back = give_back_request(key).SerializeToString()
        while True:
            for request in (take, give_back):
                if not _succeeded(transport.call(TXN, request, 4, None)):
                    raise AssertionError("nobody else has this key")
            yield

    run_threads(load, work)


async def two_async(load: Load) -> None:
    """The same with tasks of one loop."""
    transport = AioTransport(_dialer(load))

    async def work(number: int) -> None:
        key = f"/floor/{load.name}/{number}".encode()
        take = take_request(key).SerializeToString()
        give_back = give_back_request(key).SerializeToString()
        while True:
            for request in (take, give_back):
                if not _succeeded(await transport.call(TXN, request, 4, None)):
                    raise AssertionError("nobody else has this key")
            load.counts[number] += 1

    load.begin()
    await asyncio.gather(*map(work, load.mine))


def queue_(load: Load) -> None:
    """Two commits and one event for each hand-over."""
    transport = Transport(_dialer(load))
    boxes: dict[int, queue.SimpleQueue[bool]] = {n: queue.SimpleQueue() for n in load.mine}
    carrier = transport.connect_streams(5)
    carrier.send(carrier.open(WATCH, None), watch_request(load).SerializeToString())

    def hear() -> bool:
        """True once the watch is there."""
        created = False
        for _, message in carrier.wait():
            if not isinstance(message, bytes):
                raise message
            response = rpc.WatchResponse.FromString(message)
            created = created or response.created
            for event in response.events:
                boxes[baton_number(event.kv)].put(True)
        return created

    while not hear():
        pass

    def listen() -> None:
        while True:
            hear()

    threading.Thread(target=listen, daemon=True).start()

    def work(number: int) -> Iterator[None]:
        hand_over, enter = _requests(load, number)
        if number < load.limit:
            boxes[number].put(True)
        while True:
            boxes[number].get()
            transport.call(TXN, hand_over, 4, None)
            transport.call(TXN, enter, 4, None)
            yield

    run_threads(load, work)


async def queue_async(load: Load) -> None:
    """`queue_` with tasks of one loop."""
    transport = AioTransport(_dialer(load))
    boxes: dict[int, asyncio.Queue[bool]] = {n: asyncio.Queue() for n in load.mine}
    created = asyncio.Event()

    def hear(stream: object, message: bytes | RpcError) -> None:
        if not isinstance(message, bytes):
            raise message
        response = rpc.WatchResponse.FromString(message)
        if response.created:
            created.set()
        for event in response.events:
            boxes[baton_number(event.kv)].put_nowait(True)

    def ended(carrier: object, error: RpcError) -> None:
        raise error

    carrier = await transport.connect_streams(5, hear, ended)
    carrier.send(carrier.open(WATCH, None), watch_request(load).SerializeToString())
    carrier.flush()
    await created.wait()

    async def work(number: int) -> None:
        hand_over, enter = _requests(load, number)
        if number < load.limit:
            boxes[number].put_nowait(True)
        while True:
            await boxes[number].get()
            await transport.call(TXN, hand_over, 4, None)
            await transport.call(TXN, enter, 4, None)
            load.counts[number] += 1

    load.begin()
    await asyncio.gather(*map(work, load.mine))


def _requests(load: Load, number: int) -> tuple[bytes, bytes]:
    """Hand the baton to the next, enter the line again."""
    hand_over = put_request(baton_key(load, (number + load.limit) % load.clients))
    enter = put_request(f"/floor/{load.name}/line/{number}".encode())
    return hand_over.SerializeToString(), enter.SerializeToString()
