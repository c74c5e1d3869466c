"""Clients of python-etcd3 as a source of connections. Loads the adapter only where one is given."""

from __future__ import annotations

from etcdsem.etcd.settings import ConnectionSettings


def is_external_client(given: object) -> bool:
    """Whether it is a client of python-etcd3."""
    from etcdsem.etcd.etcd3_adapter import is_etcd3

    return is_etcd3(given)


def external_settings(client: object, user: str | None, password: str | None) -> ConnectionSettings:
    """The settings for a connection over the channels of a python-etcd3 client."""
    from etcdsem.etcd.etcd3_adapter import borrow

    return borrow(client, user, password)


__all__ = ["external_settings", "is_external_client"]
