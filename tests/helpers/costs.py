"""The number of requests sent to etcd, counted where they leave."""

from __future__ import annotations

from etcdsem import Client


def counted(client: Client) -> dict[str, int]:
    """A copy of a client's counters."""
    return dict(client._driver.connection.counters)


def spent(client: Client, before: dict[str, int]) -> dict[str, int]:
    """What was counted since `before`; no request may have been refused."""
    assert refused(client) == 0
    return {
        key: number - before.get(key, 0)
        for key, number in counted(client).items()
        if number != before.get(key, 0) and key not in ("keepalives", "progress")
    }


def refused(client: Client) -> int:
    """Number of transactions that etcd has refused: each cost a lease, and some commits."""
    return client._driver.session.stats.requests["refused"]
