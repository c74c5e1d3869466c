"""HTTP/2: whole conversations with a server of hyper's `h2`, which checks what we send.

Single frames, what breaks the rules, and peers that are no HTTP/2 servers: `test_http2_frames.py`.
"""

from __future__ import annotations

import gc
import weakref

import pytest
from h2.errors import ErrorCodes
from h2.events import (
    PingAckReceived,
    RemoteSettingsChanged,
    SettingsAcknowledged,
    StreamReset,
    WindowUpdated,
)
from h2.settings import SettingCodes
from hyperframe.frame import DataFrame

from etcdsem.etcd import http2_headers
from etcdsem.etcd.grpc_protocol import frame_message, header_block, messages, response
from etcdsem.etcd.http2 import Http2
from etcdsem.etcd.http2_frames import DATA, MAX_STREAM_ID, WINDOW, frame
from etcdsem.etcd.http2_streams import Http2Failure, Stream
from tests.etcd.h2_peer import (
    BLOCK,
    OK,
    RESPONSE,
    TRAILERS,
    Cut,
    Peer,
    by_frame,
    parse,
    pieces,
    sent,
    whole,
)

MANY = SettingCodes.MAX_CONCURRENT_STREAMS
FRAME = SettingCodes.MAX_FRAME_SIZE
INITIAL = SettingCodes.INITIAL_WINDOW_SIZE

cuts = pytest.mark.parametrize(
    "cut", [whole, pieces(1), pieces(7), pieces(16_384)], ids=["whole", "1", "7", "16384"]
)


def body_of(size: int) -> bytes:
    """Bytes that show when one is lost or doubled."""
    return bytes(at % 251 for at in range(size))


def data_sizes(connection: Http2) -> list[int]:
    """Bytes in each DATA frame that we send."""
    return [len(one.data) for one in sent(connection) if isinstance(one, DataFrame)]


# ---------------------------------------------------------------- exchanges


def test_we_begin_with_what_we_announce() -> None:
    """No header table, no pushes, a window of 16 MiB; h2 acknowledges, and so do we."""
    peer = Peer()

    (settings,) = [one for one in peer.events if isinstance(one, RemoteSettingsChanged)]
    assert {int(code): one.new_value for code, one in settings.changed_settings.items()} == {
        1: 0,
        2: 0,
        4: WINDOW,
        6: 65_536,
    }
    assert peer.h2.outbound_flow_control_window == WINDOW
    assert peer.count(SettingsAcknowledged) == 1
    assert peer.http2.ready
    assert peer.http2.closed is None


@cuts
def test_unary_call(cut: Cut) -> None:
    """A request, and a response of headers, data and trailers, in segments of any size."""
    peer = Peer(cut=cut)

    stream = peer.call(frame_message(b"question"))
    assert peer.requests[1][b":path"] == b"/etcdserverpb.KV/Txn"
    assert peer.requests[1][b"te"] == b"trailers"
    assert peer.bodies[1] == frame_message(b"question")
    assert peer.ended == {1}
    peer.answer(1, b"answer")

    assert stream.done
    assert stream.failure is None
    assert stream.headers == {b":status": b"200", b"content-type": b"application/grpc"}
    assert stream.trailers == OK
    assert response(stream) == b"answer"
    assert set(peer.touched) == {stream}


def test_calls_one_after_the_other_have_streams_of_their_own() -> None:
    """Odd and growing; what a response leaves behind does not reach the next one."""
    peer = Peer()
    for number in (1, 3, 5, 7):
        stream = peer.call(frame_message(b"%d" % number))
        assert stream.id == number
        peer.answer(number, b"%d" % number, [*TRAILERS, ("number", str(number))])
        assert response(stream) == b"%d" % number
        assert stream.trailers == {**OK, b"number": b"%d" % number}
    assert peer.http2.streams == {}


def test_calls_answered_in_another_order() -> None:
    """Streams are independent of each other."""
    peer = Peer()
    streams = [peer.call(frame_message(b"?")) for _ in range(5)]
    for stream in streams:
        peer.headers(stream.id)
    for stream in reversed(streams):
        peer.data(stream.id, frame_message(b"%d" % stream.id))
        peer.headers(stream.id, TRAILERS, last=True)
    assert [response(one) for one in streams] == [b"1", b"3", b"5", b"7", b"9"]


