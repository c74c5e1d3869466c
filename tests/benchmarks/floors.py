"""What bare etcd calls from Python's grpcio allow: the floors that everything is measured against.

    two      a cycle of two transactions one after the other: take a key, give it back
    baton    N clients pass round L batons: one put and one watch event for each hand-over
    queue    the same, and after each hand-over the put by which a client enters the line again:
             two commits, which is what a fair semaphore on etcd needs

Each in the blocking and in the asyncio kind, on messages that were built before the clock starts.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import grpc.aio

from etcdsem.etcd import rpc
from tests.benchmarks.load import Load, run_threads

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)

TXN = ("/etcdserverpb.KV/Txn", rpc.TxnRequest, rpc.TxnResponse)
WATCH = ("/etcdserverpb.Watch/Watch", rpc.WatchRequest, rpc.WatchResponse)


def _unary(channel: Any) -> Callable[..., Any]:
    path, sent, got = TXN
    call: Callable[..., Any] = channel.unary_unary(
        path, request_serializer=sent.SerializeToString, response_deserializer=got.FromString
    )
    return call


def _stream(channel: Any) -> Callable[..., Any]:
    path, sent, got = WATCH
    call: Callable[..., Any] = channel.stream_stream(
        path, request_serializer=sent.SerializeToString, response_deserializer=got.FromString
    )
    return call


def take_request(key: bytes) -> Any:
    """Take a key that nobody has."""
    request = rpc.TxnRequest()
    free = request.compare.add()
    free.target, free.key, free.create_revision = rpc.Compare.CREATE, key, 0
    put = request.success.add().request_put
    put.key, put.value = key, b"x" * 150  # as long as a holder's record
    return request


def give_back_request(key: bytes) -> Any:
    """Give it back."""
    request = rpc.TxnRequest()
    mine = request.compare.add()
    mine.target, mine.key, mine.mod_revision = rpc.Compare.MOD, key, 1
    mine.result = rpc.Compare.GREATER
    request.success.add().request_delete_range.key = key
    return request


def put_request(key: bytes) -> Any:
    """Write a key."""
    request = rpc.TxnRequest()
    put = request.success.add().request_put
    put.key, put.value = key, b"x" * 150
    return request


# ---------------------------------------------------------------- two transactions


def two(load: Load) -> None:
    """Threads that each take a key of their own and give it back."""
    with grpc.insecure_channel(load.endpoint, options=CHANNEL_OPTIONS) as channel:
        call = _unary(channel)

        def work(number: int) -> Iterator[None]:
            key = f"/floor/{load.name}/{number}".encode()
            take, give_back = take_request(key), give_back_request(key)
            while True:
                if not call(take, timeout=4).succeeded or not call(give_back, timeout=4).succeeded:
                    raise AssertionError("nobody else has this key")
                yield

        run_threads(load, work)


async def two_async(load: Load) -> None:
    """The same with tasks of one loop."""
    async with grpc.aio.insecure_channel(load.endpoint, options=CHANNEL_OPTIONS) as channel:
        call = _unary(channel)

        async def work(number: int) -> None:
            key = f"/floor/{load.name}/{number}".encode()
            take, give_back = take_request(key), give_back_request(key)
            while True:
                await call(take, timeout=4)
                await call(give_back, timeout=4)
                load.counts[number] += 1

        load.begin()
        await asyncio.gather(*map(work, load.mine))


# ---------------------------------------------------------------- batons


def baton_key(load: Load, number: int) -> bytes:
    """Where a client finds its baton."""
    return f"/floor/{load.name}/baton/{number % load.processes}/{number}".encode()


def watch_request(load: Load) -> Any:
    """Watch the batons of this process."""
    base = f"/floor/{load.name}/baton/{load.process}"
    create = rpc.WatchCreateRequest(key=f"{base}/".encode(), range_end=f"{base}0".encode())
    create.start_revision = 1  # another process may have begun before we were there
    return rpc.WatchRequest(create_request=create)


def baton_number(kv: Any) -> int:
    """Whose baton it is."""
    return int(kv.key.rsplit(b"/", 1)[1])


def _batons(load: Load, *, enters: bool) -> None:
    """Each client waits for its baton, hands it to the next but `limit`, and enters again."""
    with (
        grpc.insecure_channel(load.endpoint, options=CHANNEL_OPTIONS) as channel,
        grpc.insecure_channel(load.endpoint, options=CHANNEL_OPTIONS) as streams,
    ):
        call = _unary(channel)
        boxes: dict[int, queue.SimpleQueue[bool]] = {n: queue.SimpleQueue() for n in load.mine}
        requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        requests.put(watch_request(load))
        watch = _stream(streams)(iter(requests.get, None))
        next(watch)  # created

        def listen() -> None:
            for response in watch:
                for event in response.events:
                    boxes[baton_number(event.kv)].put(True)

        threading.Thread(target=listen, daemon=True).start()

        def work(number: int) -> Iterator[None]:
            hand_over = put_request(baton_key(load, (number + load.limit) % load.clients))
            enter = put_request(f"/floor/{load.name}/line/{number}".encode())
            if number < load.limit:
                boxes[number].put(True)
            while True:
                boxes[number].get()
                call(hand_over, timeout=4)
                if enters:
                    call(enter, timeout=4)
                yield

        run_threads(load, work)


def baton(load: Load) -> None:
    """One commit and one event for each hand-over."""
    _batons(load, enters=False)


def queue_(load: Load) -> None:
    """Two commits and one event for each hand-over."""
    _batons(load, enters=True)


async def queue_async(load: Load) -> None:
    """`queue` with tasks of one loop."""
    async with (
        grpc.aio.insecure_channel(load.endpoint, options=CHANNEL_OPTIONS) as channel,
        grpc.aio.insecure_channel(load.endpoint, options=CHANNEL_OPTIONS) as streams,
    ):
        call = _unary(channel)
        boxes: dict[int, asyncio.Queue[bool]] = {n: asyncio.Queue() for n in load.mine}
        watch = _stream(streams)()
        await watch.write(watch_request(load))
        await watch.read()  # created

        async def listen() -> None:
            while True:
                for event in (await watch.read()).events:
                    boxes[baton_number(event.kv)].put_nowait(True)

        async def work(number: int) -> None:
            hand_over = put_request(baton_key(load, (number + load.limit) % load.clients))
            enter = put_request(f"/floor/{load.name}/line/{number}".encode())
            if number < load.limit:
                boxes[number].put_nowait(True)
            while True:
                await boxes[number].get()
                await call(hand_over, timeout=4)
                await call(enter, timeout=4)
                load.counts[number] += 1

        load.begin()
        await asyncio.gather(listen(), *map(work, load.mine))
