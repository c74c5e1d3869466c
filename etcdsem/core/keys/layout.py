"""The keys of a semaphore."""

from __future__ import annotations

import re

MAX_MESSAGE = 4096
"""Bytes at which the list of waiters in a grant message is cut; etcd allows 1.5 MiB per request."""

CARRIED = "carries_limit"
"""The record field with the limit that the program carries, if that is not the one in force: after
a resize, programs continue with the number that they carry."""

MAX_HOLD = "max_hold"
"""The record field with the seconds after which the holder ends the lease."""

SPECIAL = re.compile(rb'"(weight|priority|eager)"')
DIGITS = re.compile(rb"[0-9]{1,9}")
SLOT = re.compile(rb"[0-9]{5}")
CLIENT = re.compile(r"([A-Za-z0-9_-]{1,63})\.([0-9]{1,10})\.[A-Za-z0-9]{1,16}")
WHO = re.compile(rb"([A-Za-z0-9_-]{1,63}\.[0-9]{1,10}\.[A-Za-z0-9]{1,16})/([0-9a-f]{16})")


class Keys:
    """The key names of one semaphore, as used by one client."""

    __slots__ = (
        "applied",
        "base",
        "base_end",
        "contended",
        "grants",
        "leases",
        "leases_end",
        "max_leases",
        "my_grants",
        "my_grants_end",
        "my_waiters",
        "my_waiters_end",
        "name",
        "paused",
        "permits",
        "permits_end",
        "priorities",
        "rights",
        "waiters",
        "waiters_end",
    )

    def __init__(self, prefix: str, name: str, client: str) -> None:
        self.name = name
        self.base = f"{prefix}/{name}/".encode()
        self.base_end = self.base[:-1] + b"0"  # "0" follows "/"
        self.max_leases = self.base + b"max_leases"
        self.applied = self.base + b"applied"
        self.paused = self.base + b"max_leases_paused"
        self.contended = self.base + b"contended"
        self.priorities = self.base + b"priorities"
        self.rights = self.base + b"leases/rights"  # never exists, see transactions.join
        self.leases = self.base + b"leases/"
        self.leases_end = self.base + b"leases/:"  # ":" follows "9", so this covers slots only
        self.permits = self.base + b"permits/"
        self.permits_end = self.base + b"permits/:"
        self.waiters = self.base + b"waiters/"
        self.waiters_end = self.base + b"waiters0"
        self.grants = self.base + b"grants/"
        self.my_waiters = self.waiters + client.encode() + b"/"
        self.my_waiters_end = self.my_waiters[:-1] + b"0"
        self.my_grants = self.grants + client.encode() + b"/"
        self.my_grants_end = self.my_grants[:-1] + b"0"

    def slot(self, number: int) -> bytes:
        """The key of a slot."""
        return self.leases + b"%05d" % number

    def permit(self, number: int) -> bytes:
        """The key of the record of the permit in a slot."""
        return self.permits + b"%05d" % number

    def waiter(self, who: bytes) -> bytes:
        """The key of a waiter; `who` is ``<client>/<lease>``."""
        return self.waiters + who

    def message(self, who: bytes) -> bytes:
        """The key of the grant message for a waiter."""
        return self.grants + who


def lease_hex(lease_id: int) -> str:
    """An etcd lease ID as etcdctl prints it."""
    return f"{lease_id:016x}"


def owner_of(client: str) -> tuple[str, int | None]:
    """The host and process that a client's ID names; empty and None if it is not one."""
    match = CLIENT.fullmatch(client)
    return (match[1], int(match[2])) if match else ("", None)


def client_id(host: str, pid: int, unique: str) -> str:
    """The ID of a client, from which its host and process can be read."""
    return f"{re.sub('[^A-Za-z0-9_-]', '-', host)[:63] or 'unknown'}.{pid}.{unique}"
