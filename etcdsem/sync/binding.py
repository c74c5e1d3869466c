"""How a semaphore or a rate limit finds its client, and when it is registered."""

from __future__ import annotations

from typing import Any, TypeVar

from etcdsem.core.commands import Procedure
from etcdsem.core.semaphore import SemaphoreState
from etcdsem.facade.semaphore import Named
from etcdsem.sync.client import Client, as_client, default_client

T = TypeVar("T")


class Binding(Named):
    """The client of a semaphore or a rate limit. It is registered when it is created."""

    def _bind(self, client: object, *, register: bool) -> None:
        self._client = as_client(client)
        self._follows_default = client is None
        self._to_register = register

    def _register_now(self) -> None:
        if self._to_register:
            self._register()

    def _register(self) -> None:
        self._run(self._registering(self._state()), "register")
        self._to_register = False

    def __getstate__(self) -> dict[str, Any]:
        # One that uses a default client takes its etcd along.
        return {**super().__getstate__(), "_follows_default": self._client is None}

    @property
    def client(self) -> Client:
        """The client in use: the one given, else the process's default, which may change."""
        if self._follows_default or self._client is None:
            self._client = default_client()
        return self._client

    def _state(self) -> SemaphoreState:
        return self.client._state(self._key_name, self._prefix)

    def _run(self, procedure: Procedure[T], what: str) -> T:
        return self.client._run(procedure, f"{what} {self.name!r}")


__all__ = ["Binding"]
