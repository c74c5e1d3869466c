"""The memory that a program and its helper process (keeper) share.

Record 0 holds the program's last sign of life. Each other record belongs to one lease: its ID, when
the last answered renewal was sent, and the TTL in the answer. A record carries a checksum, so that
a half-written one is not accepted, whatever the machine's memory order.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
import tempfile
import zlib

from etcdsem.clock import boot_time

RECORDS = 8192
"""Number of records. Further leases of a client are refreshed by the program alone."""

_SIZE = 32
_BODY = struct.Struct("=Qdd")
_CHECK = struct.Struct("=I")

ORDER = struct.Struct("=cQIdddd")
"""An order of the program: K(eep) or D(rop), lease, record, TTL, refresh interval, last sent, and
when its holder ends it (infinite: never)."""

GIVEN_UP = -1.0
FORBIDDEN = -2.0


def open_memory() -> int:
    """A file descriptor of new shared memory, all zero."""
    if hasattr(os, "memfd_create"):
        memory = os.memfd_create("etcdsem-keeper", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            memory = os.dup(file.fileno())
    os.ftruncate(memory, RECORDS * _SIZE)
    return memory


class Table:
    """The table as used by both sides."""

    def __init__(self, memory: int) -> None:
        self._map = mmap.mmap(memory, RECORDS * _SIZE)

    def close(self) -> None:
        """Unmap the memory."""
        self._map.close()

    def _write(self, place: int, lease: int, sent: float, ttl: float) -> None:
        body = _BODY.pack(lease, sent, ttl)
        record = body + _CHECK.pack(zlib.crc32(body, 1))
        self._map[place * _SIZE : place * _SIZE + len(record)] = record

    def _read(self, place: int) -> tuple[int, float, float] | None:
        start = place * _SIZE
        for _ in range(5):
            record = self._map[start : start + _BODY.size + _CHECK.size]
            body = record[: _BODY.size]
            if _CHECK.unpack(record[_BODY.size :])[0] == zlib.crc32(body, 1):
                lease, sent, ttl = _BODY.unpack(body)
                return lease, sent, ttl
        return None

    # -- the program

    def clear(self, place: int) -> None:
        """Reset the record of a lease that is being handed over."""
        self._write(place, 0, 0.0, 0.0)

    def forbid(self, place: int) -> None:
        """Forbid the renewal of this record's lease."""
        self._write(place, 0, 0.0, FORBIDDEN)

    def beat(self) -> None:
        """Record the program's sign of life."""
        self._write(0, 0, boot_time(), 0.0)

    def read(self, place: int, lease: int) -> tuple[float, float] | None:
        """When the last answered renewal of a lease was sent, and the TTL; None if none was."""
        record = None if self._map.closed else self._read(place)
        if record is None or record[0] != lease or record[2] <= 0:
            return None
        return record[1], record[2]

    def given_up(self, place: int, lease: int) -> bool:
        """Has the helper stopped renewing it?"""
        record = self._read(place)
        return record is not None and record[0] == lease and record[2] == GIVEN_UP

    # -- the helper

    def renewed(self, place: int, lease: int, sent: float, ttl: float) -> None:
        """Record that a renewal sent at `sent` was answered."""
        self._write(place, lease, sent, ttl)

    def give_up(self, place: int, lease: int) -> None:
        """Record that the helper has stopped renewing it."""
        self._write(place, lease, 0.0, GIVEN_UP)

    def forbidden(self, place: int) -> bool:
        """Has the program taken it back?"""
        record = self._read(place)
        return record is None or record[2] == FORBIDDEN

    def silent_for(self) -> float:
        """Seconds since the program's last sign of life."""
        record = self._read(0)
        return boot_time() - record[1] if record is not None else math.inf
