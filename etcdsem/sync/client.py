"""The blocking client: when it opens and closes, also at a fork and at the interpreter's exit.

1. A client connects on first use. After a fork the child's client starts clean: it has none of the
   parent's leases, and never touches them.
2. At the interpreter's exit everything is given back, within 2 seconds. A lease that
   etcd has not confirmed by then ends by its TTL.
"""

from __future__ import annotations

import _thread
import os
import threading
import weakref
from collections.abc import Callable
from typing import Self, TypeVar

from etcdsem import exit_hooks
from etcdsem.client_lock import ClientLock
from etcdsem.clock import boot_time
from etcdsem.core.commands import Failure, Procedure
from etcdsem.core.error_mapping import public_error
from etcdsem.core.session import PATIENCE, Session
from etcdsem.drivers import threads
from etcdsem.drivers.base import EXIT_GRACE, ConnectionSettings, connect_settings
from etcdsem.drivers.external import external_settings, is_external_client
from etcdsem.errors import EtcdSemError
from etcdsem.facade.client import brief
from etcdsem.model import Duration
from etcdsem.sync.operator_calls import OperatorCalls

T = TypeVar("T")


class Client(OperatorCalls):
    """A connection to etcd, shared by any number of semaphores and threads.

    It connects on first use. As a context manager it gives everything back at its end.
    """

    def __init__(
        self,
        settings: ConnectionSettings,
        *,
        prefix: str | None = None,
        keeper: bool | Duration | None = False,
    ) -> None:
        super().__init__(settings, prefix=prefix, keeper=keeper)
        self._lock = threading.RLock()  # a finalizer may interrupt its owner
        self._opened: threads.ThreadDriver | None = None
        self._closed = False
        _clients.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_client, (self.settings, self.prefix, self.keeper or False)

    def _dial(self, lock: ClientLock, renewed: Callable[[int, float], None]) -> threads.Backend:
        return threads.dial(self.settings, lock, renewed)

    @property
    def _driver(self) -> threads.ThreadDriver:
        """The driver, made on first use."""
        driver = self._opened
        if driver is None or self._closed:
            exit_hooks.end_daemon_thread()
            with self._lock:
                if self._closed:
                    raise EtcdSemError("this etcdsem client was closed")
                driver = self._opened
                if driver is None:
                    driver = self._opened = self._open()
                    # _at_exit closes those that still exist then.
                    weakref.finalize(self, threads.drop, driver).atexit = False
        return driver

    def _open(self) -> threads.ThreadDriver:
        if exit_hooks.over():
            raise EtcdSemError(
                "this process is ending, and all leases were given back: etcd cannot be used any "
                "more (by atexit functions that run after etcdsem's own)"
            )
        _refuse_isolation()
        driver = threads.ThreadDriver(self._dial)
        driver.session.first_contact = self.settings.dial_timeout
        driver.session.patience = self.settings.patience or PATIENCE
        exit_hooks.see_to_child()
        try:
            driver.start_helper(self.settings, self.keeper)
        except BaseException:
            driver.close(0.0)
            raise
        return driver

    @property
    def id(self) -> str:
        """The name of this client in etcd's keys."""
        return self._session.client

    def close(self) -> None:
        """Give all leases back and close the connection. Closing twice is fine."""
        self._close(10.0)

    def _close(self, grace: float) -> None:
        with self._lock:
            driver, self._opened = self._opened, None
            self._closed = True
        if driver is not None and driver.pid == os.getpid():
            threads.close(driver, grace)

    def _after_fork_in_child(self) -> None:
        self._lock = threading.RLock()
        self._opened = None  # its sockets were closed

    @property
    def _session(self) -> Session:
        return self._driver.session

    def _run(self, procedure: Procedure[T], what: str) -> T:
        """Run a procedure; `what` names the call in error messages."""
        try:
            return self._driver.run(procedure)
        except Failure as failure:
            error = public_error(failure, what)
            error.__cause__ = failure
        except EtcdSemError as raised:
            error = raised
        exit_hooks.end_daemon_thread()
        raise brief(error)


def _refuse_isolation() -> None:
    # (Python 3.11 cannot be asked: there starting the first thread fails, which is an error too.)
    allowed = getattr(_thread, "daemon_threads_allowed", None)
    if allowed is not None and not allowed():
        raise EtcdSemError(
            "etcdsem cannot refresh leases in an isolated sub-interpreter, where Python allows no "
            "daemon threads: use the main interpreter, or one that shares its lock"
        )


def from_etcd3(
    client: object,
    *,
    user: str | None = None,
    password: str | None = None,
    prefix: str | None = None,
) -> Client:
    """Create a client that uses the channels and the login of a python-etcd3 client.

    ``Semaphore(client=...)`` accepts a python-etcd3 client as it is; this call adds options. The
    channels stay the property of that client: closing ours leaves them open, and it must live as
    long as ours.

    Args:
        client: an ``etcd3.Etcd3Client`` or ``etcd3.MultiEndpointEtcd3Client``.
        user: who logs in again when the token expires; python-etcd3 keeps no password.
        password: the user's password.
        prefix: of the keys in etcd, as for `connect`.

    Raises:
        TypeError: `client` is not a python-etcd3 client.
    """
    if not is_external_client(client):
        raise TypeError(f"from_etcd3 takes a client of python-etcd3, not {type(client).__name__}")
    return Client(external_settings(client, user, password), prefix=prefix)


def as_client(given: object) -> Client | None:
    """Turn what a user passed as ``client=`` into a client."""
    if given is None or isinstance(given, Client):
        return given
    if not is_external_client(given):
        raise TypeError(
            f"client must come from etcdsem.connect(), or be a client of python-etcd3; not a "
            f"{type(given).__module__}.{type(given).__qualname__}"
        )
    with _default_lock:
        client = _borrowed.get(given)
        if client is None or client._closed:
            client = _borrowed[given] = from_etcd3(given)
        return client


def default_client() -> Client:
    """The client of this process for semaphores that were given none."""
    global _default
    with _default_lock:
        if _default is None or _default._closed:
            _default = Client(connect_settings(None, None), keeper=None)
        return _default


def swap_default_client(client: Client | None) -> Client | None:
    """Replace this process's default client; returns the previous one. For tests."""
    global _default
    with _default_lock:
        former, _default = _default, client
        return former


def _rebuild_client(
    settings: ConnectionSettings, prefix: str, keeper: float | bool = False
) -> Client:
    """An unpickled client: the one of this process with the same settings."""
    with _default_lock:
        key = (settings, prefix, keeper)
        client = _rebuilt.get(key)
        if client is None or client._closed:
            client = _rebuilt[key] = Client(settings, prefix=prefix, keeper=keeper)
        return client


_clients: weakref.WeakSet[Client] = weakref.WeakSet()
_rebuilt: dict[tuple[ConnectionSettings, str, float | bool], Client] = {}
_borrowed: weakref.WeakKeyDictionary[object, Client] = weakref.WeakKeyDictionary()
_default: Client | None = None
_default_lock = threading.RLock()  # a finalizer may interrupt its owner


def _after_fork_in_child() -> None:
    global _default_lock
    _default_lock = threading.RLock()
    for client in list(_clients):
        client._after_fork_in_child()


def _at_exit() -> None:
    until = boot_time() + EXIT_GRACE
    for client in list(_clients):
        client._close(max(0.1, until - boot_time()))


os.register_at_fork(after_in_child=_after_fork_in_child)
exit_hooks.at_end(_at_exit)