@cuts
def test_bidirectional_stream(cut: Cut) -> None:
    """Messages both ways until we say that nothing follows, and the server's trailers come."""
    peer = Peer(cut=cut)
    stream = peer.call(frame_message(b"create"), last=False)
    peer.headers(1)
    found = []
    for number in range(5):
        peer.data(1, frame_message(b"event %d" % number))
        found += messages(stream)
        peer.http2.send(stream, frame_message(b"progress"))
        peer.pump()
    assert found == [b"event %d" % number for number in range(5)]
    assert peer.bodies[1] == frame_message(b"create") + frame_message(b"progress") * 5
    assert peer.ended == set()

    peer.http2.send(stream, b"", last=True)
    peer.pump()
    assert peer.ended == {1}
    peer.headers(1, TRAILERS, last=True)
    assert stream.done
    assert stream.failure is None
    assert peer.resets == {}


def test_stream_that_begins_with_headers_alone() -> None:
    """A request without a body yet is open; one without any body has ended."""
    peer = Peer()
    stream = peer.call(last=False)
    assert (peer.bodies[1], peer.ended) == (b"", set())
    peer.http2.send(stream, frame_message(b"late"), last=True)
    peer.pump()
    assert (peer.bodies[1], peer.ended) == (frame_message(b"late"), {1})

    peer.call()
    assert peer.ended == {1, 3}


def test_server_that_ends_first_is_told_that_we_say_no_more() -> None:
    """A watch that the server ends with trailers: RST_STREAM, so that it forgets the stream."""
    peer = Peer()
    stream = peer.call(frame_message(b"create"), last=False)
    peer.headers(1)
    peer.headers(1, [("grpc-status", "14")], last=True)

    assert stream.done
    assert stream.failure is None
    assert peer.resets == {1: 0}
    peer.http2.send(stream, frame_message(b"too late"))
    assert sent(peer.http2) == []


def test_trailers_only() -> None:
    """A response of a single header block has it as headers and as trailers."""
    peer = Peer()
    stream = peer.call(b"x")
    peer.headers(1, [*RESPONSE, ("grpc-status", "5")], last=True)
    assert stream.trailers is not None
    assert stream.trailers is stream.headers
    assert stream.trailers[b"grpc-status"] == b"5"
    assert stream.data == b""


def test_data_that_ends_the_stream_leaves_no_trailers() -> None:
    """As plain HTTP does it; gRPC says what that means."""
    peer = Peer()
    stream = peer.call(b"x")
    peer.headers(1)
    peer.data(1, b"page", last=True)
    assert stream.done
    assert stream.failure is None
    assert stream.data == b"page"
    assert stream.trailers is None


def test_interim_responses_are_left_aside() -> None:
    """100 Continue, 103 Early Hints."""
    peer = Peer()
    stream = peer.call(b"x")
    peer.headers(1, [(":status", "100")])
    peer.headers(1, [(":status", "103"), ("link", "</x>")])
    assert stream.headers is None
    assert not peer.touched
    peer.answer(1, b"final")
    assert response(stream) == b"final"


@cuts
def test_padded_data(cut: Cut) -> None:
    """Padding is no data, but counts for the windows."""
    peer = Peer(cut=cut)
    stream = peer.call(b"x")
    peer.headers(1)
    peer.data(1, frame_message(b"padded"), padding=255)
    peer.data(1, b"", padding=1)
    peer.headers(1, TRAILERS, last=True)
    assert response(stream) == b"padded"


# ---------------------------------------------------------------- what we send: windows and frames


@cuts
def test_request_of_several_hundred_kilobytes(cut: Cut) -> None:
    """Beyond a frame of 16 KiB and the window of 64 KiB."""
    body = body_of(300_001)
    peer = Peer(cut=cut)
    peer.call(body)
    assert peer.bodies[1] == body
    assert peer.ended == {1}


