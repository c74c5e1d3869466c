"""The server's end of one client's watch stream: passes on requests and responses of the model."""

from __future__ import annotations

from collections.abc import Callable

from etcdsem.core.commands import Event
from etcdsem.core.watchbook import CancelWatch, WatchRequest, WatchResponse
from etcdsem.testing.history import ModelWatch
from etcdsem.testing.model import EtcdModel

Answer = Callable[[WatchResponse], None]


class _Sink:
    """Turns the model's reports for one watch into responses."""

    __slots__ = ("answer", "id")

    def __init__(self, watch_id: int, answer: Answer) -> None:
        self.id = watch_id
        self.answer = answer

    def created(self, revision: int) -> None:
        self.answer(WatchResponse(self.id, revision, created=True))

    def events(self, events: list[Event]) -> None:
        self.answer(WatchResponse(self.id, events=events))

    def compacted(self, revision: int) -> None:
        self.answer(WatchResponse(self.id, canceled=True, compacted=revision))


class WatchServer:
    """Serves the requests of a watch stream. `answer` gets each response at once."""

    def __init__(self, etcd: EtcdModel, answer: Answer) -> None:
        self._etcd = etcd
        self._answer = answer
        self._watches: dict[int, ModelWatch] = {}

    def serve(self, request: WatchRequest) -> None:
        """Create or cancel a watch."""
        if isinstance(request, CancelWatch):
            watch = self._watches.pop(request.id, None)
            if watch is not None:
                watch.cancel()
            return
        self._watches[request.id] = self._etcd.watch(
            _Sink(request.id, self._answer),
            request.key,
            request.end,
            start=request.start,
            only=request.only,
        )

    def close(self) -> None:
        """End the stream and all its watches."""
        watches, self._watches = self._watches, {}
        for watch in watches.values():
            watch.cancel()
