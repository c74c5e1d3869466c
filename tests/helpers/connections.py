"""Connections to etcd, below the client: open, write, read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import etcdsem
from etcdsem.core.commands import Range, RangeReply, Txn
from etcdsem.etcd.connection import Connection
from etcdsem.etcd.settings import read_settings
from etcdsem.server import EtcdServer


@contextmanager
def connected(
    *endpoints: str, user: str | None = None, password: str | None = None, dial: float = 2.0
) -> Iterator[Connection]:
    """A connection that is closed at the end."""
    one = Connection(
        read_settings(list(endpoints), user=user, password=password, dial_timeout=dial)
    )
    try:
        yield one
    finally:
        one.close()


def there(connection: Connection, key: str) -> bool:
    """Does the key exist?"""
    reply = connection.transact(Txn((), (Range(key.encode()),)), 5).replies[0]
    assert isinstance(reply, RangeReply)
    return bool(reply.kvs)


def leads(member: EtcdServer) -> bool:
    """Is it the leader?"""
    with connected(member.endpoint) as connection:
        status = connection.status(5)
        return status.leader == status.member


def secured(etcd: EtcdServer) -> None:
    """Enable authentication, with a user `job` that may write below /etcdsem/."""
    for line in (
        "user add root:root",
        "user grant-role root root",
        "role add jobs",
        "role grant-permission jobs --prefix=true readwrite /etcdsem/",
        "user add job:secret",
        "user grant-role job jobs",
        "auth enable",
    ):
        etcd.etcdctl(*line.split())


def sockets() -> int:
    """The number of sockets that this process has open."""
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")
        except FileNotFoundError:
            continue
    return found


def leases_of(etcd: EtcdServer) -> set[int]:
    """All lease IDs of an etcd."""
    with etcdsem.connect(etcd.endpoint) as client:
        return set(client._driver.connection.leases(5))