@pytest.mark.parametrize("window", [0, 1, 100, 16_384, 65_536])
def test_small_windows_of_streams(window: int) -> None:
    """Nothing goes beyond the window; each update is used up."""
    body = body_of(1_000)
    peer = Peer({INITIAL: window}, reads=False)
    peer.call(body)
    assert peer.bodies[1] == body[:window]
    while 1 not in peer.ended:
        peer.h2.increment_flow_control_window(300, 1)
        peer.pump()
    assert peer.bodies[1] == body


def test_body_that_fills_the_window_exactly_ends_with_it() -> None:
    """END_STREAM is on the last frame, with no empty one after it."""
    peer = Peer({INITIAL: 100}, reads=False)
    peer.call(body_of(100))
    assert peer.ended == {1}


def test_end_needs_no_window() -> None:
    """An empty frame that ends the stream is allowed in a window of 0."""
    peer = Peer({INITIAL: 10}, reads=False)
    stream = peer.call(body_of(10), last=False)
    assert peer.ended == set()
    peer.http2.send(stream, b"", last=True)
    peer.pump()
    assert peer.ended == {1}


def test_parts_of_a_body_that_wait_for_the_window_keep_their_order() -> None:
    """What is sent while something waits goes behind it."""
    peer = Peer({INITIAL: 0}, reads=False)
    stream = peer.call(b"one,", last=False)
    peer.http2.send(stream, b"two,")
    peer.h2.increment_flow_control_window(6, 1)
    peer.pump()
    peer.http2.send(stream, b"three", last=True)
    peer.pump()
    assert peer.bodies[1] == b"one,tw"
    peer.h2.increment_flow_control_window(100, 1)
    peer.pump()
    assert peer.bodies[1] == b"one,two,three"
    assert peer.ended == {1}


def test_window_of_the_connection_is_shared() -> None:
    """65,535 bytes for all; then each update goes to whoever has something left."""
    peer = Peer({INITIAL: 1_000_000}, reads=False)
    first, second = body_of(60_000), body_of(70_000)
    peer.call(first)
    peer.call(second)
    assert peer.bodies == {1: first, 3: second[:5_535]}
    peer.call(b"x")
    assert peer.bodies[5] == b""
    peer.h2.increment_flow_control_window(64_465)
    peer.pump()
    assert peer.bodies == {1: first, 3: second, 5: b""}
    peer.h2.increment_flow_control_window(1)
    peer.pump()
    assert peer.ended == {1, 3, 5}


def test_both_windows_are_needed() -> None:
    """An update of the stream is of no use while the connection's window is 0, and conversely."""
    body = body_of(70_000)
    peer = Peer(reads=False)
    peer.call(body)
    peer.h2.increment_flow_control_window(10_000, 1)
    peer.pump()
    assert len(peer.bodies[1]) == 65_535
    peer.h2.increment_flow_control_window(1_000)
    peer.pump()
    assert len(peer.bodies[1]) == 66_535

    peer = Peer(reads=False)
    peer.call(body)
    peer.h2.increment_flow_control_window(10_000)
    peer.pump()
    assert len(peer.bodies[1]) == 65_535
    peer.h2.increment_flow_control_window(1_000, 1)
    peer.pump()
    assert len(peer.bodies[1]) == 66_535


def test_settings_make_windows_negative() -> None:
    """After SETTINGS with a smaller window, updates first fill the hole."""
    peer = Peer({INITIAL: 1_000}, reads=False)
    body = body_of(3_000)
    peer.call(body)
    peer.h2.update_settings({INITIAL: 10})
    peer.pump()
    peer.h2.increment_flow_control_window(990, 1)
    peer.pump()
    assert len(peer.bodies[1]) == 1_000
    peer.h2.increment_flow_control_window(1, 1)
    peer.pump()
    assert len(peer.bodies[1]) == 1_001
    peer.call(body)
    assert len(peer.bodies[3]) == 10
    peer.h2.update_settings({INITIAL: 60_000})
    peer.pump()
    assert peer.bodies == {1: body, 3: body}


