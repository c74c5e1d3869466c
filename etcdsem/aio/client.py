"""The asyncio client: which event loop it belongs to, and when it opens and closes."""

from __future__ import annotations

import asyncio
import functools
import os
import weakref
from collections.abc import Callable
from typing import Self, TypeVar

from etcdsem.aio.loop_check import methods_need_loop, running_loop
from etcdsem.aio.operator_calls import OperatorCalls
from etcdsem.core.commands import Failure, Procedure
from etcdsem.core.error_mapping import public_error
from etcdsem.core.session import PATIENCE, Session
from etcdsem.drivers.aio import AioDriver, Backend, Over, StartTask, dial
from etcdsem.drivers.base import ConnectionSettings, connect_settings
from etcdsem.errors import EtcdSemError, WrongEventLoop
from etcdsem.facade.client import brief
from etcdsem.model import Duration

T = TypeVar("T")


@methods_need_loop
class Client(OperatorCalls):
    """A connection to etcd, shared by any number of semaphores and tasks of one event loop.

    It connects on first use, and then belongs to that event loop. As an async context manager it
    gives everything back at its end.
    """

    _package = "etcdsem.aio"

    def __init__(
        self,
        settings: ConnectionSettings,
        *,
        prefix: str | None = None,
        keeper: bool | Duration | None = False,
    ) -> None:
        super().__init__(settings, prefix=prefix, keeper=keeper)
        self._opened: AioDriver | None = None
        self._closed = False
        _clients.add(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_client, (self.settings, self.prefix, self.keeper or False)

    def _dial(self, start: StartTask, renewed: Callable[[int, float], None]) -> Backend:
        return dial(self.settings, start, renewed)

    @property
    def _driver(self) -> AioDriver:
        """The driver, made on first use; raises WrongEventLoop in another event loop."""
        driver = self._opened
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise WrongEventLoop(
                "etcdsem.aio is for coroutines, and no event loop is running here; "
                "the blocking library is etcdsem.Semaphore"
            ) from None
        if driver is not None and driver.loop is not loop:
            state = ", which has ended" if driver.loop.is_closed() else ""
            raise WrongEventLoop(
                f"{self!r} belongs to another event loop{state}: make a client in each loop, or "
                "pass none (each loop has a default client)"
            )
        if self._closed or (driver is not None and driver.session.closed):
            raise EtcdSemError("this etcdsem client was closed")
        return driver if driver is not None else self._open()

    def _open(self) -> AioDriver:
        driver = AioDriver(self._dial)
        driver.session.first_contact = self.settings.dial_timeout
        driver.session.patience = self.settings.patience or PATIENCE
        try:
            driver.start_helper(self.settings, self.keeper)
        except BaseException:
            driver.drop()
            raise
        self._opened = driver
        weakref.finalize(self, driver.drop).atexit = False
        return driver

    @property
    def id(self) -> str:
        """The name of this client in etcd's keys."""
        return self._session.client

    async def close(self) -> None:
        """Give all leases back and close the connection. Closing twice is fine."""
        driver, self._closed = self._opened, True
        if driver is not None and driver.here:
            if driver.loop is not asyncio.get_running_loop():
                raise WrongEventLoop(f"{self!r} belongs to another event loop: close it there")
            await driver.close(10.0)

    def _after_fork_in_child(self) -> None:
        if self._opened is not None:
            _inherited.append(self._opened)  # never collected: closing it would touch the wire
            self._opened = None

    @property
    def _session(self) -> Session:
        return self._driver.session

    async def _run(self, procedure: Procedure[T], what: str) -> T:
        """Run a procedure; `what` names the call in error messages."""
        try:
            return await self._driver.run(procedure)
        except Failure as failure:
            error = public_error(failure, what)
            error.__cause__ = failure
            raise brief(error)  # noqa: B904 - it decides about the cause
        except EtcdSemError as error:
            raise brief(error)  # noqa: B904
        except Over:
            raise EtcdSemError(f"{what}: its client was closed") from None


def as_client(given: object) -> Client | None:
    """Check what a user passed as ``client=``."""
    if given is None or isinstance(given, Client):
        return given
    raise TypeError(
        "client must come from etcdsem.aio.connect(): blocking clients, also those of "
        "python-etcd3, cannot be used in an event loop"
    )


def default_client() -> Client:
    """The running loop's client for semaphores that were given none."""
    return _client_of_loop(None, lambda: Client(connect_settings(None, None), keeper=None))


def swap_default_client(client: Client | None) -> Client | None:
    """Replace the running loop's default client; returns the previous one. For tests."""
    clients = _of_loops.setdefault(asyncio.get_running_loop(), {})
    former = clients.pop(None, None)
    if client is not None:
        clients[None] = client
    return former


def _client_of_loop(key: object, make: Callable[[], Client]) -> Client:
    clients = _of_loops.setdefault(running_loop("a client"), {})
    client = clients.get(key)
    if client is None or client._closed or (client._opened and client._opened.session.closed):
        client = clients[key] = make()
    return client


def _rebuild_client(
    settings: ConnectionSettings, prefix: str, keeper: float | bool = False
) -> Client:
    """An unpickled client: the one of the running loop, if any, with the same settings."""
    make = functools.partial(Client, settings, prefix=prefix, keeper=keeper)
    try:
        return _client_of_loop((settings, prefix, keeper), make)
    except RuntimeError:
        return make()


_clients: weakref.WeakSet[Client] = weakref.WeakSet()
_inherited: list[AioDriver] = []
_of_loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[object, Client]] = (
    weakref.WeakKeyDictionary()
)


def _after_fork_in_child() -> None:
    for client in list(_clients):
        client._after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
