"""Clients that log in, and threads that wait with them."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import etcdsem
from etcdsem import Client, Semaphore
from etcdsem.errors import EtcdSemError
from tests.security.secured import JOB, SECRET, SecuredEtcd

NEVER = (math.inf, math.inf)


@contextmanager
def user(
    etcd: SecuredEtcd, name: str | None = JOB, reread: Any = NEVER, **options: Any
) -> Iterator[Client]:
    """A client that logs in as `name`."""
    if name is not None:
        options = {"password": SECRET, **options}
    with etcdsem.connect(etcd.endpoint, user=name, **options) as client:
        client._driver.session.reread = reread
        yield client


class Waiter:
    """A thread that waits for a lease, and the outcome."""

    def __init__(self, sem: Semaphore) -> None:
        self.sem = sem
        self.outcome: object = None
        self.in_line = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self.in_line.wait(20)

    def _run(self) -> None:
        try:
            self.outcome = self.sem.acquire_lease(60, on_wait=self.in_line.set)
        except EtcdSemError as error:
            self.outcome = error

    def result(self, timeout: float = 20) -> Any:
        """The lease, or the error."""
        self._thread.join(timeout)
        assert not self._thread.is_alive(), "it still waits"
        return self.outcome
