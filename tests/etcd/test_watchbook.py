"""What a watch stream decides, without a stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from etcdsem.core.commands import AccessDenied, Event, Failure, KeyValue
from etcdsem.core.watchbook import (
    CancelWatch,
    CreateWatch,
    WatchBook,
    WatchEntry,
    WatchRequest,
    WatchResponse,
)
from etcdsem.etcd import rpc
from etcdsem.etcd.encode import watch_request, watch_response


class Ear:
    """Writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Any]] = []

    def created(self, revision: int) -> None:
        self.heard.append(("created", revision))

    def events(self, events: Sequence[Event]) -> None:
        self.heard += [(event.kind, event.kv.mod_revision) for event in events]

    def gap(self, reason: str) -> None:
        self.heard.append(("gap", reason))

    def refused(self, error: Failure) -> None:
        self.heard.append(("refused", type(error)))


def entry(ear: Ear, start: int = 0) -> WatchEntry:
    """A watch."""
    return WatchEntry(ear, b"k", b"", start, None)


def response(
    watch: int, revision: int = 0, events: Sequence[int] = (), **more: Any
) -> WatchResponse:
    """What etcd says."""
    puts = [Event("put", KeyValue(b"k", b"", one, one)) for one in events]
    return WatchResponse(watch, revision, events=puts, **more)


def created(request: WatchRequest) -> CreateWatch:
    """A request that is to create a watch."""
    assert isinstance(request, CreateWatch)
    return request


def tell(book: WatchBook, answer: WatchResponse) -> list[WatchRequest]:
    """Hear a response, tell the listeners; gives what is to be sent."""
    told, send = book.heard(answer)
    for one in told:
        one()
    return send


def test_a_watch_is_pinned_where_it_was_created() -> None:
    """Created at 10 without an event: after a break it goes on from 11."""
    ear, book = Ear(), WatchBook()
    first = created(book.add(entry(ear)))
    assert first.start == 0
    tell(book, response(first.id, 10, created=True))
    (again,) = book.reopened()
    assert created(again).start == 11
    tell(book, response(again.id, 15, created=True))
    assert ear.heard == [("created", 10)], "created is told once"


def test_nothing_is_told_twice() -> None:
    """Events that were told already, and those of a former stream, are left aside."""
    ear, book = Ear(), WatchBook()
    old = book.add(entry(ear)).id
    tell(book, response(old, 10, created=True))
    tell(book, response(old, 12, [11, 12]))
    (again,) = book.reopened()
    new = again.id
    assert created(again).start == 13
    tell(book, response(old, 13, [13]))
    tell(book, response(new, 13, created=True))
    tell(book, response(new, 13, [12, 13]))
    assert ear.heard == [("created", 10), ("put", 11), ("put", 12), ("put", 13)]


def test_a_gap_is_told_after_the_new_watch_is_up() -> None:
    """Compacted: the watch starts again at the present; what is read then misses nothing."""
    ear, book = Ear(), WatchBook()
    watch = book.add(entry(ear, start=5)).id
    (again,) = tell(book, response(watch, 0, created=True, canceled=True, compacted=9))
    assert created(again).start == 0
    assert ear.heard == []
    tell(book, response(again.id, 20, created=True))
    assert ear.heard == [("created", 20), ("gap", "compacted at revision 9")]
    (third,) = book.reopened()
    assert created(third).start == 21


def test_a_refusal_without_an_id_is_matched_in_order() -> None:
    """Older releases refuse with the id -1: it is the oldest that is pending. The first refusal
    may be due to a token that has run out, so it counts only after a new login.
    """
    one, two, book = Ear(), Ear(), WatchBook()
    book.add(entry(one))
    second = book.add(entry(two)).id
    reason = "rpc error: permission denied"
    tell(book, response(-1, 0, created=True, canceled=True, reason=reason))
    tell(book, response(second, 3, created=True))
    assert book.needs_login
    assert one.heard == []
    assert two.heard == [("created", 3)]
    _, second = (request.id for request in book.reopened())
    assert not book.needs_login
    tell(book, response(-1, 0, created=True, canceled=True, reason=reason))
    tell(book, response(second, 4, created=True))
    assert not book.needs_login
    assert one.heard == [("refused", AccessDenied)]
    assert two.heard == [("created", 3)], "created is told once"
    assert len(book.reopened()) == 1


def test_without_a_login_all_watches_are_refused() -> None:
    """A password that is no good any more: nobody waits for what can't come."""
    one, two, book = Ear(), Ear(), WatchBook()
    book.add(entry(one))
    book.add(entry(two))
    for told in book.refuse_all(AccessDenied("the login failed")):
        told()
    assert one.heard == two.heard == [("refused", AccessDenied)]
    assert book.reopened() == []


def test_a_stale_token_opens_the_stream_again() -> None:
    """The watch stays; the shell is told to log in."""
    ear, book = Ear(), WatchBook()
    watch = book.add(entry(ear)).id
    reason = "etcdserver: invalid auth token"
    tell(book, response(watch, 0, created=True, canceled=True, reason=reason))
    assert book.needs_login
    assert len(book.reopened()) == 1
    assert not book.needs_login
    assert ear.heard == []


def test_a_watch_cancelled_while_pending() -> None:
    """It is cancelled at etcd once it is created, and tells nothing."""
    ear, book = Ear(), WatchBook()
    one = entry(ear)
    watch = book.add(one).id
    assert book.remove(one) is None
    (cancel,) = tell(book, response(watch, 4, created=True))
    assert cancel == CancelWatch(watch)
    tell(book, response(watch, 5, [5]))
    assert ear.heard == []
    assert book.reopened() == []


def test_a_watch_cancelled_before_its_listener_is_told() -> None:
    """What has arrived is not told any more."""
    ear, book = Ear(), WatchBook()
    one = entry(ear)
    watch = book.add(one).id
    told, _ = book.heard(response(watch, 4, created=True))
    told += book.heard(response(watch, 5, [5]))[0]
    assert book.remove(one) == CancelWatch(watch)
    for tell_it in told:
        tell_it()
    assert ear.heard == []


def test_unknown_ids_are_left_aside() -> None:
    """Progress answers (-1) and leftovers do no harm."""
    book = WatchBook()
    assert book.heard(response(-1, 9)) == ([], [])
    assert book.heard(response(99, 9, [9])) == ([], [])
    assert book.heard(response(99, 9, canceled=True)) == ([], [])


def test_requests_as_messages() -> None:
    """What etcd gets to read."""
    create = watch_request(CreateWatch(7, b"k", b"l", 3, "delete")).create_request
    assert (create.watch_id, create.key, create.range_end) == (7, b"k", b"l")
    assert create.start_revision == 3
    assert create.filters == [rpc.WatchCreateRequest.NOPUT]
    assert not watch_request(CreateWatch(7, b"k", b"", 0, None)).create_request.filters
    assert watch_request(CancelWatch(7)).cancel_request.watch_id == 7


def test_messages_as_responses() -> None:
    """What etcd says."""
    message = rpc.WatchResponse(
        watch_id=7, created=True, canceled=True, compact_revision=3, cancel_reason="late"
    )
    message.header.revision = 9
    message.events.add(type=rpc.Event.DELETE).kv.key = b"k"
    events = [Event("delete", KeyValue(b"k", b"", 0, 0, 0))]
    assert watch_response(message) == WatchResponse(7, 9, True, True, 3, "late", events)
