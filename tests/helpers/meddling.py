"""Clients whose next commands fail, are lost, or are interrupted."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import etcdsem
from etcdsem.core.commands import Command, GrantLease, RevokeLease, Transact
from etcdsem.testing.inmemory import MemoryClient


class Hit(BaseException):
    """An interruption like Ctrl-C."""


class Saboteur:
    """Performs commands like the engine, but raises at the n-th one of the thread under test."""

    def __init__(
        self, client: etcdsem.Client, step: int, error: BaseException, *, after: bool
    ) -> None:
        self._perform = client._driver._perform
        self._thread = threading.get_ident()
        self._left = step
        self._error = error
        self._after = after
        self.hit = False
        client._driver._perform = self  # type: ignore[method-assign]

    def disarm(self) -> None:
        """Stop interfering."""
        self._left = 0

    def __call__(self, command: Command[Any]) -> object:
        mine = threading.get_ident() == self._thread
        if not mine or not isinstance(command, Transact | GrantLease | RevokeLease):
            return self._perform(command)
        self._left -= 1
        now = self._left == 0
        if now and not self._after:
            self.hit = True
            raise self._error
        result = self._perform(command)
        if now:
            self.hit = True
            raise self._error
        return result


def meddle(
    client: MemoryClient,
    kind: type[Command[Any]],
    meddling: Callable[[Callable[[], object]], object],
) -> None:
    """Replace how the next command of a kind from this thread is performed."""
    engine, me = client._driver, threading.get_ident()
    perform = engine._perform
    todo = [meddling]

    def performed(command: Command[Any]) -> object:
        if isinstance(command, kind) and threading.get_ident() == me and todo:
            return todo.pop()(lambda: perform(command))
        return perform(command)

    engine._perform = performed  # type: ignore[method-assign]