def test_settings_are_acknowledged_before_they_are_made_use_of() -> None:
    """h2 allows more only once it is acknowledged; so do other servers."""
    peer = Peer({INITIAL: 0, MANY: 1}, reads=False, cut=by_frame)
    waiting = peer.call(body_of(50_000)), peer.call(b"x" * 20_000)
    peer.h2.update_settings({FRAME: 30_000, INITIAL: 50_000, MANY: 2})
    peer.pump()
    assert peer.bodies == {1: body_of(50_000), 3: b"x" * 15_535}
    assert [one.id for one in waiting] == [1, 3]


def test_larger_and_smaller_frames_in_the_middle_of_a_call() -> None:
    """MAX_FRAME_SIZE holds from its acknowledgement on."""
    peer = Peer({INITIAL: 1_000_000, FRAME: 100_000}, reads=False)
    peer.h2.increment_flow_control_window(1_000_000)
    peer.pump()
    peer.http2.request(BLOCK, body_of(150_000))
    assert data_sizes(peer.http2) == [100_000, 50_000]

    peer.h2.update_settings({FRAME: 16_384})
    peer.pump()
    peer.http2.request(BLOCK, body_of(20_000))
    assert data_sizes(peer.http2) == [16_384, 3_616]


def test_requests_before_the_settings_have_come() -> None:
    """With the frames and windows of the standard; a request without a body ends at once."""
    connection = Http2()
    connection.request(BLOCK)
    (headers,) = sent(connection)[2:]
    assert set(headers.flags) == {"END_HEADERS", "END_STREAM"}
    connection.request(BLOCK, body_of(70_000))
    assert data_sizes(connection) == [16_384, 16_384, 16_384, 16_383]


