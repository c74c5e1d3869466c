"""The helper process (keeper) runs the core's heartbeat for leases that belong to its parent."""

from __future__ import annotations

import os
import pickle
import select
import sys
from typing import NoReturn

from etcdsem.core.lease_manager import LeaseManager
from etcdsem.core.leases import TtlLease
from etcdsem.posix import die_with_parent, process_stat
from etcdsem.renewal_helper.table import ORDER, Table
from etcdsem.sync import Client

LOOK = 0.25
"""Seconds between two checks of the parent."""


class Borrowed(LeaseManager):
    """The parent's leases: renewed while they are certainly alive, and otherwise left alone."""

    table: Table
    places: dict[int, int]

    def renewed(self, lease_id: int, ttl: float) -> None:
        super().renewed(lease_id, ttl)
        lease, place = self.live.get(lease_id), self.places.get(lease_id)
        if lease is None or place is None:
            return
        if self.table.forbidden(place):
            self.drop(lease_id)
        elif lease.sent > 0:
            self.table.renewed(place, lease_id, lease.sent, lease.ttl)

    def lose(self, lease: TtlLease, reason: str) -> None:
        self.drop(lease.id, given_up=True)

    def drop(self, lease_id: int, *, given_up: bool = False) -> None:
        """Stop renewing a lease."""
        lease = self.live.pop(lease_id, None)
        place = self.places.pop(lease_id, None)
        if lease is not None:
            lease.state = "lost"
        if given_up and place is not None and not self.table.forbidden(place):
            self.table.give_up(place, lease_id)


class Helper:
    """Renews leases for one parent until the parent ends."""

    def __init__(self, memory: int, parent: int) -> None:
        self._parent = parent
        size = int.from_bytes(_exactly(4), "big")
        settings, password, self._limit = pickle.loads(_exactly(size))  # noqa: S301 - our parent's
        settings.__dict__["password"] = password
        self._client = Client(settings)
        driver = self._driver = self._client._driver
        leases = Borrowed(driver)
        leases.table, leases.places = Table(memory), {}
        driver.session.leases = self._leases = leases
        self._table = leases.table

    def work(self) -> None:
        """Run until the parent ends, or closes the pipe."""
        heard = b""
        while os.getppid() == self._parent:
            if select.select([0], [], [], LOOK)[0]:
                data = os.read(0, 65536)
                if not data:
                    return
                heard += data
            with self._driver.turn:
                while len(heard) >= ORDER.size:
                    self._obey(heard[: ORDER.size])
                    heard = heard[ORDER.size :]
                rest = self._is_stopped() or self._table.silent_for() > self._limit
                for lease in self._leases.live.values():
                    lease.paused = rest

    def _obey(self, order: bytes) -> None:
        kind, lease_id, place, ttl, refresh, sent, bound = ORDER.unpack(order)
        self._leases.drop(lease_id)
        if kind == b"K" and not self._table.forbidden(place):
            lease = TtlLease(lease_id, int(ttl), ttl, sent)
            lease.bind(0.0, bound)
            lease.refresh = 0.7 * refresh  # sooner than the parent, which then need not refresh
            self._leases.places[lease_id] = place
            self._leases.adopt(lease)

    def _is_stopped(self) -> bool:
        """Was the parent stopped by a signal or a debugger?"""
        try:
            return process_stat(self._parent).state in "TtZX"
        except FileNotFoundError:
            # Unknown without /proc; `limit` covers that case too.
            return os.path.exists("/proc/self/stat")
        except OSError:
            return False


def _exactly(size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = os.read(0, size - len(data))
        if not more:
            os._exit(0)
        data += more
    return data


def main() -> NoReturn:
    """Entry point of the helper process. Its arguments are the memory, the parent's PID, and
    whether the thread that started it lasts as long as the parent.
    """
    memory, parent, lasting = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "thread"
    if lasting:
        die_with_parent()
    status = 1
    try:
        if os.getppid() == parent:
            os.chdir("/")
            Helper(memory, parent).work()
        status = 0
    except BaseException:
        if os.environ.get("ETCDSEM_DEBUG"):
            sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)
