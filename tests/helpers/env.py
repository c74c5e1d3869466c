"""An `Env` of the core whose time is set by hand."""

from __future__ import annotations

from typing import Any

from etcdsem.core.commands import Env, Listener, Procedure, Watch


class Box:
    """A mailbox that nobody reads."""

    def put(self, note: Any, /) -> None:
        """Ignore the note."""


class Clock(Env):
    """An `Env` whose time is set by hand; requests to it are recorded."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.renewed: list[int] = []
        self.spawned: list[str] = []
        self.restarts = 0

    def now(self) -> float:
        return self.time

    def wall(self) -> float:
        return 0.0

    def random(self) -> float:
        return 0.5

    def random_id(self) -> int:
        return 7

    def mailbox(self) -> Box:
        return Box()

    def spawn(self, procedure: Procedure[Any], name: str) -> None:
        self.spawned.append(name)
        procedure.close()

    def call(self, function: Any, name: str) -> None:
        raise AssertionError("nothing is called here")

    def watch(self, listener: Listener, key: bytes, end: bytes = b"", **more: Any) -> Watch:
        raise AssertionError("nothing is watched here")

    def renew(self, lease_id: int) -> None:
        self.renewed.append(lease_id)

    def restart_renewals(self) -> None:
        self.restarts += 1