@pytest.mark.parametrize("size", [16_383, 16_384, 16_385, 32_768, 32_769, 50_000])
def test_request_headers_longer_than_a_frame(size: int) -> None:
    """A long token: HEADERS and CONTINUATION, of exactly so many bytes in all."""
    peer = Peer()
    peer.answer(peer.call().id, b"")  # the first block of a connection has a byte more
    overhead = len(header_block("/x", "y", "http", "t" * size)) - size
    token = "t" * (size - overhead)
    block = header_block("/x", "y", "http", token)
    assert len(block) == size
    peer.http2.request(block, b"body")
    kinds = [type(one).__name__ for one in parse(bytes(peer.http2.outgoing))]
    assert kinds == ["HeadersFrame", *["ContinuationFrame"] * ((size - 1) // 16_384), "DataFrame"]
    peer.pump()
    assert peer.requests[3][b"token"] == token.encode()
    assert peer.bodies[3] == b"body"
    peer.answer(3, b"")


# ---------------------------------------------------------------- what we receive: windows


def test_response_beyond_our_windows() -> None:
    """Both windows are opened again and again, for as long as a response goes on."""
    peer = Peer()
    streams = [peer.call(b"x"), peer.call(b"x")]
    message = body_of(WINDOW + 1_000)
    for stream in streams:
        peer.answer(stream.id, message)
    assert [response(one) == message for one in streams] == [True, True]


def test_data_of_streams_that_are_over_counts_for_the_connection() -> None:
    """What a server sent before it heard of a cancelled call does not close the window for good."""
    peer = Peer()
    part = b"x" * 16_384
    for _ in range(3 * WINDOW // len(part) // 64):
        stream = peer.call(b"x", last=False)
        peer.h2.send_headers(stream.id, RESPONSE)
        for _ in range(64):
            peer.h2.send_data(stream.id, part)
        peer.http2.cancel(stream)
        for piece in peer.cut(peer.h2.data_to_send()):
            assert peer.http2.receive(piece) == []
        assert stream.data == b""
        peer.pump()
    assert peer.h2.outbound_flow_control_window > 0
    assert peer.http2.closed is None


# ---------------------------------------------------------------- how many streams


def test_no_more_streams_than_the_peer_allows() -> None:
    """The others wait, unsent, and start one by one in their order."""
    peer = Peer({MANY: 2})
    streams = [peer.call(b"%d" % number) for number in range(5)]
    assert [one.id for one in streams] == [1, 3, 0, 0, 0]
    peer.answer(3, b"")
    assert [one.id for one in streams] == [1, 3, 5, 0, 0]
    peer.answer(5, b"")
    peer.answer(1, b"")
    assert peer.bodies == {1: b"0", 3: b"1", 5: b"2", 7: b"3", 9: b"4"}


def test_cancelled_while_waiting() -> None:
    """Nothing of it is ever sent, and it says so."""
    peer = Peer({MANY: 1})
    first, second, third = [peer.call(b"%d" % number) for number in range(3)]
    peer.http2.cancel(second)
    assert second.failure == Http2Failure("the call was cancelled", processed=False)
    peer.answer(1, b"")
    assert first.done
    assert peer.bodies == {1: b"0", 3: b"2"}
    assert third.id == 3


def test_body_that_grows_while_the_stream_waits() -> None:
    """It is sent in one, once the stream starts."""
    peer = Peer({MANY: 1})
    peer.call(b"x")
    stream = peer.call(b"one,", last=False)
    peer.http2.send(stream, b"two,")
    peer.http2.send(stream, b"three", last=True)
    peer.answer(1, b"")
    assert peer.bodies[3] == b"one,two,three"
    assert peer.ended == {1, 3}


def test_end_of_a_body_while_the_stream_waits() -> None:
    """Nothing is sent of a stream that has no number yet."""
    peer = Peer({MANY: 1})
    peer.call(b"x")
    stream = peer.call(last=False)
    peer.http2.send(stream, b"", last=True)
    assert sent(peer.http2) == []
    peer.answer(1, b"")
    assert (peer.bodies[3], peer.ended) == (b"", {1, 3})


def test_allowed_streams_change_in_the_midst() -> None:
    """Down to none, and up again."""
    peer = Peer()
    streams = [peer.call(b"x") for _ in range(3)]
    peer.h2.update_settings({MANY: 0})
    peer.pump()
    streams += [peer.call(b"x") for _ in range(3)]
    for number in (1, 3, 5):
        peer.answer(number, b"")
    assert [one.id for one in streams] == [1, 3, 5, 0, 0, 0]
    peer.h2.update_settings({MANY: 2})
    peer.pump()
    assert [one.id for one in streams] == [1, 3, 5, 7, 9, 0]


@pytest.mark.parametrize("ending", ["cancelled", "reset", "broken"])
def test_every_ending_makes_room_for_one_who_waits(ending: str) -> None:
    """Not only a response that is complete."""
    peer = Peer({MANY: 1})
    first, second = peer.call(b"x"), peer.call(b"x")
    if ending == "cancelled":
        peer.http2.cancel(first)
    elif ending == "reset":
        peer.h2.reset_stream(1, ErrorCodes.INTERNAL_ERROR)
    else:
        peer.http2.receive(frame(DATA, 0, 1, b"before any headers"))
    peer.pump()
    assert first.failure is not None
    assert second.id == 3
    assert 3 in peer.requests


def test_streams_run_out() -> None:
    """The last number is used; then the connection is retired, and those who wait are refused."""
    peer = Http2()
    peer._next_id = MAX_STREAM_ID - 2
    peer._max_streams = 1
    streams = [peer.request(BLOCK, b"x") for _ in range(3)]
    assert [one.id for one in streams] == [MAX_STREAM_ID - 2, 0, 0]
    assert not peer.retired
    peer.cancel(streams[0])
    assert streams[1].id == MAX_STREAM_ID
    assert peer.retired
    late = peer.request(BLOCK, b"x")
    peer.cancel(streams[1])
    assert not late.id
    assert {late.failure, streams[2].failure} == {
        Http2Failure("the connection takes no further requests", processed=False)
    }


# ---------------------------------------------------------------- endings


def test_cancelled_call() -> None:
    """The server hears of it, once; what it still sends is dropped, and nobody is told."""
    peer = Peer()
    stream, other = peer.call(b"x"), peer.call(b"x")
    peer.headers(1)
    peer.touched.clear()
    peer.http2.cancel(stream)
    peer.http2.cancel(stream)
    assert stream.failure == Http2Failure("the call was cancelled", processed=True)
    peer.pump()
    assert peer.resets == {1: 8}
    assert peer.count(StreamReset) == 1
    peer.answer(3, b"fine")
    assert response(other) == b"fine"
    assert set(peer.touched) == {other}


def test_refused_stream_was_not_processed() -> None:
    """REFUSED_STREAM says that nothing was done; other codes say nothing."""
    peer = Peer()
    streams = [peer.call(b"x") for _ in range(3)]
    peer.h2.reset_stream(1, ErrorCodes.REFUSED_STREAM)
    peer.h2.reset_stream(3, ErrorCodes.ENHANCE_YOUR_CALM)
    peer.h2.reset_stream(5, 99)
    peer.pump()
    assert [one.failure for one in streams] == [
        Http2Failure("the server reset the stream: REFUSED_STREAM", processed=False),
        Http2Failure("the server reset the stream: ENHANCE_YOUR_CALM"),
        Http2Failure("the server reset the stream: error 99"),
    ]


def test_refused_after_it_was_answered() -> None:
    """A server that has begun to answer has done something, whatever it says."""
    peer = Peer()
    stream = peer.call(b"x")
    peer.headers(1)
    peer.h2.reset_stream(1, ErrorCodes.REFUSED_STREAM)
    peer.pump()
    assert stream.failure is not None
    assert stream.failure.processed


def test_reset_after_the_response_is_ignored() -> None:
    """So does etcd: RST_STREAM with NO_ERROR, often within the next call."""
    peer = Peer({INITIAL: 1})
    stream = peer.call(b"a long request", last=False)
    peer.headers(1)
    peer.data(1, frame_message(b"answer"))
    peer.h2.send_headers(1, TRAILERS, end_stream=True)
    peer.h2.reset_stream(1, ErrorCodes.NO_ERROR)
    peer.touched.clear()
    peer.pump()
    assert stream.failure is None
    assert response(stream) == b"answer"
    assert peer.touched == [stream]
    second = peer.call(b"x")
    peer.answer(3, b"next")
    assert response(second) == b"next"


def test_reset_with_no_error_before_the_end_is_a_failure() -> None:
    """The response is not complete."""
    peer = Peer()
    stream = peer.call(b"x")
    peer.headers(1)
    peer.h2.reset_stream(1, ErrorCodes.NO_ERROR)
    peer.pump()
    assert stream.failure == Http2Failure("the server reset the stream: NO_ERROR")


def test_going_away() -> None:
    """Streams that it names as the last go on; later ones, and waiting ones, were not processed."""
    peer = Peer({MANY: 3})
    streams = [peer.call(b"x") for _ in range(4)]
    peer.h2.close_connection(ErrorCodes.NO_ERROR, b"maintenance \xff", last_stream_id=3)
    assert peer.http2.receive(peer.h2.data_to_send()) == [streams[3], streams[2]]

    text = "the server is closing the connection: NO_ERROR maintenance \ufffd"
    assert [one.failure for one in streams] == [
        None,
        None,
        Http2Failure(text, processed=False),
        Http2Failure(text, processed=False),
    ]
    assert peer.http2.retired
    assert peer.http2.closed is None
    late = peer.http2.request(BLOCK, b"x")
    assert late.done
    assert late.failure == Http2Failure("the connection takes no further requests", processed=False)
    assert late not in peer.http2.receive(b"")
    assert sent(peer.http2) == []

    lost = peer.http2.lost("the connection was closed")
    assert set(lost) == set(streams[:2])
    assert streams[0].failure == Http2Failure("the connection was closed")


def test_stream_that_goes_on_after_going_away() -> None:
    """It ends as if nothing had been."""
    peer = Peer()
    stream = peer.call(b"x")
    peer.h2.send_headers(1, RESPONSE)
    peer.h2.send_data(1, frame_message(b"fine"))
    peer.h2.send_headers(1, TRAILERS, end_stream=True)
    answer = peer.h2.data_to_send()
    peer.h2.close_connection(last_stream_id=1)
    peer.http2.receive(peer.h2.data_to_send() + answer)
    assert response(stream) == b"fine"


def test_lost_connection() -> None:
    """What was sent may have been processed; what waited was not; there is nothing more to do."""
    peer = Peer({MANY: 1})
    first, second = peer.call(b"x"), peer.call(b"x")
    assert set(peer.http2.lost("cut off")) == {first, second}
    assert first.failure == Http2Failure("cut off", processed=True)
    assert second.failure == Http2Failure("cut off", processed=False)
    assert peer.http2.closed == Http2Failure("cut off")
    assert peer.http2.streams == {}

    assert peer.http2.request(BLOCK).failure == Http2Failure("cut off", processed=False)
    assert peer.http2.lost("again") == []
    assert peer.http2.receive(b"anything") == []
    assert peer.http2.closed == Http2Failure("cut off")


# ---------------------------------------------------------------- signs of life


def test_pings_both_ways() -> None:
    """Ours are counted when they come back; theirs come back with what they brought."""
    peer = Peer()
    for _ in range(3):
        peer.http2.ping()
    assert peer.http2.pongs == 0
    peer.h2.ping(b"12345678")
    peer.pump()
    peer.http2.acknowledge()
    peer.pump()
    assert peer.http2.pongs == 3
    (pong,) = [one for one in peer.events if isinstance(one, PingAckReceived)]
    assert pong.ping_data == b"12345678"


def test_windows_are_opened_before_they_close() -> None:
    """At half of them, so that a server need not wait."""
    peer = Peer()
    stream = peer.call(b"x")
    peer.headers(1)
    peer.data(1, b"x" * (WINDOW // 2))
    assert peer.count(WindowUpdated) == 1  # that of the beginning
    peer.data(1, b"x")
    updates = [one for one in peer.events if isinstance(one, WindowUpdated)][1:]
    assert {(one.stream_id, one.delta) for one in updates} == {
        (0, WINDOW // 2 + 1),
        (1, WINDOW // 2 + 1),
    }
    assert len(stream.data) == WINDOW // 2 + 1


# ---------------------------------------------------------------- header blocks


def test_header_blocks_do_not_depend_on_each_other() -> None:
    """h2's encoder uses its table as far as we allow: not at all. Blocks are found in the cache."""
    peer = Peer()
    headers = [*RESPONSE, ("custom", "a value that an encoder would put into its table")]
    blocks = []
    for _ in range(3):
        stream = peer.call(b"x")
        peer.headers(stream.id, headers)
        peer.headers(stream.id, TRAILERS, last=True)
        blocks.append(stream.headers)
    assert blocks[0] is not None
    assert blocks[0][b"custom"].startswith(b"a value")
    assert blocks[1] is blocks[2]


def test_smaller_header_table_in_the_midst() -> None:
    """It is told at the beginning that we use none; hpack, nghttp2 and others insist on being told
    of a smaller one (RFC 7541, 4.2).
    """
    peer = Peer()
    peer.call(b"x")
    for size in (100, 0, 4_096, 0):
        peer.h2.update_settings({SettingCodes.HEADER_TABLE_SIZE: size})
        peer.pump()
        peer.call(b"x")
    assert len(peer.requests) == 5


def test_cache_of_header_blocks_is_bounded() -> None:
    """In number, and in the size of a block."""
    peer = Peer()
    http2_headers.decoded.clear()
    for number in range(http2_headers._CACHED_BLOCKS + 100):
        stream = peer.call(b"x")
        peer.headers(
            stream.id, [*RESPONSE, ("n", str(number)), ("x", "y" * (number % 8 == 0) * 600)]
        )
        peer.headers(stream.id, TRAILERS, last=True)
        assert stream.headers is not None
        assert stream.headers[b"n"] == b"%d" % number
        assert len(http2_headers.decoded) <= http2_headers._CACHED_BLOCKS
    assert max(map(len, http2_headers.decoded)) <= http2_headers._CACHED_SIZE


def test_connection_is_freed_without_the_collector() -> None:
    """An idle connection that is dropped takes its buffers along."""

    class Watched(Http2):
        pass

    gc.disable()
    try:
        connection = Watched()
        stream: Stream | None = connection.request(BLOCK, b"x")
        gone = weakref.ref(connection)
        del connection, stream
        assert gone() is None
    finally:
        gc.enable()
