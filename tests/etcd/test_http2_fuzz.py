"""HTTP/2, fuzzed: conversations cut at any byte, damaged ones, and bytes of any kind.

1. A conversation is made with hyper's `h2` and recorded: what we were asked to do and what arrived,
   in its order. `replay` does the same again on another connection.
2. Whatever arrives, nothing raises, memory stays within bounds, and what we send is made of frames.
3. `--fuzz-seconds` goes on for so long with each test, with other examples each time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeAlias

import hypothesis.strategies as st
import pytest
from h2.settings import SettingCodes
from hypothesis import HealthCheck, given, settings

from etcdsem.etcd.grpc_protocol import RpcError, error_of, messages, response
from etcdsem.etcd.http2 import Http2
from etcdsem.etcd.http2_frames import (
    CONTINUATION,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HAS_PRIORITY,
    HEADERS,
    MAX_FRAME,
    MAX_HEADER_BLOCK,
    PADDED,
    PRIORITY,
    PUSH_PROMISE,
    SETTINGS,
    frame,
)
from etcdsem.etcd.http2_headers import Headers
from etcdsem.etcd.http2_streams import Http2Failure, Stream
from tests.etcd.h2_peer import BLOCK, RESPONSE, Peer, by_frame, encode, parse

Log: TypeAlias = list[tuple[Any, ...]]
"""What was done with a connection: the name of a method, and its arguments."""


class Recording(Http2):
    """Notes what is done with it."""

    def __init__(self) -> None:
        super().__init__()
        self.log: Log = []
        self.all: list[Stream] = []

    def receive(self, data: bytes) -> list[Stream]:
        self.log.append(("receive", data))
        return super().receive(data)

    def request(self, block: bytes, body: bytes = b"", *, last: bool = True) -> Stream:
        self.log.append(("request", body, last))
        stream = super().request(block, body, last=last)
        self.all.append(stream)
        return stream

    def send(self, stream: Stream, body: bytes, *, last: bool = False) -> None:
        self.log.append(("send", self.all.index(stream), body, last))
        super().send(stream, body, last=last)

    def cancel(self, stream: Stream) -> None:
        self.log.append(("cancel", self.all.index(stream)))
        super().cancel(stream)

    def ping(self) -> None:
        self.log.append(("ping",))
        super().ping()


class Response(NamedTuple):
    """What a stream has come to."""

    done: bool
    failure: Http2Failure | None
    headers: Headers | None
    data: bytes
    trailers: Headers | None


class Result(NamedTuple):
    """What a connection has come to."""

    sent: bytes
    streams: list[Response]
    state: tuple[object, ...]


def response_of(stream: Stream) -> Response:
    return Response(
        stream.done, stream.failure, stream.headers, bytes(stream.data), stream.trailers
    )


def result_of(http2: Http2, streams: list[Stream], sent: bytes) -> Result:
    state = http2.closed, http2.retired, http2.ready, http2.pongs, len(http2.streams)
    return Result(sent, [response_of(one) for one in streams], state)


# ---------------------------------------------------------------- a connection that is watched


class Watched:
    """A connection with what is always true of it."""

    def __init__(self) -> None:
        self.http2 = Http2()
        self.streams: list[Stream] = []
        self.received = 0
        self.asked = 200  # bytes that we may send, whatever arrives
        self.over: dict[Stream, Response] = {}

    def perform(self, step: tuple[Any, ...]) -> None:
        """Do one thing."""
        name, *arguments = step
        if name == "receive":
            self.received += len(arguments[0])
            touched = self.http2.receive(arguments[0])
            assert len(touched) == len(set(touched))
            assert not self.http2._touched
        elif name == "request":
            body, last = arguments
            self.streams.append(self.http2.request(BLOCK, body, last=last))
            self.asked += len(BLOCK) + 50 + 10 * len(body)
        elif name == "ping":
            self.http2.ping()
            self.asked += 17
        elif self.streams:
            stream = self.streams[arguments[0] % len(self.streams)]
            if name == "cancel":
                self.http2.cancel(stream)
                assert stream.done
            elif not stream._last:
                self.http2.send(stream, arguments[1], last=arguments[2])
                self.asked += 50 + 10 * len(arguments[1])

    def check(self) -> None:
        """What is always true."""
        http2 = self.http2
        assert len(http2.outgoing) <= self.asked + 2 * self.received
        assert len(http2._input) < 9 + MAX_FRAME
        assert http2._block is None or len(http2._block[2]) <= MAX_HEADER_BLOCK
        assert sum(len(one.data) for one in self.streams) <= self.received
        assert all(http2.streams[one].id == one for one in http2.streams)
        if http2.closed is not None:
            assert not http2.streams
        if http2.closed is not None or len(http2.streams) < http2._max_streams:
            assert not http2._waiting
        for stream in self.streams:
            assert stream.done == (stream.id not in http2.streams and stream not in http2._waiting)
            if stream.done:
                now = response_of(stream)
                assert self.over.setdefault(stream, now) == now
                assert stream.failure is not None or stream.headers is not None

    def finish(self) -> None:
        """The connection is lost; nothing is left open, and gRPC makes something of it."""
        self.http2.lost("the end")
        self.check()
        assert all(one.done for one in self.streams)
        assert parse(bytes(self.http2.outgoing))
        for stream in self.streams:
            for judge in (error_of, response, messages):
                try:
                    judge(stream)
                except RpcError:
                    pass


def replay(log: Iterable[tuple[Any, ...]], *, look: bool = True) -> Watched:
    """Do all that; `look`: after each step, too."""
    watched = Watched()
    for step in log:
        watched.perform(step)
        if look:
            watched.check()
    return watched


# ---------------------------------------------------------------- conversations

sizes = st.one_of(st.integers(0, 40), st.sampled_from([100, 16_384, 20_000, 70_000]))
index = st.integers(0, 7)
flag = st.booleans()
new_settings = st.fixed_dictionaries(
    {},
    optional={
        SettingCodes.MAX_CONCURRENT_STREAMS: st.integers(0, 5),
        # (Tiny windows are tested elsewhere: with large bodies they take long.)
        SettingCodes.INITIAL_WINDOW_SIZE: st.just(0) | st.integers(500, 30_000),
        SettingCodes.MAX_FRAME_SIZE: st.integers(16_384, 40_000),
        SettingCodes.HEADER_TABLE_SIZE: st.integers(0, 5_000),
    },
)
pumped = st.sampled_from([True, True, True, False])
text = st.text("abcdefghij", max_size=300)


def weighted(choices: dict[str, tuple[int, tuple[st.SearchStrategy[Any], ...]]]) -> Any:
    """Steps by name; a weight, and the arguments."""
    names = [name for name, (weight, _) in choices.items() for _ in range(weight)]
    return st.sampled_from(names).flatmap(lambda name: st.tuples(st.just(name), *choices[name][1]))


step = weighted(
    {
        "request": (5, (sizes, flag)),
        "send": (3, (index, sizes, flag)),
        "cancel": (1, (index,)),
        "ping": (1, ()),
        "headers": (6, (index, text | st.sampled_from(["", "long" * 10_000]))),
        "interim": (1, (index,)),
        "data": (6, (index, sizes, st.integers(0, 255) | st.just(0))),
        "trailers": (4, (index, st.integers(-1, 20))),
        "only": (1, (index, st.integers(0, 16))),
        "reset": (1, (index, st.integers(0, 15))),
        "settings": (2, (new_settings,)),
        "their_ping": (1, (st.binary(min_size=8, max_size=8),)),
        "update": (3, (index, st.integers(1, 50_000))),
        "update_all": (3, (st.integers(1, 50_000),)),
        "goaway": (1, (st.integers(0, 40), st.integers(0, 13))),
        "extension": (1, (index, st.binary(max_size=30))),
    }
)


class Conversation:
    """Steps, done with h2 as the server."""

    def __init__(self, first: dict[SettingCodes, int], *, reads: bool) -> None:
        self.http2 = Recording()
        self.peer = Peer(first, http2=self.http2, reads=reads, cut=by_frame)
        self.bodies: dict[Stream, bytes] = {}
        self.said: dict[int, bytes] = {}  # data of responses that have begun, by stream
        self.ended: set[int] = set()
        self.reset: set[int] = set()

    def step(self, name: str, *arguments: Any, pump: bool) -> None:
        """One step, with a stream for which the rules allow it now, if there is one."""
        does = getattr(self, "do_" + name)
        if name in ("send", "cancel"):
            self._with_one([one for one in self.http2.all if not one.done], does, *arguments)
        elif name in ("headers", "interim", "only", "data", "trailers", "reset", "update"):
            over = self.ended | self.reset | set(self.peer.resets)
            candidates = [one for one in self.peer.requests if one not in over]
            if name in ("headers", "interim", "only"):
                candidates = [one for one in candidates if one not in self.said]
            elif name in ("data", "trailers"):
                candidates = [one for one in candidates if one in self.said]
            self._with_one(candidates, does, *arguments)
        else:
            does(*arguments)
        if pump:
            self.peer.pump()

    def _with_one(self, candidates: list[Any], does: Any, at: int, *arguments: Any) -> None:
        if candidates:
            does(candidates[at % len(candidates)], *arguments)

    # what we do

    def do_request(self, size: int, last: bool) -> None:
        body = bytes(size)
        self.bodies[self.http2.request(BLOCK, body, last=last)] = body

    def do_send(self, stream: Stream, size: int, last: bool) -> None:
        if not stream._last:
            self.http2.send(stream, b"x" * size, last=last)
            self.bodies[stream] += b"x" * size

    def do_cancel(self, stream: Stream) -> None:
        self.http2.cancel(stream)

    def do_ping(self) -> None:
        self.http2.ping()

    # what the server does

    def do_headers(self, number: int, text: str) -> None:
        self.peer.h2.send_headers(number, [*RESPONSE, ("text", text)])
        self.said[number] = b""

    def do_interim(self, number: int) -> None:
        self.peer.h2.send_headers(number, [(":status", "103")])

    def do_data(self, number: int, size: int, padding: int) -> None:
        data = b"d" * min(size, 16_000)
        self.peer.h2.send_data(number, data, pad_length=padding or None)
        self.said[number] += data

    def do_trailers(self, number: int, status: int) -> None:
        self.peer.h2.send_headers(number, [("grpc-status", str(status))], end_stream=True)
        self.ended.add(number)

    def do_only(self, number: int, status: int) -> None:
        headers = [*RESPONSE, ("grpc-status", str(status))]
        self.peer.h2.send_headers(number, headers, end_stream=True)
        self.ended.add(number)

    def do_reset(self, number: int, code: int) -> None:
        self.peer.h2.reset_stream(number, code)
        self.reset.add(number)

    def do_settings(self, changed: dict[SettingCodes | int, int]) -> None:
        self.peer.h2.update_settings(changed)

    def do_their_ping(self, data: bytes) -> None:
        self.peer.h2.ping(data)

    def do_update(self, number: int, size: int) -> None:
        self.peer.h2.increment_flow_control_window(size, number)

    def do_update_all(self, size: int) -> None:
        self.peer.h2.increment_flow_control_window(size)

    def do_goaway(self, at: int, code: int) -> None:
        # By hand: h2 says nothing more after it, but gRPC's servers do.
        last = (1 + 2 * at).to_bytes(4, "big")
        if at < 10:  # else the conversation goes on
            self.raw(frame(GOAWAY, 0, 0, last + code.to_bytes(4, "big")))

    def do_extension(self, at: int, payload: bytes) -> None:
        self.raw(frame(100 + at, at, at, payload) + frame(PRIORITY, 0, 1 + 2 * at, b"12345"))

    def raw(self, data: bytes) -> None:
        """What h2 does not say."""
        self.peer.pump()
        self.peer.touched += self.http2.receive(data)

    def check(self) -> None:
        """Both sides have heard what the other said, as far as it was meant to come."""
        for stream, body in self.bodies.items():
            number = stream.id
            if number:
                heard = self.peer.bodies[number]
                assert body.startswith(heard)
                if number in self.peer.ended:
                    assert body == heard
                    assert stream._last
            if stream.failure is None:
                assert bytes(stream.data) == self.said.get(number, b"")
                assert stream.done == (number in self.ended)


steps = st.tuples(step, pumped)
conversations = st.tuples(
    new_settings | st.just({}),
    flag,
    st.lists(steps, max_size=20) | st.lists(steps, min_size=20, max_size=60),
)


def converse(first: dict[SettingCodes, int], reads: bool, steps: list[Any]) -> Conversation:
    """Hold a conversation."""
    conversation = Conversation(first, reads=reads)
    for step, pump in steps:
        conversation.step(*step, pump=pump)
    conversation.peer.pump()
    conversation.check()
    return conversation


# ---------------------------------------------------------------- the fuzzers

Again = Callable[[Callable[[], None]], None]

few, many = (
    settings(
        max_examples=number,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    for number in (60, 300)
)


@pytest.fixture
def again(request: pytest.FixtureRequest) -> Again:
    """Runs a test once, and on for `--fuzz-seconds`."""

    def run(test: Callable[[], None]) -> None:
        until = time.monotonic() + request.config.getoption("--fuzz-seconds")
        test()
        while time.monotonic() < until:
            test()

    return run


def recut(log: Log, sizes: list[int]) -> Log:
    """The same bytes in other segments: those that follow each other are joined, and cut anew."""
    found: Log = []
    pending = b""
    turn = 0
    for step in [*log, ("end",)]:
        if step[0] == "receive":
            pending += step[1]
            continue
        while pending:
            size = sizes[turn % len(sizes)]
            turn += 1
            found.append(("receive", pending[:size]))
            pending = pending[size:]
        found.append(step)
    return found[:-1]


def test_any_split_of_a_valid_conversation(again: Again) -> None:
    """Segments make no difference to what is sent, and to what each stream comes to."""

    @few
    @given(conversations, st.lists(st.integers(1, 200) | st.just(5_000), min_size=1, max_size=8))
    def fuzz(conversation: Any, sizes: list[int]) -> None:
        held = converse(*conversation)
        log = held.http2.log
        assert held.http2.closed is None
        cut = replay(recut(log, sizes), look=False)
        joined = replay(recut(log, [10**9]))
        results = [
            result_of(one.http2, one.streams, bytes(one.http2.outgoing)) for one in (cut, joined)
        ]
        assert results[0] == results[1]
        assert results[0].streams == [response_of(one) for one in held.http2.all]
        cut.finish()

    again(fuzz)


damages = st.lists(
    st.tuples(
        st.sampled_from(["flip", "insert", "delete", "double", "swap"]),
        st.integers(0, 100_000),
        st.integers(1, 40),
        st.binary(min_size=1, max_size=30),
    ),
    min_size=1,
    max_size=5,
)


def damaged(data: bytes, damage: str, at: int, size: int, junk: bytes) -> bytes:
    """Bytes that are not what they were."""
    at %= len(data) + 1
    before, part, after = data[:at], data[at : at + size], data[at + size :]
    if damage == "flip":
        part = bytes(one ^ junk[place % len(junk)] for place, one in enumerate(part))
    elif damage == "insert":
        part = junk + part
    elif damage == "delete":
        part = b""
    elif damage == "double":
        part *= 2
    else:
        part, after = after[:size], part + after[size:]
    return before + part + after


def test_damaged_conversations(again: Again) -> None:
    """Each ends with a result or a failure, within bounds."""

    @few
    @given(conversations, damages, st.booleans())
    def fuzz(conversation: Any, all_damage: list[Any], begin: bool) -> None:
        log = recut(converse(*conversation).http2.log, [10**9])
        arrivals = [at for at, step in enumerate(log) if step[0] == "receive"]
        for damage, at, *rest in all_damage:
            place = arrivals[0 if begin else at % len(arrivals)]
            log[place] = ("receive", damaged(log[place][1], damage, at // 7, *rest))
        watched = replay(log)
        watched.finish()
        again_cut = replay(recut(log, [1, 700]), look=False)
        if watched.http2.ready:
            again_cut.finish()
            assert list(map(response_of, again_cut.streams)) == list(
                map(response_of, watched.streams)
            )

    again(fuzz)


numbers = st.integers(0, 2**32 - 1) | st.sampled_from([0, 1, 8, 2**31 - 1, 2**31, 65_535])
blocks = st.one_of(
    st.just(encode(RESPONSE)),
    st.just(encode([("grpc-status", "0")])),
    st.just(encode([(":status", "100")])),
    st.binary(max_size=60),
)
payloads = st.one_of(
    st.binary(max_size=60),
    blocks,
    numbers.map(lambda one: one.to_bytes(4, "big")),
    st.binary(min_size=8, max_size=8),
    st.lists(
        st.tuples(st.integers(0, 7), numbers).map(
            lambda one: one[0].to_bytes(2, "big") + one[1].to_bytes(4, "big")
        ),
        max_size=3,
    ).map(b"".join),
    st.sampled_from([bytes(16_384), bytes(16_385)]),
)
frames = st.builds(
    frame,
    st.integers(0, 9) | st.sampled_from([SETTINGS, PUSH_PROMISE, 10, 255]),
    st.sampled_from([0, 1, 4, 5, 8, 0x2D]) | st.integers(0, 255),
    st.sampled_from([0, 1, 1, 3, 5, 2, 7, 2**31 - 1, 2**31 + 1]),
    payloads,
)
arrivals = st.tuples(
    st.just("receive"),
    st.one_of(
        st.binary(max_size=100),
        frames,
        st.builds(lambda one, size: one[:size], frames, st.integers(0, 80)),
        st.lists(frames, max_size=5).map(b"".join),
    ),
)
bodies = st.sampled_from([b"", b"x", b"y" * 20_000, b"z" * 70_000])
requests = st.one_of(
    st.tuples(st.just("request"), bodies, flag),
    st.tuples(st.just("send"), index, bodies, flag),
    st.tuples(st.just("cancel"), index),
    st.tuples(st.just("ping")),
)


def test_any_bytes_at_any_moment(again: Again) -> None:
    """Bytes and frames of all kinds, before, between and after requests."""

    @many
    @given(flag, st.lists(requests | arrivals | arrivals, max_size=30))
    def fuzz(well: bool, steps: list[Any]) -> None:
        start: Log = [("receive", frame(SETTINGS, 0, 0)), ("request", b"x", True)]
        replay(start * well + steps).finish()

    again(fuzz)


def header_frames(
    stream: int, flags: int, block: bytes, padding: int, cuts: list[int], end: bool
) -> bytes:
    """A header block in any number of frames, with or without its end."""
    parts = []
    for cut in cuts:
        parts.append(block[:cut])
        block = block[cut:]
    parts.append(block)
    first = parts[0]
    if flags & PADDED:
        first = bytes((padding,)) + b"prior" * bool(flags & HAS_PRIORITY) + first + bytes(padding)
    elif flags & HAS_PRIORITY:
        first = b"prior" + first
    ends = [END_HEADERS * (end and at == len(cuts)) for at in range(len(parts))]
    data = frame(HEADERS, flags & ~END_HEADERS | ends[0], stream, first)
    for part, last in zip(parts[1:], ends[1:], strict=True):
        data += frame(CONTINUATION, last, stream, part)
    return data


streams = st.sampled_from([1, 1, 3, 5])
flags = st.sampled_from([0, END_STREAM, END_STREAM, PADDED, HAS_PRIORITY, PADDED | HAS_PRIORITY, 5])
eight = st.binary(min_size=8, max_size=8)
small = st.integers(0, 100_000) | st.sampled_from([0, 1, 2**31 - 1])
four = small.map(lambda one: one.to_bytes(4, "big"))
mostly = st.sampled_from([True] * 9 + [False])
kinds: dict[str, tuple[int, st.SearchStrategy[bytes]]] = {
    "headers": (
        6,
        st.builds(
            header_frames,
            streams,
            flags,
            blocks | st.just(encode(RESPONSE)),
            st.integers(0, 5),
            st.lists(st.integers(0, 9), max_size=4),
            mostly,
        ),
    ),
    "data": (6, st.builds(frame, st.just(0), flags, streams, st.binary(max_size=20))),
    "reset": (1, st.builds(frame, st.just(3), st.just(0), streams, four)),
    "update": (3, st.builds(frame, st.just(8), st.just(0), streams | st.just(0), four)),
    "settings": (
        3,
        st.lists(st.tuples(st.integers(1, 6), four), max_size=3).map(
            lambda all: frame(4, 0, 0, b"".join(bytes((0, code)) + value for code, value in all))
        ),
    ),
    "ping": (1, st.builds(frame, st.just(6), st.sampled_from([0, 1]), st.just(0), eight)),
    "goaway": (1, st.builds(frame, st.just(7), st.just(0), st.just(0), eight)),
    "priority": (1, st.builds(frame, st.just(2), flags, streams, st.just(b"prior"))),
    "other": (1, frames),
}
sound = st.sampled_from([kind for kind, (weight, _) in kinds.items() for _ in range(weight)])


def test_any_frames_of_the_right_kind(again: Again) -> None:
    """Frames whose form is right get further than others do."""
    received = sound.flatmap(lambda kind: st.tuples(st.just("receive"), kinds[kind][1]))
    steps = st.lists(requests | received | received | received, max_size=60)

    @many
    @given(steps)
    def fuzz(all_steps: list[Any]) -> None:
        start: Log = [("receive", frame(SETTINGS, 0, 0)), ("request", b"x", True)]
        replay(start + all_steps).finish()

    again(fuzz)
