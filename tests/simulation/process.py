"""A procedure of a simulated client, and what it waits for."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from etcdsem.core.commands import (
    Command,
    Failure,
    OutcomeUnknown,
    Procedure,
    Wait,
)
from tests.simulation.world import Cancelled, Timer

if TYPE_CHECKING:
    from tests.simulation.client import SimClient


class _Disposed(BaseException):
    """The world ends."""


class Box:
    """A mailbox; one procedure at a time waits for it."""

    __slots__ = ("client", "notes", "reader")

    def __init__(self, client: SimClient) -> None:
        self.client = client
        self.notes: deque[Any] = deque()
        self.reader: Process | None = None

    def put(self, note: Any, /) -> None:
        self.notes.append(note)
        if self.reader is not None:
            self.client.soon(self.reader.poke, self)


class Call:
    """A unary call in progress. It is over when it was answered, or its caller gave up."""

    __slots__ = ("deadline", "over", "process", "what")

    def __init__(self, process: Process, what: Command[Any]) -> None:
        self.process = process
        self.what = what
        self.over = False
        self.deadline: Timer | None = None


class Process:
    """One procedure, and what it waits for."""

    __slots__ = ("box", "call", "client", "done", "generator", "name", "on_done", "timer", "until")

    def __init__(
        self,
        client: SimClient,
        generator: Procedure[Any],
        name: str,
        on_done: Callable[[Any, BaseException | None], None],
    ) -> None:
        self.client = client
        self.generator = generator
        self.name = name
        self.on_done = on_done
        self.done = False
        self.box: Box | None = None
        self.call: Call | None = None
        self.timer: Timer | None = None
        self.until = math.inf

    def step(self, value: Any = None, error: BaseException | None = None) -> None:
        """Run it until it must wait."""
        generator = self.generator
        while True:
            try:
                command = generator.throw(error) if error else generator.send(value)
            except StopIteration as stop:
                self.done = True
                self.on_done(stop.value, None)
                return
            except BaseException as raised:
                self.done = True
                self.on_done(None, raised)
                return
            error = None
            if isinstance(command, Wait):
                box: Any = command.box
                if box.notes:
                    value = box.notes.popleft()
                    continue
                if command.until <= self.client.now():
                    value = None
                    continue
                self.box = box
                box.reader = self
                self.until = command.until
                if command.until < math.inf:
                    self.timer = self.client.when(command.until, self.expire)
                return
            self.client.send(self, command)
            return

    def _stop_waiting(self) -> Box | None:
        box, self.box = self.box, None
        if box is not None:
            box.reader = None
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        return box

    def poke(self, box: Box) -> None:
        """A note has arrived in the mailbox."""
        if self.box is box and box.notes:
            self._stop_waiting()
            self.step(box.notes.popleft())

    def expire(self) -> None:
        """The timer has fired; another wait may have begun while the client was paused."""
        box = self.box
        if box is None or self.until > self.client.now() + 1e-5:
            return
        self._stop_waiting()
        self.step(box.notes.popleft() if box.notes else None)

    def reset_timer(self) -> None:
        """The clock has jumped: set the timer again."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = self.client.when(self.until, self.expire)

    def answered(self, call: Call, result: Any) -> None:
        """A call has ended, with a result or a failure."""
        if call.over or self.done:
            return
        call.over = True
        if call.deadline is not None:
            call.deadline.cancel()
        self.call = None
        if isinstance(result, Failure):
            if isinstance(result, OutcomeUnknown):
                self.client.world.counters["unknown outcomes"] += 1
            self.client.trace(self.name, "fails", call.what, result)
            self.step(error=result)
        else:
            self.client.trace(self.name, "gets", call.what, result)
            self.step(result)

    def dispose(self) -> None:
        """End the generator. `close()` would complain if its clean-up yields. A procedure that is
        already cleaning up after an interruption is thrown out of that, too.
        """
        while not self.done:
            try:
                self.generator.throw(_Disposed())
            except (_Disposed, Cancelled, StopIteration):
                self.done = True

    @property
    def interruptible(self) -> bool:
        """Is it a caller's procedure, suspended at a yield?"""
        return (
            not self.done
            and self.name.startswith("worker")
            and (self.box is not None or self.call is not None)
        )

    def interrupt(self, error: BaseException) -> None:
        """Throw an exception in at the current yield."""
        if self.done or (self.box is None and self.call is None):
            return
        self.client.trace(self.name, "is interrupted at", self.call and self.call.what)
        if self.call is not None:
            self.call.over = True
            if self.call.deadline is not None:
                self.call.deadline.cancel()
            self.call = None
            self.client.world.counters["interrupted calls"] += 1
        else:
            self._stop_waiting()
            self.client.world.counters["interrupted waits"] += 1
        self.step(error=error)
