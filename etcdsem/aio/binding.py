"""How a semaphore or a rate limit finds its client, and when it is registered."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Self, TypeVar

from etcdsem.aio.client import Client, as_client, default_client
from etcdsem.core.commands import Procedure
from etcdsem.core.semaphore import SemaphoreState
from etcdsem.facade.semaphore import Named

T = TypeVar("T")


class Binding(Named):
    """The client of a semaphore or a rate limit. It is registered when it is awaited, or by its
    first call.
    """

    _package = "etcdsem.aio"

    def _bind(self, client: object, *, register: bool) -> None:
        self._client = as_client(client)
        self._to_register = register

    def _register_now(self) -> None:
        """Nothing: a constructor cannot await."""

    def __await__(self) -> Generator[Any, None, Self]:
        return self._ready().__await__()

    async def _ready(self) -> Self:
        if self._to_register:
            await self._register()
        return self

    async def _register(self) -> None:
        await self.client._run(self._registering(self._state()), f"register {self.name!r}")
        self._to_register = False

    @property
    def client(self) -> Client:
        """The client in use: the one given, else the default client of the running loop."""
        return default_client() if self._client is None else self._client

    def _state(self) -> SemaphoreState:
        return self.client._state(self._key_name, self._prefix)

    async def _run(self, procedure: Procedure[T], what: str) -> T:
        await self._ready()
        return await self.client._run(procedure, f"{what} {self.name!r}")


__all__ = ["Binding"]
